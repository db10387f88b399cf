"""The probes: what they count is right, and they leave the model as they found it."""

import copy
import math
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_state import NETS, assert_same, state, used
from torch import nn

import d2lres
from d2lres import PreActBlock, ResNet, cifar_resnet, probes
from d2lres.data import Images
from d2lres.probes import flops, weight_layers

NOISE = torch.randint(0, 256, (400, 3, 8, 8), generator=torch.Generator().manual_seed(0))
DATA = Images(NOISE.byte(), torch.arange(400) % 10)

# Layers and arithmetic; those of the notes' and the d2l package's nets are in test_references.


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_weight_layers_counts_to_the_networks_name(depth):
    with torch.device("meta"):
        names = weight_layers(getattr(d2lres, f"resnet{depth}")())
        assert weight_layers(getattr(torchvision.models, f"resnet{depth}")()) == names
    assert len(names) == depth and names[0] == "conv1" and names[-1] == "fc"


def test_weight_layers_leaves_out_shortcuts_only():
    for shortcut in "AB":
        assert len(weight_layers(cifar_resnet(20, width=2, shortcut=shortcut))) == 20
        assert len(weight_layers(ResNet(PreActBlock, [1, 1], width=2, shortcut=shortcut))) == 6


def test_flops_counts_two_for_each_multiplication_and_addition():
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(5 * 6 * 4, 7), nn.Linear(7, 3, bias=False)]
    assert flops(nn.Sequential(*layers), torch.rand(3, 2, 6, 4)) == {
        "convolution": 2 * 3 * 5 * 6 * 4 * 2 * 9,
        "linear": 2 * 3 * (5 * 6 * 4 * 7 + 7 * 3),
        "addition": 0,
    }


def test_flops_of_resnet18_are_torchvisions():
    with torch.device("meta"):
        counts = flops(d2lres.resnet18(), torch.rand(1, 3, 224, 224))
    assert counts["convolution"] + counts["linear"] == 2 * 1_814_073_344  # 1.814 GMAC, paper: 1.8
    assert counts["addition"] == 2 * (64 * 56**2 + 128 * 28**2 + 256 * 14**2 + 512 * 7**2)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_flops_of_twins_differ_by_additions_and_the_shortcuts_convolutions(shortcut):
    x = torch.rand(2, 3, 16, 16)
    net, twin = (cifar_resnet(20, shortcut=shortcut, residual=r) for r in (True, False))
    residual, plain = flops(net, x), flops(twin, x)
    assert plain["addition"] == 0
    assert residual["addition"] == 2 * 3 * (16 * 16**2 + 32 * 8**2 + 64 * 4**2)
    assert residual["linear"] == plain["linear"]
    extra = 0 if shortcut == "A" else 2 * 2 * (16 * 32 * 8**2 + 32 * 64 * 4**2)
    assert residual["convolution"] - plain["convolution"] == extra


# Gradients


def chain(*weights):
    """Linear layers 1 -> 1 -> ... -> 1 -> 2 with these weights; the last is [w, -w]."""
    layers = [nn.Linear(1, 1, bias=False) for _ in weights[1:]] + [nn.Linear(1, 2, bias=False)]
    with torch.no_grad():
        for layer, w in zip(layers, weights):
            layer.weight.fill_(w)
        layers[-1].weight[1] = -weights[-1]
    return nn.Sequential(*layers)


def test_gradient_norms_are_those_of_the_chain_rule_on_paper():
    # logits (z, -z) with z = a b c x; cross-entropy for class 0 is log(1 + exp(-2 z)), so that
    # d/dz = -2 s, s = sigmoid(-2 z). To the last weight [c, -c] the gradient is (-s, s) a b x.
    a, b, c, x = 0.5, 3.0, 0.25, 2.0
    s = 1 / (1 + math.exp(2 * a * b * c * x))
    model, batch = chain(a, b, c), (torch.tensor([[x]]), torch.tensor([0]))
    norms = probes.gradient_norms(model, *batch)
    assert norms == pytest.approx(
        {"0": 2 * s * b * c * x, "1": 2 * s * a * c * x, "2": math.sqrt(2) * s * a * b * x}
    )
    # The same for frozen layers and without grad mode; a layer that x does not pass has 0.
    model.requires_grad_(False)
    model[1].unused = nn.Linear(1, 1)
    with torch.no_grad():
        assert probes.gradient_norms(model, *batch) == norms | {"1.unused": 0}
    # A norm is known where its square is no float32 number.
    norms = probes.gradient_norms(chain(1e15, 1e15, 0.0), torch.ones(1, 1), torch.tensor([0]))
    assert norms["2"] == pytest.approx(math.sqrt(2) * 0.5 * 1e30)


def test_gradient_norms_take_the_mean_over_the_batch_and_are_of_train_mode():
    model = cifar_resnet(8, in_channels=1, width=2).eval()
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
    norms = probes.gradient_norms(model, x, y)
    assert list(norms) == probes.weight_layers(model)
    twin = copy.deepcopy(model).train()
    F.cross_entropy(twin(x), y).backward()
    for name, norm in norms.items():
        assert norm == pytest.approx(twin.get_submodule(name).weight.grad.norm().item(), rel=1e-5)


def test_without_bn_keeps_the_weights_and_leaves_the_original():
    model = cifar_resnet(8, in_channels=1, width=2, shortcut="B")
    bare = probes.without_bn(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in bare.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 9
    assert all(torch.equal(w, model.state_dict()[k]) for k, w in bare.state_dict().items())
    assert bare.conv1.weight is not model.conv1.weight
    assert bare(torch.randn(2, 1, 8, 8)).shape == (2, 10)


# Lesions


def test_lesion_measures_every_block_that_keeps_the_shape():
    model = cifar_resnet(14, width=2)
    result = probes.lesion(model, DATA)
    assert result["intact"] == probes.evaluate(model, DATA).accuracy
    assert list(result["without"]) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert list(result["swapped"]) == ["layer1.0, layer1.1"]
    for name, accuracy in result["without"].items():
        by_hand = copy.deepcopy(model)
        parent, _, child = name.rpartition(".")
        setattr(by_hand.get_submodule(parent), child, nn.Identity())
        assert accuracy == probes.evaluate(by_hand, DATA).accuracy
    by_hand = copy.deepcopy(model)
    by_hand.layer1 = nn.Sequential(model.layer1[1], model.layer1[0])
    assert result["swapped"]["layer1.0, layer1.1"] == probes.evaluate(by_hand, DATA).accuracy
    assert len({result["intact"], *result["without"].values(), *result["swapped"].values()}) > 2
    with pytest.raises(ValueError, match="no block"):
        probes.lesion(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), DATA)


# No trace


PROBES = {
    "weight_layers": lambda model, x, y: probes.weight_layers(model),
    "flops": lambda model, x, y: probes.flops(model, x),
    "gradient_norms": probes.gradient_norms,
    "without_bn": lambda model, x, y: probes.without_bn(model),
    "lesion": lambda model, x, y: probes.lesion(model, DATA[:4]),
}


@pytest.mark.parametrize("kind", NETS)
def test_probes_leave_no_trace(kind):
    model, x, y = used(kind)
    for name, probe in PROBES.items():
        before = state(model)
        with suppress(ValueError if (name, kind) == ("lesion", "MLP") else ()):  # it has no blocks
            probe(model, x, y)
        assert_same(before, state(model))


class Interrupted(BaseException):
    """Like Ctrl-C: no Exception."""


@pytest.mark.parametrize("kind", ["basic", "plain bottleneck", "preact"])
@pytest.mark.parametrize(
    "name, calls", [("flops", 1), ("gradient_norms", 1), ("lesion", 1), ("lesion", 3)]
)
def test_probes_leave_no_trace_when_they_are_interrupted(kind, name, calls):
    model, x, y = used(kind)
    steps = iter(range(calls - 1))

    def interrupt(*_):
        if next(steps, None) is None:
            raise Interrupted

    model.fc.register_forward_pre_hook(interrupt)
    before = state(model)
    with pytest.raises(Interrupted):
        PROBES[name](model, x, y)
    assert_same(before, state(model))
