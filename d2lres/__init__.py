"""d2lres: the helper module of a course on residual networks in which every claim is run."""

from importlib.metadata import PackageNotFoundError, version

from d2lres.blocks import BasicBlock, Bottleneck, PreActBlock, Residual, resnet_block
from d2lres.networks import ResNet, cifar_resnet, resnet18, resnet34, resnet50, resnet101, resnet152
from d2lres.notebook import explain_missing_names

try:
    __version__ = version("d2lres")
except PackageNotFoundError:  # imported from a clone that nobody installed
    __version__ = "unknown"
