"""The networks against torchvision, the paper's counts, and their own promises."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision import models

import d2lres
from d2lres import BasicBlock, Bottleneck, PreActBlock, ResNet, cifar_resnet
from d2lres.blocks import PadShortcut
from d2lres.probes import flops, weight_layers

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


def stage_shapes(net, x):
    """What max-pool and each stage give for x, without the batch's dimension."""
    shapes = []
    for name in ("maxpool", *net.stages):
        stage = net.get_submodule(name)
        stage.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape[1:])))
    net(x)
    return shapes


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def perturb(model):
    """Other BN parameters and statistics everywhere; branches small, so that logits stay small."""
    names = dict(model.named_modules())
    last_of_branch = "bn3" if any(name.endswith("bn3") for name in names) else "bn2"
    for name, module in names.items():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data *= 0.3 if name.endswith(last_of_branch) else 1.0
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


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
        perturb(source)
        target.load_state_dict(source.state_dict(), strict=True)
        for training in modes:
            a, b = net.train(training)(x), reference.train(training)(x)
            assert a.shape == (2, 1000)
            assert a.std() > 1e-2 and a.abs().max() < 100  # else the next line would prove little
            assert (a - b).abs().max() <= 1e-5  # 0 where both run the same kernels
        for mine, other in zip(net.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)  # batch statistics


def test_gradients_are_torchvisions():
    net, reference = ours(18), theirs(18)
    perturb(reference)
    net.load_state_dict(reference.state_dict())
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    for model in (net, reference):
        nn.functional.cross_entropy(model(x), y).backward()
    for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_init_residual_is_torchvisions(depth):
    options = dict(num_classes=10, zero_init_residual=True)
    net = seeded(ours, depth, **options)
    assert same_state(net, seeded(theirs, depth, **options))
    last = "bn2" if depth == 18 else "bn3"
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


# The paper's family for small images.


@pytest.mark.parametrize("depth, expected", CIFAR.items())
def test_cifar_counts(depth, expected):
    with torch.device("meta"):
        assert count(cifar_resnet(depth)) == expected


def test_cifar_counts_its_layers():
    with torch.device("meta"):
        for depth in (8, 20, 110):
            for shortcut in "AB":
                assert len(weight_layers(cifar_resnet(depth, shortcut=shortcut))) == depth


def test_options_a_and_b_differ_in_the_shortcut_alone():
    a, b = cifar_resnet(20), cifar_resnet(20, shortcut="B")
    assert isinstance(a.layer2[0].downsample, PadShortcut)
    assert [type(m) for m in b.layer2[0].downsample] == [nn.Conv2d, nn.BatchNorm2d]
    assert b.layer2[0].downsample[0].kernel_size == (1, 1)
    assert a.layer2[1].downsample is None and b.layer2[1].downsample is None
    assert count(b) - count(a) == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert set(a.state_dict()) < set(b.state_dict())


def test_cifar_stages_have_the_papers_sizes():
    net, x = cifar_resnet(8, in_channels=1, num_classes=7), torch.randn(2, 1, 32, 32)
    assert stage_shapes(net, x) == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert net(x).shape == (2, 7)
    assert cifar_resnet(8, width=4).fc.in_features == 16


@pytest.mark.parametrize("depth, nearest", [(18, 20), (21, 20), (2, 8), (0, 8), (-4, 8), (57, 56)])
def test_a_depth_that_is_not_6n_plus_2_is_refused_with_the_nearest(depth, nearest):
    with pytest.raises(ValueError, match=f"6n \\+ 2.*; {depth} is not: the nearest is {nearest}"):
        cifar_resnet(depth)


@pytest.mark.parametrize("shortcut", ["C", "a", None])
def test_an_unknown_shortcut_is_refused_with_the_known_ones(shortcut):
    with pytest.raises(ValueError, match=f"unknown shortcut {shortcut!r}: use 'A' .* or 'B'"):
        cifar_resnet(8, shortcut=shortcut)


@pytest.mark.parametrize(
    "wrong", [dict(num_classes=0), dict(in_channels=0), dict(width=0), dict(layers=[1, 0])]
)
def test_sizes_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        ResNet(BasicBlock, **(dict(layers=[1], num_classes=2, in_channels=1, width=2) | wrong))


@pytest.mark.parametrize("net", [cifar_resnet(8, width=2), ResNet(Bottleneck, [1], 2, width=2)])
def test_networks_refuse_what_is_no_batch_of_their_images(net):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), got 3 dimensions.*unsqueeze\(0\)"):
        net(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match="got 2 dimensions"):
        net(torch.rand(32, 32))
    with pytest.raises(ValueError, match="expected 3 channels, got 1 .*build the network"):
        net(torch.rand(2, 1, 32, 32))


# ResNet itself.


@pytest.mark.parametrize("layers", [[1], [1, 2], [1, 1, 1, 1, 1]])
def test_each_stage_after_the_first_halves_the_size_and_doubles_the_channels(layers):
    net, x = ResNet(BasicBlock, layers, 5, 1, width=2, small_images=True), torch.rand(2, 1, 16, 16)
    halving = [(2 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(len(layers))]
    assert stage_shapes(net, x) == [halving[0], *halving] and net(x).shape == (2, 5)


def test_images_need_not_be_square_or_of_one_size():
    net = cifar_resnet(8, width=2)
    assert net(torch.rand(2, 3, 9, 17)).shape == net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


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


def test_other_blocks_have_nothing_after_the_last_stage():
    net = cifar_resnet(8)
    assert isinstance(net.last, nn.Identity)
    assert not any(key.startswith("last") for key in net.state_dict())


PREACT = dict(block=PreActBlock, layers=[1, 1], width=4, small_images=True)
TWINS = [
    *((cifar_resnet, dict(depth=20, shortcut=shortcut)) for shortcut in "AB"),
    *((ResNet, dict(PREACT, shortcut=shortcut)) for shortcut in "AB"),
    *((ours, dict(depth=depth, num_classes=10)) for depth in (18, 50)),
]


@pytest.mark.parametrize("make, options", TWINS)
def test_the_plain_twin_differs_in_the_additions_alone(make, options):
    for seed in (0, 1):
        net = seeded(make, seed=seed, **options)
        twin = seeded(make, seed=seed, residual=False, **options)
        assert same_state(net, twin) and count(net) == count(twin)
    assert not same_state(net, seeded(make, seed=5, **options))
    x = torch.randn(2, 3, 32, 32)
    assert flops(twin, x)["addition"] == 0 < flops(net, x)["addition"]
    out = twin(x)
    assert not torch.allclose(net(x), out)
    out.sum().backward()
    unused = [name for name, p in twin.named_parameters() if p.grad is None]
    assert unused == [name for name, _ in twin.named_parameters() if "downsample" in name]


def test_a_deeper_network_contains_the_shallower_one():
    """With zeroed branches the extra blocks change nothing, bit for bit: chapter 1 builds on it."""
    shallow, deep = cifar_resnet(8), cifar_resnet(20)
    for name in ("conv1", "bn1", "fc"):
        getattr(deep, name).load_state_dict(getattr(shallow, name).state_dict())
    for stage in shallow.stages:
        deep_stage = getattr(deep, stage)
        deep_stage[0].load_state_dict(getattr(shallow, stage)[0].state_dict())
        for block in deep_stage[1:]:
            nn.init.zeros_(block.bn2.weight)
    x = torch.randn(4, 3, 16, 16)
    for training in (False, True):
        assert torch.equal(shallow.train(training)(x), deep.train(training)(x))


def test_the_public_names_are_those_of_the_design():
    networks = "ResNet cifar_resnet resnet18 resnet34 resnet50 resnet101 resnet152"
    blocks = "BasicBlock Bottleneck PreActBlock Residual resnet_block"
    setup = "explain_missing_names"  # for the set-up cell of the notebooks
    names = [*networks.split(), *blocks.split(), setup]
    assert all(getattr(d2lres, name).__doc__ for name in names)


def test_importing_the_package_loads_nothing_heavy_but_torch():
    heavy = "torchvision matplotlib d2l IPython pandas d2lres.data d2lres.figures d2lres.training"
    code = f"import sys, d2lres; print(*set('{heavy}'.split()) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
