"""The committed notebooks: nbval runs their cells, these tests read them."""

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import notebook_rules
import pytest
from commands import ROOT, python
from notebook_rules import ASSERT, CHECK_CALL, code, tags, violations

FOLDER = ROOT / "notebooks"
READERS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
LEDGER = json.loads((ROOT / "assets" / "claims.json").read_text(encoding="utf-8"))
VERDICT = re.compile(r"^(Correct|Not yet|Not attempted yet): ", re.MULTILINE)
read = cache(notebook_rules.read)


def name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("path", READERS + SOLUTIONS, ids=name)
def test_the_notebook_breaks_no_rule(path):
    assert violations(read(path)) == []


def test_every_source_is_built_and_notebooks_readme_and_sources_agree():
    python("notebooks/build.py", "--check")


def verdicts(path: Path) -> tuple[int, list[str]]:
    """How many checks the notebook calls, and the verdicts that they printed."""
    cells = [cell for cell in code(read(path)) if CHECK_CALL.search(cell.source)]
    calls = sum(len(CHECK_CALL.findall(cell.source)) for cell in cells)
    text = "".join(out.get("text", "") for cell in cells for out in cell.outputs)
    return calls, VERDICT.findall(text)


@pytest.mark.parametrize("path", READERS, ids=name)
def test_the_readers_exercises_are_not_attempted_yet_and_the_solutions_correct(path):
    calls, said = verdicts(path)
    assert said == ["Not attempted yet"] * calls
    assert verdicts(FOLDER / "solutions" / path.name) == (calls, ["Correct"] * calls)


# The ledger of claims


@cache
def claims() -> dict[tuple[str, str], list]:
    """The cells that are tagged with a claim, by chapter and id."""
    found = defaultdict(list)
    for path in READERS:
        for cell in code(read(path)):
            for tag in tags(cell):
                if tag.startswith("claim:"):
                    found[path.stem, tag.removeprefix("claim:")].append(cell)
    return found


def test_claims_are_numbered_without_a_gap_and_no_tag_lacks_a_row():
    ids = [row["id"] for row in LEDGER]
    for part in "NFT":  # the notes', the field's, and what is said about transfer
        numbered = [name for name in ids if name[0] == part]
        assert numbered == [f"{part}{n}" for n in range(1, len(numbered) + 1)]
    assert {name[0] for name in ids} == set("NFT")
    assert [(chapter, claim) for chapter, claim in claims() if claim not in ids] == []


@pytest.mark.parametrize("row", LEDGER, ids=lambda row: row["id"])
def test_every_row_is_complete_and_its_cells_were_executed_and_assert(row):
    where = {"said"} if row["id"][0] in "FT" else set()  # in which course, book or library
    assert set(row) == {"id", "claim", "verdict", "chapter", "evidence"} | where
    assert all(isinstance(value, str) and value.strip() for value in row.values())
    assert re.fullmatch(r"holds|holds when \S.*|not seen \S.*|false", row["verdict"])
    cells = claims().get((row["chapter"], row["id"]))
    assert cells, f"{row['chapter']} has no cell tagged claim:{row['id']}"
    for cell in cells:
        assert cell.execution_count, f"{cell.id}: never executed"
        assert ASSERT.search(cell.source), f"{cell.id}: asserts nothing"
        assert not [out for out in cell.outputs if out.output_type == "error"], cell.id
