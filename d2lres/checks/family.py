"""Self-checks of chapter 07."""

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.mobilenetv2 import InvertedResidual

from d2lres.checks import behaves, call, check, compare, require, scramble


@check
def multiplications(answer) -> str:
    def off(change=lambda *_: 0, up=True, groups=(0, 1, 0), stride_first=False):
        def count(a, width, b, g, stride, side):
            out = -(-side // stride) if up else side // stride
            first = out if stride_first else side
            kernels = (a * width, 9 * width * width, width * b)
            parts = [k // g**power for k, power in zip(kernels, groups)]
            whole = first**2 * parts[0] + out**2 * (parts[1] + parts[2])
            return whole + change(a, width, b, g, stride, side)

        return count

    right = off()
    mistakes = {
        "only the 3x3 convolution has groups.": off(groups=(1, 1, 1)),
        "the groups of the 3x3 convolution are missing.": off(groups=(0, 0, 0)),
        "each group reads width / groups channels and makes as many: that is one division by "
        "groups, not two.": off(groups=(0, 2, 0)),
        "the stride sits in the 3x3 convolution: the first one sees all pixels.": off(
            stride_first=True
        ),
        "the 3x3 convolution has the stride, so its maps and the following are smaller.": (
            lambda a, w, b, g, stride, side: right(a, w, b, g, 1, side)
        ),
        "a side that is not a multiple of the stride is rounded up.": off(up=False),
        "count multiplications: the additions are as many again.": lambda *it: 2 * right(*it),
        "the shortcut does not count.": off(
            change=lambda a, w, b, g, s, n: (-(-n // s)) ** 2 * a * b
        ),
        "that is the number of weights: each is used once for each pixel.": (
            lambda a, w, b, g, s, n: right(a, w, b, g, 1, 1)
        ),
        "the last convolution puts out smaller maps, too.": off(
            change=lambda a, w, b, g, s, n: (n**2 - (-(-n // s)) ** 2) * w * b
        ),
    }
    cases = [(256, 64, 256, 1, 1, 56), (256, 128, 512, 32, 1, 28), (64, 128, 256, 32, 2, 56)]
    cases += [(6, 12, 24, 3, 2, 7), (5, 6, 7, 6, 3, 10), (1, 1, 1, 1, 4, 9), (8, 4, 3, 2, 5, 3)]
    for a, k, g, b, stride, side in torch.randint(1, 9, (9, 6)).tolist():
        cases.append((a, k * g, b, g, stride, side))
    hint = "the three convolutions, the 3x3 one with groups and stride"
    compare(answer, right, cases, mistakes, form="a whole number", hint=hint, draws=True)
    return "with 32 groups twice the width costs about as much as the plain bottleneck."


@check
def drop_path(answer) -> str:
    def dropped(x: Tensor, rate: float, training: bool = True) -> Tensor:
        seed = torch.initial_seed()
        out = call(answer, x, rate, training, draws=True)
        told = f"return the branch, a tensor of shape {tuple(x.shape)} and of {x.dtype}"
        fits = isinstance(out, Tensor) and out.shape == x.shape and out.dtype == x.dtype
        require(fits, f"{told}; yours is something else.")
        require(torch.initial_seed() == seed, "set no seed: draw from the numbers that are there.")
        return out

    def stays(training: bool, rate: float) -> None:
        x = torch.randn(64, 3, 2, 4, requires_grad=True)
        told = f"{'in' if training else 'outside'} training with rate {rate}"
        out = dropped(x, rate, training)
        require(torch.equal(out, x), f"{told} the branch should stay as it is.")
        require(out.requires_grad, f"{told} the gradient must flow: detach nothing.")

    stays(False, 0.5)
    for rate, n in ((0.25, 4000), (0.5, 4001), (0.9, 8000), (0.05, 4000)):
        x = torch.randn(n, 2, 3, 2)
        draws = [dropped(x, rate) / x for _ in range(2)]
        for out in draws:
            one = "one number for each image: all its pixels become 0, or all are divided by 1 - rate."
            require(torch.allclose(out, out[:, :1, :1, :1].expand_as(out), rtol=1e-3), one)
            kept = out[:, 0, 0, 0] > 0
            told = f"with rate {rate} some of {n} images should lose their branch, the others not"
            require(kept.any() and not kept.all(), f"{told}: draw one number for each image.")
            scale, wanted = out[kept].mean().item(), 1 / (1 - rate)
            told = (
                f"divide what stays by 1 - rate: with rate {rate} it should be {wanted:.3f} times"
            )
            require(abs(scale - wanted) < 1e-3 * wanted, f"{told} as large, yours is {scale:.3f}.")
            share, error = 1 - kept.float().mean().item(), 6 * (rate * (1 - rate) / n) ** 0.5
            told = f"with rate {rate} the share of images that lose it should be {rate}; yours is"
            require(abs(share - rate) < error, f"{told} {share:.2f}.")
            told = "whether one image stays must not depend on another, or on its place."
            for apart in (1, 2, n // 2, n // 2 + 1):
                pairs = (kept[apart:] & kept[:-apart]).float().mean().item()
                require(abs(pairs - (1 - rate) ** 2) < 3 * error, told)
        same = torch.equal(draws[0] == 0, draws[1] == 0)
        require(not same, "draw anew in each call: two calls dropped the same images.")
    for n in (1, 2):  # how often each of the 2 or 4 outcomes of a small batch comes
        x, found = torch.ones(n, 1, 2, 2), torch.zeros(2**n)
        for _ in range(400):
            found[((dropped(x, 0.5)[:, 0, 0, 0] > 0) * 2 ** torch.arange(n)).sum()] += 1 / 400
        told = f"each image of a batch of {n} should be drawn by itself, also in a small batch."
        require((found - 0.5**n).abs().max() < 0.13, told)
    stays(False, 0.0)
    stays(True, 0.0)
    x = torch.ones(64, 1, 1, 1, requires_grad=True)
    out = dropped(x, 0.5)
    require(out.requires_grad, "the gradient must flow through what stays: detach nothing.")
    (gradient,) = torch.autograd.grad(out.sum(), x)
    require(torch.equal(gradient, out.detach()), "the gradient should be 2 where a branch stays.")
    return "its mean stays as it was, and each image has a depth of its own."


@check
def filter_normalised(answer) -> str:
    def normalise(keep=lambda d, n: [i for i in range(n) if i != d % n], power=2):
        def change(step, weight, dim=0):
            if weight.ndim < 2:
                return torch.zeros_like(step)
            axes = keep(dim, weight.ndim)
            sizes = [t.abs().pow(power).sum(axes, keepdim=True) for t in (weight, step)]
            wanted, given = (size ** (1 / power) for size in sizes)
            return step * wanted / torch.where(given == 0, 1, given)

        return change

    right = normalise()
    others = normalise(lambda d, n: [d % n])
    whole = normalise(lambda d, n: list(range(n)))
    mistakes = {
        "rescale each filter, not the whole tensor.": whole,
        "dim may be negative, and counts from the end then.": (
            lambda s, w, dim=0: right(s, w, dim) if dim >= 0 else whole(s, w)
        ),
        "the sign of the step stays.": lambda s, w, dim=0: right(s, w, dim).abs(),
        "index dim counts the filters: the norm is taken over all others.": others,
        "filters are counted by index dim, which need not be 0.": lambda s, w, dim=0: right(s, w),
        "the norm is the root of the sum of squares.": normalise(power=1),
        "biases and BN do not move: a weight with one index gets a step of 0.": (
            lambda s, w, dim=0: s * w.norm() / s.norm() if w.ndim < 2 else right(s, w, dim)
        ),
        "a bias gets a step of 0, not its own.": (
            lambda s, w, dim=0: s if w.ndim < 2 else right(s, w, dim)
        ),
        "divide by the filter's norm in the step.": lambda s, w, dim=0: right(
            s / right(torch.ones_like(s), s.abs() + 1e-30, dim) if w.ndim > 1 else s, w, dim
        ),
        "scale the step, not the weight.": lambda s, w, dim=0: right(w, s, dim),
    }
    a, b = torch.tensor([[3.0, -4.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [6.0, 8.0]])
    zero = torch.tensor([[0.0, 0.0], [3.0, -4.0]])
    cases: list = [(a, b), (zero, b), (a, b, 1), (a, b, -1), (a[:, :, None], b[:, :, None], -3)]
    cases += [
        (torch.randn(size), torch.randn(size)) for size in ((5,), (), (4, 3, 3, 3), (1, 3, 3))
    ]
    cases += [(torch.randn(size), 9 * torch.randn(size)) for size in ((3, 7), (2, 3, 5), (1, 1))]
    cases += [(1e-7 * torch.randn(3, 5, 2, 2), torch.randn(3, 5, 2, 2), dim) for dim in (1, -1, 3)]
    cases += [(torch.randn(3, 5, 2, 2), torch.randn(3, 5, 2, 2), dim) for dim in (1, -3, 2)]
    cases += [(torch.randn(2, 3, 2, 1, 2), torch.randn(2, 3, 2, 1, 2), dim) for dim in (0, -2, 4)]
    still, empty = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    still[1], empty[2] = 0, 0
    cases += [(still, empty), (still.movedim(0, 1), empty.movedim(0, 1), 1), (a, 2 * b)]
    hint = "each filter with the norm of that filter of the weight, or 0 where the step is 0"
    compare(answer, right, cases, mistakes, form="a tensor of the step's shape", hint=hint)
    return "the twins of this chapter look alike now, whichever layers they are made of."


@check
def inverted_residual(kind) -> str:
    names = [f"{layer}{i}" for i in (1, 2, 3) for layer in ("conv", "bn")]

    def tensors(block: nn.Module) -> dict[str, Tensor]:
        every = block.state_dict(keep_vars=True)
        return {k: every[k] for name in names for k in every if k.startswith(f"{name}.")}

    def like(add=lambda x, out, same: x + out if same else out, end=None, act=(None, None)):
        def forward(block, x):
            wide, a = block.conv1.weight.shape[:2]
            b, stride = block.conv3.weight.shape[0], block.conv2.stride[0]
            with torch.device("meta"):
                paper = InvertedResidual(a, b, 1, wide // a)
            paper.conv[1][0].stride = stride, stride  # torchvision's takes 1 and 2 only
            paper.use_res_connect = False
            for layer, other in zip(paper.conv, act):
                layer[2] = other or layer[2]
            given = dict(zip(paper.state_dict(), tensors(block).values()))
            out = functional_call(paper.train(block.training), given, (x,))
            out = add(x, out, stride == 1 and a == b)
            return out if end is None else end(out)

        return forward

    mistakes = {
        "the input is not added.": like(lambda x, out, same: out),
        "ReLU6 ends at 6: both are ReLU6.": like(act=[nn.ReLU(), nn.ReLU()]),
        "ReLU6 ends at 6: the first is a ReLU6, too.": like(act=[nn.ReLU(), None]),
        "ReLU6 ends at 6: the second is a ReLU6, too.": like(act=[None, nn.ReLU()]),
        "a ReLU6 follows the first BN, too.": like(act=[nn.Identity(), None]),
        "a ReLU6 follows the depthwise convolution, too.": like(act=[None, nn.Identity()]),
    }
    for act in (nn.functional.relu6, torch.relu):
        name = act.__name__.replace("relu", "ReLU")
        end = f"no {name} follows the last BN{{}}: the narrow end is linear."
        mistakes |= {
            end.format(" or the addition"): like(end=act),
            end.format(""): like(lambda x, out, same, act=act: act(out) + (x if same else 0)),
            f"no {name} follows the addition: the narrow end is linear.": like(
                lambda x, out, same, act=act: act(x + out) if same else out
            ),
        }
    pairs = []
    sizes: list = [(4, 4, 1, 2, (3, 7, 6)), (4, 4, 2, 2, (3, 7, 6)), (4, 6, 1, 3, (2, 5, 5))]
    sizes += [(3, 5, 2, 4, (3, 8, 3)), (6, 4, 1, 2, (3, 7, 6)), (2, 2, 1, 6, (4, 9, 10))]
    sizes += [(4, 4, 3, 2, (3, 7, 6)), (1, 3, 1, 2, (3, 7, 6)), (4, 4, 2, 3, (5, 1, 1))]
    for *sized, (n, h, w) in sizes:
        (a, b, stride, factor), seed = sized, torch.initial_seed()
        block = call(kind, *sized, draws=True)
        require(torch.initial_seed() == seed, "set no seed in the block.")
        shown, wide = f"{kind.__name__}{tuple(sized)}", factor * a
        with suppress(Exception):  # lazy layers get their sizes
            call(block, torch.randn(n, a, h, w), changes=("*",), draws=True)
        missing = [name for name in names if not isinstance(getattr(block, name, None), nn.Module)]
        require(not missing, f"{shown} has no layer {', '.join(missing)}: keep the names.")
        shapes = [(wide, a, 1, 1), (wide, 1, 3, 3), (b, wide, 1, 1)]
        for i, shape in enumerate(shapes, 1):
            conv, size = getattr(block, f"conv{i}"), (wide, wide, b)[i - 1]
            require(isinstance(conv, nn.Conv2d), f"{shown}: conv{i} should be an nn.Conv2d.")
            told = f"{shown}: the weight of conv{i} should be {shape}, yours is"
            require(conv.weight.shape == shape, f"{told} {tuple(conv.weight.shape)}.")
            require(conv.bias is None, f"{shown}: conv{i} needs no bias, as BN follows it.")
            norm = getattr(block, f"bn{i}")
            told = f"{shown}: bn{i} should be a plain nn.BatchNorm2d of {size} channels."
            plain = isinstance(norm, nn.BatchNorm2d) and len(norm.state_dict()) == 5
            require(plain and norm.num_features == size, told)
        count = len(list(block.parameters()))
        told = f"{shown} has {count} weights and biases where its six layers, each another, have 9."
        require(count == 9, told)
        require(block.conv2.stride == (stride, stride), f"{shown}: conv2 has the stride.")
        scramble(block)
        with torch.no_grad():
            for norm in (block.bn1, block.bn2):
                norm.weight *= 4  # so that some numbers pass 6
        pairs.append((block, 2 * torch.randn(n, a, h, w)))
    behaves(pairs, like(), mistakes, what="that of MobileNetV2's block")
    return "equal to torchvision's, in both modes: a residual block with the bottleneck inside out."
