"""Small images and nets, and ways to stop a run: what the tests of training share."""

import torch
from torch import nn

from d2lres import cifar_resnet
from d2lres.data import Images


def random_images(n=40, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(0, 10, (n,), generator=generator))


TRAIN, TEST = random_images(), random_images(24, seed=1)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 10))


def resnet(seed=0, **options):
    torch.manual_seed(seed)
    return cifar_resnet(8, in_channels=1, width=2, **options)


def with_dropout(seed=0):
    return nn.Sequential(resnet(seed), nn.Dropout(0.3), nn.Linear(10, 10))


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b):
    """Whether two models or state dicts agree to the last bit."""
    a, b = (m if isinstance(m, dict) else m.state_dict() for m in (a, b))
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def curves(history):
    return history.loss, history.accuracy, history.test_loss, history.test_accuracy


def interrupt(monkeypatch, at_batch, stop=KeyboardInterrupt):
    """Raise `stop` instead of the given training batch, counted from 1 over all epochs."""
    original, drawn = Images.batches, 0

    def batches(self, *args, **options):
        nonlocal drawn
        for batch in original(self, *args, **options):
            drawn += bool(options.get("shuffle"))
            if options.get("shuffle") and drawn == at_batch:
                raise stop
            yield batch

    monkeypatch.setattr(Images, "batches", batches)


def adam(model):
    return dict(optimizer=torch.optim.Adam(model.parameters(), lr=0.01))


def adam_with_steps(model):
    drivers = adam(model)
    return drivers | dict(
        scheduler=torch.optim.lr_scheduler.StepLR(drivers["optimizer"], 2, gamma=0.9)
    )
