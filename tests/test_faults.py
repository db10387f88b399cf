"""What goes wrong on a learner's machine, played for real: a kernel that is stopped, folders that
cannot be written, a disk that fills, a chapter that takes too much memory. Faults of one function
are in its own tests."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from commands import ROOT, run
from nbformat.v4 import new_code_cell, new_notebook
from training_runs import TRAIN, linear

from d2lres.checkpoints import CheckpointError, load_checkpoint
from d2lres.training import fit

POSIX = os.name == "posix"
posix_only = pytest.mark.skipif(not POSIX, reason="limits and signals of POSIX")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1"}  # as fast, and much faster on a busy machine
# Root may write everywhere; without these two capabilities it is bound by permissions like others.
AS_OTHERS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
AS_OTHERS = AS_OTHERS if POSIX and os.geteuid() == 0 else []


def run_cells(cells, folder, environment, prefix=()):
    """Runs the cells in one kernel, started in the new `folder`; prefix: what starts the process."""
    folder.mkdir()
    cells = [nbformat.from_dict(cell | {"id": f"cell-{i}"}) for i, cell in enumerate(cells)]
    nbformat.write(new_notebook(cells=cells), folder.parent / "cells.ipynb")
    command = [*prefix, sys.executable, ROOT / "tests/run_alone.py", "../cells.ipynb", "../out"]
    run(*command, cwd=folder, env=environment)
    assert not list(folder.iterdir()), "the cells left files"


SLOW_TRAINING = """
import os, signal, threading, time, torch
from d2lres.data import Images
from d2lres.training import fit

steps = []

def press_stop():  # what Jupyter sends to the kernel
    steps.append(time.perf_counter())
    os.killpg(os.getpgid(0), signal.SIGINT)

def be_slow(*args):
    steps.append(time.perf_counter())
    if len(steps) == 14:
        threading.Timer(0.02, press_stop).start()
    time.sleep(0.05)

train = Images(torch.zeros(40, 1, 6, 6, dtype=torch.uint8), torch.arange(40) % 10)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10))
slow = model.register_forward_hook(be_slow)
history = fit(model, train, epochs=10_000, batch_size=10)
assert history.interrupted and len(history.loss) > 1, history
assert time.perf_counter() - steps[14] < 10
"""


@posix_only
def test_the_stop_button_ends_training_with_the_history_and_the_kernel_goes_on(tmp_path):
    """With the progress bar on, as readers have it."""
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "D2LRES_PROGRESS"}
    again = "slow.remove()\nassert not fit(model, train, epochs=2).interrupted"
    cells = [new_code_cell(SLOW_TRAINING), new_code_cell(again)]
    run_cells(cells, tmp_path / "folder", environment)


@pytest.fixture
def read_only(clone, tmp_path):
    """A copy of the repository and an empty home, in neither of which anything can be written."""
    home = tmp_path / "home"
    home.mkdir()
    everything = [home, clone, *clone.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield home, clone
    for path in everything:
        path.chmod(0o755)


CANNOT_WRITE = """
import pytest
from d2lres import data
from d2lres.checkpoints import CheckpointError
from d2lres.training import fit

with pytest.raises(PermissionError):  # or nothing is shown
    open(d2lres.__file__, "a")
data.SYSTEM_FOLDERS = ()
with pytest.raises(data.DataError) as caught:
    data.fashion_mnist("full")
assert "the cache" in str(caught.value) and "is not writable" in str(caught.value)
assert "D2LRES_CACHE names another folder" in str(caught.value)
linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
with pytest.raises(CheckpointError) as caught:
    fit(linear, data.fashion_mnist()[0][:64], epochs=2, checkpoint="run.pt")
assert f"could not write the checkpoint {os.getcwd()}/run.pt" in str(caught.value)
assert "choose a folder that you may write to and that has room" in str(caught.value)
"""


@posix_only
@pytest.mark.skipif(bool(AS_OTHERS) and not shutil.which(AS_OTHERS[0]), reason="root, no setpriv")
def test_a_chapter_runs_twice_where_clone_and_home_are_read_only_and_leaves_nothing(
    read_only, tmp_path
):
    """In one kernel, first in the folder that it was started in, then beside the notebook; then
    what cannot be written is named with the remedy."""
    home, clone = read_only
    files = [sorted(folder.rglob("*")) for folder in read_only]
    environment = ENVIRONMENT | {"HOME": str(home), "PYTHONPATH": str(clone)}
    environment = {k: v for k, v in environment.items() if not k.startswith(("XDG_", "D2LRES_C"))}
    # Jupyter itself needs a place for its own files; the course must not.
    environment |= {"JUPYTER_RUNTIME_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    chapter = nbformat.read(clone / "notebooks/02_residual_block.ipynb", nbformat.NO_CONVERT)
    move = f"import os; os.chdir({str(clone / 'notebooks')!r})"
    cells = [*chapter.cells, new_code_cell(move), *chapter.cells, new_code_cell(CANNOT_WRITE)]
    run_cells(cells, tmp_path / "elsewhere", environment, AS_OTHERS)
    assert files == [sorted(folder.rglob("*")) for folder in read_only]


def test_a_disk_that_fills_during_training_is_named_and_costs_no_finished_epoch(tmp_path):
    """The process may write 1,000 bytes to a file from the second epoch on."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path, steps = tmp_path / "run.pt", []

    def fill(module, args):
        steps.append(1)
        if len(steps) == 4:  # after the rehearsal, a step and the look at what it led to
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    def train_three_epochs():
        model = linear()
        model.register_forward_pre_hook(fill)
        return fit(model, TRAIN, epochs=3, batch_size=40, checkpoint=path)

    try:
        with pytest.raises(CheckpointError) as caught:
            train_three_epochs()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"could not write the checkpoint {path}" in str(caught.value)
    assert str(caught.value).endswith("has room; the model keeps what it has learned.")
    assert len(load_checkpoint(path)["history"].loss) == 1
    assert len(train_three_epochs().loss) == 3
    assert os.listdir(tmp_path) == ["run.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how much a process has held")
def test_a_notebook_that_takes_more_memory_than_promised_fails_at_the_cell(tmp_path):
    shutil.copy2(ROOT / "conftest.py", tmp_path)
    cells = map(new_code_cell, ("a = 1", "b = b'x' * 200_000_000", "c = 3"))
    nbformat.write(new_notebook(cells=list(cells)), tmp_path / "greedy.ipynb")
    options = ["--nbval", "--nbval-current-env", "-rA", "-o", "notebook_memory=200"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    said = done.stdout
    assert "1 failed, 2 passed" in said and "FAILED greedy.ipynb::Cell 1" in said, said
    assert "the kernel held 2" in said and "MB, which is more than 200" in said
