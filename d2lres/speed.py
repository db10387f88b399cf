"""Fashion-MNIST in as little time as possible: a network, a loop, and a field for each trick.

    train, test = fashion_mnist("full")
    model = trained(NINETY, train, seed=0)
    accuracy(NINETY, model, test)

The tricks are those of CIFAR-10 speed runs (Page 2018; Jordan 2024, arXiv 2404.00498), measured for a
CPU. Chapter 06 adds them to a recipe one by one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2lres.blocks import BasicBlock
from d2lres.data import Images
from d2lres.networks import ResNet


@dataclass(frozen=True)
class Recipe:
    """What `trained` does. As it stands: small, in float32, Adam at the rate of the notes."""

    width: int = 16
    blocks: tuple[int, ...] = (1, 1, 1)
    squeeze_excite: bool = False  # Hu et al. 2017: weigh the channels of each branch
    whiten: bool = False  # the first layer: principal components of patches, not trained
    channels_last: bool = False
    bfloat16: bool = False  # mixed precision
    epochs: int = 3
    batch_size: int = 128
    optimizer: str = "Adam"  # or "AdamW", "SGD" with Nesterov momentum, "Muon" (from PyTorch 2.9)
    lr: float = 0.001  # of Muon for convolutions; the rest of the network then has SGD at 0.4
    weight_decay: float = 0.0
    cycle: bool = False  # the rate rises from 0 in the first fifth of the run and falls to 0
    label_smoothing: float = 0.0
    bn_momentum: float = 0.1
    averaging: float = 0.0  # decay of a moving average of weights, which is tested in their place
    flip: str = ""  # "random", or "alternating": an image the other way round in every other epoch
    shift: int = 0  # pixels, at most
    small: float = 0.0  # the part of the run in which images have 20 pixels a side, not 28
    mirrored: bool = False  # a test image's answer is that for itself and its mirror image


class SqueezeExcite(nn.Module):
    """Weighs each channel by what all channels have on average; (N, C, H, W) stays that."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = max(channels // 8, 4)
        self.weigh = nn.Sequential(
            nn.Linear(channels, few), nn.ReLU(), nn.Linear(few, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3)))[:, :, None, None]


def network(recipe: Recipe, train: Images, seed: int = 0) -> ResNet:
    """A residual net for grey 28x28 images: a 5x5 stem with stride 2, then basic blocks."""
    torch.manual_seed(seed)
    blocks, width = list(recipe.blocks), recipe.width
    net = ResNet(BasicBlock, blocks, 10, in_channels=1, width=width, small_images=True)
    net.conv1 = nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    if recipe.whiten:
        kernels = whitening(train[:2000], width // 2)
        net.conv1.weight.data[: len(kernels)] = kernels  # there are 50 at most
        net.conv1.weight.requires_grad = False
    for module in list(net.modules()):
        if isinstance(module, BasicBlock) and recipe.squeeze_excite:
            channels = module.bn2.num_features
            module.bn2 = nn.Sequential(module.bn2, SqueezeExcite(channels))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.bn_momentum
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return net.to(memory_format=layout)


def whitening(images: Images, count: int, side: int = 5) -> Tensor:
    """Kernels (2 * count, 1, side, side): the first principal components of the images' patches,
    each scaled to variance 1, and their negatives, so that a ReLU loses neither sign."""
    patches = F.unfold(images.tensors()[0], side).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    scaled = (vectors / (values + 5e-4).sqrt()).T.flip(0)[:count]
    return torch.cat([scaled, -scaled]).view(-1, 1, side, side)


def optimizers(recipe: Recipe, net: nn.Module) -> list[torch.optim.Optimizer]:
    """One, or for Muon two: PyTorch's takes matrices alone, so that a convolution (O, I, h, w) is
    given to it as one of O rows, which share the kernel's memory."""
    lr, decay = recipe.lr, recipe.weight_decay
    trained = [p for p in net.parameters() if p.requires_grad]
    if recipe.optimizer in ("Adam", "AdamW"):
        return [getattr(torch.optim, recipe.optimizer)(trained, lr, weight_decay=decay)]
    sgd = dict(momentum=0.9, nesterov=True)
    if recipe.optimizer == "SGD":
        return [torch.optim.SGD(trained, lr, weight_decay=decay, **sgd)]
    if recipe.optimizer != "Muon" or not hasattr(torch.optim, "Muon"):
        known = "Adam, AdamW, SGD, or from PyTorch 2.9 on Muon"
        raise ValueError(f"the optimizer must be {known}, not {recipe.optimizer}.")
    kernels = [p for p in trained if p.ndim == 4]
    matrices = [nn.Parameter(rows(p.data, like=p)) for p in kernels]
    muon = torch.optim.Muon(matrices, lr, weight_decay=decay, ns_steps=3)

    def hand_over(*_) -> None:
        for matrix, kernel in zip(matrices, kernels):
            matrix.grad = rows(kernel.grad, like=kernel)

    muon.register_step_pre_hook(hand_over)
    return [muon, torch.optim.SGD([p for p in trained if p.ndim != 4], 0.4, **sgd)]


def rows(kernel: Tensor, like: Tensor) -> Tensor:
    """(O, I, h, w) as (O, I * h * w), in the order of the numbers of `like`: itself is not copied."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    return (kernel.permute(0, 2, 3, 1) if last else kernel).flatten(1)


def augmented(recipe: Recipe, images: Images, epoch: int, seed: int) -> Images:
    """All images once, flipped and moved as the recipe wants them in this epoch."""
    x, (n, _, height, width) = images.images, images.images.shape
    epochs = seed if recipe.flip == "alternating" else seed + 1000 * epoch
    flips = torch.rand(n, generator=torch.Generator().manual_seed(epochs)) < 0.5
    if recipe.flip:
        turned = flips ^ bool(epoch % 2) if recipe.flip == "alternating" else flips
        x = torch.where(turned.view(n, 1, 1, 1), x.flip(3), x)
    if recipe.shift:
        generator = torch.Generator().manual_seed(seed + 1000 * epoch)
        padded, steps = F.pad(x, (recipe.shift,) * 4), 2 * recipe.shift + 1
        place, x = torch.randint(steps**2, (n,), generator=generator), torch.empty_like(x)
        for i in range(steps**2):
            of, down, right = (place == i).nonzero()[:, 0], i // steps, i % steps
            x[of] = padded[of, :, down : down + height, right : right + width]
    return replace(images, images=x)


def batches(
    recipe: Recipe, train: Images, epoch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's batches, in an order of its own: x float32 (B, 1, H, W), y int64 (B,)."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    part = augmented(recipe, train, epoch, seed)
    return part.batches(recipe.batch_size, shuffle=True, generator=generator)


def trained(
    recipe: Recipe,
    train: Images,
    seed: int = 0,
    feed: Callable[..., Iterable[tuple[Tensor, Tensor]]] = batches,
) -> nn.Module:
    """A network trained by the recipe on grey images, on the CPU. `feed` makes an epoch's batches.

    Raises ValueError for an optimizer that is not there.
    """
    net = network(recipe, train, seed)
    step, steps = 0, recipe.epochs * ceil(len(train) / recipe.batch_size)

    def rate(step: int) -> float:
        return min(step / (0.2 * steps), (steps - step) / (0.8 * steps)) if recipe.cycle else 1.0

    drive = [(optimizer, LambdaLR(optimizer, rate)) for optimizer in optimizers(recipe, net)]
    average = None
    if recipe.averaging:
        decay = get_ema_multi_avg_fn(recipe.averaging)
        average = AveragedModel(net, multi_avg_fn=decay, use_buffers=True)
    for epoch in range(recipe.epochs):
        for x, y in feed(recipe, train, epoch, seed):
            if step < recipe.small * steps:
                x = F.interpolate(x, (20, 20), mode="bilinear", antialias=True)
            loss = F.cross_entropy(
                logits(recipe, net, x), y, label_smoothing=recipe.label_smoothing
            )
            loss.backward()
            for optimizer, schedule in drive:
                optimizer.step()
                schedule.step()
            net.zero_grad()
            step += 1
            if average and 2 * step > steps:
                average.update_parameters(net)
    return average.module if average else net


def logits(recipe: Recipe, net: nn.Module, x: Tensor) -> Tensor:
    """The network's answer in float32, computed as the recipe says."""
    if recipe.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        return net(x).float()


@torch.no_grad()
def accuracy(recipe: Recipe, net: nn.Module, images: Images) -> float:
    """The fraction of images classified correctly, in eval mode; the network stays in it."""
    net.eval()
    right = 0
    for x, y in images.batches(500):
        answer = logits(recipe, net, x)
        if recipe.mirrored:
            answer += logits(recipe, net, x.flip(3))
        right += (answer.argmax(1) == y).sum().item()
    return right / len(images)


# The ladder of chapter 06: what each rung changes in the recipe below it, and whether that stayed.
LADDER: dict[str, tuple[dict[str, Any], bool]] = {
    "images one by one": ({}, True),
    "images in memory": ({}, True),
    "channels-last": (dict(channels_last=True), True),
    "bfloat16": (dict(bfloat16=True), True),
    "one cycle": (dict(cycle=True, lr=0.01), True),
    "AdamW": (dict(optimizer="AdamW", weight_decay=0.01), False),
    "SGD with Nesterov momentum": (dict(optimizer="SGD", lr=0.3, weight_decay=5e-4), True),
    "batches of 256": (dict(batch_size=256, lr=0.4), False),
    "label smoothing": (dict(label_smoothing=0.1), True),
    "whitened first layer": (dict(whiten=True), True),
    "Muon": (dict(optimizer="Muon", lr=0.05, weight_decay=0.0), True),
    "BN momentum 0.3": (dict(bn_momentum=0.3), False),
    "averaged weights": (dict(averaging=0.95), False),
    "small images first": (dict(small=0.4), False),
    "random flips": (dict(flip="random"), False),
    "random flips, mirrored tests": (dict(flip="random", mirrored=True), False),
    "alternating flips, mirrored tests": (dict(flip="alternating", mirrored=True), False),
    "shifts by a pixel": (dict(shift=1), False),
    "squeeze-excite": (dict(squeeze_excite=True), False),
    "wider and shallower": (dict(width=32, blocks=(1, 1)), False),
}


def rung(name: str) -> Recipe:
    """The recipe at this rung of the ladder: its own change, and all below that stayed."""
    recipe = Recipe()
    for other, (change, stayed) in LADDER.items():
        if other == name:
            return replace(recipe, **change)
        recipe = replace(recipe, **change) if stayed else recipe
    raise ValueError(f"the ladder has no rung {name!r}: choose one of {', '.join(LADDER)}.")


# Tried on 50,000 training images and 10,000 others. PyTorch 2.9 or newer, and bfloat16 units.
NINETY = replace(rung("Muon"), epochs=1)
NINETY_THREE = replace(NINETY, width=32, epochs=5, batch_size=256, lr=0.1, small=0.4)
NINETY_FOUR = replace(NINETY_THREE, width=48, epochs=10, flip="alternating", mirrored=True)
