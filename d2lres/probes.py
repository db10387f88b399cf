"""What the chapters measure: shapes, parameters, layers and arithmetic of any network.

Every probe leaves the model as it found it: mode, weights, batch statistics, gradients.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2lres.training import eval_mode


@torch.no_grad()
def shapes(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Output shape of each direct child of `model`, by name, in the order they run on x."""
    trace: dict[str, tuple[int, ...]] = {}
    hooks = [
        child.register_forward_hook(
            lambda module, args, out, name=name: trace.__setitem__(name, tuple(out.shape))
        )
        for name, child in model.named_children()
    ]
    try:
        with eval_mode(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return trace


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each direct child, by name; children without any are left out."""
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    return {name: count for name, count in counts.items() if count}


def weight_layers(model: nn.Module) -> list[str]:
    """Names of the layers that count towards a network's depth: every convolution and linear layer
    except those on a shortcut (`downsample`, or a `conv3` of size 1x1 beside two convolutions).

    Source: the paper's counting, He et al. 2015, table 1.
    """
    from d2lres.blocks import Residual

    shortcuts = tuple(
        f"{name}.conv3" for name, module in model.named_modules() if isinstance(module, Residual)
    )
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and "downsample" not in name
        and name not in shortcuts
    ]


@torch.no_grad()
def flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Floating-point operations of one forward pass on x, in eval mode, by kind.

    "convolution" and "linear" count a multiplication and an addition each (2 per MAC), as PyTorch's
    own counter does; "addition" counts one per element of every sum of two feature maps, the
    shortcuts. BN, ReLU and pooling are not counted.
    """

    def one_each(a, b, *args, out_shape=None, **kwargs):
        return math.prod(out_shape)

    aten = torch.ops.aten
    counter = FlopCounterMode(display=False, custom_mapping={aten.add: one_each})
    with eval_mode(model), counter:
        model(x)
    total = counter.get_flop_counts()["Global"]
    return {
        "convolution": total.get(aten.convolution, 0),
        "linear": total.get(aten.addmm, 0) + total.get(aten.mm, 0),
        "addition": total.get(aten.add, 0),
    }
