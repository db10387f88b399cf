"""Training in many processes: joining them under torchrun, sharing a batch, agreeing on the rest.

With one process every answer of a `Group` is trivial, so `fit` reads the same for one and for many.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
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
    return device


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

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, starting everywhere as on rank 0, its gradients averaged during backward."""
        return model if self.count == 1 else DistributedDataParallel(model)

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all processes, the same everywhere to the last bit."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def copy_buffers(self, model: nn.Module) -> None:
        """Every process takes the buffers of rank 0, such as batch norm's running statistics."""
        for buffer in model.buffers() if self.count > 1 else ():
            dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all are here: a process that ends sooner cuts the connections of the others."""
        if self.count > 1:
            dist.barrier()

    def first(self, action: Callable, *arguments: Any) -> Any:
        """`action(*arguments)`, called on rank 0 only; all return its result or raise its error."""
        if self.count == 1:
            return action(*arguments)
        outcome: list[Any] = [None, None]
        try:
            outcome[0] = action(*arguments) if self.rank == 0 else None
        except Exception as error:
            outcome[1] = error
        dist.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

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
