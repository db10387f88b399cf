"""The pictures: alt text, nothing clipped, legible, colours that anyone can tell apart."""

import base64
import io
import sys
from html import escape
from itertools import combinations
from types import SimpleNamespace

import make_pictures
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from d2lres import figures
from d2lres.figures import images, learning_curves, lines
from d2lres.history import History
from d2lres.records import asset


def history(end, epochs=6):
    loss = np.geomspace(2.3, end, epochs)
    return SimpleNamespace(loss=loss, test_accuracy=np.exp(-loss))


NETS = [(kind, depth) for kind in ("plain", "residual") for depth in (8, 20, 56)]
ENDS = dict(zip(NETS, (0.56, 0.75, 1.6, 0.55, 0.49, 0.5)))
RUNS = {net: history(end) for net, end in ENDS.items()}
SEEDS = {net: [history(ENDS[net] * s) for s in (1, 1.1, 1.2)] for net in NETS[2::3]}
POWERS = {(kind, n): np.geomspace(10.0**n, 1e-3, 9) for n in (3, 9) for kind in figures.KINDS}
PIXELS = torch.arange(10 * 28 * 28).remainder(256).to(torch.uint8).reshape(10, 1, 28, 28)
DATA = SimpleNamespace(images=PIXELS, labels=torch.arange(10) % 2, classes=("Ankle boot", "Bag"))
DEPTHS = np.outer([1, 1.1, 1.2], [0.56, 0.75, 1.6])
ERROR = {"error": ([4, 8, 16], [1.0, 0.5, 0.25])}
LONG = ["Ankle boot\nnot T-shirt/top"] * 10

FIGURES = {draw.__name__: draw for draw in make_pictures.PICTURES} | {
    "curves": lambda: learning_curves(RUNS, title="Six nets"),
    "curves of seeds": lambda: learning_curves(SEEDS, "test_accuracy"),
    "curves, log": lambda: learning_curves(SEEDS, log="y"),
    "curves, one epoch": lambda: learning_curves({("plain", 8): history(1, epochs=1)}),
    "lines of seeds": lambda: lines({("plain",): ([8, 20, 56], DEPTHS)}, "depth", "loss", log="y"),
    "lines": lambda: lines({("plain",): [1, 2, 4], ("residual",): [1, 1, 2]}, "step", "loss"),
    "lines, 12 powers": lambda: lines(POWERS, "layer", "gradient norm", "Norms", log="y"),
    "lines, log-log": lambda: lines(ERROR, "layers", "distance", log="xy", ylim=(0.01, 10)),
    "lines that end together": lambda: lines({f"net {c}": [2, 1] for c in "abcdefgh"}, "x", "y"),
    "images": lambda: images(DATA),
    "images, floats": lambda: images(PIXELS[:3].float() / 255 - 0.5),
    "images, predictions": lambda: images(PIXELS, LONG, columns=4, correct=[True, False] * 5),
}


@pytest.fixture(scope="module", autouse=True)
def _no_pyplot():
    """Nothing drawn here imports pyplot: that would fail. The module itself: see test_project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.pyplot", None)
        yield


@pytest.fixture(scope="module", params=FIGURES)
def fig(request):
    figure = FIGURES[request.param]()
    FigureCanvasAgg(figure).draw()
    return figure


def written(fig):
    """The texts that are really drawn, not the ticks beyond the ends of an axis."""
    hidden = set()
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low <= tick.get_loc() <= high or not ax.axison:
                    hidden |= {tick.label1, tick.label2}
    return [t for t in fig.findobj(Text) if t.get_text() and t.get_visible() and t not in hidden]


def test_a_figure_has_alt_text_a_white_page_that_fits_a_notebook_and_no_small_letters(fig):
    assert len(fig.alt) >= 40 and "\n" not in fig.alt
    assert to_rgb(fig.get_facecolor()) == (1, 1, 1)
    assert (np.asarray(fig.canvas.buffer_rgba())[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert fig.get_size_inches()[0] * figures.CSS <= 1250
    assert min((text.get_fontsize() for text in written(fig)), default=10) >= 10
    assert written(fig) or not fig.axes[0].axison


def test_nothing_is_clipped(fig):
    for ax in fig.axes:
        for artist in ax.get_children() if not ax.axison else ():
            artist.set_clip_on(False)  # or the box would end where a diagram is cut off
    box = fig.get_tightbbox(fig.canvas.get_renderer())
    assert (box.min >= -1e-6).all() and (box.max <= fig.get_size_inches() + 1e-6).all()


def test_no_two_texts_overlap(fig):
    renderer = fig.canvas.get_renderer()
    boxes = [(t.get_text(), Text.get_window_extent(t, renderer)) for t in written(fig)]
    for (one, a), (other, b) in combinations(boxes, 2):
        both = a.intersection(a, b)  # 3: empty line spacing
        assert not both or both.width < 1 or both.height < 3, f"{one!r} overlaps {other!r}"


STYLES = [*figures.KINDS.values(), *figures.OTHERS]
COLOURS = {colour for colour, _ in STYLES} | {figures.ORANGE}


def test_colours_are_greys_or_tints_of_the_palette(fig):
    palette = [1 - np.array(to_rgb(colour)) for colour in COLOURS]  # with black, hence greys
    shades = {figures.shade(colour) for colour in COLOURS}
    colours = [t.get_color() for t in written(fig) if t.get_color() not in shades]
    for line in fig.findobj(Line2D):
        colours += [line.get_color(), line.get_markerfacecolor()]
    for patch in fig.findobj(Patch):
        colours += [patch.get_facecolor(), patch.get_edgecolor()]
    assert not fig.findobj(Collection)  # or this test would overlook its colours
    for colour in {to_rgb(c) for c in colours if not isinstance(c, str) or c != "none"}:
        dark = 1 - np.array(colour)  # a tint is the colour mixed with white
        nearest = [min(1, dark @ full / (full @ full)) * full for full in palette]
        assert any(np.allclose(dark, tint, atol=0.01) for tint in nearest), colour


def linear(colour):
    """The light of an sRGB colour, 0 to 1."""
    c = np.asarray(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """From 1 (equal) to 21 (black on white), as WCAG 2.1 defines it."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_every_text_stands_out_from_what_is_behind_it(fig):
    renderer = fig.canvas.get_renderer()
    texts = [(t, t.get_color(), t.get_window_extent(renderer)) for t in written(fig)]
    for text, _, _ in texts:
        text.set_color("none")
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())[::-1, :, :3] / 255
    for text, colour, box in texts:
        text.set_color(colour)
        behind = pixels[int(box.y0) : int(box.y1) + 1, int(box.x0) : int(box.x1) + 1]
        found = contrast(colour, np.median(behind.reshape(-1, 3), axis=0))
        assert found >= 4.5, f"{text.get_text()!r} has a contrast of {found:.1f}"


# How the light of a colour changes for eyes without one kind of cone (Machado et al. 2009).
BLIND = {
    "none": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]  # of the white


def lab(light):
    """CIE L*a*b* of light: a distance of 2.3 is just visible, 10 is seen at a glance."""
    x, y, z = np.cbrt(np.maximum(np.array(XYZ) @ np.clip(light, 0, 1), 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", BLIND)
def test_kinds_stand_out_from_white_and_differ_for_every_eye_by_colour_and_by_line(eyes):
    assert min(contrast(colour, "white") for colour, _ in STYLES) >= 3
    for (one, line), (other, other_line) in combinations(STYLES, 2):
        a, b = (lab(np.array(BLIND[eyes]) @ linear(colour)) for colour in (one, other))
        assert np.linalg.norm(a - b) > 15, (one, other)
        assert line != other_line or figures.BLACK in (one, other)


def drawn(fig):
    """The thick line of each run, by the name written at its end."""
    thick = [line for line in fig.axes[0].lines if line.get_linewidth() > 2]
    ends = {float(line.get_ydata()[-1]): line for line in thick}
    return {text.get_text(): ends[float(text.xy[1])] for text in fig.axes[0].texts}


def test_kinds_differ_by_colour_and_line_and_depths_by_marker_and_tint():
    runs = drawn(learning_curves(RUNS))
    plain, residual = ([runs[f"{kind}-{depth}"] for depth in (8, 20, 56)] for kind in figures.KINDS)
    assert plain[2].get_color() == pytest.approx(to_rgb(figures.VERMILLION))
    assert residual[2].get_color() == pytest.approx(to_rgb(figures.BLUE))
    assert all(line.is_dashed() for line in plain) and not any(r.is_dashed() for r in residual)
    markers, theirs = ([line.get_marker() for line in nets] for nets in (plain, residual))
    assert markers == theirs and len(set(markers)) == len({line.get_color() for line in plain}) == 3


def test_a_net_is_drawn_by_kind_and_any_string_in_a_colour_without_a_meaning():
    nets = [("residual",), ("plain", 56), ("residual", 1004), ("residual", 1004, "zeros")]
    keys = [*nets, "unexplained", "plain"]
    found = drawn(lines({key: [0, i] for i, key in enumerate(keys)}, "x", "y"))
    names = ["residual", "plain-56", "residual-1004", "residual-1004, zeros", *keys[4:]]
    assert list(found) == names and len({line.get_color() for line in found.values()}) == 6
    others = [(to_hex(found[name].get_color()), found[name].get_linestyle()) for name in keys[4:]]
    assert others == [(colour.lower(), style) for colour, style in figures.OTHERS[:2]]


def test_alt_text_tells_how_the_nets_are_drawn_and_no_measured_digit_unless_it_is_given():
    def said(*keys):
        alt = lines({key: [1.0, 2.0] for key in keys}, "step", "loss").alt
        return "dashed and vermillion" in alt, "solid and blue" in alt

    assert said("counted", "plain") == (False, False)
    assert said(("plain", 20), "Residual") == (True, False)
    assert said(("residual", 20, "zeros")) == (False, True)
    assert said(("plain",), ("residual",)) == (True, True)
    assert "2.3" not in learning_curves({("plain",): history(1)}).alt
    assert learning_curves({("plain",): history(1)}, alt="mine").alt == "mine"


def test_seeds_are_thin_lines_cut_to_the_shortest_around_a_thick_median_with_gaps():
    runs = [history(1 + s, epochs=5 - s) for s in range(3)]
    heights = np.array([run.test_accuracy[:3] for run in runs])
    curves = learning_curves({"x": runs}, "test_accuracy")
    other = lines({"x": ([8, 20, 56], heights)}, "x", "y")
    for fig, places in ((curves, [1, 2, 3]), (other, [8, 20, 56])):
        *thin, thick = fig.axes[0].lines
        assert np.allclose([line.get_ydata() for line in thin], heights)
        assert np.allclose(thick.get_ydata(), np.median(heights, axis=0))
        assert all(line.get_xdata().tolist() == places for line in (*thin, thick))
        assert max(line.get_linewidth() for line in thin) < 1 and thick.get_linewidth() > 2
    gaps = lines({"x": [1.0, float("inf"), 2.0, float("nan")]}, "step", "loss")
    assert gaps.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3, 4]


EMPTY = SimpleNamespace(test_loss=[])
HIGHWAY = {("highway", 19): [1.0]}


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: learning_curves({("plain", 8): EMPTY}, "test_loss"), "'plain-8' has no .*test l"),
        (lambda: lines(HIGHWAY, "x", "y", alt="x"), "plain or residual, not 'highway'"),
        (lambda: lines({"x": [float("nan")]}, "step", "loss"), "the line 'x' has no finite 'loss'"),
        (lambda: images(torch.zeros(3, 28, 28)), "N, 1, H, W"),
        (lambda: images(torch.zeros(1, 3, 28, 28)), "N, 1, H, W"),  # a colour is bytes
        (lambda: images(torch.zeros(1, 2, 8, 8, dtype=torch.uint8)), "N, 1, H, W"),
        (lambda: images(PIXELS[:2], titles=["a"]), "titles has 1 entries for 2 pictures"),
        (lambda: figures.show("dog"), "no picture 'dog': choose one of all_reduce, block, blocks"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_images_says_its_classes_but_no_prediction_and_marks_the_wrong_by_more_than_colour():
    fig = images(DATA, columns=5)
    assert [t.get_text() for t in fig.axes[0].texts] == ["Ankle boot", "Bag"] * 5
    assert "Ankle boot, Bag" in fig.alt
    assert np.array_equal(fig.axes[0].images[3].get_array(), PIXELS[3, 0])
    fig = images(PIXELS[:2], ["Bag 97%", "Shirt 51%"], correct=[True, False])
    blue, vermillion = map(figures.shade, (figures.BLUE, figures.VERMILLION))
    said = [(title.get_text(), title.get_color()) for title in fig.axes[0].texts]
    assert said == [("Bag 97%", blue), ("× Shirt 51%", vermillion)]
    assert "97" not in fig.alt


ALT = make_pictures.block().alt


@pytest.fixture
def ipython(monkeypatch):
    """A stand-in for IPython that collects what is displayed."""
    shown = []
    stub = SimpleNamespace(get_ipython=lambda: object())
    stub.display = SimpleNamespace(display=lambda bundle, **more: shown.append((bundle, more)))
    monkeypatch.setitem(sys.modules, "IPython", stub)
    monkeypatch.setitem(sys.modules, "IPython.display", stub.display)
    return shown


@pytest.mark.parametrize("reader", [True, False])
@pytest.mark.parametrize("shipped", [True, False])
def test_show_displays_a_sharp_png_with_alt_text_and_to_a_reader_as_html_too(
    shipped, reader, ipython, monkeypatch
):
    monkeypatch.setenv("D2LRES_PROGRESS", "1" if reader else "0")
    picture = make_pictures.block()
    picture.alt = alt = ALT if shipped else 'Loss "falls" & <stays>'
    figures.show("block" if shipped else picture)
    ((bundle, options),) = ipython
    about = {"image/png": {"alt": alt, "width": 400, "height": 580}}
    assert options == {"raw": True, "metadata": about}
    assert bundle.pop("text/plain") == alt
    if reader:
        html = bundle.pop("text/html")
        assert f'src="data:image/png;base64,{bundle["image/png"]}"' in html
        assert f'alt="{escape(alt)}"' in html and 'width="400"' in html
    assert set(bundle) == {"image/png"}
    png = base64.b64decode(bundle["image/png"])
    assert png == (asset("pictures/block.png").read_bytes() if shipped else figures.png(picture))
    assert Image.open(io.BytesIO(png), formats=["PNG"]).size == (800, 1160)


def choose(log):
    return lambda **values: log.append(values) or make_pictures.block()


@pytest.mark.parametrize("reason", ["no ipywidgets", "a build", "no kernel", "no IPython"])
def test_where_nobody_moves_a_slider_a_picture_is_left_and_without_a_kernel_its_alt_text(
    reason, monkeypatch, capsys
):
    log = []
    monkeypatch.setenv("D2LRES_PROGRESS", "0" if reason == "a build" else "1")
    monkeypatch.setattr("IPython.get_ipython", lambda: None)  # others may have made a shell
    if reason in ("no ipywidgets", "no IPython"):
        monkeypatch.setitem(sys.modules, reason.split()[1], None)
    figures.interactive(choose(log), depth=(8, 20), shortcut=(True, False))
    assert log == [{"depth": 20, "shortcut": False}]
    figures.show("block")
    assert capsys.readouterr().out == 2 * f"{ALT}\n"


def test_interactive_gives_each_choice_a_slider(ipython, monkeypatch):
    log, sliders = [], []
    monkeypatch.setenv("D2LRES_PROGRESS", "1")
    widgets = SimpleNamespace(
        SelectionSlider=lambda **options: sliders.append(options) or options["value"],
        interact=lambda draw, **values: draw(**values),
    )
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    figures.interactive(choose(log), depth=(8, 20), batch_norm=(False, True))
    assert [s["description"] for s in sliders] == ["depth", "batch norm"]
    assert list(sliders[0]["options"]) == [8, 20] and not sliders[0]["continuous_update"]
    assert log == [{"depth": 20, "batch_norm": True}] and len(ipython) == 1


def test_scores_that_began_late_are_drawn_at_their_epochs():
    early = History([3.0, 2.0, 1.0], [0.1] * 3, [3.0, 2.0, 1.0], [0.2] * 3, [1.0] * 3)
    late = History([3.0, 2.0, 1.0, 0.5], [0.1] * 4, [7.0, 6.0], [0.3] * 2, [1.0] * 4)
    for runs, places in (
        ({"a": late}, [3, 4]),
        ({"a": [early, late]}, [3]),
        ({"a": early}, [1, 2, 3]),
    ):
        ax = learning_curves(runs, "test_loss").axes[0]
        assert ax.lines[-1].get_xdata().tolist() == places
        assert learning_curves(runs).axes[0].lines[-1].get_xdata()[0] == 1


def test_a_dollar_is_a_dollar():
    """Two would be a formula, and a broken one an error."""
    names = ("$1", "$a_b$", "$\\frac{$")
    fig = lines({name: [1, 2] for name in names}, "$x$", "$y$", "$t$")
    figures.png(fig)
    figures.png(images(np.zeros((3, 1, 2, 2)), titles=names))
    texts = fig.axes[0].texts + [fig.axes[0].xaxis.label, fig.axes[0].yaxis.label]
    assert not any(text.get_parse_math() for text in texts)
