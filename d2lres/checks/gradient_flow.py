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
    if isinstance(got, (str, bytes)):
        raise Wrong("return a number, not a string.")
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
                raise Wrong(
                    "there is a shortcut around each block, not one around the whole stack."
                )
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
        total = sum(k * math.comb(n, k) * c**k for k in range(n + 1))
        if _close(got, total, 1e-9):
            raise Wrong("a mean is divided by the sum of the weights, (1 + c)**n.")
        if _close(got, total / 2**n, 1e-9):
            raise Wrong("divide by the sum of the weights, (1 + c)**n, not by the number of paths.")
        if any(_close(got, (total - n * c**n) / ((1 + c) ** n - last)) for last in (0, c**n)):
            raise Wrong("the path of length n is missing: range(n + 1) ends with n.")
        raise Wrong(f"for n = {n} and c = {c:g} the mean length is {expected:.4g}, not {got:.4g}.")
    return (
        "the mean is n c / (1 + c): with c = 0.25 the gradient of 54 blocks comes from paths of "
        "about 11."
    )


@check
def first_to_last(answer) -> str:
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    for depth, residual, training in ((20, False, False), (8, True, True)):
        model = cifar_resnet(depth, in_channels=1, width=4, residual=residual)
        for block in model.modules():  # gradients and statistics that a careless probe destroys
            if isinstance(block, nn.BatchNorm2d):
                nn.init.uniform_(block.running_var, 0.5, 1.5)
        model.train(training).bn1.eval()  # frozen
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = _traces(model)
        as_given, *_ = _first_to_last(copy.deepcopy(model), x, y)
        expected, mistakes = _first_to_last(copy.deepcopy(model).train(), x, y)
        if not training:
            mistakes["that is eval mode: BN must use the batch, call .train()."] = as_given
        got = _number(answer(model, x, y))
        if not (_close(got, expected, 1e-3) or (training and _close(got, as_given, 1e-3))):
            for advice, value in mistakes.items():
                if _close(got, value, 1e-3):
                    raise Wrong(advice)
            raise Wrong(
                f"the ratio is {expected:.4g}, yours is {got:.4g}: is the loss the mean "
                "cross-entropy, and are these norms of the first and the last convolution?"
            )
        after = _traces(model)
        for what, was in before.items():
            if after.get(what) != was:
                raise Wrong(
                    f"the ratio is right, but {what} changed: put it back, or work on a copy."
                )
    return "far above 1 the gradient explodes towards the input, far below 1 it vanishes."


def _first_to_last(model: nn.Module, x, y) -> tuple[float, dict[str, float]]:
    """The ratio in the model's own mode, and by advice what likely mistakes give."""
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    first, *_, last = [g for g in gradients if g.dim() == 4]

    def ratio(a, b, order=2):
        return (a.norm(order) / b.norm(order)).item()

    expected, sizes = ratio(first, last), last.numel() / first.numel()
    return expected, {
        "it is upside down: divide the first norm by the last.": 1 / expected,
        "the last parameter is the linear layer's bias: take the last one with four dimensions.": ratio(
            first, gradients[-1]
        ),
        "the last with two dimensions or more is the linear layer's weight: take the last one with "
        "four.": ratio(first, gradients[-2]),
        "you add to old gradients: work on a copy, or use torch.autograd.grad.": ratio(
            first + 1, last + 1
        ),
        "these are squared norms.": expected**2,
        "these are root mean squares: a norm is not divided by the number of elements.": expected
        * sizes**0.5,
        "these are means of absolute values: take the root of the sum of squares.": ratio(
            first, last, 1
        )
        * sizes,
        "these are the largest elements: take the root of the sum of squares.": ratio(
            first, last, math.inf
        ),
    }


def _traces(model: nn.Module) -> dict[str, object]:
    """All that a probe may change, by name."""
    traces = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    for name, p in model.named_parameters():
        traces[f"{name}.grad"] = None if p.grad is None else p.grad.tolist()
        traces[f"{name}.requires_grad"] = p.requires_grad
        traces[f"the hooks of {name}"] = bool(p._backward_hooks)
    for name, module in model.named_modules():
        name = name or "the model"
        traces[f"the mode of {name}, train or eval,"] = module.training
        hooks = [value for key, value in vars(module).items() if key.endswith("_hooks")]
        traces[f"the hooks of {name}"] = any(hooks)
    return traces


@check
def skipinit(answer) -> str:
    for channels in (6, 3):
        block, x = answer(channels), torch.randn(4, channels, 7, 8)
        _check_layers(block, channels)
        if block.alpha.item() != 0:
            raise Wrong(f"alpha starts at {block.alpha.item():g}: start it at 0.")
        for alpha in (0.7, 0.0):
            nn.init.constant_(block.alpha, alpha)
            _compare(block, x)
    return "one number in place of every batch norm, and each block starts as relu(x)."


def _check_layers(block: nn.Module, channels: int) -> None:
    if not isinstance(block, nn.Module):
        raise Wrong("SkipInitBlock must be a class that inherits from nn.Module.")
    for name in ("conv1", "conv2", "alpha"):
        if not hasattr(block, name):
            raise Wrong(f"the block has no {name}: set self.{name} in __init__.")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules()):
        raise Wrong("there is a batch norm inside: the block has to do without.")
    if not isinstance(block.alpha, nn.Parameter):
        raise Wrong("alpha is not learnable: wrap it in nn.Parameter.")
    if block.alpha.numel() != 1:
        raise Wrong(f"alpha has {block.alpha.numel()} elements: one number for the whole branch.")
    for name, size in (("conv1", "in_channels"), ("conv2", "out_channels")):
        conv = getattr(block, name)
        if not isinstance(conv, nn.Conv2d):
            raise Wrong(f"{name} must be an nn.Conv2d.")
        for what, *right in (
            ("kernel_size", (3, 3)),
            ("dilation", (1, 1)),
            ("groups", 1),
            ("stride", (1, 1)),
            ("padding", (1, 1), "same"),
            (size, channels, 0),
        ):
            if getattr(conv, what) not in right:  # a lazy convolution has in_channels 0
                raise Wrong(
                    f"with {channels} channels {name} has {what}={getattr(conv, what)}: "
                    f"it must be {right[0]}."
                )
    if block.conv1.weight is block.conv2.weight:
        raise Wrong("conv1 and conv2 are one and the same: each needs weights of its own.")
    known = {id(p) for part in (block.conv1, block.conv2) for p in part.parameters()}
    for name, p in block.named_parameters():
        if p is not block.alpha and id(p) not in known:
            raise Wrong(f"{name} is learnable, too: alpha is all that the convolutions need.")


def _compare(block: nn.Module, x) -> None:
    """Output and gradients of the block against those of its formula, for the alpha it has."""
    out, gradients = _backward(block, block, x)
    for name in ("conv1", "conv2"):
        if not getattr(block, name).weight.any():
            raise Wrong(f"the weights of {name} start at 0, so alpha gets no gradient: leave them.")
    if out.shape != x.shape:
        raise Wrong(
            f"the shape changes from {tuple(x.shape)} to {tuple(out.shape)}: set padding=1."
        )
    alpha, conv1, conv2 = block.alpha, block.conv1, block.conv2
    expected, right = _backward(block, lambda x: F.relu(x + alpha * conv2(F.relu(conv1(x)))), x)
    if not torch.allclose(out, expected, atol=1e-5):
        branch = conv2(F.relu(conv1(x)))
        for advice, value in {
            "the last ReLU, after the addition, is missing.": x + alpha * branch,
            "the ReLU between the convolutions is missing.": F.relu(x + alpha * conv2(conv1(x))),
            "the branch ends with a ReLU of its own, so it can only add: leave it out.": F.relu(
                x + alpha * F.relu(branch)
            ),
            "alpha scales the shortcut: it belongs to the branch.": F.relu(alpha * x + branch),
        }.items():
            if torch.allclose(out, value, atol=1e-5):
                raise Wrong(advice)
        raise Wrong(
            f"with alpha = {alpha.item():.1f} the block is not "
            "relu(x + alpha * conv2(relu(conv1(x))))."
        )
    for name, gradient in gradients.items():
        if gradient is None or not torch.allclose(gradient, right[name], rtol=1e-3, atol=1e-3):
            raise Wrong(
                f"the output is right, but {'no' if gradient is None else 'a wrong'} gradient "
                f"reaches {name}: use x, the branch and self.alpha as they are, not detached."
            )


def _backward(block: nn.Module, forward, x) -> tuple[torch.Tensor, dict]:
    """The output, and the gradients of its squares by the block's parameters and x."""
    block.zero_grad()
    x = x.clone().requires_grad_()
    out = forward(x)
    if out.requires_grad:
        out.square().sum().backward()
    named = {name: p.grad for name, p in block.named_parameters()}
    return out, {**named, "x": x.grad}
