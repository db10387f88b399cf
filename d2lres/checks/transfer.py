"""Self-checks of chapter 08."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from d2lres.checks import call, check, compare, refuses, require, scramble
from d2lres.networks import cifar_resnet


@check
def for_channels(answer) -> str:
    kept = ["out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
    kept += ["padding_mode", "training"]
    convs: list = [(nn.Conv2d(3, 4, 7, 2, 3, bias=False), 1), (nn.Conv2d(1, 2, 3), 3)]
    convs += [(nn.Conv2d(3, 5, (3, 2), (1, 2), (2, 1), (2, 1), padding_mode="circular"), 4)]
    convs += [(nn.Conv2d(5, 1, 1, padding="same"), 2), (nn.Conv2d(2, 3, 3).double().eval(), 3)]
    convs += [(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), n) for n in (1, 3)]
    for conv, channels in convs:
        scramble(conv)
        new, shown = call(answer, conv, channels, draws=True), f"for_channels({conv}, {channels})"
        told = "return a new nn.Conv2d, and leave the old one as it was."
        require(isinstance(new, nn.Conv2d) and new is not conv, told)
        for name, value in dict(
            in_channels=channels, **{n: getattr(conv, n) for n in kept}
        ).items():
            got = getattr(new, name, None)
            told = f"{shown}: {name} should be {value}, yours is"
            got = got if isinstance(got, (int, tuple, str)) else type(got).__name__
            require(got == value, f"{told} {got}.")
        own, old = dict(new.named_parameters()), dict(conv.named_parameters())
        told = f"{shown}: its parameters should be {', '.join(old)}; yours are {', '.join(own)}."
        require(own.keys() == old.keys() == new.state_dict().keys(), told)
        shape = (conv.out_channels, channels, *conv.kernel_size)
        told = f"{shown}: the weight should have the shape {shape}, yours has"
        require(new.weight.shape == shape, f"{told} {tuple(new.weight.shape)}.")
        for name, parameter in own.items():
            kind = old[name].dtype
            fits = parameter.dtype == kind and parameter.requires_grad and parameter.is_leaf
            require(fits, f"{shown}: {name} should be a parameter that learns, of {kind}.")
            alone = parameter.is_contiguous() and parameter.data_ptr() != old[name].data_ptr()
            told = f"{shown}: {name} shares memory with conv, or its channels with each other"
            require(alone, f"{told}: give each number its own, by .clone() or .repeat().")
        grey = torch.randn(2, 1, 9, 8, dtype=conv.weight.dtype)
        out = call(new, grey.expand(-1, channels, -1, -1), draws=True)
        with torch.no_grad():
            wanted = conv(grey.expand(-1, conv.in_channels, -1, -1))
        told = f"{shown}: on grey images the output should be that of conv; yours differs."
        require(isinstance(out, Tensor) and out.shape == wanted.shape, told)
        bias = 0 if conv.bias is None else conv.bias[:, None, None]
        ratio = ((out - bias) / (wanted - bias)).flatten()
        if torch.allclose(ratio, ratio[:1], rtol=1e-2):
            told = told.replace("yours differs", f"yours is {ratio[0]:.4g} times as large")
        close = 1e-4 if conv.weight.dtype == torch.float32 else 1e-10
        require(torch.allclose(out, wanted, rtol=close, atol=close), told)
    return "what a layer says of a grey image depends on the sum of its weights alone."


@check
def load_body(answer) -> str:
    def net(classes: int, head: str = "fc", inner: int = 4) -> nn.Module:
        """A body with a layer that ends in .fc, the head in the middle, and a layer after it."""
        last: nn.Module = nn.Linear(4, classes)
        if "." in head:
            last = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), last)
        body = nn.Sequential(OrderedDict(fc=nn.Linear(3, inner), bn=nn.BatchNorm1d(4)))
        layers = OrderedDict(se=body, fc_old=nn.Linear(4, 4))
        layers |= {head.partition(".")[0]: last, "scale": nn.BatchNorm1d(3, affine=False)}
        return scramble(nn.Sequential(layers))

    def file(model: nn.Module, without: tuple[str, ...] = (), **more: Tensor) -> dict[str, Tensor]:
        named = {name: tensor + 1 for name, tensor in model.state_dict().items()} | more
        return {name: tensor for name, tensor in named.items() if name not in without}

    both = ["fc.bias", "fc.weight"]
    good: list = [(net(5), file(net(5)), "fc", []), (net(5), file(net(2)), "fc", both)]
    good += [(net(5), file(net(5), ("fc.bias",)), "fc", ["fc.bias"])]
    good += [(net(5), file(net(5), ("fc.bias", "fc.weight")), "fc", both)]
    good += [(net(5), file(net(5)) | {"fc.weight": torch.ones(5, 9)}, "fc", ["fc.weight"])]
    good += [(net(5), file(net(5)) | {"fc.weight": torch.ones(4, 5)}, "fc", ["fc.weight"])]
    inner = ["top.2.bias", "top.2.weight"]
    for head in ("top.2", "top"):
        good += [(net(5, "top.2"), file(net(2, "top.2")), head, inner)]
    good += [(net(5), {n: t.half() for n, t in file(net(2)).items()}, "fc", both)]
    small = scramble(cifar_resnet(8, 3, width=2))
    good += [(small, file(scramble(cifar_resnet(8, 10, width=2))), "fc", both)]
    for model, given, head, wanted in good:
        before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
        kept, modes = copy.deepcopy(given), [module.training for module in model.modules()]
        got = call(answer, model, given, head, changes=("*",), draws=True)
        what = f"lacks {', '.join(wanted)} or has them in another shape" if wanted else "fits"
        told = f"with the head {head!r} and a file that {what}, the list should be {wanted}"
        require(isinstance(got, list) and got == wanted, f"{told}; yours is {got!r}.")
        same = given.keys() == kept.keys() and all(
            torch.equal(t, kept[n]) for n, t in given.items()
        )
        require(same, "the state dict that is handed over must stay as it was.")
        same = modes == [module.training for module in model.modules()]
        require(same, "loading leaves the network in the mode, train or eval, that it had.")
        for name, tensor in model.state_dict().items():
            like = before[name] if name in wanted else given[name].to(before[name].dtype)
            what = "should stay as it was" if name in wanted else "should be loaded"
            kind = before[name].dtype
            require(tensor.dtype == kind, f"{name} should stay {kind}, and is {tensor.dtype}.")
            require(tensor.shape == like.shape and torch.allclose(tensor, like), f"{name} {what}.")
            own = name not in given or tensor.data_ptr() != given[name].data_ptr()
            require(own, f"{name} shares its memory with the file's tensor: load copies.")
        for name, parameter in model.named_parameters():
            told = f"{name} should stay the parameter that it was, and go on learning."
            require(parameter is parameters[name] and parameter.requires_grad, told)
    bad = []
    for classes in (5, 2):
        full = file(net(classes))
        for name in ("se.bn.running_mean", "se.fc.weight", "fc_old.bias", "scale.running_var"):
            bad.append(
                (file(net(classes), (name,)), f"{name} is missing, which is not in the head")
            )
        shapes = {"se.bn.bias": (7,), "se.bn.running_mean": (9,), "se.fc.weight": (3, 4)}
        for name, shape in (shapes | {"fc_old.weight": (4, 9), "fc_old.bias": (1,)}).items():
            bad.append((full | {name: torch.ones(shape)}, f"{name} has another shape"))
        for name in ("module.bn.bias", "fc.scale", "fc_new.bias"):
            bad.append((full | {name: torch.ones(4)}, f"the network has no {name}"))
        more = file(net(classes), ("fc.bias",), extra=torch.ones(1))
        bad.append((more, "the network has no extra"))
        named = {f"module.{name}": tensor for name, tensor in full.items()}
        bad.append((named, "all names have another prefix"))
    for given, why in bad:
        refuses(lambda it: answer(*it), (net(5), given, "fc"), "load_body(net, state, 'fc')", why)
    return "what was not loaded is said, and what does not fit is refused before anything changes."


class Moody(nn.Module):
    """Depends on the mode by itself, and has a parameter of its own."""

    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.scale, self.inside = nn.Parameter(torch.ones(1)), nn.Sequential(*inside)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * self.inside(x)
        return nn.functional.dropout(x, 0.5, self.training)


@check
def freeze(answer) -> str:
    def part_of(kind: str) -> nn.Module:
        norm = nn.BatchNorm2d(4)
        if kind == "deep":
            block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm, nn.Dropout(0.5))
            inner = nn.Sequential(nn.Sequential(block, nn.BatchNorm2d(4)), nn.PReLU())
            return nn.Sequential(inner, nn.ReLU(), nn.BatchNorm2d(4, affine=False))
        odd = Moody(nn.Conv2d(4, 4, 1), nn.RReLU(), nn.Dropout2d(0.5), Moody(nn.GroupNorm(2, 4)))
        alone = {"norm": norm, "odd": odd, "conv": nn.Conv2d(4, 4, 1), "drop": nn.Dropout(0.5)}
        return alone[kind]

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, how: str) -> None:
        net.train()
        if how != "no zero_grad":
            optimizer.zero_grad(set_to_none=how == "None as gradients")
        net(x).square().mean().backward()
        optimizer.step()

    for kind in ("norm", "deep", "odd", "conv", "drop"):
        part = scramble(part_of(kind))
        first, last = nn.Conv2d(2, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
        net, x = nn.Sequential(first, part, scramble(last)), torch.randn(6, 2, 7, 7)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        step(net, optimizer, x, "None as gradients")
        if kind == "deep":  # one was frozen before, with a gradient
            next(part.parameters()).requires_grad_(False)
        start = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        maps = torch.randn(3, 4, 5, 5)
        with torch.no_grad():
            wanted = copy.deepcopy(part).eval()(maps)
        with _classes_as_they_are(net):
            call(answer, part, changes=("*",))
        told = "freeze(part) itself changes no weight, no statistic and no name."
        same = part.state_dict().keys() == start.keys()
        require(same and all(torch.equal(t, start[n]) for n, t in part.state_dict().items()), told)
        for how in 2 * ("no zero_grad", "zeros as gradients", "None as gradients"):
            rest = [t.clone() for t in (first.weight, last[1].weight, last[0].running_mean)]
            call(step, net, optimizer, x, how, changes=("*",), draws=True)
            for name, tensor in part.state_dict().items():
                told = f"after freezing and a step with {how}, {name} of the part has moved."
                require(torch.equal(tensor, start[name]), told)
            told = "layers before and after the frozen part should still learn."
            now = (first.weight, last[1].weight, last[0].running_mean)
            require(not any(map(torch.equal, rest, now)), told)
        call(net.eval, changes=("*",))
        require(not (last.training or first.training), "net.eval() should still reach the others.")
        call(net.train, changes=("*",))
        require(last.training and first.training, "modules outside the part stay in train mode.")
        out, again, alone = (
            call(part, it, changes=("*",), draws=True) for it in (maps, maps, maps[:1])
        )
        told = "after net.train() the frozen part should compute as in eval mode: its output"
        require(torch.equal(out, again), f"{told} is drawn at random.")
        require(torch.allclose(out[:1], alone, atol=1e-5), f"{told} depends on the batch.")
        require(torch.allclose(out, wanted, atol=1e-5), f"{told} is not what it was in eval mode.")
    return "neither gradients nor statistics, neither weight decay nor train() reach it."


@contextmanager
def _classes_as_they_are(net: nn.Module) -> Iterator[None]:
    """Wrong if the learner's code changes a class, and with it all other modules of that class."""
    kinds = {kind for module in net.modules() for kind in type(module).mro() if kind is not object}
    before = {kind: dict(vars(kind)) for kind in kinds}
    yield
    touched = [kind for kind in kinds if dict(vars(kind)) != before[kind]]
    for kind in touched:
        for name in vars(kind).keys() - before[kind].keys():
            delattr(kind, name)
        for name in [n for n, value in before[kind].items() if vars(kind).get(n) is not value]:
            setattr(kind, name, before[kind][name])
    names = ", ".join(kind.__name__ for kind in touched)
    require(not touched, f"your code changes the class {names}, and so every module of that kind.")


@check
def occlusion(answer) -> str:
    def falls(hide=None, score=lambda out: out, change=lambda fall: fall, mode=False, keep=False):
        def measure(net, x, classes, size, value=0.0):
            net, (n, _, h, w) = net.train(mode), x.shape
            rows, out, hidden = range(n), torch.zeros(n, h // size, w // size), x
            with torch.no_grad():
                whole = score(net(x))[rows, classes]
                for i, j in torch.cartesian_prod(torch.arange(h // size), torch.arange(w // size)):
                    hidden = hidden.clone() if keep else x.clone()
                    square = hidden[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
                    (hide or (lambda square, value: square.fill_(value)))(square, value)
                    out[:, i, j] = change(whole - score(net(hidden))[rows, classes])
            return out

        return measure

    right = falls()
    mistakes = {
        "by how much it falls: the whole image's logit minus that of the covered one.": falls(
            change=lambda fall: -fall
        ),
        "where the logit rises the fall is negative.": falls(change=lambda fall: fall.relu()),
        "a logit that rises has not fallen: keep the sign.": falls(change=lambda fall: fall.abs()),
        "logits, not probabilities.": falls(score=lambda out: out.softmax(1)),
        "logits, not the logarithms of probabilities.": falls(score=lambda out: out.log_softmax(1)),
        "cover one square at a time: take a new copy of x for each.": falls(keep=True),
        "the square becomes `value`, which need not be 0.": falls(lambda s, value: s.fill_(0)),
        "all channels are covered.": falls(lambda s, value: s[:, 0].fill_(value)),
        "rows are i, columns are j: yours are exchanged.": (
            lambda net, x, c, size, value=0.0: right(net, x.mT, c, size, value).mT
        ),
        "that is the fall of the largest logit: take that of the given class.": (
            lambda net, x, c, size, value=0.0: right(net, x, net.eval()(x).argmax(1), size, value)
        ),
    }

    def small(*more: nn.Module, width: int = 4) -> nn.Sequential:
        body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *more]
        ends = [nn.Flatten(), nn.Linear(6 * 4 * width, 5)]
        return scramble(nn.Sequential(nn.Sequential(*body), *ends))

    x, classes = torch.randn(3, 2, 4, 12) + 1, torch.tensor([4, 0, 2])
    wide = small(width=12)
    told = dict(form="a tensor (N, H / size, W / size)")
    told |= dict(hint="(N, H / size, W / size), the fall of each image's logit for its class")
    mode = {"in eval mode, or BN looks at the whole batch.": falls(mode=True)}
    cases: list = [(wide, x, classes, 4), (wide, x, classes, 4, 0.7)]
    compare(answer, right, cases, mistakes | mode, **told)  # without anything that is drawn
    cases = [(small(width=12).eval(), x, classes, 2), (Moody(wide), x, classes, 2)]
    mixed = [small(Moody(nn.Dropout(0.3), nn.BatchNorm2d(6))) for _ in range(4)]
    mixed[0][0].eval()
    mixed[1].eval()[0][3].inside.train()
    mixed[2].eval()[2].train()
    mixed[3][0][3].eval().inside[1].train()
    for net, size in zip(mixed, (1, 2, 4, 2)):
        cases += [(net, torch.randn(4, 2, 4, 4), torch.tensor([1, 1, 0, 2]), size, -3.0)]
    cases += [(mixed[0], torch.randn(1, 2, 4, 4), torch.tensor([1]), 2)]
    compare(answer, right, cases, mistakes, **told)
    return "no gradient was asked: this is what the network does when the square is gone."
