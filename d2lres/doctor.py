"""The doctor: can the course run here, and what to do about each thing that is missing."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import d2lres

COURSE = "pip install 'd2lres[course]'"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `needed` findings that are not `ok` stop the course from running."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True

    def __str__(self) -> str:
        mark = "ok" if self.ok else ("MISSING" if self.needed else "optional")
        remedy = f"\n{'':21}-> {self.remedy}" if self.remedy and not self.ok else ""
        return f"{mark:8} {self.name:12}{self.detail}{remedy}"


def findings() -> list[Finding]:
    """Look at Python, packages, device, threads, memory and data; nothing is changed or fetched."""
    found = [
        Finding(
            "Python",
            (3, 10) <= sys.version_info[:2] <= (3, 13),
            f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            "install Python 3.10 to 3.13 and make a new environment with it",
        )
    ]
    torch_works = True
    for name in ("torch", "torchvision"):
        finding = _import(name, "pip install --upgrade torch torchvision, both from one source")
        torch_works &= finding.ok
        found.append(finding)
    if not torch_works:
        return found
    found += [_device(), _memory(), _package("d2l", COURSE), _package("ipywidgets", COURSE)]
    found += [_package("jupyterlab", f"{COURSE}, unless you read the course in Colab", False)]
    return found + _data()


def report() -> tuple[str, bool]:
    """The findings as text, a line each, and whether the course can run."""
    found = findings()
    ready = all(finding.ok for finding in found if finding.needed)
    verdict = (
        "The course can run here."
        if ready
        else "The course cannot run yet: see the lines marked MISSING."
    )
    return "\n".join([f"d2lres {d2lres.__version__}", *map(str, found), verdict]), ready


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package(name: str, remedy: str, needed: bool = True) -> Finding:
    installed = _version(name)
    return Finding(name, installed is not None, installed or "not installed", remedy, needed)


def _import(name: str, remedy: str) -> Finding:
    """Imported, not only found: a torchvision of another build than torch fails only then."""
    try:
        __import__(name)
    except Exception as error:
        return Finding(name, False, f"cannot be imported ({error})", remedy)
    return Finding(name, True, _version(name) or "imported")


def _device() -> Finding:
    import torch

    from d2lres.training import default_device

    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return Finding("Device", True, f"{name}, {threads}")


def _memory() -> Finding:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return Finding("Memory", True, "unknown (the chapters need 2 GB)")
    return Finding(
        "Memory", size >= 1.8, f"{size:.1f} GB", "use a machine with at least 2 GB", needed=False
    )


def _data() -> list[Finding]:
    from d2lres._assets import asset
    from d2lres.data import DataError, fashion_mnist, local_copies

    try:
        train, test = fashion_mnist()
        sample = Finding(
            "Sample", True, f"Fashion-MNIST, {len(train):,} + {len(test):,} images, bundled"
        )
    except (DataError, FileNotFoundError) as error:
        sample = Finding("Sample", False, str(error), "install the course again")
    copies = {
        str(folder).replace(str(Path.home()), "~"): state
        for folder, state in local_copies().items()
    }
    complete = [folder for folder, state in copies.items() if state == "complete"]
    full = Finding(
        "Full set",
        bool(complete),
        complete[0]
        if complete
        else "; ".join(f"{folder}: {state}" for folder, state in copies.items()),
        "only a few cells use it; they download it (31 MB), or install the Debian and Ubuntu "
        "package dataset-fashion-mnist",
        needed=False,
    )
    try:
        results = sorted(path.stem for path in asset("results").glob("*.json"))
    except FileNotFoundError:
        results = []
    return [
        sample,
        full,
        Finding("Records", bool(results), ", ".join(results), "install the course again"),
    ]
