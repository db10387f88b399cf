"""The committed notebooks: nbval runs their cells, these tests read them."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
from notebook_rules import ASSERT, CHECK_CALL, tags, violations

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
READERS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
CHAPTERS = {
    "00_start_here",
    "01_degradation",
    "02_residual_block",
    "03_resnet18",
    "04_gradient_flow",
    "05_training",
    "08_scaling_out",
}
CLAIMS = {f"N{n}" for n in range(1, 21)}
VERDICT = re.compile(r"^(Correct|Not yet|Not attempted yet): ", re.MULTILINE)


@cache
def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, nbformat.NO_CONVERT)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_the_chapters_are_there_with_their_solutions():
    assert {path.stem for path in READERS} >= CHAPTERS
    assert {path.stem for path in SOLUTIONS} == {path.stem for path in READERS}


@pytest.mark.parametrize("path", READERS + SOLUTIONS, ids=name)
def test_the_notebook_breaks_no_rule(path):
    assert violations(read(path)) == []


def test_notebooks_and_sources_agree():
    command = [sys.executable, "notebooks/build.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def verdicts(path: Path) -> tuple[int, list[str]]:
    """How many checks the notebook calls, and the verdicts that they printed."""
    cells = [cell for cell in code(path) if CHECK_CALL.search(cell.source)]
    calls = sum(len(CHECK_CALL.findall(cell.source)) for cell in cells)
    text = "".join(out.get("text", "") for cell in cells for out in cell.outputs)
    return calls, VERDICT.findall(text)


@pytest.mark.parametrize("path", READERS, ids=name)
def test_the_readers_exercises_are_not_attempted_yet(path):
    calls, said = verdicts(path)
    assert said == ["Not attempted yet"] * calls


@pytest.mark.parametrize("path", SOLUTIONS, ids=name)
def test_the_solutions_are_correct(path):
    calls, said = verdicts(path)
    assert said == ["Correct"] * calls


# The ledger of claims


def ledger() -> list[dict]:
    return json.loads((ROOT / "assets" / "claims.json").read_text(encoding="utf-8"))


def claims_in(path: Path) -> dict[str, list[nbformat.NotebookNode]]:
    """The cells of each claim id that the notebook's tags name."""
    found = {}
    for cell in code(path):
        for tag in tags(cell):
            if tag.startswith("claim:"):
                found.setdefault(tag.removeprefix("claim:"), []).append(cell)
    return found


def test_every_claim_of_these_chapters_has_one_row():
    ids = [row["id"] for row in ledger()]
    assert len(ids) == len(set(ids))
    assert set(ids) >= CLAIMS


def test_every_row_says_claim_verdict_chapter_and_evidence():
    for row in ledger():
        assert set(row) == {"id", "claim", "verdict", "chapter", "evidence"}, row["id"]
        assert all(isinstance(value, str) and value.strip() for value in row.values()), row["id"]
        assert re.fullmatch(r"holds|holds when \S.*|false", row["verdict"]), row["id"]


def test_every_rows_cell_exists_was_executed_and_asserts():
    for row in ledger():
        for folder in (FOLDER, FOLDER / "solutions"):
            path = folder / f"{row['chapter']}.ipynb"
            cells = claims_in(path).get(row["id"])
            assert cells, f"{name(path)} has no cell tagged claim:{row['id']}"
            for cell in cells:
                where = f"{name(path)}, cell {cell.id}, claim {row['id']}"
                assert cell.execution_count, f"{where}: never executed"
                assert ASSERT.search(cell.source), f"{where}: asserts nothing"
                assert not [o for o in cell.outputs if o.output_type == "error"], where


def test_no_tag_lacks_a_row():
    ids = {row["id"] for row in ledger()}
    tagged = {(claim, name(path)) for path in READERS for claim in claims_in(path)}
    assert {pair for pair in tagged if pair[0] not in ids} == set()
