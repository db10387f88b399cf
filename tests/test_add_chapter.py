"""A new chapter takes its source, its checks and its claims, and nothing else."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_chapter import CHECKS, chapter

TOUCHED = [
    "notebooks/99_tiny.ipynb",
    "notebooks/solutions/99_tiny.ipynb",
    "tests/test_notebooks.py",
    "tests/test_project.py",
]


@pytest.fixture
def run(clone):
    """Runs a command in the clone, with the clone's d2lres; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(clone), "PYTEST_ADDOPTS": "-p no:cacheprovider"}

    def call(*command):
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_a_chapter_is_added_by_its_source_its_checks_and_its_claims(clone, run):
    claims = clone / "assets" / "claims.json"
    ledger = json.loads(claims.read_text(encoding="utf-8"))
    claim = f"N{len(ledger) + 1}"
    (clone / "notebooks/src/99_tiny.py").write_text(
        chapter("from d2lres.checks import tiny as check\n\n\n", claim), encoding="utf-8"
    )
    (clone / "d2lres/checks/tiny.py").write_text(CHECKS, encoding="utf-8")
    row = {"claim": "Clocks run.", "verdict": "holds", "chapter": "99_tiny", "evidence": "One ran."}
    claims.write_text(json.dumps([*ledger, {"id": claim} | row], indent=1), encoding="utf-8")

    said = run(sys.executable, "notebooks/build.py", "99")
    assert said.startswith("99_tiny: ") and "notebooks/00_start_here.ipynb: brought up" in said
    neighbour = sorted((clone / "notebooks/src").glob("[0-9]*.py"))[-2].stem
    for name in ("README.md", "notebooks/00_start_here.ipynb", f"notebooks/{neighbour}.ipynb"):
        assert "A tiny chapter](" in (clone / name).read_text(encoding="utf-8"), name

    run("git", "init", "--quiet")
    if shutil.which("make") and sys.prefix != sys.base_prefix:
        (clone / ".venv").symlink_to(sys.prefix)
        (clone / ".git/info/exclude").write_text(".venv\n")
        # -o: what is installed is this environment, whatever make thinks of its age.
        said = run("make", "-o", ".venv/dev", "test", f"TESTS={' '.join(TOUCHED)}")
    else:
        said = run(sys.executable, "-m", "pytest", *TOUCHED)
    assert " passed" in said and "failed" not in said
