"""What does not fit is said before the first step, in one sentence, and leaves no trace."""

import copy
import pickle
import random
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from training_runs import TEST, TRAIN, linear, random_images, resnet, same, weights

from d2lres import cifar_resnet
from d2lres.checkpoints import CheckpointError
from d2lres.data import DataError
from d2lres.history import History, TrainingDiverged
from d2lres.training import fit


class Answers(nn.Module):
    """A linear model whose logits go through `change`."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = linear(), change

    def forward(self, x):
        return self.change(self.net(x))


class OfTests(Answers):
    def forward(self, x):
        return self.net(x) if self.training else self.change(self.net(x))


@contextmanager
def default_dtype(kind):
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    yield
    torch.set_default_dtype(before)


def frozen():
    return linear().requires_grad_(False)


def double():
    with default_dtype(torch.float64):
        return linear()


def on_meta():
    with torch.device("meta"):
        return linear()


def norm_of_a_batch():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 10))


def other_device():
    model = linear()
    model.register_forward_pre_hook(lambda module, args: args[0].to("meta"))
    return model


RETURNS = r"the model must return logits of shape \(16, 10\), a row an image and a column a class"
MODELS = {
    "tuple": (partial(Answers, lambda out: (out, out)), f"{RETURNS}.*not of type tuple"),
    "None": (partial(Answers, lambda out: None), f"{RETURNS}.*not None"),
    "five classes": (partial(Answers, lambda out: out[:, :5]), rf"{RETURNS}.*of shape \(16, 5\)"),
    "half the images": (partial(Answers, lambda out: out[:4]), rf"{RETURNS}.*of shape \(4, 10\)"),
    "a map": (partial(Answers, lambda out: out[..., None]), rf"{RETURNS}.*\(16, 10, 1\)"),
    "whole numbers": (partial(Answers, lambda out: out.long()), f"{RETURNS}.*torch.int64"),
    "detached": (
        partial(Answers, lambda out: out.detach()),
        "the loss has no gradient for the model, which detaches",
    ),
    "no numpy": (partial(Answers, lambda out: out.numpy()), f"{RETURNS}.*of type ndarray"),
    "whole batches": (
        partial(Answers, lambda out: out[:, : 10 if len(out) < 16 else 5]),
        r"logits of shape \(16, 10\).*\(16, 5\)",
    ),
    "in tests": (partial(OfTests, lambda out: None), r"logits of shape \(2, 10\).*not None"),
    "float64": (double, "cannot take a batch .* of torch.float32 on cpu: RuntimeError: "),
    "float16": (lambda: linear().half(), "cannot take a batch .* of torch.float32 on cpu: "),
    "meta": (on_meta, "the model is on the meta device and has no weights"),
    "other device": (other_device, "cannot take a batch"),
    "frozen": (frozen, "no parameter of the model requires a gradient"),
    "no parameters": (nn.Flatten, "no parameter of the model requires a gradient"),
    "a class": (nn.Linear, "model must be a model, such as resnet18.*not the class Linear itself"),
    "three channels": (partial(cifar_resnet, 8), "expected 3 channels, got 1"),
}


@pytest.mark.parametrize("make, message", MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_trained_is_refused_before_the_first_step(tmp_path, make, message):
    model = make if make is nn.Linear else make()
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, TRAIN, TEST, epochs=2, batch_size=16, checkpoint=tmp_path / "run.pt")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_last_batch_of_one_is_too_few_for_batch_norm():
    with pytest.raises(ValueError, match=r"batch \(1, 1, 6, 6\).*too few for batch norm"):
        fit(norm_of_a_batch(), TRAIN[:33], epochs=2, batch_size=16)
    fit(norm_of_a_batch(), TRAIN[:34], epochs=2, batch_size=16)


def driven(kind):
    """The arguments optimizer and scheduler, of some kind, for a linear model."""
    model, other = linear(), linear()
    optimizer = SGD((other if kind == "other model" else model).parameters(), lr=0.1)
    scheduler = None
    if kind == "other optimizer":
        scheduler = lr_scheduler.StepLR(SGD(model.parameters(), 0.1), 2)
    if kind == "plateau":
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    if kind == "too short":
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 5)
    if kind == "lbfgs":
        optimizer = torch.optim.LBFGS(model.parameters())
    if kind in ("nan", "inf", "fast"):
        optimizer.param_groups[0]["lr"] = kind if kind == "fast" else float(kind)
    if kind == "frozen":
        model[1].weight.requires_grad_(False)
        optimizer = SGD([model[1].weight], lr=0.1)
    return model, dict(optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("other model", "the optimizer has parameters of another model"),
        ("other optimizer", "the scheduler drives another optimizer"),
        ("plateau", "LBFGS and ReduceLROnPlateau"),
        ("lbfgs", "LBFGS and ReduceLROnPlateau"),
        ("too short", "the scheduler has 5 steps left and training 6"),
        ("nan", "the optimizer's lr must be a number from 0 on, not nan"),
        ("inf", "the optimizer's lr must be a number from 0 on, not inf"),
        ("fast", "the optimizer's lr must be a number from 0 on, not 'fast'"),
        ("frozen", "the optimizer has no parameter that requires a gradient"),
    ],
)
def test_an_optimizer_or_scheduler_that_does_not_fit_is_refused(kind, message):
    model, drivers = driven(kind)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, TRAIN, epochs=2, batch_size=16, **drivers)
    assert same(before, model)


LOADER = DataLoader(TensorDataset(*TRAIN.tensors()))


@pytest.mark.parametrize(
    "name, values",
    [
        ("train", [LOADER, (1, 2), "train", None, type(TRAIN), TRAIN.images]),
        ("test", [LOADER, (1, 2), "test", type(TRAIN)]),
        ("epochs", [0, -1, 1.0, 2.5, "3", None, True, torch.tensor(3)]),
        ("batch_size", [0, 12.5, "16", None]),
        ("lr", [-0.1, float("nan"), float("inf"), "0.1", torch.tensor(0.1), True]),
        ("seed", [-1, 1.5, "0", 2**60]),
        ("label_smoothing", [-0.1, 1.1, "0.1", None, float("nan")]),
        ("augment", ["no", 0, 1]),
        ("mixed_precision", ["no", 0]),
        ("channels_last", ["no", 0]),
        ("progress", ["no", 1]),
        ("device", ["gpu", "cuda:99", 3.5, "meta", nn]),
        ("optimizer", ["adam", torch.optim.Adam, lambda parameters: None]),
        ("checkpoint", [3, b"run.pt", True, open]),
        ("after_epoch", ["print", 3]),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_its_name(name, values):
    for value in values:
        model = linear()
        before = weights(model)
        with pytest.raises(ValueError, match=f"^{name}|{name} must|meta device") as caught:
            fit(model, **(dict(train=TRAIN, epochs=2) | {name: value}))
        assert same(before, model) and "\n" not in str(caught.value)


def test_numpy_numbers_are_numbers():
    given = dict(epochs=np.int64(2), lr=np.float64(0.1), batch_size=np.int32(16), seed=np.int8(1))
    a, b = linear(), linear()
    fit(a, TRAIN, **given, augment=np.bool_(False))
    fit(b, TRAIN, epochs=2, lr=0.1, batch_size=16, seed=1)
    assert same(a, b)


def test_the_rehearsal_leaves_no_trace():
    """Of weights, statistics, gradients, modes, hooks and random numbers; then an error stops fit."""
    model = resnet()
    model.layer1.eval()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    numbers = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    before, modes = weights(model), [module.training for module in model.modules()]
    passes = []

    def stop(module, args):
        passes.append(module.training)
        if not module.training:
            raise RuntimeError("seen enough")

    handle = model.register_forward_pre_hook(stop)
    with pytest.raises(ValueError, match="RuntimeError: seen enough"):
        fit(model, TRAIN, TEST, epochs=2, batch_size=16)
    assert passes == [True, True, False]
    assert same(before, model) and modes == [module.training for module in model.modules()]
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert model.conv1.weight.grad is None
    now = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert numbers == now
    handle.remove()
    assert len(fit(model, TRAIN, TEST, epochs=2, batch_size=16).loss) == 2


class Remembers(nn.Module):
    """What it keeps is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.net, self.sizes, self.table, self.count = linear(), [], {}, torch.zeros(())

    def forward(self, x):
        self.sizes.append(len(x))
        self.table[len(x)] = True
        self.count += 1
        return self.net(x)


def test_the_rehearsal_is_not_remembered():
    model = Remembers()
    fit(model, TRAIN, epochs=2, batch_size=20)
    assert model.sizes == [20, 20, 1] * 2 and model.count == 6 and set(model.table) == {20, 1}


def test_a_model_trains_though_gradients_are_switched_off_around_it():
    model, before = linear(), linear()
    with torch.no_grad():
        fit(model, TRAIN, epochs=2, batch_size=16)
        assert not torch.is_grad_enabled()
    assert not same(model, before)


def test_a_model_that_has_diverged_is_to_be_built_anew():
    model = linear()
    model[1].bias.data[2] = float("nan")
    with pytest.raises(ValueError, match="has weights that are inf or nan before it trains: build"):
        fit(model, TRAIN, epochs=2, batch_size=16)


def test_a_lazy_layer_gets_its_shape_and_the_same_numbers_from_the_seed():
    def lazy():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    a = lazy()
    fit(a, TRAIN, epochs=2, batch_size=16)
    b = lazy()
    b(TRAIN[:2].tensors()[0])
    fit(b, TRAIN, epochs=2, batch_size=16)
    assert same(a, b)


def test_our_exceptions_survive_pickling():
    errors = CheckpointError("a"), DataError("b"), TrainingDiverged("c", History([2.0]))
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) == str(copy.copy(error))
    assert again.history == History([2.0])


def test_one_step_of_the_default_schedule_would_learn_nothing():
    with pytest.raises(ValueError, match="in one step the default schedule has a rate of almost 0"):
        fit(linear(), random_images(16), epochs=1, batch_size=16)
    model = linear()
    fit(model, TRAIN[:16], epochs=1, batch_size=16, optimizer=SGD(model.parameters(), 0.1))
