"""For every test and every kernel that nbval starts: no progress bars, and nothing left behind."""

import os
from pathlib import Path

import pytest

os.environ["D2LRES_PROGRESS"] = "0"
ROOT = Path(__file__).resolve().parent


def files() -> set[str]:
    """What lies in the clone, without what Python, Jupyter and the tests keep for themselves."""
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    for folder in ("assets", "d2lres", "notebooks"):
        found |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*")}
    own = ("__pycache__", ".ipynb_checkpoints", "build", "d2lres.egg-info")
    return {name for name in found if not any(part in own for part in name.split("/"))}


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind():
    before = files()
    yield
    left = sorted(files() - before)
    assert not left, f"tests or notebooks left files in the repository: {left}"
