"""The hooks of .pre-commit-config.yaml, run as tests, without the one that test_notebooks runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
HOOKS = [hook for hook in CONFIG["repos"][0]["hooks"] if hook["id"] != "notebooks"]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_the_hook_finds_nothing(hook):
    python, *arguments = hook["entry"].split()
    assert python == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
