"""How a check judges: by all cases at once, against a right answer, with the mistake named."""

import contextlib
import copy
import inspect
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import isclose, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, allclose, nn

from d2lres.checks._calls import Broken, Changed, Wrong, call, changed, guard, leaves, require

Mistakes = Mapping[str, Callable]
NONE: Mistakes = {}
INSIDE = "in yours stands something"


def compare(
    answer: Callable, right: Callable, cases: Iterable, mistakes: Mistakes = NONE, **told: Any
) -> None:
    """Raises Wrong unless `answer` gives for all cases what `right` gives, exceptions included.

    cases: tuples of arguments, the simplest first; each call gets copies of its own.
    mistakes: advice and the function that makes the mistake. An advice is given only if its
        function gives what the answer gave, for every case.
    told: `form`, what a right answer returns, as in "one number"; `hint`, which ends the sentence
        that otherwise says what was expected for which case, or a list of them for the first
        cases; `changes` and `draws`, see `call`.
    """
    cases, form, hint = list(cases), told.pop("form"), told.pop("hint", "")
    expected = [_result(right, case) for case in cases]
    spoiled: list[Changed] = []

    def outcome(case: tuple, like: Any) -> Any:
        try:
            value = call(answer, *_copy(case), **told)
        except Changed as error:  # told when the results are right
            spoiled.append(error)
            value = error.result
        except Broken as error:
            return error
        try:
            require(value is not None or isinstance(like, Broken), _why_nothing(answer))
            return value if isinstance(like, Broken) else guard(lambda: as_kind(value, like, form))
        except Wrong as error:
            return error

    got = [outcome(case, like) for case, like in zip(cases, expected)]
    wrong = [i for i, like in enumerate(expected) if not agree(got[i], like)]
    if wrong:
        first, explained = wrong[0], not any(isinstance(got[i], Wrong) for i in wrong)
        for advice, mistake in mistakes.items() if explained else ():
            values = (_result(mistake, case) for case in cases)
            require(not all(map(agree, got, values)), advice)
        hint = hint if isinstance(hint, str) else dict(enumerate(hint)).get(first, "")
        raise Wrong(_difference(_shown(answer, cases[first]), got[first], expected[first], hint))
    if spoiled:
        raise spoiled[0]
    why = "is right the first time and wrong the second: your code keeps something between calls."
    again = outcome(cases[0], expected[0])
    require(agree(again, expected[0]), f"{_shown(answer, cases[0])} {why}")


def _result(function: Callable, case: tuple) -> Any:
    try:
        value = function(*_copy(case))
        return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    except Exception as error:
        return Broken(error)


def _copy(case: tuple) -> tuple:
    """A deep copy; that of a module keeps the gradients, too."""
    copied = copy.deepcopy(case)
    for old, new in zip(case, copied):
        if isinstance(old, nn.Module):
            for p, q in zip(old.parameters(), new.parameters()):
                q.grad = copy.deepcopy(p.grad)
    return copied


def _why_nothing(answer: Callable) -> str:
    why = "is a `return` missing?"
    with contextlib.suppress(OSError, TypeError):
        source = inspect.getsource(answer)
        if re.search(r"^\s*\.\.\.", source, re.MULTILINE):
            why = "the line `...` still stands where an answer belongs."
        elif "print(" in source:
            why = "`print` only shows a value, `return` hands it over."
    return f"your code gives nothing back: {why}"


def as_kind(value: Any, like: Any, form: str, verb: str = "yours is") -> Any:
    """`value` as what `like` is: a bool, a number, a tensor, or a tuple, list or dict of these.

    Takes 0-dimensional tensors and NumPy's numbers for numbers, lists for tuples and tensors.
    """
    many = isinstance(value, (Tensor, np.ndarray, list, tuple))
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    size = shape or (f" of {len(value)}" if many else "")
    wrong = Wrong(f"return {form}; {verb} of type {type(value).__name__}{size}.")
    if isinstance(like, Tensor) and many:
        try:
            return torch.as_tensor(value).detach().to(torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise wrong from None
    if isinstance(like, dict) and isinstance(value, Mapping):
        keys = f"{', '.join(map(repr, like))}; yours has {', '.join(map(repr, value)) or 'none'}"
        require(set(value) == set(like), f"the keys should be {keys}.")
        return {key: as_kind(value[key], like[key], form, INSIDE) for key in like}
    if isinstance(like, (tuple, list)) and many and len(value) == len(like):
        return type(like)(as_kind(v, part, form, INSIDE) for v, part in zip(value, like))
    if isinstance(value, (Tensor, np.ndarray)) and prod(value.shape) == 1:
        value = value.item()
    if not (isinstance(like, numbers.Real) and isinstance(value, (numbers.Real, np.bool_))):
        raise wrong
    value = int(value) if isinstance(value, (numbers.Integral, np.bool_)) else float(value)
    return bool(value) if isinstance(like, bool) and value in (0, 1) else value


def agree(a: Any, b: Any) -> bool:
    """Equal up to the rounding of float32; whole numbers exactly. Exceptions agree by kind."""
    if isinstance(a, Wrong) or isinstance(b, Broken):
        return type(a) is type(b) and isinstance(a.error, type(b.error))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        scale = 1e-5 * max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        return a.shape == b.shape and allclose(a.double(), b.double(), rtol=1e-4, atol=scale)
    if a is None or isinstance(b, Tensor) or b is None:
        return a is b
    if isinstance(b, dict):
        a, b = list(a.values()), list(b.values())
    if isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(agree, a, b))
    whole = isinstance(b, int)
    return bool(a == b if whole else isclose(a, b, rel_tol=3e-5, abs_tol=1e-12))


def _difference(shown: str, got: Any, expected: Any, hint: str) -> str:
    if isinstance(expected, Broken):
        return _refusal(shown, str(expected.error), got)
    if isinstance(got, Wrong):
        return f"for {shown} {got}" if isinstance(got, Broken) else str(got)
    if isinstance(expected, dict):
        off = [key for key in expected if not agree(got[key], expected[key])]
        got, expected = [{key: it[key] for key in off} for it in (got, expected)]
    digits = 4 if _text(expected) != _text(got) else 10
    told = f"{shown} should give {_text(expected, digits)}, yours gives {_text(got, digits)}"
    return told + (f". Wanted: {hint}." if hint else ".")


def _refusal(shown: str, why: str, got: Any) -> str:
    error = getattr(got, "error", None)
    if isinstance(error, AssertionError):
        return f"{shown}: `python -O` skips an assert; raise a ValueError instead."
    if isinstance(error, RuntimeError) and not got.line.startswith("raise"):
        return f"{shown}: PyTorch's own error came first; find out before, and raise a ValueError."
    what = f"raises {type(error).__name__}" if error else f"gives {_text(got)}"
    return f"{shown} should raise a ValueError, since {why}; yours {what}."


def refuses(answer: Callable, given: Any, shown: str, why: str) -> None:
    """Wrong unless `answer(given)` raises ValueError, and leaves `given` as it was."""
    before = dict(leaves(given, "it"))
    try:
        got = call(answer, given, changes=("*",))
    except Broken as broken:
        got = broken
    require(isinstance(getattr(got, "error", None), ValueError), _refusal(shown, why, got))
    same = not changed(before, dict(leaves(given, "it")))
    require(same, f"{shown}: what is handed over must stay as it was; raise before you change it.")


def _shown(answer: Callable, case: tuple) -> str:
    return f"{getattr(answer, '__name__', 'yours')}({', '.join(map(_text, case))})"


def _text(value: Any, digits: int = 4) -> str:
    """Short enough for a sentence."""
    if isinstance(value, Tensor):
        large = f"<tensor {tuple(value.shape)} of norm {value.double().norm():.{digits}g}>"
        return _text(value.tolist(), digits) if value.numel() <= 12 else large
    if isinstance(value, numbers.Real) and not isinstance(value, int):
        return f"{float(value):.{digits}g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_text(v, digits)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        if len(value) > 8 or any(isinstance(item, dict) for item in value):
            return f"<{len(value)} items>"
        inner = ", ".join(_text(item, digits) for item in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return repr(value) if isinstance(value, (int, str)) else f"<{type(value).__name__}>"


def scramble(module: nn.Module) -> nn.Module:
    """`module` as training leaves it: no weight, bias or statistic is 0, 1 or like another."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dim() > 1:
            nn.init.normal_(tensor, std=max(tensor[0].numel(), 1) ** -0.5)
        elif tensor.is_floating_point():
            nn.init.uniform_(tensor, -1 if name.endswith(("bias", "mean")) else 0.5, 1.5)
    return module


def in_place(change: Callable, block: nn.Module, returns: bool = False) -> list[str]:
    """The names of the tensors of `block` that `change(block)` changed.

    Wrong if it changed anything but values, works on a copy, or is to return the block and doesn't.
    """
    parameters = dict(block.named_parameters())
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    before = dict(leaves(block, "block"))
    returned = call(change, block, changes=("*",), draws=True)
    names = changed(before, dict(leaves(block, "block")))
    other = isinstance(returned, nn.Module) and returned is not block
    require(not other, "change the block that is handed over; yours returns another module.")
    require(returned is block or not returns, "return the block itself, after changing it.")
    for name, p in block.named_parameters():
        told = f"{name} is a new tensor, unknown to an optimizer: change the old one in place."
        require(p is parameters.get(name, p), told)
    tensors = [f"block.{name}" for name in block.state_dict()]
    for name in names:
        told = f"your code changes {name}: change nothing but the values of tensors."
        require(name in tensors, told)
    places = [t.data_ptr() for t in block.state_dict().values()]
    told = "two tensors share their memory now: give each values of its own."
    require(len(set(places)) == len(places), told)
    return [name.removeprefix("block.") for name in names]


def behaves(pairs: Iterable, formula: Callable, mistakes: Mistakes = NONE, *, what: str) -> None:
    """Raises Wrong unless for all pairs (block, x) the block does what `formula(block, x)` does.

    Compared in train and in eval mode: outputs, gradients of all parameters and of x, the buffers
    afterwards, and the output after a step of SGD. mistakes: as in `compare`, by the outputs.
    what: the formula in words.
    """
    tried = [(block, x, mode) for block, x in pairs for mode in (True, False)]
    run = partial(call, draws=True)

    def outputs(forward: Callable) -> list[Tensor]:
        return [_trial(*it, forward, quick=True)["the output"] for it in tried]

    for block, _, _ in tried:
        built = [p.requires_grad and p.dtype == torch.float32 for p in block.parameters()]
        told = "leave layers as they are built: float32, in train mode, with gradients."
        require(block.training and all(built), told)
    mine, right = outputs(run), outputs(formula)
    wrong = [i for i, output in enumerate(mine) if not agree(output, right[i])]
    for advice, mistake in mistakes.items() if wrong else ():
        require(not all(map(agree, mine, outputs(mistake))), advice)
    if wrong:
        (_, x, mode), output = tried[wrong[0]], mine[wrong[0]]
        told = f"for maps of shape {tuple(x.shape)} the output, of shape {tuple(output.shape)},"
        raise Wrong(f"in {'train' if mode else 'eval'} mode {told} is not {what}.")
    hint = "run each layer once, in the block's own mode, detach nothing, and register what learns"
    for block, x, mode in tried:
        given, wanted = [_trial(block, x, mode, forward) for forward in (run, formula)]
        for name, value in wanted.items():
            kind = "missing" if given.get(name) is None else "wrong"
            told = (
                f"the output is right, but in {'train' if mode else 'eval'} mode {name} is {kind}"
            )
            require(agree(given.get(name), value), f"{told}: {hint}.")


def _trial(
    block: nn.Module, x: Tensor, mode: bool, forward: Callable, quick: bool = False
) -> dict[str, Any]:
    block = guard(lambda: copy.deepcopy(block).double().train(mode))
    leaf = x.double().requires_grad_()
    given = leaf.clone()  # not a leaf, so that a change in place is seen, not refused by autograd
    try:
        out = forward(block, given)
    except Broken as broken:
        told = f"for maps of shape {tuple(x.shape)}, which it should take, {broken}"
        mixed = "dtype" in str(broken)  # of a float64 block and a new float32 layer
        raise Wrong("make layers in __init__: forward uses its own." if mixed else told) from None
    require(out is not None, _why_nothing(type(block).forward))
    require(isinstance(out, Tensor), f"forward must return a tensor, not a {type(out).__name__}.")
    if quick:
        return {"the output": out.detach()}
    if out.requires_grad:
        loss = (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()
        guard(loss.backward)
    found = {"the output": out.detach()}
    found |= {f"{name} after a pass": buffer.clone() for name, buffer in block.named_buffers()}
    gradients = {name: p.grad for name, p in block.named_parameters()} | {"x": leaf.grad}
    found |= {f"the gradient of {name}": gradient for name, gradient in gradients.items()}
    largest = max([float(g.abs().max()) for g in gradients.values() if g is not None], default=0)
    torch.optim.SGD(block.parameters(), lr=0.02 / (largest or 1), foreach=False).step()
    return found | {"the output after a step of SGD": forward(block, x.double()).detach()}
