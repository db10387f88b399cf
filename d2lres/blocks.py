"""The blocks: what a residual network is made of, f(x) = x + g(x), in its usual forms.

`Residual` is the block of the study notes and of *Dive into Deep Learning*, `BasicBlock` and
`Bottleneck` are torchvision's to the last bit, and `PreActBlock` has batch normalisation and ReLU
in front of the convolutions. Each takes and returns a batch of feature maps (N, C, H, W).
"""

import torch.nn.functional as F
from torch import Tensor, nn


def add(branch: Tensor, shortcut: Tensor, remedy: str) -> Tensor:
    """branch + shortcut, both (N, C, H, W); ValueError with `remedy` if the shapes differ.

    Plain `+` would broadcast a shortcut of one channel over all of the branch's without a word.
    """
    if branch.shape != shortcut.shape:
        shapes = f"the branch, {tuple(branch.shape)}, and the shortcut, {tuple(shortcut.shape)}"
        raise ValueError(f"cannot add {shapes}: {remedy}")
    return branch + shortcut


def check_maps(x: Tensor, channels: int) -> None:
    """ValueError unless x is a batch of feature maps (N, channels, H, W)."""
    if x.dim() != 4:
        found = f"expected a batch (N, {channels}, H, W), got {x.dim()} dimensions {tuple(x.shape)}"
        raise ValueError(f"{found}: add the missing ones, for a single image x.unsqueeze(0).")
    if x.shape[1] != channels:
        found = f"expected {channels} channels, got {x.shape[1]} in {tuple(x.shape)}"
        remedy = "build the network or block for the channels your images have"
        raise ValueError(f"{found}: {remedy}.")


def conv3x3(inplanes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    # No bias: the batch normalisation that follows subtracts the mean, and any bias with it.
    return nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)


def conv1x1(inplanes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, 1, stride=stride, bias=False)


class Residual(nn.Module):
    """The notes' block: two 3x3 convolutions beside a shortcut that is x or a 1x1 convolution of x.

    (N, input_channels, H, W) -> (N, num_channels, ceil(H / strides), ceil(W / strides)); ValueError
    in the call if the shapes do not allow the addition. The convolutions have biases and the 1x1
    one no batch normalisation. Source: Dive into Deep Learning, section 8.6; He et al., figure 2.
    """

    def __init__(
        self, input_channels: int, num_channels: int, use_1x1conv: bool = False, strides: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, num_channels, 3, padding=1, stride=strides)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.conv3 = nn.Conv2d(input_channels, num_channels, 1, strides) if use_1x1conv else None
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.bn2 = nn.BatchNorm2d(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.conv1.in_channels)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.conv3 is None else self.conv3(x)
        return F.relu(add(out, shortcut, "build the block with use_1x1conv=True."))


def resnet_block(
    input_channels: int, num_channels: int, num_residuals: int, first_block: bool = False
) -> list[Residual]:
    """One stage of `num_residuals` blocks, as a list to unpack into nn.Sequential.

    The stage's first block halves height and width and changes the channels, except in the
    network's first stage (`first_block=True`), which follows a max-pool that has halved already.
    Raises ValueError if that stage is asked to change the channels all the same.
    """
    if first_block and input_channels != num_channels:
        wish = f"{input_channels} go in and {num_channels} should come out"
        remedy = "make them equal, or set first_block=False"
        raise ValueError(f"the first stage keeps its channels, but {wish}: {remedy}.")
    halves = not first_block
    first = Residual(input_channels, num_channels, use_1x1conv=halves, strides=1 + halves)
    more = [Residual(num_channels, num_channels) for _ in range(num_residuals - 1)]
    return [first, *more][:num_residuals]


class PadShortcut(nn.Module):
    """Shortcut without parameters, 'option A': every `stride`-th pixel, new channels filled with 0.

    (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)), the new channels half
    before and half after the old. Source: He et al. 2015, sections 3.3 and 4.2.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, new = stride, planes - inplanes
        self.padding = (0, 0, 0, 0, new // 2, new - new // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class Block(nn.Module):
    """What the three blocks of `ResNet` share: their arguments, and the addition or its absence.

    downsample: a module whose output is the shortcut; None for the input itself.
    residual: False leaves the addition out and nothing else: the shortcut's layers stay, unused,
        so that both versions have the same parameters and draw the same initial weights.
    """

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.build(inplanes, planes, stride)
        self.downsample, self.residual = downsample, residual

    def extra_repr(self) -> str:
        return "" if self.residual else "residual=False"

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        """branch + shortcut(x), or the branch alone in the plain twin."""
        if not self.residual:
            return branch
        shortcut = x if self.downsample is None else self.downsample(x)
        remedy = "pass downsample=, such as a 1x1 convolution with the block's stride and channels."
        return add(branch, shortcut, remedy)


class BasicBlock(Block):
    """Two 3x3 convolutions, the block of ResNet-18 and -34.

    (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)); ValueError in the call
    if the shapes do not allow the addition. Source: He et al. 2015, figure 5 left.
    """

    def build(self, inplanes: int, planes: int, stride: int) -> None:
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.conv1.in_channels)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(self.join(out, x))


class Bottleneck(Block):
    """1x1 to narrow, 3x3, 1x1 to widen four times: the block of ResNet-50, -101 and -152.

    (N, inplanes, H, W) -> (N, 4 * planes, ceil(H / stride), ceil(W / stride)); ValueError in the
    call if the shapes do not allow the addition. The stride sits in the 3x3 convolution, as in
    torchvision ('v1.5'), not in the first 1x1. Source: He et al. 2015, figure 5 right.
    """

    expansion = 4

    def build(self, inplanes: int, planes: int, stride: int) -> None:
        self.conv1 = conv1x1(inplanes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.conv1.in_channels)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(self.join(out, x))


class PreActBlock(Block):
    """BN, ReLU, convolution, twice: nothing follows the addition, so the shortcut is a clear path.

    (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)); ValueError in the call
    if the shapes do not allow the addition. A shortcut that changes the shape starts after the first
    BN and ReLU; `ResNet` adds one more BN and ReLU at the end. Source: He et al. 2016, figure 4(e).
    """

    def build(self, inplanes: int, planes: int, stride: int) -> None:
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.conv1.in_channels)
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return self.join(out, x if self.downsample is None else active)


def make_shortcut(
    block: type[Block], inplanes: int, planes: int, stride: int, shortcut: str
) -> nn.Module | None:
    """What the shortcut needs to reach the branch's shape; None when x has it already."""
    outplanes = planes * block.expansion
    if stride == 1 and inplanes == outplanes:
        return None
    if shortcut == "A":
        return PadShortcut(inplanes, outplanes, stride)
    if issubclass(block, PreActBlock):
        return conv1x1(inplanes, outplanes, stride)
    return nn.Sequential(conv1x1(inplanes, outplanes, stride), nn.BatchNorm2d(outplanes))
