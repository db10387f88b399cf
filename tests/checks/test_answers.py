"""Every check accepts the right answers and tells each wrong one its mistake."""

import ast
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
from exercises import Solution, define, solutions, verdict

SOLUTIONS = solutions()
TABLES = [import_module(path.stem) for path in sorted(Path(__file__).parent.glob("answers_*.py"))]


def rows(tables: list[dict]) -> list:
    """(exercise, row) of all tables, named exercise-0, exercise-1 and so on."""
    every = [
        (name, i, row) for t in tables for name, them in t.items() for i, row in enumerate(them)
    ]
    return [pytest.param(name, row, id=f"{name}-{i}") for name, i, row in every]


def written(solution: Solution, search: str, replace: str) -> str:
    """The solution's code with `search` replaced, or with another body if `search` is empty."""
    if search:
        assert search in solution.code
        return solution.code.replace(search, replace)
    lines = solution.code.splitlines()
    (top,) = (n for n in ast.parse(solution.code).body if getattr(n, "name", "") == solution.answer)
    first = top.body[1] if isinstance(top.body[0], ast.Expr) else top.body[0]
    body = textwrap.indent(textwrap.dedent(replace).strip("\n"), "    ")
    return "\n".join([*lines[: first.lineno - 1], body, *lines[top.end_lineno :]])


def said(name: str, search: str, replace: str) -> str:
    solution = SOLUTIONS[name]
    printed = verdict(solution.check, define(solution, written(solution, search, replace)))
    return printed.splitlines()[-1]  # an answer may print, too


@pytest.mark.parametrize(("name", "row"), rows([table.RIGHT for table in TABLES]))
def test_right_answers_in_other_styles_are_accepted(name, row):
    search, replace = ("", row) if isinstance(row, str) else row
    assert said(name, search, replace).startswith("Correct: ")


@pytest.mark.parametrize(("name", "row"), rows([table.WRONG for table in TABLES]))
def test_wrong_answers_are_told_their_mistake(name, row):
    search, replace, words = row
    told = said(name, search, replace)
    assert told.startswith("Not yet: ") and words in told


def test_every_exercise_has_answers_in_four_styles_and_wrong_ones():
    names = set()
    for table in TABLES:
        assert set(table.RIGHT) == set(table.WRONG) and all(table.WRONG.values())
        assert all(len(them) >= 3 for them in table.RIGHT.values())  # the fourth is the solution
        names |= set(table.RIGHT)
    assert names == set(SOLUTIONS)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_stub_is_not_attempted_yet(name):
    assert said(name, "", "...  # your code here").startswith("Not attempted yet: ")
