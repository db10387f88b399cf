"""Self-checks of chapter 10, and the patient of its last exercise."""

import math
from collections.abc import Collection
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2lres.checks import call, check, compare, require, scramble
from d2lres.checks._calls import Changed
from d2lres.data import fashion_mnist
from d2lres.networks import cifar_resnet


@check
def floor(answer) -> str:
    def lowest(n: int) -> float:
        return math.log(math.e + n - 1) - 1

    mistakes = {
        "that is the loss of an equal guess; here the right class has more.": math.log,
        "softmax takes e to the power of 0 for the others, too: each adds 1.": lambda n: 0.0,
        "there are C - 1 others.": lambda n: lowest(n + 1),
        "subtract the logit of the right class, 1.": lambda n: lowest(n) + 1,
        "the loss is positive.": lambda n: -lowest(n),
        "use natural logarithms.": lambda n: lowest(n) / math.log(2),
    }
    compare(answer, lowest, [(10,), (2,), (1000,), (3,)], mistakes, form="one number")
    return (
        "with ten classes the loss stops at 1.461, and with two at 0.313, however long you train."
    )


class _Mixed(nn.Module):
    """Output i depends on the inputs `rows[i]`; BN and dropout mix or drop in train mode."""

    def __init__(self, rows: list[list[int]], features: int, classes: int) -> None:
        super().__init__()
        self.rows, self.fc = rows, nn.Linear(features, classes)
        self.stem = nn.Sequential(nn.BatchNorm1d(features), nn.Dropout(0.95))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        return self.fc(torch.stack([x[row].tanh().sum(0) for row in self.rows]))


@check
def depends(answer) -> str:
    own = [[[0], [1], [2]], [[0, 1], [1], [2, 0], [3]], [[2], [0], [1]], [[0]], [[1], [1]]]
    for i, rows in enumerate(own):
        shape, classes = [((2, 3), 3), ((5,), 4), ((1, 2, 2), 2), ((7,), 3), ((3, 2, 1), 5)][i]
        x = torch.randn(len(rows), *shape)
        model: Any = scramble(_Mixed(rows, x[0].numel(), classes))
        bn, drop = model.stem
        model.train(i % 2 == 0)
        bn.train(i > 1)
        drop.train(i != 2)
        with torch.no_grad():
            bn.weight.zero_()
            bn.weight[i % x[0].numel()] = 1e-5  # one number of an input matters, a little
            model.fc.weight.zero_()
            if i % 2:
                model.fc.weight[i - 1] = 2.0 - i  # one class depends on it
            else:
                model.fc.weight[0], model.fc.weight[-1] = 1.0, -1.0  # and the sum is constant
        wanted = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        for row, inputs in enumerate(rows):
            wanted[row, inputs] = True
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        try:
            got = call(answer, model, x, draws=True)
        except Changed as changed:
            told = (
                "it ran in train mode: call eval() first, for all layers, and restore their modes."
            )
            require("running" not in str(changed), told)
            raise
        shown = f"where the outputs depend on the inputs {rows}"
        plain = isinstance(got, Tensor) and got.layout == torch.strided and not got.is_meta
        told = f"return a tensor, dense and on the CPU; yours is a {type(got).__name__}: is a `return` missing?"
        require(plain and not got.is_nested, told)
        require(got.dtype == torch.bool, f"return a bool tensor; yours is {got.dtype}.")
        told = f"{shown}, the shape should be {tuple(wanted.shape)}; yours is {tuple(got.shape)}."
        require(got.shape == wanted.shape, told)
        turned = torch.equal(got, wanted.T) and not torch.equal(wanted, wanted.T)
        require(not turned, f"{shown}: rows are outputs and columns inputs; yours are exchanged.")
        why = "ask for each class by itself, as their sum may cancel, and take any number not 0."
        if got.all():
            why = "all depend on all: is it in train mode, or the sum over all outputs?"
        told = f"{shown}, yours gives {got.int().tolist()}: {why}"
        require(torch.equal(got, wanted), told)
    return (
        "an output without a gradient from the other inputs is the same in any small neighbourhood."
    )


@check
def roughness(answer) -> str:
    def rough(x: Tensor, power: int = 2) -> float:
        pairs = torch.cat([x.diff(dim=-1).flatten(), x.diff(dim=-2).flatten()])
        return (pairs.abs().pow(power).mean() / (2 * x.var(correction=0))).item()

    def halves(x: Tensor, weigh: float = 0.5) -> float:
        rows, columns = (x.diff(dim=d).square().mean() for d in (-1, -2))
        return ((weigh * rows + (1 - weigh) * columns) / (2 * x.var(correction=0))).item()

    mistakes = {
        "count the pairs in columns, too.": lambda x: halves(x, 1.0),
        "count the pairs in rows, too.": lambda x: halves(x, 0.0),
        "all pairs count alike: average over rows and columns together.": halves,
        "divide by twice the variance.": lambda x: 2 * rough(x),
        "twice the variance is below: multiply it by 2.": lambda x: 4 * rough(x),
        "divide by the variance, not by the deviation.": lambda x: (
            rough(x) * x.std(correction=0).item()
        ),
        "the variance divides by the number of pixels.": lambda x: rough(x) * (1 - 1 / x.numel()),
        "one average over all pairs, not the sum of two.": lambda x: 2 * halves(x),
        "square the differences.": lambda x: rough(x, 1),
        "put 2 * variance in brackets.": lambda x: rough(x) * x.var(correction=0).item() ** 2,
    }
    cases = [(torch.tensor([[[[0.0, 1, 5], [2, 4, 4]]]]),), (torch.rand(3, 2, 4, 7) * 3 - 1,)]
    cases += [(torch.randn(1, 1, 2, 5).cumsum(-1),)]
    cases += [(torch.randn(2, 3, 6, 2).cumsum(-2) + 4,), (torch.eye(4).view(1, 1, 4, 4),)]
    compare(answer, rough, cases, mistakes, form="one number")
    return (
        "a picture read in the wrong order of axes is rough: look at neighbours before you train."
    )


BUGS = {  # and the probe that sees it
    "a layer is ignored": "parameters",
    "a shortcut is added twice": "shortcuts",
    "the ReLU of the stem is missing": "twin",
    "softmax at the end": "logits",
    "a layer is unknown to the optimizer": "parameters",
    "no zero_grad": "gradient",
    "the loss is a sum": "gradient",
    "labels shuffled": "neighbours",
    "inputs never normalised": "images",
    "BN has a momentum of 0": "modes",
}


def drawn(number: int) -> list[str]:
    """The three bugs of patient `number`."""
    draws = torch.Generator().manual_seed(number)
    return [list(BUGS)[i] for i in torch.randperm(len(BUGS), generator=draws)[:3].tolist()]


def admit(number: int) -> dict[str, Any]:
    """A patient with three bugs of BUGS, drawn by the number: model, data, optimizer and step."""
    bugs = drawn(number)
    with torch.random.fork_rng():
        torch.manual_seed(number)
        model: Any = cifar_resnet(14, in_channels=1, width=8)
    first, second = model.layer1
    if "a layer is ignored" in bugs:
        first.forward = lambda x: F.relu(first.bn2(first.conv2(x)) + x)
    if "a shortcut is added twice" in bugs:
        second.register_forward_hook(lambda block, args, out: out + args[0])
    if "the ReLU of the stem is missing" in bugs:
        model.relu = nn.Identity()
    if "softmax at the end" in bugs:
        model.register_forward_hook(lambda net, args, out: out.softmax(1))
    for bn in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        bn.momentum = 0.0 if "BN has a momentum of 0" in bugs else 0.1
    unknown = (
        set(model.layer3[0].parameters()) if "a layer is unknown to the optimizer" in bugs else ()
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p not in unknown], 0.02)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        if "no zero_grad" not in bugs:
            optimizer.zero_grad()
        kind = "sum" if "the loss is a sum" in bugs else "mean"
        F.cross_entropy(model(x), y, reduction=kind).backward()
        optimizer.step()

    x, y = fashion_mnist(size=14)[0][::5].tensors()
    x = (x * 0.353 + 0.286) * 255 if "inputs never normalised" in bugs else x
    y = y.roll(7) if "labels shuffled" in bugs else y
    data = list(zip(x.split(64), y.split(64)))
    return dict(model=model, data=data, optimizer=optimizer, step=step)


@check
def three_bugs(answer) -> str:
    got = call(answer)
    pair = isinstance(got, (tuple, list)) and len(got) == 2
    require(pair, "return your number and the three names, and do not print them: number, bugs.")
    number, bugs = got
    require(not isinstance(number, (set, list, tuple)), "first the number, then the three names.")
    fits = isinstance(number, Integral) and not isinstance(number, bool)
    fits = fits and 0 <= int(number) <= 10_000
    require(fits, f"your number should be a whole one from 0 to 10,000, not {number!r}.")
    several = isinstance(bugs, Collection) and not isinstance(bugs, str)
    require(
        several and all(isinstance(it, str) for it in bugs), "the bugs are a set of three texts."
    )
    unknown = [it for it in bugs if it not in BUGS]
    require(not unknown, f"{(unknown or [''])[0]!r} is not one of BUGS: copy its text.")
    three = len(bugs) == len(set(bugs)) == 3
    require(three, f"name three different bugs; yours are {len(set(bugs))}, in {len(bugs)} texts.")
    missing = [it for it in drawn(int(number)) if it not in bugs]
    probe = BUGS[(missing or list(BUGS))[0]]
    told = f"{3 - len(missing)} of your three are right: look again at what `{probe}` says."
    require(not missing, told)
    return f"patient {number} has these three, and no accuracy was needed to tell."
