"""The keepers of state: within them anything may happen to a model, and no trace is left."""

import random
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from d2lres import BasicBlock, Bottleneck, PreActBlock, ResNet
from d2lres.state import eval_mode, untouched


def random_net(seed):
    """A used net of a random kind, a batch and its labels; every fourth is an MLP."""
    torch.manual_seed(seed)
    pick = torch.randint(0, 1000, (6,)).tolist()
    if seed % 4 == 0:
        hidden = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU())]
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *hidden, nn.Linear(8, 10))
    else:
        model = ResNet(
            [BasicBlock, PreActBlock, Bottleneck][seed % 4 - 1],
            layers=[1 + pick[0] % 2, 1 + pick[1] % 2],
            num_classes=10,
            in_channels=1,
            width=1 + pick[2] % 4,
            small_images=pick[3] % 2 > 0,
            residual=pick[4] % 3 > 0,
            shortcut="AB"[pick[5] % 2],
        )
    return used(model)


def used(model):
    """Not fresh: with gradients, a module in a mode of its own, a hook, perhaps a frozen weight."""
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    F.cross_entropy(model(x), y).backward()
    first, *_, last = model.modules()
    next(model.parameters()).requires_grad_(bool(torch.rand(()) < 0.5))
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
    model, x, y = random_net(2)
    before = state(model)
    handle = model.conv1.register_forward_hook(lambda *_: None)
    with_handle = state(model)
    with suppress(KeyError), untouched(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model.train()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        model.layer1[0] = nn.Identity()
        model.conv1 = nn.Conv2d(1, 1, 1)
        model.register_buffer("mine", torch.ones(1))
        model.note = "mine"
        del model.fc
        torch.rand(3), np.random.rand(3), random.random()
        raise KeyError
    assert_same(with_handle, state(model))
    handle.remove()  # the handle still finds its hook
    assert_same(before, state(model))


def test_a_graph_built_before_can_still_be_used():
    model, x, y = random_net(7)
    loss = F.cross_entropy(model.train()(x), y)
    expected = torch.autograd.grad(loss, model.fc.weight, retain_graph=True)[0]
    with untouched(model):
        F.cross_entropy(model(x), y).backward()
    assert torch.equal(torch.autograd.grad(loss, model.fc.weight)[0], expected)


def test_eval_mode_gives_each_module_its_own_mode_back():
    model, _, _ = random_net(1)
    before = state(model)
    with suppress(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert_same(before, state(model))
    assert {module.training for module in model.modules()} == {True, False}
