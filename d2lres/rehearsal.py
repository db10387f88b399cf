"""What `fit` refuses before its first step: arguments that make no sense, and a model that cannot
take its images or give what the loss needs. Each in one sentence, as a ValueError."""

import math
import os
import time
import zlib
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from d2lres.arguments import instance, number, shown, whole, yes_or_no
from d2lres.arithmetic import precision
from d2lres.checkpoints import absolute, architecture
from d2lres.data import Images
from d2lres.identity import finite, identity
from d2lres.state import untouched

IMAGES = "d2lres.data.Images: fashion_mnist() returns them, Images(images, labels) wraps your own"
ABSENT = type(None)
KINDS: dict[str, tuple] = {  # of the arguments of fit that are objects
    "model": (nn.Module, "a model, such as resnet18()"),
    "train": (Images, IMAGES),
    "test": ((Images, ABSENT), IMAGES),
    "optimizer": ((Optimizer, ABSENT), "an optimizer, such as torch.optim.SGD(...)"),
    "scheduler": ((LRScheduler, ABSENT), "a scheduler of torch.optim.lr_scheduler"),
    "checkpoint": ((str, os.PathLike, ABSENT), "the path of a file"),
}


def rehearsed(run: SimpleNamespace) -> dict[str, Any]:
    """All that can be refused before the first step. Returns what all processes must agree on."""
    check(run)
    if run.checkpoint is not None:
        run.checkpoint = absolute(run.checkpoint)
    run.device = run.group.device = _device(run.device)
    run.precision = precision(run.mixed_precision, run.device)
    move(run)
    drive(run)
    rehearse(run)
    if run.group.count == 1:
        return {}
    code = zlib.crc32("\n".join(architecture(repr(run.model), run.model.state_dict())).encode())
    same: dict[str, Any] = {"model": f"{type(run.model).__name__} ({code:08x})"}
    same |= identity(run) | {"initial weights": "those of process 0"}
    optional = ("checkpoint", "after_epoch")
    return same | {name: getattr(run, name) is not None for name in optional}


def check(run: Any) -> None:
    """Turn each argument of `fit` into what its loop needs, or refuse it."""
    for name, (kind, wanted) in KINDS.items():
        instance(name, getattr(run, name), kind, wanted)
    for name in ("augment", "mixed_precision", "channels_last", "progress"):
        if getattr(run, name) is not None:
            setattr(run, name, yes_or_no(name, getattr(run, name)))
    if run.after_epoch is not None and not callable(run.after_epoch):
        raise ValueError(f"after_epoch must be a function, not {shown(run.after_epoch)}.")
    run.epochs, run.batch_size = whole("epochs", run.epochs), whole("batch_size", run.batch_size)
    run.seed = whole("seed", run.seed, 0, 2**40)
    run.label_smoothing = number("label_smoothing", run.label_smoothing, 0, 1)
    if run.test is not None and (run.test.mean, run.test.std) != (run.train.mean, run.train.std):
        what = "train and test are normalised by different means or deviations"
        raise ValueError(f"{what}: pass test.normalised(train).")
    if run.test is not None and list(run.test.classes) != list(run.train.classes):
        raise ValueError("train and test have different classes, or the same in another order.")
    if len(run.train) < 2:
        raise ValueError("train needs at least two images.")
    run.smallest = len(run.train) % run.batch_size or min(run.batch_size, len(run.train))
    shared = min(run.smallest, len(run.test or run.train))
    if shared < run.group.count:
        what = f"{run.group.count} processes cannot share a batch or test set of {shared} images"
        raise ValueError(f"{what}: choose another batch_size, or fewer processes.")
    run.steps = run.epochs * math.ceil(len(run.train) / run.batch_size)


def move(run: Any) -> None:
    """Bring model and training images to the device, and give lazy layers their shapes."""
    if any(tensor.is_meta for tensor in run.model.parameters()):
        raise ValueError("the model is on the meta device and has no weights: build it on another.")
    run.train, run.model = run.train.to(run.device), run.model.to(run.device)
    if any(map(is_lazy, run.model.parameters())):
        with torch.no_grad():
            forward(run.model.eval(), run.train[:2].tensors()[0], len(run.train.classes))
    run.finite = finite(run.model)  # a buffer may be a mask of inf, a weight may not
    if not dict(run.model.named_parameters()).keys() <= run.finite:
        what = "the model has weights that are inf or nan before it trains"
        raise ValueError(f"{what}: build it anew.")


def drive(run: Any) -> None:
    """The default optimizer and scheduler, or those given if they drive this model."""
    given, own = run.optimizer, list(run.model.parameters())
    if given is not None and run.lr is not None:
        raise ValueError("lr is the default optimizer's: set it in yours, or drop optimizer=.")
    if run.scheduler is not None and given is None:
        raise ValueError("a scheduler needs the optimizer it drives: pass optimizer= as well.")
    if not any(parameter.requires_grad for parameter in own):
        raise ValueError("no parameter of the model requires a gradient: nothing can be trained.")
    if given is None:
        run.lr = number("lr", 0.1 if run.lr is None else run.lr, high=3e38)
        if run.steps == 1:
            what = "in one step the default schedule has a rate of almost 0, and nothing is learned"
            raise ValueError(f"{what}: use more epochs, a smaller batch_size, or an optimizer.")
        run.optimizer = SGD(own, run.lr, momentum=0.9, weight_decay=1e-4)
        run.scheduler = OneCycleLR(run.optimizer, run.lr, run.steps, cycle_momentum=False)
        return
    if isinstance(given, torch.optim.LBFGS) or isinstance(run.scheduler, ReduceLROnPlateau):
        raise ValueError("LBFGS and ReduceLROnPlateau want more than fit gives: choose another.")
    driven = [parameter for group in given.param_groups for parameter in group["params"]]
    if not set(driven) <= set(own):
        raise ValueError("the optimizer has parameters of another model: build it with this one's.")
    if not any(parameter.requires_grad for parameter in driven):
        raise ValueError("the optimizer has no parameter that requires a gradient.")
    for rate in (group["lr"] for group in given.param_groups):
        number("the optimizer's lr", rate.item() if torch.is_tensor(rate) else rate)
    if run.scheduler is not None and run.scheduler.optimizer is not given:
        raise ValueError("the scheduler drives another optimizer: build it with this one.")


def rehearse(run: Any) -> None:
    """Pass this process's share of a batch through the model, that of the smallest also back, and
    two test images; leave no trace. `run.unused`: whether a parameter gets no gradient. `run.pace`:
    seconds that an image took, there and back."""
    classes = len(run.train.classes)
    with untouched(run.model), torch.enable_grad():
        run.model.train().zero_grad(set_to_none=True)
        x, y = run.train[: run.smallest][run.group.share].tensors()
        if run.smallest < min(run.batch_size, len(run.train)):
            with torch.no_grad(), run.precision:
                whole = run.train[: run.batch_size][run.group.share]
                forward(run.model, whole.tensors()[0], classes)
        start = time.perf_counter()
        with run.precision:
            logits = forward(run.model, x, classes)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=run.label_smoothing)
        if not loss.requires_grad:
            raise ValueError("the loss has no gradient for the model, which detaches its output.")
        loss.backward()
        run.pace = (time.perf_counter() - start) / len(y)
        run.unused = any(p.requires_grad and p.grad is None for p in run.model.parameters())
    if run.test is not None:
        with untouched(run.model), torch.no_grad():
            x = run.test[:2].to(run.device).tensors()[0]
            forward(run.model.eval(), x, len(run.test.classes))


def forward(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """The model's logits for x, floats (N, at least `classes`). ValueError if it cannot take x, or
    returns anything else."""
    try:
        logits = model(x)
    except Exception as error:
        what = f"the model cannot take a batch {tuple(x.shape)} of {x.dtype} on {x.device}"
        alone = " (one image is too few for batch norm: try another batch_size)" * (len(x) == 1)
        raise ValueError(f"{what}{alone}: {told(error)}") from error
    floats = isinstance(logits, Tensor) and logits.is_floating_point()
    if floats and logits.ndim == 2 and len(logits) == len(x) and logits.shape[1] >= classes:
        return logits
    wanted = f"logits of shape ({len(x)}, {classes}), a row an image and a column a class"
    raise ValueError(f"the model must return {wanted}, not {shown(logits)}.")


def told(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _device(given: torch.device | str | None) -> torch.device:
    """The device that was asked for, if numbers can be put there, or the default."""
    try:
        device = default_device() if given is None else torch.device(given)
        torch.zeros(1, device=device).item()
    except Exception as error:  # RuntimeError, or without CUDA AssertionError, or TypeError
        what = f"device must be one that PyTorch finds here, such as 'cpu', not {shown(given)}"
        raise ValueError(f"{what} ({told(error)}).") from error
    return device


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
