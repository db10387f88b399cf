"""What the course compares itself with: both references load, and their absence is explained."""

import sys

import pytest
import torch
from torch import nn

from d2lres import Residual, references, resnet18


def test_d2l_loads_with_todays_ipython():
    d2l = references.d2l()
    assert d2l.__name__ == "d2l.torch" and issubclass(d2l.Residual, nn.Module)
    assert references.d2l() is d2l


def test_a_missing_d2l_is_named_with_the_remedy(monkeypatch):
    for name in [name for name in sys.modules if name == "d2l" or name.startswith("d2l.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "d2l", None)  # makes importing it fail
    with pytest.raises(ImportError, match=r"needs d2l.*pip install 'd2lres\[course\]'"):
        references.d2l()


def test_the_notes_network_has_biases_no_bn_on_shortcuts_and_pytorchs_first_weights():
    torch.manual_seed(0)
    net = references.notes_resnet18()
    assert sum(p.numel() for p in net.parameters()) == 11_178_378  # as counted in chapter 3
    assert net(torch.rand(2, 1, 96, 96)).shape == (2, 10)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20 and all(m.bias is not None for m in convolutions)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 17
    torch.manual_seed(0)
    assert torch.equal(nn.Conv2d(1, 64, 7, stride=2, padding=3).weight, net[0].weight)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvisions_networks_come_in_five_depths(depth):
    with torch.device("meta"):
        net = references.torchvision_resnet(depth, num_classes=10, in_channels=1)
    assert net.fc.weight.shape[0] == 10 and net.conv1.weight.shape == (64, 1, 7, 7)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == depth + 2 + (depth > 34)


def test_a_torchvision_network_for_grey_images_matches_ours():
    net, reference = resnet18(10, 1), references.torchvision_resnet(18, 10, 1)
    net.load_state_dict(reference.state_dict(), strict=True)
    x = torch.rand(2, 1, 32, 32)
    assert (net.eval()(x) - reference.eval()(x)).abs().max() <= 1e-5
    spread = reference.conv1.weight.std().item()  # He initialisation, fan out
    assert spread == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("depth", [20, 0, "18"])
def test_a_depth_torchvision_lacks_is_refused(depth):
    with pytest.raises(ValueError, match=f"ResNet-18, -34, -50, -101 and -152, not {depth}"):
        references.torchvision_resnet(depth)


def test_copy_weights_matches_by_order_and_includes_the_batch_statistics():
    source = Residual(2, 4, True, 2)
    source.train()(torch.randn(3, 2, 4, 4))
    target = nn.ModuleDict(
        {f"other{i}": module for i, module in enumerate(Residual(2, 4, True, 2).children())}
    )
    references.copy_weights(source, target)
    for old, new in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(old, new) and old.data_ptr() != new.data_ptr()
    assert all(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize("other", [nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.Linear(2, 3)])
def test_copy_weights_refuses_other_shapes_and_changes_nothing(other):
    target = nn.Linear(3, 2)
    before = target.weight.detach().clone()
    with pytest.raises(ValueError, match="do not hold the same sequence of tensors"):
        references.copy_weights(other, target)
    assert torch.equal(target.weight, before)
