"""What the course compares itself with: the notes' net, the d2l package and torchvision."""

import importlib
from types import ModuleType

from torch import nn

from d2lres.blocks import resnet_block


def d2l() -> ModuleType:
    """The `d2l.torch` module of the d2l package 0.17.0. Importing it takes seconds.

    That release calls IPython.display.set_matplotlib_formats, which today's IPython has dropped;
    the name is given back first. Raises ImportError with the remedy if d2l is not installed.
    """
    try:
        from IPython import display
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        vars(display).setdefault("set_matplotlib_formats", set_matplotlib_formats)
        return importlib.import_module("d2l.torch")
    except ModuleNotFoundError as error:
        remedy = "install the course's extra, pip install 'd2lres[course]'"
        raise ImportError(f"the comparison needs {error.name}: {remedy}.") from error


def notes_resnet18(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """The notes' ResNet-18, which chapter 3 builds by hand: (N, in_channels, H, W) -> logits.

    11,178,378 parameters with the defaults: convolutions have biases, shortcuts have no BN.
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
