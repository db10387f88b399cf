"""What the course compares itself with: both references load, and their absence is explained."""

import sys

import pytest
import torch
from torch import nn

from d2lres import references


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
