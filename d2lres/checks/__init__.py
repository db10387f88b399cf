"""Self-checks for the exercises: one module a chapter, one function an exercise.

A check takes what the learner wrote. It raises `Wrong("what to fix")`, or returns the sentence
that says what a right answer proves. `@check` turns that into one printed line::

    Correct: …          Not yet: …          Not attempted yet: …

The learner's code runs in `call`, `compare`, `behaves`, `in_place` and `refuses` alone: they watch
what it changes, stop it after ten seconds, and tell its errors from those of the check.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from d2lres.checks._calls import Wrong, begin, call, require
from d2lres.checks._compare import behaves, compare, in_place, refuses, scramble
from d2lres.state import untouched


def check(function: Callable[..., str]) -> Callable[..., None]:
    """Turns a check into one that prints its verdict on one line and never raises.

    The check runs on the CPU, in float32, with gradients on and the same random numbers every
    time. The learner's random numbers, gradient mode, default dtype and modules are afterwards as
    they were. The stop button still stops it.
    """

    @functools.wraps(function)
    def run(*answers: Any, **named: Any) -> None:
        given = [*answers, *named.values()]
        if any(map(_is_stub, given)):
            verdict = f"Not attempted yet: {function.__name__.replace('_', ' ')}"
        else:
            try:
                with _conditions(given):
                    if any(answer is None for answer in given):
                        raise Wrong("hand over your function itself, without calling it.")
                    verdict = f"Correct: {function(*answers, **named)}"
            except Wrong as wrong:
                verdict = f"Not yet: {wrong}"
            except Exception as error:
                kind = type(error).__name__
                verdict = f"No verdict: the check failed, not your code ({kind}: {error})."
        print(" ".join(verdict.split()))

    return run


def _is_stub(answer: Any) -> bool:
    """Whether `answer` is still `...`, or a function or class in which nothing but `...` stands."""
    if inspect.isclass(answer):
        return all(_is_stub(it) for it in vars(answer).values() if isinstance(it, FunctionType))
    if not isinstance(answer, FunctionType):
        return answer is ...
    try:
        function: Any = ast.parse(textwrap.dedent(inspect.getsource(answer))).body[0]
        steps = function.body[ast.get_docstring(function) is not None :]
    except (AttributeError, OSError, TypeError, SyntaxError):  # a lambda, or code without source
        return False
    return all(ast.unparse(step) in ("...", "pass", "super().__init__()") for step in steps)


@contextmanager
def _conditions(answers: list[Any]) -> Iterator[None]:
    """Fixed conditions for a check: CPU, float32, gradients on, known random numbers."""
    models = [answer for answer in answers if isinstance(answer, nn.Module)]
    dtype = torch.get_default_dtype()
    try:
        with untouched(*models), torch.enable_grad(), torch.device("cpu"):
            begin()
            torch.default_generator.manual_seed(0)
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
