"""Self-checks of chapter 00."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from d2lres.checks import call, check, compare, require, scramble
from d2lres.data import MEAN, STD, Images
from d2lres.networks import cifar_resnet
from d2lres.training import evaluate


@check
def error_rate(answer) -> str:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    normed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10))
    small, cases = cifar_resnet(8, 12, in_channels=1, width=4), []
    for net, n, wrong in (
        (dense, 5, 1),
        (normed, 997, 313),
        (small, 1204, 801),
        (dense, 5, 5),
        (dense, 9, 0),
    ):
        images = torch.randint(256, (n, 1, 6, 6 + n % 2), dtype=torch.uint8)
        data = Images(images, torch.zeros(n, dtype=torch.int64), tuple("abcdefghijkl"), size=6)
        labels = scramble(net).eval()(data.tensors()[0]).argmax(1)
        labels[:wrong] = (labels[:wrong] + torch.randint(1, 10, (wrong,))) % 10  # uneven batches
        cases.append((net, replace(data, labels=labels)))

    def right(model, data) -> float:
        return 100 * (1 - evaluate(model, data).accuracy)

    def raw(model, data):
        x = (data.tensors()[0] * STD + MEAN) * 255
        return 100 * (model.eval()(x).argmax(1) != data.labels).double().mean().item()

    mistakes = {
        "that is the accuracy in percent: count the wrong ones.": lambda *it: 100 - right(*it),
        "that is a fraction: multiply by 100 to get percent.": lambda *it: right(*it) / 100,
        "that is the accuracy: count the wrong ones, in percent.": lambda *it: 1 - right(*it) / 100,
        "that is a count: divide by all images.": lambda m, d: round(right(m, d) * len(d) / 100),
        "the model gets raw pixels: `data.batches` and `data.tensors` normalise them.": raw,
    }
    watch: dict = dict(form="one number", draws=True, changes=("the mode of model*",))
    compare(answer, right, cases, mistakes, hint="wrong answers in percent of all images", **watch)
    hint = "the same in eval mode, whichever mode the model comes in"
    compare(answer, right, [(net.train(), data) for net, data in cases], hint=hint, **watch)
    return "error and accuracy add up to 100 percent, whatever the batches and the model's mode."


@check
def twins(answer) -> str:
    drawn: list[torch.Tensor] = []
    for depth, seed in (8, 3), (8, 4), (8, 2**31), (8, 13), (14, 3):
        nets = [cifar_resnet(depth, in_channels=1, residual=residual) for residual in (False, True)]
        pair, again = (call(answer, depth, seed, draws=True) for _ in range(2))
        pairs = all(isinstance(it, (tuple, list)) and len(it) == 2 for it in (pair, again))
        require(pairs, "return (plain, residual), two networks.")
        given, kinds = [str(net) for net in pair], [str(net) for net in nets]
        require(given != kinds[::-1], "the order is (plain, residual), not the other way round.")
        require(given == kinds, f"build two cifar_resnet({depth}, in_channels=1, residual=…).")
        plain, residual, again = (parameters_to_vector(it.parameters()) for it in (*pair, again[0]))
        require(
            torch.equal(plain, residual),
            "the weights differ: build both alike, each right after the seed.",
        )
        require(torch.equal(plain, again), "the same seed gives other weights: set it inside.")
        known = any(torch.equal(plain, other) for other in drawn)
        require(not known, "another seed gives the same weights: use the argument `seed`.")
        drawn.append(plain)
        places = [{t.data_ptr() for t in net.state_dict().values()} for net in pair]
        require(not places[0] & places[1], "the two share tensors: training one changes the other.")
        for net, reference in zip(pair, nets):
            fresh = all(map(torch.equal, net.buffers(), reference.buffers())) and net.training
            fresh = fresh and all(p.requires_grad for p in net.parameters())
            require(
                fresh, "leave the networks as they are built: in train mode, none frozen, not run."
            )
            reference.load_state_dict(net.state_dict())
            x = torch.randn(4, 1, 12, 12)
            same = torch.equal(call(net.train(), x), reference.train()(x))
            require(same, "yours computes something else than cifar_resnet with its weights.")
    return "the twins start from the same weights, so they differ in the additions alone."


@check
def majority_accuracy(answer) -> str:
    hand: list = [[0, 1, 1, 2], [4, 4, 4, 0], [7], [2, 1], [0, 0, 5, 0, 5], [11, 12, 12]]
    hand += [0] * 19 + [1], list(range(10)), [0, 256], [2048, 2049, 2049, 2048]
    cases = [(torch.tensor(labels),) for labels in hand]
    cases += [(torch.randint(k, (n,)).clamp(min=k // 4),) for n, k in ((9, 3), (101, 10), (64, 20))]

    def right(labels) -> float:
        return (labels.bincount().max() / len(labels)).item()

    mistakes = {
        "that is a count: divide by the number of labels.": lambda y: y.bincount().max().item(),
        "that is the most frequent class, not its share.": lambda y: y.bincount().argmax().item(),
        "that is a percentage: the accuracy is from 0 to 1.": lambda y: 100 * right(y),
        "1 / classes is right only for balanced labels.": lambda y: 1 / len(y.unique()),
        "count the largest class, not the rarest.": lambda y: y.bincount().min().item() / len(y),
    }
    compare(
        answer,
        right,
        cases,
        mistakes,
        form="one number",
        hint="the share of the most frequent class, 0 to 1",
    )
    return "always answering the largest class reaches its share: every accuracy starts from there."
