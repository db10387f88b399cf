"""Training and evaluation: one readable loop and its history.

    torch.manual_seed(0)
    model = cifar_resnet(20, in_channels=1)
    history = fit(model, train, test, epochs=3, lr=0.1)

The seed given to `fit` orders the images; the initial weights come from whoever built the model.
Started by torchrun, the same loop trains in many processes, each on its share of every batch.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from d2lres import arithmetic, checkpoints, rehearsal
from d2lres.arguments import instance
from d2lres.data import Images
from d2lres.distributed import Group
from d2lres.history import History, Score, TrainingDiverged
from d2lres.identity import finite
from d2lres.rehearsal import default_device as default_device  # which the chapters import here
from d2lres.state import insist


def fit(
    model: nn.Module,
    train: Images,
    test: Images | None = None,
    *,
    epochs: int,
    lr: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    augment: bool = False,
    label_smoothing: float = 0.0,
    device: torch.device | str | None = None,
    mixed_precision: bool | None = None,
    channels_last: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool | None = None,
    after_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place on cross-entropy and return its History.

    Without an optimizer: SGD with momentum 0.9 and weight decay 1e-4 (He et al. 2015, section 3.4),
    its learning rate on one cycle up to `lr` (0.1) and down to zero (Smith & Topin 2018). With one:
    that optimizer, and `scheduler` stepped after every batch if given.

    device: where to train; the default is the GPU if there is one. The model moves there.
    mixed_precision: compute what may be in bfloat16, weights and tests stay float32.
    channels_last: keep the model in this order of memory until the end.
        Left out, both are what pays: on a CPU a second's measurement decides for a run of more than
        a minute, else no, and the history tells; CUDA GPUs take bfloat16 where they have it.
    checkpoint: a file written at the start and after every epoch. If it exists, training goes on
        where it stopped, to the weights of an uninterrupted run, bit for bit on one machine. It needs
        the same arguments, images and initial weights; of the model it holds parameters and buffers.
    progress: show a bar; the default is yes, unless the environment has D2LRES_PROGRESS=0.
    after_epoch: called with the history after every epoch; the checkpoint follows it.

    Before the first step a batch, the smallest one and two test images pass through the model, which
    leave no trace in it, so that what does not fit is said at once.

    In a group of processes (torch.distributed) call it in each one, with the same arguments. Every
    batch is shared among them, the gradient is that of the whole batch, and the history that of all
    images. Batch norm sees its process's share. Rank 0 alone reads and writes files.

    Ctrl-C ends training and returns the history so far. Raises TrainingDiverged when the loss or a
    weight is no longer finite, CheckpointError for a checkpoint that cannot be used or is in use,
    ValueError for bad input.
    """
    run = SimpleNamespace(**locals(), history=History(), group=Group(), stack=ExitStack())
    with torch.enable_grad(), run.group.ctrl_c():
        try:
            _prepare(run)
            _loop(run)
        except KeyboardInterrupt:
            run.history.interrupted = True
            run.group.copy(model.buffers())
        finally:  # a bar and a lock are open
            insist(run.stack.close)
    run.group.wait()
    return run.history


def _loop(run: SimpleNamespace) -> None:
    """Train from the epoch that the history has reached to the last one. `run`: fit's arguments."""
    net, group, history = run.group.wrap(run.model, run.unused), run.group, run.history
    for epoch in range(len(history.loss), run.epochs):
        start, total, correct = time.perf_counter(), 0.0, 0.0
        run.model.train()
        for x, y in _batches(run, epoch):
            with run.precision:
                logits = net(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=run.label_smoothing)
            right = (logits.argmax(1) == y).sum().item()
            # Of all processes: their sums, and whether Ctrl-C was pressed in any of them.
            sums = group.sum(loss.item() * len(y), right, len(y), group.stop)
            loss_sum, right, images, stop = sums
            if not math.isfinite(loss_sum):
                raise _diverged(run, "the loss", loss_sum, epoch)
            if stop:
                raise KeyboardInterrupt
            run.optimizer.zero_grad(set_to_none=True)
            # Processes' gradients are averaged: a share counts by its number of images.
            (loss * (len(y) * group.count / images)).backward()
            run.optimizer.step()
            if run.scheduler is not None:
                run.scheduler.step()
            total, correct = total + loss_sum, correct + right
            run.bar.update()
        group.copy(run.model.buffers())
        seconds, test = time.perf_counter() - start, _test(run, epoch)
        images = len(run.train)
        new = dict(loss=total / images, accuracy=correct / images, seconds=seconds)
        if test is not None:
            new |= dict(test_loss=test.loss, test_accuracy=test.accuracy)
        grown = {name: [*getattr(history, name), value] for name, value in new.items()}
        vars(history).update(grown)  # in one step: Ctrl-C leaves no half epoch
        run.bar.set_postfix(epoch=epoch + 1, loss=f"{history.loss[-1]:.3f}")
        try:
            if run.after_epoch is not None:
                group.first(run.after_epoch, history)
                group.copy([*run.model.parameters(), *run.model.buffers()])
        finally:
            if run.after_epoch is not None:
                _refuse_infinite(run, epoch)
            if run.saved is not None:
                group.first(run.saved.save, history)


def _batches(run: SimpleNamespace, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of each batch of an epoch, which can be repeated alone."""
    seed, rank = run.seed * 1_000_003 + epoch, run.group.rank
    generator = torch.Generator().manual_seed(seed)
    if rank > 0:  # as can its dropout; only rank 0's is in the checkpoint
        torch.manual_seed(seed + rank * 10**12)
    options = dict(shuffle=True, augment=run.augment, part=run.group.share)
    return run.train.batches(run.batch_size, generator=generator, **options)


def _test(run: SimpleNamespace, epoch: int) -> Score | None:
    """Loss and accuracy on all test images, each process on its share of them. Raises
    TrainingDiverged if the last step has led to weights or to a loss that is not finite."""
    _refuse_infinite(run, epoch)
    test = run.train[: run.group.count] if run.test is None else run.test
    mine = test[run.group.share]
    score = evaluate(run.model, mine)
    if run.group.count > 1:
        score = Score(*run.group.sum(*(value * len(mine) / len(test) for value in score)))
    if not math.isfinite(score.loss):
        raise _diverged(run, "the loss after it", score.loss, epoch)
    return None if run.test is None else score


def _refuse_infinite(run: SimpleNamespace, epoch: int) -> None:
    if not run.finite <= finite(run.model):
        raise _diverged(run, "a weight", math.nan, epoch)


def _diverged(run: SimpleNamespace, what: str, value: float, epoch: int) -> TrainingDiverged:
    rate = float(run.optimizer.param_groups[0]["lr"])
    what = f"{what} became {value} in epoch {epoch + 1} at learning rate {rate:.2g}"
    remedy = "lower the learning rate, or give the network normalisation or shortcuts"
    return TrainingDiverged(f"{what}, so training stopped: {remedy}.", run.history)


def _prepare(run: SimpleNamespace) -> None:
    """Refuse what makes no sense, fill in what was left out, and go on from the checkpoint."""
    group, run.saved, run.images = run.group, None, {}
    group.agree(lambda: rehearsal.rehearsed(run))
    if run.checkpoint is not None:
        run.saved = checkpoints.Checkpoint(run)
        run.stack.callback(insist, run.saved.leave)
        alone = checkpoints.one_at_a_time(run.checkpoint)
        group.first(lambda: run.stack.enter_context(alone))
        if (state := group.first(run.saved.begin)) is not None:
            run.history = run.saved.restore(state)
    arithmetic.settle(run)
    if run.saved is not None and len(run.history.loss) < run.epochs:
        group.first(run.saved.save, run.history)  # what cannot be written is found now
    left = run.steps - run.steps // run.epochs * len(run.history.loss)
    last, total = (getattr(run.scheduler, name, None) for name in ("last_epoch", "total_steps"))
    if total is not None and last + left > total:
        what = f"the scheduler has {total - last} steps left and training {left}"
        raise ValueError(f"{what}: make it for all {run.steps}.")
    run.bar = progress_bar(total=left, show=run.progress if group.rank == 0 else False)
    run.stack.enter_context(run.bar)


@torch.no_grad()
def evaluate(model: nn.Module, data: Images, batch_size: int = 512) -> Score:
    """Loss and accuracy of `model` on `data`, in eval mode; the model is left in the mode it had.

    Raises ValueError for anything but a model and Images, and unless it returns logits (N, C).
    """
    for name, value, kind in (("model", model, "model"), ("data", data, "train")):
        instance(name, value, *rehearsal.KINDS[kind])
    device = next((parameter.device for parameter in model.parameters()), None)
    loss, correct = 0.0, 0
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for x, y in data.batches(batch_size, device=device):
            logits = rehearsal.forward(model, x, int(y.max()) + 1)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += (logits.argmax(1) == y).sum().item()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Score(loss / len(data), correct / len(data))


def progress_bar(
    steps: Iterable | None = None, total: int | None = None, show: bool | None = None
) -> Any:
    """`steps` to loop over, with tqdm's bar; without `steps`, call the bar's `update()`.

    total: how many there are, if `steps` cannot say. show: the default is yes, unless the
    environment has D2LRES_PROGRESS=0.
    """
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def display(self, *given: Any, **more: Any) -> Any:
            try:
                return super().display(*given, **more)
            except (OSError, ValueError):  # whoever read it has gone
                self.disable = True

    if show is None:
        show = os.environ.get("D2LRES_PROGRESS", "1") != "0"
    hidden = not show or sys.stderr is None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        return Bar(iterable=steps, total=total, unit="batch", disable=hidden, leave=False)
