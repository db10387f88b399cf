import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2lres import Residual
from d2lres.checks import block as check


@pytest.fixture
def verdict(capsys):
    def run(checked, *answers) -> str:
        assert checked(*answers) is None
        printed = capsys.readouterr()
        assert printed.err == "" and printed.out.count("\n") == 1
        return printed.out.strip()

    return run


class FullBlock(nn.Module):
    """The chapter's block: g and conv3 are there, forward is the exercise."""

    def __init__(self, input_channels, num_channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, num_channels, 3, padding=1, stride=strides)
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(num_channels)
        self.conv3 = None
        if use_1x1conv:
            self.conv3 = nn.Conv2d(input_channels, num_channels, 1, stride=strides)

    def g(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def s(self, x):
        return x if self.conv3 is None else self.conv3(x)

    def guarded(self, x):
        branch, shortcut = self.g(x), self.s(x)
        if branch.shape != shortcut.shape:
            raise ValueError("shapes differ")
        return branch, shortcut


def block_with(forward):
    return type("Mine", (FullBlock,), {"forward": forward})


# Exercise 1: the forward --------------------------------------------------------------------------


def test_a_careful_forward_is_correct(verdict):
    def solution(self, x):
        shortcut = x if self.conv3 is None else self.conv3(x)
        branch = self.g(x)
        if branch.shape != shortcut.shape:
            raise ValueError(f"branch {branch.shape} and shortcut {shortcut.shape} differ")
        return F.relu(branch + shortcut)

    def in_place_on_the_branch(self, x):
        y, shortcut = self.guarded(x)
        y += shortcut
        return y.clamp_min(0)

    def comparing_sizes_one_by_one(self, x):
        y = self.g(x)
        x = self.conv3(x) if self.conv3 else x
        if any(a != b for a, b in zip(x.size(), y.size())):
            raise ValueError
        return torch.relu(torch.add(x, y))

    for forward in (solution, in_place_on_the_branch, comparing_sizes_one_by_one):
        assert verdict(check.careful_block, block_with(forward)).startswith("Correct: ")
    # d2lres.Residual itself is a right answer, too.
    assert verdict(check.careful_block, Residual).startswith("Correct: ")


def unguarded(self, x):
    return F.relu(self.g(x) + self.s(x))


def only_the_channels_compared(self, x):
    branch, shortcut = self.g(x), self.s(x)
    if branch.shape[1] != shortcut.shape[1]:
        raise ValueError
    return F.relu(branch + shortcut)


def only_the_side_compared(self, x):
    branch, shortcut = self.g(x), self.s(x)
    if branch.shape[2:] != shortcut.shape[2:]:
        raise ValueError
    return F.relu(branch + shortcut)


def no_last_relu(self, x):
    branch, shortcut = self.guarded(x)
    return branch + shortcut


def no_shortcut(self, x):
    return F.relu(self.guarded(x)[0])


def no_branch(self, x):
    return F.relu(self.guarded(x)[1])


def relu_first(self, x):
    branch, shortcut = self.guarded(x)
    return F.relu(branch) + shortcut


def subtracting(self, x):
    branch, shortcut = self.guarded(x)
    return F.relu(branch - shortcut)


def subtracting_the_branch(self, x):
    branch, shortcut = self.guarded(x)
    return F.relu(shortcut - branch)


def twice(self, x):
    branch, shortcut = self.guarded(x)
    return F.relu(2 * branch + shortcut)


def no_return(self, x):
    F.relu(sum(self.guarded(x)))


def into_x(self, x):
    branch, shortcut = self.guarded(x)
    if shortcut is x:
        x += branch
        return F.relu(x)
    return F.relu(branch + shortcut)


def into_something_saved(self, x):
    branch, shortcut = self.guarded(x)
    inner = F.relu(self.bn1(self.conv1(x)))
    branch = self.bn2(self.conv2(inner))
    inner.add_(1)
    return F.relu(branch + shortcut)


def compared_before_conv3(self, x):
    branch = self.g(x)
    if branch.shape != x.shape:
        raise ValueError("shapes differ")
    return F.relu(branch + self.s(x))


def asserted_before_conv3(self, x):
    branch = self.g(x)
    assert branch.shape == x.shape
    return F.relu(branch + self.s(x))


def asserted(self, x):
    branch, shortcut = self.g(x), self.s(x)
    assert branch.shape == shortcut.shape, "shapes differ"
    return F.relu(branch + shortcut)


def the_wrong_way_round(self, x):
    branch, shortcut = self.g(x), self.s(x)
    if branch.shape == shortcut.shape:
        raise ValueError("shapes differ")
    return F.relu(branch + shortcut)


def mean_over_pixels(self, x):
    branch, shortcut = self.guarded(x)
    return F.relu(branch + shortcut).mean((2, 3))


@pytest.mark.parametrize(
    "forward, fragment",
    [
        (unguarded, "PyTorch's own error came first"),
        (only_the_channels_compared, "broadcast"),
        (only_the_side_compared, "PyTorch's own error"),
        (no_last_relu, "ReLU after the addition is missing"),
        (no_shortcut, "shortcut is not added"),
        (no_branch, "branch is not added"),
        (relu_first, "before the addition"),
        (subtracting, "the shortcut is subtracted"),
        (subtracting_the_branch, "the branch is subtracted"),
        (twice, "not ReLU(g(x) + shortcut(x))"),
        (no_return, "not NoneType"),
        (into_x, "changes the caller's x"),
        (into_something_saved, "backward fails"),
        (mean_over_pixels, "the output should be"),
        (
            compared_before_conv3,
            "Mine(3, 6, True, 2) has equal shapes after conv3, yet yours raised ValueError: "
            "compare after conv3.",
        ),
        (asserted_before_conv3, "yet yours raised AssertionError: compare after conv3."),
        (asserted, "raise ValueError instead"),
        (
            the_wrong_way_round,
            "Mine(3, 3) has equal shapes, yet yours raised ValueError: shapes differ",
        ),
    ],
)
def test_a_wrong_forward_is_told_its_mistake(verdict, forward, fragment):
    said = verdict(check.careful_block, block_with(forward))
    assert said.startswith("Not yet: ") and fragment in said


def test_broadcasting_is_caught_when_only_pytorchs_error_is_translated(verdict):
    def translated(self, x):
        try:
            return F.relu(self.g(x) + self.s(x))
        except RuntimeError as error:
            raise ValueError from error

    said = verdict(check.careful_block, block_with(translated))
    assert said.startswith("Not yet: ") and "broadcast" in said and "(4, 1, 6, 6)" in said


def test_the_stub_of_the_forward_is_not_attempted(verdict):
    def forward(self, x):
        """Docstring with shapes."""
        ...  # your code here

    expected = "Not attempted yet: careful block"
    assert verdict(check.careful_block, block_with(forward)) == expected


# Exercise 2: the arguments ------------------------------------------------------------------------

NAMES = ("input_channels", "num_channels", "use_1x1conv", "strides")


def choose(stride, use_1x1conv=lambda before, after: before != after):
    return lambda before, after: dict(
        zip(NAMES, (before[0], after[0], use_1x1conv(before, after), stride(before[1], after[1])))
    )


def test_right_arguments_are_correct(verdict):
    def search(before, after):
        strides = next(s for s in range(1, 99) if (before[1] - 1) // s + 1 == after[1])
        use = before[0] != after[0] or strides > 1
        return before[0], after[0], use, strides

    def sparse(before, after):  # leaves the defaults out
        answer = choose(lambda a, b: -(-a // b))(before, after)
        return {k: v for k, v in answer.items() if v not in (False,) or k != "use_1x1conv"}

    assert verdict(check.block_arguments, choose(lambda a, b: -(-a // b))).startswith("Correct: ")
    assert verdict(check.block_arguments, search).startswith("Correct: ")
    assert verdict(check.block_arguments, sparse).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (choose(lambda a, b: a // b), "rounded up"),
        (choose(lambda a, b: round(a / b)), "(8, 7, 7) -> (8, 3, 3): strides=2 gives a side of 4"),
        (
            choose(lambda a, b: 3 if (a, b) == (7, 3) else round(a / b)),
            "(8, 10, 10) -> (16, 4, 4): strides=2 gives a side of 5",
        ),
        (choose(lambda a, b: 1 if a == b else 2), "strides=2 gives a side of 15"),
        (choose(lambda a, b: 1), "rounded up"),
        (choose(lambda a, b: a / b), "whole number"),
        (choose(lambda a, b: -(-a // b), lambda b, a: True), "the identity will do"),
        (choose(lambda a, b: -(-a // b), lambda b, a: b[0] != a[0]), "the side changes"),
        (choose(lambda a, b: -(-a // b), lambda b, a: b[1] != a[1]), "the channels change"),
        (lambda b, a: dict(zip(NAMES, (a[0], b[0], b != a, -(-b[1] // a[1])))), "the channels are"),
        (lambda b, a: Residual(b[0], a[0]), "return a dict"),
        (lambda b, a: {"use_1x1conv": True}, "return a dict"),
    ],
)
def test_wrong_arguments_are_told_the_case(verdict, answer, fragment):
    said = verdict(check.block_arguments, answer)
    assert said.startswith("Not yet: ") and fragment in said


def test_the_stub_of_the_arguments_is_not_attempted(verdict):
    def block_arguments(before: tuple, after: tuple) -> dict:
        """Docstring."""
        ...  # your code here

    expected = "Not attempted yet: block arguments"
    assert verdict(check.block_arguments, block_arguments) == expected


# Exercise 3: the bugs -----------------------------------------------------------------------------


class Repaired(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(x + out)


class Compact(Repaired):  # no biases, padding by name, in place on what BN returns
    def __init__(self, channels):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding="same", bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x
        for i in "12":
            y = self.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y)))
        y = self.bn3(self.conv3(y))
        y += x
        return self.relu(y)


def test_the_repaired_block_is_correct(verdict):
    assert verdict(check.repaired, Repaired).startswith("Correct: ")
    assert verdict(check.repaired, Compact).startswith("Correct: ")


class StillSkipping(Repaired):
    def forward(self, x):
        return F.relu(x + self.bn3(self.conv3(x)))


class StillUnpadded(Repaired):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3)


class StillWithoutKernelSize(Repaired):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv3 = nn.Conv2d(channels, channels)


class LargeLast(Repaired):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)


class PaddedFirstInstead(StillUnpadded):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, padding=1)


class PaddedFirst(Repaired):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, padding=1)


class Renamed(Repaired):
    def __init__(self, channels):
        super().__init__(channels)
        self.last = self.conv3
        del self.conv3


class WithoutX(Repaired):
    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)))


class WithoutLastRelu(Repaired):
    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return x + self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))


class ReluFirst(Repaired):
    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return x + F.relu(self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out))))))


class MissingInnerRelu(Repaired):
    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + self.bn3(self.conv3(out)))


class Misspelt(Repaired):
    forward = nn.Module.forward

    def foward(self, x):
        return Repaired.forward(self, x)


@pytest.mark.parametrize(
    "kind, fragment",
    [
        (StillSkipping, "conv1, bn1, conv2, bn2 took no part"),
        (StillUnpadded, "padding=1"),
        (PaddedFirstInstead, "padding=1"),
        (PaddedFirst, "needs no padding"),
        (StillWithoutKernelSize, "TypeError"),
        (LargeLast, "conv3 should be 1x1, yours is 3x3"),
        (Renamed, "conv3 is missing"),
        (WithoutX, "x is not added"),
        (WithoutLastRelu, "ReLU after the addition is missing"),
        (ReluFirst, "before the addition"),
        (MissingInnerRelu, "another order"),
        (Misspelt, "NotImplementedError"),
    ],
)
def test_a_block_with_a_bug_left_is_told_which(verdict, kind, fragment):
    said = verdict(check.repaired, kind)
    assert said.startswith("Not yet: ") and fragment in said


def test_the_stub_of_the_repair_is_not_attempted(verdict):
    class Repaired(nn.Module):
        """Docstring."""

        ...  # your code here

    assert verdict(check.repaired, Repaired) == "Not attempted yet: repaired"


# Exercise 4: the identity -------------------------------------------------------------------------


def zero(*names):
    def change(block):
        for name in names:
            nn.init.zeros_(block.get_parameter(name))

    return change


def test_two_zeroed_parameters_are_correct(verdict):
    def by_hand(block):
        with torch.no_grad():
            block.bn2.weight *= 0
            block.bn2.bias[:] = 0

    def replaced(block):
        block.bn2.weight = nn.Parameter(torch.zeros(8))
        block.bn2.bias = nn.Parameter(torch.zeros(8))
        return block

    def a_copy(block):
        block = copy.deepcopy(block)
        zero("bn2.weight", "bn2.bias")(block)
        return block

    for change in (zero("bn2.weight", "bn2.bias"), by_hand, replaced, a_copy):
        said = verdict(check.make_identity, change)
        assert said.startswith("Correct: ") and "still gets a gradient" in said


def without_no_grad(block):
    block.bn2.weight *= 0


def no_bn(block):
    block.bn2 = nn.Identity()
    nn.init.zeros_(block.conv2.weight)


def local_only(block):
    weight = torch.zeros_like(block.bn2.weight)  # noqa: F841


def in_evaluation_mode(block):
    zero("bn2.weight", "bn2.bias")(block)
    block.eval()


def with_one_layer_in_evaluation_mode(block):
    zero("bn2.weight", "bn2.bias")(block)
    block.bn2.eval()


@pytest.mark.parametrize(
    "change, fragment",
    [
        (zero("conv2.weight", "conv2.bias"), "in evaluation it still scales (bias − running mean)"),
        (zero("conv2.weight", "bn2.bias"), "in evaluation it still scales (bias − running mean)"),
        (in_evaluation_mode, "leaves the block in evaluation mode"),
        (with_one_layer_in_evaluation_mode, "leaves bn2 in evaluation mode"),
        (zero("bn1.weight", "bn1.bias"), "its weight is not 0"),
        (zero("bn2.weight"), "still adds its bias"),
        (zero("bn2.weight", "conv2.bias"), "still adds its bias"),
        (zero("bn2.weight", "bn2.bias", "conv2.weight"), "you changed 3 tensors"),
        (local_only, "no parameter has changed"),
        (without_no_grad, "RuntimeError"),
        (no_bn, "keep the layers"),
    ],
)
def test_a_block_that_is_not_the_identity_is_told_why(verdict, change, fragment):
    said = verdict(check.make_identity, change)
    assert said.startswith("Not yet: ") and fragment in said


def test_the_stub_of_the_identity_is_not_attempted(verdict):
    def make_identity(block: Residual) -> None:
        """Docstring."""
        ...  # your code here

    assert verdict(check.make_identity, make_identity) == "Not attempted yet: make identity"


# Exercise 5: the biases ---------------------------------------------------------------------------


def moving(block, sign=-1, means=("conv1", "conv2"), into_bn2=True, into_bn_bias=False):
    with torch.no_grad():
        for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
            name = "conv1" if conv is block.conv1 else "conv2"
            if into_bn_bias:
                bn.bias += bn.weight * conv.bias / (bn.running_var + bn.eps).sqrt()
            elif name in means:
                bn.running_mean += sign * conv.bias
        if into_bn2:
            block.bn2.bias += block.conv3.bias
        for conv in (block.conv1, block.conv2, block.conv3):
            conv.bias.zero_()


def test_moved_biases_are_correct(verdict):
    def replaced(block):  # new zeros in place of the old
        moving(block)
        for conv in (block.conv1, block.conv2, block.conv3):
            conv.bias = nn.Parameter(torch.zeros(8))
        return block

    assert verdict(check.without_biases, moving).startswith("Correct: ")
    assert verdict(check.without_biases, replaced).startswith("Correct: ")


def removed(block):
    moving(block)
    block.conv1.bias = None


@pytest.mark.parametrize(
    "change, fragment",
    [
        (zero("conv1.bias", "conv2.bias", "conv3.bias"), "changes in both modes"),
        (zero("conv1.bias", "conv2.bias"), "conv3.bias is not 0"),
        (lambda b: moving(b, sign=1), "evaluation does not"),
        (lambda b: moving(b, means=("conv1",)), "evaluation does not"),
        (lambda b: moving(b, into_bn2=False), "changes in both modes"),
        (lambda b: moving(b, into_bn_bias=True), "training mode does not"),
        (lambda b: (moving(b), nn.init.zeros_(b.conv1.weight)), "conv1.weight has changed"),
        (lambda b: b.conv1.bias.zero_(), "RuntimeError"),
        (removed, "conv1.bias is gone: set it to zero in place"),
        (lambda b: (moving(b), b.train()), "leaves the block in training mode"),
    ],
)
def test_biases_moved_wrongly_are_told_in_which_mode_it_shows(verdict, change, fragment):
    said = verdict(check.without_biases, change)
    assert said.startswith("Not yet: ") and fragment in said


def test_the_stub_of_the_biases_is_not_attempted(verdict):
    def without_biases(block: Residual) -> None:
        """Docstring."""
        ...  # your code here

    assert verdict(check.without_biases, without_biases) == "Not attempted yet: without biases"
