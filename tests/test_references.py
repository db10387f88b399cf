"""What the course compares itself with: the notes' blocks and network are the d2l package's."""

import sys

import pytest
import torch
from test_blocks import perturb
from torch import nn

from d2lres import Residual, references, resnet_block
from d2lres.probes import flops, weight_layers


@pytest.fixture(scope="module")
def d2l():
    loaded = references.d2l()
    assert callable(loaded.display.set_matplotlib_formats)  # which today's IPython has dropped
    return loaded


def test_a_missing_d2l_is_named_with_the_remedy(monkeypatch):
    for name in [name for name in sys.modules if name == "d2l" or name.startswith("d2l.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "d2l", None)  # makes importing it fail
    with pytest.raises(ImportError, match=r"needs d2l.*pip install 'd2lres\[course\]'"):
        references.d2l()


def initial(make, *arguments, **options):
    """A module and a copy of the weights that it starts with, after a fixed seed."""
    torch.manual_seed(3)
    module = make(*arguments, **options)
    return module, {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(ours, theirs, x, training):
    """The same first weights; state dicts that load both ways; after that the same output."""
    (ours, first), (theirs, expected) = ours, theirs
    assert all(torch.equal(value, expected[name]) for name, value in first.items())
    ours.load_state_dict(perturb(theirs).state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    out = ours.train(training)(x)
    assert torch.equal(out, theirs.train(training)(x))
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [(3, 3), (3, 6, True, 2), (3, 3, True), (4, 6, True)])
@pytest.mark.parametrize("named", [True, False])
def test_residual_is_the_d2l_packages(d2l, arguments, named, training):
    names = "input_channels", "num_channels", "use_1x1conv", "strides"
    arguments, options = ((), dict(zip(names, arguments))) if named else (arguments, {})
    ours, theirs = (initial(kind, *arguments, **options) for kind in (Residual, d2l.Residual))
    x = torch.randn(4, ours[0].conv1.in_channels, 7, 10)
    out = assert_equal(ours, theirs, x, training)
    assert flops(ours[0], x) == flops(theirs[0], x)  # theirs adds in place
    assert flops(ours[0], x)["addition"] == out.numel()
    assert weight_layers(ours[0]) == weight_layers(theirs[0]) == ["conv1", "conv2"]


@pytest.mark.parametrize("training", [True, False])
def test_the_resnet18_of_note_001_is_one_from_the_d2l_package(d2l, training, monkeypatch):
    ours = initial(references.notes_resnet18)
    monkeypatch.setattr("d2lres.blocks.Residual", d2l.Residual)
    theirs = initial(references.notes_resnet18)
    for (net, _), block in ((ours, Residual), (theirs, d2l.Residual)):
        assert [type(module) for stage in net[4:8] for module in stage] == [block] * 8
        assert sum(p.numel() for p in net.parameters()) == 11_178_378  # as chapter 3 counts
        assert len(weight_layers(net)) == 18
    with torch.device("meta"):
        assert len(weight_layers(d2l.resnet18(10))) == 18
    stem, _ = initial(nn.Conv2d, 1, 64, 7, stride=2, padding=3)
    assert torch.equal(stem.weight, ours[1]["0.weight"]), "not PyTorch's first weights"
    assert assert_equal(ours, theirs, torch.randn(2, 1, 64, 64), training).shape == (2, 10)


def test_resnet_block_is_a_list_to_unpack_and_the_first_stage_keeps_its_channels():
    stage = resnet_block(64, 128, 3)
    assert isinstance(stage, list) and len(stage) == 3
    assert [block.conv3 is not None for block in stage] == [True, False, False]
    assert [block.conv1.stride for block in stage] == [(2, 2), (1, 1), (1, 1)]
    assert [block.conv1.in_channels for block in stage] == [64, 128, 128]
    first = resnet_block(64, 64, 2, first_block=True)
    assert all(block.conv3 is None and block.conv1.stride == (1, 1) for block in first)
    with pytest.raises(ValueError, match="64 go in and 128 should come out.*first_block=False"):
        resnet_block(64, 128, 2, first_block=True)
