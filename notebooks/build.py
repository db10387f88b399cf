"""Builds the notebooks: `src/NN_name.py` becomes the reader's notebook and its solution.

python notebooks/build.py                  every chapter, executed
python notebooks/build.py 1 02_res         these chapters, by number or by the start of the name
python notebooks/build.py --text           takes over prose alone, where the code is unchanged
python notebooks/build.py --check          fail when a notebook is not what its source gives
python notebooks/build.py --check --run    execute again, too, and compare the outputs
"""

import argparse
import os
import re
import sys
import time
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
CELL_TIMEOUT = 300  # seconds
STUB = "...  # your code here"
BADGE = "[Open in Colab]"  # as text: a picture of it would be broken without a network
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# The one set-up cell. In a clone it only imports; in Colab it adds the course and replaces nothing.
SETUP = """\
try:
    import d2lres
except ModuleNotFoundError:  # opened alone, as in Colab: install the course and nothing else
    import importlib, subprocess, sys
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "d2l==0.17.0"]
    courses = ["d2lres=={version}", "git+{repository}@v{version}"]
    if not any(subprocess.run([*pip, it], capture_output=True).returncode == 0 for it in courses):
        raise RuntimeError("d2lres could not be installed: go online and run this cell again, "
                           "or follow {repository}.") from None
    importlib.invalidate_caches()
    import d2lres
d2lres.explain_missing_names()  # for cells that are run out of order"""


class BuildError(Exception):
    """A source that cannot be built; the message names the chapter, the cell and the reason."""


@cache
def project() -> tuple[str, str]:
    """Address of the repository and version of the course, from pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table["urls"]["Repository"].rstrip("/"), table["version"]


def setup_code() -> str:
    repository, version = project()
    return SETUP.format(repository=repository, version=version)


def solve(code: str, keep: bool) -> str:
    """`code` with its answers kept (without the markers), or replaced by the stub.

    A one-line answer `name = value` leaves `name = ...`, so that the name exists.
    """

    def replace(match: re.Match) -> str:
        indent, answer = match.groups()
        target = re.fullmatch(r" *([\w.]+(?:: [^=\n]+)? = ).*", answer)
        return answer if keep else indent + (target[1] if target else "") + STUB

    begin, end = r"^( *)### BEGIN SOLUTION *\n", r"\n *### END SOLUTION *$"
    code = re.sub(f"{begin}(.*?){end}", replace, code, flags=re.DOTALL | re.MULTILINE)
    if re.search("### (BEGIN|END) SOLUTION", code):
        raise BuildError("BEGIN SOLUTION and END SOLUTION do not pair up")
    return code


def title(source: Path) -> str:
    """The chapter's H1, the first line of its first cell."""
    match = re.match(r"# %% \[markdown\]\n# # (.+)", source.read_text(encoding="utf-8"))
    if not match:
        raise BuildError(f"{source.stem}: must start with '# %% [markdown]' and '# # Title'")
    return match[1].strip()


def links(source: Path, folder: str) -> tuple[str, str]:
    """The line under the title (absolute, for Colab) and the last cell (relative, for Jupyter)."""
    chapters, name = sorted(source.parent.glob("*.py")), source.name
    near = {
        "Previous": [c for c in chapters if c.name < name][-1:],
        "Next": [c for c in chapters if c.name > name][:1],
    }
    near = [(word, chapter) for word, found in near.items() for chapter in found]

    def colab(chapter: Path) -> str:
        github = project()[0].replace("//github.com/", "//colab.research.google.com/github/")
        return f"({github}/blob/main/notebooks/{folder}{chapter.stem}.ipynb)"

    header = [BADGE + colab(source)] + [f"[{word} in Colab]{colab(c)}" for word, c in near]
    other = f"../{source.stem}" if folder else f"solutions/{source.stem}"
    footer = [f"{word}: [{title(c)}]({c.stem}.ipynb)" for word, c in near]
    footer += [f"[{'Without the answers' if folder else 'Solutions'}]({other}.ipynb)"]
    return " · ".join(header), " · ".join(footer)


def make(source: Path, solution: bool = False) -> NotebookNode:
    """The notebook of one source, not executed; with the answers when `solution`."""
    title(source)  # complains when the first cell is something else
    header, footer = links(source, "solutions/" if solution else "")
    parsed = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells
    parsed.append(nbformat.v4.new_markdown_cell(footer))
    cells = []
    for number, cell in enumerate(parsed):
        cell_id, tags = f"{source.stem.replace('_', '-')}-{number:02d}", cell.metadata.get("tags")
        try:
            text = solve(cell.source, keep=solution)
        except BuildError as error:
            raise BuildError(f"{source.stem}, cell {cell_id}: {error}") from None
        if number == 0:
            heading, _, rest = text.partition("\n")
            text = f"{heading}\n\n{header}\n\n{rest.strip()}".rstrip()
        if "setup" in (tags or []):
            text = setup_code()
        new = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        cells.append(new(text, id=cell_id, metadata={"tags": tags} if tags else {}))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)


def execute(notebook: NotebookNode, folder: Path, name: str) -> str:
    """Fills in the outputs of `notebook`, run in `folder`; returns what it took: '41 s, 812 MB'.

    Raises BuildError at the first cell that fails.
    """
    # A kernel under pytest leaves C-level stderr alone, so the build asks for the same.
    environment = {**os.environ, "PYTEST_CURRENT_TEST": "build", "D2LRES_PROGRESS": "0"}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)  # this checkout's d2lres, no other
    environment.pop("MPLBACKEND", None)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    start = time.perf_counter()
    client.reset_execution_trackers()
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells):
            try:
                client.execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
            except CellExecutionError as error:
                raise BuildError(f"{name}, cell {cell.id}: {error.ename}: {error.evalue}") from None
            except Exception as error:  # time-out, dead kernel
                raise BuildError(f"{name}, cell {cell.id}: {error}") from error
            raised = [output for output in cell.get("outputs", []) if output.output_type == "error"]
            if "raises-exception" in cell.metadata.get("tags", []) and not raised:
                raise BuildError(f"{name}, cell {cell.id}: tagged raises-exception, raised nothing")
            for output in raised:
                output.traceback = own_frames(output.traceback)
        took = f"{time.perf_counter() - start:.0f} s{peak_memory(client)}"
    notebook.metadata = nbformat.from_dict(METADATA)  # nbclient adds the Python version
    return took


def keep_outputs(notebook: NotebookNode, path: Path, name: str) -> str:
    """Fills in the outputs that `path` has, as long as its code cells are those of `notebook`.

    Raises BuildError when they are not, since then the outputs belong to other code.
    """
    if not path.exists():
        raise BuildError(f"{name}: not built yet, so build it without --text")
    old, new = (
        [cell for cell in cells if cell.cell_type == "code"]
        for cells in (nbformat.read(path, nbformat.NO_CONVERT).cells, notebook.cells)
    )
    if [(cell.source, cell.metadata) for cell in old] != [(c.source, c.metadata) for c in new]:
        raise BuildError(f"{name}: the code has changed, too, so build it without --text")
    for was, now in zip(old, new):
        now.outputs, now.execution_count = was.outputs, was.execution_count
    return "text"


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


def targets(source: Path, out: Path) -> dict[str, Path]:
    """The two notebooks of one source: the reader's and the solution."""
    names = [f"{source.stem}.ipynb", f"solutions/{source.stem}.ipynb"]
    return {name: out / name for name in names}


def build(source: Path, out: Path = HERE, text: bool = False) -> list[str]:
    """Writes both notebooks of `source` below `out`, or neither when a cell fails.

    text: keep the outputs instead of executing.
    """
    built, took = {}, []
    for name, path in targets(source, out).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        notebook = make(source, solution=name.startswith("solutions/"))
        took.append(
            keep_outputs(notebook, path, name) if text else execute(notebook, path.parent, name)
        )
        built[path] = nbformat.writes(notebook, indent=1) + "\n"
    for path, text in built.items():
        scratch = path.with_suffix(".tmp")
        scratch.write_text(text, encoding="utf-8", newline="\n")
        os.replace(scratch, path)  # a reader never meets half a notebook
    return took


def differences(source: Path, out: Path = HERE, run: bool = False) -> list[str]:
    """Where the notebooks below `out` differ from what `source` gives, one line each."""
    found = []
    for name, path in targets(source, out).items():
        if not path.exists():
            found.append(f"{name}: not built")
            continue
        old, new = nbformat.read(path, nbformat.NO_CONVERT), make(source, "solutions/" in name)
        if run:
            execute(new, path.parent, name)
        if (old.metadata, old.nbformat_minor) != (new.metadata, new.nbformat_minor):
            found.append(f"{name}: notebook metadata")
        if len(old.cells) != len(new.cells):
            found.append(f"{name}: {len(old.cells)} cells, the source gives {len(new.cells)}")
        for was, now in zip(old.cells, new.cells):
            parts = [p for p in ("id", "cell_type", "metadata", "source") if was.get(p) != now[p]]
            parts += ["outputs"] if run and compared(was) != compared(now) else []
            found += [f"{name}, cell {now.id}: {', '.join(parts)}"] if parts else []
    return found


def compared(cell: NotebookNode) -> list[tuple]:
    """What a second run must reproduce: no measured outputs, pictures or execution counts."""
    if {"nbval-ignore-output", "raises-exception"} & set(cell.metadata.get("tags", [])):
        return []
    pictures = {"image/png", "image/jpeg"}
    return [
        (
            out.output_type,
            out.get("name"),
            out.get("text"),
            {kind: data for kind, data in out.get("data", {}).items() if kind not in pictures},
        )
        for out in cell.get("outputs", [])
    ]


def orphans(sources: Path, out: Path = HERE) -> list[str]:
    """Notebooks below `out` that have no source."""
    stems = {source.stem for source in sources.glob("*.py")}
    notebooks = sorted([*out.glob("*.ipynb"), *out.glob("solutions/*.ipynb")])
    return [f"{n.relative_to(out).as_posix()}: no source" for n in notebooks if n.stem not in stems]


def select(wanted: list[str], sources: Path) -> list[Path]:
    """The sources asked for, all of them by default. Raises BuildError for one not found."""
    chapters, chosen = sorted(sources.glob("*.py")), set()
    for word in wanted:
        start = f"{int(word):02d}_" if word.isdigit() else word
        found = {chapter for chapter in chapters if chapter.stem.startswith(start)}
        if not found:
            raise BuildError(f"no chapter '{word}' among {[c.stem for c in chapters]}")
        chosen |= found
    return sorted(chosen) if wanted else chapters


def main(arguments: list[str] | None = None, sources: Path = HERE / "src", out: Path = HERE) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers or starts of names; all by default")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--run", action="store_true", help="with --check: execute again, too")
    parser.add_argument("--text", action="store_true", help="execute nothing, keep the outputs")
    options = parser.parse_args(arguments)
    if options.text and options.check:
        parser.error("--text builds and --check does not")
    if options.run and not options.check:
        parser.error("--run goes with --check")
    try:
        chosen = select(options.chapters, sources)
        if options.check:
            found = [] if options.chapters else orphans(sources, out)
            found += [line for source in chosen for line in differences(source, out, options.run)]
            print("\n".join(found) or "notebooks and sources agree")
            return int(bool(found))
        for source in chosen:
            reader, solution = build(source, out, options.text)
            print(f"{source.stem}: {reader}; solution {solution}", flush=True)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
