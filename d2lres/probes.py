"""What the chapters measure: layers, arithmetic, gradients and lesions of any network.

Every probe leaves the model and the global random state as it found them.
"""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2lres.data import Images
from d2lres.state import untouched
from d2lres.training import evaluate


def weight_layers(model: nn.Module) -> list[str]:
    """Names of the layers that make a network's depth: convolutions and linear layers, except those
    on a shortcut (`downsample`, or a `conv3` without a `bn3`). Source: He et al. 2015, table 1."""
    modules = dict(model.named_modules())

    def on_shortcut(name):
        parent, _, own = name.rpartition(".")
        return "downsample" in name or (own == "conv3" and not hasattr(modules[parent], "bn3"))

    layers = [name for name, m in modules.items() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [name for name in layers if not on_shortcut(name)]


@torch.no_grad()
def flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Floating-point operations of one forward pass on x, in eval mode, by kind.

    "convolution" and "linear" count 2 per multiplication and addition, as PyTorch's own counter
    does; "addition" 1 per element of a sum of two feature maps. BN, ReLU, pooling do not count.
    """
    aten = torch.ops.aten
    sums = (aten.add, aten.add_)  # y + x and y += x
    one_each = dict.fromkeys(sums, lambda *_, out_shape, **__: math.prod(out_shape))
    counter = FlopCounterMode(display=False, custom_mapping=one_each)
    with untouched(model), counter:
        model.eval()(x)
    total = counter.get_flop_counts()["Global"]
    return {
        "convolution": total.get(aten.convolution, 0),
        "linear": total.get(aten.addmm, 0) + total.get(aten.mm, 0),
        "addition": sum(total.get(operation, 0) for operation in sums),
    }


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """L2 norm of the mean cross-entropy's gradient for each weight layer's weight, by name.

    x: a batch (N, ...), y: int64 labels (N,). In train mode: BN normalises with the batch. A layer
    that x does not pass has 0; an overflow shows as inf or nan.
    """
    names = weight_layers(model)
    with untouched(model), torch.enable_grad():
        weights = [model.get_parameter(f"{name}.weight").requires_grad_() for name in names]
        loss = F.cross_entropy(model.train()(x), y)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    # In float64, where squares of float32 numbers do not overflow; on the CPU, as MPS has none.
    return {name: g.cpu().double().norm().item() for name, g in zip(names, gradients)}


def without_bn(model: nn.Module) -> nn.Module:
    """A copy of `model` with the same weights and nn.Identity for each batch normalisation in it."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    return model


def lesion(model: nn.Module, data: Images) -> dict:
    """Accuracy on `data` of the intact model, without each single block, and with two swapped.

    Returns {"intact": a, "without": {"layer1.0": a, ...}, "swapped": {"layer1.0, layer1.1": a,
    ...}}, each a fraction 0 to 1, for the blocks that keep the shape; the swaps are all pairs of a
    stage. A block is a module with a `conv1` and a `conv2`, so torchvision's are blocks too.
    Raises ValueError if the model has none. Source: Veit et al. 2016, sections 4.1 and 4.3.
    """
    blocks: dict[str, Any] = {}

    def keep_if_same_shape(name, block, args, out):
        if args[0].shape == out.shape:
            blocks[name] = block

    with untouched(model), torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "conv1") and hasattr(module, "conv2"):
                module.register_forward_hook(partial(keep_if_same_shape, name))
        model.eval()(next(data.batches(1, device=next(model.parameters()).device))[0])
    if not blocks:
        raise ValueError("no block of this model keeps the shape: there is none to take out.")

    def accuracy(forwards: dict[str, Callable]) -> float:
        with untouched(model):
            for name, forward in forwards.items():
                blocks[name].forward = forward
            return evaluate(model, data).accuracy

    stage = {name: name.rpartition(".")[0] for name in blocks}
    pairs = [(a, b) for a, b in itertools.combinations(blocks, 2) if stage[a] == stage[b]]
    swaps = {f"{a}, {b}": {a: blocks[b].forward, b: blocks[a].forward} for a, b in pairs}
    return dict(
        intact=accuracy({}),
        without={name: accuracy({name: lambda x: x}) for name in blocks},
        swapped={names: accuracy(forwards) for names, forwards in swaps.items()},
    )
