"""Self-checks of chapter 04."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import Wrong, check
from d2lres.networks import cifar_resnet


def _number(got) -> float:
    if got is None:
        raise NotImplementedError
    if getattr(got, "numel", lambda: 1)() != 1:
        raise Wrong("return one number.")
    return float(got)


def _close(a: float, b: float, rel: float = 1e-6) -> bool:
    return math.isclose(a, b, rel_tol=rel, abs_tol=1e-9)


@check
def stack_gradient(answer) -> str:
    for slopes in ([0.5, -0.25, 0.5], [2.0, -1.0], [0.1] * 30, []):
        for residual in (False, True):
            got = _number(answer(list(slopes), residual))
            plain, added = math.prod(slopes), math.prod(1 + j for j in slopes)
            expected = added if residual else plain
            if _close(got, expected):
                continue
            what = "residual" if residual else "plain"
            if not slopes:
                raise Wrong("a stack without blocks returns its input, so its gradient is 1.")
            if _close(got, plain if residual else added):
                raise Wrong(f"for residual={residual} you give the gradient of the other stack.")
            if residual and _close(got, 1 + plain):
                raise Wrong("there is a shortcut around each block, not one around the whole stack.")
            if _close(got, sum(slopes) + residual) or _close(got, sum(1 + j for j in slopes)):
                raise Wrong("slopes of steps that follow each other multiply, they do not add up.")
            raise Wrong(
                f"{what} blocks with slopes {slopes[:3]} have the gradient {expected:.6g}, "
                f"not {got:.6g}: each step multiplies by {'1 + j' if residual else 'j'}."
            )
    return "one slope of -1 silences a residual stack; a plain one is silenced by any slope of 0."


@check
def effective_depth(answer) -> str:
    for n, c in ((10, 1.0), (54, 1.0), (54, 0.25), (3, 2.0), (27, 0.0)):
        got = _number(answer(n, c))
        expected = n * c / (1 + c)
        if _close(got, expected):
            continue
        if c != 1 and _close(got, n / 2):
            raise Wrong("all paths weigh the same in your mean: a path of length k weighs c**k.")
        unchosen = [c**k for k in range(n + 1)]
        if _close(got, sum(k * w for k, w in enumerate(unchosen)) / sum(unchosen)):
            raise Wrong("you count one path of each length: there are comb(n, k) of length k.")
        if _close(got, sum(k * math.comb(n, k) * c**k for k in range(n + 1)), 1e-9):
            raise Wrong("a mean is divided by the sum of the weights, (1 + c)**n.")
        if _close(got, sum(k * math.comb(n, k) * c**k for k in range(n + 1)) / 2**n, 1e-9):
            raise Wrong("divide by the sum of the weights, (1 + c)**n, not by the number of paths.")
        if _close(got, sum(k * math.comb(n, k) * c**k for k in range(n)) / (1 + c) ** n):
            raise Wrong("the path of length n is missing: range(n + 1) ends with n.")
        raise Wrong(f"for n = {n} and c = {c:g} the mean length is {expected:.4g}, not {got:.4g}.")
    return (
        "the mean is n c / (1 + c): with c = 0.25 the gradient of 54 blocks comes from paths of "
        "about 11."
    )


@check
def first_to_last(answer) -> str:
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    for depth, residual in ((20, False), (8, True)):
        model = cifar_resnet(depth, in_channels=1, width=4, residual=residual)
        for block in model.modules():  # gradients and statistics that a careless probe destroys
            if isinstance(block, nn.BatchNorm2d):
                nn.init.uniform_(block.running_var, 0.5, 1.5)
        model.eval()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        expected, in_eval, all_parameters = _ratios(model, x, y)
        got = _number(answer(model, x, y))
        if not _close(got, expected, 1e-3):
            for value, advice in (
                (1 / expected, "it is upside down: divide the first norm by the last."),
                (in_eval, "that is eval mode: BN must normalise with the batch, call .train()."),
                (all_parameters, "the last parameter is the linear layer's bias: take the last "
                 "one with four dimensions."),
                (expected**2, "these are squared norms."),
            ):  # fmt: skip
                if _close(got, value, 1e-3):
                    raise Wrong(advice)
            raise Wrong(
                f"the ratio is {expected:.4g} in a network whose .grad was not empty, yours is "
                f"{got:.4g}: do you add to old gradients, or use another loss?"
            )
        if any(p.grad is None or not torch.equal(p.grad, torch.ones_like(p))
               for p in model.parameters()):  # fmt: skip
            raise Wrong("the ratio is right, but the model's .grad has changed: work on a copy.")
        for key, value in model.state_dict().items():
            if not torch.equal(value, before[key]):
                raise Wrong(f"the ratio is right, but {key} has changed: work on a copy.")
        if any(module.training for module in model.modules()):
            raise Wrong("the ratio is right, but the model was in eval mode before: put it back.")
    return "far above 1 the gradient explodes towards the input, far below 1 it vanishes."


def _ratios(model: nn.Module, x, y) -> tuple[float, float, float]:
    """First over last: convolutions in train mode, the same in eval mode, all parameters."""
    found = []
    for training in (True, False):
        twin = copy.deepcopy(model).train(training)
        parameters = list(twin.parameters())
        norms = [g.norm().item() for g in
                 torch.autograd.grad(F.cross_entropy(twin(x), y), parameters)]  # fmt: skip
        kernels = [n for n, p in zip(norms, parameters) if p.dim() == 4]
        found += [kernels[0] / kernels[-1], norms[0] / norms[-1]]
    return found[0], found[2], found[1]


@check
def skipinit(answer) -> str:
    block = answer(6)
    if not isinstance(block, nn.Module):
        raise Wrong("SkipInitBlock must be a class that inherits from nn.Module.")
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    out = block(x)
    if out is None:
        raise NotImplementedError
    for name in ("conv1", "conv2", "alpha"):
        if not hasattr(block, name):
            raise Wrong(f"the block has no {name}: set self.{name} in __init__.")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules()):
        raise Wrong("there is a batch norm inside: the block has to do without.")
    if not isinstance(block.alpha, nn.Parameter):
        raise Wrong("alpha is not learnable: wrap it in nn.Parameter.")
    if block.alpha.numel() != 1:
        raise Wrong(f"alpha has {block.alpha.numel()} elements: one number for the whole branch.")
    if out.shape != x.shape:
        raise Wrong(f"the shape changes from {tuple(x.shape)} to {tuple(out.shape)}: set padding=1.")
    if block.alpha.item() != 0:
        raise Wrong(f"alpha starts at {block.alpha.item():g}: start it at 0.")
    if torch.allclose(out, x):
        raise Wrong("negative numbers pass: the last ReLU, after the addition, is missing.")
    if not torch.allclose(out, x.relu()):
        raise Wrong("with alpha at 0 the block must return relu(x): does alpha scale the shortcut?")
    for name in ("conv1", "conv2"):
        if not getattr(block, name).weight.abs().sum() > 0:
            raise Wrong(f"the weights of {name} start at 0, so alpha gets no gradient: leave them.")
    out.square().sum().backward()
    if block.alpha.grad is None or not block.alpha.grad.abs().sum() > 0:
        raise Wrong("no gradient reaches alpha: multiply the branch by self.alpha itself.")
    with torch.no_grad():
        block.alpha.fill_(0.7)
        branch = block.conv2(block.conv1(x).relu())
        for expected, advice in (
            (F.relu(x + 0.7 * branch), None),
            (F.relu(x + 0.7 * block.conv2(block.conv1(x))), "the ReLU between the convolutions "
             "is missing."),
            (F.relu(x + 0.7 * branch.relu()), "the branch ends with a ReLU of its own, so it can "
             "only add: leave it out."),
            (x + 0.7 * branch, "the last ReLU, after the addition, is missing."),
        ):  # fmt: skip
            if torch.allclose(block(x), expected, atol=1e-5):
                if advice:
                    raise Wrong(advice)
                return "one number in place of every batch norm, and each block starts as relu(x)."
    raise Wrong("with alpha = 0.7 the block is not relu(x + alpha * conv2(relu(conv1(x)))).")
