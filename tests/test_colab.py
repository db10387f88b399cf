"""Every notebook as Colab opens it: alone in an empty folder, with Colab's versions and no clone.

A replica, not Colab itself: Python 3.13 with the versions of colab_versions.txt, no network, and in
its place on the disk a few wheels and the course's repository with its tag. `make colab` runs all
chapters, each twice in one kernel; with CI=true chapter 02 runs once.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from commands import ROOT, run
from nbformat.v4 import new_code_cell, new_notebook
from notebook_rules import MEASURED, code, tags

ALL, CI = bool(os.environ.get("D2LRES_COLAB")), os.environ.get("CI") == "true"
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb" if ALL else "02*.ipynb"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
REPOSITORY = re.search(r'^Repository = "(.+)"', PROJECT, re.MULTILINE)[1]
TAG = "v" + re.search(r'^version = "(.+)"', PROJECT, re.MULTILINE)[1]
pytestmark = [
    pytest.mark.colab,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="Colab is Linux"),
    pytest.mark.skipif(not (ALL or CI), reason="installs PyTorch anew, for minutes: make colab"),
]


def python313() -> Path:
    """This Python, one on the PATH, or one of pyenv's, whichever is a 3.13 that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [sys.executable, shutil.which("python3.13"), *pyenv.glob("versions/3.13*/bin/python")]
    asked = ["-c", "import sys; print(sys.version_info[:2])"]
    for python in filter(None, found):
        if "(3, 13)" in subprocess.run([python, *asked], capture_output=True, text=True).stdout:
            return Path(python)
    (pytest.fail if CI else pytest.skip)("no Python 3.13 on this machine, and Colab has that one")


@pytest.fixture(scope="module")
def colab(tmp_path_factory, clone):
    """The replica: its Python, and the environment variables of everything that runs there."""
    folder = tmp_path_factory.mktemp("colab")
    python = folder / "venv/bin/python"
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "-q", "--python", python313(), folder / "venv")
    run(*uv, "pip", "install", "-q", "-p", python, "-r", ROOT / "tests/colab_versions.txt")
    # What comes from a package index: d2l, and what builds the course from its repository.
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "-w", folder / "wheels"]
    run(*wheel, "--no-deps", "d2l==0.17.0")
    run(*wheel, "hatchling")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init"], ["add", "-A"], ["commit", "-m", "A release"], ["tag", TAG]):
        run(*git, *command, cwd=clone)
    environment = {k: v for k, v in os.environ.items() if k in ("LANG", "LC_ALL", "TMPDIR")}
    for scheme in ("http", "https", "all"):
        environment[f"{scheme}_proxy"] = "http://127.0.0.1:9"  # where nobody answers
    environment |= {
        "HOME": str(folder),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder / "wheels"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",  # whoever asks for the course's address gets this repository
        "GIT_CONFIG_KEY_0": f"url.{clone}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }
    yield python, environment
    shutil.rmtree(folder / "venv")  # 5 GB


def run_all(colab, notebook, folder):
    """Run All of `notebook`, alone, where the course is not installed; returns it executed."""
    python, environment = colab
    pip = [python, "-m", "pip", "-q"]
    before = set(run(*pip, "freeze", "--all", env=environment).splitlines())
    nbformat.write(notebook, folder / "alone.ipynb")
    try:
        command = [python, ROOT / "tests/run_alone.py", "alone.ipynb", "executed.ipynb"]
        run(*command, cwd=folder, env=environment)
        after = set(run(*pip, "freeze", "--all", env=environment).splitlines())
    finally:
        run(*pip, "uninstall", "-y", "d2l", "d2lres", env=environment)
    d2l, d2lres = sorted(after - before)
    assert d2l == "d2l==0.17.0" and d2lres.startswith(f"d2lres @ git+{REPOSITORY}@")
    assert before <= after
    assert {path.name for path in folder.iterdir()} == {"alone.ipynb", "executed.ipynb"}
    executed = nbformat.read(folder / "executed.ipynb", 4)
    for output in [output for cell in code(executed) for output in cell.outputs]:
        assert output.get("name") != "stderr", output.text
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"]["alt"]) > 20
    return executed


def texts(notebook) -> list[tuple[str, str]]:
    """What each code cell prints that every machine prints alike, with the cell's source."""
    return [
        (cell.source, "".join(out.text for out in cell.outputs if out.get("name") == "stdout"))
        for cell in code(notebook)
        if MEASURED not in tags(cell)
    ]


def widgets(cell) -> int:
    kind = "application/vnd.jupyter.widget-view+json"
    return sum(kind in output.get("data", {}) for output in cell.get("outputs", []))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_notebook_alone_installs_the_course_from_its_tag_and_runs(chapter, colab, tmp_path):
    notebook = committed = nbformat.read(chapter, 4)
    if ALL:  # Run All, twice in one kernel: the second time must not stumble over the first
        again = [nbformat.from_dict(cell | {"id": f"{cell.id}-again"}) for cell in committed.cells]
        notebook = nbformat.from_dict(committed | {"cells": committed.cells + again})
    executed = run_all(colab, notebook, tmp_path)
    assert texts(executed) == texts(committed) * (1 + ALL)
    for cell in executed.cells:
        assert widgets(cell) >= cell.source.count("\nfigures.interactive("), cell.source


def test_a_slider_and_a_progress_bar_are_widgets(colab, tmp_path):
    setup = nbformat.read(CHAPTERS[0], 4).cells[1].source
    slider = """from d2lres import figures
figures.interactive(lambda end: figures.lines({"line": [0, end]}, "x", "y"), end=(1, 2))"""
    bar = "from d2lres.training import progress_bar\nfor _ in progress_bar(range(3)): pass"
    notebook = new_notebook(cells=[new_code_cell(source) for source in (setup, slider, bar)])
    assert [widgets(cell) for cell in run_all(colab, notebook, tmp_path).cells] == [0, 1, 1]


def test_without_a_network_the_set_up_cell_ends_in_one_sentence(colab, tmp_path):
    python, environment = colab
    command = [python, "-c", nbformat.read(CHAPTERS[0], 4).cells[1].source]
    options = dict(cwd=tmp_path, env=environment | {"PIP_FIND_LINKS": str(tmp_path)})
    done = subprocess.run(command, capture_output=True, text=True, **options)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: d2lres could not be installed: go online and run this")
    assert done.stderr.count("Traceback") == 1
