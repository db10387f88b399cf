"""Builds the notebooks: `src/NN_name.py` becomes the reader's notebook and its solutions.

python notebooks/build.py            every chapter, executed
python notebooks/build.py 1 2        these chapters
python notebooks/build.py --text     takes over prose and set-up, where the code is unchanged
python notebooks/build.py --check    fails when a file is not what the sources give

A build also brings the tables of chapters and the links of the other chapters up to date.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where jupytext brings tomli
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
TABLE, TABLE_END = "<!-- chapters -->", "<!-- end of chapters -->"
UNKNOWN = re.compile(r"NameError: name '(\w+)' is not defined")
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# The one set-up cell. In a clone it only imports; in Colab it adds the course and replaces nothing.
SETUP = """\
# @title Set-up: run this cell first
from importlib import invalidate_caches, util
found = util.find_spec("d2lres")
if not (found and found.origin):  # opened alone, as in Colab: install the course and nothing else
    import subprocess, sys
    course = ["d2l==0.17.0", "d2lres @ git+{repository}@v{version}"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *course]
    if subprocess.run(pip, capture_output=True).returncode:
        raise RuntimeError("d2lres could not be installed: go online and run this cell again, "
                           "or follow {repository}.")
    invalidate_caches()
import d2lres
if d2lres.__version__ not in ("{version}", "unknown"):
    raise RuntimeError("This is a chapter of d2lres {version}, and another one is installed: "
                       "pip uninstall d2lres, restart the kernel and run this cell again.")
d2lres.explain_missing_names()  # for cells that are run out of order"""
# Folded, in JupyterLab and in Colab: what a chapter begins with is its question.
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}


class BuildError(Exception):
    """A source that cannot be built; the message names the chapter, the cell and the reason."""


@cache
def project() -> dict[str, str]:
    """Address of the repository and version of the course, from pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"repository": table["urls"]["Repository"].rstrip("/"), "version": table["version"]}


def solve(code: str, keep: bool) -> str:
    """`code` with its answers kept (without the markers), or replaced by the stub.

    A one-line answer `name = value` leaves `name = ...`, so that the name exists.
    """

    def replace(match: re.Match) -> str:
        indent, answer = match.groups()
        target = re.fullmatch(r" *([\w.]+(?:: [^=\n]+)? = ).*", answer)
        return answer if keep else indent + (target[1] if target else "") + "...  # your code here"

    begin, end = r"^( *)### BEGIN SOLUTION *\n", r"\n *### END SOLUTION *$"
    code = re.sub(f"{begin}(.*?){end}", replace, code, flags=re.DOTALL | re.MULTILINE)
    if re.search("### (BEGIN|END) SOLUTION", code):
        raise BuildError("BEGIN SOLUTION and END SOLUTION do not pair up")
    return code


def facts(source: Path) -> list[str]:
    """Title, promise and minutes of a chapter; they stand in its first cell and nowhere else."""
    first = source.read_text(encoding="utf-8").partition("\n# %%")[0]
    title, promise = r"\A# %% \[markdown\]\n# # (.+)", r"^# \*\*You can afterwards\*\* (.+)\.$"
    forms = title, promise, r"\*\*Minutes\*\*: (\d+)"
    found = [match[1] for form in forms if (match := re.search(form, first, re.MULTILINE))]
    if len(found) < 3:
        said = "'# Title', '**You can afterwards** do this.' and '**Minutes**: 75'"
        raise BuildError(f"{source.stem}: its first cell needs the lines {said}")
    return found


def heading(source: Path) -> str:
    """'Chapter 1. Degradation'; chapter 00 has no number."""
    number, title = int(source.stem[:2]), facts(source)[0]
    return f"Chapter {number}. {title}" if number else title


def sources(out: Path) -> list[Path]:
    return sorted((out / "src").glob("[0-9][0-9]_*.py"))


def colab(name: str) -> str:
    github = project()["repository"].replace("//github.com/", "//colab.research.google.com/github/")
    return f"{github}/blob/main/notebooks/{name}.ipynb"


def chapters(out: Path, folder: str = "", badge: str = "") -> str:
    """The table of chapters, with links into `folder` and `badge` as the name of Colab's column."""
    rows = [["chapter", "you can afterwards", "minutes", badge], ["---"] * 4]
    for source in sources(out):
        title, promise, minutes = facts(source)
        link = f"[{source.stem[:2]} {title}]({folder}{source.stem}.ipynb)"
        rows.append([link, promise, minutes, f"[![{badge}]({BADGE})]({colab(source.stem)})"])
    return "\n".join(f"| {' | '.join(row if badge else row[:3])} |" for row in rows)


def readme(out: Path) -> str:
    """The README with the table of chapters that the sources give, and the hours they take."""
    text = (out.parent / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"{TABLE}\n")
    _, end, after = rest.partition(TABLE_END)
    if not end:
        raise BuildError(f"README.md: needs the lines {TABLE} and {TABLE_END}")
    table = chapters(out, "notebooks/", "Open in Colab")
    hours = sum(int(facts(source)[2]) for source in sources(out)) / 60
    total = f"In all about {hours:.0f} hours, exercises included."
    return f"{before}{begin}{table}\n\n{total}\n{end}{after}"


def links(source: Path, solution: bool) -> tuple[str, str]:
    """The line under the title (absolute, for Colab) and the last cell (relative, for Jupyter)."""
    stem, every = source.stem, sources(source.parent.parent)
    if solution:
        header = f"[Open in Colab]({colab(f'solutions/{stem}')}) · [The chapter]({colab(stem)})"
        return header, f"[The chapter](../{stem}.ipynb)"
    place = every.index(source)
    near = [("Previous", chapter) for chapter in every[:place][-1:]]
    near += [("Next", chapter) for chapter in every[place + 1 :][:1]]
    header = [f"[Open in Colab]({colab(stem)})"]
    header += [f"[{word} in Colab]({colab(chapter.stem)})" for word, chapter in near]
    footer = [f"{word}: [{heading(chapter)}]({chapter.stem}.ipynb)" for word, chapter in near]
    return " · ".join(header), " · ".join([*footer, f"[Solutions](solutions/{stem}.ipynb)"])


def is_setup(cell: NotebookNode) -> bool:
    return "setup" in cell.metadata.get("tags", [])


def exercises(cells: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The cells of the solutions: set-up, those tagged `needed`, and the section 'Exercises'."""
    inside = False
    for cell in cells:
        wanted = inside or {"setup", "needed"} & set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            wanted = ""
            for part in re.split(r"^(?=###? )", cell.source, flags=re.MULTILINE):
                if part.startswith("## "):
                    inside = part.startswith("## Exercises")
                    part = "## Exercises\n\n"  # without the advice on how to answer
                wanted += part * inside
            cell.source = wanted.strip()
        if wanted:
            yield cell


def make(source: Path, solution: bool = False) -> NotebookNode:
    """The notebook of one source, not executed; with `solution` the exercises alone, answered."""
    header, footer = links(source, solution)
    table = chapters(source.parent.parent)
    parsed = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells
    parsed.append(nbformat.v4.new_markdown_cell(footer))
    for number, cell in enumerate(parsed):
        cell.id = f"{source.stem.replace('_', '-')}-{number:02d}"
        try:
            cell.source = solve(cell.source, keep=solution).replace(TABLE, table)
        except BuildError as error:
            raise BuildError(f"{source.stem}, cell {cell.id}: {error}") from None
        if is_setup(cell):
            cell.source = SETUP.format(**project())
    first, *rest, last = parsed
    title = f"# {heading(source)}" + ": solutions" * solution
    text = "" if solution else first.source.partition("\n")[2].strip()
    first.source = f"{title}\n\n{header}\n\n{text}".rstrip()
    cells = []
    for cell in [first, *(exercises(rest) if solution else rest), last]:
        new, tags = getattr(nbformat.v4, f"new_{cell.cell_type}_cell"), cell.metadata.get("tags")
        metadata = ({"tags": tags} if tags else {}) | (FOLDED if is_setup(cell) else {})
        cells.append(new(cell.source, id=cell.id, metadata=metadata))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)


def execute(notebook: NotebookNode, path: Path, name: str) -> str:
    """Fills in the outputs, up to the first cell that fails; returns what it took: '41 s, 812 MB'."""
    # A kernel under pytest leaves C-level stderr alone, so the build asks for the same.
    environment = {**os.environ, "PYTEST_CURRENT_TEST": "build", "D2LRES_PROGRESS": "0"}
    paths = filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(paths)  # this checkout's d2lres, no other
    environment.pop("MPLBACKEND", None)
    client = NotebookClient(
        notebook,
        timeout=300,  # seconds a cell
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.perf_counter()
    client.reset_execution_trackers()
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells):
            where = f"{name}, cell {cell.id}"
            try:
                client.execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
            except CellExecutionError as error:
                raise BuildError(f"{where}: {error.ename}: {error.evalue}") from None
            except Exception as error:  # time-out, dead kernel
                raise BuildError(f"{where}: {error}") from error
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    output.traceback = own_frames(output.traceback)
                elif unknown := UNKNOWN.search(output.get("text", "")):  # a check caught it
                    raise BuildError(f"{where}: {unknown[0]}")
        took = f"{time.perf_counter() - start:.0f} s{peak_memory(client)}"
    notebook.metadata = nbformat.from_dict(METADATA)  # nbclient adds the Python version
    return took


def own_frames(traceback: list[str]) -> list[str]:
    """The traceback without colours, without other libraries' frames and without machine paths."""
    frames = [re.sub(r"\x1b\[[\d;]*m", "", frame) for frame in traceback]
    frames = [re.sub(r"^File \S*[/\\](?=d2lres[/\\][\w/\\]+\.py)", "File ", f) for f in frames]
    return [frame for frame in frames if not re.match(r"File (?!d2lres[/\\])", frame)]


def peak_memory(client: NotebookClient) -> str:
    """', 812 MB': the kernel's peak resident memory; '' on Windows, which has no `resource`."""
    query = "__import__('resource').getrusage(0).ru_maxrss"
    message = client.kc.execute("", silent=True, user_expressions={"peak": query})
    peak = client.wait_for_reply(message)["content"]["user_expressions"]["peak"]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return f", {int(peak['data']['text/plain']) // unit} MB" if peak["status"] == "ok" else ""


def keep_outputs(notebook: NotebookNode, path: Path, name: str) -> str:
    """Fills in the outputs that `path` has, unless they belong to other code.

    The set-up cell may be another one: nothing that a chapter shows comes from it.
    """
    built = nbformat.read(path, nbformat.NO_CONVERT).cells if path.exists() else []
    old, new = ([c for c in cells if c.cell_type == "code"] for cells in (built, notebook.cells))
    if [*map(shows, old)] != [*map(shows, new)]:
        raise BuildError(
            f"{name}: not built from this code: make notebooks CHAPTER={path.stem[:2]}"
        )
    for was, now in zip(old, new):
        now.outputs, now.execution_count = was.outputs, was.execution_count
    return "text"


def shows(cell: NotebookNode) -> tuple:
    """What the outputs of a code cell depend on."""
    return () if is_setup(cell) else (cell.source, cell.metadata)


def notebooks(source: Path, text: bool = False) -> tuple[dict[Path, str], list[str]]:
    """Both notebooks of `source` by path, and what each took; `text` keeps the outputs there are."""
    contents, took = {}, []
    for folder in ("", "solutions/"):
        name = f"{folder}{source.stem}.ipynb"
        path = source.parent.parent / name
        notebook = make(source, solution=bool(folder))
        path.parent.mkdir(exist_ok=True)
        try:
            took.append((keep_outputs if text else execute)(notebook, path, name))
        except BuildError as error:
            raise BuildError(f"{error}{to_tag(source, str(error)) if folder else ''}") from error
        contents[path] = nbformat.writes(notebook, indent=1) + "\n"
    return contents, took


def to_tag(source: Path, message: str) -> str:
    """Which cell to tag `needed`, when `message` says that the solutions lack a name."""
    if unknown := UNKNOWN.search(message):
        for cell in make(source).cells:  # the first to use a name must be the one that makes it
            if cell.cell_type == "code" and re.search(rf"\b{unknown[1]}\b", cell.source):
                return f"; tag cell {cell.id} needed, or make the name in the exercise"
    return ""


def outdated(out: Path, chosen: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """Files whose text alone is not what the sources give, as it should be, and other faults."""
    contents, faults = {out.parent / "README.md": readme(out)}, []
    for source in chosen:
        try:
            contents |= notebooks(source, text=True)[0]
        except BuildError as error:
            faults.append(str(error))
    stems = {source.stem for source in sources(out)}
    built = [*out.glob("*.ipynb"), *out.glob("solutions/*.ipynb")]
    orphans = {path.relative_to(out).as_posix() for path in built if path.stem not in stems}
    stale = {p: text for p, text in contents.items() if text != p.read_text(encoding="utf-8")}
    return stale, faults + [f"{name}: no source" for name in sorted(orphans)]


def write(contents: dict[Path, str]) -> None:
    for path, content in contents.items():
        scratch = path.with_suffix(".tmp")
        scratch.write_text(content, encoding="utf-8", newline="\n")
        os.replace(scratch, path)  # a reader never meets half a notebook


def main(arguments: list[str] | None = None, out: Path = HERE) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", type=int, help="numbers; all by default")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare, write nothing")
    mode.add_argument("--text", action="store_true", help="execute nothing, keep the outputs")
    options = parser.parse_args(arguments)
    executing = not (options.check or options.text)
    every = {int(source.stem[:2]): source for source in sources(out)}
    if unknown := set(options.chapters) - set(every):
        parser.error(f"there are chapters {[*every]}, and not {[*unknown]}")
    chosen = [every[number] for number in options.chapters or every]
    try:
        for source in chosen if executing else []:
            contents, (reader, solutions) = notebooks(source)
            write(contents)
            print(f"{source.stem}: {reader}; solutions {solutions}", flush=True)
        stale, faults = outdated(out, list(every.values()) if executing else chosen)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if not options.check:
        write(stale)
    said = "not what the sources give" if options.check else "brought up to date"
    lines = [f"{path.relative_to(out.parent).as_posix()}: {said}" for path in stale] + faults
    print("\n".join(lines) or "notebooks, README and sources agree")
    return int(not executing and bool(faults or (options.check and stale)))


if __name__ == "__main__":
    sys.exit(main())
