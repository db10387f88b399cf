"""The exercises of the sources: their solutions, defined as in a notebook, and their checks."""

import io
import linecache
import pkgutil
import re
import runpy
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


class Solution(NamedTuple):
    check: str  # dotted name
    code: str
    answer: str
    before: tuple[str, ...]  # the cells to run first


def solutions() -> dict[str, Solution]:
    """The solution of every exercise, by the name of its check."""
    build, found = runpy.run_path(str(NOTEBOOKS / "build.py")), {}
    for source in build["sources"](NOTEBOOKS):
        before: tuple[str, ...] = ()
        for cell in build["make"](source, solution=True).cells:
            if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
                code, *call = re.split(r"(?m)^check\.(\w+)\((\w+)\)$", cell.source)
                before = (*before, code)
                if call:
                    (module,) = re.findall(r"from d2lres.checks import (\w+) as", "".join(before))
                    check = f"d2lres.checks.{module}.{call[0]}"
                    found[call[0]] = Solution(check, code, call[1], before[:-1])
    return found


@cache
def namespace(cells: tuple[str, ...]) -> dict[str, Any]:
    """The names after these cells, whose source `inspect` finds, as in a notebook."""
    if not cells:
        return {"__name__": "__main__"}
    names, code, file = dict(namespace(cells[:-1])), cells[-1], f"<{hash(cells)}>"
    linecache.cache[file] = len(code), None, code.splitlines(keepends=True), file
    exec(compile(code, file, "exec"), names)
    return names


def define(solution: Solution, code: str) -> Any:
    """The answer in `code`, run anew after the cells before."""
    return namespace.__wrapped__((*solution.before, code))[solution.answer]


def verdict(check: str, answer: Any) -> str:
    """What the check prints about `answer`."""
    with redirect_stdout(io.StringIO()) as printed:
        pkgutil.resolve_name(check)(answer)
    return printed.getvalue()
