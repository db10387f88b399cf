"""Self-checks of Chapter 3: map sizes, a stage's parameters, ResNet-34 and a stage builder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2lres import blocks as d2lres_blocks
from d2lres.checks import Wrong, check
from d2lres.networks import make_shortcut


@check
def output_size(function) -> str:
    """The side of a convolution's output: (size, kernel, stride, padding) -> int."""
    cases = [(28, 5, 1, 0), (224, 7, 2, 3), (112, 3, 2, 1), (224, 7, 2, 0), (55, 3, 2, 1),
             (30, 3, 3, 1), (7, 1, 2, 0)]  # fmt: skip
    for case in cases:
        size, kernel, stride, padding = case
        right = F.conv2d(
            torch.zeros(1, 1, size, size), torch.zeros(1, 1, kernel, kernel),
            stride=stride, padding=padding,
        ).shape[-1]  # fmt: skip
        got = function(size, kernel, stride, padding)
        if got == right:
            continue
        asked = f"size {size}, kernel {kernel}, stride {stride}, padding {padding}"
        said = f"for {asked} you give {got}, nn.Conv2d gives {right}"
        steps = size + 2 * padding - kernel
        reasons = {
            steps // stride: "the kernel's first position counts as well, so add 1",
            steps / stride + 1: "half a step is no step: round down with //",
            -(-steps // stride) + 1: "round down, not up: a step that does not fit is not made",
            (size + padding - kernel) // stride + 1: "padding is added on both sides",
            steps + 1: "with a stride the kernel makes fewer steps: divide by it",
        }
        raise Wrong(f"{said}: {reasons.get(got, 'count the places where the kernel can stand')}.")
    if function(10, 3) != 8:
        raise Wrong("stride must be 1 and padding 0 when they are left out.")
    return "your rule gives what nn.Conv2d gives, with and without padding, stride and rounding."


@check
def stage_parameters(function) -> str:
    """Parameters of resnet_block(input_channels, num_channels, num_residuals)."""
    for a, c, n in [(64, 128, 1), (64, 128, 2), (256, 512, 2), (16, 48, 5), (3, 7, 3)]:
        with torch.device("meta"):
            stage = d2lres_blocks.resnet_block(a, c, n)
        right = sum(p.numel() for block in stage for p in block.parameters())
        got = function(a, c, n)
        if got == right:
            continue
        block = 18 * c * c + 6 * c
        first = right - (n - 1) * block
        reasons = {
            right - (a * c + c): "the 1x1 convolution on the shortcut is missing",
            right - a * c: "the 1x1 convolution on the shortcut has weights, too",
            right - (2 * n + 1) * c: "the convolutions have biases, one for each output channel",
            right - 2 * n * c: "the 3x3 convolutions have biases, one for each output channel",
            right - c: "the 1x1 convolution has a bias, too",
            right - 4 * n * c: "each block has two BN, each with a scale and a shift per channel",
            right + 2 * c: "the shortcut of this block has no BN",
            right + block: "count the first block as one of the num_residuals",
            n * first: "only the first block reads input_channels and has a 1x1 convolution",
            n * block: "the first block reads input_channels, not num_channels, and has a shortcut "
            "convolution",
            n * block + a * c + c: "the first convolution reads input_channels, not num_channels",
        }
        reason = reasons.get(got, "compare with the parameters of one block, layer by layer")
        raise Wrong(
            f"resnet_block({a}, {c}, {n}) has {right:,} parameters, you count {got:,}: {reason}."
        )
    return "your formula counts every weight of a stage without building it."


def _sides(net: nn.Module, x: Tensor) -> tuple[list[tuple[nn.Conv2d, int]], Tensor]:
    """(convolution, side of its output) in the order they run on x, and the network's output."""
    sides: list[tuple[nn.Conv2d, int]] = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: sides.append((m, out.shape[-1])))
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            out = net.eval()(x)
    except (RuntimeError, ValueError) as error:
        raise Wrong(
            f"a picture does not get through, {error}; print the shape after each layer."
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    return sides, out


@check
def resnet34_from_blocks(build) -> str:
    """A function that builds ResNet-34 for grey pictures from resnet_block calls."""
    net = build()
    if not isinstance(net, nn.Module):
        raise Wrong(f"return an nn.Sequential; yours is a {type(net).__name__}.")
    sides, out = _sides(net, torch.rand(2, 1, 64, 64))
    if out.shape != (2, 10):
        raise Wrong(
            f"two pictures must give logits (2, 10), yours give {tuple(out.shape)}: end with a "
            "global average pool, Flatten and Linear."
        )
    if torch.allclose(out.exp().sum(1), torch.ones(2)) or torch.allclose(
        out.sum(1), torch.ones(2)
    ):
        raise Wrong("return logits, without a softmax: cross-entropy has its own.")

    stem, side = sides[0]
    if stem.kernel_size != (7, 7) or stem.out_channels != 64 or side != 32:
        raise Wrong(
            f"the stem is a 7x7 convolution to 64 channels that halves 64 to 32; yours is "
            f"{stem.kernel_size[0]}x{stem.kernel_size[1]} to {stem.out_channels} and gives {side}: "
            "stride 2, padding 3."
        )
    main = [(conv, side) for conv, side in sides[1:] if conv.kernel_size != (1, 1)]
    channels = {64: 3, 128: 4, 256: 6, 512: 3}
    found = {c: sum(conv.out_channels == c for conv, _ in main) for c in channels}
    for i, (c, n) in enumerate(channels.items(), start=1):
        if found[c] != 2 * n:
            raise Wrong(
                f"stage {i}, with {c} channels, needs {n} blocks of two 3x3 convolutions; "
                f"yours has {found[c]} such convolutions."
            )
    shortcuts = len(sides) - 1 - len(main)
    if shortcuts != 3:
        raise Wrong(
            f"three shortcuts need a 1x1 convolution, yours has {shortcuts}: stage 1, and no "
            "other, has first_block=True."
        )
    if main[0][1] != 16:
        raise Wrong(
            f"stage 1 must get maps of 16 x 16 from a picture of 64 x 64, yours are {main[0][1]}: "
            "is there one 3x3 max-pool with stride 2 and padding 1 before it?"
        )
    if main[-1][1] != 2:
        raise Wrong(f"the last maps must be 2 x 2 for a picture of 64 x 64, not {main[-1][1]}.")
    right = 21_290_250 if stem.bias is not None else 21_290_250 - 64
    parameters = sum(p.numel() for p in net.parameters())
    if parameters != right:
        raise Wrong(
            f"{right:,} parameters were expected, yours has {parameters:,}: compare stem, stages "
            "and head with those of ResNet-18."
        )
    with torch.device("meta"):
        classes = build(num_classes=7)(torch.rand(2, 1, 64, 64)).shape[1]
    if classes != 7:
        raise Wrong(f"num_classes=7 must give 7 logits a picture, yours gives {classes}.")
    return "33 convolutions and a linear layer, 34 in all, and you changed nothing but numbers."


@check
def make_layer(build) -> str:
    """A stage builder (block, inplanes, planes, blocks, stride) -> nn.Sequential, torchvision's."""
    basic, bottleneck = d2lres_blocks.BasicBlock, d2lres_blocks.Bottleneck
    cases = [(basic, 64, 64, 2, 1), (basic, 64, 128, 3, 2), (basic, 64, 128, 6, 2),
             (basic, 32, 32, 1, 1), (bottleneck, 64, 16, 2, 1), (bottleneck, 64, 32, 4, 2),
             (bottleneck, 16, 16, 3, 1)]  # fmt: skip
    for block, inplanes, planes, blocks, stride in cases:
        call = f"make_layer({block.__name__}, {inplanes}, {planes}, {blocks}, stride={stride})"
        layer = build(block, inplanes, planes, blocks, stride)
        if not isinstance(layer, nn.Sequential):
            raise Wrong(f"{call} must return an nn.Sequential, not a {type(layer).__name__}.")
        if len(layer) != blocks:
            raise Wrong(f"{call} has {len(layer)} blocks: how often does your loop run?")
        for i, part in enumerate(layer):
            out = (part.conv3 if block is bottleneck else part.conv2).out_channels
            if out != planes * block.expansion:
                raise Wrong(
                    f"{call}: block {i} gives {out} channels, not {planes * block.expansion}: the "
                    "block multiplies by its expansion itself."
                )
        _, out = _sides(layer, torch.rand(1, inplanes, 8, 8))
        right = (1, planes * block.expansion, 8 // stride, 8 // stride)
        if out.shape != right:
            given = (1, inplanes, 8, 8)
            raise Wrong(f"{call}: {given} must become {right}, not {tuple(out.shape)}.")
        for i, part in enumerate(layer):
            with torch.device("meta"):
                wide = inplanes if i == 0 else planes * block.expansion
                wanted = make_shortcut(block, wide, planes, stride if i == 0 else 1, "B")
            _compare_shortcuts(f"{call}: block {i}", part.downsample, wanted)
    return "your builder makes every stage of ResNet-18, -34, -50, -101 and -152."


def _compare_shortcuts(where: str, given: nn.Module | None, wanted: nn.Module | None) -> None:
    layers = [] if given is None else list(given.parameters())
    if wanted is None:
        if layers:
            raise Wrong(f"{where} needs no convolution on the shortcut, x has the right shape.")
    elif sorted(map(_shape, layers)) != sorted(map(_shape, wanted.parameters())):
        raise Wrong(
            f"{where} needs a 1x1 convolution without bias and a BN on its shortcut, as "
            "torchvision has them."
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
