"""The probes: what they count is right, and they leave the model as they found it."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from d2lres import PreActBlock, Residual, ResNet, cifar_resnet, references, resnet18, resnet_block
from d2lres.probes import KINDS, flops, parameters, shapes, weight_layers, where_time_goes


def notes_resnet18():
    stem = nn.Sequential(
        nn.Conv2d(1, 64, 7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    stages = (
        nn.Sequential(*resnet_block(64, 64, 2, first_block=True)),
        *(nn.Sequential(*resnet_block(c // 2, c, 2)) for c in (128, 256, 512)),
    )
    return nn.Sequential(
        stem, *stages, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(512, 10)
    )


def test_shapes_gives_the_trace_of_note_003():
    trace = shapes(notes_resnet18(), torch.rand(1, 1, 224, 224))
    assert list(trace) == list("01234567")
    assert [s[-1] for s in trace.values()] == [56, 56, 28, 14, 7, 1, 512, 10]
    assert trace["0"] == (1, 64, 56, 56) and trace["7"] == (1, 10)
    stem = shapes(notes_resnet18()[0], torch.rand(1, 1, 224, 224))
    assert [s[-1] for s in stem.values()] == [112, 112, 112, 56]


def test_shapes_lists_named_children_in_the_order_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.never = nn.Linear(3, 2), nn.Linear(4, 3), nn.Linear(1, 1)

        def forward(self, x):
            return self.second(self.first(x))

    assert list(shapes(Backwards(), torch.rand(5, 4)).items()) == [
        ("first", (5, 3)),
        ("second", (5, 2)),
    ]


def test_parameters_counts_by_child_and_leaves_out_those_without():
    net = cifar_resnet(8, in_channels=1)
    counts = parameters(net)
    assert list(counts) == ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]
    assert counts["conv1"] == 144 and counts["fc"] == 650
    assert sum(counts.values()) == sum(p.numel() for p in net.parameters())
    assert sum(parameters(notes_resnet18()).values()) == 11_178_378


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_weight_layers_counts_to_the_networks_name(depth):
    import d2lres

    with torch.device("meta"):
        names = weight_layers(getattr(d2lres, f"resnet{depth}")())
        assert weight_layers(references.torchvision_resnet(depth)) == names
    assert len(names) == depth and names[0] == "conv1" and names[-1] == "fc"


def test_weight_layers_leaves_out_shortcuts_only():
    assert len(weight_layers(notes_resnet18())) == 18
    assert weight_layers(Residual(3, 6, True, 2)) == ["conv1", "conv2"]
    assert len(weight_layers(cifar_resnet(20, shortcut="B"))) == 20
    assert len(weight_layers(ResNet(PreActBlock, [1, 1], width=2))) == 6


def test_weight_layers_knows_the_d2l_packages_shortcut_too():
    d2l = references.d2l()
    assert weight_layers(d2l.Residual(3, 6, True, 2)) == ["conv1", "conv2"]
    with torch.device("meta"):
        assert len(weight_layers(d2l.resnet18(10))) == 18


def test_flops_counts_two_for_each_multiplication_and_addition():
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 6 * 4, 7),
        nn.Linear(7, 3, bias=False),
    )
    counts = flops(net, torch.rand(3, 2, 6, 4))
    assert counts == {
        "convolution": 2 * 3 * 5 * 6 * 4 * 2 * 9,
        "linear": 2 * 3 * (5 * 6 * 4 * 7 + 7 * 3),
        "addition": 0,
    }


def test_flops_of_resnet18_are_torchvisions():
    counts = flops(resnet18(), torch.rand(1, 3, 224, 224))
    assert counts["convolution"] + counts["linear"] == 2 * 1_814_073_344  # 1.814 GMAC, paper: 1.8
    assert counts["addition"] == 2 * (64 * 56**2 + 128 * 28**2 + 256 * 14**2 + 512 * 7**2)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_flops_of_twins_differ_by_additions_and_the_shortcuts_convolutions(shortcut):
    x = torch.rand(2, 3, 16, 16)
    residual, plain = (
        flops(cifar_resnet(20, shortcut=shortcut, residual=r), x) for r in (True, False)
    )
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


@pytest.mark.parametrize("probe", [shapes, flops])
@pytest.mark.parametrize("fails", [False, True])
def test_probes_leave_the_model_as_they_found_it(probe, fails):
    net = cifar_resnet(8, width=2)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    net.layer1.eval()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]
    if fails:
        with pytest.raises(ValueError):
            probe(net, torch.rand(2, 1, 8, 8))
    else:
        probe(net, torch.rand(2, 3, 8, 8))
    assert [m.training for m in net.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, net.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.is_grad_enabled()


# Where time goes


def a_step(net, x):
    with record_function("forward"):
        loss = net(x).sum()
    with record_function("backward"):
        loss.backward()
    with record_function("update"):
        torch.optim.Adam(net.parameters()).step()


def test_time_is_told_apart_by_part_and_kind(capfd):
    net, x = cifar_resnet(8, width=8), torch.rand(16, 3, 32, 32)
    a_step(net, x)
    capfd.readouterr()
    seconds = []

    def timed():  # without the profiler's own start and end
        start = time.perf_counter()
        a_step(net, x)
        seconds.append(time.perf_counter() - start)

    spent = where_time_goes(timed)
    assert list(spent) == ["forward", "backward", "update"]  # Adam's own mark makes no part
    for part in ("forward", "backward"):
        assert all(spent[part][kind] > 0 for kind in KINDS)
        assert spent[part]["convolution"] > spent[part]["ReLU, addition, pooling"]
    assert spent["update"]["other"] > 0
    assert spent["update"]["convolution"] == spent["update"]["batch norm"] == 0
    assert 0.3 * seconds[0] < sum(sum(part.values()) for part in spent.values()) <= seconds[0]
    assert capfd.readouterr().err == ""  # the profiler keeps its messages to itself


def test_a_step_without_named_parts_is_refused():
    with pytest.raises(ValueError, match="name the pieces"):
        where_time_goes(lambda: torch.ones(3) + 1)
