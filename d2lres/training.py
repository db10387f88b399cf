"""Training and evaluation: one readable loop, its history, and checkpoints that survive a crash.

Started by torchrun, the same loop trains in many processes, each on its share of every batch.

    torch.manual_seed(0)
    model = cifar_resnet(20, in_channels=1)
    history = fit(model, train, test, epochs=3, lr=0.1)

The seed given to `fit` orders the images; the initial weights come from whoever built the model.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from shutil import disk_usage
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from d2lres.data import Images
from d2lres.processes import Processes
from d2lres.state import eval_mode


class Score(NamedTuple):
    """Mean cross-entropy in nats and the fraction of images classified correctly."""

    loss: float
    accuracy: float


@dataclass
class History:
    """One entry an epoch: loss (nats) and accuracy (0 to 1) while training, the same on the test
    images if there are any, and wall seconds. `interrupted` is True after Ctrl-C."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    interrupted: bool = False


class TrainingDiverged(RuntimeError):
    """The loss became infinite or NaN; `history` holds the epochs before."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


class CheckpointError(RuntimeError):
    """A checkpoint that is broken, unsafe, or belongs to another run. It is left as it was."""


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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
    batch of `batch_size` images is shared among them; the gradient is that of the whole batch, and
    the history that of all images. Batch norm sees only its process's share. Files are read and
    written by rank 0 alone, and all end with its weights and buffers.

    Ctrl-C ends training and returns the history so far. Raises TrainingDiverged when the loss is no
    longer finite, CheckpointError for a checkpoint that cannot be used, ValueError for bad input.
    """
    if not isinstance(train, Images) or not (test is None or isinstance(test, Images)):
        raise ValueError(
            "train and test must be d2lres.data.Images, as fashion_mnist() returns them; "
            "wrap your own tensors in Images(images, labels)."
        )
    if epochs < 1 or not batch_size >= 1 or len(train) < 2:
        raise ValueError("epochs and batch_size must be at least 1, and train needs two images.")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, not {label_smoothing}.")
    if optimizer is not None and lr is not None:
        raise ValueError(
            "lr belongs to the default optimizer: set it in yours, or drop optimizer=."
        )
    if scheduler is not None and optimizer is None:
        raise ValueError("a scheduler needs the optimizer it drives: pass optimizer= as well.")

    device = torch.device(device) if device is not None else default_device()
    precision = _precision(mixed_precision, device)
    together = Processes(device)
    smallest = min(len(train) % batch_size or batch_size, len(test or train))
    if smallest < together.count:
        raise ValueError(
            f"{together.count} processes cannot share a batch or test set of {smallest} images: "
            "choose another batch_size, or fewer processes."
        )
    model.to(device)
    train = train.to(device)
    steps = math.ceil(len(train) / batch_size)
    if optimizer is None:
        lr = 0.1 if lr is None else lr
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
        scheduler = OneCycleLR(optimizer, lr, epochs * steps, cycle_momentum=False)

    history = History()
    run = dict(optimizer=type(optimizer).__name__, scheduler=scheduler and type(scheduler).__name__)
    run |= dict(epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, images=len(train))
    run |= dict(augment=augment, label_smoothing=label_smoothing, mixed_precision=mixed_precision)
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        state = together.first(_open, checkpoint)
        if state is not None:
            history = _resume(checkpoint, state, run, model, optimizer, scheduler)

    net = together.wrap(model)
    generator = torch.Generator()
    left = steps * (epochs - len(history.loss))
    bar = progress_bar(total=left, show=progress if together.rank == 0 else False)
    with together.ctrl_c(), bar:
        try:
            for epoch in range(len(history.loss), epochs):
                start, total, correct = time.perf_counter(), 0.0, 0
                generator.manual_seed(seed * 1_000_003 + epoch)  # any epoch can be repeated alone
                if together.rank > 0:  # as can its dropout; only rank 0's is in the checkpoint
                    torch.manual_seed(seed * 1_000_003 + epoch + together.rank * 10**12)
                model.train()
                for x, y in train.batches(
                    batch_size,
                    shuffle=True,
                    generator=generator,
                    augment=augment,
                    part=together.share,
                ):
                    with precision:
                        logits = net(x)
                    loss = F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing)
                    right = (logits.argmax(1) == y).sum().item()
                    loss_sum, right, images, stop = together.sum(
                        loss.item() * len(y), right, len(y), together.stop
                    )
                    if not math.isfinite(loss_sum):
                        raise TrainingDiverged(_why_diverged(loss_sum, epoch, optimizer), history)
                    if stop:
                        raise KeyboardInterrupt
                    optimizer.zero_grad(set_to_none=True)
                    # Processes' gradients are averaged: a share counts by its number of images.
                    (loss * (len(y) * together.count / images)).backward()
                    optimizer.step()
                    if scheduler is not None:
                        scheduler.step()
                    total += loss_sum
                    correct += right
                    bar.update()
                together.copy_buffers(model)
                loss, accuracy = total / len(train), correct / len(train)
                _record(history, model, test, loss, accuracy, start, together)
                bar.set_postfix(epoch=epoch + 1, loss=f"{history.loss[-1]:.3f}")
                if checkpoint is not None:
                    together.first(_save, checkpoint, run, model, optimizer, scheduler, history)
                if after_epoch is not None:
                    together.first(after_epoch, history)
        except KeyboardInterrupt:
            history.interrupted = True
            together.copy_buffers(model)
    together.wait()
    return history


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


def _precision(mixed: bool | None, device: torch.device):
    """The context of the forward pass: bfloat16 where possible, or none."""
    if cuda := device.type == "cuda":
        possible = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        possible = device.type == "cpu"  # on MPS it has not been tried
    if mixed and not possible:
        raise ValueError(
            f"bfloat16 cannot be had on {device.type} here: leave mixed_precision out."
        )
    mixed = cuda and possible if mixed is None else mixed
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def _score(model, test, together) -> Score:
    if together.count == 1:
        return evaluate(model, test)
    mine = test[together.share]
    score = evaluate(model, mine)
    loss, accuracy = together.sum(score.loss * len(mine), score.accuracy * len(mine))
    return Score(loss / len(test), accuracy / len(test))


def _record(history, model, test, loss, accuracy, start, together) -> None:
    seconds = time.perf_counter() - start
    score = None if test is None else _score(model, test, together)  # Ctrl-C leaves the lists even
    history.seconds.append(seconds)
    history.loss.append(loss)
    history.accuracy.append(accuracy)
    if score is not None:
        history.test_loss.append(score.loss)
        history.test_accuracy.append(score.accuracy)


def _why_diverged(loss: float, epoch: int, optimizer: Optimizer) -> str:
    rate = optimizer.param_groups[0]["lr"]
    return (
        f"the loss became {loss} in epoch {epoch + 1} at learning rate {rate:.2g}, so training "
        "stopped: lower the learning rate, or give the network normalisation or shortcuts."
    )


def _open(path: Path) -> dict | None:
    """What the checkpoint holds; None if it does not exist yet and can be written."""
    if path.exists():
        return load_checkpoint(path)
    with _beside(path) as unfinished:  # fails now rather than after the first epoch
        unfinished.touch()
    return None


def _save(path: Path, run, model, optimizer, scheduler, history) -> None:
    state = {
        "run": run,
        "history": asdict(history),
        "architecture": repr(model),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
        "random": torch.get_rng_state(),
    }
    with _beside(path) as unfinished:
        torch.save(state, unfinished)
        os.replace(unfinished, path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file to write first, beside `path`: a crash leaves the old one whole, and no junk."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
    except (OSError, RuntimeError) as error:
        full = isinstance(error, RuntimeError) and disk_usage(path.parent).free < 2**20
        reason = "the disk is full" if full else error  # torch.save says "unexpected pos 24 vs 20"
        raise CheckpointError(
            f"could not write the checkpoint {path} ({reason}): choose a folder that you may write "
            "to and that has room; the model keeps what it has learned."
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint of `fit`: its "model" entry is the state dict, "history" the History.

    Only tensors and plain data are read (`weights_only=True`), so that a stranger's file runs no
    code; before PyTorch 2.10 a crafted one still could (CVE-2026-24747). Raises CheckpointError for
    a missing, unfinished or unsafe file.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        parts = {"run", "history", "architecture", "model", "optimizer", "scheduler", "random"}
        missing = parts - (state.keys() if isinstance(state, dict) else set())
        if not missing:
            state["history"] = History(**state["history"])
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and plain data, so it was not opened "
            "further: opening it could run code of whoever made it. Delete it to start afresh."
        ) from error
    except Exception as error:  # torch.load raises whatever the broken bytes lead it to
        raise CheckpointError(
            f"{path} is not a complete checkpoint (half-written, damaged, or made by another "
            "version): delete it to start afresh."
        ) from error
    if missing:
        raise CheckpointError(
            f"{path} is no checkpoint of fit, it lacks {', '.join(sorted(missing))}: load it with "
            "torch.load(path, weights_only=True) instead, or choose another file."
        )
    return state


def _resume(path: Path, state: dict, run, model, optimizer, scheduler) -> History:
    for name, value in run.items():
        if state["run"].get(name) != value:
            raise CheckpointError(
                f"{path} belongs to a run with {name}={state['run'].get(name)}, not {value}: use "
                "the same settings to continue it, or another file to start afresh."
            )
    ours, theirs = (
        {key: tuple(value.shape) for key, value in entries.items()}
        for entries in (model.state_dict(), state["model"])
    )
    if different := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
        key = different[0]
        raise CheckpointError(
            f"{path} is of another architecture: {key} is {theirs.get(key, 'absent')} there and "
            f"{ours.get(key, 'absent')} here. Build the model it was made with, or use another file."
        )
    if state["architecture"] != repr(model):  # a plain twin has the tensors of its residual one
        raise CheckpointError(
            f"{path} is of another architecture with the same tensors: build the model it was made "
            "with, or use another file."
        )
    try:
        optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} was made with another optimizer: use the same one, or another file ({error})."
        ) from error
    model.load_state_dict(state["model"])
    torch.set_rng_state(state["random"])
    return state["history"]
