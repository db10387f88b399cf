"""Checkpoints that survive a crash, run nobody's code, and go on with the same run or not at all."""

import glob
import os
import secrets
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from shutil import copymode, disk_usage
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from d2lres.arguments import shown
from d2lres.history import History
from d2lres.identity import PRINTS, fingerprint, identity, machine, trained
from d2lres.state import random_state, restore_random

PARTS = {"run", "history", "architecture", "model", "buffers", "trained", "random"}
PARTS |= {"optimizer", "scheduler"}
ELSE = "choose another path, or move the file away to start afresh"
# Of each model: what identified its last run when that ended, and when it began.
ENDED: WeakKeyDictionary[nn.Module, tuple[dict, dict]] = WeakKeyDictionary()


class CheckpointError(RuntimeError):
    """A checkpoint that is broken, unsafe, in use, or another run's. It is left as it was."""


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint of `fit`: its "model" entry is the state dict, "history" the History.

    Only tensors and plain data are read (`weights_only=True`), so that a stranger's file runs no
    code; before PyTorch 2.10 a crafted one still could (CVE-2026-24747). Raises CheckpointError for
    a missing, unfinished or unsafe file, and for one that is no checkpoint.
    """
    path = absolute(path)
    try:
        if not (problem := _foreign(path)):
            state = torch.load(path, map_location="cpu", weights_only=True)
            missing = PARTS - (state.keys() if isinstance(state, dict) else set())
            if not missing:
                return state | {"history": History(**state["history"])}
            problem = f"is no checkpoint of fit, it lacks {', '.join(sorted(missing))}: "
            problem += "load it with torch.load(path, weights_only=True)"
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    except UnpicklingError:
        problem = "holds more than tensors and plain data, perhaps a pickled model, so it was not "
        problem += "opened: that could run code of whoever made it"
    except Exception:  # torch.load raises whatever the bytes lead it to
        problem = "was made by another version of PyTorch or of the course"
    raise CheckpointError(f"{path} {problem}; {ELSE}.")


def absolute(path: str | os.PathLike) -> Path:
    """`path` with ~ and links followed, which no change of the working directory changes."""
    try:
        if not os.fspath(path):
            raise ValueError("it is empty")
        path = Path(path).expanduser().resolve()
        path.exists()  # or it is too long
        return path
    except Exception as error:  # nobody's home, a NUL, a number, a circle of links
        raise CheckpointError(f"{shown(path)} is no path to a file ({error}).") from None


def _foreign(path: Path) -> str:
    """What keeps `path` from being a whole file of `torch.save`, and what it is then; else ""."""
    with open(path, "rb") as file:
        start = file.read(1000)
    if not start.startswith(b"PK\3\4"):
        text = start.isascii() and b"\0" not in start
        kind = "a text file" if text else "no file of torch.save, or one in its old format"
        return f"is {kind if start else 'empty'}"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename.partition("/")[2] for entry in entries]
            if any(name.startswith("code/") for name in names):
                return "is a TorchScript model, which torch.jit.load opens"
            size = sum(entry.file_size for entry in entries)
            if size > path.stat().st_size or any(entry.compress_type for entry in entries):
                return "is a compressed archive, which fit never writes"
            damaged = archive.testzip()  # torch.load does not look at the checksums
    except Exception:  # zipfile raises half a dozen kinds
        damaged = "its end"
    if damaged:
        return "is not a complete checkpoint, but half-written or damaged"
    return "" if "data.pkl" in names else "is an archive of something else"


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Within it no other run uses `path`. CheckpointError if one does; a dead one's lock is free."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        how = "wait until that has ended, or choose another path"
        raise CheckpointError(f"{path} is in use by another run: {how}.") from None
    except OSError as error:  # where nobody can write, a finished run can still be read
        if os.access(path.parent, os.W_OK):
            warnings.warn(
                f"{path} cannot be locked ({error}): let no second run use it.", stacklevel=8
            )
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


class Checkpoint:
    """The file of one run of `fit`, which goes on from there with the same settings or not at all."""

    def __init__(self, run: SimpleNamespace) -> None:
        self.run, self.model, self.path = run, run.model, run.checkpoint
        self.identity = identity(run)
        # Ctrl-C leaves another model than it began with, but running the same cell again goes on.
        ended, begun = ENDED.get(run.model, ({}, {}))
        same = {name for name in ended if ended[name] == self.identity.get(name)}
        self.begun = self.identity | {name: begun[name] for name in same & begun.keys()}

    def leave(self) -> None:
        """Note, however the run has ended, what it is now and what it began as."""
        ENDED[self.model] = identity(self.run), self.begun

    def save(self, history: History) -> None:
        """Write the run as it is now; a crash at any moment leaves the file before it whole."""
        run, model, weights = self.run, self.model, self.model.state_dict()
        unfinished = f"{self.path}.{secrets.token_hex(8)}.unfinished"
        state = {
            "run": self.begun | machine(run),
            "history": asdict(history),
            "architecture": repr(model),
            "model": weights,
            "buffers": {k: v for k, v in model.named_buffers() if k not in weights},
            "trained": trained(model),
            "optimizer": _plain(run.optimizer.state_dict()),
            "scheduler": run.scheduler and _plain(run.scheduler.state_dict()),
            "random": random_state(),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "xb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            torch.load(unfinished, map_location="cpu", weights_only=True, mmap=True)
            with suppress(FileNotFoundError):
                copymode(self.path, unfinished)
            os.replace(unfinished, self.path)
        except (PicklingError, UnpicklingError, AttributeError, TypeError) as error:
            what = "no checkpoint can be written, model, optimizer or scheduler hold an array or object"
            raise CheckpointError(
                f"{what}: give them tensors, numbers and lists of these."
            ) from error
        except (OSError, RuntimeError) as error:
            full = isinstance(error, RuntimeError) and disk_usage(self.path.parent).free < 2**20
            reason = "the disk is full" if full else error  # torch.save: "unexpected pos 24 vs 20"
            what = f"could not write the checkpoint {self.path} ({reason})"
            remedy = "choose a folder that you may write to and that has room"
            problem = f"{what}: {remedy}; the model keeps what it has learned."
            raise CheckpointError(problem) from error
        finally:
            with suppress(OSError):
                os.unlink(unfinished)

    def begin(self) -> dict | None:
        """What the file holds; None if there is none yet. CheckpointError if it is another run's that
        has finished an epoch."""
        for junk in self.path.parent.glob(f"{glob.escape(self.path.name)}.*.unfinished"):
            with suppress(OSError):
                junk.unlink()  # of runs that were killed
        state = load_checkpoint(self.path) if self.path.exists() else None
        if state is not None:
            try:
                self._refuse_another_run(state)
            except CheckpointError:
                if state["history"].loss or self.begun != self.identity:
                    raise
                state = None  # it had only begun: nothing is lost
        self.begun = self.identity
        if state is not None:
            self.begun = state["run"] | {"test images": self.identity["test images"]}
        return state

    def restore(self, state: dict) -> History:
        """Put model, optimizer, scheduler and random numbers where `state` has them."""
        self.run.optimizer.load_state_dict(state["optimizer"])
        if self.run.scheduler is not None:
            self.run.scheduler.load_state_dict(state["scheduler"])
        self.model.load_state_dict(state["model"])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in state["trained"])
        for name, value in state["buffers"].items():
            self.model.get_buffer(name).copy_(value)
        restore_random(state["random"])
        return state["history"]

    def _refuse_another_run(self, state: dict) -> None:
        self._refuse_another_architecture(state)
        there, saved = state["run"], fingerprint(state["model"] | state["buffers"])
        for name, here in self.identity.items():
            fits = there.get(name, here) in (here, self.begun[name])
            fits |= name == "test images" and there[name] is None  # its scores may begin late
            fits |= name == "initial weights" and saved == here  # loaded from this very file
            if not fits:
                what = f"other {name}" if name in PRINTS else f"{name}={there[name]}, not {here}"
                what += ", which torch.manual_seed decides" * (name == "initial weights")
                remedy = "use the same settings to continue it, or another path to start afresh"
                raise CheckpointError(f"{self.path} belongs to a run with {what}: {remedy}.")
        now = machine(self.run)
        changed = [f"{k}={now[k]} after {there[k]}" for k in now if now[k] != there[k]]
        if changed and len(state["history"].loss) < self.run.epochs:
            what = f"{self.path} goes on with {', '.join(changed)}"
            how = "the weights will be close to those of an uninterrupted run, but not the same"
            warnings.warn(f"{what}: {how}.", stacklevel=6)

    def _refuse_another_architecture(self, state: dict) -> None:
        ours = architecture(repr(self.model), self.model.state_dict())
        saved = architecture(state["architecture"], state["model"])
        if different := [pair for pair in zip_longest(saved, ours) if len(set(pair)) > 1]:
            there, here = (line or "nothing" for line in different[0])
            what = f"{self.path} is of another architecture: {there} there and {here} here"
            raise CheckpointError(f"{what}. Build the model it was made with, or {ELSE}.")


def _plain(value: Any) -> Any:
    """`value` with NumPy's numbers as Python's, which alone a checkpoint can hold."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def architecture(modules: str, weights: dict) -> list[str]:
    """A line for each tensor and its shape, and those of the model's repr: a plain twin differs from
    its residual one in the latter alone."""
    shapes = [f"{name} {tuple(getattr(t, 'shape', ()))}" for name, t in weights.items()]
    return shapes + modules.split("\n  ")
