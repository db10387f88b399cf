"""For every test the same start; for some a copy of the repository, or a JupyterLab that runs."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"(http://(?:localhost|127\.0\.0\.1):\d+)(/lab\S*)\?token=(\w+)")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a job in the background starts deaf
    signal.signal(signal.SIGINT, signal.default_int_handler)


torch.set_num_threads(1)  # nets this small lose time to threads, and much on a busy machine


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    """The same random numbers in every test, whatever ran before it, and no window for a figure."""
    torch.manual_seed(0)
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The files that a clone would hold, as they are in the working tree now."""
    folder = tmp_path_factory.mktemp("clone") / "d2lres"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def served():
    """Starts a command that serves JupyterLab; gives its address, first page and token."""

    @contextmanager
    def serve(command, folder, environment, log):
        with log.open("w") as out:
            lab = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            while not (found := ADDRESS.search(log.read_text())) and lab.poll() is None:
                time.sleep(0.5)  # pytest's time-out ends a wait without end
            assert found, log.read_text()
            yield found.groups()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(lab.pid, signal.SIGTERM)
            lab.wait(60)

    return serve
