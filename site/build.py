"""The web edition: build/site from the executed notebooks, the ledger, records and docstrings.

    make site

Nothing is executed and no other host is asked, now or by a reader. The pages are written into
build/pages, and Sphinx makes build/site of them.
"""

import html
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from d2lres.records import recorded

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGES, OUT = ROOT / "build/pages", ROOT / "build/site"
NOTEBOOKS = ROOT / "notebooks"
BUILD = runpy.run_path(str(NOTEBOOKS / "build.py"))
CLAIMS = json.loads((ROOT / "assets/claims.json").read_text(encoding="utf-8"))
VERDICTS = {"holds when": "condition", "holds": "holds", "not": "open", "false": "false"}
PARTS = {
    "N": "What the notes say",
    "F": "What courses and libraries say of ResNets",
    "T": "What is said of transfer",
}
MODULES = {
    "d2lres.blocks": "Blocks",
    "d2lres.networks": "Networks",
    "d2lres.data": "Images",
    "d2lres.training": "Training",
    "d2lres.history": "What a training leaves",
    "d2lres.checkpoints": "Checkpoints",
    "d2lres.speed": "Speed",
    "d2lres.probes": "Probes",
    "d2lres.clinic": "The clinic",
    "d2lres.figures": "Figures",
    "d2lres.references": "References",
    "d2lres.records": "Records and the ledger",
}
# Words in bold that introduce no term.
PLAIN = re.compile(
    r"Predict|You can afterwards|What you|Minutes|.*[.:?]$|[NFT]\d+|[\d(]", re.DOTALL
)
# Which picture moves, and the words of the cell after which it stands.
MOVING = {
    "00_start_here": ("race", 'race = {\n    "plain-44"'),
    "04_gradient_flow": ("profile", "figures.interactive("),
    "07_the_family": ("line", "figures.interactive("),
}


def verdict_class(verdict: str) -> str:
    return next(name for start, name in VERDICTS.items() if verdict.startswith(start))


def markdown(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def chapter(source: Path, claims: dict[str, list[str]], terms: dict[str, tuple]) -> NotebookNode:
    """The page of a chapter: its notebook with folded solutions, links to the ledger and anchors.

    claims: the ids that have an anchor already, by chapter; terms: {term: (chapter, sentence)}.
    Both grow.
    """
    name = source.stem
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", nbformat.NO_CONVERT)
    answers = solutions(name)
    first, *rest, _ = notebook.cells
    title, _, text = first.source.split("\n\n", 2)
    cells = [markdown(f"{title}\n\n{bar(source)}\n\n{text}")]
    moving, mark = MOVING.get(name, ("", "\0"))
    for cell in rest:
        tags = cell.metadata.get("tags", [])
        if "setup" in tags:
            continue
        if cell.cell_type == "markdown":
            cell.source = with_terms(cell.source, name, terms)
            cells.append(cell)
            continue
        ids = [tag.partition(":")[2] for tag in tags if tag.startswith("claim:")]
        mine = claims.setdefault(name, [])
        new = [claim for claim in ids if claim not in mine]
        mine += new
        if new:
            anchors = "".join(f'<span id="cell-{claim.lower()}"></span>' for claim in new)
            cells.append(markdown(anchors))
        cells += with_alt(cell)
        if ids:
            links = ", ".join(f'<a href="ledger.html#{c.lower()}">{c}</a>' for c in ids)
            cells.append(markdown(f'<p class="settles">Evidence for {links} in the ledger.</p>'))
        for check, answer in answers.items():
            if f"check.{check}(" in cell.source:
                cells.append(markdown(folded("Solution", answer)))
        if mark in cell.source:
            cells.append(markdown(figure(moving)))
    notebook.cells = cells
    return notebook


def bar(source: Path) -> str:
    """The line under a chapter's title: minutes, and where else it can be opened."""
    name, (_, _, minutes) = source.stem, BUILD["facts"](source)
    github = BUILD["project"]()["repository"].partition("github.com/")[2]
    binder = f"https://mybinder.org/v2/gh/{github}/main?labpath=notebooks/{name}.ipynb"
    links = {"Colab": BUILD["colab"](name), "Binder": binder, "Download": f"notebooks/{name}.ipynb"}
    told = "".join(f'<a href="{address}">{word}</a>' for word, address in links.items())
    return f'<p class="bar"><span>{minutes} minutes</span>{told}</p>'


def solutions(name: str) -> dict[str, str]:
    """The solved cell of each exercise, by the name of its check."""
    notebook = nbformat.read(NOTEBOOKS / f"solutions/{name}.ipynb", nbformat.NO_CONVERT)
    found = {}
    for cell in notebook.cells:
        for check in re.findall(r"^check\.(\w+)\(", cell.source, re.MULTILINE):
            if cell.cell_type == "code":
                found[check] = cell.source
    return found


def folded(summary: str, code: str) -> str:
    """Python behind a line that opens it; without a script."""
    shown = highlight(code, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    shown = re.sub(r"\n{2,}", lambda lines: "\n&#8203;" * (len(lines[0]) - 1) + "\n", shown)
    block = f'<div class="highlight"><pre tabindex="0">{shown}</pre></div>'
    return f'<details class="solution"><summary>{summary}</summary>{block}</details>'


def with_alt(cell: NotebookNode) -> list[NotebookNode]:
    """The cell, with the description of its picture where myst-nb looks for it; it knows one a cell,
    so that further pictures follow in cells of their own."""
    cells, outputs = [cell], cell.get("outputs", [])
    pictures = [i for i, it in enumerate(outputs) if "image/png" in it.get("data", {})]
    for place in reversed(pictures[1:]):
        more = nbformat.v4.new_code_cell("", metadata={"tags": ["remove-input"]})
        more.outputs, cell.outputs = cell.outputs[place:], cell.outputs[:place]
        cells.insert(1, more)
    for one in cells:
        for output in one.get("outputs", []):
            if text := output.get("data", {}).get("text/markdown"):  # myst-nb leaves links alone
                output.data["text/markdown"] = re.sub(r"\]\((\w+)\.ipynb", r"](\1.html", text)
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                one.metadata["mystnb"] = {"image": {"alt": alt.replace("\n", " ")}}
    return cells


def with_terms(text: str, name: str, terms: dict[str, tuple[str, str]]) -> str:
    """The text with an anchor before each term that it introduces."""

    def introduce(match: re.Match) -> str:
        term = match[1]
        if PLAIN.match(term) or term.lower() in terms or len(term) > 40:
            return match[0]
        start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        sentence = text[start : end if end > 0 else None]
        if len(sentence) < 45 and " this" in sentence:  # which the sentence before says
            sentence = text[:start].splitlines()[-1] + " " + sentence
        sentence = re.sub(r"<[^>]+>", "", sentence).lstrip("- #")
        terms[term.lower()] = term, name, sentence
        return f'<span id="{anchor(term)}"></span>{match[0]}'

    return re.sub(r"\*\*([^*\n]+)\*\*", introduce, text)


def anchor(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term.lower()).strip("-")


def figure(name: str) -> str:
    """A picture that moves: a frame for the script of the page, with the curves beside it."""
    data = html.escape(json.dumps(FIGURES[name](), separators=(",", ":")), quote=True)
    note = "With a script, the curves of the record can be moved here."
    return f'<div class="moving" data-figure="{data}"><noscript><p>{note}</p></noscript></div>'


def short(values: list) -> list:
    return [value if value is None else float(f"{value:.4g}") for value in values]


def race() -> dict:
    """Training loss of the record of chapter 01, epoch by epoch."""
    curves = []
    for run in recorded("degradation")["runs"]:
        if run["depth"] == 56:
            shown = f"{run['kind']}, 56 layers"
            where = {"seed": run["seed"]}
            curves.append(
                dict(name=shown, kind=run["kind"], where=where, y=short(run["history"]["loss"]))
            )
    return dict(
        title="The race on the record: 56 layers, 40 epochs, training loss",
        x="epoch",
        y="training loss",
        frames="epoch",
        choices={"seed": [0, 1, 2, 3, 4]},
        start={"seed": 0},
        curves=curves,
    )


def profile() -> dict:
    """Gradient norm of each layer, from the record `gradients`."""
    curves = []
    for run in recorded("gradients")["runs"]:
        for batch_norm, part in (("with BN", "with_bn"), ("without BN", "without_bn")):
            where = {"depth": run["depth"], "BN": batch_norm, "shortcut": run["kind"]}
            values = short(run[part]["all"])
            name = f"{run['kind']}, {run['depth']} layers, {batch_norm}"
            if run["seed"] == 0:
                curves.append(dict(name=name, kind=run["kind"], where=where, y=values))
    return dict(
        title="Gradient norm by layer at initialisation, seed 0",
        x="layer, counted from the image",
        y="gradient norm",
        log=True,
        limits=[1e-10, 1e10],
        choices={
            "depth": [8, 20, 56, 110],
            "BN": ["with BN", "without BN"],
            "shortcut": ["plain", "residual"],
        },
        start={"depth": 110, "BN": "with BN", "shortcut": "plain"},
        curves=curves,
    )


def line() -> dict:
    """Rows of the recorded loss surface: the loss along one direction, at steps along another."""
    curves, steps = [], recorded("surface")["config"]["points"]
    side = [round(-1 + 2 * i / (steps - 1), 2) for i in range(steps)]
    for run in recorded("surface")["runs"]:
        if run["seed"] == 0 and run["depth"] == 20:
            for i, place in enumerate(side):
                for mode, told in (("stored", "stored statistics"), ("batch", "the batch's own")):
                    values = short(run["planes"][0][mode][i])
                    where = {"network": run["kind"], "second direction": place}
                    kind = "plain" if mode == "stored" else "residual"
                    curves.append(dict(name=told, kind=kind, where=where, y=values))
    return dict(
        title="Training loss along a direction, networks of 20 layers, seed 0",
        x="steps along the direction",
        xs=side,
        y="training loss",
        log=True,
        choices={"network": ["residual", "plain"], "second direction": side},
        start={"network": "residual", "second direction": 0.0},
        curves=curves,
    )


FIGURES = {"race": race, "profile": profile, "line": line}


def ledger(claims: dict[str, list[str]]) -> str:
    """The ledger as a page: a section for each claim, which the script can filter."""
    titles = {source.stem: BUILD["facts"](source)[0] for source in BUILD["sources"](NOTEBOOKS)}
    text = [
        "# The ledger",
        "",
        f"{len(CLAIMS)} claims, each with its verdict, its condition and the cell that settles it.",
        "A cell that measures something ends with an `assert`: if a claim did not hold there, the "
        "course would not build.",
        "",
        '<div class="filters" id="filters"></div>',
        "",
    ]
    for part, heading in PARTS.items():
        text += [f"## {heading}", ""]
        for row in (row for row in CLAIMS if row["id"][0] == part):
            name, chapter = row["id"].lower(), row["chapter"]
            cell = f"#cell-{name}" if row["id"] in claims.get(chapter, []) else ""
            where = f"{chapter}.html{cell}"
            kind = f"claim {verdict_class(row['verdict'])} in-{chapter}"
            said = f" ({row['said']})" if "said" in row else ""
            text += [
                f":::{{container}} {kind}",
                f'<span id="{name}"></span>',
                f'**<a href="#{name}">{row["id"]}</a>** {row["claim"]}{said}',
                "",
                f'<span class="verdict">{html.escape(row["verdict"])}</span>',
                "",
                row["evidence"],
                f'<a class="where" href="{where}">Chapter {chapter[:2]}, {titles[chapter]}</a>',
                ":::",
                "",
            ]
    return "\n".join(text)


def glossary(terms: dict[str, tuple[str, str, str]]) -> str:
    text = ["# Glossary", "", "Each term in the sentence that introduces it.", ""]
    for _, (term, chapter, sentence) in sorted(terms.items()):
        link = f'<a href="{chapter}.html#{anchor(term)}">chapter {chapter[:2]}</a>'
        text += [f"- {sentence} ({link})"]
    return "\n".join([*text, ""])


def front() -> str:
    """The README down to its table of chapters, as the first page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, rest = readme.partition("## Quick start")
    start, _, rest = rest.partition("## Chapters")
    table = BUILD["chapters"](NOTEBOOKS)
    names = [source.stem for source in BUILD["sources"](NOTEBOOKS)]
    tree = "\n".join(["```{toctree}", ":hidden:", "", *names, "ledger", "glossary", "api", "```"])
    return f"{head}\n## Chapters\n\n{table}\n\n## Run it\n{start}\n{tree}\n"


def api() -> str:
    text = ["# The helper module", "", "What chapters and readers import, with its source.", ""]
    for module, title in MODULES.items():
        text += [f"## {title}", "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
    return "\n".join(text)


def write() -> None:
    """All pages into build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "assets/pictures", PAGES / "assets/pictures")
    claims: dict[str, list[str]] = {}
    terms: dict[str, tuple] = {}
    for source in BUILD["sources"](NOTEBOOKS):
        nbformat.write(chapter(source, claims, terms), PAGES / f"{source.stem}.ipynb")
    pages = dict(index=front(), ledger=ledger(claims), glossary=glossary(terms), api=api())
    for name, text in pages.items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")


def main() -> int:
    start = time.perf_counter()
    write()
    shutil.rmtree(OUT, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(HERE)]
    command += ["-d", str(ROOT / "build/doctrees"), str(PAGES), str(OUT)]
    if code := subprocess.run(command).returncode:
        return code
    for path in OUT.rglob("*.map"):  # of the theme's scripts, for those who debug them
        path.unlink()
    shutil.copytree(
        NOTEBOOKS,
        OUT / "notebooks",
        ignore=lambda folder, names: [
            name for name in names if not re.match(r"\d\d_.*\.ipynb$", name)
        ],
    )
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    took = time.perf_counter() - start
    print(f"{(OUT / 'index.html').relative_to(ROOT)}: {size / 1e6:.1f} MB in {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
