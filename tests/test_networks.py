"""The networks against torchvision, the paper's counts, and their own promises."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_blocks import perturb
from torch import nn
from torchvision import models

import d2lres
from d2lres import BasicBlock, PreActBlock, ResNet, cifar_resnet
from d2lres.blocks import PadShortcut
from d2lres.probes import flops

COUNTS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


def count(model):
    return sum(p.numel() for p in model.parameters())


def ours(depth, *args, **options):
    return getattr(d2lres, f"resnet{depth}")(*args, **options)


def theirs(depth, **options):
    return getattr(models, f"resnet{depth}")(weights=None, **options)


def seeded(make, *args, seed=0, **options):
    torch.manual_seed(seed)
    return make(*args, **options)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def perturb_gently(model):
    """With small branches, so that logits stay small."""
    for block in perturb(model).modules():
        if hasattr(block, "conv2"):
            getattr(block, "bn3", block.bn2).weight.data *= 0.3
    return model


@pytest.fixture(scope="module", params=COUNTS)
def pair(request):
    """(depth, our network, torchvision's), built after the same seed."""
    depth = request.param
    return depth, seeded(ours, depth), seeded(theirs, depth)


def test_counts_keys_and_initial_weights_are_torchvisions(pair):
    depth, net, reference = pair
    assert count(net) == count(reference) == COUNTS[depth]
    assert same_state(net, reference)


@torch.no_grad()
def test_state_dicts_load_both_ways_and_the_logits_agree(pair):
    _, net, reference = pair
    x = torch.randn(2, 3, 64, 64)
    for source, target, modes in ((reference, net, (False, True)), (net, reference, (False,))):
        target.load_state_dict(perturb_gently(source).state_dict(), strict=True)
        for training in modes:
            a, b = net.train(training)(x), reference.train(training)(x)
            assert a.shape == (2, 1000)
            assert a.std() > 1e-2 and a.abs().max() < 100  # else the next line would prove little
            assert (a - b).abs().max() <= 1e-5  # 0 where both run the same kernels
        for mine, other in zip(net.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)  # batch statistics


def test_gradients_are_torchvisions():
    net, reference = ours(18), perturb_gently(theirs(18))
    net.load_state_dict(reference.state_dict())
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    for model in (net, reference):
        nn.functional.cross_entropy(model(x), y).backward()
    for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth, last", [(18, "bn2"), (50, "bn3")])
def test_zero_init_residual_is_torchvisions(depth, last):
    options = dict(num_classes=10, zero_init_residual=True)
    net = seeded(ours, depth, **options)
    assert same_state(net, seeded(theirs, depth, **options))
    assert net.layer3[1].get_submodule(last).weight.count_nonzero() == 0
    assert net.layer3[1].bn1.weight.count_nonzero() > 0


@pytest.mark.parametrize("depth", COUNTS)
def test_the_named_networks_take_classes_channels_and_the_options_of_resnet(depth):
    with torch.device("meta"):  # shapes only
        net = ours(depth, 10, 1, width=8, small_images=True, residual=False)
        assert net(torch.empty(2, 1, 64, 64)).shape == (2, 10)
    assert net.conv1.out_channels == 8 and net.conv1.stride == (1, 1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        ours(depth, residul=False)


@pytest.mark.parametrize("depth, expected", CIFAR.items())
def test_cifar_counts(depth, expected):
    with torch.device("meta"):
        assert count(cifar_resnet(depth)) == expected


def test_options_a_and_b_differ_in_the_shortcut_alone():
    a, b = cifar_resnet(20), cifar_resnet(20, shortcut="B")
    assert isinstance(a.layer2[0].downsample, PadShortcut)
    assert [type(m) for m in b.layer2[0].downsample] == [nn.Conv2d, nn.BatchNorm2d]
    assert b.layer2[0].downsample[0].kernel_size == (1, 1)
    assert a.layer2[1].downsample is None and b.layer2[1].downsample is None
    assert count(b) - count(a) == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert set(a.state_dict()) < set(b.state_dict())


SMALL = dict(block=BasicBlock, num_classes=7, in_channels=1, width=2, small_images=True)


@pytest.mark.parametrize(
    "net, width, stages",
    [
        (cifar_resnet(8, 7, 1), 16, 3),  # the paper's sizes
        (cifar_resnet(8, 7, 1, width=4), 4, 3),
        *((ResNet(layers=[1] * n, **SMALL), 2, n) for n in (1, 2, 5)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (9, 17)])
def test_each_stage_after_the_first_halves_the_size_and_doubles_the_channels(
    net, width, stages, size
):
    shapes, (h, w) = [], size
    for name in ("maxpool", *net.stages):
        stage = net.get_submodule(name)
        stage.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    assert net(torch.randn(2, 1, h, w)).shape == (2, 7)
    halving = [(2, width * 2**i, -(-h // 2**i), -(-w // 2**i)) for i in range(stages)]
    assert shapes == [halving[0], *halving]
    assert net.fc.in_features == width * 2 ** (stages - 1)


NEAREST = {18: 20, 21: 20, 2: 8, np.int64(57): 56}


@pytest.mark.parametrize(
    "make, options, message",
    [
        *(
            (cifar_resnet, dict(depth=d), f"6n \\+ 2.*; {d} is not: the nearest is {n}")
            for d, n in NEAREST.items()
        ),
        *(
            (cifar_resnet, dict(depth=8, shortcut=s), f"unknown shortcut {s!r}: use 'A' .* or 'B'")
            for s in ("C", "a", None)
        ),
        *(
            (
                cifar_resnet,
                dict(depth=20, in_channels=1, weights=w),
                "weights must be 'fashion_mnist'",
            )
            for w in ("imagenet", "Fashion_MNIST", True, ["fashion_mnist"])
        ),
        *(
            (
                cifar_resnet,
                dict(depth=20, in_channels=1, weights="fashion_mnist") | other,
                "are those",
            )
            for other in (
                *(dict(depth=8), dict(in_channels=3), dict(num_classes=2), dict(width=8)),
                *(dict(residual=False), dict(shortcut="B")),
            )
        ),
        *(
            (cifar_resnet, dict(depth=d), "depth must be a whole number from 1 on, not")
            for d in (0, -4, 20.0, "20", True, None, torch.tensor(20))
        ),
        *(
            (ResNet, dict(SMALL, layers=[1]) | {name: wrong}, f"{name} must be .*, not")
            for name, wrong in (
                *(("num_classes", n) for n in (0, 1.5, "10", True)),
                *(("in_channels", n) for n in (0, None)),
                *(("width", n) for n in (0, [64])),
                *(("layers", n) for n in ([1, 0], 3, "22", [1.0])),
                *(("residual", n) for n in ("no", None, 0)),
                *(("zero_init_residual", n) for n in ("no", 1)),
                *(("small_images", n) for n in ("no", 1)),
                *(("block", n) for n in ("basic", nn.Conv2d, None)),
            )
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_preact_network_has_no_bn_and_relu_after_its_stem_and_one_more_at_its_end():
    net, seen = ResNet(PreActBlock, [1, 1], 3, 1, width=4, small_images=True), {}
    assert [type(module) for module in net.last] == [nn.BatchNorm2d, nn.ReLU]
    assert net.last[0].num_features == 8
    for name in ("conv1", "layer1", "layer2", "avgpool"):
        net.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0].clone(), out.clone())})
        )
    net(torch.randn(4, 1, 8, 8))
    stem, stages, end = seen["conv1"][1], seen["layer2"][1], seen["avgpool"][0]
    assert torch.equal(stem, seen["layer1"][0]) and (stem < 0).any()
    assert (stages < 0).any() and (end >= 0).all() and torch.equal(end, net.last(stages))


PREACT = dict(block=PreActBlock, layers=[1, 1], width=4, small_images=True)
TWINS = [
    *((cifar_resnet, dict(depth=20, width=4, shortcut=shortcut)) for shortcut in "AB"),
    *((ResNet, dict(PREACT, shortcut=shortcut)) for shortcut in "AB"),
    *((ours, dict(depth=depth, num_classes=10, width=4)) for depth in (18, 50)),
]


@pytest.mark.parametrize("make, options", TWINS)
def test_the_plain_twin_differs_in_the_additions_alone(make, options):
    net, twin = (seeded(make, residual=residual, **options) for residual in (True, False))
    assert same_state(net, twin) and count(net) == count(twin)
    assert not same_state(net, seeded(make, seed=5, **options))
    x = torch.randn(2, 3, 32, 32)
    assert flops(twin, x)["addition"] == 0 < flops(net, x)["addition"]
    out = twin(x)
    assert not torch.allclose(net(x), out)
    out.sum().backward()
    unused = [name for name, p in twin.named_parameters() if p.grad is None]
    assert unused == [name for name, _ in twin.named_parameters() if "downsample" in name]


def test_the_public_names_are_those_of_the_design():
    networks = "ResNet cifar_resnet resnet18 resnet34 resnet50 resnet101 resnet152"
    blocks = "BasicBlock Bottleneck PreActBlock Residual resnet_block"
    names = f"{networks} {blocks} explain_missing_names"  # for the notebooks' set-up cell
    assert all(getattr(d2lres, name).__doc__ for name in names.split())


def test_importing_the_package_loads_nothing_heavy_but_torch():
    heavy = "torchvision matplotlib d2l IPython pandas d2lres.data d2lres.figures d2lres.training"
    code = f"import sys, d2lres; print(*set('{heavy}'.split()) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
