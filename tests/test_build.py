import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from commands import ROOT
from notebook_rules import code, read, violations
from tiny_chapter import CHECKS, chapter

spec = importlib.util.spec_from_file_location("notebook_build", ROOT / "notebooks" / "build.py")
building = importlib.util.module_from_spec(spec)
spec.loader.exec_module(building)

NAMESPACE = "import types\n\ncheck = types.SimpleNamespace(double=double)\n\n\n"
FIRST = chapter(CHECKS + NAMESPACE, claim="N1")
TOP = "# %% [markdown]\n# # {}\n# **You can afterwards** {}.\n# **Minutes**: {}\n\n"
SECOND = TOP.format("A second chapter", "add", 7) + "# %%\n1 + 1\n"
README = "# Tiny\n<!-- chapters -->\n<!-- end of chapters -->\nThe end.\n"
REPOSITORY, VERSION = building.project().values()
OWNER = REPOSITORY.removeprefix("https://github.com/")
COLAB = f"https://colab.research.google.com/github/{OWNER}/blob/main/notebooks/"


def write(out: Path, name: str, text: str) -> Path:
    (out / "src").mkdir(parents=True, exist_ok=True)
    if not (out.parent / "README.md").exists():
        (out.parent / "README.md").write_text(README, encoding="utf-8")
    source = out / "src" / name
    source.write_text(text, encoding="utf-8")
    return source


@pytest.fixture
def course(tmp_path):
    """The folder `notebooks` of a course with two sources and nothing built."""
    write(tmp_path / "notebooks", "01_tiny.py", FIRST)
    write(tmp_path / "notebooks", "02_second.py", SECOND)
    return tmp_path / "notebooks"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A course of one chapter, executed once for all tests, which only read it."""
    out = tmp_path_factory.mktemp("built") / "notebooks"
    write(out, "01_tiny.py", FIRST)
    assert building.main([], out) == 0
    return out


@pytest.fixture
def built(once, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(once.parent, tmp_path / "copy")) / "notebooks"


# Exercises


@pytest.mark.parametrize(
    "answer, stub",
    [
        ("    y = x + 1\n    return y", "    ...  # your code here"),
        ("    return x == 3", "    ...  # your code here"),
        ("layers = 4 * 4 + 2", "layers = ...  # your code here"),
        ("    self.conv: Conv = Conv(3, 1)", "    self.conv: Conv = ...  # your code here"),
    ],
)
def test_answers_stay_in_the_solutions_and_the_reader_gets_stubs_that_keep_names(answer, stub):
    indent = " " * (len(answer) - len(answer.lstrip()))
    marked = f"{indent}### BEGIN SOLUTION\n{answer}\n{indent}### END SOLUTION"
    cell = "def f(x):\n{0}\n\ndef g(x):\n{0}\n\nf(1)"
    assert building.solve(cell.format(marked), keep=True) == cell.format(answer)
    assert building.solve(cell.format(marked), keep=False) == cell.format(stub)


def test_the_solutions_hold_what_the_exercises_need_and_nothing_else(course):
    first, setup, needed, *cells, last = building.make(course / "src" / "01_tiny.py", True).cells
    title, links = first.source.split("\n\n")
    assert title == "# Chapter 1. A tiny chapter: solutions"
    colab = "[Open in Colab]({0}solutions/{1}) · [The chapter]({0}{1})"
    assert links == colab.format(COLAB, "01_tiny.ipynb")
    assert setup.metadata.tags == ["setup"] and needed.metadata.tags == ["needed"]
    assert cells[0].source.startswith("## Exercises\n\n### Exercise 1 (easy")
    assert [c.cell_type for c in cells] == ["markdown", "code"] * 3
    assert all("return times(2, x)" in c.source and "###" not in c.source for c in cells[1::2])
    assert last.source == "[The chapter](../01_tiny.ipynb)"


# What a first cell says is said in all other places


def test_tables_and_links_are_made_from_the_first_cells(course):
    first = write(course, "00_start.py", TOP.format("Start", "*start*", 3) + "# <!-- chapters -->")
    table = building.make(first).cells[0].source.splitlines()[-5:]
    assert table == [
        "| chapter | you can afterwards | minutes |",
        "| --- | --- | --- |",
        "| [00 Start](00_start.ipynb) | *start* | 3 |",
        "| [01 A tiny chapter](01_tiny.ipynb) | double a *number* | 5 |",
        "| [02 A second chapter](02_second.ipynb) | add | 7 |",
    ]
    badge = f"[![Open in Colab]({building.BADGE})]({COLAB}02_second.ipynb)"
    lines = building.readme(course).splitlines()
    assert lines[:2] == README.splitlines()[:2] and lines[-2:] == README.splitlines()[-2:]
    assert lines[6] == f"| [02 A second chapter](notebooks/02_second.ipynb) | add | 7 | {badge} |"
    assert lines[8] == "In all about 0 hours, exercises included."
    write(course, "02_second.py", SECOND.replace("**: 7", "**: 100"))
    assert "In all about 2 hours, exercises" in building.readme(course)  # 3 + 5 + 100 minutes

    cells = building.make(course / "src" / "01_tiny.py").cells
    heading, _, links, _, promise, *_ = cells[0].source.splitlines()
    assert heading == "# Chapter 1. A tiny chapter" and promise == "It promises little."
    colab = "[Open in Colab]({0}01_tiny{1}) · [Previous in Colab]({0}00_start{1})"
    colab += " · [Next in Colab]({0}02_second{1})"
    assert links == colab.format(COLAB, ".ipynb")
    previous, following, solutions = cells[-1].source.split(" · ")
    assert previous == "Previous: [Start](00_start.ipynb)"
    assert following == "Next: [Chapter 2. A second chapter](02_second.ipynb)"
    assert solutions == "[Solutions](solutions/01_tiny.ipynb)"


LACKS = "02_second: its first cell needs the lines"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("# # A second chapter\n", "", LACKS),
        ("# **You can", "# ", LACKS),
        ("# **Minutes**: 7\n", "", LACKS),
        ("1 + 1", "### BEGIN SOLUTION", "02_second, cell 02-second-01: BEGIN SOLUTION"),
    ],
)
def test_a_lack_of_title_promise_minutes_or_end_is_named(course, old, new, message):
    source = write(course, "02_second.py", SECOND.replace(old, new))
    with pytest.raises(building.BuildError, match=message):
        building.make(source)


# The set-up cell

SETUP = building.SETUP.format(**building.project())


def test_set_up_is_short_folded_and_silent_where_the_course_is_installed(capsys, monkeypatch):
    assert SETUP.startswith("# @title ") and building.FOLDED["cellView"] == "form"  # for Colab
    assert building.FOLDED["jupyter"] == {"source_hidden": True}
    assert len(SETUP.splitlines()) <= 16 and max(map(len, SETUP.splitlines())) <= 100
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing to install"))
    exec(SETUP, {})
    assert capsys.readouterr() == ("", "")


def test_set_up_installs_the_repository_at_the_tag_or_says_what_to_do(monkeypatch):
    commands = []

    def pip_that_works_once(command, **options):
        commands.append(command)
        sys.modules["d2lres"] = types.SimpleNamespace(
            explain_missing_names=lambda: None, __version__=VERSION
        )
        return subprocess.CompletedProcess(command, returncode=len(commands) - 1)

    monkeypatch.setattr(subprocess, "run", pip_that_works_once)
    monkeypatch.setitem(sys.modules, "d2lres", None)  # not to be found
    exec(SETUP, {})
    assert commands[0][:3] == [sys.executable, "-m", "pip"] and "--no-deps" in commands[0]
    assert commands[0][-2:] == ["d2l==0.17.0", f"d2lres @ git+{REPOSITORY}@v{VERSION}"]
    monkeypatch.setitem(sys.modules, "d2lres", None)
    with pytest.raises(RuntimeError, match="go online and run this cell again"):
        exec(SETUP, {})


def python(*given, **options):
    """A fresh interpreter, which knows nothing of this one's modules: its errors."""
    done = subprocess.run([sys.executable, *given], capture_output=True, text=True, **options)
    return done.stderr


def test_set_up_names_another_version_and_a_folder_of_the_name_is_not_the_course(tmp_path):
    older = SETUP.replace(VERSION, "9.9.9")
    said = python("-c", older).splitlines()[-1]
    assert said.startswith("RuntimeError: This is a chapter of d2lres 9.9.9, and another one is")
    assert said.endswith("pip uninstall d2lres, restart the kernel and run this cell again.")
    (tmp_path / "d2lres").mkdir()  # a clone beside the notebook, as in Colab
    (tmp_path / "pip.py").write_text("raise SystemExit(3)")
    said = python("-S", "-c", SETUP, cwd=tmp_path).splitlines()[-1]
    assert said.startswith("RuntimeError: d2lres could not be installed: go online")


def test_the_course_without_torch_says_so(tmp_path):
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = python("-S", "-c", "import d2lres", cwd=tmp_path, env=where).splitlines()[-1]
    assert (
        said == "ImportError: d2lres needs PyTorch: install torch and torchvision, then try again."
    )


# Building


def test_both_notebooks_satisfy_every_rule(once):
    said = {"": "Not attempted yet: double", "solutions/": "Correct: twice three is six."}
    for folder, verdict in said.items():
        text = (once / f"{folder}01_tiny.ipynb").read_text(encoding="utf-8")
        assert text.endswith("}\n") and not text.endswith("\n\n")
        assert text.count(verdict) == 3
        notebook = nbformat.reads(text, nbformat.NO_CONVERT)
        assert violations(notebook) == []
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        _, setup, *others = notebook.cells
        assert setup.metadata == {"tags": ["setup"], **building.FOLDED}
        assert {key for cell in others for key in cell.metadata} == {"tags"}
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)


def test_a_traceback_shows_the_cell_and_no_library(once):
    outputs = [out for cell in code(read(once / "01_tiny.ipynb")) for out in cell.outputs]
    (error,) = [out for out in outputs if out.output_type == "error"]
    shown = "\n".join(error.traceback)
    assert "torch.ones(2)" in shown and "RuntimeError: The size of tensor" in shown
    assert "\x1b" not in shown
    ours = "\x1b[36mFile\x1b[39m \x1b[32m/a/d2lres/d2lres/blocks.py:7\x1b[39m, in forward"
    frames = ["Cell In[5], line 2", "File /x/site-packages/torch/nn/module.py:9, in call", ours]
    assert building.own_frames(frames) == [frames[0], "File d2lres/blocks.py:7, in forward"]


HELPER = "# %%\nhelper = 2\n\n# %% [markdown]\n# ## Exercises\n\n# %%\n"
CAUGHT = "try:\n    helper\nexcept NameError as error:\n    print('NameError:', error)\n"


@pytest.mark.parametrize(
    "body, message",
    [
        ("# %%\nprint(1)\n\n# %%\n1 / 0\n", "01_tiny.ipynb, cell 01-tiny-02: ZeroDivisionError"),
        ("# %%\nimport os; os._exit(3)\n", "01_tiny.ipynb, cell 01-tiny-01: "),
        (HELPER + CAUGHT, "NameError: name 'helper' is not defined; tag cell 01-tiny-01 needed"),
    ],
    ids=["error", "dead kernel", "solutions lack a name"],
)
def test_a_failing_cell_is_named_and_the_old_notebooks_stay(course, capsys, body, message):
    write(course, "01_tiny.py", TOP.format("Tiny", "err", 1) + body)
    (course / "01_tiny.ipynb").write_text("old", encoding="utf-8")
    assert building.main(["1"], course) == 1
    assert message in capsys.readouterr().err
    assert (course / "01_tiny.ipynb").read_text(encoding="utf-8") == "old"
    assert not list(course.rglob("*.tmp")) and not list(course.glob("solutions/*.ipynb"))


def test_a_build_reports_and_brings_the_other_files_up_to_date(built, capsys):
    write(built, "02_second.py", SECOND)
    before = code(read(built / "01_tiny.ipynb"))
    assert building.main(["2"], built) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    name, _, took = first.partition(": ")
    assert name == "02_second" and " s" in took and "; solutions " in took
    assert took.count(" MB") == 2 or sys.platform == "win32"
    assert rest == [f"{n}: brought up to date" for n in ("README.md", "notebooks/01_tiny.ipynb")]
    after = read(built / "01_tiny.ipynb")
    assert "Next: [Chapter 2." in after.cells[-1].source
    assert code(after) == before and any(cell.outputs for cell in before)
    assert building.main(["--check"], built) == 0
    assert capsys.readouterr().out == "notebooks, README and sources agree\n"
    with pytest.raises(SystemExit, match="2"):
        building.main(["7"], built)
    assert "there are chapters [1, 2], and not [7]" in capsys.readouterr().err


# --text and --check

TEXT, CODE = "01_tiny.ipynb: not what the sources give", "01_tiny.ipynb: not built from this code"


def change_source(out, old="**Predict** it.", new="**Predict** this."):
    write(out, "01_tiny.py", FIRST.replace(old, new))


def test_text_keeps_outputs_and_refuses_new_code(built, capsys, monkeypatch):
    notebook, before = built / "01_tiny.ipynb", code(read(built / "01_tiny.ipynb"))
    change_source(built)
    monkeypatch.setattr(building, "execute", None)
    assert building.main(["--text", "1"], built) == 0
    assert "**Predict** this." in notebook.read_text(encoding="utf-8")
    assert code(read(notebook)) == before
    change_source(built, "a * b", "b * a")
    assert building.main(["--text", "1"], built) == 1
    assert CODE in capsys.readouterr().out and code(read(notebook)) == before


def test_text_takes_over_another_set_up_cell(built, capsys, monkeypatch):
    notebook, before = built / "01_tiny.ipynb", code(read(built / "01_tiny.ipynb"))
    monkeypatch.setattr(building, "execute", None)
    monkeypatch.setattr(building, "SETUP", "import d2lres")
    monkeypatch.setattr(building, "FOLDED", {})
    assert building.main(["--check"], built) == 1
    assert TEXT in capsys.readouterr().out
    assert building.main(["--text"], built) == 0
    setup, *after = code(read(notebook))
    assert (setup.source, setup.metadata) == ("import d2lres", {"tags": ["setup"]})
    assert after == before[1:] and any(cell.outputs for cell in after)
    assert building.main(["--check"], built) == 0


def edit(change):
    def damage(out):
        notebook = read(out / "01_tiny.ipynb")
        change(notebook)
        nbformat.write(notebook, out / "01_tiny.ipynb")

    return damage


DRIFT = {
    "prose": (change_source, TEXT),
    "title": (lambda out: change_source(out, "A tiny", "A small"), "README.md: not what the"),
    "code": (lambda out: change_source(out, "a * b", "b * a"), CODE),
    "cell edited": (edit(lambda nb: nb.cells[2].update(source="1")), CODE),
    "tag added": (edit(lambda nb: nb.cells[2].metadata.update(tags=["x"])), CODE),
    "order": (edit(lambda nb: nb.cells.insert(2, nb.cells.pop(3))), TEXT),
    "id": (edit(lambda nb: nb.cells[2].update(id="other")), TEXT),
    "cell gone": (edit(lambda nb: nb.cells.pop()), TEXT),
    "metadata": (edit(lambda nb: nb.metadata.update(colab={})), TEXT),
    "not built": (lambda out: (out / "01_tiny.ipynb").unlink(), CODE),
    "new chapter": (lambda out: write(out, "02_second.py", SECOND), "02_second.ipynb: not built"),
    "no source": (lambda out: (out / "solutions/09_x.ipynb").write_text("{}"), "09_x.ipynb: no so"),
    "no table": (lambda out: (out.parent / "README.md").write_text("# Tiny"), "needs the lines"),
}


@pytest.mark.parametrize("kind", DRIFT)
def test_check_names_what_drifted(built, capsys, kind):
    damage, message = DRIFT[kind]
    damage(built)
    assert building.main(["--check"], built) == 1
    assert message in "".join(capsys.readouterr())
