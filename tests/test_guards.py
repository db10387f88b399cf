"""The guards around the notebooks bite: every kind of bad notebook is rejected, on a copy."""

import re
import subprocess
import sys

import nbformat
import pytest
from commands import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import code, violations
from tiny_chapter import ALT, PIXEL, SHOW

NOT_YET = "Not attempted yet: one"
CHECKER = f"class check:\n    def one(answer):\n        print('{NOT_YET}')"
TASK = "### Exercise {} (easy, 5 minutes): a title\nTask.\n<details>A hint.</details>"
MEASURED = ("nbval-ignore-output", "reason: the clock moves on")
FIGURE, CLAIM, RAISES = 2, 3, 4  # positions of the cells that the tests damage


def picture(alt=ALT, kind="image/png"):
    data = {kind: PIXEL, "text/plain": "a pixel"}
    return new_output("display_data", data=data, metadata={kind: {"alt": alt}})


def says(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def cell(source, *outputs, tags=()):
    return new_code_cell(source, outputs=[*outputs], metadata={"tags": [*tags]} if tags else {})


def damaged(change=lambda cells: None) -> nbformat.NotebookNode:
    """The smallest notebook that satisfies nbval and every rule, with its cells changed."""
    error = new_output("error", ename="ZeroDivisionError", evalue="division by zero")
    clock = "import time\nprint(time.time())\nassert time.time() > 0"
    cells = [
        new_markdown_cell("# A tiny chapter\nIt promises little."),
        cell(CHECKER, tags=["setup"]),
        cell(SHOW, picture()),
        cell(clock, says("1.5\n"), tags=[*MEASURED, "claim:N1"]),
        cell("1 / 0", error, tags=["raises-exception"]),
        new_markdown_cell("## Exercises"),
    ]
    for n in (1, 2, 3):
        cells += [new_markdown_cell(TASK.format(n)), cell("check.one(...)", says(f"{NOT_YET}\n"))]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for count, executed in enumerate(code(notebook), start=1):
        executed.execution_count = count
    change(notebook.cells)
    return notebook


# What nbval lets through, and the rule that does not.


def null_count(cells):
    cells[1].execution_count = None  # the set-up cell, which has no output


def no_alt(cells):
    cells[FIGURE].source = cells[FIGURE].source.replace(ALT, "")
    cells[FIGURE].outputs = [picture(alt="")]


def warning(cells):
    cells[1].source += '\nimport sys\nprint("UserWarning: careful", file=sys.stderr)'
    cells[1].outputs = [says("UserWarning: careful\n", name="stderr")]


def skipped(cells, at=FIGURE):
    cells[at].source = "this is not Python"
    cells[at].metadata["tags"] = ["nbval-skip"]


def skipped_by_a_comment(cells, at=FIGURE):
    cells[at].source = "# NBVAL_SKIP\nthis is not Python"


def stale(cells):
    cells[-1].outputs[0].text = "Correct: this is what it printed last year\n"


def let_through(cells):
    warning(cells)
    no_alt(cells)
    skipped(cells, at=CLAIM)
    skipped_by_a_comment(cells, at=RAISES)


def test_nbval_rejects_a_stale_output_and_lets_the_rest_through(tmp_path):
    for change in (stale, null_count, let_through):
        nbformat.write(damaged(change), tmp_path / f"{change.__name__}.ipynb")
    # The settings are the course's own: whoever switches nbval off there fails this test.
    settings = ["-c", "pyproject.toml", "--rootdir", ".", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-rf", *settings, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    failed = re.findall(r"^FAILED .*?(\w+)\.ipynb::Cell (\d+)", done.stdout, re.MULTILINE)
    assert done.returncode == 1 and failed == [("stale", "6")], done.stdout + done.stderr
    assert "1 failed, 18 passed, 2 skipped" in done.stdout


def put(position, **fields):
    return lambda cells: cells[position].update(fields)


def tag(position, *tags):
    return lambda cells: cells[position].metadata.update(tags=list(tags))


CLAIMED = {"metadata": nbformat.from_dict({"tags": ["raises-exception", "claim:N3"]})}
RULES = {
    "never run": (null_count, "execution count None, not 1"),
    "no alt": (no_alt, "a picture whose alt text is shorter than 20 characters"),
    "warning": (warning, "output on stderr: UserWarning: careful"),
    "skipped": (skipped, "tag 'nbval-skip' is not one of the course's"),
    "comment": (skipped_by_a_comment, "comment NBVAL_SKIP steers nbval; use a tag"),
    "counts out of order": (put(FIGURE, execution_count=7), "execution count 7, not 2"),
    "an error": (tag(RAISES), "ZeroDivisionError: division by zero"),
    "nothing raised": (put(RAISES, outputs=[]), "tagged raises-exception, but nothing was raised"),
    "misspelt tag": (tag(FIGURE, "nbval-ignore-ouput"), "is not one of the course's"),
    "no reason": (tag(CLAIM, "nbval-ignore-output"), "without a 'reason: …' tag"),
    "measured, no assert": (tag(FIGURE, *MEASURED), "without an assert: nothing is tested"),
    "claim, no assert": (tag(FIGURE, "claim:N3"), "claim:N3 without an assert"),
    "claim that raises": (put(RAISES, source="assert 1 / 0", **CLAIMED), "stops at an exception"),
    "setup not first": (tag(1), "the first code cell, and no other, must be tagged setup"),
    "two setups": (tag(FIGURE, "setup"), "the first code cell, and no other"),
    "long cell": (put(FIGURE, source="x = 1\n" * 26), "26 lines of code, at most 25"),
    "long text": (put(0, source="# Title\n" + "word " * 270), "271 words, at most 260"),
    "empty cell": (put(FIGURE, source=" \n"), "empty cell"),
    "two H1": (put(5, source="# A\n## Exercises"), "needs one H1"),
    "no H1": (put(0, source="Text."), "needs one H1"),
    "level jump": (put(5, source="#### Exercises"), "jumps from level 1 to 4"),
    "two exercises": (lambda cells: cells.__delitem__(slice(-2, None)), "2 exercises, at least 3"),
    "no minutes": (put(6, source="### Exercise 1: x\n<details></details>"), "1: x' should read"),
    "no hint": (put(6, source="### Exercise 1 (easy, 5 minutes): x"), "lacks a <details> hint"),
    "no check": (put(7, source="print(1)"), "lacks a check.name(…) call"),
    "misnumbered": (put(6, source=TASK.format(2)), "should read 'Exercise 1 (easy|medium|hard,"),
    "local picture": (put(5, source="## A\n![a](a.png)"), "not there when the notebook is opened"),
    "picture, no alt": (put(5, source="## A\n![](https://a.b/c.png)"), "without alt text"),
    "path in source": (put(FIGURE, source="open('/Users/me/data')"), "in the source: /Users/m"),
    "package host": (put(5, source="## A\nSee https://pypi.example/x"), "source: pypi.example"),
    "path in output": (put(FIGURE, outputs=[says("/Users/.x/y\n")]), "in the output: /Users/."),
    "progress bar": (put(FIGURE, outputs=[says("10 %\r20 %\n")]), "a progress bar in the output"),
    "svg": (put(FIGURE, outputs=[picture(kind="image/svg+xml")]), "an SVG output carries its date"),
}


@pytest.mark.parametrize("kind", RULES)
def test_each_rule_names_what_breaks_it(kind):
    change, message = RULES[kind]
    (found,) = violations(damaged(change))
    assert message in found


@pytest.mark.parametrize("source", ["```\n# no heading\n```", "a #1 b", "/docs/tmp/x", "../tmp/x"])
def test_ordinary_text_is_left_alone(source):
    assert violations(damaged(put(5, source="## A\n" + source))) == []
