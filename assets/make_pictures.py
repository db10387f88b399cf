"""Draws the README's two pictures from the recorded experiment and the ledger of claims.

python assets/make_pictures.py
"""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from d2lres import figures
from d2lres.claims import claims
from d2lres.experiments import recorded
from d2lres.training import History

PICTURES = Path(__file__).resolve().parent / "pictures"
BLUE, ORANGE, VERMILLION = (figures.OKABE_ITO[c] for c in ("blue", "orange", "vermillion"))
VERDICTS = {"holds": (BLUE, "o"), "holds when": (ORANGE, "s"), "false": (VERMILLION, "X")}


def degradation() -> Figure:
    """Training loss of every run of the recorded experiment, by kind and depth."""
    result = recorded("degradation")
    curves: dict[str, list[History]] = {}
    for run in result["runs"]:
        curves.setdefault(f"{run['kind']}-{run['depth']}", []).append(History(**run["history"]))
    seeds = len(result["config"]["seeds"])
    title = f"56 layers: plain is stuck, residual is not ({seeds} seeds each)"
    return figures.learning_curves(curves, title=title, log=True)


def ledger() -> Figure:
    """One line a claim, marked with its verdict."""
    rows = claims()
    lines = [textwrap.wrap(row["claim"], 96) for row in rows]
    height = 92 + sum(20 * len(wrapped) + 8 for wrapped in lines)
    fig, ax = figures._canvas(880, height)
    figures._text(
        ax, 24, height - 24, "What the course measured", size=14, ha="left", weight="bold"
    )
    for x, (verdict, (color, marker)) in zip((32, 140, 300), VERDICTS.items()):
        ax.plot(x, height - 56, marker, color=color, markersize=10)
        words = f"{verdict} …" if verdict == "holds when" else verdict
        figures._text(ax, x + 16, height - 56, words, size=11, ha="left", weight="bold")
    y = height - 92
    for row, wrapped in zip(rows, lines):
        verdict = next(v for v in ("holds when", "holds", "false") if row["verdict"].startswith(v))
        color, marker = VERDICTS[verdict]
        ax.plot(32, y, marker, color=color, markersize=10)
        figures._text(ax, 56, y, row["id"], size=11, ha="left", weight="bold")
        for line in wrapped:
            figures._text(ax, 104, y, line, size=11, ha="left")
            y -= 20
        y -= 8
    return fig


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for draw in (degradation, ledger):
        draw().savefig(PICTURES / f"{draw.__name__}.png", dpi=144, facecolor="white")
