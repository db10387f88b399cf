"""What the chapters measure: shapes, parameters, arithmetic, gradients, lesions of any network.

Every probe leaves the model as it found it: mode, weights, batch statistics, gradients, hooks; and
the global random state too. What it returns is plain: names, numbers, tensors without a graph.
"""

import copy
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2lres.blocks import Block
from d2lres.data import Images
from d2lres.state import eval_mode, untouched
from d2lres.training import evaluate


@torch.no_grad()
def shapes(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Output shape of each direct child of `model`, by name, in the order they run on x."""
    trace: dict[str, tuple[int, ...]] = {}
    with untouched(model):
        for name, child in model.eval().named_children():
            child.register_forward_hook(partial(_note, trace, name, lambda out: tuple(out.shape)))
        model(x)
    return trace


def _note(notes: dict, name: str, measure: Callable, module: nn.Module, args, out: Tensor) -> None:
    """A forward hook: notes[name] = measure(out)."""
    notes[name] = measure(out)


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each direct child, by name; children without any are left out."""
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    return {name: count for name, count in counts.items() if count}


def weight_layers(model: nn.Module) -> list[str]:
    """Names of the layers that count towards a network's depth: every convolution and linear layer
    except those on a shortcut (`downsample`, or a `conv3` without a `bn3`, as in the notes' block).

    Source: the paper's counting, He et al. 2015, table 1.
    """
    shortcuts = {
        f"{name}.conv3".lstrip(".")
        for name, module in model.named_modules()
        if hasattr(module, "conv3") and not hasattr(module, "bn3")
    }
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and "downsample" not in name
        and name not in shortcuts
    ]


@torch.no_grad()
def flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Floating-point operations of one forward pass on x, in eval mode, by kind.

    "convolution" and "linear" count a multiplication and an addition each (2 per MAC), as PyTorch's
    own counter does; "addition" counts one per element of every sum of two feature maps, the
    shortcuts. BN, ReLU and pooling are not counted.
    """

    def one_each(a, b, *args, out_shape=None, **kwargs):
        return math.prod(out_shape)

    aten = torch.ops.aten
    sums = (aten.add, aten.add_)  # y + x and y += x
    counter = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(sums, one_each))
    with eval_mode(model), counter:
        model(x)
    total = counter.get_flop_counts()["Global"]
    return {
        "convolution": total.get(aten.convolution, 0),
        "linear": total.get(aten.addmm, 0) + total.get(aten.mm, 0),
        "addition": sum(total.get(operation, 0) for operation in sums),
    }


@contextmanager
def _training(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """`model` untouched, in train mode, with gradients on; yields its weight layers by name."""
    with untouched(model), torch.enable_grad():
        model.train()
        yield {name: model.get_submodule(name) for name in weight_layers(model)}


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """L2 norm of the mean cross-entropy's gradient for each weight layer's weight, by name.

    x: a batch (N, ...), y: int64 labels (N,). In train mode: BN normalises with the batch. A layer
    that x does not pass has 0; an overflow shows as inf or nan.
    """
    with _training(model) as layers:
        weights = [layer.weight.requires_grad_() for layer in layers.values()]
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return {name: _norm(gradient) for name, gradient in zip(layers, gradients)}


def activation_norms(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Root mean square of each weight layer's outputs for the batch x (N, ...), by name, in the
    order in which they run. In train mode: BN normalises with the batch."""
    norms: dict[str, float] = {}
    with _training(model) as layers, torch.no_grad():
        for name, layer in layers.items():
            layer.register_forward_hook(partial(_note, norms, name, _rms))
        model(x)
    return norms


KINDS = {  # of operations: the first whose pattern is found in PyTorch's name for the operation
    "convolution": r"conv|aten::(addmm|mm)$",
    "batch norm": r"batch_norm",
    "ReLU, addition, pooling": r"relu|clamp_min|threshold|pool|aten::(add|mean)$",
}


def where_time_goes(step: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Seconds on the CPU that `step()` takes, {part: {kind of operation: seconds}}.

    Parts are the pieces of `step` that `torch.profiler.record_function(name)` names, in the order
    they run; the kinds are those of KINDS and "other". Raises ValueError if no piece has a name.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages are of no use to a reader
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, acc_events=True) as profiler:  # else 2.11 warns
        step()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    tops = [e.name for e in events if e.cpu_parent is None and "::" not in e.name]
    parts = {name: dict.fromkeys((*KINDS, "other"), 0.0) for name in tops}
    if not parts:
        raise ValueError('name the pieces of step: with torch.profiler.record_function("forward").')
    for event in events:
        top = event
        while top.cpu_parent is not None:
            top = top.cpu_parent
        if top.name in parts:
            kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, event.name))
            parts[top.name][next(kinds, "other")] += event.self_cpu_time_total / 1e6
    return parts


def _norm(tensor: Tensor) -> float:
    # In float64, where squares of float32 numbers do not overflow; on the CPU, as MPS has none.
    return tensor.detach().cpu().double().norm().item()


def _rms(tensor: Tensor) -> float:
    return _norm(tensor) / math.sqrt(tensor.numel())


def without_bn(model: nn.Module) -> nn.Module:
    """A copy of `model` with the same weights and nn.Identity for each batch normalisation in it."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    return model


def branch_variances(model: nn.Module, x: Tensor) -> list[dict]:
    """What each block adds up: {"block": name, "branch": v, "shortcut": v, "sum": v}, in order.

    v is the variance over batch, height and width, averaged over the channels, in train mode;
    "sum" is taken before the ReLU that follows. The shortcut of a plain block has 0. Raises
    ValueError without BasicBlock, Bottleneck or PreActBlock. Source: De & Smith 2020, section 2.
    """
    found: list[dict] = []

    def measure(name, block, join, branch, x):
        total = join(branch, x)
        parts = dict(branch=branch, shortcut=total - branch, sum=total)
        variances = {k: v.var((0, 2, 3), correction=0).mean().item() for k, v in parts.items()}
        found.append({"block": name} | variances)
        return total

    with _training(model), torch.no_grad():
        for name, block in model.named_modules():
            if isinstance(block, Block):
                block.join = partial(measure, name, block, block.join)
        model(x)
    if not found:
        raise ValueError("there is no BasicBlock, Bottleneck or PreActBlock in this model.")
    return found


def without(block: nn.Module):
    """A context in which `block` hands on its input as it is: its shortcut alone is left."""
    return patch.object(block, "forward", lambda x: x)


@contextmanager
def swapped(first: nn.Module, second: nn.Module) -> Iterator[None]:
    """Within it the two modules stand in each other's place."""
    function = first.forward
    with patch.object(first, "forward", second.forward), patch.object(second, "forward", function):
        yield


def lesion(model: nn.Module, data: Images) -> dict:
    """Accuracy on `data` of the intact model, without each single block, and with two swapped.

    Returns {"intact": a, "without": {"layer1.0": a, ...}, "swapped": {"layer1.0, layer1.1": a,
    ...}}, each a fraction 0 to 1, for the blocks that keep the shape; the swaps are all pairs of a
    stage. A block is a module with a `conv1` and a `conv2`, so torchvision's are blocks too.
    Raises ValueError if the model has none. Source: Veit et al. 2016, sections 4.1 and 4.3.
    """
    blocks: dict[str, nn.Module] = {}

    def keep_if_same_shape(name, block, args, out):
        if args[0].shape == out.shape:
            blocks[name] = block

    with untouched(model), torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "conv1") and hasattr(module, "conv2"):
                module.register_forward_hook(partial(keep_if_same_shape, name))
        model.eval()(next(data.batches(1, device=next(model.parameters()).device))[0])
    if not blocks:
        raise ValueError("no block of this model keeps the shape: there is none to take out.")

    def accuracy(change=nullcontext()) -> float:
        with change:
            return evaluate(model, data).accuracy

    stage = {name: name.rpartition(".")[0] for name in blocks}
    pairs = [(a, b) for a, b in itertools.combinations(blocks, 2) if stage[a] == stage[b]]
    with untouched(model):
        return dict(
            intact=accuracy(),
            without={name: accuracy(without(block)) for name, block in blocks.items()},
            swapped={f"{a}, {b}": accuracy(swapped(blocks[a], blocks[b])) for a, b in pairs},
        )


class _Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def shattering_line(points: int = 256) -> Tensor:
    """Evenly spaced numbers from -2 to 2, (points, 1)."""
    return torch.linspace(-2, 2, points)[:, None]


def shattering_net(
    depth: int, width: int = 200, kind: str = "plain", line: Tensor | None = None
) -> nn.Sequential:
    """A function of one number, (n, 1) -> (n, 1): `depth` linear layers with ReLU between them.

    All but the first and last are `width` to `width`, with BN, and one shortcut each if `kind` is
    "residual". The BN statistics are those of `line` (default: shattering_line()) and fixed, so
    that no input changes another's output. Raises ValueError for another kind or a depth below 2.
    Source: Balduzzi et al. 2017, section 2; their residual branches have the BN in front.
    """
    if kind not in ("plain", "residual") or depth < 2:
        raise ValueError("kind must be 'plain' or 'residual', and depth at least 2.")
    net = nn.Sequential(nn.Linear(1, width))
    for _ in range(depth - 2):
        linear, bn = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, momentum=1.0)
        net.append((_Skip if kind == "residual" else nn.Sequential)(nn.ReLU(), linear, bn))
    net.extend([nn.ReLU(), nn.Linear(width, 1)])
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.normal_(net[0].bias)  # sets the kinks apart: without it they all lie at 0
    with torch.no_grad():
        net(shattering_line() if line is None else line)
    return net.eval()


def input_gradients(function: Callable[[Tensor], Tensor], line: Tensor) -> Tensor:
    """The gradient of function(line[i]) for line[i] at every i, (n, ...) -> (n, ...).

    function: a module, run in eval mode, or any callable, (n, ...) -> (n,) or (n, 1). Raises
    ValueError if it does not return one number per input.
    """
    module = function if isinstance(function, nn.Module) else nn.Identity()
    with untouched(module), torch.enable_grad():
        module.eval()
        x = line.detach().clone().requires_grad_()
        if (out := function(x)).numel() != len(x):
            raise ValueError(
                f"{len(x)} inputs gave {tuple(out.shape)}, not one number each: pick a logit, "
                "lambda x: model(x)[:, 0]."
            )
        return torch.autograd.grad(out.sum(), x)[0]


def autocorrelation(values: Tensor, lags: int) -> list[float]:
    """Correlation of a sequence (n, ...) with itself shifted by 0 to `lags` places; [0] is 1.

    Raises ValueError if it is constant or not longer than `lags`.
    """
    v = values.detach().cpu().double().reshape(len(values), -1)
    v = v - v.mean(0)
    if not 0 <= lags < len(v) or not v.square().sum() > 0:
        raise ValueError("values must vary, and there must be more of them than lags.")
    return [((v[: len(v) - k] * v[k:]).sum() / v.square().sum()).item() for k in range(lags + 1)]


def white_noise(n: int, seed: int = 0) -> Tensor:
    """n independent standard normal numbers, (n,)."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def brown_noise(n: int, seed: int = 0) -> Tensor:
    """A random walk of n standard normal steps, (n,)."""
    return white_noise(n, seed).cumsum(0)
