"""Small images and nets, and a way to stop a run: what the tests of training share."""

import signal

import numpy as np
import torch
from torch import nn

from d2lres import cifar_resnet
from d2lres.data import Images


def random_images(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(0, 10, (n,), generator=generator))


TRAIN, TEST = random_images(), random_images(24, seed=1)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 10))


def resnet(seed=0, depth=8, width=2, **options):
    torch.manual_seed(seed)
    return cifar_resnet(depth, in_channels=1, width=width, **options)


def with_dropout(seed=0):
    return nn.Sequential(resnet(seed), nn.Dropout(0.3), nn.Linear(10, 10))


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b):
    """Whether two models or state dicts agree to the last bit."""
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in a)


def curves(history):
    return history.loss, history.accuracy, history.test_loss, history.test_accuracy


def lengths(history):
    """How many epochs each of its lists has."""
    return [len(values) for values in (*curves(history), history.seconds)]


def interrupt(monkeypatch, at_batch):
    """Ctrl-C instead of the given training batch, counted from 1 over all epochs."""
    original, drawn = Images.batches, 0

    def batches(self, *args, **options):
        nonlocal drawn
        for batch in original(self, *args, **options):
            drawn += bool(options.get("shuffle"))
            if options.get("shuffle") and drawn == at_batch:
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(Images, "batches", batches)
