"""A new chapter takes its source, its checks and its claims, and nothing else."""

import json
import shutil
import sys
from functools import partial

from commands import run
from tiny_chapter import CHECKS, chapter

TOUCHED = [
    "notebooks/99_tiny.ipynb",
    "notebooks/solutions/99_tiny.ipynb",
    "tests/test_notebooks.py",
    "tests/test_project.py",
]


def test_a_chapter_is_added_by_its_source_its_checks_and_its_claims(clone, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(clone))  # the clone's d2lres
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
    call = partial(run, cwd=clone)
    claims = clone / "assets" / "claims.json"
    ledger = json.loads(claims.read_text(encoding="utf-8"))
    number = 1 + sum(row["id"][0] == "N" for row in ledger)
    row = {"id": f"N{number}", "claim": "Clocks run.", "verdict": "holds"}
    row |= {"chapter": "99_tiny", "evidence": "One ran."}
    claims.write_text(json.dumps([*ledger, row], indent=1), encoding="utf-8")
    (clone / "d2lres/checks/tiny.py").write_text(CHECKS, encoding="utf-8")
    source = chapter("from d2lres.checks import tiny as check\n\n\n", row["id"])
    (clone / "notebooks/src/99_tiny.py").write_text(source, encoding="utf-8")

    said = call(sys.executable, "notebooks/build.py", "99")
    assert said.startswith("99_tiny: ") and "notebooks/00_start_here.ipynb: brought up" in said
    neighbour = sorted((clone / "notebooks/src").glob("[0-9]*.py"))[-2].stem
    for name in ("README.md", "notebooks/00_start_here.ipynb", f"notebooks/{neighbour}.ipynb"):
        assert "A tiny chapter](" in (clone / name).read_text(encoding="utf-8"), name

    call("git", "init", "--quiet")
    if shutil.which("make") and sys.prefix != sys.base_prefix:
        (clone / ".venv").symlink_to(sys.prefix)
        (clone / ".git/info/exclude").write_text(".venv\n")
        # -o: what is installed is this environment, whatever make thinks of its age.
        said = call("make", "-o", ".venv/dev", "test", "PARALLEL=", f"TESTS={' '.join(TOUCHED)}")
    else:
        said = call(sys.executable, "-m", "pytest", *TOUCHED)
    assert " passed" in said and "failed" not in said
