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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from d2lres.checkpoints import Checkpoint
from d2lres.data import Images
from d2lres.distributed import Group
from d2lres.history import History, Score, TrainingDiverged
from d2lres.state import eval_mode


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
    settings = Settings(epochs, lr, batch_size, seed, augment, label_smoothing, mixed_precision)
    _refuse_bad_input(train, test, settings, optimizer, scheduler)
    device = torch.device(device) if device is not None else default_device()
    model.to(device)
    if optimizer is None:
        optimizer, scheduler = _one_cycle(model, len(train), settings)
    run = Run(model, train.to(device), test, optimizer, scheduler, settings, device)
    if checkpoint is not None:
        run.resume(checkpoint)
    with run.group.ctrl_c(), run.bar(progress) as bar:
        try:
            run.loop(bar, after_epoch)
        except KeyboardInterrupt:
            run.history.interrupted = True
            run.group.copy_buffers(model)
    run.group.wait()
    return run.history


@dataclass
class Settings:
    """What decides the weights that a run ends with; a checkpoint keeps it."""

    epochs: int
    lr: float | None
    batch_size: int
    seed: int
    augment: bool
    label_smoothing: float
    mixed_precision: bool | None


@dataclass
class Run:
    """One run of `fit`: the model, what trains it, and the history so far."""

    model: nn.Module
    train: Images
    test: Images | None
    optimizer: Optimizer
    scheduler: LRScheduler | None
    settings: Settings
    device: torch.device
    checkpoint: Checkpoint | None = None
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        self.precision = _precision(self.settings.mixed_precision, self.device)
        self.group, size = Group(self.device), self.settings.batch_size
        smallest = min(len(self.train) % size or size, len(self.test or self.train))
        if smallest < self.group.count:
            raise ValueError(
                f"{self.group.count} processes cannot share a batch or test set of {smallest} "
                "images: choose another batch_size, or fewer processes."
            )

    def loop(self, bar: Any, after_epoch: Callable[[History], None] | None) -> None:
        """Train from the epoch that the history has reached to the last one."""
        net, group, settings = self.group.wrap(self.model), self.group, self.settings
        for epoch in range(len(self.history.loss), settings.epochs):
            start, total, correct = time.perf_counter(), 0.0, 0.0
            self.model.train()
            for x, y in self.batches(epoch):
                with self.precision:
                    logits = net(x)
                loss = F.cross_entropy(logits.float(), y, label_smoothing=settings.label_smoothing)
                right = (logits.argmax(1) == y).sum().item()
                loss_sum, right, images, stop = group.sum(
                    loss.item() * len(y), right, len(y), group.stop
                )
                if not math.isfinite(loss_sum):
                    raise TrainingDiverged(self.why_diverged(loss_sum, epoch), self.history)
                if stop:
                    raise KeyboardInterrupt
                self.optimizer.zero_grad(set_to_none=True)
                # Processes' gradients are averaged: a share counts by its number of images.
                (loss * (len(y) * group.count / images)).backward()
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                total, correct = total + loss_sum, correct + right
                bar.update()
            group.copy_buffers(self.model)
            score = Score(total / len(self.train), correct / len(self.train))
            seconds = time.perf_counter() - start
            self.history.add(score, self.score(), seconds)  # after the test: Ctrl-C leaves no half
            bar.set_postfix(epoch=epoch + 1, loss=f"{score.loss:.3f}")
            if self.checkpoint is not None:
                group.first(self.checkpoint.save, self.history)
            if after_epoch is not None:
                group.first(after_epoch, self.history)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each batch of an epoch, which can be repeated alone."""
        seed = self.settings.seed * 1_000_003 + epoch
        if self.group.rank > 0:  # as can its dropout; only rank 0's is in the checkpoint
            torch.manual_seed(seed + self.group.rank * 10**12)
        return self.train.batches(
            self.settings.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            augment=self.settings.augment,
            part=self.group.share,
        )

    def score(self) -> Score | None:
        """Loss and accuracy on all test images, each process on its share of them."""
        if self.test is None:
            return None
        mine = self.test[self.group.share]
        score = evaluate(self.model, mine)
        if self.group.count == 1:
            return score
        return Score(*self.group.sum(*(value * len(mine) / len(self.test) for value in score)))

    def resume(self, path: str | os.PathLike) -> None:
        """Write a checkpoint after every epoch, and go on from there if it exists."""
        drivers = dict(optimizer=self.optimizer, scheduler=self.scheduler)
        settings = {name: driver and type(driver).__name__ for name, driver in drivers.items()}
        settings |= asdict(self.settings) | dict(images=len(self.train))
        self.checkpoint = Checkpoint(Path(path), settings, self.model, **drivers)
        if (state := self.group.first(self.checkpoint.read)) is not None:
            self.history = self.checkpoint.restore(state)

    def bar(self, progress: bool | None) -> Any:
        steps = math.ceil(len(self.train) / self.settings.batch_size)
        left = steps * (self.settings.epochs - len(self.history.loss))
        return progress_bar(total=left, show=progress if self.group.rank == 0 else False)

    def why_diverged(self, loss: float, epoch: int) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"the loss became {loss} in epoch {epoch + 1} at learning rate {rate:.2g}, so training "
            "stopped: lower the learning rate, or give the network normalisation or shortcuts."
        )


@torch.no_grad()
def evaluate(model: nn.Module, data: Images, batch_size: int = 512) -> Score:
    """Loss and accuracy of `model` on `data`, in eval mode; the model is left in the mode it had."""
    if len(data) == 0:
        raise ValueError("there are no images to evaluate on.")
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    loss, correct = 0.0, 0
    with eval_mode(model):
        for x, y in data.batches(batch_size, device=device):
            logits = model(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += (logits.argmax(1) == y).sum().item()
    return Score(loss / len(data), correct / len(data))


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def progress_bar(
    steps: Iterable | None = None, total: int | None = None, show: bool | None = None
) -> Any:
    """`steps` to loop over, with a bar that counts them: a widget in notebooks, text in a terminal.

    total: how many there are, if `steps` cannot say. show: the default is yes, unless the
    environment has D2LRES_PROGRESS=0. Returns tqdm's bar: without `steps`, call its `update()`.
    """
    from tqdm.auto import tqdm

    if show is None:
        show = os.environ.get("D2LRES_PROGRESS", "1") != "0"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        return tqdm(iterable=steps, total=total, unit="batch", disable=not show, leave=False)


def _refuse_bad_input(train, test, settings: Settings, optimizer, scheduler) -> None:
    if not isinstance(train, Images) or not (test is None or isinstance(test, Images)):
        raise ValueError(
            "train and test must be d2lres.data.Images, as fashion_mnist() returns them; "
            "wrap your own tensors in Images(images, labels)."
        )
    if settings.epochs < 1 or settings.batch_size < 1 or len(train) < 2:
        raise ValueError("epochs and batch_size must be at least 1, and train needs two images.")
    if not 0 <= settings.label_smoothing <= 1:
        raise ValueError(
            f"label_smoothing must lie between 0 and 1, not {settings.label_smoothing}."
        )
    if optimizer is not None and settings.lr is not None:
        raise ValueError(
            "lr belongs to the default optimizer: set it in yours, or drop optimizer=."
        )
    if scheduler is not None and optimizer is None:
        raise ValueError("a scheduler needs the optimizer it drives: pass optimizer= as well.")


def _one_cycle(model: nn.Module, images: int, settings: Settings) -> tuple[Optimizer, LRScheduler]:
    settings.lr = lr = 0.1 if settings.lr is None else settings.lr
    optimizer = SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    steps = settings.epochs * math.ceil(images / settings.batch_size)
    return optimizer, OneCycleLR(optimizer, lr, steps, cycle_momentum=False)


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
