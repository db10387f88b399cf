"""Every picture of the course, drawn by code: diagrams, learning curves, grids of images.

Each public function returns a `matplotlib.figure.Figure` on white whose attribute `alt` is its alt
text; `show` puts it into a notebook. Nothing here imports pyplot, so no figure stays open and the
reader's settings stay as they are. The colours are Okabe and Ito's (2008), which colour-blind
readers can tell apart, and never carry a meaning alone: plain nets are vermillion *and* dashed,
residual nets blue *and* solid. In diagrams the layers g(x) are orange and the shortcut is blue.
"""

import base64
import io
import os
import re
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
LAYERS, SHORTCUT = OKABE_ITO["orange"], OKABE_ITO["blue"]
DASHED = (0, (3, 1.4))
KINDS = {  # colour, line style
    "plain": (OKABE_ITO["vermillion"], DASHED),
    "residual": (OKABE_ITO["blue"], "-"),
}
OTHERS = [(OKABE_ITO[c], s) for c, s in (("green", "-."), ("purple", ":"), ("black", "-"))]
INK, GREY, PALE = "#222222", "#666666", "#D9D9D9"
CSS = 96  # CSS pixels per inch: at this dpi the diagrams' coordinates are CSS pixels


def show(fig: Figure) -> None:
    """Display `fig` as a PNG at twice its size in CSS pixels, sharp on any screen, with alt text.

    Outside IPython it prints the alt text.
    """
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return print(fig.alt)
    if get_ipython() is None:
        return print(fig.alt)
    png = io.BytesIO()
    # Without the name of the program the same figure gives the same bytes on every build.
    fig.savefig(png, format="png", dpi=2 * CSS, facecolor="white", metadata={"Software": None})
    width, height = (round(inches * CSS) for inches in fig.get_size_inches())
    bundle = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": fig.alt}
    # JupyterLab drops the alt text of a PNG, so a reader's session gets an <img> as well; builds and
    # tests, which set D2LRES_PROGRESS=0, keep the committed notebooks at half that size.
    if os.environ.get("D2LRES_PROGRESS") != "0":
        bundle["text/html"] = (
            f'<img src="data:image/png;base64,{bundle["image/png"]}" alt="{escape(fig.alt)}" '
            f'width="{width}" style="max-width: 100%; height: auto">'
        )
    display(
        bundle,
        raw=True,
        metadata={"image/png": {"alt": fig.alt, "width": width, "height": height}},
    )


def interactive(draw: Callable[..., Figure], **choices: Sequence) -> None:
    """Show draw(**values) with one slider per name over its `choices`, starting at the last ones.

    Where nobody can move a slider, the picture at the start stands alone: without ipywidgets,
    outside IPython, and in builds and tests, which set D2LRES_PROGRESS=0.
    """
    try:
        import ipywidgets
        from IPython import get_ipython
    except ImportError:
        ipywidgets, get_ipython = None, None
    start = {name: values[-1] for name, values in choices.items()}
    if ipywidgets is None or get_ipython() is None or os.environ.get("D2LRES_PROGRESS") == "0":
        return show(draw(**start))
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=list(values),
            value=start[name],
            description=name.replace("_", " "),
            continuous_update=False,
        )
        for name, values in choices.items()
    }
    ipywidgets.interact(lambda **values: show(draw(**values)), **sliders)


# Diagrams -----------------------------------------------------------------------------------------


def block(use_1x1conv: bool = False) -> Figure:
    """One residual block: the layers g(x), the shortcut, their sum (He et al. 2015, figure 2).

    With `use_1x1conv` the shortcut is a 1×1 convolution, drawn for strides=2 and doubled channels.
    """
    fig, ax = _canvas(400, 580)
    fig.alt = "Diagram of one residual block. " + _draw_block(ax, 0, use_1x1conv)
    return fig


def blocks() -> Figure:
    """Both kinds of residual block side by side."""
    fig, ax = _canvas(820, 580)
    left, right = _draw_block(ax, 0, False), _draw_block(ax, 420, True)
    fig.alt = f"Two residual blocks side by side. Left: {left} Right: {right}"
    return fig


def _draw_block(ax, left, use_1x1conv):
    """Draw a block into the 400 pixels right of `left` and return its description."""
    cx, sx, width, height = left + 174, left + 340, 164, 34
    stride, shape, shortcut = "", "c × h × w", "x"
    title, way = "Identity shortcut", "the input unchanged"
    if use_1x1conv:
        stride, shape, shortcut = ", stride 2", "2c × h/2 × w/2", "s(x)"
        title, way = "1×1 convolution as shortcut", "a convolution of 1 by 1 with stride 2"
    _text(ax, left + 200, 560, title, size=14, weight="bold")

    _text(ax, cx, 523, "x", size=15, style="italic")
    _text(ax, cx + 66, 523, "c × h × w", color=GREY, ha="left")
    _panel(ax, cx, 332, 196, 262, LAYERS)
    _text(ax, left + 40, 332, "g(x)", size=15, style="italic")
    _arrow(ax, (cx, 510), (cx, 444), color=GREY)
    ys = [427 - 47.5 * i for i in range(5)]
    layers = ["3×3 conv" + stride, "batch norm", "ReLU", "3×3 conv", "batch norm"]
    for y, layer in zip(ys, layers):
        _box(ax, cx, y, width, height, layer, LAYERS)
    for y, tip in zip(ys, [*(y + height / 2 for y in ys[1:]), 160]):
        _arrow(ax, (cx, y - height / 2), (cx, tip), color=LAYERS)

    ax.add_patch(Circle((cx, 482), 4.5, facecolor=SHORTCUT, linewidth=0, zorder=4))
    _arrow(ax, (cx, 482), (sx, 482), (sx, 147), (cx + 14, 147), color=SHORTCUT, lw=2.8)
    if use_1x1conv:
        _box(ax, sx, 332, 94, 54, "1×1 conv,\nstride 2", SHORTCUT)
    _text(ax, (cx + sx) / 2 + 10, 164, shortcut, size=15, color=SHORTCUT, style="italic")

    _plus(ax, cx, 147, 13)
    _text(ax, cx - 24, 147, f"f(x) = {shortcut} + g(x)", ha="right", style="italic")
    _arrow(ax, (cx, 134), (cx, 100), color=GREY)
    _box(ax, cx, 83, width, height, "ReLU", GREY)
    _arrow(ax, (cx, 66), (cx, 38), color=GREY)
    _text(ax, cx, 23, "ReLU(f(x))", size=14, style="italic")
    _text(ax, cx + 66, 23, shape, color=GREY, ha="left")
    return (
        "The input x goes two ways. The branch g(x): convolution 3 by 3, batch normalisation, "
        f"ReLU, convolution 3 by 3, batch normalisation. The shortcut: {way}. "
        "A circled plus adds the two, then a ReLU follows."
    )


def resnet18() -> Figure:
    """ResNet-18 for a 224×224 image: its 18 counted layers and the shapes between them."""
    fig, ax = _canvas(1000, 340)
    mid, height = 166, {112: 160, 56: 136, 28: 112, 14: 88, 7: 64, 1: 40}  # bar by map size

    def bar(x, size, number):
        _box(ax, x, mid, 24, height[size], str(number), LAYERS, size=10.5)

    def caption(x, name, size, channels=""):
        for y, text, colour in ((60, name, INK), (38, size, INK), (16, channels, GREY)):
            _text(ax, x, y, text, 11, colour, weight="bold" if text == name else "normal")

    _box(ax, 26, 318, 24, 24, "n", LAYERS, size=10.5)
    _text(ax, 46, 318, "1: 7×7 conv,  2–17: 3×3 conv,  18: fully connected", size=11, ha="left")
    for x, line, label in ((492, "-", "identity shortcut"), (720, DASHED, "1×1 conv shortcut")):
        _arrow(ax, (x, 318), (x + 44, 318), color=SHORTCUT, lw=2.4, linestyle=line)
        _text(ax, x + 54, 318, label, size=11, ha="left")

    _arrow(ax, (62, mid), (990, mid), color=GREY)
    _box(ax, 40, mid, 44, 184, "image", GREY, rotation=90)
    caption(40, "input", "224×224")
    bar(102, 112, 1)
    _box(ax, 138, mid, 24, height[56], "max pool", GREY, size=10.5, rotation=90)
    caption(118, "stem", "112×112", "64 channels")
    for stage, (size, channels) in enumerate(((56, 64), (28, 128), (14, 256), (7, 512))):
        left = 162 + 182 * stage
        _panel(ax, left + 87, mid + 10, 174, 204, GREY, alpha=0.08)
        caption(left + 87, f"stage {stage + 1}", f"{size}×{size}", f"{channels} channels")
        for k in range(2):
            x, top, by_conv = left + 82 * k, mid + 84, stage > 0 and k == 0
            corners = (x + 9, mid), (x + 9, top), (x + 80, top), (x + 80, mid + 9)
            _arrow(ax, *corners, color=SHORTCUT, lw=2.4, linestyle=DASHED if by_conv else "-")
            if by_conv:
                _box(ax, x + 44.5, top, 40, 22, "1×1", SHORTCUT, size=10.5)
            bar(x + 28, size, 4 * stage + 2 * k + 2)
            bar(x + 55, size, 4 * stage + 2 * k + 3)
            _plus(ax, x + 80, mid, 8)
    _box(ax, 914, mid, 24, 112, "average pool", GREY, size=10.5, rotation=90)
    bar(956, 1, 18)
    caption(938, "head", "1×1", "512 → classes")
    fig.alt = (
        "Diagram of ResNet-18 from left to right for an image of 224 by 224. Stem: convolution to "
        "112 by 112 with 64 channels, max pooling. Four stages of two residual blocks: 56 by 56 "
        "with 64 channels, 28 with 128, 14 with 256, 7 with 512. Then global average pooling to "
        "1 by 1 and a fully connected layer. Shortcuts are identities, except for a 1 by 1 "
        "convolution in the first block of stages 2, 3 and 4. Counted layers are numbered to 18."
    )
    return fig


def function_classes() -> Figure:
    """Larger function classes that do not contain each other, and nested ones, around a goal f*.

    Only nested ones are sure to come no farther from f*. For nets this is the argument of He et al.
    2015, section 1: a deeper net can copy a shallower one.
    """
    fig, ax = _canvas(840, 476)
    turn = np.radians(np.arange(361))
    panels = {  # left edge, kind, and per class: centre x, y, half axes, slant, name's angle
        "Not nested: larger can be farther": (
            0,
            "plain",
            [
                (292, 322, 36, 27, 20, 275),
                (326, 216, 64, 42, 110, 210),
                (200, 318, 80, 44, 10, 75),
                (132, 236, 114, 76, 60, 190),
            ],
        ),
        "Nested: larger is never farther": (
            425,
            "residual",
            [(150 + 15 * k, 222 + 15 * k, 36 + 36 * k, 28 + 22 * k, 30, 110) for k in range(4)],
        ),
    }
    for title, (left, kind, classes) in panels.items():
        colour, _ = KINDS[kind]
        goal = np.array([left + 366, 398])
        _text(ax, left + 210, 456, title, size=14, weight="bold")
        _text(ax, goal[0] + 25, goal[1], "f*", size=16, style="italic")
        for k, (x, y, a, b, slant, angle) in enumerate(classes, start=1):
            c, s = np.cos(np.radians(slant)), np.sin(np.radians(slant))
            edge = np.stack([a * np.cos(turn), b * np.sin(turn)], axis=1) @ [[c, s], [-s, c]]
            edge += left + x, y
            best = edge[np.argmin(np.linalg.norm(edge - goal, axis=1))]
            style = dict(facecolor=(colour, 0.08), edgecolor=colour, linewidth=0.8 + 0.5 * k)
            ax.add_patch(Polygon(edge, **style))
            plate = dict(facecolor="white", linewidth=0, boxstyle="round,pad=0.12")
            _text(ax, *edge[angle], f"F{k}", color=_shade(colour), weight="bold", bbox=plate)
            # Each distance twice: in place, and laid flat below so that the eye can compare.
            row, far = 96 - 23 * (k - 1), np.linalg.norm(goal - best)
            _text(ax, left + 110, row, f"F{k} to f*", ha="right")
            flat = (left + 124, row), (left + 124 + far, row)
            for start, end, size in ((best, goal, 20), (*flat, 10)):
                ax.plot(*zip(start, end), color=GREY, linewidth=1.4, linestyle=DASHED, zorder=3)
                ax.plot(*start, "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)
                ax.plot(*end, "*", color=INK, markersize=size, zorder=6)
    fig.alt = (
        "Two drawings of four function classes F1 to F4 of growing size and a goal f* outside of "
        "them, with the distance from the best function of each class to f*. Left, not nested: the "
        "classes wander, and the largest is farther from f* than the smallest. Right, nested: each "
        "class contains the one before, and the distance shrinks each time."
    )
    return fig


def paths(blocks: int = 3) -> Figure:
    """All 2^n ways through `blocks` residual blocks, 2 to 4 of them, sorted by length.

    The expansion of (I + J1)(I + J2)…(I + Jn), drawn. Source: Veit et al. 2016, figure 1.
    """
    if not 2 <= blocks <= 4:
        raise ValueError(f"a picture of 2 to 4 blocks can be read, not one of {blocks}.")
    ways = sorted(
        ([bool(way >> i & 1) for i in range(blocks)] for way in range(2**blocks)),
        key=lambda way: (sum(way), [not taken for taken in way]),
    )
    fig, ax = _canvas(760, 40 * len(ways) + 92)
    left, step = 130, 440 / blocks
    top = 40 * len(ways) + 20
    for i in range(blocks):
        _text(ax, left + step * (i + 0.5), top + 34, f"block {i + 1}", weight="bold")
    _text(ax, 66, top + 34, "length", weight="bold")
    _text(ax, 668, top + 34, "term", weight="bold")
    for row, way in enumerate(ways):
        y = top - 40 * row
        _text(ax, 66, y, str(sum(way)))
        _arrow(ax, (left - 16, y), (left + 456, y), color=SHORTCUT, lw=2.4)
        for i, taken in enumerate(way):
            if taken:
                _box(ax, left + step * (i + 0.5), y, 76, 28, f"g{i + 1}", LAYERS)
        term = " ".join(f"J{i + 1}" for i in reversed(range(blocks)) if way[i])
        _text(ax, 668, y, term or "I", style="italic")
    _text(
        ax,
        380,
        18,
        f"Each block may be taken or passed by: {len(ways)} paths in all.",
        size=11,
        color=GREY,
    )
    fig.alt = (
        f"The {len(ways)} paths through {blocks} residual blocks, one to a row, from the one that "
        "passes all blocks by to the one that takes them all, each with the product of Jacobians "
        "that it adds to the gradient."
    )
    return fig


def _canvas(width, height):
    """A figure of that many CSS pixels, whose data coordinates are those pixels, y upwards."""
    fig = Figure(figsize=(width / CSS, height / CSS), dpi=CSS, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def _text(ax, x, y, text, size=12, color=INK, ha="center", **style):
    """Text whose capitals, not whose ink, are centred on y: a comma must not lift its line."""
    if "va" not in style:
        y, style["va"] = y - 0.365 * size * CSS / 72, "baseline"
    ax.text(x, y, text, fontsize=size, color=color, ha=ha, zorder=5, **style)


def _panel(ax, x, y, width, height, color, alpha=0.14):
    corner = (x - width / 2, y - height / 2)
    style = dict(boxstyle="round,pad=0,rounding_size=12", facecolor=(color, alpha), linewidth=0)
    ax.add_patch(FancyBboxPatch(corner, width, height, zorder=0, **style))


def _box(ax, x, y, width, height, text, color, size=12, rotation=0):
    """A rounded box around (x, y), tinted with `color`."""
    corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=5"
    for fill, zorder in (("white", 2), ((color, 0.32), 3)):  # white first, to hide lines below it
        box = dict(boxstyle=shape, facecolor=fill, edgecolor=color, linewidth=1.6, zorder=zorder)
        ax.add_patch(FancyBboxPatch(corner, width, height, **box))
    style = dict(rotation=rotation, va="center") if rotation or "\n" in text else {}
    _text(ax, x, y, text, size=size, **style)


def _arrow(ax, *points, color, lw=2.0, linestyle="-", radius=14):
    """An arrow through `points`, its corners rounded and its head solid even on a dashed line."""
    points = np.array(points, dtype=float)
    ahead = points[-1] - points[-2]
    ahead /= np.linalg.norm(ahead)
    tip, base, side = points[-1], points[-1] - 11 * ahead, 5.5 * ahead[::-1] * (1, -1)
    head = Polygon([tip, base + side, base - side], facecolor=color, linewidth=0, zorder=1)
    path, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:]):
        for towards in (before, after):
            step = towards - corner
            path.append(corner + radius * step / np.linalg.norm(step))
        path.insert(-1, corner)
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    line = Path([*path, base], [*codes, Path.LINETO])
    style = dict(edgecolor=color, linewidth=lw, linestyle=linestyle, facecolor="none", zorder=1)
    ax.add_patch(PathPatch(line, **style, capstyle="butt"))
    ax.add_patch(head)


def _plus(ax, x, y, radius):
    ax.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=INK, linewidth=1.8, zorder=3))
    for dx, dy in ((0.6 * radius, 0), (0, 0.6 * radius)):
        ax.plot([x - dx, x + dx], [y - dy, y + dy], color=INK, linewidth=1.8, zorder=4)


# Measurements -------------------------------------------------------------------------------------

METRICS = {
    "loss": "training loss",
    "accuracy": "training accuracy",
    "error": "training error",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "test_error": "test error",
    "seconds": "seconds per epoch",
}
MARKERS = "os^DvP"


def learning_curves(
    runs: dict[str, object],
    metric: str = "loss",
    title: str | None = None,
    log: bool = False,
    alt: str | None = None,
) -> Figure:
    """`metric` against the epoch for each run; the name of a run says how it is drawn.

    A value of `runs` is a `History`, or a list of them, one per seed: then each is a thin line and
    their median a thick one. Names with 'plain' are dashed vermillion, with 'residual' solid blue;
    a number in the name is the depth, and deeper is darker. `metric` is a list of `History`, or
    'error' or 'test_error', which is 1 - accuracy. Raises ValueError if a run has no such values.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown: choose one of {', '.join(METRICS)}.")
    curves = {name: _values(name, run, metric) for name, run in runs.items()}
    fig, ax = _axes(METRICS[metric], "epoch", title)
    ends = []
    for (name, seeds), (colour, style) in zip(curves.items(), _styles(curves)):
        epochs, middle = np.arange(1, seeds.shape[1] + 1), np.median(seeds, axis=0)
        if len(seeds) > 1:
            thin = {**style, "linewidth": 0.9, "marker": "", "alpha": 0.5}
            ax.plot(epochs, seeds.T, **thin)
        marked = np.linspace(0, len(epochs) - 1, min(8, len(epochs))).astype(int).tolist()
        ax.plot(epochs, middle, **style, markevery=marked, zorder=3)
        ends.append((epochs[-1], middle[-1], name, colour))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if log:
        _log_scale(ax)
    elif metric.endswith(("accuracy", "error")):
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    _label_ends(fig, ax, ends)
    fig.alt = alt or (
        f"Line chart of the {METRICS[metric]} by epoch for {', '.join(runs)}.{_drawn(runs)}"
    )
    return fig


def depth_summary(
    losses: dict[tuple[str, int], list[float]],
    ylabel: str = "training loss at the end",
    title: str | None = None,
    log: bool = False,
    alt: str | None = None,
) -> Figure:
    """What each kind and depth reached: `losses["plain", 20]` holds one number per seed.

    One dot per seed, a line through the medians; the kinds are 'plain' and 'residual'.
    """
    depths = sorted({depth for _, depth in losses})
    fig, ax = _axes(ylabel, "depth (layers)", title)
    ends = []
    for kind, shift, marker in (("plain", -0.05, "s"), ("residual", 0.05, "o")):
        colour, line = KINDS[kind]
        at = [i for i, depth in enumerate(depths) if losses.get((kind, depth))]
        if not at:
            continue
        medians = [np.median(losses[kind, depths[i]]) for i in at]
        places = np.array(at) + shift
        ax.plot(places, medians, color=colour, linestyle=line, linewidth=2.6, zorder=2)
        for place, i in zip(places, at):
            values = losses[kind, depths[i]]
            apart = 0.012 * (np.arange(len(values)) - (len(values) - 1) / 2)
            style = dict(color=colour, markersize=8, markeredgecolor="white", zorder=3)
            ax.plot(place + apart, values, marker, **style)
        ends.append((places[-1], medians[-1], kind, colour))
    ax.set(xticks=range(len(depths)), xticklabels=depths, xlim=(-0.3, len(depths) - 0.7))
    if log:
        _log_scale(ax)
    _label_ends(fig, ax, ends)
    fig.alt = alt or (
        f"Chart of the {ylabel} by depth, {', '.join(map(str, depths))} layers, "
        "one dot per seed and a line through the medians."
        f"{_drawn(kind for kind, _ in losses)}"
    )
    return fig


def lines(
    curves: dict[str, Sequence],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    log: str = "",
    ylim: tuple[float, float] | None = None,
    alt: str | None = None,
) -> Figure:
    """A line per name, drawn as `learning_curves` draws that name.

    A value is the heights, at 1, 2, 3, …, or a pair (places, heights); where a height is inf or
    nan the line has a gap. log: "y" or "xy", the axes on a logarithmic scale.
    Raises ValueError for a line without one finite height.
    """
    fig, ax = _axes(ylabel, xlabel, title)
    ends = []
    for (name, values), (colour, style) in zip(curves.items(), _styles(curves)):
        pair = isinstance(values, tuple) and len(values) == 2 and np.ndim(values[0]) == 1
        x, y = values if pair else (range(1, len(values) + 1), values)
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        finite = np.flatnonzero(np.isfinite(y) & (y > 0 if "y" in log else True))
        if not len(finite):
            raise ValueError(f"{name!r} has no finite height to draw.")
        marked = finite[np.linspace(0, len(finite) - 1, min(8, len(finite))).astype(int)].tolist()
        ax.plot(x, y, **style, markevery=marked, zorder=3)
        ends.append((x[finite[-1]], y[finite[-1]], name, colour))
    ax.margins(x=0.02)
    if "x" in log:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if ylim:
        ax.set_ylim(ylim)
    if "y" in log:
        _log_scale(ax)
    _label_ends(fig, ax, ends)
    fig.alt = alt or (
        f"Line chart of the {ylabel} by {xlabel} for {', '.join(curves)}.{_drawn(curves)}"
    )
    return fig


def images(
    x,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    correct: Sequence[bool] | None = None,
    alt: str | None = None,
) -> Figure:
    """A grid of grey pictures: a tensor (N, 1, H, W), or `Images` from `d2lres.data`.

    Bytes are shown from black 0 to white 255, floats from the least to the greatest in `x`.
    With `correct`, the titles of wrong pictures are vermillion and crossed, of right ones blue.
    """
    named = titles is None and hasattr(x, "labels")
    if named:
        titles = [x.classes[label] for label in x.labels]
    pixels = getattr(x, "images", x)
    pixels = np.asarray(pixels.detach().cpu() if hasattr(pixels, "detach") else pixels)
    if pixels.ndim != 4 or pixels.shape[1] != 1 or not len(pixels):
        raise ValueError(f"images needs a tensor (N, 1, H, W) with N > 0, not {pixels.shape}.")
    for name, given in (("titles", titles), ("correct", correct)):
        if given is not None and len(given) != len(pixels):
            raise ValueError(f"{name} has {len(given)} entries for {len(pixels)} pictures.")
    black, white = (0, 255) if pixels.dtype == np.uint8 else (pixels.min(), pixels.max())
    lines = [line for title in titles or () for line in title.split("\n")]
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    side = 96
    wide = max(side + 8, 9 * max(map(len, lines), default=0) + 24)  # 10 pt need 9 pixels a letter
    high = side + 8 + (18 * max(t.count("\n") + 1 for t in titles) + 4 if titles else 0)
    fig, ax = _canvas(columns * wide + 8, rows * high + 8)
    for i, picture in enumerate(pixels[:, 0]):
        x, y = 4 + wide * (i % columns + 0.5), 8 + high * (rows - 1 - i // columns)
        extent = (x - side / 2, x + side / 2, y, y + side)
        ax.imshow(picture, "gray", vmin=black, vmax=white, extent=extent, aspect="auto")
        if titles:
            good = correct is None or correct[i]
            colour = INK if correct is None else KINDS["residual" if good else "plain"][0]
            mark = "" if good else "× "
            style = dict(fontsize=10, color=_shade(colour), ha="center")
            ax.text(x, y + side + 5, mark + titles[i], **style)
    ax.set(xlim=(0, columns * wide + 8), ylim=(0, rows * high + 8))
    if alt is None:
        alt = f"A grid of {len(pixels)} small pictures in grey, {columns} to a row"
        alt += f": {', '.join(titles)}." if named else "."
        alt += " Wrong predictions are crossed and vermillion, right ones blue." * bool(correct)
    fig.alt = alt
    return fig


def stacked(
    bars: dict[str, dict[str, float]],
    xlabel: str,
    title: str | None = None,
    alt: str | None = None,
) -> Figure:
    """One horizontal bar per name, from top to bottom, each a row of parts with their own names.

    `bars["backward"]["convolution"]` is the length of a part. The parts differ in colour and hatch.
    """
    fig, ax = _axes("", xlabel, title)
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    fills = [OKABE_ITO[colour] for colour in ("blue", "orange", "green", "yellow", "purple")]
    start = np.zeros(len(bars))
    for part, fill, hatch in zip(parts, fills, ("", "//", "..", "xx", "--")):
        lengths = np.array([bar.get(part, 0.0) for bar in bars.values()])
        ax.barh(
            range(len(bars)),
            lengths,
            left=start,
            color=fill,
            label=part,
            height=0.62,
            hatch=hatch,
            edgecolor="white",
            linewidth=1,
        )
        start += lengths
    for y, end in enumerate(start):
        ax.annotate(
            f"{end:.2g}",
            (end, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
            color=INK,
        )
    ax.set_yticks(range(len(bars)), list(bars), fontsize=12)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=11, frameon=False, loc="lower right")
    fig.alt = alt or (
        f"Bar chart of {xlabel}. From top to bottom: {', '.join(bars)}. "
        f"Each bar is made of {', '.join(parts)}."
    )
    return fig


def confusion(
    counts, classes: Sequence[str], title: str | None = None, alt: str | None = None
) -> Figure:
    """What each class is taken for: counts[true, predicted], (C, C), as a table in shades of blue.

    Right answers are on the diagonal, in bold; a shade is the share of its row. Zeros are left out.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"{len(classes)} classes need as many rows and columns, not {counts.shape}."
        )
    fig = Figure(figsize=(940 / CSS, 470 / CSS), dpi=CSS, facecolor="white", layout="constrained")
    ax = fig.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    blue = np.array(to_rgb(OKABE_ITO["blue"]))
    ax.imshow(1 - 0.6 * share[..., None] * (1 - blue), aspect="auto")  # the numbers stay readable
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            ax.text(
                predicted,
                true,
                f"{count}",
                ha="center",
                va="center",
                fontsize=11,
                color=INK,
                weight="bold" if true == predicted else "normal",
            )
    for set_ticks in (ax.set_xticks, ax.set_yticks):
        set_ticks(range(len(classes)), list(classes), fontsize=10, color=INK)
    ax.set_xlabel("predicted", fontsize=12, color=INK)
    ax.set_ylabel("true", fontsize=12, color=INK)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=13, color=INK, weight="bold", loc="left", pad=12)
    fig.alt = alt or (
        f"Confusion matrix of {len(classes)} classes: a row for each true class, a column for each "
        "predicted one. The darker a field, the larger its share of the row."
    )
    return fig


def _axes(ylabel, xlabel, title):
    fig = Figure(figsize=(720 / CSS, 410 / CSS), dpi=CSS, facecolor="white", layout="constrained")
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    ax = fig.add_subplot()
    ax.set_xlabel(xlabel, fontsize=12, color=INK)
    ax.set_ylabel(ylabel, fontsize=12, color=INK)
    if title:
        ax.set_title(title, fontsize=13, color=INK, weight="bold", loc="left", pad=12)
    ax.tick_params(which="both", labelsize=11, color=PALE, labelcolor=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ax.grid(axis="y", color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    return fig, ax


def _log_scale(ax):
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high > 1e4 * low:  # so many powers of ten that they alone are labelled
        ax.yaxis.set_major_locator(LogLocator(numticks=8))
        ax.yaxis.set_major_formatter(LogFormatterSciNotation())
        ax.yaxis.set_minor_formatter(NullFormatter())
        return
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high > 10 * low else (2, 3, 4, 5, 6, 8)))
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _values(name, run, metric):
    """`metric` as an array (seeds, epochs); runs of one name stop where the shortest stops."""
    histories = run if isinstance(run, (list, tuple)) else [run]
    rows = [getattr(history, metric.replace("error", "accuracy")) for history in histories]
    epochs = min(map(len, rows), default=0)
    if epochs == 0:
        raise ValueError(f"run {name!r} has no {METRICS[metric]} to draw: was it trained with it?")
    values = np.array([row[:epochs] for row in rows], dtype=float)
    return 1 - values if metric.endswith("error") else values


def _styles(names):
    """Colour and line by kind, marker by depth; within a kind a tint each, deeper or later darker."""
    depths = [int(n[0]) if (n := re.findall(r"\d+", name)) else 0 for name in names]
    kinds = [next((k for k in KINDS if k in name.lower()), name) for name in names]
    others = iter(OTHERS * len(kinds))
    by_depth = sorted(range(len(kinds)), key=depths.__getitem__)
    for i, (kind, depth) in enumerate(zip(kinds, depths)):
        colour, line = KINDS.get(kind) or next(others)
        same = [j for j in by_depth if kinds[j] == kind]
        strength = 1 - 0.5 * (len(same) - 1 - same.index(i)) / max(1, len(same) - 1)
        tint = 1 - strength * (1 - np.array(to_rgb(colour)))
        marker = MARKERS[sorted(set(depths)).index(depth) % len(MARKERS)]
        yield (
            colour,
            dict(
                color=tuple(tint),
                linestyle=line,
                marker=marker,
                linewidth=2.4,
                markersize=8,
                markeredgecolor="white",
            ),
        )


def _drawn(names) -> str:
    """How the kinds among these names are drawn, for the alt text."""
    names = " ".join(names).lower()
    plain = " Plain nets are dashed and vermillion." if "plain" in names else ""
    return plain + (" Residual nets are solid and blue." if "residual" in names else "")


def _shade(colour):
    """`colour` dark enough to write with: a contrast of 4.5 to white (WCAG 2.1, section 1.4.3)."""
    return tuple(0.75 * np.array(to_rgb(colour)))


def _label_ends(fig, ax, ends):
    """Write each line's name at its right end (x, y, name, colour), moved apart where they meet."""
    fig.draw_without_rendering()  # settles the layout, so that data can be turned into pixels
    ends = sorted(ends, key=lambda end: end[1])
    heights = [ax.transData.transform(end[:2])[1] for end in ends]
    for _ in range(200):
        heights[0] = max(heights[0], ax.bbox.y0 + 8)  # stay out of the margin below
        for i in range(1, len(heights)):
            overlap = 19 - (heights[i] - heights[i - 1])
            if overlap > 0:
                heights[i - 1] -= overlap / 2
                heights[i] += overlap / 2
    for (x, y, name, colour), height in zip(ends, heights):
        place = (1.04, ax.transAxes.inverted().transform((0, height))[1])
        line = dict(arrowstyle="-", color=GREY, linewidth=0.7, shrinkA=1, shrinkB=5)
        ax.annotate(
            name,
            (x, y),
            place,
            textcoords="axes fraction",
            va="center",
            fontsize=12,
            color=_shade(colour),
            weight="bold",
            arrowprops=line,
        )
