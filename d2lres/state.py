"""One keeper of state: whatever is done to a model within `untouched` leaves no trace."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Do anything to the models within; afterwards they are what they were, also after an exception.

    Restored bit for bit: weights, buffers, gradients, modes, hooks, the attributes of their
    modules, and the global random state of PyTorch, NumPy and Python. Costs one copy of the tensors.
    """
    modules = [(m, dict(vars(m))) for m in {m: None for model in models for m in model.modules()}]
    tables = [(t, dict(t)) for _, own in modules for t in own.values() if isinstance(t, dict)]
    lists = [(t, list(t)) for _, own in modules for t in own.values() if isinstance(t, list)]
    tensors = {t: None for m, _ in modules for t in (*m.parameters(False), *m.buffers(False))}
    tensors |= {t: None for _, own in modules for t in own.values() if torch.is_tensor(t)}
    known = [t for t in tensors if not is_lazy(t)]
    flags = [(t, t.requires_grad, t.grad) for t in known if t.is_leaf]
    gradients = [grad for _, _, grad in flags if grad is not None]
    values = [(t, t.data, t.detach().clone()) for t in (*known, *gradients)]
    numbers = random_state()
    with torch.random.fork_rng({t.device for t in known if t.device.type == "cuda"}):

        def restore() -> None:
            restore_random(numbers)
            for table, own in [(vars(module), own) for module, own in modules] + tables:
                table.clear()  # in place: a hook's handle knows the table it is in
                table.update(own)
            for old, entries in lists:
                old[:] = entries
            for t, data, value in values:
                t.data = data.copy_(value)  # not t.copy_: a graph built before must stay usable
            for t, requires_grad, grad in flags:
                t.requires_grad_(requires_grad).grad = grad

        try:
            yield
        finally:
            insist(restore)


def insist(action: Callable[[], Any]) -> None:
    """Do all of it, from the start again if Ctrl-C is pressed meanwhile, which is raised then."""
    try:
        action()
    except KeyboardInterrupt:
        insist(action)
        raise


def random_state() -> dict[str, Any]:
    """Where the global random numbers are, as plain data: of Python, NumPy, PyTorch and its GPU."""
    name, key, *rest = np.random.get_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    numbers = dict(python=random.getstate(), torch=torch.get_rng_state(), gpu=gpu)
    return numbers | dict(numpy=(name, np.asarray(key).tolist(), *rest))


def restore_random(state: dict[str, Any]) -> None:
    """Go on with the global random numbers where `random_state` has found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["gpu"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["gpu"])
