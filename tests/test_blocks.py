"""The blocks against their definitions; against other packages: test_networks, test_references."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2lres import BasicBlock, Bottleneck, PreActBlock, Residual, ResNet, cifar_resnet
from d2lres.blocks import PadShortcut, conv1x1

BLOCKS = [BasicBlock, Bottleneck, PreActBlock]


def perturb(model):
    """Random parameters and batch statistics, none of them at its initial value."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def a_block(block, inplanes=8, planes=8, stride=1, residual=True):
    """A block that turns `inplanes` channels into `planes`, with a 1x1 shortcut where needed."""
    same = stride == 1 and inplanes == planes
    downsample = None if same else conv1x1(inplanes, planes, stride)
    return block(inplanes, planes // block.expansion, stride, downsample, residual)


NETS = [
    Residual(8, 8),
    *map(a_block, BLOCKS),
    cifar_resnet(8, 10, 8),
    ResNet(Bottleneck, [1], 2, 8),
]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: type(net).__name__)


@every_net
def test_what_is_no_batch_of_feature_maps_is_refused(net):
    with pytest.raises(ValueError, match=r"\(N, 8, H, W\), got 3 dimensions.*x\.unsqueeze\(0\)"):
        net(torch.rand(8, 8, 8))
    with pytest.raises(ValueError, match="got 2 dimensions"):
        net(torch.rand(8, 8))
    for channels in (1, 5):
        with pytest.raises(ValueError, match=f"expected 8 channels, got {channels} .*build the"):
            net(torch.rand(2, channels, 8, 8))


@every_net
def test_the_input_is_not_written_to_and_every_weight_and_pixel_gets_its_gradient(net):
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    before = x.detach().clone()
    net(x).square().sum().backward()
    assert torch.equal(x, before) and x.grad.isfinite().all()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "block, remedy", [(Residual, "use_1x1conv=True"), *((b, "pass downsample=") for b in BLOCKS)]
)
def test_a_block_says_what_its_shortcut_is_missing(block, remedy):
    stride = "strides" if block is Residual else "stride"
    # Another size, other channels, and one channel, which + would broadcast.
    for wrong in (block(8, 8, **{stride: 2}), block(8, 16), block(1, 8)):
        channels = wrong.conv1.in_channels
        shapes = rf"the branch, \(2, .*, and the shortcut, \(2, {channels}, 8, 8\)"
        with pytest.raises(ValueError, match=rf"cannot add {shapes}: .*{remedy}"):
            wrong(torch.rand(2, channels, 8, 8))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_block_has_torchvisions_signature_and_gives_the_shape_it_promises(block, stride):
    assert block.expansion == (4 if block is Bottleneck else 1)
    planes, downsample = 16 // block.expansion, conv1x1(8, 16, stride)
    options = dict(inplanes=8, planes=planes, stride=stride, downsample=downsample, residual=True)
    for net in (block(8, planes, stride, downsample), block(**options)):
        assert net(torch.rand(2, 8, 7, 9)).shape == (2, 16, -(-7 // stride), -(-9 // stride))


@pytest.mark.parametrize("block", [Residual(8, 8), a_block(BasicBlock), a_block(Bottleneck)])
def test_with_a_zero_branch_the_block_is_the_relu_of_its_input(block):
    x = torch.randn(2, 8, 5, 5)
    nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    assert torch.equal(block(x), F.relu(x))
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize("training", [True, False])
def test_preact_blocks_with_zero_branches_hand_input_and_gradient_through_unchanged(training):
    stack = perturb(nn.Sequential(*(a_block(PreActBlock, 4, 4) for _ in range(9)))).train(training)
    for block in stack:
        nn.init.zeros_(block.conv2.weight)
    x, upstream = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(2, 4, 5, 5)
    out = stack(x)
    out.backward(upstream)
    assert (x < 0).any() and torch.equal(out, x) and torch.equal(x.grad, upstream)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("planes, stride", [(8, 1), (16, 1), (16, 2)])
def test_a_preact_block_is_bn_relu_convolution_twice(planes, stride, residual):
    """Its shortcut is x, or starts after the first BN and ReLU where it changes the shape."""
    net = perturb(a_block(PreActBlock, 8, planes, stride, residual)).eval()
    x = torch.randn(2, 8, 6, 6)
    active = F.relu(net.bn1(x))
    branch = net.conv2(F.relu(net.bn2(net.conv1(active))))
    shortcut = x if planes == 8 else net.downsample(active)
    assert torch.equal(net(x), branch + shortcut if residual else branch)


@pytest.mark.parametrize("planes, stride, size", [(8, 2, (3, 3)), (5, 1, (5, 6))])
def test_the_pad_shortcut_strides_and_fills_new_channels_with_zeros(planes, stride, size):
    x, shortcut = torch.randn(2, 4, 5, 6), PadShortcut(4, planes, stride)
    out, before = shortcut(x), (planes - 4) // 2
    assert out.shape == (2, planes, *size)
    assert torch.equal(out[:, before : before + 4], x[:, :, ::stride, ::stride])
    assert out[:, :before].count_nonzero() == out[:, before + 4 :].count_nonzero() == 0
    assert list(shortcut.parameters()) == []
