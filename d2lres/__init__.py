"""d2lres: the helper module of a course on residual networks in which every claim is run."""

import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

if find_spec("torch") is None:
    raise ImportError("d2lres needs PyTorch: install torch and torchvision, then try again.")

from d2lres.blocks import BasicBlock, Bottleneck, PreActBlock, Residual, resnet_block
from d2lres.networks import ResNet, cifar_resnet, resnet18, resnet34, resnet50, resnet101, resnet152
from d2lres.notebook import explain_missing_names

try:
    __version__ = version("d2lres")
except PackageNotFoundError:  # imported from a clone that nobody installed
    __version__ = "unknown"

if not __debug__:
    said = "Python runs with -O or PYTHONOPTIMIZE, which leave out every assert, and so the proof"
    warnings.warn(f"{said} of every claim: start it without them.", stacklevel=2)
