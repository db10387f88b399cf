"""The doctor: can the course run here, and what to do about each thing that is missing."""

import importlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import d2lres
from d2lres.data import fashion_mnist
from d2lres.training import default_device


def report() -> tuple[str, bool]:
    """What was found, a line each, and whether the course can run. Nothing is changed or fetched."""
    lines, ready = [f"d2lres {d2lres.__version__}"], True
    for name, (look, remedy, needed) in CHECKS.items():
        try:
            ok, detail = look(name)
        except Exception as error:  # whatever a broken installation raises
            ok, detail = False, str(error).partition("\n")[0]
        mark = "ok" if ok else ("MISSING" if needed else "optional")
        lines.append(f"{mark:8} {name:13}{detail}" + f"\n{'':22}-> {remedy}" * (not ok))
        ready = ready and (ok or not needed)
    verdict = "can run here." if ready else "cannot run yet: see the lines marked MISSING."
    lines.append(f"The course {verdict}")
    return "\n".join(lines), ready


def _python(name: str) -> tuple[bool, str]:
    known = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return known, f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _asserts(name: str) -> tuple[bool, str]:
    return __debug__, "run" if __debug__ else "left out by -O or PYTHONOPTIMIZE"


def _home(name: str) -> tuple[bool, str]:
    home = Path("~").expanduser()  # RuntimeError without HOME and for a user without a name
    fits = home.is_dir() and os.access(home, os.W_OK)
    return fits, "can be written" if fits else str(home)


def _device(name: str) -> tuple[bool, str]:
    kind = default_device().type
    device = torch.cuda.get_device_name() if kind == "cuda" else kind.upper()
    return True, f"{device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"


def _memory(name: str) -> tuple[bool, str]:
    if not hasattr(os, "sysconf"):  # Windows
        return True, "unknown (the chapters need 2 GB)"
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return size >= 1.8, f"{size:.1f} GB"


def _sample(name: str) -> tuple[bool, str]:
    train, test = fashion_mnist()
    return True, f"Fashion-MNIST, {len(train):,} + {len(test):,} images, bundled"


def _package(name: str) -> tuple[bool, str]:
    if name in IMPORTED:
        importlib.import_module(IMPORTED[name])
    return True, version(name)


# One of another build than torch fails only here, as does a backend that is not installed.
IMPORTED = {"torchvision": "torchvision", "matplotlib": "matplotlib.pyplot"}
COURSE = "pip install 'd2lres[course]'"
TORCH = "pip install --upgrade torch torchvision, both from one source"
CHECKS: dict[str, tuple] = {  # name: what looks at it, the remedy, and whether it is needed
    "Python": (_python, "install Python 3.10 to 3.13 and make a new environment with it", True),
    "torch": (_package, TORCH, True),
    "torchvision": (_package, TORCH, True),
    "Asserts": (_asserts, "start Python without -O and unset PYTHONOPTIMIZE", True),
    "Home": (_home, "set HOME to a folder of yours: JupyterLab keeps its files there", False),
    "Device": (_device, TORCH, True),
    "Memory": (_memory, "use a machine with at least 2 GB", False),
    "matplotlib": (_package, "unset MPLBACKEND, or pip install --upgrade matplotlib", True),
    "d2l": (_package, COURSE, True),
    "ipywidgets": (_package, COURSE, True),
    "scikit-image": (_package, f"{COURSE}, for chapter 08", True),
    "scikit-learn": (_package, f"{COURSE}, for chapter 08", True),
    "jupyterlab": (_package, f"{COURSE}, unless you read the course in Colab", False),
    "Sample": (_sample, "install the course again", True),
}
