"""What is wrong with this network, its data or its training step: small probes, and `examine`.

    print(examine(model, train))
    print(examine(model, loader, optimizer=optimizer, step=step))

Each probe looks for bugs of one kind, returns a Finding, and leaves model, optimizer, schedulers
and random numbers as they were. Chapter 10 shows which bugs pass which probe.
"""

import copy
import difflib
import functools
import gc
import inspect
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode

from d2lres.arguments import instance, shown
from d2lres.blocks import BasicBlock, Bottleneck, PreActBlock
from d2lres.data import Images
from d2lres.networks import ResNet
from d2lres.probes import gradient_norms
from d2lres.rehearsal import told
from d2lres.state import untouched

Step = Callable[[Module, Optimizer, Tensor, Tensor], Any]
Said = tuple[dict[str, Any], dict[str, Any] | str]
ACTIVATIONS = "relu relu6 gelu silu elu leaky_relu prelu hardtanh hardswish mish".split()  # noqa: SIM905
ACTIVATIONS += "selu celu softplus sigmoid tanh softmax exp pow abs max_pool2d".split()  # noqa: SIM905
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
BATCH_NORM, DROPOUT = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
BESIDE = re.compile("downsample|shortcut|skip|identity|proj")  # what a shortcut's layers are called


class Finding(NamedTuple):
    """What a probe found. ok: True, False for an alarm, None where nothing was tested.
    measured: plain data. advice: a sentence about the alarm, or why nothing was tested."""

    probe: str
    ok: bool | None
    measured: dict[str, Any]
    advice: str


@dataclass(frozen=True)
class Report:
    """The findings of all probes; `print` shows them, the alarms with their advice."""

    about: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether no probe raised an alarm, which does not say that all is well."""
        return all(finding.ok is not False for finding in self.findings)

    def __str__(self) -> str:
        lines = [self.about]
        for probe, ok, measured, advice in self.findings:
            values = [
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in measured.items()
            ]
            shows = advice if ok is None else "; ".join(values)
            lines.append(f"{MARKS[ok]:6}{probe:12}{shows}".rstrip())
            lines += [f"{'':18}{advice}"] * (ok is False)
        return "\n".join(lines)


MARKS = {True: "ok", False: "ALARM", None: "-"}
PROBES: list[Callable[..., Finding]] = []


def probe(function: Callable[..., Said]) -> Callable[..., Finding]:
    """Decorator for what returns plain data and, of each problem, the advice and whether it is there;
    or in place of these the reason why nothing was tested."""

    @functools.wraps(function)
    def run(*given: Any, **named: Any) -> Finding:
        measured, problems = function(*given, **named)
        if isinstance(problems, str):
            return Finding(function.__name__, None, measured, f"not tested: {problems}")
        advice = "; also: ".join(advice for advice, there in problems.items() if there)
        return Finding(function.__name__, not advice, measured, advice)

    PROBES.append(run)
    return run


def plain_step(model: Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    """The usual training step, on the mean cross-entropy."""
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def examine(
    model: Module,
    data: Images | Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: Optimizer | None = None,
    step: Step | None = None,
) -> Report:
    """Try all probes on a classifier before its training, and on what is to train it.

    model: x (N, ...) -> logits (N, classes). It is examined on its own device.
    data: Images, a DataLoader or any iterable of batches (x, y), of which up to 512 inputs are read;
        an iterator is used up by that.
    optimizer: yours; without it and without `step` nothing is said about how you train.
    step: step(model, optimizer, x, y), your training step; the default is `plain_step`. It is called
        up to 60 times. What it changes beside model, optimizer and schedulers stays changed.
    Raises ValueError for arguments of another kind.
    """
    instance("model", model, Module, "a model, such as resnet18()")
    instance("optimizer", optimizer, (Optimizer, type(None)), "an optimizer of torch.optim")
    if step is not None and not callable(step):
        raise ValueError(f"step must be a function, not {shown(step)}.")
    if any(map(is_lazy, model.parameters())) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model must be one that has run once, and no ScriptModule.")
    with untouched(model):
        x, y = collected(data)
    place = next(itertools.chain(model.parameters(), model.buffers()), x).device
    x, y = x.to(place), y.to(place)
    count = min(len(x), 32 if x[0].numel() < 3 * 48**2 else 16)
    few = torch.linspace(0, len(x) - 1, count).long()
    given = dict(model=model, x=x[few], y=y[few], optimizer=optimizer, step=step)
    found = [images(x), neighbours(x, y), runs(model, x[few])]
    classes = len(data.classes) if isinstance(data, Images) else None
    found.append(labels(y, found[-1].measured.get("outputs"), classes))
    unusable = [f.probe for f in found if "unusable" in f.measured]
    for one in PROBES[len(found) :]:
        own = {name: given[name] for name in inspect.signature(one).parameters}
        why = f"see {unusable[0]}" if unusable and ("y" in own or "runs" in unusable) else ""
        finding = None
        try:
            finding = None if why else one(**own)
        except Exception as error:  # whatever a model of any make may raise
            why = told(error)
        found.append(finding or Finding(one.__name__, None, {}, f"not tested: {why}"))
    size = "x".join(map(str, x.shape[1:]))
    count = sum(parameter.numel() for parameter in model.parameters())
    return Report(f"{type(model).__name__}, {count:,} parameters; {len(x)} inputs of {size}", found)


def collected(data: Any, most: int = 512) -> tuple[Tensor, Tensor]:
    """Up to `most` inputs and labels: of Images in random order, of batches in their own."""
    if isinstance(data, Images):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        return data[order[:most]].tensors()
    wanted = "Images, or batches (x, y) of tensors (N, ...) and (N,)"
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for batch in itertools.islice(instance("data", data, Iterable, wanted), most):
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        x, y = cast(tuple[Any, Any], batch if pair else (batch, None))
        plain = all(isinstance(it, Tensor) and it.layout == torch.strided for it in (x, y))
        if not plain or x.ndim < 2 or y.ndim < 1 or not x.numel() or x.is_meta:
            what = f"x is {shown(x)} and y is {shown(y)}" if pair else shown(batch)
            raise ValueError(f"data must be {wanted}; in one of the batches {what}.")
        if len(x) != len(y):
            raise ValueError(f"data must be {wanted}; one has {len(x)} inputs and {len(y)} labels.")
        if not xs or (x.shape[1:], y.shape[1:]) == (xs[0].shape[1:], ys[0].shape[1:]):
            xs.append(x.detach())
            ys.append(y.detach())
        if sum(map(len, ys)) >= most:
            break
    if sum(map(len, ys)) < 2:
        raise ValueError(f"data must be {wanted}, with two inputs or more.")
    return torch.cat(xs)[:most], torch.cat(ys)[:most]


@probe
def images(x: Tensor) -> Said:
    """Mean, deviation and range of the inputs: does their scale suit a network?"""
    if not x.is_floating_point():
        return dict(type=str(x.dtype)), "the inputs are no floats"
    values = x.double()
    mean, deviation = values.mean().item(), values.std().item()
    each, places = values.flatten(1).std(1), values.flatten(1).std(0)
    channels = (values.transpose(0, 1) if x.ndim == 4 else values[None]).flatten(1).std(1)
    measured = dict(mean=mean, deviation=deviation)
    measured |= dict(least=values.min().item(), most=values.max().item())
    return measured, {
        "there are inputs that are inf or nan: find and mend them": not values.isfinite().all(),
        "all inputs are the same: look at what was loaded": (places == 0).all(),
        "some inputs have one value only: look at what was loaded": (each == 0).any(),
        "a channel has one value only: look at what was loaded": (channels == 0).any(),
        "normalise the inputs, to a mean of about 0 and a deviation of about 1": not (
            0.05 < deviation < 5 and abs(mean) < 5
        ),
        "normalise each channel by its own mean and deviation": channels.max()
        > 20 * channels.min(),
    }


@probe
def neighbours(x: Tensor, y: Tensor) -> Said:
    """Has the nearest other input the same label more often than by chance?

    It has in data that can be learned from few examples, whatever the network. Not tested where
    the inputs look like noise, or the labels are too few.
    """
    flat = F.adaptive_avg_pool2d(x.double(), 16) if x.ndim == 4 else x.double()
    flat = flat.flatten(1)
    countable = y.dtype == torch.int64 and y.ndim == 1 and y.min() >= 0 and flat.isfinite().all()
    if (
        not countable
        or len(x) < 64
        or not 1 < len(y.unique()) <= len(x) / 5
        or y.bincount().max() > 0.8 * len(y)
    ):
        return {}, "too few labelled inputs"
    strength = torch.linalg.svdvals(flat - flat.mean(0)).square()
    if strength[:3].sum() < 0.1 * strength.sum():
        return {}, "the inputs look like noise"
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(flat, flat, compute_mode=exact)
    distance[distance == 0] = math.inf  # itself, or a copy of it
    same = (y[distance.argmin(1)] == y).double().mean().item()
    chance = (y.bincount().double() / len(y)).square().sum().item()
    enough = chance + 1.64 * math.sqrt(chance * (1 - chance) / len(y))
    advice = "labels and inputs do not belong together: were they shuffled or read separately?"
    return {"same label": same, "by chance": chance}, {advice: same < enough}


@probe
def runs(model: Module, x: Tensor) -> Said:
    """Does a batch pass the model, in eval and in train mode and back, and are there logits (N, C)?"""
    path: list[tuple[str, Module, tuple]] = []
    bad: dict[str, Any] = dict(input=tuple(x.shape), unusable=True)
    with untouched(model), torch.enable_grad():
        for name, module in model.named_modules():
            module.register_forward_pre_hook(
                lambda module, args, name=name: path.append((name, module, args))
            )
            module.register_forward_hook(lambda *_: path.pop() and None)
        try:
            with torch.no_grad():
                model.eval()(x)
            out = model.train()(x)
        except Exception as error:
            return bad, {_where(path, error): True}
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x):
            wanted = f"return logits ({len(x)}, classes), a row for each input"
            return bad, {f"the output is {shown(out)}: {wanted}": True}
        bad |= dict(outputs=out.shape[1])
        if not out.isfinite().all():
            return bad, {"the logits are inf or nan: look at the scale of inputs and weights": True}
        if not out.requires_grad and any(p.requires_grad for p in model.parameters()):
            return bad, {"the logits have no gradient: look for no_grad and detach": True}
        try:
            out.sum().backward() if out.requires_grad else None
        except Exception as error:
            return bad, {f"there is no way back, for example {told(error)}": True}
    return dict(outputs=out.shape[1]), {}


def _where(path: list[tuple[str, Module, tuple]], error: Exception) -> str:
    """The innermost module that was running, what it got and what it raised."""
    name, module, args = path[-1]
    shapes = ", ".join(str(tuple(it.shape)) for it in args if isinstance(it, Tensor))
    place = f"{name or 'the model'} ({type(module).__name__}), which gets {shapes},"
    if type(module).forward is Module.forward:
        own = [name for name in dir(type(module)) if name not in dir(Module) and name[0] != "_"]
        near = difflib.get_close_matches("forward", own)
        return f"{place} has no method forward" + (f"; is {near[0]} meant?" if near else "")
    return f"{place} raises {told(error)}"


@probe
def labels(y: Tensor, outputs: int | None = None, classes: int | None = None) -> Said:
    """Type, range and order of the labels.

    outputs: how many logits the model has. classes: how many classes are named.
    """
    if y.dtype != torch.int64 or y.ndim != 1:
        kind = f"{y.dtype} {tuple(y.shape)}".removeprefix("torch.")
        advice = "labels must be int64 of shape (N,), the number of a class each"
        return dict(kind=kind, unusable=True), {advice: True}
    seen, n = len(y.unique()), outputs or 1
    measured: dict[str, Any] = dict(least=int(y.min()), most=int(y.max()), classes=seen)
    outside = measured["least"] < 0 or measured["most"] >= n
    chance = 1.0 if outside else (y.bincount() / len(y)).square().sum().item()
    after = (y[1:] == y[:-1]).double().mean().item()
    known = len(y) >= 20 * seen and (len(y) >= 20 * n or n >= 10 * seen)  # enough of them seen
    wanted = classes or (seen if known else n)
    measured |= dict(unusable=True) if outside and outputs else {}
    return measured, {
        f"labels must be from 0 to {n - 1}, a number for each logit": outside and outputs,
        "the labels come in order: shuffle the training images": len(y) >= 32
        and after > chance + 0.5,
        f"there are {n} logits, and {wanted} classes": outputs and wanted != n,
    }


@probe
def first_loss(model: Module, x: Tensor, y: Tensor) -> Said:
    """The first loss against ln C, that of an equal guess among C classes. In train mode."""
    with untouched(model), torch.no_grad():
        out = model.train()(x).float()
    loss, equal = F.cross_entropy(out, y).item(), math.log(out.shape[1])
    advice = "worse than an equal guess: look at labels and at the scale of weights and inputs"
    return {"loss": loss, "ln C": equal}, {advice: not loss < equal + 4}


@probe
def by_heart(model: Module, x: Tensor, y: Tensor) -> Said:
    """Can the model learn one batch by heart, with Adam, no dropout and nothing frozen?"""
    best: list[float] = []
    for lr in (3e-3, 1e-2, 1e-3):
        losses: list[float] = []
        with untouched(model), torch.enable_grad():
            weights = [p for p in model.parameters() if p.is_floating_point()]
            for parameter in weights:
                parameter.requires_grad_().grad = None
            adam = Adam(weights, lr)
            _without_dropout(model.train())
            for _ in range(100):
                loss = F.cross_entropy(out := model(x).float(), y)
                losses.append(loss.item())
                if (
                    not 0.1 * math.log(out.shape[1]) < losses[-1] < math.inf
                    or not loss.requires_grad
                ):
                    break
                adam.zero_grad()
                loss.backward()
                adam.step()
        best = losses if not best or losses[-1] < best[-1] else best
        if best[-1] < 0.25 * math.log(out.shape[1]) or 0.9 * losses[0] < losses[-1] < math.inf:
            break  # else once more, faster or more slowly
    measured = dict(inputs=len(x), steps=len(best), before=best[0], after=best[-1])
    stuck = not best[-1] < 0.25 * math.log(out.shape[1])
    return measured, {"one batch cannot be learned: the fault is in the network": stuck}


def _without_dropout(model: Module) -> None:
    for module in model.modules():
        if re.search("drop|stochasticdepth", type(module).__name__.lower()):
            module.eval()


@probe
def logits(model: Module, x: Tensor) -> Said:
    """Are the outputs logits, or has something squashed them? In train mode."""
    with untouched(model), torch.no_grad():
        out = model.train()(x).double()
    least, spread = out.min().item(), out.std().item()
    bounded = least >= 0 and spread > 0 and not (_shares(out) or _shares(out, 0))
    measured = dict(least=least, most=out.max().item(), sum=out.sum(1).mean().item())
    return measured, {
        "leave out the softmax: cross-entropy has its own": _shares(out),
        "leave out the softmax, and over the batch at that": _shares(out, 0),
        "no output is negative: let the last linear layer be the end": bounded,
    }


@probe
def alone(model: Module, x: Tensor) -> Said:
    """Has an input the same output twice, alone, and among others? In eval mode."""
    with untouched(model), torch.enable_grad():
        model.eval()
        leaf = x.detach().clone().requires_grad_(x.is_floating_point())
        out, n = model(leaf * 1), len(x) // 2
        try:
            outs = [model(x), model(x[:1]), model(x[:n]), model(x.flip(0)).flip(0)]
        except Exception as error:
            return {}, {
                f"it cannot take a batch of another size, in eval mode: {told(error)}": True
            }
        scale = out.detach().abs().max().item() + 1e-30
        far = [(other - out[: len(other)]).detach().abs().max().item() / scale for other in outs]
        slope = None
        if leaf.requires_grad and out.requires_grad:
            uneven = torch.linspace(-1, 2, out.shape[1]).to(out)  # a sum may cancel
            slope = torch.autograd.grad((out[0] * uneven).sum(), leaf, allow_unused=True)[0]
    others = 0 if slope is None else int(slope[1:].flatten(1).any(1).sum())
    random = not far[0] < 1e-3
    mixed = others > 0 or (not random and not max(far) < 1e-3)
    measured = {"largest difference": max(far), "depends on others": others}
    return measured, {
        "the same input has two outputs: is there dropout that eval() does not reach?": random,
        "an output depends on the other inputs: look at BN, reshapes and the order of axes": mixed,
    }


@probe
def modes(model: Module, x: Tensor) -> Said:
    """Once the statistics of BN have settled on a batch, do train and eval mode agree on it?"""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, BATCH_NORM)}
    usual = {n for n, m in norms.items() if m.momentum is None or 0.002 <= m.momentum <= 0.5}
    odd = [n for n, m in norms.items() if m.eps > 0.01 or n not in usual]
    dropouts = [(n, m) for n, m in model.named_modules() if isinstance(m, DROPOUT)]
    drops = [name for name, module in dropouts if module.p > 0.7]
    with untouched(model), torch.no_grad():
        for module in norms.values():
            module.momentum = 0.5 if module.momentum else module.momentum  # they settle sooner
        _without_dropout(model.train())
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        for _ in range(40):
            before = [b.clone() for b in buffers]
            train, again = model(x).double(), model(x).double()
            if all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(before, buffers)):
                break
        out = model.eval()(x).double()
    random = not torch.allclose(train, again, rtol=1e-3, atol=1e-6)
    far = ((train - out).norm() / (train - train.mean(0)).norm().clamp_min(1e-12)).item()
    return {"difference": far}, {
        f"{_first(odd)} has an unusual eps or momentum": odd,
        f"{_first(drops)} drops more than 70 %": drops,
        "train and eval mode do not agree on one batch: look at the statistics of BN": not (
            random or far < 0.5 or torch.allclose(train, out)
        ),
    }


@probe
def shortcuts(model: Module, x: Tensor) -> Said:
    """With its branch silenced, does a block pass its input on, once, and negative numbers, too?

    A block is a module that keeps the shape of its input and still depends on it when all its
    parameters are zero, but those of its shortcut. It may end in a ReLU.
    """
    blocks: dict[str, str | None] = {}
    with untouched(model):
        met = _keeping_shape(model, x)
        for name in sorted(met, key=lambda name: -name.count(".")):
            inner = [said for other, said in blocks.items() if other.startswith(f"{name}.")]
            if all(said is None for said in inner):
                blocks[name] = _passed(*met[name])
    kinds = {type(met[n][0]) for n, said in blocks.items() if said is not None}
    kinds |= {type(met[name][0]) for name in blocks if _called_residual(met[name][0], model)}
    asked = {n: said for n, said in sorted(blocks.items()) if type(met[n][0]) in kinds}
    wrong = [f"{name} passes on {said or 'nothing'}" for name, said in asked.items() if said != ""]
    if not asked:
        return {}, "no block passes its input on"
    measured = dict(blocks=len(asked), wrong=len(wrong))
    return measured, {f"{said}; it should pass on its input as it is": True for said in wrong}


def _keeping_shape(model: Module, x: Tensor) -> dict[str, tuple[Module, Tensor, tuple, dict]]:
    """The modules with parts that keep the shape of their input, and what they are called with."""
    met: dict[str, tuple] = {}

    def keep(name: str, module: Module, args: tuple, kwargs: dict, out: Any) -> None:
        if args and getattr(args[0], "shape", None) == getattr(out, "shape", 0):
            met[name] = module, args[0], args[1:], kwargs

    for name, module in model.named_modules():
        parts = [*module.children()] if next(module.parameters(), None) is not None else []
        if (
            name
            and parts
            and "Parametrized" not in type(module).__name__
            and not BESIDE.search(name)
        ):
            module.register_forward_hook(functools.partial(keep, name), with_kwargs=True)
    with torch.no_grad():
        model.eval()(x[:4])
    return met


def _called_residual(module: Module, model: Module) -> bool:
    """Whether its name says that it has a shortcut, and no attribute says that it has none."""
    none = any(getattr(module, name, None) is False for name in ("residual", "shortcut", "skip"))
    kind, whole = type(module).__name__.lower(), type(model).__name__.lower()
    named = re.search("resid|resblock|resnetblock", kind) or ("resnet" in whole and "block" in kind)
    return bool(named) and not none


def _passed(module: Module, like: Tensor, args: tuple, kwargs: dict) -> str | None:
    """What is wrong with what the module makes of its input once its branch is silent: "" for
    nothing, None if nothing is left of the input."""

    def silent(kinds: Any) -> tuple[Tensor, Tensor, bool]:
        with untouched(module), torch.enable_grad():
            for name, part in module.eval().named_modules():
                if isinstance(part, kinds) and not BESIDE.search(name):
                    for parameter in part.parameters(False):
                        parameter.data.zero_()
            given = z.clone()
            out = module(given, *args, **kwargs)
            slope = [torch.zeros_like(z)]
            if out.requires_grad:
                slope = torch.autograd.grad(out.sum(), z, allow_unused=True, materialize_grads=True)
        return out.detach(), slope[0], torch.equal(given, z)

    draws = torch.Generator().manual_seed(0)
    z = torch.randn(like.shape, generator=draws).to(like).requires_grad_()
    out, slope, kept = silent(Module)
    up, down = (out[some] / z[some].detach() for some in (z > 0, z < 0))
    times = up.mean().item()
    if max(up.abs().max(), down.abs().max()) < 1e-6:  # nothing is left, unless a BN ended it
        return "" if silent(WEIGHTED)[1].any() else None
    if not kept:
        return "its input overwritten, as by an in-place ReLU"
    if abs(times - 0.5) < 1e-3:  # a gate, sigmoid(0)
        return None
    if up.std() > 1e-3 * abs(times) or 0.5 < times < 0.99:  # something follows the addition
        return ""
    if abs(times - 1) > 1e-3:
        return f"{times:.3g} times its input"
    if abs(slope[z > 0].mean() - times) > 1e-3:
        return "its input without a gradient"
    with untouched(module), torch.no_grad():
        more = module.train()(z.detach().clone(), *args, **kwargs)[z > 0] - z.detach()[z > 0]
    return "its input and a branch that is never negative" if more.min() >= 0 < more.max() else ""


def _first(names: list[str]) -> str:
    """The first of them, and how many there are more."""
    return "".join(names[:1]) + f" (and {len(names) - 1} more)" * (len(names) > 1)


class Calls(TorchFunctionMode):
    """Within it, `seen` collects each call of a function of these names: (name, tensors, output)."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.seen: list[tuple] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if (name := getattr(function, "__name__", "").strip("_")) in self.names:
            given = tuple(it.detach().clone() for it in args if isinstance(it, Tensor))
            self.seen.append((name, given, out.detach().clone()))
        return out


@probe
def signal(model: Module, x: Tensor, y: Tensor) -> Said:
    """Dead ReLUs, and how outputs and gradients of the weight layers grow with depth. Train mode."""
    sizes: list[float] = []
    with untouched(model), torch.no_grad(), Calls(*ACTIVATIONS) as calls:

        def keep(name: str, module: Module, args: tuple, out: Tensor) -> None:
            sizes.append(out.std().item())
            wide = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 == module.groups
            calls.seen.append((name if wide else "", (), None))

        for name, module in model.train().named_modules():
            if isinstance(module, WEIGHTED):
                module.register_forward_hook(functools.partial(keep, name))
        out = model(x).double()
    order = [name for name, *_ in calls.seen if name]
    bare = [
        b for a, b in itertools.pairwise(order) if a not in ACTIVATIONS and b not in ACTIVATIONS
    ]
    relus = [it for name, _, it in calls.seen if name == "relu"]
    maps = [it.transpose(1, -1) if it.ndim == 4 else it for it in relus]
    silent = [(each.flatten(0, -2) == 0).all(0).double().mean().item() for each in maps]
    norms = [norm for norm in gradient_norms(model, x, y).values() if norm]
    growth, slope = (many[-1] / max(many[0], 1e-30) if many else 1.0 for many in (sizes, norms))
    flat = 0 < (out - out.mean(0)).norm() < 1e-3 * out.norm()
    far = lambda ratio: not 1e-4 < ratio < 1e4  # noqa: E731
    dead, finite = max(silent, default=0.0), all(map(math.isfinite, sizes + norms))
    measured = {"dead channels": dead, "last/first output": growth, "last/first gradient": slope}
    return measured, {
        "the outputs hardly depend on the inputs: look at the initial weights": flat,
        f"no activation stands before {_first(bare)}: put a ReLU there": bare,
        "the network is linear: put ReLUs between its layers": _linear(model, x),
        "numbers overflow on the way: look at the initial weights": not finite,
        "almost all channels behind a ReLU are always 0: look at biases and scales": dead > 0.9,
        "outputs shrink or grow with depth: look at the initial weights": far(growth),
        "gradients shrink or grow with depth: chapter 04 says what helps": far(slope),
    }


def _linear(model: Module, x: Tensor) -> bool:
    """Whether f(a + b) + f(0) = f(a) + f(b), in eval mode."""
    layers = sum(isinstance(module, WEIGHTED) for module in model.modules())
    if layers < 2 or not x.is_floating_point():
        return False
    with untouched(model), torch.no_grad():
        a, b = x[: len(x) // 2], x[len(x) // 2 :][: len(x) // 2]
        both, none, one, other = (model.eval()(it).double() for it in (a + b, 0 * a, a, b))
    return bool((both + none - one - other).norm() < 1e-4 * (one - other).norm())


@probe
def parameters(
    model: Module, x: Tensor, y: Tensor, optimizer: Any = None, step: Any = None
) -> Said:
    """Is each parameter registered and in the optimizer, and does it get a gradient in five steps?"""
    names = {parameter: name for name, parameter in model.named_parameters()}
    learning = [parameter for parameter in names if parameter.requires_grad]
    own = {p for group in (optimizer.param_groups if optimizer else []) for p in group["params"]}
    calls: Counter = Counter()
    reached: set[nn.Parameter] = set()
    with untouched(model), torch.enable_grad():
        for module in model.train().modules():
            if next(module.parameters(False), None) is not None:
                module.register_forward_hook(lambda module, *_: calls.update([module]))
        adam = Adam(learning or [torch.zeros(1)], 1e-3)
        for _ in range(5 if learning else 0):  # what lies behind a 0 learns from the second step on
            plain_step(model, adam, x, y)
            reached |= {p for p in learning if p.grad is not None and p.grad.any()}
    missing = [names[p] for p in learning if p not in reached]
    outside = {names[p]: p for p in learning if optimizer and p not in own}
    if outside and step:  # another optimizer may have them
        with rehearsed(model, optimizer, step) as run, suppress(Exception):
            before = {name: p.clone() for name, p in outside.items()}
            run.take(x, y)
            outside = {n: p for n, p in outside.items() if torch.equal(p, before[n])}
    again = [name for name, module in model.named_modules() if calls[module] > 5]
    typos = [names[p] for p in names if difflib.get_close_matches("requires_grad", vars(p))]
    hidden, foreign = _hidden(model), own and not own & names.keys()
    measured = {"frozen": len(names) - len(learning), "without gradient": len(missing)}
    return measured | {"not in the optimizer": len(outside)}, {
        f"{_first(hidden)} is not registered: use nn.ModuleList or nn.Parameter": hidden,
        f"{_first(typos)} has an attribute like requires_grad: correct its name": typos,
        "no parameter requires a gradient": not learning,
        "the optimizer has no parameter of this model: build it anew": foreign,
        f"{_first(list(outside))} is not in the optimizer: build it when the model is complete": outside,
        f"{_first(missing)} gets no gradient: does forward use the output of that layer?": missing,
        f"{_first(again)} runs more than once in a pass: should blocks share a layer?": again,
    }


def _hidden(model: Module) -> list[str]:
    """Modules and tensors with gradients in attributes where PyTorch does not look for them."""
    known = {*model.modules(), *model.parameters()}

    def search(value: Any, name: str, depth: int = 3) -> Iterator[str]:
        layer = isinstance(value, Module) and next(value.parameters(), None) is not None
        if layer or (isinstance(value, Tensor) and value.requires_grad):
            yield from [] if value in known else [name]
        elif isinstance(value, (list, tuple, dict)) and depth:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from search(item, f"{name}[{key!r}]", depth - 1)

    found: list[str] = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found += [] if key.startswith("_") else search(value, f"{name}.{key}".strip("."))
    return found


@probe
def twin(model: Module, x: Tensor) -> Said:
    """Does a model with the names of a ResNet compute what that ResNet computes? In eval mode.

    The reference has the same weights and begins behind the stem, which may be any that ends in a
    ReLU. A model in which more than a seventh of names and shapes differ is another network.
    """
    with untouched(model):
        other, why = reference(model)
        if other is None:
            return {}, why
        if why:
            return {}, {why: True}
        ours = _outputs(model, x)
        other.to(x.device).layer1.register_forward_pre_hook(lambda *_: ours["the stem"])
        theirs = _outputs(other, x)
    off = [name for name, out in theirs.items() if not _near(ours.get(name, out), out)]
    stem, conv = theirs["the stem"], model.get_submodule("conv1")
    negative = bool((stem < 0).any()) and isinstance(other.last, nn.Identity)
    halves = tuple(size // 2 for size in getattr(conv, "kernel_size", ()))
    padded = getattr(conv, "padding", ()) in ("same", halves)
    return {"modules that differ": len(off)}, {
        f"{_first(off)} is not what these weights give in a ResNet: compare strides and ReLUs": off,
        "negative numbers reach layer1: the ReLU of the stem is missing": negative,
        "conv1 pads too little or too much: all later maps have another size": not padded,
    }


def _outputs(net: Module, x: Tensor) -> dict[str, Tensor]:
    """What goes into layer1, "the stem", and what the stages and their parts put out."""
    outs: dict[str, Tensor] = {}

    def keep(name: str, module: Module, args: tuple, out: Tensor) -> None:
        outs.setdefault(name, out.clone())

    net.get_submodule("layer1").register_forward_pre_hook(
        lambda module, args: outs.update({"the stem": args[0].clone()})
    )
    for name, module in net.named_modules():
        if not name or name.startswith("layer"):
            module.register_forward_hook(functools.partial(keep, name or "the end"))
    with torch.no_grad():
        net.eval()(x[:8])
    return outs


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, 1e-2, 1e-3 * b.abs().max().item())


def reference(model: Module) -> tuple[Any, str]:
    """The ResNet with the names and weights of this model, and what else differs; or None, and why."""
    state = model.state_dict()
    first = re.compile(r"(layer\d+)\.\d+\.conv1\.weight").fullmatch
    stages = Counter(match[1] for match in map(first, state) if match)
    if "layer1" not in stages or not {"conv1.weight", "fc.weight"} <= state.keys():
        return None, "its names are not those of a ResNet"
    width, channels, size = state["conv1.weight"].shape[:3]
    more = dict(width=width, small_images=size < 5)
    more |= dict(shortcut="B" if any("downsample" in name for name in state) else "A")
    more |= dict(residual=all(getattr(m, "residual", True) for m in model.modules()))
    found: list[tuple[list[str], ResNet]] = []
    for block in (BasicBlock, PreActBlock, Bottleneck):
        other = ResNet(block, list(stages.values()), len(state["fc.weight"]), channels, **more)
        shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
        names = dict.fromkeys([*shapes, *state])
        found.append(
            ([n for n in names if shapes.get(n) != getattr(state.get(n), "shape", 0)], other)
        )
    differ, other = min(found, key=lambda pair: len(pair[0]))
    if len(differ) > 0.15 * len(other.state_dict()):
        return None, f"{len(differ)} of its names or shapes are not those of a ResNet"
    if not differ:
        other.load_state_dict(state)
    return other, f"{differ[0]} is not what it is in a ResNet, and all else is" if differ else ""


@contextmanager
def rehearsed(model: Module, optimizer: Optimizer | None, step: Step | None) -> Iterator[Any]:
    """The reader's training to try out: `take(x, y)` is a step, `log` what the optimizer has met.

    Afterwards model, optimizer and the schedulers that the step knows are what they were.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    used = optimizer or Adam(learning or [torch.zeros(1)], 1e-3)
    objects = [
        it
        for it in gc.get_objects()
        if issubclass(type(it), LRScheduler) and getattr(it, "optimizer", None) is used
    ]
    groups = list(used.param_groups)
    tables = [vars(it) for it in (used, *objects)] + groups
    saved = [dict(table) for table in tables]
    rates = {
        rate: rate.clone() for group in groups for rate in group.values() if torch.is_tensor(rate)
    }
    state = {p: copy.deepcopy(entry) for p, entry in used.state.items()}
    others = nn.ParameterList(p for group in groups for p in group["params"])

    def gradients() -> dict[str, Tensor]:
        mine = {p for group in used.param_groups for p in group["params"]}
        own = [(name, p) for name, p in model.named_parameters() if p in mine]
        return {name: p.grad.clone() for name, p in own if p.grad is not None}

    def meet(optimizer: Optimizer, *_: Any) -> None:
        rate = float(optimizer.param_groups[0]["lr"])
        free = [m for m in model.modules() if isinstance(m, (BATCH_NORM, DROPOUT))]
        free = [m for m in free if all(p.requires_grad for p in m.parameters())]
        training = any(m.training for m in free) or not free
        modes = {module: module.training for module in model.modules()}
        found = gradients()
        run.met |= {name for name, each in found.items() if each.any()}
        kept = found if len(run.log) < 2 else {}  # of a large network a few are enough
        entry = dict(gradients=kept, rate=rate, training=training, modes=modes)
        run.log.append(SimpleNamespace(**entry))

    run = SimpleNamespace(log=[], met=set(), gradients=gradients)
    coupled = [] if "W" in type(used).__name__ else groups
    run.decay = max([group.get("weight_decay", 0) for group in coupled], default=0)
    run.take = functools.partial(step or plain_step, model, used)
    hook = used.register_step_pre_hook(meet)
    with untouched(model, others), torch.enable_grad():
        model.train().zero_grad()
        try:
            yield run
        finally:
            hook.remove()
            for rate, before in rates.items():
                rate.copy_(before)
            for table, before in zip(tables, saved):
                table.clear()
                table.update(before)
            used.param_groups[:] = groups
            used.state.clear()
            used.state.update(state)


@probe
def frozen(model: Module, x: Tensor, y: Tensor, optimizer: Any = None, step: Any = None) -> Said:
    """Does what requires no gradient stay as it is in three steps: weights and statistics of BN?"""
    fixed: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        own = [parameter.requires_grad for parameter in module.parameters(False)]
        if own and not any(own):
            fixed |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    if not fixed:
        return {}, "nothing is frozen"
    with rehearsed(model, optimizer, step) as run:
        before = copy.deepcopy(fixed)
        for _ in range(3):
            run.take(x, y)
        moved = [name for name, value in fixed.items() if not torch.equal(value, before[name])]
    advice = f"{_first(moved)} moves, though frozen: eval() for that layer, after train()"
    return {"frozen tensors": len(fixed), "that move": len(moved)}, {advice: moved}


@probe
def gradient(model: Module, x: Tensor, y: Tensor, optimizer: Any = None, step: Any = None) -> Said:
    """Does the optimizer meet the gradient of the mean cross-entropy of this batch, each time?"""
    if (optimizer is None and step is None) or isinstance(optimizer, torch.optim.LBFGS):
        return {}, "neither optimizer nor step was given, or one that takes a closure"
    numbers, taken = torch.get_rng_state(), 0
    with rehearsed(model, optimizer, step) as run, Calls("cross_entropy", "nll_loss") as calls:
        start = copy.deepcopy(model.state_dict())
        while len(run.log) < 2 and taken < 64:
            torch.set_rng_state(numbers)
            try:
                run.take(x, y)
            except Exception as error:
                return {}, {f"the step raises {told(error)}": True}
            model.load_state_dict(start)
            taken += 1
        if not run.log:
            return {}, {"the step never calls step() of this optimizer": True}
        for module, mode in run.log[0].modes.items():
            module.training = mode
        model.zero_grad()
        seen = list(calls.seen)
        torch.set_rng_state(numbers)
        F.cross_entropy(model(x).float(), y).backward()
        true = run.gradients()
    first, last = run.log[0].gradients, run.log[-1].gradients
    shared = [name for name in first if name in true]
    if not any(first[name].any() for name in shared):
        return {}, {"the optimizer meets no gradient: the order is zero_grad, backward, step": True}
    met, wanted = (torch.cat([it[n].double().flatten() for n in shared]) for it in (first, true))
    size = met.norm().item()
    cosine, times = F.cosine_similarity(met, wanted, 0).item(), size / wanted.norm().item()
    clipped = math.isclose(size, float(f"{size:.1g}"), rel_tol=1e-3)  # to a round number
    many = round(times) > 1 and abs(times - round(times)) < 0.01 and cosine > 0.99
    twice = [n for n in shared if taken == 2 and n in last and _doubled(first[n], last[n])]
    kinds = {(f, _shares(args[0].exp() if f == "nll_loss" else args[0])) for f, args, _ in seen}
    others = [args[1] for _, args, _ in seen if args[1].shape == y.shape]
    lost = [name for name, gradient in true.items() if gradient.any() and name not in first]
    swapped = others and not any(torch.equal(it, y) for it in others)
    training = all(entry.training for entry in run.log)
    other = cosine < (0.4 if seen else 0.1)
    off = many or times > 4 or (times < 0.3 and not clipped)
    return {"cosine": cosine, "times": times, "added up": len(twice)}, {
        "the optimizer meets inf or nan: look at the scale of the loss": not met.isfinite().all(),
        f"the gradient of {_first(twice)} has that of the last step in it: call zero_grad": twice,
        "cross_entropy gets probabilities: leave out the softmax": ("cross_entropy", True) in kinds,
        "nll_loss wants log-probabilities: use cross_entropy": ("nll_loss", False) in kinds,
        "the loss gets other labels than the step": swapped,
        f"{_first(lost)} gets no gradient in your step": lost,
        "the step trains in eval mode: call model.train()": not training,
        "that is not the gradient of this batch: look at sign, labels and loss": other,
        f"it is {times:.3g} times the gradient of the mean loss": off,
    }


def _doubled(first: Tensor, second: Tensor) -> bool:
    return bool(first.any() and (second - 2 * first).norm() < 0.2 * first.norm())


def _shares(z: Tensor, dim: int = 1) -> bool:
    """Whether all rows, or columns, are shares of 1."""
    return bool(z.ndim == 2 and (z >= 0).all() and ((z.sum(dim) - 1).abs() < 1e-4).all())


@probe
def rate(model: Module, x: Tensor, y: Tensor, optimizer: Any = None, step: Any = None) -> Said:
    """Do twenty steps of the reader's lower the loss of a batch, and what does the rate do meanwhile?"""
    if (optimizer is None and step is None) or isinstance(optimizer, torch.optim.LBFGS):
        return {}, "neither optimizer nor step was given, or one that takes a closure"
    losses = []
    with rehearsed(model, optimizer, step) as run:
        weights = dict(model.named_parameters())
        start = {name: p.clone() for name, p in weights.items()}
        for i in range(21):
            if i % 5 == 0:
                with torch.no_grad(), untouched(model):
                    losses.append(F.cross_entropy(model.train()(x).float(), y).item())
            try:
                run.take(x, y)
            except Exception as error:
                return {}, {f"the step raises, at call {i + 1}, {told(error)}": True}
        stuck = [name for name in run.met if torch.equal(weights[name], start[name])]
    rates, first, last = [entry.rate for entry in run.log] or [0.0], losses[0], losses[-1]
    if len(run.log) < 5:
        return {}, "the optimizer steps less than five times in twenty"
    measured = {"first rate": rates[0], "last rate": rates[-1], "loss before": first, "after": last}
    up = not all(map(math.isfinite, losses)) or (last > first and min(losses) > 0.9 * first)
    slow = not up and rates[-1] <= rates[0] and min(losses) > 0.99 * first
    sinks = 3 * min(rates) < rates[0]
    return measured, {
        "the loss of one batch does not fall: try a smaller rate, or see gradient": up,
        "the loss of one batch hardly falls: try a larger rate": slow,
        f"{_first(stuck)} does not move: look at the rate of its group": stuck,
        "the rate falls within 20 steps: step the scheduler once an epoch?": sinks,
        f"a weight decay of {run.decay:g} is large: try 1e-4": run.decay > 0.02,
    }
