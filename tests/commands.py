"""The folder of the repository, and commands that must succeed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command, cwd: Path = ROOT, **options) -> str:
    """What the command printed; the test fails with all it said if the command does."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, encoding="utf-8", **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def python(*arguments, **options) -> str:
    return run(sys.executable, *arguments, **options)
