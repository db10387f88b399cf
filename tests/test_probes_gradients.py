"""The probes of gradients, variances and lesions: right on nets one can do on paper, and without
any trace on the model afterwards."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2lres import BasicBlock, Bottleneck, PreActBlock, Residual, ResNet, cifar_resnet, probes
from d2lres.data import Images
from d2lres.state import untouched


def pictures(n=40, channels=1, size=8, classes=10):
    x = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)
    return Images(x, torch.arange(n) % classes)


# By hand.


def chain(*weights, bias=False):
    """Linear layers 1 -> 1 -> ... -> 1 -> 2 with these weights; the last is [w, -w]."""
    layers = [nn.Linear(1, 1, bias=bias) for _ in weights[:-1]] + [nn.Linear(1, 2, bias=bias)]
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


def test_activation_norms_are_root_mean_squares_on_paper():
    norms = probes.activation_norms(chain(2.0, 3.0, 1.0), torch.tensor([[1.0], [-3.0]]))
    rms = math.sqrt((1 + 9) / 2)
    assert norms == pytest.approx({"0": 2 * rms, "1": 6 * rms, "2": 6 * rms})


def test_gradient_norms_take_the_mean_over_the_batch_and_are_of_train_mode():
    torch.manual_seed(3)
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


@pytest.mark.parametrize("block", [BasicBlock, PreActBlock, Residual])
def test_without_leaves_the_shortcut_and_gives_the_block_back(block):
    block = block(4, 4).eval()
    x = torch.randn(2, 4, 5, 5).relu()
    before = block(x)
    with probes.without(block):
        assert torch.equal(block(x), x)
    assert torch.equal(block(x), before) and "forward" not in vars(block)


def test_swapped_modules_do_each_others_work():
    double, square = nn.Module(), nn.Module()
    double.forward, square.forward = (lambda x: 2 * x), (lambda x: x * x)
    both = nn.Sequential(double, square)
    assert both(3) == 36
    with pytest.raises(RuntimeError, match="mine"), probes.swapped(double, square):
        assert both(3) == 18
        raise RuntimeError("mine")
    assert both(3) == 36


def test_lesion_measures_every_block_that_keeps_the_shape(monkeypatch):
    torch.manual_seed(0)
    model = cifar_resnet(14, in_channels=1, width=2)
    data = pictures()
    result = probes.lesion(model, data)
    kept = ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert list(result["without"]) == kept
    assert list(result["swapped"]) == ["layer1.0, layer1.1"]
    assert result["intact"] == probes.evaluate(model, data).accuracy
    for name in kept:
        by_hand = copy.deepcopy(model)
        parent, _, child = name.rpartition(".")
        setattr(by_hand.get_submodule(parent), child, nn.Identity())
        assert result["without"][name] == probes.evaluate(by_hand, data).accuracy
    by_hand = copy.deepcopy(model)
    by_hand.layer1 = nn.Sequential(model.layer1[1], model.layer1[0])
    assert result["swapped"]["layer1.0, layer1.1"] == probes.evaluate(by_hand, data).accuracy


def test_lesion_takes_blocks_that_do_nothing_without_a_change():
    model = cifar_resnet(14, in_channels=1, width=2)
    for name in ("layer1.0", "layer1.1", "layer2.1", "layer3.1"):
        nn.init.zeros_(model.get_submodule(name).bn2.weight)
    result = probes.lesion(model, pictures())
    assert {*result["without"].values(), *result["swapped"].values()} == {result["intact"]}
    with pytest.raises(ValueError, match="no block"):
        probes.lesion(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), pictures())


# Shattering.


def test_input_gradients_are_derivatives_at_each_point():
    line = torch.linspace(-1, 1, 5)
    assert torch.allclose(probes.input_gradients(lambda x: x**3, line), 3 * line**2)
    points = torch.randn(4, 2, 3)
    weight = torch.randn(2, 3)
    gradients = probes.input_gradients(lambda x: (x * weight).flatten(1).sum(1, True), points)
    assert torch.allclose(gradients, weight.expand(4, 2, 3)) and not points.requires_grad
    with pytest.raises(ValueError, match=r"5 inputs gave \(5, 2\).*pick a logit"):
        probes.input_gradients(nn.Linear(1, 2), line[:, None])


def test_autocorrelation_on_paper_and_of_the_references():
    # Around the mean 0: (1, -1, 1, -1), of which the shifted products are -3 and 2 of 4.
    assert probes.autocorrelation(torch.tensor([3.0, 1, 3, 1]), 2) == [1, -3 / 4, 2 / 4]
    both = torch.tensor([[3.0, 5], [1, 5], [3, 5], [1, 5]])
    assert probes.autocorrelation(both, 2) == [1, -3 / 4, 2 / 4]
    for bad in (torch.ones(5), torch.tensor([1.0, 2])):
        with pytest.raises(ValueError, match="must vary"):
            probes.autocorrelation(bad, 2)
    for seed in range(5):
        assert abs(probes.autocorrelation(probes.white_noise(256, seed), 1)[1]) < 0.2
        assert probes.autocorrelation(probes.brown_noise(256, seed), 1)[1] > 0.9
    assert torch.equal(
        probes.brown_noise(9).diff(), probes.brown_noise(9)[1:] - probes.brown_noise(9)[:-1]
    )
    assert not torch.equal(probes.white_noise(9), probes.white_noise(9, 1))


@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_deep_plain_nets_are_white_and_of_residual_ones_less_so(seed):
    def neighbours(depth, kind):
        torch.manual_seed(seed)
        net = probes.shattering_net(depth, kind=kind)
        assert sum(isinstance(m, nn.Linear) for m in net.modules()) == depth
        return probes.autocorrelation(probes.input_gradients(net, probes.shattering_line()), 1)[1]

    shallow, deep, residual = (
        neighbours(2, "plain"),
        neighbours(24, "plain"),
        neighbours(50, "residual"),
    )
    assert shallow > 0.9 and 0.5 < residual < 0.9 and abs(deep) < 0.25


def test_a_shattering_net_is_a_function_of_one_number():
    net, line = probes.shattering_net(12, 20), probes.shattering_line(16)
    together = net(line)
    assert torch.allclose(together, torch.cat([net(x[None]) for x in line]), atol=1e-5)
    for arguments in ((1,), (4, 20, "dense")):
        with pytest.raises(ValueError, match="kind must be"):
            probes.shattering_net(*arguments)


# No trace, on random nets.


def random_net(seed):
    """A small net of a random kind, used before: mode, gradients, frozen weights, a hook."""
    torch.manual_seed(seed)
    pick = torch.randint(0, 1000, (6,)).tolist()
    kind, width, residual, shortcut = (
        pick[0] % 2,
        1 + pick[1] % 4,
        pick[2] % 3 > 0,
        "AB"[pick[3] % 2],
    )
    options = dict(num_classes=10, in_channels=1, residual=residual, shortcut=shortcut)
    if seed == 0:
        from torchvision.models import resnet18

        model = resnet18(num_classes=10)
        model.conv1 = nn.Conv2d(1, 64, 3, bias=False)
    elif seed % 4 == 0:
        hidden = [
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU())
            for _ in range(1 + pick[4] % 5)
        ]
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *hidden, nn.Linear(8, 10))
    else:
        block = [BasicBlock, PreActBlock, Bottleneck][seed % 4 - 1]
        layers = [1 + n % 3 for n in pick[4:]]
        model = ResNet(block, layers, width=width, small_images=bool(kind), **options)
    x = torch.randn(4, 1, 8, 8)
    F.cross_entropy(model(x), torch.arange(4)).backward()
    next(model.parameters()).requires_grad_(bool(pick[5] % 2))
    list(model.modules())[-1].eval()  # a mode of its own
    list(model.modules())[1].register_forward_hook(lambda *_: None)
    return model, x, torch.arange(4)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model):
    """Everything that a probe must not change."""
    tensors = {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()}
    grads = {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    objects += [id(p.grad) for p in model.parameters()] + [id(m) for m in model.modules()]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    hooks = [dict(getattr(m, name)) for m in model.modules() for name in HOOKS]
    attributes = [list(vars(m)) for m in model.modules()]
    return tensors, grads, objects, flags, hooks, attributes, torch.get_rng_state()


def assert_same(before, after):
    for one, other in zip(before[:2], after[:2]):
        assert list(one) == list(other)
        for key, value in one.items():
            assert value is other[key] is None or torch.equal(value, other[key]), key
    assert before[2:6] == after[2:6] and torch.equal(before[6], after[6])


class Interrupted(BaseException):
    """Like Ctrl-C: no Exception."""


DATA = Images(torch.arange(256).byte().view(4, 1, 8, 8), torch.arange(4))


class FirstLogit(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[:, 0]


PROBES = {
    "gradient_norms": lambda model, x, y: probes.gradient_norms(model, x, y),
    "activation_norms": lambda model, x, y: probes.activation_norms(model, x),
    "shapes": lambda model, x, y: probes.shapes(model, x),
    "without_bn": lambda model, x, y: probes.without_bn(model),
    "branch_variances": lambda model, x, y: probes.branch_variances(model, x),
    "lesion": lambda model, x, y: probes.lesion(model, DATA),
    "input_gradients": lambda model, x, y: probes.input_gradients(FirstLogit(model), x),
}


@pytest.mark.parametrize("seed", range(20))
def test_probes_leave_no_trace_on_random_nets(seed):
    model, x, y = random_net(seed)
    for name, probe in PROBES.items():
        before = state(model)
        try:
            probe(model, x, y)
        except ValueError as error:  # no Block in an MLP and in torchvision's
            assert name in ("branch_variances", "lesion"), error
        assert_same(before, state(model))


@pytest.mark.parametrize("seed", range(1, 9))
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
    for name in ("gradient_norms", "activation_norms", "shapes", "branch_variances", "lesion"):
        count = 0 if name == "lesion" else calls - 1
        before = state(model)
        with pytest.raises((Interrupted, ValueError)):
            PROBES[name](model, x, y)
        assert_same(before, state(model))


def test_untouched_restores_whatever_is_done_to_a_model():
    model, x, y = random_net(2)
    before = state(model)
    handle = model.conv1.register_forward_hook(lambda *_: None)
    with_handle = state(model)
    with pytest.raises(KeyError), untouched(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model.train()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        model.layer1[0] = nn.Identity()
        model.conv1 = nn.Conv2d(1, 1, 1)
        model.register_buffer("mine", torch.ones(1))
        model.note = "mine"
        del model.fc
        torch.rand(3)
        raise KeyError
    assert_same(with_handle, state(model))
    handle.remove()  # the handle still finds its hook
    assert_same(before, state(model))


def test_a_graph_built_before_a_probe_can_still_be_used():
    model, x, y = random_net(7)
    loss = F.cross_entropy(model.train()(x), y)
    expected = torch.autograd.grad(loss, model.fc.weight, retain_graph=True)[0]
    probes.gradient_norms(model, x, y)
    assert torch.equal(torch.autograd.grad(loss, model.fc.weight)[0], expected)
