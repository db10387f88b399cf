"""The pictures: alt text, nothing clipped, legible, colours that anyone can tell apart."""

import base64
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from d2lres import figures


def history(end, epochs=6):
    loss = np.geomspace(2.3, end, epochs)
    accuracy = np.exp(-loss)
    return SimpleNamespace(
        loss=list(loss),
        accuracy=list(accuracy),
        test_loss=list(loss + 0.1),
        test_accuracy=list(accuracy - 0.05),
        seconds=[1.0] * epochs,
    )


ENDS = {
    ("plain", 8): 0.56,
    ("plain", 20): 0.75,
    ("plain", 56): 1.6,
    ("residual", 8): 0.55,
    ("residual", 20): 0.49,
    ("residual", 56): 0.5,
}
RUNS = {f"{kind} {depth}": history(end) for (kind, depth), end in ENDS.items()}
SEEDS = {
    name: [history(end * (1 + 0.1 * s)) for s in range(3)]
    for name, end in (("plain-56", 1.6), ("residual-56", 0.5))
}
PIXELS = torch.arange(10 * 28 * 28).remainder(256).to(torch.uint8).reshape(10, 1, 28, 28)
CLASSES = tuple("abcdefgh") + ("Sneaker", "Ankle boot")
DATA = SimpleNamespace(images=PIXELS, labels=torch.arange(10) % 2, classes=("Ankle boot", "Bag"))
PARTS = {
    "data": {"other": 0.2},
    "forward": {"convolution": 20.0, "batch norm": 8.0, "ReLU": 3.0, "other": 1.0},
    "backward": {"convolution": 45.0, "batch norm": 9.0, "ReLU": 4.0, "other": 1.0},
    "update": {"other": 9.0},
}
COUNTS = np.diag([190] * 10) + np.diag([1000] * 9, k=1)

FIGURES = {
    "block": lambda: figures.block(),
    "block with 1x1": lambda: figures.block(use_1x1conv=True),
    "blocks": figures.blocks,
    "resnet18": figures.resnet18,
    "function_classes": figures.function_classes,
    "curves": lambda: figures.learning_curves(RUNS, title="Six nets"),
    "curves of seeds": lambda: figures.learning_curves(SEEDS, "test_error"),
    "curves, log": lambda: figures.learning_curves(SEEDS, log=True),
    "curves, one epoch": lambda: figures.learning_curves({"plain 8": history(1, epochs=1)}),
    "curves, others": lambda: figures.learning_curves({"SGD": history(1), "Adam": history(2)}),
    "depths": lambda: figures.depth_summary({key: [e, 1.1 * e] for key, e in ENDS.items()}),
    "depths, log": lambda: figures.depth_summary({k: [e] for k, e in ENDS.items()}, log=True),
    "paths": figures.paths,
    "paths, four": lambda: figures.paths(4),
    "lines": lambda: figures.lines({"plain": [1, 2, 4], "residual": [1, 1, 2]}, "step", "loss"),
    "lines, 12 powers": lambda: figures.lines(
        {
            f"{kind}-{n}": np.geomspace(10.0**n, 1e-3, 9)
            for n in (3, 9)
            for kind in ("plain", "residual")
        },
        "layer",
        "gradient norm",
        "Norms",
        log="y",
    ),
    "lines, log-log": lambda: figures.lines(
        {"error": ([4, 8, 16], [1.0, 0.5, 0.25])}, "layers", "distance", log="xy", ylim=(0.01, 10)
    ),
    "stacked": lambda: figures.stacked(PARTS, "share of a step (%)"),
    "stacked, titled": lambda: figures.stacked({"only": {"one": 0.001}}, "seconds", "One bar"),
    "confusion": lambda: figures.confusion(COUNTS, CLASSES),
    "confusion, titled": lambda: figures.confusion(COUNTS[:2, :2], CLASSES[:2], "Two classes"),
    "images": lambda: figures.images(DATA),
    "images, floats": lambda: figures.images(PIXELS[:3].float() / 255 - 0.5),
    "images, predictions": lambda: figures.images(
        PIXELS, ["Ankle boot\nnot T-shirt/top"] * 10, columns=4, correct=[True, False] * 5
    ),
}


@pytest.fixture(scope="module", params=FIGURES)
def fig(request):
    figure = FIGURES[request.param]()
    FigureCanvasAgg(figure).draw()
    return figure


def written(fig):
    """The texts that are really drawn, not the ticks beyond the ends of an axis."""
    inside = []
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low <= tick.get_loc() <= high or not ax.axison:
                    inside += [tick.label1, tick.label2]
    hidden = set(map(id, inside))
    texts = fig.findobj(Text)
    return [t for t in texts if t.get_text() and t.get_visible() and id(t) not in hidden]


def test_every_figure_has_alt_text(fig):
    assert isinstance(fig, Figure)
    assert len(fig.alt) >= 40
    assert "\n" not in fig.alt


def test_no_text_is_clipped(fig):
    page = fig.bbox
    renderer = fig.canvas.get_renderer()
    assert written(fig) or not fig.axes[0].axison
    for text in written(fig):
        box = text.get_window_extent(renderer)
        assert box.x0 >= page.x0 and box.x1 <= page.x1, f"{text.get_text()!r} leaves at a side"
        assert box.y0 >= page.y0 and box.y1 <= page.y1, f"{text.get_text()!r} leaves above or below"


def test_no_drawing_is_clipped(fig):
    for ax in fig.axes:
        for artist in ax.get_children() if not ax.axison else ():
            artist.set_clip_on(False)  # or the box would end where a diagram is cut off
    box = fig.get_tightbbox(fig.canvas.get_renderer())
    width, height = fig.get_size_inches()
    assert box.x0 >= -1e-6 and box.y0 >= -1e-6
    assert box.x1 <= width + 1e-6 and box.y1 <= height + 1e-6


def test_no_two_texts_overlap(fig):
    renderer = fig.canvas.get_renderer()
    boxes = [(t.get_text(), Text.get_window_extent(t, renderer)) for t in written(fig)]
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide < 1 or high < 3, f"{one!r} overlaps {other!r}"  # 3: empty line spacing


def test_every_text_is_at_least_10_points_and_the_page_fits_a_notebook(fig):
    assert min((t.get_fontsize() for t in written(fig)), default=10) >= 10
    assert fig.get_size_inches()[0] * figures.CSS <= 1250


def test_the_background_is_white(fig):
    assert to_rgb(fig.get_facecolor()) == (1, 1, 1)
    pixels = np.asarray(fig.canvas.buffer_rgba())
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()


def test_colours_are_greys_or_tints_of_the_palette(fig):
    palette = [1 - np.array(to_rgb(colour)) for colour in figures.OKABE_ITO.values()]
    colours, shades = [], {figures._shade(colour) for colour in figures.OKABE_ITO.values()}
    for text in written(fig):
        colours += [] if text.get_color() in shades else [text.get_color()]
    for artist in fig.findobj():
        if isinstance(artist, Line2D):
            colours += [artist.get_color(), artist.get_markerfacecolor()]
        elif isinstance(artist, Patch):
            colours += [artist.get_facecolor(), artist.get_edgecolor()]
        assert not isinstance(artist, Collection)  # or this test would overlook its colours
    for colour in {to_rgb(c) for c in colours if not isinstance(c, str) or c != "none"}:
        dark = 1 - np.array(colour)  # a tint is the colour mixed with white
        grey = np.ptp(dark) < 0.01
        tint = any(
            np.allclose(dark, dark.max() / full.max() * full, atol=0.01)
            for full in palette
            if full.max() >= dark.max() - 0.01
        )
        assert grey or tint, colour


def linear(colour):
    """The light of an sRGB colour, 0 to 1."""
    c = np.asarray(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """From 1 (equal) to 21 (black on white), as WCAG 2.1 defines it."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_stands_out_from_what_is_behind_it(name):
    figure = FIGURES[name]()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [(t, to_rgb(t.get_color()), t.get_window_extent(renderer)) for t in written(figure)]
    for text, _, _ in texts:
        text.set_color("none")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3] / 255
    for text, colour, box in texts:
        behind = pixels[int(box.y0) : int(box.y1) + 1, int(box.x0) : int(box.x1) + 1]
        found = contrast(colour, np.median(behind.reshape(-1, 3), axis=0))
        assert found >= 4.5, f"{text.get_text()!r} has a contrast of {found:.1f}"


def test_every_full_line_colour_stands_out_from_white():
    drawn = [*(colour for colour, _ in figures.KINDS.values()), *(c for c, _ in figures.OTHERS)]
    assert min(contrast(colour, "white") for colour in drawn) >= 3


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
def test_kinds_differ_for_every_kind_of_eye_by_colour_and_by_line(eyes):
    styles = [*figures.KINDS.values(), *figures.OTHERS]
    for i, (one, line) in enumerate(styles):
        for other, other_line in styles[i + 1 :]:
            a, b = (lab(np.array(BLIND[eyes]) @ linear(colour)) for colour in (one, other))
            assert np.linalg.norm(a - b) > 15, (one, other)
            assert line != other_line or "#000000" in (one, other)


def lines(fig):
    """The thick line of each run, by the name written at its end."""
    names = {t.get_text(): t for t in fig.axes[0].texts}
    thick = [line for line in fig.axes[0].lines if line.get_linewidth() > 2]
    ends = {float(line.get_ydata()[-1]): line for line in thick}
    return {name: ends[float(text.xy[1])] for name, text in names.items()}


def test_plain_is_vermillion_and_dashed_and_residual_blue_and_solid():
    drawn = lines(figures.learning_curves(RUNS))
    assert drawn["plain 56"].get_color() == pytest.approx(to_rgb(figures.OKABE_ITO["vermillion"]))
    assert drawn["residual 56"].get_color() == pytest.approx(to_rgb(figures.OKABE_ITO["blue"]))
    for name, line in drawn.items():
        assert line.is_dashed() == name.startswith("plain")


def test_depths_differ_by_marker_and_tint_and_agree_across_kinds():
    drawn = lines(figures.learning_curves(RUNS))
    markers = {name: line.get_marker() for name, line in drawn.items()}
    assert len({markers[f"plain {depth}"] for depth in (8, 20, 56)}) == 3
    assert all(markers[f"plain {depth}"] == markers[f"residual {depth}"] for depth in (8, 20, 56))
    assert len({drawn[f"plain {depth}"].get_color() for depth in (8, 20, 56)}) == 3


def test_two_lines_of_one_kind_and_depth_differ_by_tint():
    drawn = figures.lines({"residual": [1.0, 2.0], "residual, zeros": [2.0, 1.0]}, "x", "y").axes[0]
    assert len({line.get_color() for line in drawn.lines if line.get_linewidth() > 2}) == 2


def test_seeds_are_thin_lines_around_a_thick_median():
    ax = figures.learning_curves(SEEDS, "accuracy").axes[0]
    thin = [line for line in ax.lines if line.get_linewidth() < 1]
    thick = [line for line in ax.lines if line.get_linewidth() > 2]
    assert (len(thin), len(thick)) == (6, 2)
    middle = np.median([run.accuracy for run in SEEDS["plain-56"]], axis=0)
    assert np.allclose(thick[0].get_ydata(), middle)


def test_runs_of_different_length_are_cut_to_the_shortest():
    fig = figures.learning_curves({"plain 8": [history(1, epochs=5), history(1, epochs=3)]})
    assert max(len(line.get_xdata()) for line in fig.axes[0].lines) == 3


def test_the_names_of_runs_that_end_together_do_not_overlap_or_leave_the_page():
    fig = figures.learning_curves({f"net {name}": history(0.5) for name in "abcdefgh"})
    FigureCanvasAgg(fig).draw()
    test_no_text_is_clipped(fig)
    test_no_two_texts_overlap(fig)


def test_error_is_one_minus_accuracy():
    run = history(1)
    (line,) = figures.learning_curves({"x": run}, "test_error").axes[0].lines
    assert np.allclose(line.get_ydata(), 1 - np.array(run.test_accuracy))


def test_what_cannot_be_drawn_is_named():
    empty = SimpleNamespace(loss=[1.0], test_loss=[])
    with pytest.raises(ValueError, match="'plain 8' has no test loss"):
        figures.learning_curves({"plain 8": empty}, "test_loss")
    with pytest.raises(ValueError, match="metric 'speed' is unknown"):
        figures.learning_curves(RUNS, "speed")
    with pytest.raises(ValueError, match="N, 1, H, W"):
        figures.images(torch.zeros(3, 28, 28))
    with pytest.raises(ValueError, match="titles has 1 entries for 2 pictures"):
        figures.images(torch.zeros(2, 1, 4, 4), titles=["a"])


def test_depth_summary_shows_every_seed_and_lets_a_kind_or_depth_be_missing():
    fig = figures.depth_summary({("plain", 8): [1.0, 2.0, 4.0], ("plain", 20): [3.0]})
    dots = [line for line in fig.axes[0].lines if line.get_linestyle() == "None"]
    assert sorted(np.concatenate([dot.get_ydata() for dot in dots])) == [1, 2, 3, 4]
    assert [t.get_text() for t in fig.axes[0].texts] == ["plain"]


def test_wrong_predictions_are_marked_by_more_than_colour():
    titles = figures.images(PIXELS[:2], ["Bag", "Shirt"], correct=[True, False]).axes[0].texts
    assert [title.get_text() for title in titles] == ["Bag", "× Shirt"]
    assert titles[0].get_color() == figures._shade(figures.OKABE_ITO["blue"])
    assert titles[1].get_color() == figures._shade(figures.OKABE_ITO["vermillion"])


def test_images_takes_images_and_says_what_they_show():
    fig = figures.images(DATA, columns=5)
    assert [t.get_text() for t in fig.axes[0].texts] == ["Ankle boot", "Bag"] * 5
    assert "Ankle boot, Bag" in fig.alt
    assert np.array_equal(fig.axes[0].images[3].get_array(), PIXELS[3, 0])


def test_alt_text_names_no_prediction_and_no_measured_digit():
    fig = figures.images(PIXELS[:2], ["Bag 97%", "Shirt 51%"], correct=[True, False])
    assert "97" not in fig.alt
    assert "2.3" not in figures.learning_curves({"plain": history(1)}).alt
    assert figures.learning_curves({"plain": history(1)}, alt="mine").alt == "mine"


@pytest.mark.parametrize(
    "names, said",
    [
        (["counted", "drawn"], (False, False)),
        (["plain-20", "Plain"], (True, False)),
        (["residual, zeros"], (False, True)),
        (["plain", "residual"], (True, True)),
    ],
)
def test_alt_text_tells_how_nets_are_drawn_and_only_those_that_are(names, said):
    alt = figures.lines({name: [1.0, 2.0] for name in names}, "step", "loss").alt
    assert ("dashed and vermillion" in alt, "solid and blue" in alt) == said


def test_the_layers_of_resnet18_are_numbered_1_to_18():
    texts = [t.get_text() for t in figures.resnet18().axes[0].texts]
    assert [t for t in texts if t.isdecimal()] == [str(n) for n in range(1, 19)]
    assert texts.count("1×1") == 3 + 1  # three shortcuts, and the size of the map after the pool
    for size in (112, 56, 28, 14, 7):
        assert f"{size}×{size}" in texts


def test_the_nested_classes_come_closer_and_the_others_do_not():
    rows = [
        line.get_xdata()[1] - line.get_xdata()[0]
        for line in figures.function_classes().axes[0].lines
        if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0
    ]
    left, right = rows[:4], rows[4:]
    assert left[3] > left[0]
    assert right == sorted(right, reverse=True)


def test_only_the_nested_classes_contain_each_other():
    shapes = [p.get_path() for p in figures.function_classes().axes[0].patches]
    left, right = shapes[:4], shapes[4:]
    assert all(big.contains_path(small) for small, big in zip(right, right[1:]))
    assert not any(big.contains_path(small) for small, big in zip(left, left[1:]))


@pytest.fixture
def ipython(monkeypatch):
    """A stand-in for IPython that collects what is displayed."""
    shown = []
    stub = SimpleNamespace(get_ipython=lambda: object())
    stub.display = SimpleNamespace(display=lambda *args, **kwargs: shown.append((args, kwargs)))
    monkeypatch.setitem(sys.modules, "IPython", stub)
    monkeypatch.setitem(sys.modules, "IPython.display", stub.display)
    return shown


def test_show_displays_a_sharp_png_with_alt_text(ipython):
    fig = figures.block()
    figures.show(fig)
    ((bundle,), options) = ipython[0]
    png = base64.b64decode(bundle["image/png"])
    assert png.startswith(b"\x89PNG")
    about = options["metadata"]["image/png"]
    assert about == {"alt": fig.alt, "width": 400, "height": 580}
    assert int.from_bytes(png[16:20], "big") == 2 * about["width"]
    assert int.from_bytes(png[20:24], "big") == 2 * about["height"]
    assert bundle["text/plain"] == fig.alt
    assert set(bundle) == {"image/png", "text/plain"}
    assert options["raw"] is True


def test_a_readers_session_gets_the_alt_text_as_html_too(ipython, monkeypatch):
    monkeypatch.setenv("D2LRES_PROGRESS", "1")
    fig = figures.block()
    fig.alt = 'Loss "falls" & <stays>'
    figures.show(fig)
    ((bundle,), _) = ipython[0]
    assert set(bundle) == {"image/png", "text/html", "text/plain"}
    assert 'alt="Loss &quot;falls&quot; &amp; &lt;stays&gt;"' in bundle["text/html"]
    assert f'src="data:image/png;base64,{bundle["image/png"]}"' in bundle["text/html"]
    assert 'width="400"' in bundle["text/html"]


def test_showing_the_same_figure_again_gives_the_same_bytes(ipython):
    for _ in range(2):
        figures.show(figures.learning_curves(SEEDS))
    assert ipython[0] == ipython[1]


@pytest.mark.parametrize("installed", [True, False])
def test_show_prints_the_alt_text_outside_ipython(installed, monkeypatch, capsys):
    stub = SimpleNamespace(get_ipython=lambda: None, display=SimpleNamespace(display=None))
    monkeypatch.setitem(sys.modules, "IPython", stub if installed else None)
    monkeypatch.setitem(sys.modules, "IPython.display", stub.display if installed else None)
    fig = figures.block()
    figures.show(fig)
    assert capsys.readouterr().out == fig.alt + "\n"


def test_pyplot_is_never_imported():
    code = (
        "import sys; from types import SimpleNamespace as N; from d2lres import figures as f; "
        "import torch; f.show(f.blocks()); f.show(f.resnet18()); f.show(f.function_classes()); "
        "f.show(f.learning_curves({'plain 8': N(loss=[2.0, 1.0])}, log=True)); "
        "f.show(f.depth_summary({('plain', 8): [1.0]})); f.show(f.images(torch.zeros(1, 1, 8, 8)));"
        "f.block().savefig(__import__('io').BytesIO()); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_line_has_a_gap_where_it_is_not_finite():
    fig = figures.lines({"plain": [1.0, float("inf"), 2.0, float("nan")]}, "step", "loss")
    assert fig.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="'plain' has no finite height"):
        figures.lines({"plain": [float("nan")]}, "step", "loss")


def test_the_paths_are_all_the_subsets_of_the_blocks():
    texts = [t.get_text() for t in figures.paths(3).axes[0].texts]
    terms = {"I", "J1", "J2", "J3", "J2 J1", "J3 J1", "J3 J2", "J3 J2 J1"}
    assert terms <= set(texts) and texts.count("g1") == texts.count("g3") == 4
    with pytest.raises(ValueError, match="2 to 4 blocks"):
        figures.paths(5)


def drawn_with(log):
    def draw(**values):
        log.append(values)
        return figures.block()

    return draw


@pytest.mark.parametrize("reason", ["no ipywidgets", "a build", "no kernel"])
def test_interactive_leaves_a_picture_where_nobody_moves_a_slider(reason, monkeypatch, capsys):
    log = []
    monkeypatch.setenv("D2LRES_PROGRESS", "0" if reason == "a build" else "1")
    monkeypatch.setattr("IPython.get_ipython", lambda: None)  # others may have made a shell
    if reason == "no ipywidgets":
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    figures.interactive(drawn_with(log), depth=(8, 20), shortcut=(True, False))
    assert log == [{"depth": 20, "shortcut": False}]
    assert capsys.readouterr().out == figures.block().alt + "\n"


def test_interactive_gives_each_choice_a_slider(ipython, monkeypatch):
    log, sliders = [], []
    monkeypatch.setenv("D2LRES_PROGRESS", "1")
    widgets = SimpleNamespace(
        SelectionSlider=lambda **options: sliders.append(options) or options["value"],
        interact=lambda draw, **values: draw(**values),
    )
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    figures.interactive(drawn_with(log), depth=(8, 20), batch_norm=(False, True))
    assert [s["description"] for s in sliders] == ["depth", "batch norm"]
    assert sliders[0]["options"] == [8, 20] and not sliders[0]["continuous_update"]
    assert log == [{"depth": 20, "batch_norm": True}] and len(ipython) == 1


# Stacked bars and confusion matrices.


def test_stacked_bars_are_as_long_as_their_parts_and_in_the_order_given():
    ax = figures.stacked(PARTS, "share (%)").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(PARTS) and ax.yaxis_inverted()
    ends = {}
    for bar in ax.patches:
        row = list(PARTS)[round(bar.get_y() + bar.get_height() / 2)]
        assert bar.get_width() == 0 or bar.get_x() == pytest.approx(ends.get(row, 0.0))
        ends[row] = ends.get(row, 0.0) + bar.get_width()
    assert ends == pytest.approx({name: sum(parts.values()) for name, parts in PARTS.items()})
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert sorted(names) == ["ReLU", "batch norm", "convolution", "other"]
    hatches = {bar.get_hatch() for bar in ax.patches}
    assert len(hatches) == 4  # colour alone does not tell the parts apart


def test_a_confusion_matrix_says_every_count_and_shades_by_the_share_of_the_row():
    counts = np.array([[3, 1], [0, 40]])
    ax = figures.confusion(counts, ("a", "b")).axes[0]
    said = {tuple(map(round, text.get_position())): text.get_text() for text in ax.texts}
    assert said == {(0, 0): "3", (1, 0): "1", (1, 1): "40"}  # x: predicted, y: true
    shade = 1 - ax.images[0].get_array()[..., 0]
    assert shade[1, 1] > shade[0, 0] > shade[0, 1] > shade[1, 0] == 0
    assert ax.get_xlabel() == "predicted" and ax.get_ylabel() == "true"


def test_a_confusion_matrix_takes_tensors_and_refuses_another_shape():
    figures.confusion(torch.eye(3, dtype=torch.int64), "abc")
    with pytest.raises(ValueError, match="4 classes need as many rows"):
        figures.confusion(np.eye(3), "abcd")
