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
    cases = [
        (28, 5, 1, 0),
        (224, 7, 2, 3),
        (112, 3, 2, 1),
        (224, 7, 2, 0),
        (55, 3, 2, 1),
        (30, 3, 3, 1),
        (7, 1, 2, 0),
    ]
    for case in cases:
        size, kernel, stride, padding = case
        right = F.conv2d(
            torch.zeros(1, 1, size, size),
            torch.zeros(1, 1, kernel, kernel),
            stride=stride,
            padding=padding,
        ).shape[-1]
        got = function(size, kernel, stride, padding)
        if got == right:
            continue
        reason = "count the places where the kernel can stand"
        for mistake, name in _SIZE_MISTAKES.items():
            if all(function(*it) == mistake(*it) for it in cases):
                reason = name
        raise Wrong(
            f"for size {size}, kernel {kernel}, stride {stride}, padding {padding} you give {got}, "
            f"nn.Conv2d gives {right}: {reason}."
        )
    if function(10, 3) != 8:
        raise Wrong("stride must be 1 and padding 0 when they are left out.")
    return "your rule gives what nn.Conv2d gives, with and without padding, stride and rounding."


# A wrong rule often gives the right number, or another mistake's: it is known by all its answers.
_SIZE_MISTAKES = {
    lambda n, k, s, p: (n + 2 * p - k) // s: "the kernel's first position counts as well, so add 1",
    lambda n, k, s, p: (n + 2 * p - k + 1) // s: "add the 1 after dividing",
    lambda n, k, s, p: (n + 2 * p - k) / s + 1: "half a step is no step: round down with //",
    lambda n, k, s, p: -(-(n + 2 * p - k) // s) + 1: (
        "round down, not up: a step that does not fit is not made"
    ),
    lambda n, k, s, p: (n + p - k) // s + 1: "padding is added on both sides",
    lambda n, k, s, p: (n - k) // s + 1: "the padding is missing",
    lambda n, k, s, p: (n - k) // s + 1 + p: "the padding belongs inside, before the division",
    lambda n, k, s, p: (n - k) // s + 1 + 2 * p: "the padding belongs inside, before the division",
    lambda n, k, s, p: (
        n + 2 * p - k + 1
    ): "with a stride the kernel makes fewer steps: divide by it",
}


@check
def stage_parameters(function) -> str:
    """Parameters of resnet_block(input_channels, num_channels, num_residuals)."""
    cases = [(64, 128, 1), (64, 128, 2), (256, 512, 2), (16, 48, 5), (3, 7, 3)]
    for a, c, n in cases:
        with torch.device("meta"):
            stage = d2lres_blocks.resnet_block(a, c, n)
        right = sum(p.numel() for block in stage for p in block.parameters())
        got = function(a, c, n)
        if got == right:
            continue
        reason = "compare with the parameters of one block, layer by layer"
        for mistake, name in _STAGE_MISTAKES.items():
            if all(function(*it) == _stage(*it) + mistake(*it) for it in cases):
                reason = name
        raise Wrong(
            f"resnet_block({a}, {c}, {n}) has {right:,} parameters, you count {got:,}: {reason}."
        )
    return "your formula counts every weight of a stage without building it."


def _first(a: int, c: int) -> int:
    return 10 * a * c + 9 * c * c + 7 * c


def _block(c: int) -> int:
    return 18 * c * c + 6 * c


def _stage(a: int, c: int, n: int) -> int:
    return _first(a, c) + (n - 1) * _block(c)


# What a mistake adds to the right number.
_STAGE_MISTAKES = {
    lambda a, c, n: -a * c - c: "the 1x1 convolution on the shortcut is missing",
    lambda a, c, n: -a * c: "the 1x1 convolution on the shortcut has weights, too",
    lambda a, c, n: -(2 * n + 1) * c: ("the convolutions have biases, one for each output channel"),
    lambda a, c, n: -2 * n * c: (
        "have the 3x3 convolutions a bias for each output channel, and each BN a scale and a shift"
    ),
    lambda a, c, n: -c: "one bias for each channel is missing, if only the 1x1 convolution's",
    lambda a, c, n: -(2 * n - 1) * c: (
        "you count torchvision's stage; here convolutions have biases and the shortcut has no BN"
    ),
    lambda a, c, n: -4 * n * c: "each block has two BN, each with a scale and a shift per channel",
    lambda a, c, n: 2 * c: "the shortcut of this block has no BN",
    lambda a, c, n: _block(c): "count the first block as one of the num_residuals",
    lambda a, c, n: (n - 1) * (_first(a, c) - _block(c)): (
        "only the first block reads input_channels and has a 1x1 convolution"
    ),
    lambda a, c, n: _block(c) - _first(a, c): (
        "the first block reads input_channels, not num_channels, and has a shortcut convolution"
    ),
    lambda a, c, n: _block(c) + a * c + c - _first(a, c): (
        "the first convolution reads input_channels, not num_channels"
    ),
}


def _sides(
    net: nn.Module, x: Tensor, where: str = "", advice: str = "print the shape after each layer."
) -> tuple[list[tuple[nn.Conv2d, int]], Tensor]:
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
            f"{where}an image does not get through, {str(error).rstrip('.')}; {advice}"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    return sides, out


@check
def resnet34_from_blocks(build) -> str:
    """A function that builds ResNet-34 for grey images from resnet_block calls."""
    net = build()
    if not isinstance(net, nn.Module):
        raise Wrong(f"return an nn.Sequential; yours is a {type(net).__name__}.")
    sides, out = _sides(net, torch.rand(2, 1, 64, 64))
    if out.shape != (2, 10):
        raise Wrong(
            f"two images must give logits (2, 10), yours give {tuple(out.shape)}: end with a "
            "global average pool, Flatten and Linear."
        )
    if torch.allclose(out.exp().sum(1), torch.ones(2)) or torch.allclose(out.sum(1), torch.ones(2)):
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
            f"stage 1 must get maps of 16 x 16 from an image of 64 x 64, yours are {main[0][1]}: "
            "is there one 3x3 max-pool with stride 2 and padding 1 before it?"
        )
    if main[-1][1] != 2:
        raise Wrong(f"the last maps must be 2 x 2 for an image of 64 x 64, not {main[-1][1]}.")
    right = 21_290_250 if stem.bias is not None else 21_290_250 - 64
    parameters = sum(p.numel() for p in net.parameters())
    if parameters != right:
        raise Wrong(
            f"{right:,} parameters were expected, yours has {parameters:,}: compare stem, stages "
            "and head with those of ResNet-18."
        )
    _compare_outputs(net, stem.bias is not None)
    with torch.device("meta"):
        classes = build(num_classes=7)(torch.rand(2, 1, 64, 64)).shape[1]
    if classes != 7:
        raise Wrong(f"num_classes=7 must give 7 logits an image, yours gives {classes}.")
    return "33 convolutions and a linear layer, 34 in all, and you changed nothing but numbers."


def _compare_outputs(net: nn.Module, bias: bool) -> None:
    """Wrong unless `net`, in eval mode, computes what ResNet-34 computes with the same weights."""
    reference = nn.Sequential(
        nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=bias),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *d2lres_blocks.resnet_block(64, 64, 3, first_block=True),
        *d2lres_blocks.resnet_block(64, 128, 4),
        *d2lres_blocks.resnet_block(128, 256, 6),
        *d2lres_blocks.resnet_block(256, 512, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    ).eval()
    x = torch.randn(2, 1, 64, 64)
    theirs, ours = _layers(net.eval(), x), _layers(reference, x)
    for kind, layers in ours.items():
        given = theirs.get(kind, [])
        shapes = [[_shape(layer.weight) for layer in it] for it in (given, layers)]
        if shapes[0] != shapes[1]:
            raise Wrong(f"the layers {kind} have other shapes, or another order, than ResNet-34's.")
        for layer, source in zip(layers, given):
            if isinstance(source, nn.BatchNorm2d):  # fresh ones are all alike
                nn.init.uniform_(source.weight, 0.5, 1.5)
                nn.init.normal_(source.bias, std=0.3)
            layer.load_state_dict(source.state_dict(), strict=False)

    def same() -> bool:
        with torch.no_grad():
            right, got = reference(x), net(x)
        return torch.allclose(got, right, rtol=0, atol=1e-4 * float(right.std()))

    if same():
        return
    pooling = "the stem ends with a 3x3 max-pool, with stride 2 and padding 1"
    for i, layer, reason in [
        (2, nn.Identity(), "a ReLU is missing in the stem, behind the BN"),
        (3, nn.MaxPool2d(2), pooling),
        (3, nn.AvgPool2d(3, 2, 1), pooling),
        (-3, nn.AdaptiveMaxPool2d(1), "the head takes the average of each map, not the maximum"),
    ]:
        kept, reference[i] = reference[i], layer
        if same():
            raise Wrong(f"{reason}.")
        reference[i] = kept
    raise Wrong(
        "with the same weights ResNet-34 gives other outputs: compare your stem and head with "
        "those of ResNet-18, layer by layer."
    )


def _layers(net: nn.Module, x: Tensor) -> dict[str, list[nn.Module]]:
    """The layers with weights in the order they run on x, by kind."""
    found: dict[str, list[nn.Module]] = {}

    def note(layer, args, out):
        size = f" {layer.kernel_size}" if isinstance(layer, nn.Conv2d) else ""
        found.setdefault(type(layer).__name__ + size, []).append(layer)

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return found


@check
def make_layer(build) -> str:
    """A stage builder (block, inplanes, planes, blocks, stride) -> nn.Sequential, torchvision's."""
    basic, bottleneck = d2lres_blocks.BasicBlock, d2lres_blocks.Bottleneck
    cases = [
        (basic, 64, 64, 2, 1),
        (basic, 64, 128, 3, 2),
        (basic, 64, 128, 6, 2),
        (basic, 32, 32, 1, 1),
        (basic, 32, 32, 2, 2),
        (bottleneck, 64, 16, 2, 1),
        (bottleneck, 64, 32, 4, 2),
        (bottleneck, 16, 16, 3, 1),
    ]
    for block, inplanes, planes, blocks, stride in cases:
        call = f"make_layer({block.__name__}, {inplanes}, {planes}, {blocks}, stride={stride})"
        layer = build(block, inplanes, planes, blocks, stride)
        if not isinstance(layer, nn.Sequential):
            raise Wrong(f"{call} must return an nn.Sequential, not a {type(layer).__name__}.")
        if len(layer) != blocks:
            raise Wrong(f"{call} has {len(layer)} blocks: how often does your loop run?")
        if len(set(layer)) != blocks:
            raise Wrong(f"{call}: your blocks share their weights: call block(...) anew each time.")
        for i, part in enumerate(layer):
            out = (part.conv3 if block is bottleneck else part.conv2).out_channels
            if out != planes * block.expansion:
                raise Wrong(
                    f"{call}: block {i} gives {out} channels, not {planes * block.expansion}: the "
                    "block multiplies by its expansion itself."
                )
        _, out = _sides(
            layer,
            torch.rand(1, inplanes, 8, 8),
            f"{call}: ",
            "make a shortcut whenever the stride or the channels change the shape.",
        )
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
