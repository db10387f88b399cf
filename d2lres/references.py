"""What the course compares itself with: the notes' net, the d2l package and torchvision.

The packages are optional here."""

import importlib
from types import ModuleType

import torch
from torch import nn

from d2lres.blocks import resnet_block


def d2l() -> ModuleType:
    """The `d2l.torch` module of the d2l package 0.17.0. Importing it takes seconds.

    That release calls IPython.display.set_matplotlib_formats, which today's IPython has dropped;
    the name is given back first. Raises ImportError with the remedy if d2l is not installed.
    """
    try:
        import IPython.display
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        if not hasattr(IPython.display, "set_matplotlib_formats"):
            IPython.display.set_matplotlib_formats = set_matplotlib_formats
        return importlib.import_module("d2l.torch")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the comparison needs {error.name}: install the course's extra, "
            "pip install 'd2lres[course]'."
        ) from error


def notes_resnet18(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """The notes' ResNet-18, which chapter 3 builds by hand: (N, in_channels, H, W) -> logits.

    11,178,378 parameters with the defaults: convolutions have biases, shortcuts no BN. The weights
    start as PyTorch's layers do.
    """
    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    return nn.Sequential(
        nn.Conv2d(in_channels, 64, 7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *(nn.Sequential(*resnet_block(a, b, 2, first_block=a == b)) for a, b in stages),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )


def torchvision_resnet(depth: int, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-`depth` with random weights: (N, in_channels, H, W) -> (N, num_classes).

    With other than 3 channels its first convolution is replaced by one for them.
    Raises ValueError for a depth torchvision does not have.
    """
    from torchvision import models

    if depth not in (18, 34, 50, 101, 152):
        raise ValueError(f"torchvision has ResNet-18, -34, -50, -101 and -152, not {depth}.")
    model = getattr(models, f"resnet{depth}")(num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers, matched by order: the names may differ, the shapes may not.

    Raises ValueError if the two do not hold the same sequence of shapes.
    """
    old, new = source.state_dict(), target.state_dict()
    if [v.shape for v in old.values()] != [v.shape for v in new.values()]:
        raise ValueError("the two networks do not hold the same sequence of tensors.")
    with torch.no_grad():
        for name, value in zip(new, old.values()):
            new[name].copy_(value)
