import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from verdicts import stub, verdict

from d2lres.checks import gradient_flow as check


class StubBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        ...  # your code here

    def forward(self, x): ...  # your code here


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
        (lambda s, r: str(stack_gradient(s, r)), "not a string"),
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
        (
            weighted(math.comb, lambda n, c: sum(math.comb(n, k) * c**k for k in range(n)), stop=0),
            "range(n + 1) ends with n",
        ),
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


def in_the_modes_it_has(model, x, y):
    model = copy.deepcopy(model)
    if not model.training:
        model.train()
    first, *_, last = torch.autograd.grad(F.cross_entropy(model(x), y), kernels(model))
    return (first.norm() / last.norm()).item()


def with_hooks(model, x, y):
    handles = [model.conv1.register_forward_hook(lambda *_: None)]
    handles.append(model.conv1.weight.register_hook(lambda _: None))
    ratio = by_restoring(model, x, y)
    for handle in handles:
        handle.remove()
    return ratio


@pytest.mark.parametrize(
    "answer", [first_to_last, with_backward, by_restoring, in_the_modes_it_has, with_hooks]
)
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


def ends_in_eval_mode(model, x, y):
    ratio = by_restoring(model, x, y)
    model.eval()
    return ratio


def one_mode_for_all(model, x, y):
    training, ratio = model.training, by_restoring(model, x, y)
    model.train(training)
    return ratio


def freezes(model, x, y):
    model.fc.requires_grad_(False)
    return first_to_last(model, x, y)


def leaves_a_hook(model, x, y):
    model.conv1.register_forward_hook(lambda *_: None)
    return first_to_last(model, x, y)


def leaves_a_tensor_hook(model, x, y):
    model.conv1.weight.register_hook(lambda _: None)
    return first_to_last(model, x, y)


def measured(norm, dims=4):
    def answer(model, x, y):
        model = copy.deepcopy(model).train()
        chosen = [p for p in model.parameters() if p.dim() >= dims]
        first, *_, last = torch.autograd.grad(F.cross_entropy(model(x), y), chosen)
        return norm(first) / norm(last)

    return answer


def of_another_loss(model, x, y):
    model = copy.deepcopy(model).train()
    first, *_, last = torch.autograd.grad(model(x).square().sum(), kernels(model))
    return (first.norm() / last.norm()).item()


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda *given: 1 / first_to_last(*given), "upside down"),
        (lambda *given: first_to_last(*given) ** 2, "squared norms"),
        (in_eval_mode, "that is eval mode"),
        (to_the_bias, "the linear layer's bias"),
        (adding_up, "you add to old gradients"),
        (moves_the_statistics, "running_mean changed: put it back"),
        (overwrites_grad, "conv1.weight.grad changed"),
        (stays_in_train_mode, "the mode of the model, train or eval, changed"),
        (ends_in_eval_mode, "the mode of the model, train or eval, changed"),
        (one_mode_for_all, "the mode of bn1, train or eval, changed"),
        (freezes, "fc.weight.requires_grad changed"),
        (leaves_a_hook, "the hooks of conv1 changed"),
        (leaves_a_tensor_hook, "the hooks of conv1.weight changed"),
        (measured(torch.norm, dims=2), "the linear layer's weight"),
        (measured(lambda g: g.square().mean().sqrt()), "root mean squares"),
        (measured(lambda g: g.abs().mean()), "means of absolute values"),
        (measured(lambda g: g.abs().max()), "the largest elements"),
        (of_another_loss, "is the loss the mean cross-entropy"),
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


class Lazy(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv1 = nn.LazyConv2d(channels, 3, padding="same")
        self.alpha = nn.Parameter(torch.zeros(1, 1, 1, 1))


class InSequence(nn.Module):
    def __init__(self, channels):
        super().__init__()
        convs = [nn.Conv2d(channels, channels, (3, 3), padding="same") for _ in range(2)]
        self.branch = nn.Sequential(convs[0], nn.ReLU(inplace=True), convs[1])
        self.conv1, self.conv2 = convs
        self.alpha = nn.Parameter(torch.tensor([0.0]))

    def forward(self, x):
        out = self.branch(x) * self.alpha
        out += x
        return out.clamp_(min=0)


@pytest.mark.parametrize("answer", [SkipInitBlock, WithoutBias, Lazy, InSequence])
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


class NoAlpha(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        del self.alpha


class SameConvolution(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv2 = self.conv1


class SecondScalar(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(channels)
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return F.relu(x + self.beta * self.alpha * self.conv2(F.relu(self.conv1(x))))


class SixChannels(SkipInitBlock):
    def __init__(self, channels):
        super().__init__(6)


class DetachedShortcut(SkipInitBlock):
    def forward(self, x):
        return F.relu(x.detach() + self.alpha * self.conv2(F.relu(self.conv1(x))))


class DetachedBranch(SkipInitBlock):
    def forward(self, x):
        return F.relu(x + self.alpha * self.conv2(F.relu(self.conv1(x))).detach())


class DetachedInput(SkipInitBlock):
    def forward(self, x):
        return F.relu(x + self.alpha * self.conv2(F.relu(self.conv1(x.detach()))))


class NoGradient(SkipInitBlock):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class AbsoluteAlpha(SkipInitBlock):
    def forward(self, x):
        return F.relu(x + self.alpha.abs() * self.conv2(F.relu(self.conv1(x))))


class NoReturn(SkipInitBlock):
    def forward(self, x):
        F.relu(x + self.alpha * self.conv2(F.relu(self.conv1(x))))


class SubtractsTheBranch(SkipInitBlock):
    def forward(self, x):
        return F.relu(x - self.alpha * self.conv2(F.relu(self.conv1(x))))


def other(name, **options):
    """A block in which the convolution `name` has these arguments."""

    class Other(SkipInitBlock):
        def __init__(self, channels):
            super().__init__(channels)
            groups = channels if options.get("groups") else 1
            conv = nn.Conv2d(channels, channels, **{**options, "groups": groups})
            setattr(self, name, conv)

    return Other


@pytest.mark.parametrize("name", ["conv1", "conv2"])
@pytest.mark.parametrize(
    "arguments, fragment",
    [
        (dict(kernel_size=3), "padding=(0, 0): it must be (1, 1)"),
        (dict(kernel_size=1), "kernel_size=(1, 1)"),
        (dict(kernel_size=5, padding=2), "kernel_size=(5, 5)"),
        (dict(kernel_size=3, padding=2, dilation=2), "dilation=(2, 2)"),
        (dict(kernel_size=3, padding=1, groups=True), "groups=6"),
        (dict(kernel_size=3, padding=1, stride=2), "stride=(2, 2)"),
    ],
)
def test_skipinit_wants_plain_3x3_convolutions(capsys, name, arguments, fragment):
    said = verdict(capsys, check.skipinit, other(name, **arguments))
    assert said.startswith(f"Not yet: with 6 channels {name} has ") and fragment in said


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (StartsAtOne, "start it at 0"),
        (NoPadding, "set padding=1"),
        (ScalesTheShortcut, "alpha scales the shortcut"),
        (NoLastReLU, "the last ReLU"),
        (NoInnerReLU, "between the convolutions"),
        (ReLUOnTheBranch, "a ReLU of its own"),
        (ZeroConvolution, "the weights of conv2 start at 0"),
        (NotLearnable, "wrap it in nn.Parameter"),
        (OnePerChannel, "alpha has 6 elements"),
        (WithBatchNorm, "a batch norm inside"),
        (Detached, "no gradient reaches alpha"),
        (NoAlpha, "the block has no alpha"),
        (SameConvolution, "one and the same"),
        (SecondScalar, "beta is learnable, too"),
        (SixChannels, "with 3 channels conv1 has in_channels=6"),
        (DetachedShortcut, "a wrong gradient reaches x"),
        (DetachedBranch, "no gradient reaches conv1.weight"),
        (DetachedInput, "a wrong gradient reaches x"),
        (NoGradient, "no gradient reaches"),
        (AbsoluteAlpha, "a wrong gradient reaches alpha"),
        (NoReturn, "is a `return` missing?"),
        (SubtractsTheBranch, "with alpha = 0.7"),
    ],
)
def test_skipinit_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.skipinit, answer)
    assert said.startswith("Not yet: ") and fragment in said
