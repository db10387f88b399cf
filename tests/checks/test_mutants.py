"""Every mutant of a solution is refused, but for those that are listed as equivalent."""

import pytest
from equivalents import EQUIVALENT
from exercises import solutions
from mutants import row, tried

SOLUTIONS = solutions()


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_every_mutant_is_refused_or_equivalent(exercise):
    verdicts = tried(SOLUTIONS[exercise])
    print(row(exercise, verdicts))
    accepted = {name for name, said in verdicts.items() if not said.startswith("Not ")}
    assert set(verdicts.values()) <= {"Correct", "Not yet", "Not attempted yet"}
    assert accepted == {"the solution", *EQUIVALENT.get(exercise, {})}
