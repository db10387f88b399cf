"""The pictures that ship: as make_pictures.py draws them, with their alt text, and true."""

import io
import re
from itertools import pairwise

import make_pictures
import matplotlib
import numpy as np
import pytest
from commands import ROOT
from matplotlib.patches import PathPatch
from PIL import Image

from d2lres import figures
from d2lres.records import asset

PINNED = re.findall(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("draw", make_pictures.PICTURES, ids=lambda draw: draw.__name__)
def test_a_picture_that_ships_is_what_make_pictures_draws_today(draw):
    fig = draw()
    today = figures.png(fig)
    ours, theirs = Image.open(asset(f"pictures/{draw.__name__}.png")), Image.open(io.BytesIO(today))
    assert ours.size == theirs.size
    assert ours.text == theirs.text == {"Description": fig.alt}
    if matplotlib.__version__ == PINNED[-1]:  # each version draws letters in its own way
        apart = np.asarray(ours).astype(int) - np.asarray(theirs)
        assert np.abs(apart).max() <= 16, "run `python assets/make_pictures.py`"


def test_every_picture_that_ships_has_its_drawing_and_the_readmes_say_what_they_show():
    shipped = {path.stem for path in asset("pictures").iterdir()}
    taken = {"exercise_check"}  # not drawn: tests/test_browser.py takes it in JupyterLab
    assert shipped == {draw.__name__ for draw in make_pictures.PICTURES} | taken
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"!\[([^\]]+)\]\(assets/pictures/(\w+)\.png\)", readme))
    drawn = {alt: name for alt, name in found.items() if name not in taken}
    assert drawn == {draw().alt: draw.__name__ for draw in make_pictures.PICTURES[-2:]}
    assert taken == set(found.values()) - set(drawn.values())


def texts(fig):
    return [text.get_text() for text in fig.axes[0].texts]


def test_the_layers_of_resnet18_are_numbered_1_to_18():
    found = texts(make_pictures.resnet18())
    assert [text for text in found if text.isdecimal()] == [str(n) for n in range(1, 19)]
    assert found.count("1×1") == 3 + 1  # three shortcuts, and the size of the map after the pool
    assert {f"{size}×{size}" for size in (112, 56, 28, 14, 7)} <= set(found)


def test_only_nested_classes_contain_each_other_and_are_sure_to_come_no_farther():
    ax = make_pictures.function_classes().axes[0]
    rows = [line.get_xdata() for line in ax.lines if np.ptp(line.get_ydata()) == 0]
    distances = [np.ptp(row) for row in rows if len(row) == 2]
    assert distances[3] > distances[0]  # to the left, not nested
    assert distances[4:] == sorted(distances[4:], reverse=True)
    shapes = [patch.get_path() for patch in ax.patches]
    assert all(big.contains_path(small) for small, big in pairwise(shapes[4:]))
    assert not any(big.contains_path(small) for small, big in pairwise(shapes[:4]))


def test_the_paths_are_all_the_subsets_of_the_blocks():
    found = texts(make_pictures.paths())
    terms = {"I", "J1", "J2", "J3", "J2 J1", "J3 J1", "J3 J2", "J3 J2 J1"}
    assert terms <= set(found) and found.count("g1") == found.count("g3") == 4


def test_a_ring_all_reduce_of_four_ends_with_all_sums_after_six_quarters_sent_by_each():
    fig = make_pictures.all_reduce()
    found = [text for text in texts(fig) if text.isdecimal()]
    assert found[:16] == ["1"] * 16 and found[-16:] == ["4"] * 16
    after_the_sums = found[3 * 16 : 4 * 16]
    assert all(after_the_sums[i : i + 4].count("4") == 1 for i in range(0, 16, 4))
    ways = [patch for patch in fig.axes[0].patches if isinstance(patch, PathPatch)]
    assert len(ways) == 6 * (4 + 1)  # the way from the last process to the first is drawn in two
