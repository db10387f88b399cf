import random

import numpy
import pytest
import torch
from torch import nn

from d2lres.checks import Wrong, check


@check
def doubles_it(double):
    """A check as the chapters write them."""
    got = double(torch.tensor([1.0, 2.0]))
    if got.shape != (2,):
        raise Wrong(f"the shape must stay (2,), yours is {tuple(got.shape)}")
    if not torch.equal(got, torch.tensor([2.0, 4.0])):
        raise Wrong("1 must become 2 and 2 must become 4")
    return "your function doubles."


@check
def doubling_module(kind):
    got = kind()(torch.ones(3))
    if got.sum() != 6:
        raise Wrong("ones must become twos")
    return "your module doubles."


@check
def the_number(number):
    if number != 6:
        raise Wrong(f"{number} is not 2 x 3")
    return "two times three."


def verdict(capsys, checked, *answers) -> str:
    assert checked(*answers) is None
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("\n") == 1
    return printed.out.strip()


def test_a_right_answer_is_told_what_it_proves(capsys):
    assert verdict(capsys, doubles_it, lambda x: 2 * x) == "Correct: your function doubles."
    assert verdict(capsys, doubles_it, lambda x: x + x) == "Correct: your function doubles."
    assert verdict(capsys, the_number, 6) == "Correct: two times three."


def test_a_wrong_answer_is_told_what_to_fix(capsys):
    expected = "Not yet: 1 must become 2 and 2 must become 4"
    assert verdict(capsys, doubles_it, lambda x: x**2) == expected
    assert verdict(capsys, the_number, 5) == "Not yet: 5 is not 2 x 3"


def test_an_error_in_the_learners_code_is_named_on_one_line(capsys):
    def broken(x):
        raise ValueError("two\n  lines")

    expected = "Not yet: your code raised ValueError: two lines"
    assert verdict(capsys, doubles_it, broken) == expected
    expected = "Not yet: your code raised KeyError"
    assert verdict(capsys, doubles_it, lambda x: {}[x]).startswith(expected)


def stub(x):
    """A docstring with shapes."""
    ...  # your code here


def stub_after_given_lines(x):
    larger = x + 1
    ...  # your code here
    return larger + out  # noqa: F821


def stub_that_passes(x):
    pass


def stub_that_raises(x):
    raise NotImplementedError


def stub_with_a_value(x):
    factor = ...  # your code here
    return factor * x


@pytest.mark.parametrize(
    "answer",
    [
        stub,
        stub_after_given_lines,
        stub_that_passes,
        stub_that_raises,
        stub_with_a_value,
        lambda x: None,
        lambda x: ...,
        None,
        ...,
        [...],
        {"a": ...},
    ],
)
def test_a_stub_is_not_attempted_yet(capsys, answer):
    assert verdict(capsys, doubles_it, answer) == "Not attempted yet: doubles it"


class Empty(nn.Module):
    """Nothing written yet."""

    ...


class ForwardIsStub(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x): ...  # your code here


class ForwardReturnsNone(ForwardIsStub):
    def forward(self, x):
        return None


class LayerIsStub(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = ...  # your code here

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("kind", [Empty, ForwardIsStub, ForwardReturnsNone, LayerIsStub])
def test_a_class_that_is_still_a_stub_is_not_attempted_yet(capsys, kind):
    assert verdict(capsys, doubling_module, kind) == "Not attempted yet: doubling module"


def test_a_module_of_a_stub_class_is_not_attempted_yet(capsys):
    nested = nn.Sequential(ForwardIsStub())
    assert verdict(capsys, doubles_it, nested) == "Not attempted yet: doubles it"


def test_a_missing_return_is_a_mistake_not_a_stub(capsys):
    def forgets(x):
        y = 2 * x  # noqa: F841

    assert "is a `return` missing?" in verdict(capsys, doubles_it, forgets)


def test_a_misspelt_forward_is_a_mistake_not_a_stub(capsys):
    class Misspelt(nn.Module):
        def froward(self, x):
            return 2 * x

    said = verdict(capsys, doubling_module, Misspelt)
    assert said.startswith("Not yet: your code raised NotImplementedError") and "forward" in said


def test_a_forgotten_stub_line_does_not_spoil_a_right_answer(capsys):
    def double(x):
        ...
        return 2 * x

    assert verdict(capsys, doubles_it, double) == "Correct: your function doubles."


def test_code_without_source_is_judged_too(capsys):
    names = {}
    exec("def typed(x):\n    'doc'\n    ...\ndef right(x):\n    return x + x", names)
    assert verdict(capsys, doubles_it, names["typed"]) == "Not attempted yet: doubles it"
    assert verdict(capsys, doubles_it, names["right"]).startswith("Correct")


def test_ctrl_c_stops_a_check():
    def endless(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doubles_it(endless)


def test_random_numbers_gradient_mode_and_dtype_are_as_before(capsys):
    def meddles(x):
        torch.manual_seed(99)
        random.seed(99)
        numpy.random.seed(99)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        raise ValueError

    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    verdict(capsys, doubles_it, meddles)
    after = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32
    with torch.no_grad():
        verdict(capsys, doubles_it, lambda x: 2 * x)
        assert not torch.is_grad_enabled()


def test_a_check_sees_the_same_random_numbers_every_time(capsys):
    seen = []

    @check
    def draws(_):
        seen.append(torch.rand(3))
        return "done."

    for seed in (1, 2):
        torch.manual_seed(seed)
        verdict(capsys, draws, 1)
    assert torch.equal(*seen)


def test_the_learners_module_is_as_before(capsys):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    net[0].eval()
    net(torch.rand(4, 2)).sum().backward()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]

    @check
    def trains(module):
        module.train()
        module(torch.rand(4, 2)).square().sum().backward()
        with torch.no_grad():
            module[0].weight.zero_()
        module.double().eval()
        return "trained."

    assert verdict(capsys, trains, net) == "Correct: trained."
    assert [m.training for m in net] == [False, True, True] and net.training
    for name, value in net.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name])
    for parameter, grad in zip(net.parameters(), grads):
        assert torch.equal(parameter.grad, grad)


def test_the_check_keeps_its_name_and_docstring():
    assert doubles_it.__name__ == "doubles_it"
    assert doubles_it.__doc__ == "A check as the chapters write them."
