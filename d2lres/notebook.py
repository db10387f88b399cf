"""In a notebook: cells run out of order say, below a NameError, which cell to run first."""

import dis
import json
import os


def explain_missing_names() -> None:
    """Follow every NameError of this notebook by a hint. Outside IPython it does nothing."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]
    except NameError:
        return
    shell.set_custom_exc((NameError,), _explain)


def _explain(shell, kind, error, trace, tb_offset=None) -> None:
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    name = getattr(error, "name", None)  # None if somebody's own code raised it
    if kind is NameError and name and (said := hint(name, _cells(shell))):
        print(said)


def hint(name: str, cells: list[str] | None) -> str | None:
    """What to run so that `name` exists. `cells`: the notebook's code, or None if it is unknown.

    None if no cell assigns the name: it is misspelt, then.
    """
    above = "Run > Run All Above Selected Cell"
    if cells is None:
        made = f"If a cell above makes {name}, run it first"
        return f"{made}: {above}, in Colab Runtime > Run before."
    for source in cells:
        if name in _made_by(source):
            first = source.strip().splitlines()[0]
            made = f"{name} is made by the cell that begins with\n    {first}"
            return f"{made}\nRun that cell first, or choose {above}."
    return None


def _made_by(source: str) -> set[str]:
    """The names that a cell's own lines assign, define or import; not those inside functions."""
    try:
        steps = dis.get_instructions(compile(source, "cell", "exec"))
    except (SyntaxError, ValueError):  # a magic command, a cell in the middle of an edit, a NUL
        return set()
    return {step.argval for step in steps if step.opname == "STORE_NAME"}


def _cells(shell) -> list[str] | None:
    """The notebook's code as it was last saved, where JupyterLab or VS Code say which it is."""
    path = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    try:
        with open(path, encoding="utf-8") as file:
            cells = json.load(file)["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, TypeError, ValueError, KeyError):
        return None
