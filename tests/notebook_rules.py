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
TAG = re.compile(rf"setup|needed|{MEASURED}|{RAISES}|reason: .{{10,}}|claim:N\d+")
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


def violations(notebook: NotebookNode) -> list[str]:
    """Every broken rule of `notebook`, one line each, naming the cell; empty when it is fine."""
    found = [*_shape(notebook), *_headings(notebook), *_exercises(notebook)]
    executed = 0
    for cell in notebook.cells:
        rules = [_any_cell]
        if cell.cell_type == "code":
            executed += 1
            if cell.execution_count != executed:
                found.append(f"{cell.id}: execution count {cell.execution_count}, not {executed}")
            rules += [_code, _tags, _outputs]
        elif cell.cell_type == "markdown":
            rules += [_markdown]
        found += [f"{cell.id}: {line}" for rule in rules for line in rule(cell)]
    return found


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _prose(cell: NotebookNode) -> str:
    """The markdown without fenced code, whose `#` lines are no headings."""
    return FENCED.sub("", cell.source) if cell.cell_type == "markdown" else ""


def _shape(notebook):
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if ["setup" in tags(cell) for cell in code] != [True] + [False] * (len(code) - 1):
        yield "the first code cell, and no other, must be tagged setup"
    if "widgets" in notebook.metadata:
        yield "widget state is stored in the metadata"


def _headings(notebook):
    headings = [
        (len(hashes), text.strip(), cell.id)
        for cell in notebook.cells
        for hashes, text in HEADING.findall(_prose(cell))
    ]
    levels = [level for level, _, _ in headings]
    if levels.count(1) != 1 or levels[0] != 1 or headings[0][2] != notebook.cells[0].id:
        yield f"needs one H1, first of all headings and in the first cell; has {levels.count(1)}"
    for (before, _, _), (level, text, cell_id) in zip(headings, headings[1:]):
        if level > before + 1:
            yield f"{cell_id}: heading '{text}' jumps from level {before} to {level}"


def _exercises(notebook):
    """Each exercise runs from its heading to the next heading of the same level or above."""
    exercises, level = [], 0
    for cell in notebook.cells:
        for hashes, text in HEADING.findall(_prose(cell)):
            if text.startswith("Exercise "):
                level = len(hashes)
                exercises.append({"heading": text, "id": cell.id, "hint": False, "check": False})
            elif len(hashes) <= level:
                level = 0
        if level and cell.cell_type == "markdown":
            exercises[-1]["hint"] |= "<details>" in cell.source
        elif level:
            exercises[-1]["check"] |= bool(CHECK_CALL.search(cell.source))
    if len(exercises) < MIN_EXERCISES:
        yield f"{len(exercises)} exercises, at least {MIN_EXERCISES} are wanted"
    for number, exercise in enumerate(exercises, start=1):
        match = EXERCISE.fullmatch(exercise["heading"].strip())
        if not match or int(match[1]) != number:
            yield (
                f"{exercise['id']}: '{exercise['heading']}' should read "
                f"'Exercise {number} (easy|medium|hard, M minutes): title'"
            )
        for part, what in (("hint", "a <details> hint"), ("check", "a check.name(…) call")):
            if not exercise[part]:
                yield f"{exercise['id']}: exercise {number} lacks {what}"


def _any_cell(cell):
    if not cell.source.strip():
        yield "empty cell"
    if found := MACHINE.search(cell.source):
        yield f"machine path or package host in the source: {found[0]}"


def _code(cell):
    if (lines := len(cell.source.splitlines())) > MAX_LINES:
        yield f"{lines} lines of code, at most {MAX_LINES}"
    if found := NBVAL_COMMENT.search(cell.source):
        yield f"comment {found[1]} steers nbval; use a tag"


def _tags(cell):
    given, asserts = tags(cell), bool(ASSERT.search(cell.source))
    claims = [tag for tag in given if tag.startswith("claim:")]
    for tag in given:
        if not TAG.fullmatch(tag):
            yield f"tag '{tag}' is not one of the course's"
    if MEASURED in given and not any(tag.startswith("reason: ") for tag in given):
        yield f"{MEASURED} without a 'reason: …' tag"
    if MEASURED in given and not asserts:
        yield f"{MEASURED} without an assert: nothing is tested"
    if claims and not asserts:
        yield f"{', '.join(claims)} without an assert"
    if claims and RAISES in given:
        yield f"{', '.join(claims)} in a cell that stops at an exception"


def _outputs(cell):
    raised = False
    for output in cell.outputs:
        data = output.get("data", {})
        words = "".join(output.get("text", "")) or "\n".join(
            str(data[kind]) for kind in data if not kind.startswith("image/")
        )
        if output.output_type == "stream" and output.name == "stderr":
            yield f"output on stderr: {words.strip()[:80]}"
        if output.output_type == "error":
            raised = True
            words = "\n".join([output.ename, output.evalue, *output.traceback])
            if RAISES not in tags(cell):
                yield f"{output.ename}: {output.evalue}"
        if "\r" in words:
            yield "a progress bar in the output"
        if found := MACHINE.search(words):
            yield f"machine path or package host in the output: {found[0]}"
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
