"""The ladder of chapter 06: each field of a recipe does what it says, and nothing else."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from d2lres import speed
from d2lres.data import Images, fashion_mnist
from d2lres.speed import LADDER, Recipe, augmented, network, optimizers, rung, trained

TRAIN = fashion_mnist()[0][:64]
TINY = Recipe(width=4, epochs=2, batch_size=16)
NUMBERED = Images(
    torch.arange(64, dtype=torch.uint8).repeat(5, 1).view(5, 1, 8, 8), torch.arange(5)
)
no_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="it came with PyTorch 2.9")


def weights(net):
    return list(net.state_dict().values())


def same(a, b):
    return all(map(torch.equal, weights(a), weights(b)))


def test_a_seed_repeats_itself_and_another_does_not():
    assert same(trained(TINY, TRAIN, 1), trained(TINY, TRAIN, 1))
    assert not same(trained(TINY, TRAIN, 1), trained(TINY, TRAIN, 2))


CHANGES = dict(
    width=8,
    blocks=(1, 1),
    squeeze_excite=True,
    whiten=True,
    channels_last=True,
    bfloat16=True,
    epochs=3,
    batch_size=32,
    optimizer="AdamW",
    lr=0.01,
    weight_decay=0.5,
    cycle=True,
    label_smoothing=0.1,
    bn_momentum=0.5,
    averaging=0.9,
    flip="random",
    shift=1,
    small=0.5,
)


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_what_is_learned(name):
    before = replace(TINY, weight_decay=0.01) if name == "optimizer" else TINY
    a, b = (trained(r, TRAIN) for r in (before, replace(before, **{name: CHANGES[name]})))
    (x, y) = (net.eval()(TRAIN.tensors()[0]) for net in (a, b))
    assert torch.allclose(x, y, atol=1e-3) == (name == "channels_last")  # rounding alone


def test_a_test_image_and_its_mirror_image_answer_together():
    assert {field.name for field in fields(Recipe)} == {*CHANGES, "mirrored"}
    net = trained(replace(TINY, epochs=4, lr=0.01), TRAIN)
    x, y = TRAIN.tensors()
    both = (net.eval()(x) + net(x.flip(3))).argmax(1)
    assert speed.accuracy(TINY, net, TRAIN) == (net(x).argmax(1) == y).float().mean().item()
    mirrored = speed.accuracy(replace(TINY, mirrored=True), net, TRAIN)
    assert mirrored == (both == y).float().mean().item() and not torch.equal(both, net(x).argmax(1))


def test_whitened_patches_have_variance_one_and_no_correlation():
    x, _ = TRAIN.tensors()
    out = nn.functional.conv2d(x, speed.whitening(TRAIN, 6)).transpose(0, 1).flatten(1)
    assert torch.allclose(out[:6].cov(), torch.eye(6), atol=0.02)
    assert torch.allclose(out[:6], -out[6:])
    recipe = replace(TINY, width=8, whiten=True)
    start, end = network(recipe, TRAIN), trained(recipe, TRAIN)
    assert torch.equal(start.conv1.weight, end.conv1.weight)
    assert torch.equal(start.conv1.weight, speed.whitening(TRAIN, 4))
    wide = network(replace(recipe, width=64), TRAIN).conv1.weight  # a patch has 25 components
    assert torch.equal(wide[:50], speed.whitening(TRAIN, 25)) and wide[50:].abs().min() > 0


def test_squeeze_excite_weighs_channels_by_their_means():
    weigh = speed.SqueezeExcite(8)
    x = torch.randn(2, 8, 3, 3)
    factor = weigh(x) / x
    assert torch.allclose(factor, factor[:, :, :1, :1].expand_as(x)) and factor.min() > 0
    net = network(replace(TINY, squeeze_excite=True), TRAIN)
    assert sum(isinstance(m, speed.SqueezeExcite) for m in net.modules()) == 3


@no_muon
@pytest.mark.parametrize("channels_last", [True, False])
def test_muon_moves_the_kernels_and_sgd_the_rest(channels_last):
    recipe = replace(TINY, optimizer="Muon", lr=0.05, channels_last=channels_last)
    net = network(recipe, TRAIN)
    before = {name: p.clone() for name, p in net.named_parameters()}
    muon, sgd = optimizers(recipe, net)
    nn.functional.cross_entropy(
        speed.logits(recipe, net, TRAIN.tensors()[0]), TRAIN.labels
    ).backward()
    for p in net.parameters():
        p.grad = p.grad if p.ndim == 4 else None
    muon.step()
    for name, p in net.named_parameters():
        moved = (p - before[name]).detach()
        assert (p.ndim == 4) == bool(moved.abs().max() > 0), name
        if p.ndim == 4 and p.shape[0] == p.shape[1]:  # orthogonal: no direction moves much more
            values = torch.linalg.svdvals(moved.flatten(1))
            assert values.max() < 2.5 * values.min() and values.max() < 1.3 * 0.05
    assert {p.ndim for group in sgd.param_groups for p in group["params"]} == {1, 2}


@no_muon
def test_muon_does_not_depend_on_the_order_of_memory():
    runs = [
        trained(replace(TINY, optimizer="Muon", lr=0.05, epochs=1, channels_last=last), TRAIN[:16])
        for last in (True, False)
    ]
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in zip(*map(weights, runs)))


def test_an_optimizer_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(
        ValueError, match="Adam, AdamW, SGD, or from PyTorch 2.9 on Muon, not Adam2"
    ):
        trained(replace(TINY, optimizer="Adam2"), TRAIN)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match="from PyTorch 2.9 on Muon, not Muon"):
        trained(replace(TINY, optimizer="Muon"), TRAIN)


def test_alternating_flips_turn_every_image_in_every_other_epoch():
    recipe = replace(TINY, flip="alternating")
    first, second, third = (augmented(recipe, NUMBERED, epoch, 0).images for epoch in range(3))
    assert torch.equal(first, third) and torch.equal(second, first.flip(3))
    assert torch.equal(augmented(TINY, NUMBERED, 1, 0).images, NUMBERED.images)
    many = Images(NUMBERED.images[:1].repeat(400, 1, 1, 1), torch.zeros(400, dtype=torch.int64))
    for flip in ("alternating", "random"):
        x = augmented(replace(TINY, flip=flip), many, 1, 0).images
        assert 150 < (x == many.images).flatten(1).all(1).sum() < 250
    again = augmented(replace(TINY, flip="random"), many, 2, 0).images
    assert not torch.equal(x, again)


def test_a_shift_moves_an_image_by_a_pixel_at_most_in_every_direction():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[..., 2, 2] = 9
    many = Images(image.repeat(300, 1, 1, 1), torch.zeros(300, dtype=torch.int64))
    where = augmented(replace(TINY, shift=1), many, 0, 0).images.nonzero()
    assert len(where) == 300 and torch.equal(where[:, 0], torch.arange(300))
    places = {tuple(place) for place in where[:, 2:].tolist()}
    assert places == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}


def test_small_images_come_first_and_the_rate_rises_and_falls(monkeypatch):
    sizes, rates = [], []

    def look(recipe, net, x):
        sizes.append(x.shape[-1])
        return real(recipe, net, x)

    def step(self, *args):
        rates.append(self.param_groups[0]["lr"])

    real = speed.logits
    monkeypatch.setattr(speed, "logits", look)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    trained(replace(TINY, epochs=5, batch_size=32, small=0.4, cycle=True, lr=1.0), TRAIN)
    assert sizes == [20] * 4 + [28] * 6
    assert rates == pytest.approx([0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_averaged_weights_lie_between_those_of_the_second_half(monkeypatch):
    seen = []

    def step(self, *args):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.fill_(float(len(seen)))
        seen.append(None)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    net = trained(replace(TINY, epochs=1, averaging=0.5), TRAIN)  # steps 0 to 3
    assert torch.allclose(net.fc.weight, torch.tensor(2.5))


def test_a_rung_is_one_change_to_what_stayed_below_it():
    names = list(LADDER)
    for before, name in zip(names, names[1:]):
        change, _ = LADDER[name]
        below = rung(before) if LADDER[before][1] else None
        if below is not None:
            assert rung(name) == replace(below, **change)
    assert rung(names[0]) == Recipe() and rung("alternating flips, mirrored tests").shift == 0
    assert rung("Muon").whiten and not rung("AdamW").whiten
    with pytest.raises(ValueError, match="no rung 'a ladder': choose one of images one by one, "):
        rung("a ladder")


def test_another_feed_is_used():
    fed = []

    def feed(recipe, train, epoch, seed):
        fed.append((epoch, seed))
        return train.batches(recipe.batch_size)

    trained(TINY, TRAIN, 3, feed)
    assert fed == [(0, 3), (1, 3)]
