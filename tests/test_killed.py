"""Trainings that are killed at random moments, again and again: nothing is lost, and nothing shows.

D2LRES_KILLS sets how many moments of each kind are tried; weekly it is a hundred.
"""

import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training_runs import TEST, TRAIN, curves, lengths, resnet, same, weights, with_dropout

from d2lres.checkpoints import load_checkpoint
from d2lres.training import fit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
KILLS, EPOCHS = int(os.environ.get("D2LRES_KILLS", "4")), 6
CONTEXT = get_context("spawn" if os.name == "nt" else "forkserver")
if os.name != "nt":
    CONTEXT.set_forkserver_preload(["torch._dynamo", "d2lres.training"])  # imported once


def no_bn(seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(36, 20), torch.nn.ReLU(), torch.nn.Linear(20, 10)
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


def train(rank, count, folder, store, make, patience, result=None):
    """One attempt in one process; the file `result` gets what the run was after each epoch."""
    torch.set_num_threads(1)
    if count > 1:
        options = dict(rank=rank, world_size=count, timeout=timedelta(seconds=patience))
        dist.init_process_group("gloo", init_method=f"file://{store}", **options)
    model, each = make(), []
    note = lambda history: each.append(([list(c) for c in curves(history)], weights(model)))  # noqa: E731
    options = dict(epochs=EPOCHS, batch_size=16, checkpoint=folder / "run.pt", after_epoch=note)
    fit(model, TRAIN, TEST, **options)
    if result is not None and rank == 0:
        torch.save(each, result)


def start(count, folder, make, result=None, patience=60):
    stores = folder.with_name("stores")
    stores.mkdir(parents=True, exist_ok=True)
    given = (count, folder, stores / str(time.time_ns()), make, patience, result)
    processes = [CONTEXT.Process(target=train, args=(rank, *given)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def end(processes):
    """Wait for all. Their exit codes: negative for a signal."""
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(count, make): of a run that nobody kills, curves and weights by epoch, and seconds."""

    @cache
    def run(count, make):
        folder = tmp_path_factory.mktemp("whole") / "run"
        end(start(1, folder.with_name("warm"), make))  # the first process waits for imports
        begun = time.perf_counter()
        assert end(start(count, folder, make, folder.with_name("each.pt"))) == [0] * count
        seconds = time.perf_counter() - begun
        return torch.load(folder.with_name("each.pt"), weights_only=True), seconds

    return run


def epochs_in(path):
    return len(load_checkpoint(path)["history"].loss) if path.exists() else 0


def check(folder, each):
    """The file is absent, or whole and just what the run that nobody kills was at some epoch."""
    epochs = epochs_in(folder / "run.pt")
    if not epochs:
        return 0
    state = load_checkpoint(folder / "run.pt")
    assert lengths(state["history"]) == [epochs] * 5 and not state["history"].interrupted
    expected, model = each[epochs - 1]
    assert [list(curve) for curve in curves(state["history"])] == expected
    assert same(state["model"], model)
    return epochs


@pytest.mark.parametrize(
    "count, victims, make",
    [
        (1, [0], resnet),
        (1, [0], with_dropout),
        (2, [1], resnet),
        (2, [0], no_bn),
        (2, [0, 1], no_bn),
    ],
)
def test_whenever_it_is_killed_the_run_goes_on_to_the_same_bits(
    tmp_path, whole, count, victims, make
):
    each, seconds = whole(count, make)
    moments, kills, folder = random.Random(), 0, tmp_path / "0" / "run"
    while kills < KILLS:
        processes = start(count, folder, make, patience=3)  # for one that was killed too early
        time.sleep(moments.uniform(0, 1.2 * seconds))
        for victim in victims:
            processes[victim].kill()
        codes = end(processes)
        kills += -signal.SIGKILL in codes
        epochs = check(folder, each)
        if codes == [0] * count:
            assert epochs == EPOCHS and os.listdir(folder) == ["run.pt"]
            folder = tmp_path / str(kills) / "run"
    assert end(start(count, folder, make)) == [0] * count
    assert check(folder, each) == EPOCHS
    assert os.listdir(folder) == ["run.pt"]  # what the killed ones left is cleared away


@pytest.mark.parametrize("after", [1, 2, 3])
def test_after_a_kill_any_number_of_processes_goes_on_to_nearly_the_same(tmp_path, whole, after):
    each, _ = whole(1, no_bn)
    folder = tmp_path / "run"
    processes = start(2, folder, no_bn)
    while not epochs_in(folder / "run.pt") and processes[0].is_alive():
        time.sleep(0.001)
    processes[1].kill()
    end(processes)
    assert end(start(after, folder, no_bn)) == [0] * after
    state, (expected, model) = load_checkpoint(folder / "run.pt"), each[-1]
    assert lengths(state["history"]) == [EPOCHS] * 5
    for key, value in state["model"].items():
        torch.testing.assert_close(value, model[key], rtol=0, atol=1e-5)
    for curve, whole_curve in zip(curves(state["history"]), expected):
        assert curve == pytest.approx(whole_curve, abs=1e-5)


def children(process):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = path.read_text().partition(" (")
            if int(rest.rpartition(") ")[2].split()[1]) == process:
                found.append(int(number))
        except OSError:  # it has ended meanwhile
            pass
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells whose child a process is")
def test_workers_end_soon_after_their_launcher_is_killed(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [
        "-m",
        "d2lres",
        "train",
        "--model=cifar_resnet",
        "--depth=8",
        "--width=2",
        "--size=6",
    ]
    command += ["--epochs=5000", "--batch-size=1000", "--threads=1", "--checkpoint=run.pt"]
    launcher = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    patience = time.monotonic() + 90
    while not epochs_in(tmp_path / "run.pt") and time.monotonic() < patience:
        assert launcher.poll() is None
        time.sleep(0.1)
    workers = children(launcher.pid)
    assert len(workers) == 2
    launcher.kill()
    launcher.wait()
    patience = time.monotonic() + 5
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < patience, "the workers train on without a launcher"
        time.sleep(0.1)
    assert load_checkpoint(tmp_path / "run.pt")["history"].loss
