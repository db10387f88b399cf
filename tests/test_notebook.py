"""A cell that is run too early says which one it needs."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from test_faults import Kernel

from d2lres.notebook import hint

ROOT = Path(__file__).resolve().parent.parent
CELLS = [
    "# the data\ntrain, test = load()",
    "def net():\n    inner = 1\n    return [loop for loop in range(3)]",
    "%magic that is no Python",
    "import torch.nn.functional as F\nimport os.path",
    "for epoch in range(2):\n    with open('x') as file:\n        last: int = epoch",
]


@pytest.mark.parametrize(
    "name, first",
    [
        ("train", "# the data"),
        ("test", "# the data"),
        ("net", "def net():"),
        ("epoch", "for epoch"),
        ("F", "import torch.nn"),
        ("os", "import torch.nn"),
        ("file", "for epoch"),
        ("last", "for"),
    ],
)
def test_the_hint_names_the_cell_that_makes_the_name(name, first):
    said = hint(name, CELLS)
    assert said.startswith(f"{name} is made by the cell that begins with\n    {first}")
    assert "Run All Above Selected Cell" in said


@pytest.mark.parametrize("name", ["inner", "loop", "trian", "torch"])
def test_a_name_that_no_cell_makes_gets_no_hint(name):
    assert hint(name, CELLS) is None


def test_without_the_notebook_the_hint_is_general():
    assert "If a cell above makes net, run it first" in hint("net", None)


@pytest.mark.parametrize("opened_in", ["JupyterLab", "Colab"])
def test_a_chapter_run_from_the_middle_names_the_first_missing_cell(tmp_path, opened_in):
    chapter = ROOT / "notebooks/01_degradation.ipynb"
    code = [
        "".join(cell["source"])
        for cell in json.loads(chapter.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"JPY_SESSION_NAME": str(chapter)} if opened_in == "JupyterLab" else {}
    with closing(Kernel(tmp_path, environment)) as kernel:
        reply, said = kernel.run(code[0])
        assert reply["status"] == "ok" and said == ""
        reply, said = kernel.run("print(train)")
        assert (reply["status"], reply["ename"]) == ("error", "NameError")
    if opened_in == "Colab":
        assert "If a cell above makes train, run it first" in said
    else:
        maker = next(source for source in code if "\ntrain" in source or source.startswith("train"))
        assert "train is made by the cell that begins with" in said
        assert maker.splitlines()[0] in said
