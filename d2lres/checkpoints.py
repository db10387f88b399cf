"""Checkpoints that survive a crash, run nobody's code, and go on with the same run or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from shutil import disk_usage
from types import SimpleNamespace

import torch

from d2lres.history import History

# The arguments of `fit` that decide the weights, with its optimizer, scheduler and images.
SETTINGS = ("epochs", "lr", "batch_size", "seed", "augment", "label_smoothing", "mixed_precision")
PARTS = {"run", "history", "architecture", "model", "optimizer", "scheduler", "random"}


class CheckpointError(RuntimeError):
    """A checkpoint that is broken, unsafe, or belongs to another run. It is left as it was."""


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint of `fit`: its "model" entry is the state dict, "history" the History.

    Only tensors and plain data are read (`weights_only=True`), so that a stranger's file runs no
    code; before PyTorch 2.10 a crafted one still could (CVE-2026-24747). Raises CheckpointError for
    a missing, unfinished or unsafe file.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = PARTS - (state.keys() if isinstance(state, dict) else set())
        if not missing:
            return state | {"history": History(**state["history"])}
        remedy = "load it with torch.load(path, weights_only=True) instead, or choose another file"
        problem = f"is no checkpoint of fit, it lacks {', '.join(sorted(missing))}: {remedy}."
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except (IsADirectoryError, PermissionError) as error:
        problem = f"cannot be read ({error.strerror})."
    except UnpicklingError:
        problem = (
            "is damaged or holds more than tensors and plain data, so it was not opened further: "
        )
        problem += "opening it could run code of whoever made it. Delete it to start afresh."
    except Exception:  # torch.load raises whatever the broken bytes lead it to
        why = "half-written, damaged, or made by another version"
        problem = f"is not a complete checkpoint ({why}): delete it to start afresh."
    raise CheckpointError(f"{path} {problem}")


class Checkpoint:
    """The file of one run of `fit`, which goes on from there with the same settings or not at all."""

    def __init__(self, run: SimpleNamespace) -> None:
        self.path, self.model = Path(run.checkpoint), run.model
        self.optimizer, self.scheduler = run.optimizer, run.scheduler
        drivers = dict(optimizer=run.optimizer, scheduler=run.scheduler)
        self.settings = {name: driver and type(driver).__name__ for name, driver in drivers.items()}
        self.settings |= {name: getattr(run, name) for name in SETTINGS}
        self.settings["images"] = len(run.train)

    def save(self, history: History) -> None:
        """Write the run as it is now; a crash at any moment leaves the file before it whole."""
        state = {
            "run": self.settings,
            "history": asdict(history),
            "architecture": repr(self.model),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        }
        with self._beside() as unfinished:
            torch.save(state, unfinished)
            os.replace(unfinished, self.path)

    def read(self) -> dict | None:
        """What the file holds; None if it does not exist yet and can be written."""
        if self.path.exists():
            return load_checkpoint(self.path)
        with self._beside() as unfinished:  # fails now rather than after the first epoch
            unfinished.touch()
        return None

    def restore(self, state: dict) -> History:
        """Put model, optimizer, scheduler and random numbers where `state` has them."""
        for name, value in self.settings.items():
            if (theirs := state["run"].get(name)) != value:
                what = f"{self.path} belongs to a run with {name}={theirs}, not {value}"
                remedy = "use the same settings to continue it, or another file to start afresh"
                raise CheckpointError(f"{what}: {remedy}.")
        ours = _architecture(repr(self.model), self.model.state_dict())
        saved = _architecture(state["architecture"], state["model"])
        if different := [pair for pair in zip_longest(saved, ours) if len(set(pair)) > 1]:
            there, here = (line or "nothing" for line in different[0])
            what = f"{self.path} is of another architecture: {there} there and {here} here"
            raise CheckpointError(f"{what}. Build the model it was made with, or use another file.")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
        except (RuntimeError, ValueError, KeyError) as error:
            what = f"{self.path} was made with another optimizer"
            raise CheckpointError(
                f"{what}: use the same one, or another file ({error})."
            ) from error
        self.model.load_state_dict(state["model"])
        torch.set_rng_state(state["random"])
        return state["history"]

    @contextmanager
    def _beside(self) -> Iterator[Path]:
        """A file to write first, beside `path`: a crash leaves the old one whole, and no junk."""
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
        except (OSError, RuntimeError) as error:
            full = isinstance(error, RuntimeError) and disk_usage(self.path.parent).free < 2**20
            reason = "the disk is full" if full else error  # torch.save: "unexpected pos 24 vs 20"
            what = f"could not write the checkpoint {self.path} ({reason})"
            remedy = "choose a folder that you may write to and that has room"
            raise CheckpointError(
                f"{what}: {remedy}; the model keeps what it has learned."
            ) from error
        finally:
            with suppress(OSError):
                unfinished.unlink()


def _architecture(modules: str, tensors: dict) -> list[str]:
    """A line for each tensor and its shape, and those of the model's repr: a plain twin differs from
    its residual one in the latter alone."""
    return [f"{name} {tuple(t.shape)}" for name, t in tensors.items()] + modules.split("\n  ")
