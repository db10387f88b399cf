"""Self-checks of chapter 01."""

import torch
from torch import nn

from d2lres.blocks import BasicBlock, Bottleneck, conv1x1
from d2lres.checks import Wrong, check


@check
def anatomy(answer) -> str:
    for depth in (20, 8, 56, 110):
        n = (depth - 2) // 6
        got = answer(depth)
        if got is None:
            raise NotImplementedError
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong("return two numbers, (blocks per stage, additions).")
        blocks, additions = got
        if blocks == 3 * n and additions == n:
            raise Wrong("the order is (blocks per stage, additions), yours is the other way round.")
        if blocks == 3 * n:
            raise Wrong("those are the blocks of all three stages: give those of one stage.")
        if blocks != n:
            raise Wrong(
                f"{depth} layers are 1 + 3 stages of 2n + 1, so n is {n}, not {blocks}: "
                "the first convolution and the linear layer belong to no block."
            )
        if additions == n:
            raise Wrong("that is one stage: count the additions of all three.")
        if additions == 6 * n:
            raise Wrong("a block adds once, after its second convolution, not once for each.")
        if additions != 3 * n:
            raise Wrong(
                f"3 stages of {n} blocks make {3 * n} additions in {depth} layers, not {additions}."
            )
    for depth in (18, 21, 2):
        try:
            answer(depth)
        except ValueError:
            continue
        why = "it has no blocks at all" if depth == 2 else "it is not 6n + 2"
        raise Wrong(f"no network of the family has {depth} layers ({why}): raise a ValueError.")
    return "one addition per block, and 56 layers differ from their plain twin by 27 of them."


@check
def contains(answer) -> str:
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)

    def powers(*exponents):
        return torch.stack([x**p for p in exponents], dim=1)

    legendre = torch.stack([x**0, x, (3 * x**2 - 1) / 2], dim=1)
    for large, small, expected, advice in (
        (
            powers(0, 1, 2, 3),
            powers(0, 1),
            True,
            "the powers 0 to 3 contain the powers 0 and 1: set two weights to 0.",
        ),
        (
            powers(0, 1),
            powers(0, 1, 2, 3),
            False,
            "the powers 0 and 1 do not contain the powers 0 to 3: is the order (large, small)?",
        ),
        (
            powers(0, 2, 4, 6),
            powers(1, 3),
            False,
            "more columns are not enough: no sum of even powers is odd.",
        ),
        (
            powers(0, 1, 2),
            legendre,
            True,
            "a column of `small` need not be a column of `large`: a sum of several columns counts.",
        ),
        (
            legendre,
            powers(2),
            True,
            "x to the 2 is a sum of columns of `large`, though none of them equals it.",
        ),
        (
            powers(0, 1),
            powers(0, 1, 1, 0),
            True,
            "repeated columns add nothing: `small` may have more columns and still be contained.",
        ),
        (
            powers(0, 1, 1),
            powers(1),
            True,
            "repeated columns of `large` take nothing away: count independent columns.",
        ),
        (
            powers(0, 1, 2),
            powers(1, 3),
            False,
            "every column of `small` has to be in the class, not just one of them.",
        ),
    ):
        got = answer(large, small)
        if got is None:
            raise NotImplementedError
        if getattr(got, "numel", lambda: 1)() != 1:
            raise Wrong("return one True or False, not one for each entry.")
        if bool(got) != expected:
            raise Wrong(advice)
    return "containing is a matter of what the columns span, not of how many there are."


@check
def silence(answer) -> str:
    for kind, channels in ((BasicBlock, 8), (Bottleneck, 16)):
        name, last = (kind.__name__, "bn2" if kind is BasicBlock else "bn3")
        block = _trained(kind(channels, channels // kind.expansion))
        before = {key: value.clone() for key, value in block.named_parameters()}
        silenced = answer(block)
        if silenced is None and all(torch.equal(v, before[k]) for k, v in block.named_parameters()):
            raise NotImplementedError
        silenced = silenced if isinstance(silenced, nn.Module) else block
        x = torch.rand(4, channels, 6, 6, requires_grad=True)
        for mode in (True, False):
            silenced.train(mode)
            with torch.no_grad():
                off = (silenced(x) - x).abs().max().item()
            if not off < 1e-6:
                raise Wrong(
                    f"the {name} changes its input by up to {off:.2g} in "
                    f"{'train' if mode else 'eval'} mode{_why(silenced, last)}."
                )
        after = dict(silenced.named_parameters())
        for key, value in before.items():
            if key.rpartition(".")[0] == last:
                continue
            if key not in after or not torch.equal(after[key], value):
                raise Wrong(f"{key} of the {name} has changed: leave all but {last} as it was.")
        silenced.train()(x).square().sum().backward()
        weight = after.get(f"{last}.weight")
        if weight is None or weight.grad is None or not weight.grad.abs().sum() > 0:
            raise Wrong(
                f"the {name} passes on its input, but no gradient reaches {last}.weight, so it "
                "can never learn: set the values to 0, and keep the layer."
            )
    shortcut = nn.Sequential(conv1x1(8, 16, 2), nn.BatchNorm2d(16))
    try:
        answer(BasicBlock(8, 16, 2, shortcut))
    except ValueError:
        return "two vectors of zeros make a block vanish, and its first gradient can bring it back."
    raise Wrong("a block with `downsample` changes its input on the shortcut: raise a ValueError.")


def _trained(block: nn.Module) -> nn.Module:
    """`block` with batch norms as training leaves them, not at 1 and 0."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return block


def _why(block: nn.Module, last: str) -> str:
    norm = getattr(block, last, None)
    if not isinstance(norm, nn.BatchNorm2d):
        return ""
    weight, bias = (bool(torch.all(value == 0)) for value in (norm.weight, norm.bias))
    if weight and not bias:
        return f": the weight of {last} is 0, but it still adds its bias"
    if bias and not weight:
        return f": the bias of {last} is 0, but it still multiplies by its weight"
    return f": {last} is the last layer before the addition, and neither its weight nor bias is 0"


@check
def gaps(answer) -> str:
    errors = {  # for seeds 0 and 3: training error, the same while training, test error
        ("plain", 8): ((0.02, 0.04, 0.13), (0.01, 0.03, 0.12)),
        ("plain", 20): ((0.03, 0.06, 0.15), (0.05, 0.06, 0.12)),
        ("plain", 56): ((0.23, 0.30, 0.28), (0.15, 0.25, 0.24)),
        ("residual", 8): ((0.02, 0.05, 0.12), (0.03, 0.05, 0.12)),
        ("residual", 20): ((0.01, 0.02, 0.11), (0.01, 0.02, 0.11)),
        ("residual", 56): ((0.00, 0.02, 0.10), (0.02, 0.03, 0.14)),
    }
    runs = [
        dict(
            kind=kind,
            depth=depth,
            seed=seed,
            history=dict(
                loss=[1.0, 0.5],
                accuracy=[0.5, 1 - in_training],
                seconds=[1.0, 1.0],
                test_loss=[1.0, 0.5],
                test_accuracy=[0.5, 1 - test],
            ),
            train=dict(loss=0.4, accuracy=1 - train),
            test=dict(loss=0.5, accuracy=1 - test),
        )
        for (kind, depth), both in errors.items()
        for seed, (train, in_training, test) in zip((0, 3), both)
    ]
    order = [7, 2, 11, 5, 0, 9, 4, 1, 10, 3, 8, 6]  # neither depths nor seeds are sorted
    runs = [runs[i] for i in order]
    for shallow, deep in ((20, 56), (8, 20)):
        got = answer(runs, shallow, deep)
        if got is None:
            raise NotImplementedError
        if not isinstance(got, dict):
            raise Wrong("return a dictionary from the seed to its gap, {0: …, 3: …}.")
        if set(got) != {0, 3}:
            raise Wrong(f"the runs have the seeds 0 and 3, your dictionary has {sorted(got)}.")
        got = [float(got[0]), float(got[3])]

        def gap(kind, which, shallow=shallow, deep=deep):
            pairs = zip(errors[kind, shallow], errors[kind, deep])
            return [high[which] - low[which] for low, high in pairs]

        expected = gap("plain", 0)
        for values, advice in (
            (
                [-v for v in expected],
                "the sign is turned: the deep error minus the shallow one, so "
                "that a positive gap means degradation.",
            ),
            (gap("plain", 2), "these are test errors: degradation is about `train`."),
            (
                gap("plain", 1),
                "these are the accuracies while training: use those of the finished "
                'network, run["train"].',
            ),
            (gap("residual", 0), "these are the residual networks: select the plain ones."),
            ([100 * v for v in expected], "these are percentages: give fractions, -1 to 1."),
            (expected[::-1], "the seeds are mixed up: pair runs by their seed, not by position."),
        ):
            if _close(got, values) and not _close(got, expected):
                raise Wrong(advice)
        if not _close(got, expected):
            raise Wrong(
                f"for {shallow} and {deep} layers the gaps are {_rounded(expected)}, yours are "
                f"{_rounded(got)}: pair plain runs of the same seed, by depth."
            )
    return 'now apply it: gaps(record["runs"], 20, 56) is what 36 more plain layers cost.'


def _close(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) < 1e-6 for x, y in zip(a, b))


def _rounded(values: list[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)
