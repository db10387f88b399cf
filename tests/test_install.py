"""Every documented way to install. The slow ones build a fresh environment, so only CI runs them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
POSIX = os.name == "posix"
ci_only = pytest.mark.skipif(
    os.environ.get("CI") != "true", reason="installs PyTorch anew, for minutes: CI=true runs it"
)
posix_only = pytest.mark.skipif(not POSIX, reason="make and its virtual environment are POSIX only")


def run(*command, cwd, **options):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, **options
    )


def python_of(environment: Path) -> Path:
    return environment / ("bin/python" if POSIX else "Scripts/python.exe")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        ROOT,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """The files that a clone would hold, as they are in the working tree now."""
    folder = tmp_path_factory.mktemp("clone") / "d2lres"
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def test_the_wheel_holds_the_package_the_sample_and_the_records(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "d2lres/__init__.py",
        "d2lres/checks/__init__.py",
        "d2lres/assets/fashion_mnist_sample.npz",
        "d2lres/assets/FASHION_MNIST_LICENSE.txt",
        "d2lres/assets/results/degradation.json",
        "d2lres/assets/claims.json",
    ):
        assert name in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "d2lres").rglob("*.py")}
    assert modules <= names
    assert not [
        name for name in names if "ipynb" in name or "test" in name or "__pycache__" in name
    ]


def test_the_wheel_alone_runs_the_doctor(wheel, tmp_path):
    """An environment with the wheel and, by a path file, the packages of this one but not ours."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = python_of(tmp_path / "venv")
    purelib = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    here = run(
        sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    assert (
        run(
            python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path
        ).returncode
        == 0
    )
    (Path(purelib.stdout.strip()) / "others.pth").write_text(here.stdout.strip(), encoding="utf-8")
    where = run(python, "-c", "import d2lres; print(d2lres.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where.stdout
    done = run(python, "-m", "d2lres", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sample      Fashion-MNIST, 6,000 + 2,000 images, bundled" in done.stdout
    assert re.search(r"Records +.*degradation", done.stdout)


@ci_only
@pytest.mark.install
def test_the_wheel_installs_with_its_dependencies_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = python_of(tmp_path / "venv")
    install = (python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
    done = run(*install, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bare = run(python, "-m", "d2lres", "doctor", cwd=tmp_path)
    assert bare.returncode == 1 and "d2lres[course]" in bare.stdout  # the readers' extra is missing
    done = run(*install, f"{wheel}[course]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    full = run(python, "-m", "d2lres", "doctor", cwd=tmp_path)
    assert full.returncode == 0, full.stdout
    shutil.rmtree(tmp_path / "venv")


@ci_only
@posix_only
@pytest.mark.install
def test_make_lab_installs_once_and_serves_the_first_chapter(clone):
    log = clone / "lab.log"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "PYTHON", "DISPLAY"))}
    with log.open("w") as out:
        lab = subprocess.Popen(
            ["make", "lab"], cwd=clone, env=env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        address = None
        for _ in range(600):
            found = re.search(
                r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab\S*\?token=(\w+)", log.read_text()
            )
            if found or lab.poll() is not None:
                address = found
                break
            time.sleep(1)
        assert address, log.read_text()
        port, token = address.groups()
        api = f"http://127.0.0.1:{port}/api/contents/notebooks/00_start_here.ipynb?content=0&token={token}"
        assert urllib.request.urlopen(api, timeout=60).status == 200
        assert "notebooks/00_start_here.ipynb" in address[0]
    finally:
        os.killpg(lab.pid, signal.SIGKILL)
        lab.wait(30)
    start = time.perf_counter()
    again = run("make", "-n", "lab", cwd=clone)
    assert "pip" not in again.stdout and "venv " not in again.stdout
    assert time.perf_counter() - start < 2
    doctor = run(clone / ".venv/bin/python", "-m", "d2lres", "doctor", cwd=clone)
    assert doctor.returncode == 0, doctor.stdout
    shutil.rmtree(clone / ".venv")


@posix_only
def test_make_names_the_remedy_for_a_python_that_is_too_old(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run("make", "lab", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert "needs Python 3.10 to 3.13" in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()


@posix_only
def test_make_help_names_every_target(clone):
    done = run("make", "help", cwd=clone)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "help",
        "lab",
        "test",
        "colab",
        "notebooks",
        "bench",
    ]
