"""Every notebook as Colab opens it: alone in an empty folder, with Colab's versions and no clone.

A replica, not Colab itself: Python 3.13 with the versions of colab_versions.txt, and a network that
refuses everything but two wheels. `make colab` runs all chapters, each twice in one kernel; with
CI=true chapters 00 and 04 run once.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = Path(__file__).with_name("colab_versions.txt")
RUN_ALONE = Path(__file__).with_name("run_alone.py")
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
ALL, CI = bool(os.environ.get("D2LRES_COLAB")), os.environ.get("CI") == "true"
IN_CI = ("00", "04")
pytestmark = [
    pytest.mark.colab,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="Colab is Linux"),
    pytest.mark.skipif(not (ALL or CI), reason="installs PyTorch anew, for minutes: make colab"),
]


def run(*command, **options):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def python313() -> Path:
    """This Python, one on the PATH, or one of pyenv's, whichever is a 3.13 that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [sys.executable, shutil.which("python3.13"), *pyenv.glob("versions/3.13*/bin/python")]
    for python in filter(None, found):
        asked = [python, "-c", "import sys; print(sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "(3, 13)":
            return Path(python)
    missing = pytest.fail if CI else pytest.skip
    missing("no Python 3.13 on this machine, and Colab has that one")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """The course's own wheel and that of d2l: all that a notebook installs."""
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, "d2l==0.17.0")
    assert {wheel.name.split("-")[0] for wheel in folder.iterdir()} == {"d2l", "d2lres"}
    return folder


@pytest.fixture(scope="module")
def colab(tmp_path_factory, wheels):
    """The replica: its Python, and the environment variables of everything that runs there."""
    base = python313()
    folder = tmp_path_factory.mktemp("colab")
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "-q", "--python", base, folder / "venv")
    python = folder / "venv/bin/python"
    run(*uv, "pip", "install", "-q", "--python", python, "-r", VERSIONS)
    nowhere = "http://127.0.0.1:9"  # the discard port, where nobody answers
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    environment = kept | dict.fromkeys(["http_proxy", "https_proxy", "all_proxy"], nowhere)
    environment |= {
        "HOME": str(folder),
        "PATH": f"{python.parent}{os.pathsep}{kept['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    yield python, environment
    shutil.rmtree(folder / "venv")  # 5 GB


def freeze(colab) -> set[str]:
    python, environment = colab
    return set(run(python, "-m", "pip", "freeze", "--all", env=environment).splitlines())


def texts(notebook) -> list[tuple[str, str]]:
    """What each code cell prints that every machine prints alike, with the cell's source."""
    return [
        (cell.source, "".join(out.text for out in cell.outputs if out.get("name") == "stdout"))
        for cell in notebook.cells
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", [])
    ]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_notebook_alone_installs_the_course_and_runs(chapter, request, tmp_path):
    if not (ALL or chapter.stem.startswith(IN_CI)):
        pytest.skip("make colab runs all chapters")
    colab = request.getfixturevalue("colab")
    python, environment = colab
    before = freeze(colab)
    assert not any(line.startswith("d2l") for line in before)
    alone, out = tmp_path / "alone", tmp_path / "out.ipynb"
    alone.mkdir()
    notebook = committed = nbformat.read(chapter, 4)
    if ALL:  # Run All, twice in one kernel: the second time must not stumble over the first
        again = [nbformat.from_dict(cell | {"id": f"{cell.id}-again"}) for cell in committed.cells]
        notebook = nbformat.from_dict(committed | {"cells": committed.cells + again})
    nbformat.write(notebook, alone / chapter.name)
    start = time.perf_counter()
    try:
        run(python, RUN_ALONE, chapter.name, out, cwd=alone, env=environment)
        times = "twice in " if ALL else ""
        print(f"{chapter.stem}: {times}{time.perf_counter() - start:.0f} s in the replica of Colab")
        added = {re.split("[= ]", line)[0] for line in freeze(colab) - before}
        assert added == {"d2l", "d2lres"} and before <= freeze(colab)
    finally:
        run(python, "-m", "pip", "uninstall", "-q", "-y", "d2l", "d2lres", env=environment)
    assert [path.name for path in alone.iterdir()] == [chapter.name]

    executed = nbformat.read(out, 4)
    assert texts(executed) == texts(committed) * (1 + ALL)
    widgets = 0
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            assert output.get("name") != "stderr", (cell.id, output.text)
            assert len(output.metadata["image/png"]["alt"]) > 20 if "image/png" in data else True
            widgets += "application/vnd.jupyter.widget-view+json" in data
    code = "\n".join(cell.source for cell in executed.cells if cell.cell_type == "code")
    bars = chapter.stem.startswith("00")  # its race shows progress bars
    assert widgets >= code.count("\nfigures.interactive(") + bars, "sliders or bars are missing"


def test_a_run_without_the_wheels_says_what_to_do(colab, tmp_path):
    """Offline and with nothing to install from: the set-up cell ends in one sentence."""
    python, environment = colab
    setup = nbformat.read(CHAPTERS[0], 4).cells[1]
    assert setup.metadata["tags"] == ["setup"]
    done = subprocess.run(
        [python, "-c", setup.source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment | {"PIP_FIND_LINKS": str(tmp_path)},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: d2lres could not be installed: go online and run"), last
    assert done.stderr.count("Traceback") == 1
