"""The hooks of .pre-commit-config.yaml, run as tests, without the one that test_notebooks runs."""

import pytest
import yaml
from commands import ROOT, python

CONFIG = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
HOOKS = {hook["id"]: hook["entry"].split() for hook in CONFIG["repos"][0]["hooks"]}


@pytest.mark.parametrize("hook", sorted(HOOKS.keys() - {"notebooks"}))
def test_the_hook_finds_nothing(hook):
    interpreter, *arguments = HOOKS[hook]
    assert interpreter == ".venv/bin/python"
    python(*arguments)
