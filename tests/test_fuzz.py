"""Whatever a public function is given, it returns a result or says in one sentence what is wrong.

hypothesis draws the arguments: those of a call that works, one or two of them replaced by something
odd. D2LRES_FUZZ sets how many calls of each function are tried; weekly they are thousands.
"""

import os
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from training_runs import TEST, TRAIN, linear, resnet, same, weights

from d2lres import BasicBlock, PreActBlock, ResNet, cifar_resnet, figures
from d2lres.checkpoints import CheckpointError, load_checkpoint
from d2lres.data import DataError, Images, fashion_mnist
from d2lres.history import History, TrainingDiverged
from d2lres.training import evaluate, fit

CALLS = int(os.environ.get("D2LRES_FUZZ", "60"))
OURS = ValueError, CheckpointError, DataError, TrainingDiverged


def tensors():
    """Of any type, of up to four small dimensions, with any content."""
    kinds = [torch.uint8, torch.int64, torch.float32, torch.float16, torch.bool, torch.complex64]
    shapes = st.lists(st.integers(0, 3), max_size=4)
    return st.builds(lambda shape, kind: torch.ones(shape).to(kind), shapes, st.sampled_from(kinds))


class Odd:
    """An object that is nothing in particular, with a long and ugly name."""

    def __repr__(self):
        return "<Odd\n>" * 3


NUMBERS = st.integers(-3, 40) | st.floats(width=32) | st.booleans()
PLAIN = st.none() | NUMBERS | st.text(max_size=5) | st.binary(max_size=5)
NUMPY = st.builds(np.int64, st.integers(-3, 9)) | st.builds(np.float64, st.floats(width=16))
OBJECTS = st.sampled_from(
    [Odd(), Odd, object, len, nn.ReLU(), nn.Linear, linear(), resnet(), TRAIN, TEST[:1], History()]
    + [{}, {"a": 1}, [], [TRAIN], (TRAIN, TEST), range(3), "cpu", "meta", "cuda:99", Path("x")]
    + [torch.float64, torch.device("meta"), np.bool_(True), np.zeros(3), np.zeros((2, 1, 4, 4))]
)
ODD = PLAIN | NUMPY | OBJECTS | tensors() | st.lists(PLAIN, max_size=3)


def odd(arguments):
    """`arguments`, one or two of them replaced."""
    return st.dictionaries(st.sampled_from(sorted(arguments)), ODD, min_size=1, max_size=2)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A checkpoint of any name is written where it does not disturb."""
    monkeypatch.chdir(tmp_path)


def ends_well(call):
    """Call it: a result, or one of our exceptions with one sentence. Says which of the two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except OURS as error:
            told = str(error)
            assert "\n" not in told and len(told) > 20, repr(told)
            assert re.search(r"[.)]$", told) and not re.search(r" 0x[0-9a-f]{6}", told), told
            return False
    return True


def fuzz(function):
    quick = dict(deadline=None, database=None, max_examples=CALLS)
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(**quick, suppress_health_check=quiet)(function)


FIT = dict(
    model=None,
    train=TRAIN,
    test=TEST,
    epochs=1,
    lr=0.1,
    batch_size=16,
    seed=0,
    optimizer=None,
    scheduler=None,
    augment=False,
    label_smoothing=0.0,
    device="cpu",
    mixed_precision=None,
    channels_last=None,
    checkpoint=None,
    progress=False,
    after_epoch=None,
)


@fuzz
@given(odd(FIT | dict(path=None)))
def test_fit(replaced):
    model = linear()
    before = weights(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = FIT | dict(model=model) | replaced
        path = arguments.pop("path", None)
        if callable(arguments["after_epoch"]):  # what a reader's function raises is the reader's
            arguments["after_epoch"] = lambda history: None
        if isinstance(arguments["checkpoint"], str) and "/" not in arguments["checkpoint"]:
            arguments["checkpoint"] = os.path.join(folder, arguments["checkpoint"])
        elif path is not None:
            arguments["checkpoint"] = path if isinstance(path, bytes) else Path(folder, "run.pt")
        trained = ends_well(lambda: fit(**arguments))
    assert trained or same(before, model)


@fuzz
@given(odd(dict(model=0, data=0, batch_size=0)))
def test_evaluate(replaced):
    ends_well(lambda: evaluate(**(dict(model=resnet(), data=TEST, batch_size=7) | replaced)))


@fuzz
@given(odd(dict(images=0, labels=0, classes=0, size=0, mean=0, std=0)))
def test_images(replaced):
    arguments = dict(images=TRAIN.images, labels=TRAIN.labels, classes=TRAIN.classes, size=None)
    arguments |= dict(mean=0.3, std=(0.4,))
    made = []
    if ends_well(lambda: made.append(Images(**(arguments | replaced)))):
        assert ends_well(lambda: [made[0].tensors(), *made[0].batches(3)])


class Pictures(list):
    classes = ("a", "b")


@fuzz
@given(odd(dict(dataset=0, size=0, like=0)), st.lists(st.tuples(ODD, ODD), max_size=2))
def test_from_dataset(replaced, items):
    square = PIL.Image.new("L", (4, 4)), 0
    dark = Pictures([square, (PIL.Image.new("L", (4, 4), 9), 1), *items])
    ends_well(lambda: Images.from_dataset(**(dict(dataset=dark, size=3, like=None) | replaced)))
    ends_well(lambda: TRAIN.normalised(**{k: v for k, v in replaced.items() if k == "like"}))


@fuzz
@given(odd(dict(subset=0, size=0, root=0)))
def test_fashion_mnist(replaced):
    ends_well(lambda: fashion_mnist(**(dict(subset="sample", size=None, root=None) | replaced)))


SIZES = dict(num_classes=3, in_channels=1, width=2, residual=True, shortcut="A")
SIZES |= dict(zero_init_residual=False)


@fuzz
@given(odd(SIZES | dict(depth=8)))
def test_cifar_resnet(replaced):
    made = []
    if ends_well(lambda: made.append(cifar_resnet(**(SIZES | dict(depth=8) | replaced)))):
        channels = made[0].conv1.in_channels
        assert made[0].eval()(torch.rand(2, channels, 8, 8)).shape[0] == 2


@fuzz
@given(
    odd(SIZES | dict(block=0, layers=0, small_images=0)), st.sampled_from([BasicBlock, PreActBlock])
)
def test_resnet(replaced, block):
    made, arguments = [], SIZES | dict(block=block, layers=[1, 1], small_images=True) | replaced
    if ends_well(lambda: made.append(ResNet(**arguments))):
        channels = made[0].conv1.in_channels
        assert made[0].eval()(torch.rand(2, channels, 8, 8)).shape[0] == 2


RUN = History([2.0, 1.0], [0.1, 0.2], [1.5], [0.3], [1.0, 1.0])


@fuzz
@given(
    odd(dict(runs=0, metric=0, title=0, log=0)),
    st.dictionaries(st.text(max_size=3), ODD, max_size=2),
)
def test_learning_curves(replaced, runs):
    arguments = dict(runs={"a": RUN, **runs}, metric="test_loss", title="$", log="y")
    ends_well(lambda: figures.png(figures.learning_curves(**(arguments | replaced))))


@fuzz
@given(odd(dict(x=0, titles=0, columns=0, correct=0)))
def test_pictures(replaced):
    arguments = dict(x=TRAIN[:3], titles=["a", "$b$", "c"], columns=2, correct=[True, False, True])
    ends_well(lambda: figures.png(figures.images(**(arguments | replaced))))


@fuzz
@given(st.binary(max_size=400), st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"text"]))
def test_any_file_as_a_checkpoint(content, start):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.pt")
        path.write_bytes(start + content)
        assert not ends_well(lambda: fit(linear(), TRAIN, epochs=2, checkpoint=path))
        assert not ends_well(lambda: load_checkpoint(path))
        assert path.read_bytes() == start + content and os.listdir(folder) == ["run.pt"]


@pytest.mark.parametrize("call", [load_checkpoint, figures.show])
@fuzz
@given(value=ODD)
def test_one_argument(call, value):
    ends_well(lambda: call(value))
