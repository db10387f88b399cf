"""Self-checks of chapter 04."""

import copy
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import behaves, call, check, compare, require, scramble
from d2lres.checks.paths import effective_depth as effective_depth  # as it was called before
from d2lres.networks import cifar_resnet, resnet18


@check
def stack_gradient(answer) -> str:
    def right(slopes, residual):
        return math.prod(1 + j if residual else j for j in slopes)

    mistakes = {
        "plain and residual are the other way round.": lambda s, residual: right(s, not residual),
        "there is a shortcut around each block, not around all.": lambda s, r: r + math.prod(s),
        "slopes in a row multiply: they do not add up.": lambda s, residual: sum(s) + residual,
    }
    slopes: list = [
        [0.5],
        [0.5, -0.25, 0.5],
        [2.0, -1.0],
        [0.0, 3.0],
        [9.0, 99.0],
        [1e-7, 1e7],
        [0.1] * 11,
        [],
    ]
    slopes += (torch.randn(n).double().tolist() for n in (2, 5, 9))
    cases = [(list(it), residual) for it in slopes for residual in (False, True)]
    hint = "the product of all j, or of all 1 + j if residual"
    compare(answer, right, cases, mistakes, form="one number", hint=hint)
    return "one slope of -1 silences a residual stack; a plain one is silenced by any slope of 0."


class _Backwards(nn.Sequential):
    """Its layers run from the last to the first."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


@check
def first_to_last(answer) -> str:
    def by(last=None, old=0.0, train=True):
        def ratio(model, x, y):
            model = copy.deepcopy(model).train(train or model.training)
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            kernels = [g for g in gradients if g.dim() == 4]
            end = gradients[last] if last else kernels[-1]
            return ((kernels[0] + old).norm() / (end + old).norm()).item()

        return ratio

    mistakes = {
        "the model may come in eval mode: call .train() on your copy.": by(train=False),
        "it is upside down: divide the first norm by the last.": lambda *it: 1 / by()(*it),
        "the last parameter is a bias: take the last with four dimensions.": by(last=-1),
        "the last weight is the linear layer's: take the last with four dimensions.": by(last=-2),
        "you add to old gradients: work on a copy, or with torch.autograd.grad.": by(old=1.0),
        "these are squared norms.": lambda *it: by()(*it) ** 2,
    }
    plain, residual = (cifar_resnet(8, in_channels=1, width=4, residual=r) for r in (False, True))
    layers = [nn.Conv2d(6, 6, 3, padding=1, bias=i > 5) for i in range(11)]
    names = dict(z=nn.Conv2d(1, 6, 1), layers=nn.Sequential(*layers), a=nn.Conv2d(6, 4, 5))
    names["head"] = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10))
    odd = nn.Sequential(OrderedDict(names))  # sorted by name its layers stand otherwise
    turned = _Backwards(nn.Linear(4, 10), nn.Flatten(), nn.Conv2d(5, 4, 8), nn.Conv2d(1, 5, 1))
    cases = []
    for net in plain.eval(), residual, odd.eval(), resnet18(in_channels=1, width=4), turned:
        for p in scramble(net).parameters():
            p.grad = None if net is residual else torch.ones_like(p)
        cases.append((net, torch.randn(16, 1, 8, 8), torch.randint(10, (16,))))
    hint = "the first convolution's gradient norm over the last one's, in train mode"
    compare(answer, by(), cases, mistakes, form="one number", hint=hint)
    return "far above 1 the gradient explodes towards the input, far below 1 it vanishes."


@check
def skipinit(answer) -> str:
    pairs = []
    for channels in (6, 3):
        block, x = call(answer, channels, draws=True), torch.randn(4, channels, 7, 8)
        require(isinstance(block, nn.Module), "SkipInitBlock must inherit from nn.Module.")
        call(block, x, changes=("*",), draws=True)  # a lazy convolution gets its shape
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules())
        require(not norms, "there is a batch norm inside: the block has to do without.")
        named, none = dict(block.named_parameters()), torch.empty(0)
        alpha = named.get("alpha", none)
        require(alpha.numel() == 1, "self.alpha must be an nn.Parameter with one element.")
        require(alpha.item() == 0, f"alpha starts at {alpha.item():g}: start it at 0.")
        for name in ("conv1", "conv2"):
            weight, shape = named.get(f"{name}.weight", none), (channels, channels, 3, 3)
            told = f"self.{name} must be an nn.Conv2d of its own, with a weight {shape} here."
            require(weight.shape == shape, told)
            require(weight.any(), f"{name} starts at 0, so alpha gets no gradient: leave it.")
        known = {"alpha", *(f"conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias"))}
        other = call(answer, channels, draws=True)
        call(other, x, changes=("*",), draws=True)
        same = torch.equal(other.conv1.weight, named["conv1.weight"])
        require(not same, "two blocks start from the same weights: make layers anew, unseeded.")
        extra = ", ".join(sorted(set(named) - known))
        require(not extra, f"alpha is all that the convolutions need; {extra} learns, too.")
        for alpha in (0.7, 0.0, -0.8):
            pairs.append((copy.deepcopy(scramble(block)), x))
            nn.init.constant_(pairs[-1][0].alpha, alpha)

    def formula(combine=lambda x, a, g: F.relu(x + a * g), relu=F.relu):
        def forward(block, x):
            one, two = block.conv1, block.conv2
            inner = relu(F.conv2d(x, one.weight, one.bias, padding=1))
            return combine(x, block.alpha, F.conv2d(inner, two.weight, two.bias, padding=1))

        return forward

    mistakes = {
        "the last ReLU, after the addition, is missing.": formula(lambda x, a, g: x + a * g),
        "the ReLU between the convolutions is missing.": formula(relu=lambda x: x),
        "no ReLU follows conv2 before the sum.": formula(lambda x, a, g: F.relu(x + a * F.relu(g))),
        "alpha belongs to the branch, not to x.": formula(lambda x, a, g: F.relu(a * x + g)),
        "x is not added.": formula(lambda x, a, g: F.relu(a * g)),
    }
    behaves(pairs, formula(), mistakes, what="relu(x + alpha * conv2(relu(conv1(x)))), padding 1")
    return "one number in place of every batch norm, and each block starts as relu(x)."
