"""How a check calls the learner's code: watched, for ten seconds, and without harm to the kernel."""

import contextlib
import dataclasses
import fnmatch
import inspect
import random
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SECONDS, MEMORY = 10.0, 4 << 30  # that one call of an answer may take, in seconds and in bytes
TOTAL = 30.0  # seconds for all calls of one check
_spent = 0.0


class Wrong(Exception):
    """The learner's answer is wrong; the message says what to fix."""


class Broken(Wrong):
    """The learner's code raised `error`, in its line `line`."""

    def __init__(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.line for frame in frames if not frame.filename.startswith(_LIBRARIES)]
        self.error, self.line = error, (own or [""])[-1]
        where = f" (in the line `{self.line}`)" if self.line else ""
        super().__init__(f"your code raised {type(error).__name__}{where}: {error}".rstrip(": "))


_PATHS = (*sysconfig.get_paths().values(), str(Path(__file__).parents[1]), "<frozen")
_LIBRARIES = tuple(path for path in _PATHS if path not in ("", sys.prefix, sys.base_prefix))


class Changed(Wrong):
    """The learner's code gave `result`, and changed what it was to leave alone."""

    def __init__(self, name: str, result: Any) -> None:
        self.result = result
        super().__init__(f"your code changes {name}: leave that as it was, or work on a copy.")


class _TimeUp(BaseException):
    """Not an Exception: an `except Exception` of the learner does not hold it up."""


def require(condition: Any, told: str) -> None:
    """Raises Wrong(told) unless `condition` holds."""
    if not condition:
        raise Wrong(told)


def begin() -> None:
    """Begins a check: its calls share the time."""
    global _spent
    _spent = 0.0


def call(answer: Callable, *args: Any, changes: tuple[str, ...] = (), draws: bool = False) -> Any:
    """What `answer(*args)` returns.

    changes: patterns of names that it may change, such as "model.*.grad". draws: whether it may
    draw random numbers. Raises Changed if it changes anything else, Broken if it raises, exits or
    cannot be called so, Wrong if it takes too long.
    """
    require(callable(answer), f"hand over the function itself; yours is a {type(answer).__name__}.")
    made = isinstance(answer, nn.Module) and not any(isinstance(it, Tensor) for it in args)
    require(not made, "hand over the class or the function itself, not what it makes.")
    names, touched = _names(answer, args), []
    before, defaults = _snapshot(names, args), {name: get() for name, (get, _) in _DEFAULTS.items()}
    try:
        result = guard(lambda: answer(*args))
    finally:
        for name, (get, put) in _DEFAULTS.items():
            if not (draws and "random" in name) and not _equal(get(), defaults[name]):
                put(defaults[name])
                touched.append(f"{name} for all that runs after it")
    for name in [*touched, *changed(before, _snapshot(names, args))]:
        if name in touched or not any(fnmatch.fnmatchcase(name, pattern) for pattern in changes):
            raise Changed(name, result)
    return result


def _names(answer: Callable, args: tuple) -> list[str]:
    """What the learner calls the arguments, if that can be told."""
    numbered = [f"argument {i + 1}" for i in range(len(args))]
    with contextlib.suppress(TypeError, ValueError):  # called wrongly, or a function of C
        signature = inspect.signature(answer.forward if isinstance(answer, nn.Module) else answer)
        names = list(signature.bind(*args).arguments)
        return names if len(names) == len(args) else numbered
    return numbered


def guard(run: Callable[[], Any]) -> Any:
    """What `run()`, the learner's code, returns; what it raises becomes Broken.

    It is stopped after its seconds in the main thread of a system with SIGALRM; on Windows, and
    within one long call into C, only the stop button or a restart of the kernel ends it.
    """
    try:
        with _limits():
            return run()
    except (Wrong, KeyboardInterrupt):
        raise
    except _TimeUp:
        told = f"your code takes more than {SECONDS:.0f} seconds and was stopped: is there a loop"
        raise Wrong(f"{told} without an end, or far more work than needed?") from None
    except BaseException as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise Wrong("your code needs more memory than it may have: what is so large?") from None
        raise Broken(error) from error


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Seconds, and on Linux memory: MemoryError comes before the system kills the kernel."""
    global _spent
    began, main = time.monotonic(), threading.current_thread() is threading.main_thread()
    if timed := main and hasattr(signal, "SIGALRM"):
        handler = signal.signal(signal.SIGALRM, _stop)
        seconds = max(min(SECONDS, TOTAL - _spent), 0.01)
        outer = signal.setitimer(signal.ITIMER_REAL, seconds, 1e-4)  # a test's own limit, say
    limited = sys.platform == "linux" and not torch.cuda.is_available()  # CUDA reserves too much
    if limited:
        import resource

        old = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        known = [limit for limit in old if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min([used + MEMORY, *known]), old[1]))
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, *outer)
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, old)
        _spent += time.monotonic() - began


def _stop(number: int, frame: Any) -> None:
    """Raises _TimeUp in the learner's code, again and again: a bare `except` may catch a few."""
    if frame.f_code.co_filename not in (__file__, contextlib.__file__):
        raise _TimeUp


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All that can be changed in tensors, modules, lists, dicts and dataclasses, by name."""
    if isinstance(value, Tensor):
        grad = value.grad if value.is_leaf else None
        yield name, value.detach().clone()
        yield f"{name}.grad", None if grad is None else grad.detach().clone()
        yield f"{name}.requires_grad", value.requires_grad
    elif isinstance(value, nn.Module):
        for key, module in value.named_modules():
            where, own = f"{name}.{key}" if key else name, vars(module)
            plain = {k: repr(v) for k, v in own.items() if k[0] != "_" and k != "training"}
            kinds = [(k, type(v)) for k, v in own["_modules"].items()]
            yield f"the attributes of {where}", (type(module), kinds, plain)
            yield f"the mode of {where}, train or eval", module.training
            yield f"the hooks of {where}", [k for k, v in own.items() if k.endswith("_hooks") and v]
        for key, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield from leaves(tensor, f"{name}.{key}")
    elif dataclasses.is_dataclass(value):
        yield from leaves(vars(value), name)
    elif isinstance(value, (dict, list, tuple)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        yield (
            f"the items of {name}",
            keys + [id(it) for it in value if isinstance(it, (dict, list))],
        )
        for key in keys:
            yield from leaves(value[key], f"{name}[{key!r}]")
    else:
        yield name, value.copy() if isinstance(value, np.ndarray) else value


def _snapshot(names: list[str], values: tuple) -> dict[str, Any]:
    return {key: leaf for n, value in zip(names, values) for key, leaf in leaves(value, n)}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of the leaves that differ."""
    pairs = {name: (before.get(name, ...), after.get(name, ...)) for name in before | after}
    return [name for name, pair in pairs.items() if not _equal(*pair)]


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


_DEFAULTS: dict[str, tuple[Callable, Callable]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "NumPy's error handling": (np.geterr, lambda errors: np.seterr(**errors)),
    "PyTorch's random numbers": (torch.get_rng_state, torch.set_rng_state),
    "NumPy's random numbers": (np.random.get_state, np.random.set_state),
    "Python's random numbers": (random.getstate, random.setstate),
}
