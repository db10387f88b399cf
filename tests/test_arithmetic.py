"""How `fit` computes: as asked for, or what a measurement found faster; kept, and told."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_runs import TRAIN, interrupt, linear, resnet, same

from d2lres import arithmetic
from d2lres.training import History, fit

CPU = dict(epochs=2, batch_size=20, device="cpu")
PLAIN, LAST, MIXED, BOTH = (False, False), (False, True), (True, False), (True, True)


@pytest.fixture
def timed(monkeypatch):
    """timed({option: seconds}): every run is a long one, and the options take so long. What was
    measured."""
    measured = []

    def use(times):
        def seconds(run, images, *option):
            measured.append(option)
            return times[option]

        monkeypatch.setattr(arithmetic, "seconds", seconds)
        return measured

    monkeypatch.setattr(arithmetic, "LONG", 0)
    monkeypatch.setattr(arithmetic, "CHOSEN", {})
    return use


def computed(history):
    return history.mixed_precision, history.channels_last


def strides(model):
    return [parameter.stride() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "times, asked, best",
    [
        ({PLAIN: 4, LAST: 3, MIXED: 2, BOTH: 1}, {}, BOTH),
        ({PLAIN: 4, LAST: 3, MIXED: 2, BOTH: 9}, {}, MIXED),
        ({PLAIN: 4, LAST: 3.9, MIXED: 3.8, BOTH: 3.7}, {}, PLAIN),  # it must gain a tenth
        ({PLAIN: 4, LAST: 3, MIXED: 2, BOTH: 1}, dict(mixed_precision=False), LAST),
        ({PLAIN: 4, LAST: 3, MIXED: 2, BOTH: 1}, dict(channels_last=False), MIXED),
        ({LAST: 2, BOTH: 4}, dict(channels_last=True), LAST),
        ({}, dict(mixed_precision=True, channels_last=True), BOTH),
    ],
)
def test_the_fastest_is_chosen_of_what_was_left_open(timed, times, asked, best):
    measured, model = timed(times), resnet()
    before = strides(model)
    history = fit(model, TRAIN, TRAIN, **CPU, **asked)
    assert computed(history) == best and strides(model) == before
    once = len(measured)
    again = resnet()
    fit(again, TRAIN, TRAIN, **CPU, **asked)
    assert len(measured) == once and same(model, again)  # it remembers, and so repeats itself
    pinned = resnet()
    mixed, last = best
    fit(pinned, TRAIN, TRAIN, **CPU, mixed_precision=mixed, channels_last=last)
    assert same(pinned, model)


def test_without_convolutions_or_in_a_short_run_nothing_is_measured(timed, monkeypatch):
    measured = timed({})
    assert computed(fit(linear(), TRAIN, **CPU)) == PLAIN
    monkeypatch.setattr(arithmetic, "LONG", 60)
    assert computed(fit(resnet(), TRAIN, **CPU)) == PLAIN and not measured


def test_a_rehearsal_that_had_to_load_its_kernels_makes_no_run_a_long_one(timed, monkeypatch):
    measured = timed({PLAIN: 1e-3})
    real = arithmetic.choose
    monkeypatch.setattr(arithmetic, "LONG", 60)

    def slow(run, options):
        run.pace = 100
        return real(run, options)

    monkeypatch.setattr(arithmetic, "choose", slow)
    assert computed(fit(resnet(), TRAIN, **CPU)) == PLAIN and measured == [PLAIN]


@pytest.mark.parametrize(
    "asked, chosen, tried",
    [
        ({}, PLAIN, {PLAIN, LAST, MIXED, BOTH}),
        (dict(channels_last=True), LAST, {PLAIN, LAST, BOTH}),  # PLAIN: the rehearsal
        (dict(mixed_precision=True), MIXED, {MIXED, BOTH}),
    ],
)
def test_a_measurement_leaves_no_trace(monkeypatch, asked, chosen, tried):
    """The real one of all that was left open, where nothing gains enough."""
    monkeypatch.setattr(arithmetic, "CHOSEN", {})
    quiet, model, seen = resnet(), resnet(), set()
    fit(quiet, TRAIN, **CPU, **asked)
    monkeypatch.setattr(arithmetic, "LONG", 0)
    monkeypatch.setattr(arithmetic, "GAIN", 1e9)

    def look(module, args, out):
        if module.training:
            last = out.is_contiguous(memory_format=torch.channels_last)
            seen.add((out.dtype == torch.bfloat16, last))

    model.layer1[0].conv2.register_forward_hook(look)
    before = strides(model)
    history = fit(model, TRAIN, **CPU, **asked)
    assert seen == tried and computed(history) == chosen
    assert same(model, quiet) and strides(model) == before


def test_what_a_model_cannot_do_is_not_chosen(monkeypatch):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = resnet()

        def forward(self, x):
            last = self.net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
            if last or torch.is_autocast_enabled("cpu"):
                raise TypeError("not here")
            return self.net(x)

    monkeypatch.setattr(arithmetic, "LONG", 0)
    assert computed(fit(Picky(), TRAIN, **CPU)) == PLAIN


def test_a_resumed_run_keeps_its_choice_and_ends_with_the_same_weights(
    timed, monkeypatch, tmp_path
):
    timed({PLAIN: 4, LAST: 3, MIXED: 2, BOTH: 1})
    straight, stopped, resumed = resnet(), resnet(), resnet()
    options = CPU | dict(epochs=3)
    fit(straight, TRAIN, TRAIN, **options)
    with monkeypatch.context() as patch:
        interrupt(patch, at_batch=4)
        assert fit(stopped, TRAIN, TRAIN, checkpoint=tmp_path / "run.pt", **options).interrupted
    timed({PLAIN: 1, LAST: 2, MIXED: 3, BOTH: 4})  # another machine, or an hour later
    monkeypatch.setattr(arithmetic, "CHOSEN", {})
    history = fit(resumed, TRAIN, TRAIN, checkpoint=tmp_path / "run.pt", **options)
    assert computed(history) == BOTH and same(straight, resumed)


def test_a_checkpoint_from_before_the_choice_goes_on_in_float32(timed, monkeypatch, tmp_path):
    path, run = tmp_path / "run.pt", resnet()
    timed({PLAIN: 1, LAST: 2, MIXED: 3, BOTH: 4})
    with monkeypatch.context() as patch:
        interrupt(patch, at_batch=4)
        fit(run, TRAIN, checkpoint=path, **CPU | dict(epochs=3))
    state = torch.load(path)
    for part in (state["history"], state["run"]):
        part.pop("mixed_precision"), part.pop("channels_last")
    torch.save(state, path)
    timed({PLAIN: 4, LAST: 3, MIXED: 2, BOTH: 1})
    monkeypatch.setattr(arithmetic, "CHOSEN", {})
    assert computed(fit(resnet(), TRAIN, checkpoint=path, **CPU | dict(epochs=3))) == PLAIN


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("supported", [True, False])
def test_on_a_gpu_the_default_is_what_it_supports(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    cuda = torch.device("cuda")
    run = SimpleNamespace(history=History(), mixed_precision=None, channels_last=None)
    run.device, run.stack = cuda, ExitStack()
    arithmetic.settle(run)
    assert computed(run.history) == (supported, False)
    assert isinstance(run.precision, torch.autocast) == supported
    if not supported:
        with pytest.raises(ValueError, match="bfloat16 cannot be had on cuda here"):
            arithmetic.precision(True, cuda)
