"""How a run of `fit` computes: in which number format and order of memory, as asked for or measured."""

import math
import time
import zlib
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2lres.checkpoints import architecture
from d2lres.state import untouched

LONG = 60.0  # seconds; nothing is tried out for a run that will not take as long
STEP = 0.05  # seconds that a step of the measurement may take
GAIN = 1.1  # times as fast must be what is not the default
CHOSEN: dict[tuple, tuple[bool, bool]] = {}  # in this process: one model, one answer


def settle(run: Any) -> None:
    """Decide, or take from the history of a resumed run, its mixed precision and memory format; note
    both in the history and have the model converted until the run's stack is closed."""
    history, last = run.history, run.channels_last
    if history.mixed_precision is None:
        mixed = run.mixed_precision
        if run.device.type == "cuda" and mixed is None:
            mixed = torch.cuda.is_bf16_supported(including_emulation=False)
        options = [
            (m, c)
            for m, c in product((False, True), repeat=2)
            if mixed in (m, None) and last in (c, None)
        ]
        if len(options) > 1:
            resumed = len(history.loss) > 0  # by a version that did not choose
            measure = run.device.type == "cpu" and not resumed
            best = run.group.first(choose, run, options) if measure else options[0]
            options = [best]
        history.mixed_precision, history.channels_last = options[0]
    run.precision = precision(history.mixed_precision, run.device)
    if history.channels_last:
        run.stack.callback(restore, {kernel: kernel.stride() for kernel in kernels(run.model)})
        run.model.to(memory_format=torch.channels_last)


def precision(mixed: bool | None, device: torch.device) -> AbstractContextManager:
    """The context of the forward pass: bfloat16 where asked for and possible, or none."""
    possible = device.type == "cpu"  # on MPS it has not been tried
    if device.type == "cuda":
        possible = torch.cuda.is_bf16_supported(including_emulation=False)
    if mixed and not possible:
        what = f"bfloat16 cannot be had on {device.type} here"
        raise ValueError(f"{what}: leave mixed_precision out.")
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def choose(run: Any, options: list[tuple[bool, bool]]) -> tuple[bool, bool]:
    """The fastest of the options (mixed precision, channels-last), or the first unless that gains.

    The first is also taken where a run is too short for it to matter, or has no convolution.
    """
    if run.pace * len(run.train) * run.epochs < LONG or not kernels(run.model):
        return options[0]
    lines = "\n".join(architecture(repr(run.model), run.model.state_dict()))
    shape = tuple(run.train.images.shape[1:]), run.train.size, run.batch_size
    key = zlib.crc32(lines.encode()), shape, torch.get_num_threads(), *options
    if key not in CHOSEN:
        few = min(4, run.smallest)
        once = seconds(run, few, *options[0]) / few
        if once * len(run.train) * run.epochs < LONG:  # the rehearsal had to load its kernels
            return options[0]
        many = min(run.batch_size, len(run.train), max(few, int(STEP / once)))
        took = {option: seconds(run, many, *option) for option in options}
        best = min(options, key=lambda option: took[option])
        CHOSEN[key] = best if GAIN * took[best] < took[options[0]] else options[0]
    return CHOSEN[key]


def seconds(run: Any, images: int, mixed: bool, last: bool) -> float:
    """Of the faster of two training steps after a first one; infinite if the model cannot do that."""
    x, y = run.train[:images].tensors()
    took = [math.inf]
    with suppress(Exception), untouched(run.model), torch.enable_grad():
        run.model.train()
        if last:
            run.model.to(memory_format=torch.channels_last)
        for step in range(3):
            start = time.perf_counter()
            with precision(mixed, run.device):
                logits = run.model(x)
            loss = F.cross_entropy(logits.float(), y)
            loss.backward()
            if step and math.isfinite(loss.item()):
                took.append(time.perf_counter() - start)
    return min(took)


def kernels(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 4]


def restore(strides: dict[Tensor, tuple[int, ...]]) -> None:
    """Put each kernel back into the order of memory that it had."""
    for kernel, stride in strides.items():
        before = torch.empty_strided(kernel.shape, stride, dtype=kernel.dtype, device=kernel.device)
        kernel.data = before.copy_(kernel.data)
