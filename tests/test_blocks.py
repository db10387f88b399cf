"""The blocks against the notes, the d2l package and plain arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2lres import BasicBlock, Bottleneck, PreActBlock, Residual, references, resnet_block
from d2lres.blocks import PadShortcut, add, conv1x1

BLOCKS = [BasicBlock, Bottleneck, PreActBlock]


@pytest.fixture(scope="module")
def d2l():
    return references.d2l()


def perturb(model):
    """Random parameters and batch statistics, none of them at its initial value."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def a_block(block, inplanes=8, planes=None, stride=1, residual=True):
    """A block that turns `inplanes` channels into `planes`, with a 1x1 shortcut where needed."""
    planes = inplanes if planes is None else planes
    same = stride == 1 and inplanes == planes
    downsample = None if same else conv1x1(inplanes, planes, stride)
    return block(inplanes, planes // block.expansion, stride, downsample, residual)


every_block = pytest.mark.parametrize(
    "block", [Residual(8, 8), *map(a_block, BLOCKS)], ids=lambda block: type(block).__name__
)

# The notes' block.


def test_residual_accepts_the_notes_calls_and_gives_their_shapes():
    x = torch.rand(4, 3, 6, 6)
    assert Residual(3, 3)(x).shape == (4, 3, 6, 6)
    assert Residual(3, 6, use_1x1conv=True, strides=2)(x).shape == (4, 6, 3, 3)
    assert Residual(3, 6, True, 2)(x).shape == (4, 6, 3, 3)
    assert Residual(input_channels=3, num_channels=3)(x).shape == (4, 3, 6, 6)


@pytest.mark.parametrize("height, width", [(7, 9), (8, 8), (1, 5)])
def test_strides_round_height_and_width_up(height, width):
    out = Residual(2, 4, use_1x1conv=True, strides=2)(torch.rand(2, 2, height, width))
    assert out.shape == (2, 4, -(-height // 2), -(-width // 2))


def test_residual_has_biases_and_no_bn_on_its_shortcut():
    names = [name for name, _ in Residual(3, 6, use_1x1conv=True, strides=2).named_parameters()]
    layers = ["conv1", "conv2", "conv3", "bn1", "bn2"]
    assert names == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert Residual(3, 3).conv3 is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [(3, 3), (3, 6, True, 2), (3, 3, True), (4, 6, True)])
def test_residual_equals_the_d2l_packages(d2l, arguments, training):
    theirs, ours = perturb(d2l.Residual(*arguments)), Residual(*arguments)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(4, arguments[0], 7, 7)
    assert torch.equal(ours.train(training)(x), theirs.train(training)(x))


def test_residual_draws_the_initial_weights_of_the_d2l_packages(d2l):
    torch.manual_seed(3)
    theirs = d2l.Residual(3, 6, True, 2).state_dict()
    torch.manual_seed(3)
    ours = Residual(3, 6, True, 2).state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs | ours)


@pytest.mark.parametrize("training", [True, False])
def test_the_resnet18_of_note_001_equals_one_from_the_d2l_package(d2l, training, monkeypatch):
    def their_block(input_channels, num_channels, num_residuals, first_block=False):
        return [
            d2l.Residual(input_channels, num_channels, use_1x1conv=True, strides=2)
            if i == 0 and not first_block
            else d2l.Residual(num_channels, num_channels)
            for i in range(num_residuals)
        ]

    ours = references.notes_resnet18()
    assert sum(p.numel() for p in ours.parameters()) == 11_178_378
    monkeypatch.setattr(references, "resnet_block", their_block)
    theirs = perturb(references.notes_resnet18())
    for net, block in ((ours, Residual), (theirs, d2l.Residual)):
        assert [type(module) for stage in net[4:8] for module in stage] == [block] * 8
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(ours.train(training)(x), theirs.train(training)(x))


def test_resnet_block_is_a_list_to_unpack():
    stage = resnet_block(64, 128, 3)
    assert isinstance(stage, list) and len(stage) == 3
    assert [block.conv3 is not None for block in stage] == [True, False, False]
    assert [block.conv1.stride for block in stage] == [(2, 2), (1, 1), (1, 1)]
    assert [block.conv1.in_channels for block in stage] == [64, 128, 128]
    first = resnet_block(64, 64, 2, first_block=True)
    assert all(block.conv3 is None and block.conv1.stride == (1, 1) for block in first)


def test_the_first_stage_cannot_change_its_channels():
    with pytest.raises(ValueError, match="64 go in and 128 should come out.*first_block=False"):
        resnet_block(64, 128, 2, first_block=True)


# What does not fit raises ValueError with the remedy.


@pytest.mark.parametrize(
    "block, remedy", [(Residual, "use_1x1conv=True"), *((b, "pass downsample=") for b in BLOCKS)]
)
def test_a_block_says_what_its_shortcut_is_missing(block, remedy):
    stride = "strides" if block is Residual else "stride"
    # Another size, other channels, and one channel, which + would broadcast.
    for wrong in (block(8, 8, **{stride: 2}), block(8, 16), block(1, 8)):
        with pytest.raises(ValueError, match=rf"cannot add the branch, \(2, .*{remedy}"):
            wrong(torch.rand(2, wrong.conv1.in_channels, 8, 8))


@every_block
def test_blocks_refuse_what_is_no_batch_of_their_feature_maps(block):
    channels = block.conv1.in_channels
    with pytest.raises(ValueError, match=r"got 3 dimensions.*x\.unsqueeze\(0\)"):
        block(torch.rand(channels, 8, 8))
    with pytest.raises(ValueError, match="got 2 dimensions"):
        block(torch.rand(8, 8))
    with pytest.raises(ValueError, match=f"expected {channels} channels, got 5"):
        block(torch.rand(2, 5, 8, 8))


def test_add_never_broadcasts():
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 3\).*\(2, 1, 3, 3\): do this"):
        add(torch.rand(2, 4, 3, 3), torch.rand(2, 1, 3, 3), "do this")
    a, b = torch.rand(2, 2, 4, 3, 3)
    assert torch.equal(add(a, b, ""), a + b)


# BasicBlock, Bottleneck, PreActBlock.


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_block_gives_the_shape_it_promises(block, stride):
    out = a_block(block, 8, 16, stride)(torch.rand(2, 8, 7, 9))
    assert out.shape == (2, 16, -(-7 // stride), -(-9 // stride))
    assert block.expansion == (4 if block is Bottleneck else 1)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_has_torchvisions_signature(block):
    downsample = conv1x1(8, 4 * block.expansion, 2)
    by_position = block(8, 4, 2, downsample)
    by_name = block(inplanes=8, planes=4, stride=2, downsample=downsample, residual=True)
    assert by_position(torch.rand(2, 8, 4, 4)).shape == by_name(torch.rand(2, 8, 4, 4)).shape


def test_a_bottleneck_strides_in_its_3x3_convolution():
    block = a_block(Bottleneck, 8, 16, 2)
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
    assert block.conv2.kernel_size == (3, 3)


@pytest.mark.parametrize("block", [Residual(8, 8), a_block(BasicBlock), a_block(Bottleneck)])
def test_with_a_zero_branch_the_block_is_the_relu_of_its_input(block):
    x = torch.randn(2, 8, 5, 5)
    nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    assert torch.equal(block(x), F.relu(x))
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize("training", [True, False])
def test_with_a_zero_branch_a_preact_block_is_the_identity(training):
    net, x = perturb(a_block(PreActBlock, 8)).train(training), torch.randn(2, 8, 5, 5)
    nn.init.zeros_(net.conv2.weight)
    assert (x < 0).any() and torch.equal(net(x), x)


def test_a_stack_of_preact_blocks_hands_the_gradient_through_unchanged():
    stack = nn.Sequential(*(a_block(PreActBlock, 4) for _ in range(20)))
    for block in stack:
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    upstream = torch.randn(2, 4, 5, 5)
    stack(x).backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_a_preact_block_is_bn_relu_convolution_twice():
    net, x = perturb(a_block(PreActBlock, 8)).eval(), torch.randn(2, 8, 5, 5)
    by_hand = x + net.conv2(F.relu(net.bn2(net.conv1(F.relu(net.bn1(x))))))
    assert torch.equal(net(x), by_hand)


def test_a_preact_shortcut_that_changes_the_shape_starts_after_bn_and_relu():
    net, x = perturb(a_block(PreActBlock, 8, 16, 2)).eval(), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(net.conv2.weight)
    assert torch.equal(net(x), net.downsample(F.relu(net.bn1(x))))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("planes", [8, 16])
def test_without_residual_the_shortcut_plays_no_part(block, planes):
    torch.manual_seed(0)
    plain = a_block(block, 8, planes, residual=False)
    torch.manual_seed(0)
    twin = a_block(block, 8, planes)
    x, state = torch.randn(2, 8, 5, 5), twin.state_dict()
    assert list(plain.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())

    branch = plain(x)
    if plain.downsample is not None:
        nn.init.normal_(plain.downsample.weight)
        assert torch.equal(plain(x), branch)
        plain.downsample.load_state_dict(twin.downsample.state_dict())
    if block is PreActBlock:  # nothing follows the addition, so the difference is the shortcut
        active = F.relu(twin.bn1(x))
        shortcut = x if twin.downsample is None else twin.downsample(active)
        assert torch.equal(twin(x), branch + shortcut)
    else:
        assert not torch.allclose(twin(x), branch)


@every_block
def test_the_block_does_not_write_to_its_input_and_lets_autograd_through(block):
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    before = x.detach().clone()
    block(x).square().sum().backward()
    assert torch.equal(x, before) and x.grad.isfinite().all()
    assert all(p.grad is not None for p in block.parameters())


# Option A.


@pytest.mark.parametrize("planes, stride, size", [(8, 2, (3, 3)), (5, 1, (5, 6))])
def test_the_pad_shortcut_strides_and_fills_new_channels_with_zeros(planes, stride, size):
    x, shortcut = torch.randn(2, 4, 5, 6), PadShortcut(4, planes, stride)
    out, before = shortcut(x), (planes - 4) // 2
    assert out.shape == (2, planes, *size)
    assert torch.equal(out[:, before : before + 4], x[:, :, ::stride, ::stride])
    assert out[:, :before].count_nonzero() == out[:, before + 4 :].count_nonzero() == 0
    assert list(shortcut.parameters()) == []
