import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import gradient_flow as check


def verdict(capsys, checked, answer) -> str:
    checked(answer)
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("\n") == 1
    return printed.out


def stub(*args):
    """Stands for a stub of the chapter."""
    ...  # your code here


class StubBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        ...  # your code here

    def forward(self, x):
        ...  # your code here


@pytest.mark.parametrize("name", ["stack_gradient", "effective_depth", "first_to_last"])
def test_a_stub_is_not_attempted(capsys, name):
    said = f"Not attempted yet: {name.replace('_', ' ')}\n"
    assert verdict(capsys, getattr(check, name), stub) == said
    assert verdict(capsys, getattr(check, name), lambda *args: None) == said


def test_a_stub_of_a_block_is_not_attempted(capsys):
    assert verdict(capsys, check.skipinit, StubBlock) == "Not attempted yet: skipinit\n"


# Exercise 1 ---------------------------------------------------------------------------------------


def stack_gradient(slopes, residual):
    return float(math.prod(1 + j if residual else j for j in slopes))


def stack_gradient_by_autograd(slopes, residual):
    x = start = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    for j in slopes:
        x = x + j * x if residual else j * x
    return torch.autograd.grad(x, start)[0] if slopes else torch.tensor(1.0)


@pytest.mark.parametrize("answer", [stack_gradient, stack_gradient_by_autograd])
def test_stack_gradient_accepts(capsys, answer):
    assert verdict(capsys, check.stack_gradient, answer).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda s, r: stack_gradient(s, not r), "of the other stack"),
        (lambda s, r: 1 + math.prod(s) if r else math.prod(s), "around each block"),
        (lambda s, r: sum(s) + r, "multiply, they do not add up"),
        (lambda s, r: stack_gradient(s, r) if s else 0.0, "gradient is 1"),
        (lambda s, r: math.prod(1 - j if r else j for j in s), "each step multiplies by 1 + j"),
        (lambda s, r: torch.tensor(s), "return one number"),
    ],
)
def test_stack_gradient_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.stack_gradient, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 2 ---------------------------------------------------------------------------------------


def effective_depth(n, c):
    weights = [math.comb(n, k) * c**k for k in range(n + 1)]
    return sum(k * weight for k, weight in enumerate(weights)) / sum(weights)


@pytest.mark.parametrize("answer", [effective_depth, lambda n, c: n * c / (1 + c)])
def test_effective_depth_accepts(capsys, answer):
    assert verdict(capsys, check.effective_depth, answer).startswith("Correct: ")


def weighted(count, total, stop=1):
    def answer(n, c):
        lengths = range(n + stop)
        return sum(k * count(n, k) * c**k for k in lengths) / total(n, c)

    return answer


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda n, c: n / 2, "a path of length k weighs c**k"),
        (weighted(lambda n, k: 1, lambda n, c: sum(c**k for k in range(n + 1))), "comb(n, k)"),
        (weighted(math.comb, lambda n, c: 1), "a mean is divided"),
        (weighted(math.comb, lambda n, c: 2**n), "not by the number of paths"),
        (weighted(math.comb, lambda n, c: (1 + c) ** n, stop=0), "range(n + 1) ends with n"),
        (lambda n, c: n * c, "the mean length is"),
    ],
)
def test_effective_depth_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.effective_depth, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 3 ---------------------------------------------------------------------------------------


def kernels(model):
    return [p for p in model.parameters() if p.dim() == 4]


def first_to_last(model, x, y):
    model = copy.deepcopy(model).train()
    first, *_, last = torch.autograd.grad(F.cross_entropy(model(x), y), kernels(model))
    return (first.norm() / last.norm()).item()


def with_backward(model, x, y):
    model = copy.deepcopy(model).train()
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    norms = [p.grad.norm() for p in kernels(model)]
    return norms[0] / norms[-1]


def by_restoring(model, x, y):
    modes = {m: m.training for m in model.modules()}
    buffers = [(b, b.clone()) for b in model.buffers()]
    gradients = torch.autograd.grad(F.cross_entropy(model.train()(x), y), kernels(model))
    for b, value in buffers:
        b.copy_(value)
    for m, mode in modes.items():
        m.training = mode
    return float(gradients[0].norm() / gradients[-1].norm())


@pytest.mark.parametrize("answer", [first_to_last, with_backward, by_restoring])
def test_first_to_last_accepts(capsys, answer):
    assert verdict(capsys, check.first_to_last, answer).startswith("Correct: ")


def in_eval_mode(model, x, y):
    first, *_, last = torch.autograd.grad(F.cross_entropy(model(x), y), kernels(model))
    return (first.norm() / last.norm()).item()


def to_the_bias(model, x, y):
    model = copy.deepcopy(model).train()
    first, *_, last = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return (first.norm() / last.norm()).item()


def adding_up(model, x, y):
    model.train()  # not a copy, which would have no .grad, and not emptied
    F.cross_entropy(model(x), y).backward()
    norms = [p.grad.norm() for p in kernels(model)]
    return norms[0] / norms[-1]


def moves_the_statistics(model, x, y):
    ratio = first_to_last(model, x, y)
    model.train()(x)
    model.eval()
    return ratio


def overwrites_grad(model, x, y):
    ratio = first_to_last(model, x, y)
    model.zero_grad()
    return ratio


def stays_in_train_mode(model, x, y):
    ratio = first_to_last(model, x, y)
    model.train()
    return ratio


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda *given: 1 / first_to_last(*given), "upside down"),
        (lambda *given: first_to_last(*given) ** 2, "squared norms"),
        (in_eval_mode, "that is eval mode"),
        (to_the_bias, "the linear layer's bias"),
        (adding_up, "do you add to old gradients"),
        (moves_the_statistics, "has changed: work on a copy"),
        (overwrites_grad, "the model's .grad has changed"),
        (stays_in_train_mode, "in eval mode before"),
    ],
)
def test_first_to_last_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.first_to_last, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 4 ---------------------------------------------------------------------------------------


class SkipInitBlock(nn.Module):
    bias = True

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=self.bias)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=self.bias)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return F.relu(x + self.alpha * self.conv2(F.relu(self.conv1(x))))


class WithoutBias(SkipInitBlock):
    bias = False

    def __init__(self, channels):
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.relu = nn.ReLU()

    def forward(self, x):
        branch = self.conv2(self.relu(self.conv1(x)))
        return self.relu(torch.add(branch * self.alpha, x))


@pytest.mark.parametrize("answer", [SkipInitBlock, WithoutBias])
def test_skipinit_accepts(capsys, answer):
    assert verdict(capsys, check.skipinit, answer).startswith("Correct: ")


class StartsAtOne(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        nn.init.ones_(self.alpha)


class NoPadding(SkipInitBlock):
    def forward(self, x):
        return F.relu(self.alpha * F.conv2d(x, self.conv1.weight))


class ScalesTheShortcut(SkipInitBlock):
    def forward(self, x):
        return F.relu(self.alpha * x + self.conv2(F.relu(self.conv1(x))))


class NoLastReLU(SkipInitBlock):
    def forward(self, x):
        return x + self.alpha * self.conv2(F.relu(self.conv1(x)))


class NoInnerReLU(SkipInitBlock):
    def forward(self, x):
        return F.relu(x + self.alpha * self.conv2(self.conv1(x)))


class ReLUOnTheBranch(SkipInitBlock):
    def forward(self, x):
        return F.relu(x + self.alpha * F.relu(self.conv2(F.relu(self.conv1(x)))))


class ZeroConvolution(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        nn.init.zeros_(self.conv2.weight)


class NotLearnable(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        del self.alpha
        self.alpha = torch.zeros(())


class OnePerChannel(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.zeros(channels, 1, 1))


class WithBatchNorm(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        self.bn = nn.BatchNorm2d(channels)


class Detached(SkipInitBlock):
    def forward(self, x):
        return F.relu(x + self.alpha.item() * self.conv2(F.relu(self.conv1(x))))


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (StartsAtOne, "start it at 0"),
        (NoPadding, "set padding=1"),
        (ScalesTheShortcut, "does alpha scale the shortcut"),
        (NoLastReLU, "the last ReLU"),
        (NoInnerReLU, "between the convolutions"),
        (ReLUOnTheBranch, "a ReLU of its own"),
        (ZeroConvolution, "the weights of conv2 start at 0"),
        (NotLearnable, "wrap it in nn.Parameter"),
        (OnePerChannel, "alpha has 6 elements"),
        (WithBatchNorm, "a batch norm inside"),
        (Detached, "no gradient reaches alpha"),
    ],
)
def test_skipinit_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.skipinit, answer)
    assert said.startswith("Not yet: ") and fragment in said
