"""A cell that is run too early says which one it needs."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from run_alone import run

from d2lres.notebook import _explain, hint

CHAPTER = Path(__file__).resolve().parent.parent / "notebooks/01_degradation.ipynb"
CELLS = [
    "# the data\ntrain, test = load()",
    "def net():\n    inner = 1\n    return [loop for loop in range(3)]",
    "%magic that is no Python",
    "import torch.nn.functional as F\nimport os.path",
    "for epoch in range(2):\n    with open('x') as file:\n        last: int = epoch",
]
MAKERS = {
    "# the data": ("train", "test"),
    "def net():": ("net",),
    "import torch.nn": ("F", "os"),
    "for epoch": ("epoch", "file", "last"),
}


def test_the_hint_names_the_cell_that_makes_the_name():
    for first, names in MAKERS.items():
        for name in names:
            said = hint(name, CELLS)
            assert said.startswith(f"{name} is made by the cell that begins with\n    {first}")
            assert "Run All Above Selected Cell" in said
    assert not any(hint(name, CELLS) for name in ("inner", "loop", "trian", "torch"))


def test_a_hint_never_fails_and_never_names_none(tmp_path, monkeypatch, capsys):
    """An error without a name, as somebody's own code raises it; a notebook that is none."""
    shell = SimpleNamespace(showtraceback=lambda *_, **__: None, user_ns={})
    file = tmp_path / "a.ipynb"
    monkeypatch.setenv("JPY_SESSION_NAME", str(file))
    for content in (b"", b"\xff", b"[]", b'{"cells": 3}', b'{"cells": [{}]}', b'{"cells": [1]}'):
        file.write_bytes(content)
        _explain(shell, NameError, NameError("name 'x' is not defined", name="x"), None)
        assert capsys.readouterr().out.startswith("If a cell above makes x, run it first")
        for error in (NameError("mine"), NameError(), pickle.loads(pickle.dumps(NameError("a")))):
            _explain(shell, NameError, error, None)
            assert capsys.readouterr().out == ""
    assert hint("x", ["\0", "x = 1"]).startswith("x is made by the cell")


def test_a_chapter_run_from_the_middle_names_the_first_missing_cell(monkeypatch):
    """In general where the notebook is unknown, as in Colab, and by its first line in JupyterLab."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    cells = nbformat.read(CHAPTER, nbformat.NO_CONVERT).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    opened = f"import os; os.environ['JPY_SESSION_NAME'] = {str(CHAPTER)!r}"
    fails = dict(tags=["raises-exception"])
    cells = [new_code_cell(c, metadata=fails) for c in (code[0], "print(train)", opened, "train")]
    notebook = new_notebook(cells=cells)
    assert run(notebook) == ""
    said = ["".join(o.get("text", o.get("ename", "")) for o in c.outputs) for c in notebook.cells]
    assert said[0] == said[2] == "" and "NameError" in said[1] and "NameError" in said[3]
    assert "If a cell above makes train, run it first" in said[1]
    maker = next(source for source in code if "\ntrain" in source or source.startswith("train"))
    assert "train is made by the cell that begins with" in said[3]
    assert maker.splitlines()[0] in said[3]
