"""Self-checks of chapter 02."""

import copy
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2lres.blocks import Residual
from d2lres.checks import behaves, call, check, in_place, refuses, require, scramble


@check
def careful_block(kind) -> str:
    def sums(combine):
        def forward(block, x):
            branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
            return combine(branch, x if block.conv3 is None else block.conv3(x))

        return forward

    mistakes = {
        "the ReLU after the addition is missing.": sums(lambda g, s: g + s),
        "the shortcut is not added.": sums(lambda g, s: F.relu(g)),
        "the branch is not added.": sums(lambda g, s: F.relu(s)),
        "the ReLU belongs after the addition.": sums(lambda g, s: F.relu(g) + s),
    }
    fits = [((3, 3), (4, 3, 6, 6)), ((3, 6, True, 2), (4, 3, 7, 4)), ((2, 5, True), (3, 2, 5, 5))]
    fits += [((3, 3, False, 2), (4, 3, 1, 1)), ((3, 3, True), (1, 3, 40, 5))]  # equal shapes, too
    pairs = [(scramble(call(kind, *it, draws=True)), torch.randn(size)) for it, size in fits]
    behaves(pairs, sums(lambda g, s: F.relu(g + s)), mistakes, what="ReLU(g(x) + shortcut(x))")
    misfits = [((3, 6), (4, 3, 6, 6)), ((1, 6), (4, 1, 6, 6)), ((1, 4, False, 2), (4, 1, 4, 4))]
    sides = [(2, 2), (1, 2), (2, 1), (1, 4), (4, 1), (6, 6)]
    misfits += [((3, 3, False, 2), (4, 3, *side)) for side in sides]
    misfits += [((3, 6, True, 2), (4, 3, 7, 7)), ((3, 12, False, 2), (4, 3, 6, 12))]
    for (arguments, size), mode in product(misfits, (True, False)):
        block = scramble(call(kind, *arguments, draws=True)).train(mode)
        if block.conv3 is not None:
            block.conv3 = nn.Conv2d(3, 6, 1)  # a shortcut that is there and does not fit
        elif arguments == (3, 3, False, 2):
            call(block, torch.rand(4, 3, 1, 1))  # what fitted once need not fit again
        shown = f"{kind.__name__}{arguments} on maps {size}"
        refuses(block, torch.rand(size), shown, "the shapes differ in one dimension or more")
    return "your block adds equal shapes only: no forgotten 1x1 convolution passes unnoticed."


@check
def block_arguments(choose) -> str:
    names = ["input_channels", "num_channels", "use_1x1conv", "strides"]
    shapes = [(3, 6, 3, 6), (64, 56, 128, 28), (16, 9, 32, 9), (16, 8, 16, 4), (8, 7, 16, 4)]
    shapes += [(8, 30, 8, 10), (8, 7, 8, 3), (8, 10, 16, 4), (16, 5, 8, 5)]
    shapes += [(8, 7, 8, 4), (1, 8, 4, 4), (8, 4, 12, 2)]
    shapes += [(c, n, d, -(-n // s)) for c, d, n, s in torch.randint(1, 9, (40, 4)).tolist()]
    for c, side, d, goal in shapes:
        before, after = (c, side, side), (d, goal, goal)
        given = call(choose, before, after, draws=True)
        keys = isinstance(given, dict) and set(given) == set(names)
        require(keys, f"return a dict with the keys {', '.join(names)}; yours is {given!r}.")
        where, (*channels, used, strides) = f"{before} -> {after}", [given[name] for name in names]
        whole = all(
            hasattr(n, "__index__") and n is not True and n > 0 for n in (*channels, strides)
        )
        require(whole, f"{where}: channels and strides must be whole numbers from 1 up: {given}.")
        require(channels == [c, d], f"{where}: the channels go from {c} to {d}.")
        found = -(-side // int(strides))
        require(found == goal, f"{where}: strides={strides} gives a side of {found}.")
        require(used in (0, 1), f"{where}: use_1x1conv must be True or False, not {used!r}.")
        told = "x does not fit" if before != after else "the shape stays, so the identity will do"
        require(used == (before != after), f"{where}: {told}: use_1x1conv={before != after}.")
    return "channels and side decide, and the 1x1 convolution is there only when x does not fit."


@check
def repaired(kind) -> str:
    names = [f"{layer}{i}" for i in (1, 2, 3) for layer in ("conv", "bn")]
    pairs = []
    for channels in (8, 3):
        block = call(kind, channels, draws=True)
        layers: list = [getattr(block, name, None) for name in names]
        kinds = [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d] * 3
        require(kinds, f"keep the names of the layers, nn.Conv2d and nn.BatchNorm2d: {names}.")
        for name, conv, size in zip(names[::2], layers[::2], (1, 3, 1)):
            shape, right = tuple(conv.weight.shape), (channels, channels, size, size)
            require(shape == right, f"{name} has a weight of shape {shape}; it should be {right}.")
        usual = all(str(bn) == str(nn.BatchNorm2d(channels)) for bn in layers[1::2])
        require(usual, f"each BN is an nn.BatchNorm2d({channels}) with no other arguments.")
        own = [p for layer in layers for p in layer.parameters()]
        require(len(set(own)) == len(own), "two layers are the same one: each has its own weights.")
        told = "the six layers and nothing else should belong to parameters()."
        require(set(own) == set(block.parameters()), told)
        scramble(block)
        pairs += [(block, torch.randn(4, channels, 6, 5)), (block, torch.randn(1, channels, 5, 1))]

    def sums(combine, conv3_gets_x=False):
        def forward(block, x):
            out = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, block.conv1.bias)))
            out = F.conv2d(out, block.conv2.weight, block.conv2.bias, padding=1)
            out = x if conv3_gets_x else F.relu(block.bn2(out))
            return combine(x, block.bn3(F.conv2d(out, block.conv3.weight, block.conv3.bias)))

        return forward

    mistakes = {
        "conv3 still gets x: hand it the result of bn2.": sums(lambda x, g: F.relu(x + g), True),
        "x is not added.": sums(lambda x, g: F.relu(g)),
        "the ReLU after the addition is missing.": sums(lambda x, g: x + g),
        "the last ReLU belongs after the addition.": sums(lambda x, g: x + F.relu(g)),
    }
    what = "ReLU(x + g(x)), with conv1, bn1, ReLU, conv2 (padding 1), bn2, ReLU, conv3, bn3 as g"
    behaves(pairs, sums(lambda x, g: F.relu(x + g)), mistakes, what=what)
    return "all three convolutions take part. The right shape alone had proved nothing."


@check
def make_identity(change) -> str:
    for channels, mode in (8, True), (3, False):
        block = scramble(Residual(channels, channels, True)).train(mode)
        names, x = in_place(change, block), torch.rand(4, channels, 6, 5)
        require(names, "no parameter has changed: assign in place, inside torch.no_grad().")
        why = "the biases of bn2 and conv3 do not add up to 0"
        if not torch.equal(block.conv3.weight[:, :, 0, 0], torch.eye(channels)):
            why = "conv3 must pass each channel on and mix none: the unit matrix"
        if block.bn2.weight.any():
            why = "bn2, the last layer of g, still multiplies by its weight"
        for name, out in zip(("train", "eval"), _outputs(block, x)):
            off = (out - x).abs().max().item()
            require(off <= 1e-5, f"in {name} mode the output is off by up to {off:.2g}: {why}.")
        few = len(names) <= 4 and {*names} <= {name for name, _ in block.named_parameters()}
        require(few, f"that works, but {', '.join(names)} changed: at most four parameters may.")
    return "x >= 0 passes in both modes, through a convolution that has become the unit matrix."


@check
def without_biases(change) -> str:
    for arguments, mode in ((4, 8, True, 2), True), ((5, 3, True), False), ((3, 3, True), True):
        block, x = scramble(Residual(*arguments)).train(mode), torch.randn(4, arguments[0], 6, 4)
        expected = _outputs(block, x)
        in_place(change, block)
        for name in ("conv1.bias", "conv2.bias", "conv3.bias"):
            require(not block.get_parameter(name).any(), f"{name} is not 0 yet.")
        same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(_outputs(block, x), expected)]
        told = "both modes change: no BN follows conv3; which other bias is added to the same sum?"
        if same == [True, False]:
            told = "only eval mode changes: there BN subtracts the running mean, not the batch's."
        elif same == [False, True]:
            told = "only train mode changes: there BN takes out any bias before it, none behind it."
        require(all(same), told)
    return "three biases gone, output unchanged in both modes: they held nothing that BN did not."


def _outputs(block: Residual, x: Tensor) -> list[Tensor]:
    """The output in train and in eval mode, each from the block's present state."""
    return [copy.deepcopy(block).train(mode)(x).detach() for mode in (True, False)]
