"""Every documented way to install. The slow ones build a fresh environment, so only CI runs them."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
POSIX = os.name == "posix"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and k[:4] != "MAKE"}
UV = [sys.executable, "-m", "uv"]
ci_only = pytest.mark.skipif(
    os.environ.get("CI") != "true", reason="installs PyTorch anew, for minutes: CI=true runs it"
)
posix_only = pytest.mark.skipif(not POSIX, reason="make and its virtual environment are POSIX only")


def run(*command, cwd, fails=False, **environment):
    """What the command says; it must succeed, or fail where that is expected."""
    command = [str(word) for word in command]
    environment = ENVIRONMENT | environment
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    run(*build, cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_what_the_course_ships_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "d2lres").rglob("*.py")}
    shipped = [it for it in (ROOT / "assets").rglob("*.*") if it.suffix not in (".py", ".pyc")]
    shipped += [ROOT / "assets/make_experiments.py"]  # what `python -m d2lres experiment` runs
    shipped += [
        ROOT / f"notebooks/src/{name}.py"
        for name in ("06_training", "07_the_family", "08_transfer", "10_the_clinic")
    ]
    assets = {f"d2lres/{path.relative_to(ROOT).as_posix()}" for path in shipped}
    assert names == modules | assets
    assert "d2lres/assets/FASHION_MNIST_LICENSE.txt" in names


def test_the_wheel_alone_runs_the_doctor_and_finds_its_records(wheel, tmp_path):
    """Installed into a folder that comes before the packages of this environment."""
    run(*UV, "pip", "install", "--no-deps", "--offline", "--target", "site", wheel, cwd=tmp_path)
    code = "import d2lres, d2lres.cli as cli, d2lres.records as records; print(d2lres.__file__); "
    code += "cli.main(['doctor']); print(records.recorded('degradation')['experiment']); "
    code += "import sys; sys.path.insert(0, str(records.asset('.'))); import make_experiments; "
    code += "print(type(make_experiments.chapter('07_the_family')['small']('base')).__name__)"
    said = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert said.startswith(str(tmp_path))
    assert "Sample       Fashion-MNIST, 6,000 + 2,000 images, bundled" in said
    assert said.endswith("degradation\nResNet\n") and "can run here" in said


@ci_only
@pytest.mark.install
@pytest.mark.parametrize("version", ["3.10", "3.13"])  # the oldest and the newest
def test_the_constraints_fit_the_oldest_and_the_newest_python(version, tmp_path):
    command = [*UV, "pip", "compile", "pyproject.toml", "--extra", "dev", "--constraint"]
    command += ["constraints.txt", "--python-version", version, "--output-file", tmp_path / "pins"]
    run(*command, cwd=ROOT)
    assert "torch==" in (tmp_path / "pins").read_text(encoding="utf-8")


@ci_only
@pytest.mark.install
def test_the_wheel_installs_with_its_dependencies_in_an_empty_environment(wheel, tmp_path):
    venv = tmp_path / "venv"
    python = venv / ("bin/python" if POSIX else "Scripts/python.exe")
    install = [*UV, "pip", "install", "--python", python, "-c", ROOT / "constraints.txt"]
    run(*UV, "venv", "--python", sys.executable, venv, cwd=tmp_path)
    run(*install, wheel, cwd=tmp_path)
    bare = run(python, "-m", "d2lres", "doctor", cwd=tmp_path, fails=True)
    assert "d2lres[course]" in bare  # the readers' extra is missing
    run(*install, f"{wheel}[course]", cwd=tmp_path)
    run(python, "-m", "d2lres", "doctor", cwd=tmp_path)
    shutil.rmtree(venv)


@ci_only
@posix_only
@pytest.mark.install
def test_make_lab_installs_once_and_serves_the_first_chapter(clone, served):
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith(("PYTHON", "DISPLAY"))}
    with served(["make", "lab"], clone, environment, clone / "lab.log") as (address, page, token):
        assert "notebooks/00_start_here.ipynb" in page
        contents = f"{address}/api/contents/notebooks/00_start_here.ipynb?content=0&token={token}"
        assert urllib.request.urlopen(contents, timeout=60).status == 200
    start = time.perf_counter()
    again = run("make", "-n", "lab", cwd=clone)
    assert "pip" not in again and "venv " not in again
    assert time.perf_counter() - start < 2
    run(clone / ".venv/bin/python", "-m", "d2lres", "doctor", cwd=clone)
    shutil.rmtree(clone / ".venv")


@posix_only
def test_make_names_the_remedy_for_a_python_that_is_too_old(clone, tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    said = run("make", "lab", f"PYTHON={old}", cwd=clone, fails=True)
    assert "needs Python 3.10 to 3.13" in said
    assert not (clone / ".venv").exists()


@posix_only
def test_make_help_names_every_target(clone):
    targets = re.search(r"^.PHONY: (.*)", (clone / "Makefile").read_text(), re.MULTILINE)[1]
    said = run("make", "help", cwd=clone)
    assert [line.split()[0] for line in said.splitlines()] == targets.split()


# Stands for the Python of .venv: writes down what it is told, has a configuration of pip, and may
# fail as uv.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> told
case "$*" in
  "-m pip config list") echo "$PIP_CONFIGURATION";;
  "-m uv "*) exit $UV_STATUS;;
esac
"""


@posix_only
@pytest.mark.parametrize(
    "configuration, uv_status, installers",
    [
        ("global.extra-index-url='file:///wheels'", 0, ["uv"]),
        ("", 1, ["uv", "pip"]),
        (":env:.index-url='https://mirror.example'", 0, ["pip"]),
        ("global.proxy='proxy.example:8080'", 0, ["pip"]),
    ],
)
def test_make_installs_with_uv_and_where_that_cannot_be_with_pip(
    configuration, uv_status, installers, tmp_path
):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/python").touch()
    (tmp_path / ".venv/bin/python").write_text(FAKE_PYTHON)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    fake = {"PIP_CONFIGURATION": configuration, "UV_STATUS": str(uv_status)}
    run("make", ".venv/lab", cwd=tmp_path, **fake)
    told = (tmp_path / "told").read_text().splitlines()
    assert [line.split()[1] for line in told if ".[course]" in line] == installers
    assert all("--constraint constraints.txt" in line for line in told if "install" in line)
