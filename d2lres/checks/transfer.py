"""Self-checks of chapter 08."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from d2lres.checks import call, check, compare, refuses, require, scramble
from d2lres.networks import cifar_resnet


@check
def for_channels(answer) -> str:
    kept = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    kept += ("padding_mode", "training")
    convs: list = [(nn.Conv2d(3, 4, 7, 2, 3, bias=False), 1), (nn.Conv2d(1, 2, 3), 3)]
    convs += [(nn.Conv2d(3, 5, (3, 2), (1, 2), 2, 2, padding_mode="circular"), 4)]
    convs += [(nn.Conv2d(5, 1, 1, padding="same"), 2), (nn.Conv2d(2, 3, 3).double().eval(), 2)]
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
        shape = (conv.out_channels, channels, *conv.kernel_size)
        told = f"{shown}: the weight should have the shape {shape}, yours has"
        require(new.weight.shape == shape, f"{told} {tuple(new.weight.shape)}.")
        require((new.bias is None) == (conv.bias is None), f"{shown}: the bias is as in conv.")
        for name, parameter in new.named_parameters():
            old = conv.get_parameter(name)
            fits = parameter.dtype == old.dtype and parameter.requires_grad and parameter.is_leaf
            require(fits, f"{shown}: {name} should be a parameter that learns, of {old.dtype}.")
            told = f"{shown}: {name} shares its memory with that of conv: give it its own."
            require(parameter.data_ptr() != old.data_ptr(), told)
        grey = torch.randn(2, 1, 9, 8, dtype=conv.weight.dtype)
        given = grey.expand(-1, channels, -1, -1)
        out = call(new, given, draws=True)
        with torch.no_grad():
            wanted = conv(grey.expand(-1, conv.in_channels, -1, -1))
            bias = 0 if conv.bias is None else conv.bias[:, None, None]
            ratio = ((out - bias) / (wanted - bias)).flatten()
        told = f"{shown}: on grey images the output should be that of conv; yours"
        factor = torch.allclose(ratio, ratio[:1], rtol=1e-2)
        how = f"is {ratio[0]:.2f} times as large." if factor else "differs."
        require(torch.allclose(out, wanted, rtol=1e-3, atol=1e-4), f"{told} {how}")
    return "what a layer says of a grey image depends on the sum of its weights alone."


@check
def load_body(answer) -> str:
    def small(classes: int, nested: bool = False) -> nn.Module:
        head: nn.Module = nn.Linear(4, classes)
        layers = dict(fc_old=nn.Linear(3, 4), bn=nn.BatchNorm1d(4))
        head = nn.Sequential(nn.ReLU(), head) if nested else head
        return scramble(nn.Sequential(OrderedDict(layers, fc=head)))

    def without(state: dict, *names: str) -> dict:
        return {name: tensor for name, tensor in state.items() if name not in names}

    def resnet(classes: int) -> nn.Module:
        return scramble(cifar_resnet(8, classes, width=2))

    def state(net: nn.Module) -> dict[str, Tensor]:
        return {name: tensor + 1 for name, tensor in net.state_dict().items()}

    good = [(small(5), state(small(5)), []), (small(5), state(small(2)), ["fc.bias", "fc.weight"])]
    good += [(resnet(3), state(resnet(10)), ["fc.bias", "fc.weight"])]
    good += [(small(5), without(state(small(5)), "fc.bias"), ["fc.bias"])]
    both = ["fc.bias", "fc.weight"]
    good += [(small(5), without(state(small(5)), *both), both)]
    good += [(small(5, True), state(small(2, True)), ["fc.1.bias", "fc.1.weight"])]
    good += [(small(5), {n: t.half() for n, t in state(small(2)).items()}, both)]
    for net, given, wanted in good:
        before, parameters = copy.deepcopy(net.state_dict()), dict(net.named_parameters())
        got = call(answer, net, given, "fc", changes=("net*", "argument 1*"))
        told = f"for a file that lacks {wanted or 'nothing'}, or has it in another shape, the names"
        fits = isinstance(got, list) and got == wanted
        require(fits, f"{told} not loaded should be {wanted}; yours gives {got!r}.")
        for name, tensor in net.state_dict().items():
            like = before[name] if name in wanted else given[name].to(tensor.dtype)
            what = "of the head stays as it was" if name in wanted else "should be loaded"
            require(torch.allclose(tensor, like), f"{name} {what}.")
            own = name not in given or tensor.data_ptr() != given[name].data_ptr()
            require(own, f"{name} shares its memory with the file's tensor: load copies.")
        for name, parameter in net.named_parameters():
            told = f"{name} should stay the parameter that it was, in its type."
            same = parameter is parameters[name] and parameter.dtype == torch.float32
            require(same and parameter.requires_grad, told)
    full, bad = state(small(5)), []
    bad.append((without(full, "bn.running_mean"), "bn.running_mean is missing"))
    bad.append((without(full, "fc_old.weight"), "fc_old.weight is missing, which is not in fc"))
    bad.append((full | {"bn.bias": torch.ones(7)}, "bn.bias has another shape"))
    bad.append((full | {"fc_old.weight": torch.ones(9, 3)}, "fc_old.weight has another shape"))
    bad.append((full | {"module.bn.bias": torch.ones(4)}, "the network has no module.bn.bias"))
    bad.append((full | {"fc.scale": torch.ones(4)}, "the network has no fc.scale"))
    bad.append(({f"module.{n}": t for n, t in full.items()}, "all names have another prefix"))
    for given, why in bad:
        refuses(lambda it: answer(*it), (small(5), given, "fc"), "load_body(net, state, 'fc')", why)
    return "what was not loaded is said, and what does not fit is refused before anything changes."


@check
def freeze(answer) -> str:
    def deep() -> nn.Module:
        block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        return nn.Sequential(block, nn.ReLU(), nn.BatchNorm2d(4, affine=False))

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, how: str) -> None:
        net.train()
        if how != "no zero_grad":
            optimizer.zero_grad(set_to_none=how == "None as gradients")
        net(x).square().mean().backward()
        optimizer.step()

    for part in (nn.BatchNorm2d(4), deep(), nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Dropout(0.5)):
        first, last = nn.Conv2d(2, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
        net, x = scramble(nn.Sequential(first, part, last)), torch.randn(6, 2, 7, 7)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        step(net, optimizer, x, "None as gradients")
        start = {name: tensor.clone() for name, tensor in part.state_dict().items()}
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
        maps = torch.randn(3, 4, 5, 5)
        call(net.train, changes=("*",))
        given = (maps, maps[:1], maps)
        out, alone, again = (call(part, it, changes=("*",), draws=True) for it in given)
        told = "after net.train() the frozen part should compute as in eval mode: its output"
        require(torch.allclose(out[:1], alone, atol=1e-5), f"{told} depends on the batch.")
        require(torch.equal(out, again), f"{told} is drawn at random.")
        require(last.training and first.training, "modules outside the part stay in train mode.")
    return "neither gradients nor statistics, neither weight decay nor train() reach it."


@check
def occlusion(answer) -> str:
    def falls(hide=None, score=lambda out: out, sign=1, mode=False, keep=False, step=None):
        def measure(net, x, classes, size, value=0.0):
            net, (n, _, h, w) = net.train(mode), x.shape
            rows, out, hidden = range(n), torch.zeros(n, h // size, w // size), x
            with torch.no_grad():
                whole = score(net(x))[rows, classes]
                for i, j in torch.cartesian_prod(torch.arange(h // size), torch.arange(w // size)):
                    hidden = hidden.clone() if keep else x.clone()
                    square = hidden[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
                    (hide or (lambda square, value: square.fill_(value)))(square, value)
                    out[:, i, j] = sign * (whole - score(net(hidden))[rows, classes])
            return out

        return measure

    right = falls()
    mistakes = {
        "by how much it falls: the whole image's logit minus that of the covered one.": falls(
            sign=-1
        ),
        "logits, not probabilities.": falls(score=lambda out: out.softmax(1)),
        "logits, not their logarithms of probabilities.": falls(
            score=lambda out: out.log_softmax(1)
        ),
        "in eval mode, or BN looks at the whole batch.": falls(mode=True),
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
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3)]
    net = scramble(nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * 8 * 12, 5)))
    x, classes = torch.randn(3, 2, 8, 12) + 1, torch.tensor([4, 0, 2])
    cases: list = [(net.train(), x, classes, 4), (net, x, classes, 4, 0.7)]
    half = scramble(
        nn.Sequential(nn.Sequential(*copy.deepcopy(body)).eval(), nn.Flatten(), nn.Linear(96, 3))
    )
    cases += [(half, torch.randn(1, 2, 4, 4), torch.tensor([1]), size) for size in (1, 2, 4)]
    cases += [(half, torch.randn(4, 2, 4, 4), torch.tensor([1, 1, 0, 2]), 2, -3.0)]
    hint = "(N, H / size, W / size), the fall of each image's logit for its class"
    compare(answer, right, cases, mistakes, form="a tensor (N, H / size, W / size)", hint=hint)
    return "no gradient was asked: this is what the network does when the square is gone."
