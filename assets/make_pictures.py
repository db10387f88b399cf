"""Draws the pictures that come with the course into assets/pictures, each with its alt text inside.

python assets/make_pictures.py

The functions below are named as the pictures. The README shows `degradation` and `ledger`, the
chapters the diagrams, by `figures.show("blocks")`. In diagrams the layers g(x) are orange and the
shortcut is blue.
"""

import textwrap
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve

from d2lres.figures import (
    BLUE,
    CSS,
    DASHED,
    GREEN,
    GREY,
    INK,
    KINDS,
    ORANGE,
    VERMILLION,
    canvas,
    learning_curves,
    png,
    shade,
)
from d2lres.records import claims, recorded
from d2lres.training import History

FOLDER = Path(__file__).resolve().parent / "pictures"
LAYERS, SHORTCUT = ORANGE, BLUE
VERDICTS = {"holds": (BLUE, "o"), "holds when": (ORANGE, "s"), "false": (VERMILLION, "X")}


def block() -> Figure:
    """One residual block: the layers g(x), the shortcut, their sum (He et al. 2015, figure 2)."""
    fig, ax = canvas(400, 580)
    fig.alt = "Diagram of one residual block. " + draw_block(ax, 0)
    return fig


def blocks() -> Figure:
    """Both kinds of residual block side by side: the shortcut is x, or a 1×1 convolution of it."""
    fig, ax = canvas(820, 580)
    left, right = draw_block(ax, 0), draw_block(ax, 420, use_1x1conv=True)
    fig.alt = f"Two residual blocks side by side. Left: {left} Right: {right}"
    return fig


def draw_block(ax, left, use_1x1conv=False):
    """Draw a block into the 400 pixels right of `left` and return its description.

    A convolution as shortcut is drawn for strides=2 and doubled channels.
    """
    cx, sx, width, height = left + 174, left + 340, 164, 34
    stride, shape, shortcut = "", "c × h × w", "x"
    title, way = "Identity shortcut", "the input unchanged"
    if use_1x1conv:
        stride, shape, shortcut = ", stride 2", "2c × h/2 × w/2", "s(x)"
        title, way = "1×1 convolution as shortcut", "a convolution of 1 by 1 with stride 2"
    write(ax, left + 200, 560, title, size=14, weight="bold")

    write(ax, cx, 523, "x", size=15, style="italic")
    write(ax, cx + 66, 523, "c × h × w", color=GREY, ha="left")
    panel(ax, cx, 332, 196, 262, LAYERS)
    write(ax, left + 40, 332, "g(x)", size=15, style="italic")
    arrow(ax, (cx, 510), (cx, 444), color=GREY)
    ys = [427 - 47.5 * i for i in range(5)]
    layers = ["3×3 conv" + stride, "batch norm", "ReLU", "3×3 conv", "batch norm"]
    for y, layer in zip(ys, layers):
        box(ax, cx, y, width, height, layer, LAYERS)
    for y, tip in zip(ys, [*(y + height / 2 for y in ys[1:]), 160]):
        arrow(ax, (cx, y - height / 2), (cx, tip), color=LAYERS)

    ax.add_patch(Circle((cx, 482), 4.5, facecolor=SHORTCUT, linewidth=0, zorder=4))
    arrow(ax, (cx, 482), (sx, 482), (sx, 147), (cx + 14, 147), color=SHORTCUT, lw=2.8)
    if use_1x1conv:
        box(ax, sx, 332, 94, 54, "1×1 conv,\nstride 2", SHORTCUT)
    write(ax, (cx + sx) / 2 + 10, 164, shortcut, size=15, color=SHORTCUT, style="italic")

    plus(ax, cx, 147, 13)
    write(ax, cx - 24, 147, f"f(x) = {shortcut} + g(x)", ha="right", style="italic")
    arrow(ax, (cx, 134), (cx, 100), color=GREY)
    box(ax, cx, 83, width, height, "ReLU", GREY)
    arrow(ax, (cx, 66), (cx, 38), color=GREY)
    write(ax, cx, 23, "ReLU(f(x))", size=14, style="italic")
    write(ax, cx + 66, 23, shape, color=GREY, ha="left")
    return (
        "The input x goes two ways. The branch g(x): convolution 3 by 3, batch normalisation, "
        f"ReLU, convolution 3 by 3, batch normalisation. The shortcut: {way}. "
        "A circled plus adds the two, then a ReLU follows."
    )


def resnet18() -> Figure:
    """ResNet-18 for a 224×224 image: its 18 counted layers and the shapes between them."""
    fig, ax = canvas(1000, 340)
    mid, height = 166, {112: 160, 56: 136, 28: 112, 14: 88, 7: 64, 1: 40}  # bar by map size

    def bar(x, size, number):
        box(ax, x, mid, 24, height[size], str(number), LAYERS, size=10.5)

    def caption(x, name, size, channels=""):
        for y, text, colour in ((60, name, INK), (38, size, INK), (16, channels, GREY)):
            write(ax, x, y, text, 11, colour, weight="bold" if text == name else "normal")

    box(ax, 26, 318, 24, 24, "n", LAYERS, size=10.5)
    write(ax, 46, 318, "1: 7×7 conv,  2–17: 3×3 conv,  18: fully connected", size=11, ha="left")
    for x, line, label in ((492, "-", "identity shortcut"), (720, DASHED, "1×1 conv shortcut")):
        arrow(ax, (x, 318), (x + 44, 318), color=SHORTCUT, lw=2.4, linestyle=line)
        write(ax, x + 54, 318, label, size=11, ha="left")

    arrow(ax, (62, mid), (990, mid), color=GREY)
    box(ax, 40, mid, 44, 184, "image", GREY, rotation=90)
    caption(40, "input", "224×224")
    bar(102, 112, 1)
    box(ax, 138, mid, 24, height[56], "max pool", GREY, size=10.5, rotation=90)
    caption(118, "stem", "112×112", "64 channels")
    for stage, (size, channels) in enumerate(((56, 64), (28, 128), (14, 256), (7, 512))):
        left = 162 + 182 * stage
        panel(ax, left + 87, mid + 10, 174, 204, GREY, alpha=0.08)
        caption(left + 87, f"stage {stage + 1}", f"{size}×{size}", f"{channels} channels")
        for k in range(2):
            x, top, by_conv = left + 82 * k, mid + 84, stage > 0 and k == 0
            corners = (x + 9, mid), (x + 9, top), (x + 80, top), (x + 80, mid + 9)
            arrow(ax, *corners, color=SHORTCUT, lw=2.4, linestyle=DASHED if by_conv else "-")
            if by_conv:
                box(ax, x + 44.5, top, 40, 22, "1×1", SHORTCUT, size=10.5)
            bar(x + 28, size, 4 * stage + 2 * k + 2)
            bar(x + 55, size, 4 * stage + 2 * k + 3)
            plus(ax, x + 80, mid, 8)
    box(ax, 914, mid, 24, 112, "average pool", GREY, size=10.5, rotation=90)
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
    fig, ax = canvas(840, 476)
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
        write(ax, left + 210, 456, title, size=14, weight="bold")
        write(ax, goal[0] + 25, goal[1], "f*", size=16, style="italic")
        for k, (x, y, a, b, slant, angle) in enumerate(classes, start=1):
            c, s = np.cos(np.radians(slant)), np.sin(np.radians(slant))
            edge = np.stack([a * np.cos(turn), b * np.sin(turn)], axis=1) @ [[c, s], [-s, c]]
            edge += left + x, y
            best = edge[np.argmin(np.linalg.norm(edge - goal, axis=1))]
            style = dict(facecolor=(colour, 0.08), edgecolor=colour, linewidth=0.8 + 0.5 * k)
            ax.add_patch(Polygon(edge, **style))
            plate = dict(facecolor="white", linewidth=0, boxstyle="round,pad=0.12")
            write(ax, *edge[angle], f"F{k}", color=shade(colour), weight="bold", bbox=plate)
            # Each distance twice: in place, and laid flat below so that the eye can compare.
            row, far = 96 - 23 * (k - 1), np.linalg.norm(goal - best)
            write(ax, left + 110, row, f"F{k} to f*", ha="right")
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


def paths() -> Figure:
    """All 8 ways through three residual blocks, sorted by length.

    The expansion of (I + J1)(I + J2)(I + J3), drawn. Source: Veit et al. 2016, figure 1.
    """
    ways = sorted(product((True, False), repeat=3), key=sum)
    fig, ax = canvas(760, 412)
    top, middles = 340, [130 + 440 / 3 * (i + 0.5) for i in range(3)]
    for i, x in enumerate(middles, start=1):
        write(ax, x, top + 34, f"block {i}", weight="bold")
    write(ax, 66, top + 34, "length", weight="bold")
    write(ax, 668, top + 34, "term", weight="bold")
    for row, way in enumerate(ways):
        y = top - 40 * row
        write(ax, 66, y, str(sum(way)))
        arrow(ax, (114, y), (586, y), color=SHORTCUT, lw=2.4)
        taken = [i for i in range(3) if way[i]]
        for i in taken:
            box(ax, middles[i], y, 76, 28, f"g{i + 1}", LAYERS)
        term = " ".join(f"J{i + 1}" for i in reversed(taken))
        write(ax, 668, y, term or "I", style="italic")
    write(ax, 380, 18, "Each block may be taken or passed by: 8 paths in all.", size=11, color=GREY)
    fig.alt = (
        "The 8 paths through 3 residual blocks, one to a row, from the one that passes all blocks "
        "by to the one that takes them all, each with the product of Jacobians that it adds to the "
        "gradient."
    )
    return fig


def all_reduce() -> Figure:
    """A ring all-reduce of 4 processes: what each one holds before and after each of the 6 steps.

    Three steps add, three hand the sums on; in each, every process sends a quarter to the next.
    """
    fig, ax = canvas(900, 532)
    held = np.ones((4, 4), dtype=int)  # [process, part]: how many gradients are summed in it
    for process in range(4):
        write(ax, 205 + 192 * process, 508, f"process {process}", weight="bold")
    for step in range(7):
        y, color = 460 - 66 * step, GREEN if step > 3 else GREY
        title = f"{step}: {'hand on' if step > 3 else 'add'}" if step else "at first"
        write(ax, 14, y, title, ha="left", weight="bold")
        before = held.copy()
        for process in range(4) if step else ():
            part, to = (process + 1 - step) % 4, (process + 1) % 4
            held[to, part] = before[process, part] + (before[to, part] if step < 4 else 0)
            x, top = 158 + 192 * process + 38 * part, y + 50
            if to:
                arrow(ax, (x, top), (x + 172, top - 34), color=color, lw=1.4)
            else:  # from the last process to the first: out on the right and in on the left
                arrow(ax, (x, top), (x + 43, top - 8.5), color=color, lw=1.4)
                arrow(ax, (x - 640, top - 24), (x - 596, top - 34), color=color, lw=1.4)
        for process, part in product(range(4), repeat=2):
            count = held[process, part]
            color, x = GREEN if count == 4 else GREY, 148 + 192 * process + 38 * part
            box(ax, x, y, 32, 30, str(count), color)
    legend = "A box: a quarter of the gradients, summed over so many processes."
    write(ax, 450, 16, f"{legend} Process 3 sends to process 0.", size=11, color=GREY)
    fig.alt = (
        "Diagram of a ring all-reduce. Each of 4 processes has 4 boxes, the quarters of its "
        "gradients, with the number of processes that are summed up in it; there is a row before "
        "and after each of 6 steps. At first every box says 1. In each step every process sends "
        "one box to the next process, the last one to the first. Three steps add: then each "
        "process has one box that says 4. Three steps hand these on: then every box says 4."
    )
    return fig


def degradation() -> Figure:
    """Training loss of every run of the recorded experiment, by kind and depth."""
    record = recorded("degradation")
    curves = {}
    for run in record["runs"]:
        curves.setdefault((run["kind"], run["depth"]), []).append(History(**run["history"]))
    seeds = len(record["config"]["seeds"])
    title = f"56 layers: plain is stuck, residual is not ({seeds} seeds each)"
    alt = (
        "Training loss of plain and residual networks of 8, 20 and 56 layers over 40 epochs, five "
        "seeds each. The plain network of 56 layers stays far above all others, the residual one "
        "ends lowest."
    )
    return learning_curves(curves, title=title, log="y", alt=alt)


def ledger() -> Figure:
    """One line a claim, marked with its verdict."""
    rows = [(row, textwrap.wrap(row["claim"], 96)) for row in claims()]
    height = 92 + sum(20 * len(wrapped) + 8 for _, wrapped in rows)
    fig, ax = canvas(880, height)
    write(ax, 24, height - 24, "What the course measured", size=14, ha="left", weight="bold")
    for x, (verdict, (color, marker)) in zip((32, 140, 300), VERDICTS.items()):
        ax.plot(x, height - 56, marker, color=color, markersize=10)
        words = f"{verdict} …" if verdict == "holds when" else verdict
        write(ax, x + 16, height - 56, words, size=11, ha="left", weight="bold")
    y = height - 92
    for row, wrapped in rows:
        verdict = next(v for v in ("holds when", "holds", "false") if row["verdict"].startswith(v))
        color, marker = VERDICTS[verdict]
        ax.plot(32, y, marker, color=color, markersize=10)
        write(ax, 56, y, row["id"], size=11, ha="left", weight="bold")
        for line in wrapped:
            write(ax, 104, y, line, size=11, ha="left")
            y -= 20
        y -= 8
    fig.alt = (
        "The claims that the course settles, one line each, with the verdict: holds, holds under a "
        "condition, or false."
    )
    return fig


def write(ax, x, y, text, size=12, color=INK, ha="center", **style):
    """Text whose capitals, not whose ink, are centred on y: a comma must not lift its line."""
    if "va" not in style:
        y, style["va"] = y - 0.365 * size * CSS / 72, "baseline"
    ax.text(x, y, text, fontsize=size, color=color, ha=ha, zorder=5, **style)


def panel(ax, x, y, width, height, color, alpha=0.14):
    corner = (x - width / 2, y - height / 2)
    style = dict(boxstyle="round,pad=0,rounding_size=12", facecolor=(color, alpha), linewidth=0)
    ax.add_patch(FancyBboxPatch(corner, width, height, zorder=0, **style))


def box(ax, x, y, width, height, text, color, size=12, rotation=0):
    """A rounded box around (x, y), tinted with `color`."""
    corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=5"
    for fill, zorder in (("white", 2), ((color, 0.32), 3)):  # white first, to hide lines below it
        box = dict(boxstyle=shape, facecolor=fill, edgecolor=color, linewidth=1.6, zorder=zorder)
        ax.add_patch(FancyBboxPatch(corner, width, height, **box))
    style = dict(rotation=rotation, va="center") if rotation or "\n" in text else {}
    write(ax, x, y, text, size=size, **style)


def arrow(ax, *points, color, lw=2.0, linestyle="-", radius=14):
    """An arrow through `points`, its corners rounded and its head solid even on a dashed line."""
    points = np.array(points, dtype=float)
    ahead = points[-1] - points[-2]
    ahead /= np.linalg.norm(ahead)
    tip, base, side = points[-1], points[-1] - 11 * ahead, 5.5 * ahead[::-1] * (1, -1)
    head = Polygon([tip, base + side, base - side], facecolor=color, linewidth=0, zorder=1)
    path, codes = [points[0]], [Curve.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:]):
        for towards in (before, after):
            step = towards - corner
            path.append(corner + radius * step / np.linalg.norm(step))
        path.insert(-1, corner)
        codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
    line = Curve([*path, base], [*codes, Curve.LINETO])
    style = dict(edgecolor=color, linewidth=lw, linestyle=linestyle, facecolor="none", zorder=1)
    ax.add_patch(PathPatch(line, **style, capstyle="butt"))
    ax.add_patch(head)


def plus(ax, x, y, radius):
    ax.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=INK, linewidth=1.8, zorder=3))
    for dx, dy in ((0.6 * radius, 0), (0, 0.6 * radius)):
        ax.plot([x - dx, x + dx], [y - dy, y + dy], color=INK, linewidth=1.8, zorder=4)


PICTURES = (block, blocks, resnet18, function_classes, paths, all_reduce, degradation, ledger)

if __name__ == "__main__":
    for draw in PICTURES:
        (FOLDER / f"{draw.__name__}.png").write_bytes(png(draw()))
