"""The networks: one class and its named members, from ResNet-18 to ResNet-1202.

`resnet18` to `resnet152` compute what torchvision's compute and exchange state dicts with them.
`cifar_resnet` is the paper's family for small images, the one its depth experiments use.
"""

import torch
from torch import Tensor, nn

from d2lres.arguments import instance, shown, whole, yes_or_no
from d2lres.blocks import BasicBlock, Block, Bottleneck, PreActBlock, check_maps, make_shortcut
from d2lres.records import asset


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pool, linear layer.

    (N, in_channels, H, W) -> logits (N, num_classes).

    block: BasicBlock, Bottleneck or PreActBlock.
    layers: the number of blocks in each stage; each stage after the first halves height and width
        and doubles the channels, which start at `width`.
    small_images: a 3x3 stem that keeps the size, in place of 7x7 / 2 and a 3x3 / 2 max-pool.
    shortcut: where the shape changes, "A" strides and pads with zeros, "B" is a 1x1 convolution.
    residual: False leaves out the additions and changes nothing else.
    zero_init_residual: each branch's last BN starts at 0 (BasicBlock and Bottleneck).

    Raises ValueError for arguments of another kind, and in the call for anything but (N,
    in_channels, H, W). Source: He et al. 2015, table 1 and section 4.2; names follow torchvision.
    """

    def __init__(
        self,
        block: type[Block],
        layers: list[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width: int = 64,
        small_images: bool = False,
        shortcut: str = "B",
        residual: bool = True,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(shortcut, str) or shortcut not in ("A", "B"):
            known = "'A' (zero padding) or 'B' (1x1 convolution)"
            raise ValueError(f"unknown shortcut {shown(shortcut)}: use {known}.")
        if not (isinstance(block, type) and issubclass(block, Block)):
            known = "BasicBlock, Bottleneck or PreActBlock"
            raise ValueError(f"block must be a class such as {known}, not {shown(block)}.")
        instance("layers", layers, (list, tuple), "a list of numbers of blocks")
        layers = [whole("every entry of layers", blocks) for blocks in layers]
        num_classes, width = whole("num_classes", num_classes), whole("width", width)
        in_channels, residual = whole("in_channels", in_channels), yes_or_no("residual", residual)
        small_images = yes_or_no("small_images", small_images)
        zero_init_residual = yes_or_no("zero_init_residual", zero_init_residual)
        pre_activation = issubclass(block, PreActBlock)
        size, stride, padding = (3, 1, 1) if small_images else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, width, size, stride, padding, bias=False)
        self.bn1 = nn.Identity() if pre_activation else nn.BatchNorm2d(width)
        self.relu = nn.Identity() if pre_activation else nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)

        inplanes = width
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        for i, name in enumerate(self.stages):
            planes, blocks = width * 2**i, []
            for j in range(layers[i]):
                stride = 2 if i > 0 and j == 0 else 1
                downsample = make_shortcut(block, inplanes, planes, stride, shortcut)
                blocks.append(block(inplanes, planes, stride, downsample, residual))
                inplanes = planes * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        last = nn.Sequential(nn.BatchNorm2d(inplanes), nn.ReLU(inplace=True))
        self.last = last if pre_activation else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inplanes, num_classes)

        for module in self.modules():  # He et al. 2015b, equation 14; BN starts as the identity
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                last_bn = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last_bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.conv1.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(self.last(x)).flatten(1))


def resnet18(num_classes: int = 1000, in_channels: int = 3, **options) -> ResNet:
    """ResNet-18: 11,689,512 parameters with the defaults; the options are ResNet's keywords."""
    return ResNet(BasicBlock, [2, 2, 2, 2], num_classes, in_channels, **options)


def resnet34(num_classes: int = 1000, in_channels: int = 3, **options) -> ResNet:
    """ResNet-34: 21,797,672 parameters with the defaults; the options are ResNet's keywords."""
    return ResNet(BasicBlock, [3, 4, 6, 3], num_classes, in_channels, **options)


def resnet50(num_classes: int = 1000, in_channels: int = 3, **options) -> ResNet:
    """ResNet-50: 25,557,032 parameters with the defaults; the options are ResNet's keywords."""
    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes, in_channels, **options)


def resnet101(num_classes: int = 1000, in_channels: int = 3, **options) -> ResNet:
    """ResNet-101: 44,549,160 parameters with the defaults; the options are ResNet's keywords."""
    return ResNet(Bottleneck, [3, 4, 23, 3], num_classes, in_channels, **options)


def resnet152(num_classes: int = 1000, in_channels: int = 3, **options) -> ResNet:
    """ResNet-152: 60,192,808 parameters with the defaults; the options are ResNet's keywords."""
    return ResNet(Bottleneck, [3, 8, 36, 3], num_classes, in_channels, **options)


def cifar_resnet(
    depth: int,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    residual: bool = True,
    shortcut: str = "A",
    zero_init_residual: bool = False,
    weights: str | None = None,
) -> ResNet:
    """The paper's family for small images: (N, in_channels, H, W) -> logits (N, num_classes).

    A 3x3 stem, three stages of n basic blocks with width, 2 width and 4 width channels, and a
    linear layer: depth = 6n + 2 layers. residual=False gives the plain twin: same layers, same
    parameters, for the same seed the same initial weights, no additions.
    weights: "fashion_mnist", those that come with the course, for cifar_resnet(20, in_channels=1).
    Raises ValueError for another depth, an unknown shortcut, and weights that are unknown or another
    network's. Source: He et al. 2015, section 4.2.
    """
    depth = whole("depth", depth)
    if depth < 8 or depth % 6 != 2:
        nearest = 6 * max(1, round((depth - 2) / 6)) + 2
        rule = "depth must be 6n + 2, such as 8, 20, 32, 56 or 110"
        raise ValueError(f"{rule}; {depth} is not: the nearest is {nearest}.")
    model = ResNet(
        BasicBlock,
        [(depth - 2) // 6] * 3,
        num_classes,
        in_channels,
        width=width,
        small_images=True,
        shortcut=shortcut,
        residual=residual,
        zero_init_residual=zero_init_residual,
    )
    if weights is None:
        return model
    if not isinstance(weights, str) or weights != "fashion_mnist":
        raise ValueError(f"weights must be 'fashion_mnist' or None, not {shown(weights)}.")
    state = torch.load(asset("fashion_mnist_resnet20.pt"), map_location="cpu", weights_only=True)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if not residual or own != {name: tensor.shape for name, tensor in state.items()}:
        theirs = "cifar_resnet(20, in_channels=1) with all other arguments at their defaults"
        what = f"the weights 'fashion_mnist' are those of {theirs}"
        raise ValueError(f"{what}: build that, then change its layers.")
    model.load_state_dict(state)  # which turns float16 into float32
    return model
