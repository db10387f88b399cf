"""What a committed notebook must satisfy; `violations` names everything that does not.

nbval executes every cell and compares outputs. These rules cover what it lets through: a cell
that was never run, a picture without a description, a warning, a skipped cell.
"""

import re

import nbformat
from nbformat import NotebookNode

MAX_LINES = 25  # of a code cell
MAX_WORDS = 260  # of a markdown cell
MIN_ALT = 20  # characters that describe a picture
MIN_EXERCISES = 3

MEASURED, RAISES = "nbval-ignore-output", "raises-exception"
TAG = re.compile(rf"setup|needed|{MEASURED}|{RAISES}|reason: .{{10,}}|claim:[NFT]\d+")
NBVAL_COMMENT = re.compile(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.MULTILINE)
ASSERT = re.compile(r"^\s*assert\b", re.MULTILINE)
CHECK_CALL = re.compile(r"^check\.\w+\(", re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) +(.+)", re.MULTILINE)
EXERCISE = re.compile(r"Exercise (\d+) \((?:easy|medium|hard), \d+ minutes?\): \S.*")
FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
# Where a machine keeps its files, and where packages come from: neither is the reader's business.
MACHINE = re.compile(
    r"(?<![\w./-])/(?:home|root|tmp|work|mnt|opt|private|Users)/[\w.]|\b[A-Z]:\\\w"
    r"|(?:site|dist)-packages|\b(?:pypi|pythonhosted|anaconda)\.\w+|artifactory"
)


def read(path) -> NotebookNode:
    return nbformat.read(path, nbformat.NO_CONVERT)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def violations(notebook: NotebookNode) -> list[str]:
    """Every broken rule of `notebook`, one line each, naming the cell; empty when it is fine."""
    rules = {"code": [_any_cell, _code, _tags, _outputs], "markdown": [_any_cell, _markdown]}
    found = [*_shape(notebook), *_headings(notebook), *_exercises(notebook)]
    for cell in notebook.cells:
        for rule in rules.get(cell.cell_type, [_any_cell]):
            found += [f"{cell.id}: {line}" for line in rule(cell)]
    return found


def _prose(cell: NotebookNode) -> str:
    """The markdown without fenced code, whose `#` lines are no headings."""
    return FENCED.sub("", cell.source) if cell.cell_type == "markdown" else ""


def _shape(notebook):
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"
    cells = code(notebook)
    if ["setup" in tags(cell) for cell in cells] != [True] + [False] * (len(cells) - 1):
        yield "the first code cell, and no other, must be tagged setup"
    for number, cell in enumerate(cells, start=1):
        if cell.execution_count != number:
            yield f"{cell.id}: execution count {cell.execution_count}, not {number}"
    if "widgets" in notebook.metadata:
        yield "widget state is stored in the metadata"


def _headings(notebook):
    levels = []
    for cell in notebook.cells:
        for hashes, text in HEADING.findall(_prose(cell)):
            if levels and len(hashes) > levels[-1] + 1:
                yield f"{cell.id}: heading '{text}' jumps from level {levels[-1]} to {len(hashes)}"
            levels.append(len(hashes))
    first = HEADING.search(_prose(notebook.cells[0]))
    if not first or len(first[1]) != 1 or levels.count(1) != 1:
        yield f"needs one H1, first of all headings and in the first cell; has {levels.count(1)}"


def _exercises(notebook):
    """Each exercise runs from its heading to the next heading of the same level or above."""
    exercises, level = [], 0
    for cell in notebook.cells:
        for hashes, text in HEADING.findall(_prose(cell)):
            if text.startswith("Exercise "):
                level = len(hashes)
                exercises.append((cell.id, text.strip(), dict(markdown="", code="", raw="")))
            elif len(hashes) <= level:
                level = 0
        if level:
            exercises[-1][2][cell.cell_type] += f"{cell.source}\n"
    if len(exercises) < MIN_EXERCISES:
        yield f"{len(exercises)} exercises, at least {MIN_EXERCISES} are wanted"
    for number, (where, title, source) in enumerate(exercises, start=1):
        match = EXERCISE.fullmatch(title)
        if not match or int(match[1]) != number:
            form = f"Exercise {number} (easy|medium|hard, M minutes): title"
            yield f"{where}: '{title}' should read '{form}'"
        if "<details>" not in source["markdown"]:
            yield f"{where}: exercise {number} lacks a <details> hint"
        if not CHECK_CALL.search(source["code"]):
            yield f"{where}: exercise {number} lacks a check.name(…) call"


def _any_cell(cell):
    if not cell.source.strip():
        yield "empty cell"
    yield from _machine(cell.source, "source")


def _machine(text, place):
    if found := MACHINE.search(text):
        yield f"machine path or package host in the {place}: {found[0]}"


def _code(cell):
    if (lines := len(cell.source.splitlines())) > MAX_LINES:
        yield f"{lines} lines of code, at most {MAX_LINES}"
    if found := NBVAL_COMMENT.search(cell.source):
        yield f"comment {found[1]} steers nbval; use a tag"


def _tags(cell):
    given, asserts = tags(cell), bool(ASSERT.search(cell.source))
    claims = ", ".join(tag for tag in given if tag.startswith("claim:"))
    for tag in given:
        if not TAG.fullmatch(tag):
            yield f"tag '{tag}' is not one of the course's"
    if MEASURED in given and not any(tag.startswith("reason: ") for tag in given):
        yield f"{MEASURED} without a 'reason: …' tag"
    if MEASURED in given and not asserts:
        yield f"{MEASURED} without an assert: nothing is tested"
    if claims and not asserts:
        yield f"{claims} without an assert"
    if claims and RAISES in given:
        yield f"{claims} in a cell that stops at an exception"


def _outputs(cell):
    raised = False
    for output in cell.outputs:
        data = output.get("data", {})
        shown = [str(data[kind]) for kind in data if not kind.startswith("image/")]
        words = "".join(output.get("text", "")) or "\n".join(shown)
        if output.output_type == "stream" and output.name == "stderr":
            yield f"output on stderr: {words.strip()[:80]}"
        if output.output_type == "error":
            raised = True
            words = "\n".join([output.ename, output.evalue, *output.traceback])
            if RAISES not in tags(cell):
                yield f"{output.ename}: {output.evalue}"
        if "\r" in words:
            yield "a progress bar in the output"
        yield from _machine(words, "output")
        for kind in data:
            if kind == "image/svg+xml":
                yield "an SVG output carries its date; use PNG"
            elif kind.startswith("image/"):
                alt = output.metadata.get(kind, {}).get("alt", "")
                if len(alt.strip()) < MIN_ALT:
                    yield f"a picture whose alt text is shorter than {MIN_ALT} characters"
            elif "widget" in kind:
                yield "a widget: nothing is seen where no kernel runs"
    if RAISES in tags(cell) and not raised:
        yield f"tagged {RAISES}, but nothing was raised"


def _markdown(cell):
    prose = re.sub(r"<[^>]+>|\]\([^)]*\)|[|#*]", " ", _prose(cell))
    if (words := len(prose.split())) > MAX_WORDS:
        yield f"{words} words, at most {MAX_WORDS}"
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", cell.source):
        if not alt.strip():
            yield f"picture {target} without alt text"
        if not target.startswith("https://"):
            yield f"picture {target} is not there when the notebook is opened alone"
    if "<img" in cell.source and not re.search(r"<img[^>]*\balt=\"[^\"]", cell.source):
        yield "<img> without alt text"
