"""Self-checks for the exercises: one module a chapter, one function an exercise.

A check takes what the learner wrote. It raises `Wrong("what to fix")`, or returns the sentence
that says what a right answer proves. `@check` turns that into one printed line::

    Correct: …          Not yet: …          Not attempted yet: …
"""

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from d2lres.state import untouched

__all__ = ["Wrong", "check"]


class Wrong(Exception):
    """The learner's answer is wrong; the message says what to fix."""


def check(function: Callable[..., str]) -> Callable[..., None]:
    """Turns a check into one that prints its verdict on one line and never raises.

    The check runs in float32, with gradients on and with the same random numbers every time.
    The learner's random numbers, gradient mode, default dtype and modules (weights, buffers,
    gradients, training flags) are afterwards as they were.
    """

    @functools.wraps(function)
    def run(*answers: Any, **named: Any) -> None:
        given = [*answers, *named.values()]
        try:
            with _conditions(given):
                verdict = f"Correct: {function(*answers, **named)}"
        except Exception as error:
            if _missing(error) or any(_unfinished(answer) for answer in given):
                verdict = f"Not attempted yet: {function.__name__.replace('_', ' ')}"
            else:
                verdict = f"Not yet: {_advice(error)}"
        print(" ".join(verdict.split()))

    return run


def _advice(error: Exception) -> str:
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, (AttributeError, TypeError)) and "NoneType" in str(error):
        return "your code gave None where a value was needed; is a `return` missing?"
    return f"your code raised {type(error).__name__}: {error}".rstrip(": ")


def _missing(error: Exception) -> bool:
    # A module whose forward is missing or misspelt raises NotImplementedError, too: a mistake.
    return isinstance(error, NotImplementedError) and '"forward"' not in str(error)


def _unfinished(answer: Any) -> bool:
    """Whether `answer` is nothing, or still holds the stub `...`."""
    if answer is None or answer is ...:
        return True
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, (list, tuple)):
        return any(item is not None and _unfinished(item) for item in answer)
    if isinstance(answer, nn.Module):
        return any(_unfinished(type(module)) for module in answer.modules())
    if isinstance(answer, type):
        if answer.__module__.partition(".")[0] in ("torch", "torchvision", "d2l", "d2lres"):
            return False
        methods = [value for value in vars(answer).values() if isinstance(value, FunctionType)]
        return not methods or any(map(_is_stub, methods))
    return isinstance(answer, FunctionType) and _is_stub(answer)


def _is_stub(function: FunctionType) -> bool:
    """Whether `function` does nothing, or `...` still stands in it as a statement or a value."""
    steps = [i for i in dis.get_instructions(function) if i.opname not in _NO_STEPS]
    if len(steps) == 1 and steps[0].argval in (None, ...):
        return True
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source, or a lambda cut out of its line
        return False
    return any(
        isinstance(node, (ast.Expr, ast.Assign, ast.AnnAssign, ast.Return))
        and isinstance(node.value, ast.Constant)
        and node.value.value is ...
        for node in ast.walk(tree)
    )


_NO_STEPS = ("RESUME", "NOP", "RETURN_VALUE")  # what is left of an empty function: one constant


@contextmanager
def _conditions(answers: list[Any]) -> Iterator[None]:
    """Fixed conditions for a check: float32, gradients on but none left over, known numbers."""
    models = [answer for answer in answers if isinstance(answer, nn.Module)]
    dtype = torch.get_default_dtype()
    try:
        with untouched(*models), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            torch.set_default_dtype(torch.float32)
            for parameter in (p for model in models for p in model.parameters()):
                parameter.grad = None
            yield
    finally:
        torch.set_default_dtype(dtype)
