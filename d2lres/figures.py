"""The charts of the course, drawn by code, and `show`, which puts a picture into a notebook.

A chart is a `Figure` on white whose attribute `alt` is its alt text. Nothing here imports pyplot, so
no figure stays open and the reader's settings stay as they are. The colours are Okabe and Ito's
(2008), which colour-blind readers can tell apart, and never carry a meaning alone.

The key of a line says how it is drawn. A net is a tuple ("plain", 56) of kind and depth, also
("plain",) or ("plain", 56, "more words"): "plain" is vermillion and dashed, "residual" blue and
solid, another kind a ValueError. Any other line has a string as its key, its name.
"""

import base64
import io
import os
import sys
from html import escape
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from d2lres.arguments import instance, shown, whole, yes_or_no
from d2lres.records import asset

BLACK, ORANGE, GREEN, YELLOW = "#000000", "#E69F00", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
INK, GREY, PALE = "#222222", "#666666", "#D9D9D9"
CSS = 96  # CSS pixels per inch
DASHED = (0, (3, 1.4))
KINDS = {"plain": (VERMILLION, DASHED), "residual": (BLUE, "-")}
LOOKS = {"plain": "dashed and vermillion", "residual": "solid and blue"}  # the same in words
OTHERS = [(GREEN, "-."), (PURPLE, ":"), (BLACK, "-")]
MARKERS, DOT = "os^DvP", dict(markersize=8, markeredgecolor="white")


def png(fig: Any) -> bytes:
    """`fig` at two pixels per CSS pixel, its alt text inside; the same figure gives the same bytes."""
    if not isinstance(getattr(fig, "alt", None), str):
        raise ValueError("the figure needs a text for those who cannot see it: set its alt.")
    file, about = io.BytesIO(), {"Description": fig.alt, "Software": None}
    fig.savefig(file, format="png", dpi=2 * CSS, facecolor="white", metadata=about)
    return file.getvalue()


def show(picture: Figure | str) -> None:
    """Display a figure, or the picture of that name which comes with the course, with its alt text.

    Outside IPython it prints the alt text. Raises ValueError if there is no picture of that name.
    """
    if isinstance(instance("picture", picture, (Figure, str), "a figure or a name"), str):
        shipped = {path.stem: path for path in sorted(asset("pictures").glob("*.png"))}
        if picture not in shipped:
            known = ", ".join(shipped)
            raise ValueError(f"there is no picture {shown(picture)}: choose one of {known}.")
    data = png(picture) if isinstance(picture, Figure) else shipped[picture].read_bytes()
    image: Any = Image.open(io.BytesIO(data))
    alt, (width, height) = image.text["Description"], (side // 2 for side in image.size)
    if not _in_ipython():
        return print(alt)
    from IPython.display import display

    bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": alt}
    # JupyterLab drops the alt text of a PNG, so a reader's session gets an <img> as well; builds and
    # tests, which set D2LRES_PROGRESS=0, keep the committed notebooks at half that size.
    if os.environ.get("D2LRES_PROGRESS") != "0":
        bundle["text/html"] = (
            f'<img src="data:image/png;base64,{bundle["image/png"]}" alt="{escape(alt)}" '
            f'width="{width}" style="max-width: 100%; height: auto">'
        )
    display(bundle, raw=True, metadata={"image/png": dict(alt=alt, width=width, height=height)})


def interactive(draw, **choices) -> None:
    """Show draw(**values) with one slider per name over its `choices`, starting at the last ones.

    Where nobody can move a slider, the picture at the start stands alone: without ipywidgets,
    outside IPython, and in builds and tests, which set D2LRES_PROGRESS=0.
    """
    try:
        from ipywidgets import SelectionSlider, interact
    except ImportError:
        interact = None
    if interact is None or not _in_ipython() or os.environ.get("D2LRES_PROGRESS") == "0":
        return show(draw(**{name: values[-1] for name, values in choices.items()}))
    sliders = {}
    for name, values in choices.items():
        style = dict(description=name.replace("_", " "), continuous_update=False)
        sliders[name] = SelectionSlider(options=values, value=values[-1], **style)
    interact(lambda **values: show(draw(**values)), **sliders)


def learning_curves(runs: dict, metric="loss", title=None, log="", alt=None) -> Figure:
    """`metric`, a list of `History`, against the epoch for each run, drawn as by `lines`.

    A value of `runs` is a `History`, or a list of them, one per seed, cut to the shortest. Scores
    that began late are drawn at their epochs. Raises ValueError for anything else.
    """
    curves = {}
    for key, run in instance("runs", runs, dict, "a dict of histories").items():
        histories = run if isinstance(run, list) else [run]
        rows: list[Any] = [getattr(history, str(metric), None) for history in histories]
        if not all(hasattr(row, "__len__") for row in rows):
            raise ValueError(f"the run {shown(key)} is no History, or has no list {shown(metric)}.")
        epochs = [len(getattr(run, "loss", row)) for run, row in zip(histories, rows)]
        late = max((n - len(row) for n, row in zip(epochs, rows)), default=0)
        rows = [row[late - n + len(row) :] for n, row in zip(epochs, rows)]
        shortest = min(map(len, rows), default=0)
        curves[key] = (range(late + 1, late + shortest + 1), [row[:shortest] for row in rows])
    ylabel = metric.replace("_", " ") if "test" in metric else f"training {metric}"
    return lines(curves, "epoch", ylabel, title, log, alt=alt)


def lines(curves: dict, xlabel, ylabel, title=None, log="", ylim=None, alt=None) -> Figure:
    """One line for each key of `curves`; of one kind, the deeper net is darker.

    A value is the heights, at 1, 2, 3, …, or a tuple (places, heights); inf and nan leave a gap.
    Heights of shape (seeds, places) give a thin line per seed and a thick median. log: "y" or "xy",
    the logarithmic axes. Raises ValueError for a line without one finite height.
    """
    if not instance("curves", curves, dict, "a dict of lines"):
        raise ValueError("curves has no line to draw.")
    for key in curves:
        known = isinstance(key, str) or (
            isinstance(key, tuple) and all(isinstance(d, int) for d in key[1:2])
        )
        if not key or not known:
            wanted = "a name, or a tuple such as ('plain', 56)"
            raise ValueError(f"the key of a line must be {wanted}, not {shown(key)}.")
    if log not in ("", "y", "xy"):
        raise ValueError(f"log must be '', 'y' or 'xy', not {shown(log)}.")
    fig, ax = axes(xlabel, ylabel, title)
    names, looks, ends = list(map(_name, curves)), _looks(curves), []
    for name, values, (colour, style) in zip(names, curves.values(), _styles(curves)):
        pair = isinstance(values, tuple) and len(values) == 2 and np.ndim(values[0])
        try:
            seeds = np.atleast_2d(np.asarray(values[1] if pair else values, dtype=float))
            x = np.asarray(values[0] if pair else range(1, seeds.shape[1] + 1), dtype=float)
            y = np.median(seeds, axis=0) + 0 * x  # ValueError where places and heights differ
        except (TypeError, ValueError, RuntimeError) as error:
            wanted = "numbers, or a tuple of as many places and heights"
            raise ValueError(f"the line {shown(name)} must be {wanted}.") from error
        finite = np.flatnonzero(np.isfinite(y) & (y > 0 if "y" in log else True))
        if y.ndim != 1 or not len(finite):
            raise ValueError(f"the line {shown(name)} has no finite {shown(ylabel)} to draw.")
        if len(seeds) > 1:
            ax.plot(x, seeds.T, **style | dict(linewidth=0.9, marker="", alpha=0.5))
        marked = finite[np.linspace(0, len(finite) - 1, min(8, len(finite))).astype(int)].tolist()
        ax.plot(x, y, **style, markevery=marked, zorder=3)
        ends.append((x[finite[-1]], y[finite[-1]], name, colour))
    ax.margins(x=0.02)
    whole = all(np.all(line.get_xdata() % 1 == 0) for line in ax.lines)
    ax.xaxis.get_major_locator().set_params(integer=whole, min_n_ticks=1 if whole else 2)
    if "x" in log:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    if ylim:
        ax.set_ylim(ylim)
    alt = alt or f"Line chart of the {ylabel} by {xlabel} for {', '.join(names)}.{looks}"
    return _finish(fig, ends, "y" in log, alt)


def images(x, titles=None, columns=8, correct=None, alt=None) -> Figure:
    """A grid of pictures: a tensor (N, 1, H, W), bytes in colour (N, 3, H, W), or `Images`.

    Grey bytes are shown from black 0 to white 255, floats from the least to the greatest in `x`.
    `titles` and `correct` have one entry each per picture: the titles of wrong pictures are
    vermillion and crossed, of right ones blue. Raises ValueError for another shape or length.
    """
    named = titles is None and hasattr(x, "labels")
    titles = [x.classes[label] for label in x.labels] if named else titles
    pixels = getattr(x, "images", x)
    try:
        pixels = np.asarray(pixels.detach().cpu() if hasattr(pixels, "detach") else pixels)
    except (TypeError, ValueError) as error:  # lists of what are no numbers
        raise ValueError(f"images needs a tensor (N, 1, H, W), not {shown(x)}.") from error
    channels = (1, 3) if pixels.dtype == np.uint8 else (1,)
    fits = pixels.ndim == 4 and pixels.shape[1] in channels and pixels.size
    if not fits or pixels.dtype.kind not in "uif":
        raise ValueError(f"images needs a tensor (N, 1, H, W) with N > 0, not {pixels.shape}.")
    titles = list(map(str, _entries("titles", titles, len(pixels))))
    correct = [yes_or_no("each of correct", e) for e in _entries("correct", correct, len(pixels))]
    black, white = (0, 255) if pixels.dtype == np.uint8 else (pixels.min(), pixels.max())
    columns = min(whole("columns", columns), len(pixels))
    rows, side = -(-len(pixels) // columns), 96
    longest = max((len(line) for title in titles for line in title.split("\n")), default=0)
    wide = max(side + 8, 9 * longest + 24)  # 10 pt need 9 pixels a letter
    high = side + 8 + (18 * max(t.count("\n") + 1 for t in titles) + 4 if titles else 0)
    fig, ax = canvas(columns * wide + 8, rows * high + 8)
    for i, picture in enumerate(pixels.transpose(0, 2, 3, 1)):
        x, y = 4 + wide * (i % columns + 0.5), 8 + high * (rows - 1 - i // columns)
        extent = (x - side / 2, x + side / 2, y, y + side)
        ax.imshow(picture, "gray", vmin=black, vmax=white, extent=extent, aspect="auto")
        if titles:
            colour, mark = INK, ""
            if correct:
                colour, mark = (BLUE, "") if correct[i] else (VERMILLION, "× ")
            style = dict(size=10, color=shade(colour), ha="center", parse_math=False)
            ax.text(x, y + side + 5, mark + titles[i], **style)
    listed = f": {', '.join(titles)}." if named else "."
    listed += " Wrong predictions are crossed and vermillion, right ones blue." * bool(
        correct and titles
    )
    kind = "grey" if pixels.shape[1] == 1 else "coloured"
    fig.alt = alt or f"A grid of {len(pixels)} small {kind} pictures, {columns} to a row{listed}"
    return fig


def _entries(name, given, pictures):
    """`given` as a list with one entry for each picture; an empty one for None."""
    if given is None:
        return []
    plain = given.tolist() if hasattr(given, "tolist") else given
    entries = instance(name, plain, (list, tuple), "a list")
    if len(entries) != pictures:
        raise ValueError(f"{name} has {len(entries)} entries for {pictures} pictures.")
    return list(entries)


def canvas(width: int, height: int):
    """(figure, axes) of that many CSS pixels, whose data coordinates are those pixels, y upwards."""
    fig = Figure(figsize=(width / CSS, height / CSS), dpi=CSS, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def axes(xlabel, ylabel, title=None, width: int = 720, height: int = 410):
    """(figure, axes) of that many CSS pixels for a chart, with labels; set the figure's `alt`."""
    fig = Figure(figsize=(width / CSS, height / CSS), dpi=CSS, facecolor="white")
    fig.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    ax = fig.add_subplot()
    label: Any = dict(color=INK, parse_math=False)  # or two dollars would be a formula
    ax.set_xlabel(xlabel, size=12, **label)
    ax.set_ylabel(ylabel, size=12, **label)
    ax.set_title(title, size=13, weight="bold", loc="left", pad=12, **label)
    ax.tick_params(which="both", labelsize=11, color=PALE, labelcolor=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ax.grid(axis="y", color=PALE, linewidth=0.6)
    return fig, ax


def shade(colour: str) -> tuple[float, ...]:
    """`colour` dark enough to write with: a contrast of 4.5 to white (WCAG 2.1, section 1.4.3)."""
    return tuple(0.75 * np.array(to_rgb(colour)))


def _in_ipython():
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _name(key):
    """What stands at the end of a line: a string as it is, a net as "plain-56, more words"."""
    return key if isinstance(key, str) else ", ".join(["-".join(map(str, key[:2])), *key[2:]])


def _looks(keys):
    """How the kinds among these keys are drawn, for the alt text."""
    kinds = {key[0] for key in keys if not isinstance(key, str)}
    if unknown := kinds - set(KINDS):
        raise ValueError(
            f"a net is {' or '.join(KINDS)}, not {shown(unknown.pop())}: name it instead."
        )
    return "".join(f" {k.capitalize()} nets are {look}." for k, look in LOOKS.items() if k in kinds)


def _styles(keys):
    """Colour and line by kind, marker by depth; within a kind a tint each, deeper or later darker."""
    nets = [(None, 0) if isinstance(key, str) else (*key, 0)[:2] for key in keys]
    depths, others = sorted({depth for _, depth in nets}), cycle(OTHERS)
    for i, (kind, depth) in enumerate(nets):
        colour, line = KINDS[kind] if kind else next(others)
        same = sorted((d, j) for j, (k, d) in enumerate(nets) if k == kind) if kind else [(0, i)]
        strength = 1 - 0.5 * (len(same) - 1 - same.index((depth, i))) / max(1, len(same) - 1)
        tint = tuple(1 - strength * (1 - np.array(to_rgb(colour))))
        marker = MARKERS[depths.index(depth) % len(MARKERS)]
        yield colour, dict(color=tint, linestyle=line, linewidth=2.4, marker=marker, **DOT)


def _finish(fig, ends, log, alt):
    """Set scale and alt text; name each line at its end, (x, y, name, colour), without overlap."""
    ax, fig.alt = fig.axes[0], alt
    if log:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high <= 1e4 * low:  # too few powers of ten to be the only labels
            within = (2, 5) if high > 10 * low else (2, 3, 4, 5, 6, 8)
            ax.yaxis.set_minor_locator(ticker.LogLocator(subs=within))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
    fig.draw_without_rendering()  # settles the layout, so that data can be turned into pixels
    ends = sorted(ends, key=lambda end: end[1])
    heights = [ax.transData.transform(end[:2])[1] for end in ends]
    for _ in range(200):
        heights[0] = max(heights[0], ax.bbox.y0 + 8)  # stay out of the margin below
        for i in range(1, len(heights)):
            overlap = max(0, 19 - (heights[i] - heights[i - 1]))
            heights[i - 1] -= overlap / 2
            heights[i] += overlap / 2
    for (x, y, name, colour), height in zip(ends, heights):
        place = (1.04, ax.transAxes.inverted().transform((0, height))[1])
        line = dict(arrowstyle="-", color=GREY, linewidth=0.7, shrinkA=1, shrinkB=5)
        style = dict(va="center", size=12, color=shade(colour), weight="bold", parse_math=False)
        style |= dict(arrowprops=line)
        ax.annotate(name, (x, y), place, textcoords="axes fraction", **style)
    return fig
