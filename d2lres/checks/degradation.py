"""Self-checks of chapter 01."""

from itertools import product

import torch
from torch import nn

from d2lres.blocks import BasicBlock, Bottleneck, PadShortcut, conv1x1
from d2lres.checks import check, compare, in_place, refuses, require, scramble


@check
def anatomy(answer) -> str:
    def right(depth):
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise ValueError(f"{depth} is not 6n + 2" if rest else f"{depth} layers hold no block")
        return n, 3 * n

    mistakes = {
        "the order is (blocks per stage, additions).": lambda d: right(d)[::-1],
        "those are all blocks: give those of one stage.": lambda d: (right(d)[1],) * 2,
        "count the additions of all three stages.": lambda d: (right(d)[0],) * 2,
        "a block adds once, after its second convolution.": lambda d: (right(d)[0], d - 2),
    }
    drawn = torch.randint(2, 400, (6,)).tolist()
    depths = [8, 20, 56, 110, *(6 * n + 2 for n in drawn)]
    refused = [
        18,
        21,
        2,
        -4,
        -8,
        0,
        7,
        57,
        *(
            sign * (6 * n + 2 + i)
            for n in drawn
            for sign, i in ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (-1, 0), (-1, 4))
        ),
    ]
    cases = [(depth,) for depth in (*depths, *refused)]
    form, hint = "(blocks per stage, additions)", "(n, 3n), where depth = 6n + 2"
    compare(answer, right, cases, mistakes, form=form, hint=hint, draws=True)
    return "one addition per block, and 56 layers differ from their plain twin by 27 of them."


@check
def contains(answer) -> str:
    x, rank = torch.linspace(-1, 1, 41, dtype=torch.float64), torch.linalg.matrix_rank

    def powers(*exponents):
        return torch.stack([x**p for p in exponents], dim=1)

    legendre = torch.stack([x**0, x, (3 * x**2 - 1) / 2], dim=1)
    shown = {
        "the powers 0 to 3 contain the powers 0 and 1": (powers(0, 1, 2, 3), powers(0, 1)),
        "the powers 0 and 1 do not contain those from 0 to 3": (powers(0, 1), powers(0, 1, 2, 3)),
        "no sum of even powers is odd": (powers(0, 2, 4, 6), powers(1, 3)),
        "(3x² - 1) / 2 is a sum of 1 and x²": (powers(0, 1, 2), legendre),
        "x² is a sum of 1 and (3x² - 1) / 2": (legendre, powers(2)),
        "columns of `small` may repeat each other": (powers(0, 1), powers(0, 1, 1, 0)),
        "columns of `large` may repeat each other": (powers(0, 1, 1), powers(1)),
        "x is in the class, but x³ is not": (powers(0, 1, 2), powers(1, 3)),
        "x is in the class, x³ is not, and comes first": (powers(0, 1, 2), powers(3, 1)),
    }
    drawn = []
    signs = ([0, 0, 0], [1, -1, 0], [0, 0, 1], [0, 1, 0])  # once so that a sum cancels what is off
    for points, columns, span in (6, 2, 2), (6, 3, 1), (4, 9, 4), (7, 9, 3), (5, 3, 2), (3, 3, 1):
        basis = torch.linalg.qr(torch.randn(points, points, dtype=torch.float64))[0]
        large = basis[:, :span] @ torch.randn(span, columns, dtype=torch.float64)
        large[:, -1] = large[:, 0]
        inside = large @ torch.randn(columns, 3, dtype=torch.float64)
        off = 0.002 * torch.randn(points, 1, dtype=torch.float64)
        drawn += [(large, inside + off * torch.tensor(sign)) for sign in signs]
    drawn += [(drawn[0][0], torch.zeros(6, 2, dtype=torch.float64)), (powers(1), powers(0))]

    def right(large, small) -> bool:
        return bool(rank(torch.cat([large, small], dim=1)) == rank(large))

    mistakes = {
        "the order is (large, small), yours is turned.": lambda a, b: right(b, a),
        "more columns are not enough: what do they span?": lambda a, b: a.shape[1] >= b.shape[1],
        "a larger rank alone is not enough.": lambda a, b: bool(rank(a) >= rank(b)),
        "sums of columns count, too.": lambda a, b: set(zip(*b.tolist())) <= set(zip(*a.tolist())),
        "all columns must be in the class.": lambda a, b: any(right(a, q) for q in b.T[..., None]),
    }
    cases, form = [*shown.values(), *drawn], "one True or False, not one for each entry"
    compare(answer, right, cases, mistakes, form=form, hint=list(shown), draws=True)
    return "containing is a matter of what the columns span, not of how many there are."


@check
def silence(answer) -> str:
    kinds = [(BasicBlock, 8, "bn2"), (Bottleneck, 16, "bn3"), (BasicBlock, 3, "bn2")]
    for (kind, channels, last), mode in zip(kinds, (True, False, True)):
        block = scramble(kind(channels, channels // kind.expansion)).train(mode)
        own, x = (f"{last}.weight", f"{last}.bias"), torch.rand(4, channels, 6, 5)
        others = [name for name in in_place(answer, block, returns=True) if name not in own]
        require(not others, f"{', '.join(others)} changed: leave all but {last}'s weight and bias.")
        off = torch.stack([block.train(on)(x) - x for on in (True, False)]).abs().max()
        live = " and ".join(name for name in own if block.get_parameter(name).any())
        require(off < 1e-6, f"the {kind.__name__} changes x by {off:.2g}: {live} should be 0.")
    shortcuts = nn.Sequential(conv1x1(8, 8)), conv1x1(8, 8), PadShortcut(8, 8), nn.Sequential()
    shapes: list = [
        (BasicBlock, 8, 8),
        (Bottleneck, 8, 2),
        (BasicBlock, 4, 8),
        (BasicBlock, 8, 16, 2),
    ]
    for shortcut, (kind, *numbers) in product(shortcuts, shapes):
        block = scramble(kind(*numbers, downsample=shortcut))
        refuses(answer, block, f"downsample={type(shortcut).__name__}(…)", "it is not None")
    return "two vectors of zeros make a block vanish, and all else stays ready to learn."


@check
def gaps(answer) -> str:
    def runs(*seeds):
        found: list[dict] = []
        every = list(product(seeds, (32, 56, 8, 110, 20), ("residual", "plain")))
        for i in torch.randperm(len(every)).tolist():
            (seed, depth, kind), a = every[i], torch.rand(5).tolist()
            history = dict(loss=[1.0, a[0]], accuracy=[0.5, a[1]], test_accuracy=[0.5, a[2]])
            train = dict(loss=3 * a[0], accuracy=0.75 if seed == 7 else a[3])
            test = dict(loss=2 * a[1], accuracy=a[4])
            found.append(
                dict(kind=kind, depth=depth, seed=seed, history=history, train=train, test=test)
            )
        return found

    def by(score, kind="plain", change=lambda gap: gap):
        def gaps(runs, shallow, deep):
            found = {(run["depth"], run["seed"]): score(run) for run in runs if run["kind"] == kind}
            return {s: change(found[deep, s] - found[shallow, s]) for s in {s for _, s in found}}

        return gaps

    def error(run):
        return 1 - run["train"]["accuracy"]

    mistakes = {
        "the sign is turned: the deep error minus the shallow one.": by(lambda run: -error(run)),
        "these are test errors: take those of `train`.": by(lambda run: -run["test"]["accuracy"]),
        "take `train`, not `history`.": by(lambda run: -run["history"]["accuracy"][-1]),
        "these are the residual networks: select the plain ones.": by(error, "residual"),
        "a gap may be negative: leave its sign.": by(error, change=abs),
        "a gap may be negative: do not cut it off.": by(error, change=lambda gap: max(gap, 0)),
    }
    cases = [
        (runs(3, 0), 20, 56),
        (runs(7, 1, 11), 8, 20),
        (runs(2, 0, 1, 4), 8, 56),
        (runs(5), 32, 110),
    ]
    form, hint = (
        "a dictionary {seed: gap}",
        "for each seed the training error of the plain net `deep` minus that of `shallow`",
    )
    compare(answer, by(error), cases, mistakes, form=form, hint=hint)
    return 'now apply it: gaps(record["runs"], 20, 56) is what 36 more plain layers cost.'
