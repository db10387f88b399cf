"""Training and evaluation: one readable loop and its history.

    torch.manual_seed(0)
    model = cifar_resnet(20, in_channels=1)
    history = fit(model, train, test, epochs=3, lr=0.1)

The seed given to `fit` orders the images; the initial weights come from whoever built the model.
Started by torchrun, the same loop trains in many processes, each on its share of every batch.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from d2lres import checkpoints
from d2lres.data import Images
from d2lres.distributed import Group
from d2lres.history import History, Score, TrainingDiverged


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
    checkpoint: str | os.PathLike | None = None,
    progress: bool | None = None,
    after_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place on cross-entropy and return its History.

    Without an optimizer: SGD with momentum 0.9 and weight decay 1e-4 (He et al. 2015, section 3.4),
    its learning rate on one cycle up to `lr` (0.1) and down to zero (Smith & Topin 2018). With one:
    that optimizer, and `scheduler` stepped after every batch if given.

    device: where to train; the default is the GPU if there is one. The model moves there.
    mixed_precision: compute what may be in bfloat16, weights and tests stay float32; the default is
        yes on CUDA GPUs that have it, and no elsewhere.
    checkpoint: a file written after every epoch. If it exists, training goes on where it stopped,
        to the same weights, bit for bit on one machine, as without the interruption.
    progress: show a bar; the default is yes, unless the environment has D2LRES_PROGRESS=0.
    after_epoch: called with the history after every epoch, once the checkpoint is written.

    In a group of processes (torch.distributed) call it in each one, with the same arguments. Every
    batch is shared among them, the gradient is that of the whole batch, and the history that of all
    images. Batch norm sees its process's share. Rank 0 alone reads and writes files.

    Ctrl-C ends training and returns the history so far. Raises TrainingDiverged when the loss is no
    longer finite, CheckpointError for a checkpoint that cannot be used, ValueError for bad input.
    """
    run = SimpleNamespace(**locals(), history=History())
    _prepare(run)
    with run.group.ctrl_c(), run.bar:
        try:
            _loop(run)
        except KeyboardInterrupt:
            run.history.interrupted = True
            run.group.copy_buffers(model)
    run.group.wait()
    return run.history


def _loop(run: SimpleNamespace) -> None:
    """Train from the epoch that the history has reached to the last one. `run`: fit's arguments."""
    net, group, history = run.group.wrap(run.model), run.group, run.history
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
                raise TrainingDiverged(_why_diverged(run, loss_sum, epoch), history)
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
        group.copy_buffers(run.model)
        seconds, test = time.perf_counter() - start, _test(run)
        history.seconds.append(seconds)  # all lists after the test: Ctrl-C leaves no half epoch
        history.loss.append(total / len(run.train))
        history.accuracy.append(correct / len(run.train))
        if test is not None:
            history.test_loss.append(test.loss)
            history.test_accuracy.append(test.accuracy)
        run.bar.set_postfix(epoch=epoch + 1, loss=f"{history.loss[-1]:.3f}")
        for action in run.after:
            group.first(action, history)


def _batches(run: SimpleNamespace, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of each batch of an epoch, which can be repeated alone."""
    seed, rank = run.seed * 1_000_003 + epoch, run.group.rank
    generator = torch.Generator().manual_seed(seed)
    if rank > 0:  # as can its dropout; only rank 0's is in the checkpoint
        torch.manual_seed(seed + rank * 10**12)
    options = dict(shuffle=True, augment=run.augment, part=run.group.share)
    return run.train.batches(run.batch_size, generator=generator, **options)


def _test(run: SimpleNamespace) -> Score | None:
    """Loss and accuracy on all test images, each process on its share of them."""
    if run.test is None:
        return None
    mine = run.test[run.group.share]
    score = evaluate(run.model, mine)
    sums = run.group.sum(*(value * len(mine) / len(run.test) for value in score))
    return score if run.group.count == 1 else Score(*sums)


def _why_diverged(run: SimpleNamespace, loss: float, epoch: int) -> str:
    rate = run.optimizer.param_groups[0]["lr"]
    what = f"the loss became {loss} in epoch {epoch + 1} at learning rate {rate:.2g}"
    remedy = "lower the learning rate, or give the network normalisation or shortcuts"
    return f"{what}, so training stopped: {remedy}."


def _prepare(run: SimpleNamespace) -> None:
    """Refuse what makes no sense, fill in what was left out, and go on from the checkpoint."""
    train, test, size = run.train, run.test, run.batch_size
    if not isinstance(train, Images) or not (test is None or isinstance(test, Images)):
        how = "as fashion_mnist() returns them; wrap your own tensors in Images(images, labels)"
        raise ValueError(f"train and test must be d2lres.data.Images, {how}.")
    if run.epochs < 1 or size < 1 or len(train) < 2:
        raise ValueError("epochs and batch_size must be at least 1, and train needs two images.")
    if not 0 <= run.label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, not {run.label_smoothing}.")
    if run.optimizer is not None and run.lr is not None:
        raise ValueError(
            "lr belongs to the default optimizer: set it in yours, or drop optimizer=."
        )
    if run.scheduler is not None and run.optimizer is None:
        raise ValueError("a scheduler needs the optimizer it drives: pass optimizer= as well.")
    run.device = torch.device(run.device) if run.device is not None else default_device()
    run.precision, run.group = _precision(run.mixed_precision, run.device), Group(run.device)
    smallest = min(len(train) % size or size, len(test or train))
    if smallest < run.group.count:
        what = f"{run.group.count} processes cannot share a batch or test set of {smallest} images"
        raise ValueError(f"{what}: choose another batch_size, or fewer processes.")
    run.model.to(run.device)
    run.train, steps = train.to(run.device), math.ceil(len(train) / size)
    if run.optimizer is None:
        run.lr = 0.1 if run.lr is None else run.lr
        run.optimizer = SGD(run.model.parameters(), run.lr, momentum=0.9, weight_decay=1e-4)
        total = run.epochs * steps
        run.scheduler = OneCycleLR(run.optimizer, run.lr, total, cycle_momentum=False)
    run.after = []
    if run.checkpoint is not None:
        checkpoint = checkpoints.Checkpoint(run)
        run.after.append(checkpoint.save)
        if (state := run.group.first(checkpoint.read)) is not None:
            run.history = checkpoint.restore(state)
    if run.after_epoch is not None:
        run.after.append(run.after_epoch)
    left = steps * (run.epochs - len(run.history.loss))
    run.bar = progress_bar(total=left, show=run.progress if run.group.rank == 0 else False)


@torch.no_grad()
def evaluate(model: nn.Module, data: Images, batch_size: int = 512) -> Score:
    """Loss and accuracy of `model` on `data`, in eval mode; the model is left in the mode it had."""
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    loss, correct = 0.0, 0
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for x, y in data.batches(batch_size, device=device):
            logits = model(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += (logits.argmax(1) == y).sum().item()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Score(loss / len(data), correct / len(data))


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def progress_bar(
    steps: Iterable | None = None, total: int | None = None, show: bool | None = None
) -> Any:
    """`steps` to loop over, with tqdm's bar; without `steps`, call the bar's `update()`.

    total: how many there are, if `steps` cannot say. show: the default is yes, unless the
    environment has D2LRES_PROGRESS=0.
    """
    from tqdm.auto import tqdm

    if show is None:
        show = os.environ.get("D2LRES_PROGRESS", "1") != "0"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        return tqdm(iterable=steps, total=total, unit="batch", disable=not show, leave=False)


def _precision(mixed: bool | None, device: torch.device) -> AbstractContextManager:
    """The context of the forward pass: bfloat16 where asked for and possible, or none."""
    possible = device.type == "cpu"  # on MPS it has not been tried
    if device.type == "cuda":
        possible = torch.cuda.is_bf16_supported(including_emulation=False)
        mixed = possible if mixed is None else mixed
    if mixed and not possible:
        raise ValueError(
            f"bfloat16 cannot be had on {device.type} here: leave mixed_precision out."
        )
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()
