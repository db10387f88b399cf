"""The keeper of state: within it anything may happen to a model, and no trace is left."""

import random
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet

from d2lres import Bottleneck, PreActBlock, ResNet, cifar_resnet
from d2lres.state import untouched

HIDDEN = nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU()
NETS = {
    "MLP": lambda: nn.Sequential(nn.Flatten(), nn.Sequential(*HIDDEN), nn.Linear(8, 10)),
    "basic": lambda: cifar_resnet(14, width=2, shortcut="B"),
    "plain bottleneck": lambda: ResNet(Bottleneck, [1, 2], 10, width=2, residual=False),
    "preact": lambda: ResNet(PreActBlock, [2, 1], 10, width=3, small_images=True, shortcut="A"),
    "torchvision": lambda: resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], num_classes=10),
}


def used(kind):
    """A net, a batch and its labels. Not fresh: with gradients, modes, a hook, a frozen weight."""
    model, x, y = NETS[kind](), torch.randn(4, 3, 8, 8), torch.arange(4)
    F.cross_entropy(model(x), y).backward()
    first, *_, last = model.modules()
    next(model.parameters()).requires_grad_(False)
    last.eval()
    first.register_forward_hook(lambda *_: None)
    return model, x, y


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model):
    """Everything that a probe must not change."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    objects += [id(p.grad) for p in model.parameters()] + [id(m) for m in model.modules()]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    hooks = [dict(getattr(m, name)) for m in model.modules() for name in HOOKS]
    attributes = [list(vars(m)) for m in model.modules()]
    numbers = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    return tensors, grads, objects, flags, hooks, attributes, numbers, torch.is_grad_enabled()


def assert_same(before, after):
    for one, other in zip(before[:2], after[:2]):
        assert list(one) == list(other)
        for key, value in one.items():
            assert value is other[key] is None or torch.equal(value, other[key]), key
    assert before[2:] == after[2:]


def test_untouched_restores_whatever_is_done_to_a_model():
    model, x, y = used("preact")
    before = state(model)
    handle = model.conv1.register_forward_hook(lambda *_: None)
    with_handle = state(model)
    with suppress(KeyError), untouched(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model.train().requires_grad_()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        model.layer1[0] = nn.Identity()
        model.conv1 = nn.Conv2d(3, 1, 1)
        model.register_buffer("mine", torch.ones(1))
        model.note = "mine"
        del model.fc
        torch.rand(3), np.random.rand(3), random.random()
        raise KeyError
    assert_same(with_handle, state(model))
    handle.remove()  # the handle still finds its hook
    assert_same(before, state(model))


def test_a_graph_built_before_can_still_be_used():
    model, x, y = used("plain bottleneck")
    loss = F.cross_entropy(model.train()(x), y)
    expected = torch.autograd.grad(loss, model.fc.weight, retain_graph=True)[0]
    with untouched(model):
        F.cross_entropy(model(x), y).backward()
    assert torch.equal(torch.autograd.grad(loss, model.fc.weight)[0], expected)
