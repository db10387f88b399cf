import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from notebook_rules import violations

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("notebook_build", ROOT / "notebooks" / "build.py")
building = importlib.util.module_from_spec(spec)
spec.loader.exec_module(building)
BuildError = building.BuildError

EXERCISE = '''
# %% [markdown]
# ### Exercise {n} (easy, 2 minutes): double it
# Return twice `x`.
# <details><summary>Hint</summary>Multiply.</details>

# %%
def double(x):
    """Twice `x`."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

check.double(double)
'''

FIRST = """# %% [markdown]
# # A tiny chapter
# It promises little.

# %% tags=["setup"]

# %%
import time, types
from IPython.display import display
from d2lres.checks import Wrong, check as checked

def double(answer):
    if answer(3) != 6:
        raise Wrong("3 must become 6")
    return "twice three is six."

check = types.SimpleNamespace(double=checked(double))

# %% [markdown]
# ## A measured number
# **Predict** it.

# %% tags=["nbval-ignore-output", "reason: the clock is never the same twice", "claim:N1"]
print(time.perf_counter())
assert time.perf_counter() > 0

# %%
pixel = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
         "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
alt = {"alt": "one pixel, which says nothing at all"}
display({"image/png": pixel, "text/plain": "a pixel"}, raw=True, metadata={"image/png": alt})

# %% tags=["raises-exception"]
import torch
torch.ones(2) + torch.ones(3)

# %% [markdown]
# ## Exercises
""" + "".join(EXERCISE.format(n=n) for n in (1, 2, 3))
SECOND = "# %% [markdown]\n# # A second chapter\n\n# %%\n1 + 1\n"


@pytest.fixture
def course(tmp_path):
    """A folder with two sources and nothing built."""
    src = tmp_path / "src"
    src.mkdir()
    (src / "01_tiny.py").write_text(FIRST, encoding="utf-8")
    (src / "02_second.py").write_text(SECOND, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The same folder, built once; tests only read it, or copy from it."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "src").mkdir()
    (folder / "src" / "01_tiny.py").write_text(FIRST, encoding="utf-8")
    building.build(folder / "src" / "01_tiny.py", folder)
    return folder


def copied(built, course):
    """`course` with the built notebooks of its first chapter, which is the only one."""
    (course / "src" / "02_second.py").unlink()
    (course / "solutions").mkdir()
    for name in ("01_tiny.ipynb", "solutions/01_tiny.ipynb"):
        (course / name).write_bytes((built / name).read_bytes())
    return course


def main(course, *arguments) -> int:
    return building.main(list(arguments), sources=course / "src", out=course)


def write_source(course, body: str) -> Path:
    source = course / "src" / "01_tiny.py"
    source.write_text("# %% [markdown]\n# # Tiny\n\n" + body, "utf-8")
    return source


# Exercises


def test_the_reader_gets_the_stub_and_the_solution_the_answer():
    code = "def f(x):\n{}\n\nf(1)"
    answer = "    y = x + 1\n    return y"
    marked = code.format(f"    ### BEGIN SOLUTION\n{answer}\n    ### END SOLUTION")
    assert building.solve(marked, keep=True) == code.format(answer)
    assert building.solve(marked, keep=False) == code.format("    ...  # your code here")


def test_a_one_line_answer_keeps_its_name():
    code = "### BEGIN SOLUTION\nlayers = 4 * 4 + 2\n### END SOLUTION\ncheck.layers(layers)"
    assert building.solve(code, keep=False).startswith("layers = ...  # your code here\n")
    code = "    ### BEGIN SOLUTION\n    self.conv: Conv2d = Conv2d(3, 3, 1)\n    ### END SOLUTION"
    assert building.solve(code, keep=False) == "    self.conv: Conv2d = ...  # your code here"
    code = "    ### BEGIN SOLUTION\n    return x == 3\n    ### END SOLUTION"
    assert building.solve(code, keep=False) == "    ...  # your code here"


def test_two_answers_in_one_cell_are_both_replaced():
    one = "### BEGIN SOLUTION\n{} = 1\n### END SOLUTION\n"
    code = building.solve(one.format("a") + "b = 2\n" + one.format("c").rstrip(), keep=False)
    assert code.splitlines() == ["a = ...  # your code here", "b = 2", "c = ...  # your code here"]


def test_unpaired_markers_are_an_error_that_names_the_cell(course):
    source = write_source(course, "# %%\n### BEGIN SOLUTION\nx = 1\n")
    with pytest.raises(BuildError, match="01_tiny, cell 01-tiny-01: BEGIN SOLUTION"):
        building.make(source)


# What is generated


def test_making_twice_gives_the_same_bytes_with_readable_ids(course):
    source = course / "src" / "01_tiny.py"
    one, two = (nbformat.writes(building.make(source)) for _ in range(2))
    assert one == two
    notebook = building.make(source)
    nbformat.validate(notebook)
    assert [c.id for c in notebook.cells][:2] == ["01-tiny-00", "01-tiny-01"]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert {key for cell in notebook.cells for key in cell.metadata} == {"tags"}
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)


def test_header_and_footer_link_the_neighbours(course):
    repository, _ = building.project()
    colab = repository.replace("//github.com/", "//colab.research.google.com/github/")
    first = building.make(course / "src" / "01_tiny.py")
    heading, _, line, _, promise = first.cells[0].source.splitlines()
    assert heading == "# A tiny chapter" and promise == "It promises little."
    assert f"({colab}/blob/main/notebooks/01_tiny.ipynb)" in line
    assert f"[Next in Colab]({colab}/blob/main/notebooks/02_second.ipynb)" in line
    assert "Previous" not in line
    footer = "Next: [A second chapter](02_second.ipynb) · [Solutions](solutions/01_tiny.ipynb)"
    assert first.cells[-1].source == footer
    second = building.make(course / "src" / "02_second.py", solution=True)
    assert f"({colab}/blob/main/notebooks/solutions/02_second.ipynb)" in second.cells[0].source
    footer = "Previous: [A tiny chapter](01_tiny.ipynb) · [Without the answers](../02_second.ipynb)"
    assert second.cells[-1].source == footer


def test_a_source_without_a_title_is_an_error(course):
    source = course / "src" / "02_second.py"
    source.write_text("# %%\n1 + 1\n", encoding="utf-8")
    with pytest.raises(BuildError, match="02_second: must start with"):
        building.make(source)


# The set-up cell


def run_setup(monkeypatch, works) -> list[list[str]]:
    """Runs the set-up cell where d2lres is missing; `works(package)` says if pip succeeds."""
    calls = []

    def pip(command, **options):
        calls.append(command)
        if works(command[-1]):
            sys.modules["d2lres"] = types.SimpleNamespace(explain_missing_names=lambda: None)
        return subprocess.CompletedProcess(command, 0 if works(command[-1]) else 1)

    monkeypatch.setitem(sys.modules, "d2lres", None)  # the import raises ModuleNotFoundError
    monkeypatch.setattr(subprocess, "run", pip)
    exec(building.setup_code(), {})
    return calls


def test_set_up_is_short_and_silent_where_the_course_is_installed(capsys, monkeypatch):
    code = building.setup_code()
    assert len(code.splitlines()) <= 12 and max(map(len, code.splitlines())) <= 100
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing to install"))
    exec(code, {})
    assert capsys.readouterr() == ("", "")


def test_set_up_installs_the_release_and_replaces_nothing(monkeypatch):
    _, version = building.project()
    (command,) = run_setup(monkeypatch, works=lambda package: True)
    assert command[:3] == [sys.executable, "-m", "pip"] and "--no-deps" in command
    assert command[-2:] == ["d2l==0.17.0", f"d2lres=={version}"]


def test_set_up_falls_back_to_the_repository(monkeypatch):
    repository, version = building.project()
    calls = run_setup(monkeypatch, works=lambda package: package.startswith("git+"))
    assert calls[-1][-1] == f"git+{repository}@v{version}" and len(calls) == 2


def test_set_up_says_what_to_do_when_nothing_works(monkeypatch):
    with pytest.raises(RuntimeError, match="go online and run this cell again"):
        run_setup(monkeypatch, works=lambda package: False)


# Building


def test_both_notebooks_satisfy_every_rule(built):
    for name in ("01_tiny.ipynb", "solutions/01_tiny.ipynb"):
        text = (built / name).read_text(encoding="utf-8")
        assert text.endswith("}\n") and not text.endswith("\n\n")
        assert violations(nbformat.reads(text, nbformat.NO_CONVERT)) == []
    said = {
        name: (built / name).read_text(encoding="utf-8")
        for name in ("01_tiny.ipynb", "solutions/01_tiny.ipynb")
    }
    assert said["01_tiny.ipynb"].count("Not attempted yet: double") == 3
    assert said["solutions/01_tiny.ipynb"].count("Correct: twice three is six.") == 3


def test_a_traceback_shows_the_cell_and_no_library(built):
    notebook = nbformat.read(built / "01_tiny.ipynb", nbformat.NO_CONVERT)
    (error,) = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    shown = "\n".join(error.traceback)
    assert "torch.ones(2)" in shown and "RuntimeError: The size of tensor" in shown
    assert "\x1b" not in shown
    ours = "\x1b[36mFile\x1b[39m \x1b[32m/a/d2lres/d2lres/blocks.py:7\x1b[39m, in forward"
    frames = ["Cell In[5], line 2", "File /x/site-packages/torch/nn/module.py:9, in call", ours]
    assert building.own_frames(frames) == [frames[0], "File d2lres/blocks.py:7, in forward"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("# %%\nprint(1)\n\n# %%\n1 / 0\n", "01_tiny.ipynb, cell 01-tiny-02: ZeroDivisionError"),
        ('# %% tags=["raises-exception"]\n1 + 1\n', "tagged raises-exception, raised nothing"),
        ("# %%\nimport os; os._exit(3)\n", "01_tiny.ipynb, cell 01-tiny-01: "),
    ],
)
def test_a_failing_cell_is_named_and_the_old_notebooks_stay(course, capsys, body, message):
    write_source(course, body)
    (course / "01_tiny.ipynb").write_text("old", encoding="utf-8")
    assert main(course, "1") == 1
    assert message in capsys.readouterr().err
    assert (course / "01_tiny.ipynb").read_text(encoding="utf-8") == "old"
    assert not list(course.rglob("*.tmp")) and not list(course.glob("solutions/*.ipynb"))


def test_the_build_reports_time_and_memory(course, capsys):
    assert main(course, "02") == 0
    name, _, rest = capsys.readouterr().out.partition(": ")
    assert name == "02_second" and " s" in rest and "solution" in rest
    if sys.platform != "win32":
        assert rest.count(" MB") == 2


def test_chapters_are_chosen_by_number_or_name(course):
    def chosen(*words):
        return [source.stem for source in building.select(list(words), course / "src")]

    assert chosen() == ["01_tiny", "02_second"]
    assert chosen("2") == chosen("02") == chosen("02_se") == ["02_second"]
    assert chosen("2", "1") == ["01_tiny", "02_second"]
    with pytest.raises(BuildError, match="no chapter '7'"):
        chosen("7")


# --text


def test_new_prose_keeps_the_outputs_and_executes_nothing(built, course, capsys, monkeypatch):
    copied(built, course)
    before = code_cells(course / "01_tiny.ipynb")
    change_source(course)
    monkeypatch.setattr(building, "execute", None)
    assert main(course, "--text", "1") == 0
    assert capsys.readouterr().out == "01_tiny: text; solution text\n"
    assert code_cells(course / "01_tiny.ipynb") == before and any(c.outputs for c in before)
    assert "**Predict** this." in (course / "01_tiny.ipynb").read_text(encoding="utf-8")
    assert main(course, "--check", "1") == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda source: source.write_text(f"{FIRST}\n# %%\n1 + 1\n", encoding="utf-8"),
            "01_tiny.ipynb: the code has changed, too",
        ),
        (
            lambda source: source.with_name("03_new.py").write_text(SECOND, encoding="utf-8"),
            "03_new.ipynb: not built yet",
        ),
    ],
    ids=["code changed", "not built"],
)
def test_text_alone_is_refused_where_outputs_would_be_stale(built, course, capsys, change, message):
    copied(built, course)
    change(course / "src" / "01_tiny.py")
    assert main(course, "--text") == 1
    assert message in capsys.readouterr().err


def code_cells(path):
    cells = nbformat.read(path, nbformat.NO_CONVERT).cells
    return [cell for cell in cells if cell.cell_type == "code"]


# --check


def test_check_accepts_what_was_built(built, course, capsys):
    assert main(copied(built, course), "--check") == 0
    assert capsys.readouterr().out == "notebooks and sources agree\n"


def change_source(course):
    source = course / "src" / "01_tiny.py"
    source.write_text(FIRST.replace("**Predict** it.", "**Predict** this."), encoding="utf-8")


def edit(change):
    def damage(course):
        path = course / "01_tiny.ipynb"
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        change(notebook)
        nbformat.write(notebook, path)

    return damage


DRIFT = {
    "source changed": (change_source, "01_tiny.ipynb, cell 01-tiny-03: source"),
    "cell edited": (edit(lambda nb: nb.cells[2].update(source="1")), "cell 01-tiny-02: source"),
    "tag added": (edit(lambda nb: nb.cells[2].metadata.update(tags=["x"])), "01-tiny-02: metadata"),
    "order": (edit(lambda nb: nb.cells.insert(2, nb.cells.pop(3))), "01-tiny-02: id, cell_type"),
    "id": (edit(lambda nb: nb.cells[2].update(id="other")), "cell 01-tiny-02: id"),
    "cell gone": (edit(lambda nb: nb.cells.pop()), "cells, the source gives"),
    "metadata": (edit(lambda nb: nb.metadata.update(colab={})), "notebook metadata"),
    "not built": (lambda c: (c / "01_tiny.ipynb").unlink(), "01_tiny.ipynb: not built"),
    "no source": (
        lambda c: (c / "solutions" / "09_x.ipynb").write_text("{}"),
        "solutions/09_x.ipynb: no source",
    ),
    "new neighbour": (
        lambda c: (c / "src" / "02_second.py").write_text(SECOND),
        "solutions/02_second.ipynb: not built",
    ),
}


@pytest.mark.parametrize("kind", DRIFT)
def test_check_names_what_drifted(built, course, capsys, kind):
    damage, message = DRIFT[kind]
    damage(copied(built, course))
    assert main(course, "--check") == 1
    assert message in capsys.readouterr().out


def outputs(text):
    def change(notebook):
        for cell in notebook.cells:
            if text in cell.source and cell.cell_type == "code":
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="stale\n")]

    return edit(change)


def test_check_run_finds_a_stale_output_and_ignores_measured_ones(built, course, capsys):
    outputs("print(time.perf_counter")(copied(built, course))
    outputs("raw=True")(course)
    assert main(course, "--check") == 0  # static: outputs are not looked at
    capsys.readouterr()
    assert main(course, "--check", "--run") == 1
    assert capsys.readouterr().out == "01_tiny.ipynb, cell 01-tiny-05: outputs\n"
