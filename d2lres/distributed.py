"""Training in many processes: joining them under torchrun, sharing a batch, agreeing on the rest.

With one process every answer of a `Group` is trivial, so `fit` reads the same for one and for many.
"""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def join(device: torch.device) -> torch.device:
    """Join the processes that torchrun has started, if it has. Returns this one's device."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return device
    if device.type == "mps":  # torch.distributed has no backend for it
        device = torch.device("cpu")
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"every process needs its own GPU: use --nproc_per_node={gpus}.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    end_with_parent()
    return device


def end_with_parent() -> None:
    """From now on this process ends within a second of its parent, be that killed or not."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def _outcome(action: Callable, *arguments: Any) -> tuple[Any, Exception | None]:
    """Result and error of `action`, which both can be sent to another process."""
    try:
        result, error = action(*arguments), None
    except Exception as raised:
        result, error = None, raised
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of the user's own
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return result, error


def _results(outcomes: list[tuple[Any, Exception | None]]) -> list[Any]:
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


class Group:
    """The initialised process group, or this process alone.

    rank: the number of this process, from 0, of `count`.  stop: whether `ctrl_c` caught a Ctrl-C.
    share: its part of a batch, every count-th image: shares differ by one image at the most.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if grouped else 0
        self.count: int = dist.get_world_size() if grouped else 1
        self.share = slice(self.rank, None, self.count)
        self.device, self.stop = device, False

    def wrap(self, model: nn.Module, unused: bool = False) -> nn.Module:
        """`model`, starting everywhere as on rank 0, its gradients averaged during backward.
        unused: whether a parameter gets none here."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, find_unused_parameters=self.sum(unused) != [0])

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all processes, the same everywhere to the last bit."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Every process takes those of rank 0, as batch norm's running statistics."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Until all are here: a process that ends sooner cuts the connections of the others."""
        if self.count > 1:
            dist.barrier()

    def first(self, action: Callable, *arguments: Any) -> Any:
        """`action(*arguments)`, called on rank 0 only; all return its result or raise its error."""
        if self.count == 1:
            return action(*arguments)
        outcomes: list[Any] = [_outcome(action, *arguments) if self.rank == 0 else None]
        dist.broadcast_object_list(outcomes, 0)
        return _results(outcomes)[0]

    def agree(self, check: Callable[[], dict[str, Any]]) -> None:
        """`check()` in every process. If it raises in one, or gives another dict than in the first,
        all raise that error or a ValueError that names the difference."""
        if self.count == 1:
            check()
            return
        outcomes: list[Any] = [None] * self.count
        dist.all_gather_object(outcomes, _outcome(check))
        first, *others = _results(outcomes)
        for (name, ours), (rank, theirs) in product(first.items(), enumerate(others, start=1)):
            if theirs.get(name) != ours:
                what = f"process {rank} has {name}={theirs.get(name)}, process 0 has {ours}"
                raise ValueError(f"{what}: call fit with the same arguments in every process.")

    @contextmanager
    def ctrl_c(self) -> Iterator[None]:
        """Within it and among several processes, Ctrl-C sets `stop` and raises nothing: a process
        that left alone would keep the others waiting. A second Ctrl-C ends the process at once."""
        if self.count == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_) -> None:
            self.stop = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
