"""Self-checks of chapter 00."""

import torch
from torch import nn

from d2lres.checks import Wrong, check
from d2lres.data import Images


class _Constant(nn.Module):
    """Answers with the same class whatever it sees."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), self.answer), 10).float()


@check
def error_rate(answer) -> str:
    data = Images(
        torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    )
    got = float(answer(_Constant(0), data))
    if abs(got - 25) > 1e-4:
        for value, advice in (
            (99.25, "accuracy is a fraction from 0 to 1: multiply it by 100 before you subtract."),
            (75, "that is the accuracy in percent: count the wrong answers, not the right ones."),
            (0.25, "that is a fraction: multiply by 100 to get percent."),
            (0.75, "that is the accuracy: the error is what is missing to 1, in percent."),
            (2, "that is the number of wrong answers: divide by the number of images."),
        ):
            if abs(got - value) < 1e-4:
                raise Wrong(advice)
        raise Wrong(f"two of eight images are classified wrongly, so 25 is expected, not {got:g}.")
    if abs(float(answer(_Constant(3), data)) - 100) > 1e-4:
        raise Wrong("a model that is always wrong has an error rate of 100.")
    return "error and accuracy add up to 100 percent."


@check
def twins(answer) -> str:
    pair = answer(8, 3)
    if pair is None:
        raise NotImplementedError
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise Wrong("return two networks, the plain one first.")
    plain, residual = pair
    adds = [any(getattr(m, "residual", False) for m in net.modules()) for net in pair]
    if adds == [True, False]:
        raise Wrong("the order is (plain, residual), yours is the other way round.")
    if adds != [False, True]:
        raise Wrong("one network needs residual=False and the other residual=True.")
    if not _equal(plain, residual):
        raise Wrong("the two start from different weights: set the seed before each construction.")
    if not _equal(plain, answer(8, 3)[0]):
        raise Wrong("the same seed must give the same weights again: set it inside the function.")
    if _equal(plain, answer(8, 4)[0]):
        raise Wrong("another seed gives the same weights: use the argument `seed`.")
    depth = sum(isinstance(m, nn.Conv2d) for m in answer(14, 3)[0].modules()) + 1
    if depth != 14:
        raise Wrong(f"asked for 14 layers, the network has {depth}: use the argument `depth`.")
    return "the twins start from the same weights, so they differ in the additions alone."


def _equal(a: nn.Module, b: nn.Module) -> bool:
    a, b = list(a.parameters()), list(b.parameters())
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


@check
def majority_accuracy(answer) -> str:
    for labels, expected in (([0, 1, 1, 2], 0.5), ([4, 4, 4, 0], 0.75), ([7], 1.0)):
        got = float(answer(torch.tensor(labels)))
        if abs(got - expected) > 1e-4:
            if abs(got - expected * len(labels)) < 1e-4:
                raise Wrong("that is the count of the most frequent class: divide by the number N.")
            if labels == [4, 4, 4, 0] and got == 4:
                raise Wrong("that is the most frequent class itself, not its share of the images.")
            if abs(got - 100 * expected) < 1e-2:
                raise Wrong("that is a percentage: the accuracy is a fraction from 0 to 1.")
            if labels == [0, 1, 1, 2] and abs(got - 1 / 3) < 1e-4:
                raise Wrong("one over the number of classes is right only for balanced labels.")
            raise Wrong(f"for the labels {labels} the answer is {expected:g}, not {got:g}.")
    return "on a balanced set of ten classes it is 10 percent: every accuracy starts from there."
