"""The pictures that ship: as make_pictures.py draws them, with their alt text, and true."""

import importlib.util
import io
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from d2lres import figures
from d2lres.records import asset

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "assets/make_pictures.py")
make_pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_pictures)
PINNED = re.findall(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_every_picture_that_ships_has_its_drawing():
    shipped = {path.stem for path in asset("pictures").iterdir()}
    assert shipped == {draw.__name__ for draw in make_pictures.PICTURES}


@pytest.mark.parametrize("draw", make_pictures.PICTURES, ids=lambda draw: draw.__name__)
def test_a_picture_that_ships_is_what_make_pictures_draws_today(draw):
    today = figures.png(draw())
    assert today == figures.png(draw())
    ours, theirs = Image.open(asset(f"pictures/{draw.__name__}.png")), Image.open(io.BytesIO(today))
    assert ours.size == theirs.size
    assert ours.text == theirs.text == {"Description": draw().alt}
    if matplotlib.__version__ == PINNED[-1]:  # each version draws letters in its own way
        apart = np.asarray(ours).astype(int) - np.asarray(theirs)
        assert np.abs(apart).max() <= 16, "run `python assets/make_pictures.py`"


def test_the_readme_describes_its_pictures_as_they_describe_themselves():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"!\[([^\]]+)\]\(assets/pictures/(\w+)\.png\)", readme))
    assert found == {draw().alt: draw.__name__ for draw in make_pictures.PICTURES[-2:]}


def texts(fig):
    return [text.get_text() for text in fig.axes[0].texts]


def test_the_layers_of_resnet18_are_numbered_1_to_18():
    found = texts(make_pictures.resnet18())
    assert [text for text in found if text.isdecimal()] == [str(n) for n in range(1, 19)]
    assert found.count("1×1") == 3 + 1  # three shortcuts, and the size of the map after the pool
    for size in (112, 56, 28, 14, 7):
        assert f"{size}×{size}" in found


def test_the_nested_classes_come_closer_and_the_others_do_not():
    rows = [
        line.get_xdata()[1] - line.get_xdata()[0]
        for line in make_pictures.function_classes().axes[0].lines
        if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0
    ]
    left, right = rows[:4], rows[4:]
    assert left[3] > left[0]
    assert right == sorted(right, reverse=True)


def test_only_the_nested_classes_contain_each_other():
    shapes = [patch.get_path() for patch in make_pictures.function_classes().axes[0].patches]
    left, right = shapes[:4], shapes[4:]
    assert all(big.contains_path(small) for small, big in pairwise(right))
    assert not any(big.contains_path(small) for small, big in pairwise(left))


def test_the_paths_are_all_the_subsets_of_the_blocks():
    found = texts(make_pictures.paths())
    terms = {"I", "J1", "J2", "J3", "J2 J1", "J3 J1", "J3 J2", "J3 J2 J1"}
    assert terms <= set(found) and found.count("g1") == found.count("g3") == 4
