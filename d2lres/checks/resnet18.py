"""Self-checks of chapter 03."""

from contextlib import suppress
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from d2lres.blocks import BasicBlock, Bottleneck, resnet_block
from d2lres.checks import behaves, call, check, compare, require, scramble
from d2lres.networks import make_shortcut


@check
def output_size(answer) -> str:
    def right(n, k, s=1, p=0):
        x, w = torch.empty(1, 1, n, n, device="meta"), torch.empty(1, 1, k, k, device="meta")
        return F.conv2d(x, w, stride=s, padding=p).shape[-1]

    def rule(steps, sides=2):
        return lambda n, k, s=1, p=0: steps(n + sides * p - k, s)

    mistakes = {
        "the kernel's first position counts as well: add 1.": rule(lambda n, s: n // s),
        "add the 1 after dividing.": rule(lambda n, s: (n + 1) // s),
        "half a step is no step: round down with //.": rule(lambda n, s: n / s + 1),
        "round down, not up: half a step is not made.": rule(lambda n, s: -(-n // s) + 1),
        "padding is added on both sides.": rule(lambda n, s: n // s + 1, 1),
        "the padding is missing.": rule(lambda n, s: n // s + 1, 0),
    }
    cases = [(28, 5), (10, 3, 2), (28, 5, 1, 0), (224, 7, 2, 3), (112, 3, 2, 1), (224, 7, 2, 0)]
    cases += [(30, 3, 3, 1), (7, 1, 2, 0), (5, 5), (6, 2, 7, 3), (448, 1), (999, 3, 7, 2)]
    cases += [(n + k, k, s, p) for n, k, s, p in torch.randint(1, 9, (20, 4)).tolist()]
    hint = "the number of places where the kernel can stand"
    compare(answer, right, cases, mistakes, form="one whole number", hint=hint, draws=True)
    return "your rule gives what PyTorch's convolution gives, with padding, stride and rounding."


@check
def stage_parameters(answer) -> str:
    def block(c):
        return 18 * c * c + 6 * c

    def extra(a, c):  # what the first block has on top
        return 10 * a * c - 9 * c * c + c

    def off(by):
        return lambda a, c, n: n * block(c) + extra(a, c) + by(a, c, n)

    mistakes = {
        "the shortcut's 1x1 convolution is missing.": off(lambda a, c, n: -a * c - c),
        "the convolutions have biases, one a channel.": off(lambda a, c, n: -(2 * n + 1) * c),
        "a block has two BN, each with two numbers a channel.": off(lambda a, c, n: -4 * n * c),
        "the shortcut of this block has no BN.": off(lambda a, c, n: 2 * c),
        "the first block is one of the num_residuals.": off(lambda a, c, n: block(c)),
        "not every block is like the first one.": off(lambda a, c, n: (n - 1) * extra(a, c)),
        "the first block reads input_channels and has conv3.": off(lambda a, c, n: -extra(a, c)),
        "the first convolution reads input_channels.": off(lambda a, c, n: 9 * c * c - 9 * a * c),
    }
    cases = [(64, 128, 1), (64, 128, 2), (256, 512, 2), (16, 48, 5), (3, 7, 3), (64, 64, 2)]
    cases += [tuple(it) for it in torch.randint(1, 70, (6, 3)).tolist()]
    cases.append((1_000, 4_000, 600))  # 170 billion: too large to build
    form, hint = (
        "one whole number",
        "weights, biases and BN of all blocks, and of the first shortcut",
    )
    compare(answer, off(lambda *_: 0), cases, mistakes, form=form, hint=hint, draws=True)
    return "your formula counts every parameter of a stage without building it."


@check
def resnet34_from_blocks(answer) -> str:
    def reference(classes=10, relu=nn.ReLU, pool=None, head=nn.AdaptiveAvgPool2d, end=()):
        return nn.Sequential(
            *(nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), relu(), pool or nn.MaxPool2d(3, 2, 1)),
            *resnet_block(64, 64, 3, first_block=True),
            *(*resnet_block(64, 128, 4), *resnet_block(128, 256, 6), *resnet_block(256, 512, 3)),
            *(head(1), nn.Flatten(), nn.Linear(512, classes), *end),
        )

    with torch.device("meta"):  # shapes without numbers, which is quick
        for classes in (10, 7):
            net = call(answer, classes, draws=True)
            with suppress(Exception):  # lazy layers get their shapes
                net(torch.rand(2, 1, 64, 64))
            _same_layers(net, reference(classes), "", f"ResNet-34 for {classes} classes")
    net, again = call(answer, draws=True), call(answer, draws=True)
    with torch.device("meta"):
        _same_layers(net, reference(), "", "ResNet-34 for 10 classes, the default,")
    _shares_nothing("", net)
    _shares_nothing("", net, again)
    seeded = torch.equal(*([*it.parameters()][-2] for it in (net, again)))
    require(not seeded, "two calls start from the same weights: set no seed inside.")
    del again  # 85 MB
    pool = "the stem ends with a max-pool of 3x3, stride 2 and padding 1"
    mistakes = {
        "a ReLU is missing in the stem, behind the BN.": _like(reference, relu=nn.Identity),
        f"{pool}.": _like(reference, pool=nn.MaxPool2d(2)),
        f"{pool}; yours has none.": _like(reference, pool=nn.Identity()),
        "the head takes the average of each map.": _like(reference, head=nn.AdaptiveMaxPool2d),
        "return logits: cross-entropy has its own softmax.": _like(reference, end=[nn.Softmax(1)]),
    }
    what = "ResNet-34's with the same weights: compare stem and head with those of ResNet-18"
    behaves([(scramble(net), torch.randn(2, 1, 40, 33))], _like(reference), mistakes, what=what)
    return "33 convolutions and a linear layer, 34 in all, and you changed nothing but numbers."


def _same_layers(net, wanted: nn.Module, where: str, name: str) -> None:
    """Wrong unless the tensors of the two have the same shapes in the same order."""
    kind = type(net).__name__
    require(isinstance(net, nn.Sequential), f"{where}return an nn.Sequential; yours is a {kind}.")
    ours, theirs = [[(k, tuple(t.shape)) for k, t in m.state_dict().items()] for m in (net, wanted)]
    for (mine, shape), (other, right) in zip_longest(ours, theirs, fillvalue=("nothing", "")):
        told = f"yours has {mine} {shape} where {name} has {other} {right}: compare number, size "
        same = shape == right and mine.rpartition(".")[2] == other.rpartition(".")[2]
        require(same, f"{where}{told}and order of the layers up to there.")


def _shares_nothing(where: str, *nets: nn.Module) -> None:
    places = [t.data_ptr() for net in nets for t in net.state_dict().values()]
    among = "the networks of two calls share" if len(nets) > 1 else "two of your layers share"
    told = f"{where}{among} weights, so training one changes the other: make each anew."
    require(len(set(places)) == len(places), told)


def _like(build, *arguments, **changes):
    """A function (net, x) that computes what `build(…)` would with the tensors of net."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        with torch.device("meta"):
            reference = build(*arguments, **changes)
        tensors = dict(zip(reference.state_dict(), net.state_dict(keep_vars=True).values()))
        return functional_call(reference.train(net.training), tensors, (x,))

    return forward


@check
def make_layer(answer) -> str:
    class Wider(Bottleneck):
        expansion = 2

    def stage(block, inplanes, planes, blocks, stride=1):
        shortcut = make_shortcut(block, inplanes, planes, stride, "B")
        others = (block(planes * block.expansion, planes) for _ in range(1, blocks))
        return nn.Sequential(block(inplanes, planes, stride, shortcut), *others)

    cases: list = [(BasicBlock, 16, 16, 2), (BasicBlock, 16, 24, 3, 2), (BasicBlock, 8, 16, 6, 2)]
    cases += [
        (BasicBlock, 8, 8, 1, 1),
        (BasicBlock, 8, 8, 2, 4),
        (BasicBlock, 8, 12, 2),
        (BasicBlock, 8, 4, 9),
    ]
    cases += [(Bottleneck, 16, 4, 2, 1), (Bottleneck, 16, 8, 4, 2), (Bottleneck, 4, 4, 3)]
    for block, *numbers in (*cases, (Wider, 6, 3, 2)):
        shown = f"make_layer({block.__name__}, {', '.join(map(str, numbers))})"
        layer = call(answer, block, *numbers, draws=True)
        _same_layers(layer, stage(block, *numbers), f"{shown}: ", "torchvision's stage")
        _shares_nothing(f"{shown}: ", layer)
        pair = scramble(layer), torch.randn(3, numbers[0], 9, 8)
        what = f"torchvision's for {shown}: look at strides, and at what stands on the shortcut"
        behaves([pair], _like(stage, block, *numbers), what=what)
    return (
        "your builder makes torchvision's stages, with either block and with or without a stride."
    )
