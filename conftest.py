"""For every test and every kernel that nbval starts: no bars, little memory, nothing left behind."""

import os
import re
from pathlib import Path

import pytest

os.environ["D2LRES_PROGRESS"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:  # two at a time: a thread each, or they wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent


def pytest_addoption(parser):
    help = "megabytes that the kernel of a notebook may hold; the README promises the default"
    parser.addini("notebook_memory", help, default="2000")


def peak_memory(pid: int) -> float:
    """The most that the process has held, in megabytes; 0 where there is no /proc to tell."""
    status = Path(f"/proc/{pid}/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else "")
    return int(peak[1]) * 1024 / 1e6 if peak else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fails the cell of a notebook after which its kernel has held too much memory."""
    result = yield
    notebook, limit = item.parent, float(item.config.getini("notebook_memory"))
    if getattr(notebook, "kernel", None) and not hasattr(notebook, "held_too_much"):
        peak = peak_memory(notebook.kernel.km.provisioner.pid)
        if peak > limit:
            notebook.held_too_much = peak  # said once, not for all cells that follow
            pytest.fail(f"the kernel held {peak:.0f} MB, which is more than {limit:.0f}")
    return result


def files() -> set[Path]:
    """What lies in the clone, without what Python, Jupyter and the tests keep for themselves."""
    patterns = ("[!.]*", "assets/**/*", "d2lres/**/*", "notebooks/**/*")
    found = {path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)}
    own = {"__pycache__", ".ipynb_checkpoints", "build", "d2lres.egg-info"}
    return {path for path in found if not own & set(path.parts)}


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind():
    before = files()
    yield
    left = sorted(map(str, files() - before))
    assert not left, f"tests or notebooks left files in the repository: {left}"
