"""The probes: what they count is right, and they leave the model as they found it."""

import copy
import math
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_state import assert_same, random_net, state, used
from torch import nn
from torchvision.models import resnet

import d2lres
from d2lres import ResNet, cifar_resnet, probes, references
from d2lres.blocks import BasicBlock, Bottleneck, PreActBlock, Residual
from d2lres.data import Images
from d2lres.probes import flops, weight_layers


def pictures(n=40):
    x = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)
    return Images(x, torch.arange(n) % 10)


# Layers and arithmetic.


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_weight_layers_counts_to_the_networks_name(depth):
    with torch.device("meta"):
        names = weight_layers(getattr(d2lres, f"resnet{depth}")())
        assert weight_layers(getattr(torchvision.models, f"resnet{depth}")()) == names
    assert len(names) == depth and names[0] == "conv1" and names[-1] == "fc"


def test_weight_layers_leaves_out_shortcuts_only():
    assert len(weight_layers(references.notes_resnet18())) == 18
    assert weight_layers(Residual(3, 6, True, 2)) == ["conv1", "conv2"]
    assert len(weight_layers(cifar_resnet(20, shortcut="B"))) == 20
    assert len(weight_layers(ResNet(PreActBlock, [1, 1], width=2))) == 6


def test_weight_layers_knows_the_d2l_packages_shortcut_too():
    d2l = references.d2l()
    assert weight_layers(d2l.Residual(3, 6, True, 2)) == ["conv1", "conv2"]
    with torch.device("meta"):
        assert len(weight_layers(d2l.resnet18(10))) == 18


def test_flops_counts_two_for_each_multiplication_and_addition():
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(5 * 6 * 4, 7), nn.Linear(7, 3, bias=False)]
    assert flops(nn.Sequential(*layers), torch.rand(3, 2, 6, 4)) == {
        "convolution": 2 * 3 * 5 * 6 * 4 * 2 * 9,
        "linear": 2 * 3 * (5 * 6 * 4 * 7 + 7 * 3),
        "addition": 0,
    }


def test_flops_of_resnet18_are_torchvisions():
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


def test_flops_counts_additions_in_place_too():
    class InPlace(Residual):  # as the notes and the d2l package write it
        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            y += x
            return F.relu(y)

    x = torch.rand(2, 3, 5, 5)
    assert flops(InPlace(3, 3), x) == flops(Residual(3, 3), x)
    assert flops(InPlace(3, 3), x)["addition"] == x.numel()


# Gradients and variances, by hand.


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
    norms = probes.gradient_norms(chain(a, b, c), torch.tensor([[x]]), torch.tensor([0]))
    assert norms == pytest.approx(
        {"0": 2 * s * b * c * x, "1": 2 * s * a * c * x, "2": math.sqrt(2) * s * a * b * x}
    )


def test_gradient_norms_take_the_mean_over_the_batch_and_are_of_train_mode():
    model = cifar_resnet(8, in_channels=1, width=2).eval()
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
    norms = probes.gradient_norms(model, x, y)
    assert list(norms) == probes.weight_layers(model)
    twin = copy.deepcopy(model).train()
    F.cross_entropy(twin(x), y).backward()
    for name, norm in norms.items():
        assert norm == pytest.approx(twin.get_submodule(name).weight.grad.norm().item(), rel=1e-5)


def test_gradient_norms_reach_frozen_layers_work_without_grad_mode_and_give_0_to_unused_ones():
    model = chain(0.5, 3.0, 0.25)
    x, y = torch.tensor([[2.0]]), torch.tensor([0])
    expected = probes.gradient_norms(model, x, y)
    model.requires_grad_(False)
    model[1].unused = nn.Linear(1, 1)
    with torch.no_grad():
        norms = probes.gradient_norms(model, x, y)
    assert norms.pop("1.unused") == 0 and norms == expected
    assert not any(p.requires_grad for p in model[0].parameters())


def test_gradient_norms_do_not_overflow_where_float32_numbers_do_not():
    model = chain(1e15, 1e15, 0.0)
    norms = probes.gradient_norms(model, torch.tensor([[1.0]]), torch.tensor([0]))
    assert norms["2"] == pytest.approx(math.sqrt(2) * 0.5 * 1e30)  # its square is not a float32


def test_without_bn_keeps_the_weights_and_leaves_the_original():
    model = cifar_resnet(8, in_channels=1, width=2, shortcut="B")
    bare = probes.without_bn(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in bare.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 9
    assert all(torch.equal(w, model.state_dict()[k]) for k, w in bare.state_dict().items())
    assert bare.conv1.weight is not model.conv1.weight
    assert bare(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_branch_variances_on_a_block_whose_branch_is_known():
    block = PreActBlock(1, 1)
    with torch.no_grad():
        for conv, w in ((block.conv1, 1.0), (block.conv2, 3.0)):
            conv.weight.zero_()
            conv.weight[0, 0, 1, 1] = w
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1) * torch.full((2, 1, 4, 4), 2.0)
    # bn(x) = ±1, ReLU 0 or 1, bn again ±1, ReLU 0 or 1, times 3: variance 9/4; x has variance 4,
    # and the sum takes the values -2 and 5, variance (7/2)^2.
    found = probes.branch_variances(nn.Sequential(block), x)
    assert [row.pop("block") for row in found] == ["0"]
    assert found[0] == pytest.approx(dict(branch=9 / 4, shortcut=4, sum=49 / 4), rel=1e-3)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreActBlock])
def test_branch_variances_of_plain_blocks_have_no_shortcut(block):
    x = torch.randn(8, 3, 8, 8)
    plain = ResNet(block, [1, 2], width=2, small_images=True, residual=False)
    found = probes.branch_variances(plain, x)
    assert [row["block"] for row in found] == ["layer1.0", "layer2.0", "layer2.1"]
    assert all(row["shortcut"] == 0 and row["sum"] == row["branch"] > 0 for row in found)
    residual = ResNet(block, [1, 2], width=2, small_images=True)
    assert all(row["shortcut"] > 0 for row in probes.branch_variances(residual, x))
    with pytest.raises(ValueError, match="no BasicBlock"):
        probes.branch_variances(nn.Sequential(nn.Linear(2, 2)), torch.randn(3, 2))


@pytest.mark.parametrize("seed", range(3))
def test_bn_makes_the_branch_a_smaller_part_of_the_sum_with_depth(seed):
    """De & Smith 2020: at block l of a pre-activation stage the share is about 1 / l."""
    torch.manual_seed(seed)
    model = ResNet(PreActBlock, [16], in_channels=1, width=16, small_images=True)
    found = probes.branch_variances(model, torch.randn(32, 1, 8, 8))
    share = [row["branch"] / row["sum"] for row in found]
    assert share[15] < share[3] / 2 and share[3] < share[0]


# Lesions.

KEPT = ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]  # the blocks that keep the shape


def test_lesion_measures_every_block_that_keeps_the_shape():
    model, data = cifar_resnet(14, in_channels=1, width=2), pictures()
    result = probes.lesion(model, data)
    assert list(result["without"]) == KEPT
    assert list(result["swapped"]) == ["layer1.0, layer1.1"]
    assert result["intact"] == probes.evaluate(model, data).accuracy
    for name in KEPT:
        by_hand = copy.deepcopy(model)
        parent, _, child = name.rpartition(".")
        setattr(by_hand.get_submodule(parent), child, nn.Identity())
        assert result["without"][name] == probes.evaluate(by_hand, data).accuracy
    by_hand = copy.deepcopy(model)
    by_hand.layer1 = nn.Sequential(model.layer1[1], model.layer1[0])
    assert result["swapped"]["layer1.0, layer1.1"] == probes.evaluate(by_hand, data).accuracy


def test_lesion_takes_blocks_that_do_nothing_without_a_change():
    model = cifar_resnet(14, in_channels=1, width=2)
    for name in KEPT:
        nn.init.zeros_(model.get_submodule(name).bn2.weight)
    result = probes.lesion(model, pictures())
    assert {*result["without"].values(), *result["swapped"].values()} == {result["intact"]}
    with pytest.raises(ValueError, match="no block"):
        probes.lesion(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), pictures())


# No trace.


DATA = pictures(4)
PROBES = {
    "weight_layers": lambda model, x, y: probes.weight_layers(model),
    "flops": lambda model, x, y: probes.flops(model, x),
    "gradient_norms": probes.gradient_norms,
    "without_bn": lambda model, x, y: probes.without_bn(model),
    "branch_variances": lambda model, x, y: probes.branch_variances(model, x),
    "lesion": lambda model, x, y: probes.lesion(model, DATA),
}
RUN = sorted(PROBES.keys() - {"weight_layers", "without_bn"})  # the model, at least once


@pytest.mark.parametrize("seed", [*range(8), "torchvision"])
def test_probes_leave_no_trace(seed):
    if seed == "torchvision":
        net = resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], num_classes=10)
        net.conv1 = nn.Conv2d(1, 64, 3, bias=False)
    model, x, y = used(net) if seed == "torchvision" else random_net(seed)
    for name, probe in PROBES.items():
        before = state(model)
        # There is no Block in an MLP and in torchvision's net.
        with suppress(ValueError if name in ("branch_variances", "lesion") else ()):
            probe(model, x, y)
        assert_same(before, state(model))


class Interrupted(BaseException):
    """Like Ctrl-C: no Exception."""


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("calls", [1, 3])
def test_probes_leave_no_trace_when_they_are_interrupted(seed, calls):
    model, x, y = random_net(seed)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    count = 0

    def interrupt(*_):
        nonlocal count
        count += 1
        if count == calls:
            raise Interrupted

    last.register_forward_pre_hook(interrupt)
    for name in RUN:
        count = 0 if name == "lesion" else calls - 1
        before = state(model)
        with pytest.raises((Interrupted, ValueError)):
            PROBES[name](model, x, y)
        assert_same(before, state(model))
