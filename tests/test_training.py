"""Training: the loop does what it says, and a run can be stopped, killed and resumed exactly."""

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from d2lres import cifar_resnet, training
from d2lres.data import Images
from d2lres.training import (
    CheckpointError,
    History,
    TrainingDiverged,
    evaluate,
    fit,
    load_checkpoint,
    progress_bar,
)


def pictures(n=40, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Images(
        torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (n,), generator=generator),
    )


TRAIN, TEST = pictures(), pictures(24, seed=1)


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
            if options.get("shuffle"):
                drawn += 1
                if drawn == at_batch:
                    raise stop
            yield batch

    monkeypatch.setattr(Images, "batches", batches)


class TurnsNaN(nn.Module):
    """A linear model whose logits become NaN from the given forward pass in train mode on."""

    def __init__(self, at):
        super().__init__()
        self.net, self.at, self.passes = linear(), at, 0

    def forward(self, x):
        self.passes += self.training
        return self.net(x) * (math.nan if self.passes >= self.at else 1.0)


# The loop.


def test_one_full_batch_gives_the_loss_and_accuracy_of_the_model_it_started_with():
    model = linear()
    x, y = TRAIN.tensors()
    logits = model(x)
    history = fit(model, TRAIN, epochs=1, batch_size=100)
    assert history.loss[0] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert history.accuracy[0] == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_label_smoothing_is_that_of_cross_entropy():
    model = linear()
    x, y = TRAIN.tensors()
    expected = F.cross_entropy(model(x), y, label_smoothing=0.2).item()
    history = fit(model, TRAIN, epochs=1, batch_size=100, label_smoothing=0.2)
    assert history.loss[0] == pytest.approx(expected, rel=1e-5)


def test_the_default_is_sgd_with_momentum_and_weight_decay_on_one_cycle():
    by_hand = linear()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = OneCycleLR(optimizer, 0.05, 5, cycle_momentum=False)
    x, y = TRAIN.tensors()
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        optimizer.step()
        scheduler.step()
    fitted = linear()
    fit(fitted, TRAIN, epochs=5, lr=0.05, batch_size=100)
    for a, b in zip(fitted.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("epochs, batch_size", [(1, 100), (2, 100), (1, 14), (3, 13), (4, 8)])
def test_the_default_schedule_ends_near_zero_whatever_its_length(monkeypatch, epochs, batch_size):
    made, rates = [], []

    class Spy(OneCycleLR):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

        def step(self, *args):
            rates.append(self.optimizer.param_groups[0]["lr"])
            super().step(*args)

    monkeypatch.setattr(training, "OneCycleLR", Spy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(linear(), TRAIN, epochs=epochs, batch_size=batch_size)
    steps = epochs * math.ceil(40 / batch_size)
    assert len(made) == 1 and len(rates) == steps + 1  # the schedule steps once when it is made
    if steps >= 10:
        assert 0.09 < max(rates) <= 0.1 + 1e-9
        assert rates[-1] < 1e-5


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    def run(seed):
        model = resnet()
        return curves(fit(model, TRAIN, TEST, epochs=2, batch_size=16, seed=seed)), weights(model)

    (first, w), (again, v), (other, u) = run(3), run(3), run(4)
    assert first == again and same(w, v)
    assert first != other and not same(w, u)


def test_the_order_of_the_images_does_not_depend_on_the_global_seed():
    first, second = linear(), linear()
    torch.manual_seed(1)
    fit(first, TRAIN, epochs=1, batch_size=16)
    torch.manual_seed(2)
    fit(second, TRAIN, epochs=1, batch_size=16)
    assert same(first, second)


def test_each_epoch_has_its_own_order():
    seen = []
    model = linear()
    model.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    fit(model, TRAIN, epochs=2, batch_size=100)
    assert not torch.equal(*seen)
    assert torch.equal(*(x.flatten().sort().values for x in seen))


def test_augment_changes_the_images_and_only_when_asked():
    plain, augmented, again = linear(), linear(), linear()
    fit(plain, TRAIN, epochs=1, batch_size=16)
    for model in (augmented, again):
        fit(model, TRAIN, epochs=1, batch_size=16, augment=True)
    assert same(augmented, again) and not same(plain, augmented)


def test_training_lowers_the_loss_of_what_can_be_learned():
    history = fit(linear(), TRAIN, epochs=20, batch_size=10)
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert history.accuracy[-1] > 0.9


@pytest.mark.parametrize("test", [None, TEST])
def test_the_history_has_one_entry_an_epoch(test):
    history = fit(resnet(), TRAIN, test, epochs=3, batch_size=16)
    assert isinstance(history, History) and history.interrupted is False
    assert len(history.loss) == len(history.accuracy) == len(history.seconds) == 3
    assert len(history.test_loss) == len(history.test_accuracy) == (3 if test else 0)
    assert all(isinstance(v, float) for v in (*history.loss, *history.accuracy, *history.seconds))
    assert all(0 <= a <= 1 for a in history.accuracy + history.test_accuracy)
    assert all(s > 0 for s in history.seconds)


def test_the_test_scores_are_those_of_evaluate():
    model = resnet()
    history = fit(model, TRAIN, TEST, epochs=2, batch_size=16)
    assert (history.test_loss[-1], history.test_accuracy[-1]) == evaluate(model, TEST)


def test_testing_does_not_change_training():
    with_test, without = resnet(), resnet()
    fit(with_test, TRAIN, TEST, epochs=2, batch_size=16)
    fit(without, TRAIN, epochs=2, batch_size=16)
    assert same(with_test, without)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_any_optimizer_is_accepted_and_keeps_its_learning_rate(make):
    model = linear()
    optimizer = make(model.parameters())
    rate = optimizer.param_groups[0]["lr"]
    history = fit(model, TRAIN, epochs=3, batch_size=16, optimizer=optimizer)
    assert history.loss[-1] < history.loss[0] and optimizer.param_groups[0]["lr"] == rate


def test_a_given_scheduler_is_stepped_after_every_batch():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    fit(model, TRAIN, epochs=2, batch_size=16, optimizer=optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.5 ** (2 * 3)


def test_parameters_without_gradient_stay_as_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 10))
    model[1].requires_grad_(False)
    before = weights(model)
    fit(model, TRAIN, epochs=1, batch_size=16)
    assert torch.equal(before["1.weight"], model[1].weight)
    assert not torch.equal(before["3.weight"], model[3].weight)


def test_a_model_may_live_on_the_device_that_is_asked_for():
    model = linear()
    fit(model, TRAIN, TEST, epochs=1, device="cpu")
    fit(model, TRAIN, TEST, epochs=1, device=torch.device("cpu"))
    assert next(model.parameters()).device.type == "cpu"
    assert training.default_device().type in ("cpu", "cuda", "mps")


def tensors():
    return TRAIN.tensors()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(train=tensors()), "must be d2lres.data.Images.*wrap your own tensors"),
        (dict(test=tensors()), "must be d2lres.data.Images"),
        (dict(epochs=0), "epochs and batch_size must be at least 1"),
        (dict(batch_size=0), "epochs and batch_size must be at least 1"),
        (dict(train=TRAIN[:1]), "train needs two images"),
        (dict(lr=0.1, optimizer=True), "lr belongs to the default optimizer"),
        (dict(scheduler=True), "a scheduler needs the optimizer it drives"),
        (dict(lr=-1.0), "learning rate"),
        (dict(label_smoothing=1.5), "label_smoothing"),
    ],
)
def test_bad_input_raises_valueerror_and_trains_nothing(arguments, message):
    model = linear()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if arguments.get("optimizer"):
        arguments = arguments | dict(optimizer=optimizer)
    if arguments.get("scheduler"):
        arguments = arguments | dict(scheduler=StepLR(optimizer, 1))
    with pytest.raises(ValueError, match=message):
        fit(model, **(dict(train=TRAIN, epochs=1) | arguments))
    assert same(before, model)


# Evaluation.


def test_evaluate_is_mean_cross_entropy_and_accuracy_in_eval_mode():
    model = resnet()
    x, y = TEST.tensors()
    model.eval()
    with torch.no_grad():
        logits = model(x)
    model.train()
    for batch_size in (5, 24, 512):
        score = evaluate(model, TEST, batch_size)
        assert score.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
        assert score.accuracy == (logits.argmax(1) == y).sum().item() / 24
    assert score == (score.loss, score.accuracy)


def test_evaluate_takes_a_model_without_parameters():
    assert evaluate(nn.Sequential(nn.AdaptiveAvgPool2d((2, 5)), nn.Flatten()), TEST).loss > 0


@pytest.mark.parametrize("stop", [None, RuntimeError, KeyboardInterrupt])
def test_evaluate_leaves_the_model_as_it_was_whatever_happens(stop):
    model = resnet()
    model(TRAIN.tensors()[0]).sum().backward()
    model.layer2.eval()
    modes = [module.training for module in model.modules()]
    grads, state = [p.grad.clone() for p in model.parameters()], weights(model)
    if stop:

        def fail(module, args):
            raise stop

        model.fc.register_forward_pre_hook(fail)
        with pytest.raises(stop):
            evaluate(model, TEST)
    else:
        evaluate(model, TEST)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2 and same(model, state)
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters()) and torch.is_grad_enabled()


# Ctrl-C.


@pytest.mark.parametrize("at_batch, epochs_done", [(1, 0), (2, 0), (4, 1), (9, 2)])
def test_ctrl_c_returns_the_history_so_far(monkeypatch, at_batch, epochs_done):
    interrupt(monkeypatch, at_batch)
    history = fit(resnet(), TRAIN, TEST, epochs=5, batch_size=16)
    assert history.interrupted is True
    assert [len(c) for c in (*curves(history), history.seconds)] == [epochs_done] * 5


def test_ctrl_c_during_the_test_keeps_the_history_even(monkeypatch):
    calls = 0
    original = evaluate

    def stops(*args):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(training, "evaluate", stops)
    history = fit(resnet(), TRAIN, TEST, epochs=5, batch_size=16)
    assert history.interrupted
    assert [len(c) for c in (*curves(history), history.seconds)] == [1] * 5


def test_a_real_sigint_ends_the_run_and_the_checkpoint_resumes_it(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_training as t, time
        model = t.resnet()
        model.register_forward_hook(lambda *args: time.sleep(0.2))
        print("started", flush=True)
        history = t.fit(model, t.TRAIN, t.TEST, epochs=12, batch_size=16, checkpoint="run.pt",
                        progress=True)
        print("interrupted", history.interrupted, len(history.loss), flush=True)
    """)
    environment = os.environ | {
        "PYTHONPATH": str(Path(training.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        checkpoint, patience = tmp_path / "run.pt", time.monotonic() + 60
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in err, err
    assert out.splitlines()[-1].startswith("interrupted True"), out
    assert os.listdir(tmp_path) == ["run.pt"]
    done = int(out.split()[-1])
    assert 1 <= done < 12

    resumed, whole = resnet(seed=5), resnet()
    options = dict(epochs=12, batch_size=16)
    history = fit(resumed, TRAIN, TEST, checkpoint=checkpoint, **options)
    assert curves(history) == curves(fit(whole, TRAIN, TEST, **options))
    assert not history.interrupted and same(resumed, whole)


# Checkpoints: exact resume.


def adam(model):
    return dict(optimizer=torch.optim.Adam(model.parameters(), lr=0.01))


def adam_with_steps(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return dict(optimizer=optimizer, scheduler=StepLR(optimizer, 2, 0.9))


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
@pytest.mark.parametrize(
    "make, options, drivers",
    [
        (resnet, {}, None),
        (resnet, dict(augment=True), None),
        (with_dropout, {}, None),
        (resnet, {}, adam),
        (with_dropout, dict(augment=True), adam_with_steps),
        (resnet, dict(label_smoothing=0.1, lr=0.3, seed=9), None),
    ],
    ids=["default", "augment", "dropout", "adam", "all", "settings"],
)
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    tmp_path, make, options, drivers, epochs_done
):
    options = dict(epochs=4, batch_size=16, test=TEST) | options

    def run(model, **more):
        extra = drivers(model) if drivers else {}
        return fit(model, TRAIN, **options, **extra, **more)

    whole, broken, resumed = make(), make(), make(seed=7)
    torch.manual_seed(1)
    expected = run(whole)
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 3 * epochs_done + 2)
        assert run(broken, checkpoint=tmp_path / "run.pt").interrupted
    assert not same(whole, broken)
    torch.manual_seed(99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = run(resumed, checkpoint=tmp_path / "run.pt")
    assert same(whole, resumed)
    assert curves(history) == curves(expected) and len(history.seconds) == 4
    assert not history.interrupted


def test_writing_a_checkpoint_changes_nothing_in_the_run(tmp_path):
    a, b = with_dropout(), with_dropout()
    for model, options in ((a, {}), (b, dict(checkpoint=str(tmp_path / "new" / "run.pt")))):
        torch.manual_seed(0)
        fit(model, TRAIN, epochs=2, batch_size=16, **options)
    assert same(a, b)
    assert os.listdir(tmp_path / "new") == ["run.pt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's checkpoint, to copy: (path, its model, its history)."""
    path = tmp_path_factory.mktemp("finished") / "run.pt"
    model = resnet()
    return path, model, fit(model, TRAIN, TEST, epochs=2, batch_size=16, checkpoint=path)


@pytest.fixture
def checkpoint(finished, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(finished[0].read_bytes())
    return path


SAME = dict(epochs=2, batch_size=16)


def test_a_finished_checkpoint_gives_its_model_and_history_without_training(finished, checkpoint):
    model = resnet(seed=8)
    assert fit(model, TRAIN, TEST, checkpoint=checkpoint, **SAME) == finished[2]
    assert same(model, finished[1]) and checkpoint.read_bytes() == finished[0].read_bytes()


def test_load_checkpoint_gives_the_weights_and_the_history(finished):
    state = load_checkpoint(finished[0])
    assert same(state["model"], finished[1]) and state["history"] == finished[2]
    assert load_checkpoint(str(finished[0]))["history"] == finished[2]


def refused(path, message, model=None, **options):
    """fit refuses `path`, saying `message`, and leaves file, folder, model and optimizer alone."""
    model = resnet(seed=8) if model is None else model
    before, content, folder = weights(model), path.read_bytes(), sorted(os.listdir(path.parent))
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(model, TRAIN, TEST, checkpoint=path, **(SAME | options))
    assert same(model, before)
    assert path.read_bytes() == content and sorted(os.listdir(path.parent)) == folder
    text = str(caught.value)
    assert str(path) in text and text.endswith((".", ").")) and "\n" not in text
    return text


@pytest.mark.parametrize(
    "other",
    [
        dict(epochs=3),
        dict(batch_size=8),
        dict(seed=1),
        dict(lr=0.2),
        dict(augment=True),
        dict(label_smoothing=0.1),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(checkpoint, other):
    ((name, value),) = other.items()
    refused(
        checkpoint, f"belongs to a run with {name}=.*, not {value}: use the same settings", **other
    )


def test_a_checkpoint_of_other_parameter_groups_is_refused(tmp_path):
    path, model, other = tmp_path / "run.pt", linear(), linear()
    fit(model, TRAIN, TEST, checkpoint=path, **SAME, **adam(model))
    groups = [dict(params=[p]) for p in other.parameters()]
    refused(
        path,
        "was made with another optimizer: use the same one",
        other,
        optimizer=torch.optim.Adam(groups, lr=0.01),
    )


def test_a_checkpoint_of_other_images_is_refused(checkpoint):
    model = resnet()
    with pytest.raises(CheckpointError, match="images=40, not 30"):
        fit(model, TRAIN[:30], TEST, checkpoint=checkpoint, **SAME)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: resnet(shortcut="B"),
            r"layer2.0.downsample.0.weight is absent there and \(4, 2, 1, 1\) here",
        ),
        (linear, "is of another architecture: .* absent"),
        (
            lambda: cifar_resnet(8, in_channels=1, width=3),
            r"is \(2, 1, 3, 3\) there and \(3, 1, 3, 3\)",
        ),
        (lambda: cifar_resnet(14, in_channels=1, width=2), "another architecture.*absent there"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(checkpoint, make, message):
    refused(checkpoint, message, make())


def test_a_checkpoint_of_the_plain_twin_is_refused(checkpoint):
    """The twins have the same tensors, so their shapes cannot tell them apart."""
    refused(checkpoint, "another architecture", resnet(residual=False))


@pytest.mark.parametrize(
    "drivers, message",
    [
        (adam, "optimizer=SGD, not Adam"),
        (adam_with_steps, "optimizer=SGD, not Adam"),
        (
            lambda model: dict(optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)),
            "scheduler=OneCycleLR, not None",
        ),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused(checkpoint, drivers, message):
    model = resnet(seed=8)
    extra = drivers(model)
    before = str(extra["optimizer"].state_dict())
    refused(checkpoint, message, model, **extra)
    assert str(extra["optimizer"].state_dict()) == before


def test_a_checkpoint_of_another_scheduler_is_refused(tmp_path):
    path, model = tmp_path / "run.pt", resnet()
    fit(model, TRAIN, TEST, checkpoint=path, **SAME, **adam_with_steps(model))
    other = resnet()
    refused(path, "scheduler=StepLR, not None", other, **adam(other))
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    refused(
        path,
        "scheduler=StepLR, not OneCycleLR",
        other,
        optimizer=optimizer,
        scheduler=OneCycleLR(optimizer, 0.01, 6),
    )


# Checkpoints: damage.


def test_a_truncated_checkpoint_is_refused_whatever_its_length(finished, tmp_path):
    content, path = finished[0].read_bytes(), tmp_path / "run.pt"
    size = len(content)
    lengths = {0, 1, 2, 3, 4, 10, 100, 1000, size // 2, size - 1, size - 2, size - 22, size - 100}
    for length in sorted(lengths | {size * k // 13 for k in range(13)}):
        path.write_bytes(content[:length])
        refused(path, "delete it to start afresh|Delete it to start afresh")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 5000,
        b"not a checkpoint",
        b"PK\3\4" + b"x" * 99,
        b"<html>not found</html>",
        bytes(range(256)) * 20,
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    refused(path, "elete it to start afresh")


def test_other_torch_files_are_refused_and_said_to_be_whole(tmp_path):
    path = tmp_path / "run.pt"
    torch.save(resnet().state_dict(), path)
    refused(path, "is no checkpoint of fit, it lacks architecture, history, model")
    for other in (torch.rand(3), [1, 2], {"history": 1}, None, "text"):
        torch.save(other, path)
        refused(path, "is no checkpoint of fit")


def test_a_checkpoint_with_a_strange_history_is_refused(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["history"]["temperature"] = 3
    torch.save(state, checkpoint)
    refused(checkpoint, "run.pt")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "hide",
    [
        lambda payload, path, state: torch.save(payload, path),
        lambda payload, path, state: torch.save(state | {"history": payload}, path),
        lambda payload, path, state: path.write_bytes(pickle.dumps(payload)),
        lambda payload, path, state: torch.save(
            payload, path, _use_new_zipfile_serialization=False
        ),
    ],
    ids=["alone", "inside", "pickle", "old format"],
)
def test_a_malicious_checkpoint_runs_no_code(checkpoint, tmp_path, hide):
    owned = tmp_path / "owned"
    state = torch.load(checkpoint, weights_only=True)
    hide(Payload(owned), checkpoint, state)
    refused(checkpoint, "holds more than tensors and plain data, so it was not opened")
    assert not owned.exists()
    torch.load(checkpoint, weights_only=False) if hide.__code__.co_names[
        0
    ] == "torch" else pickle.loads(checkpoint.read_bytes())
    assert owned.exists()  # the payload would have run


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint .*run.pt"):
        load_checkpoint(tmp_path / "run.pt")


def test_a_folder_in_place_of_the_checkpoint_is_named_and_kept(tmp_path):
    (tmp_path / "run.pt").mkdir()
    with pytest.raises(CheckpointError, match="run.pt cannot be read") as caught:
        fit(linear(), TRAIN, epochs=1, checkpoint=tmp_path / "run.pt")
    assert "elete" not in str(caught.value) and (tmp_path / "run.pt").is_dir()


def test_a_place_that_cannot_be_written_to_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = linear()
    before = weights(model)
    with pytest.raises(CheckpointError, match="could not write the checkpoint .*choose a folder"):
        fit(model, TRAIN, epochs=1, checkpoint=tmp_path / "file" / "run.pt")
    assert (tmp_path / "file").read_text() == "in the way" and os.listdir(tmp_path) == ["file"]
    assert same(model, before)


@pytest.mark.parametrize(
    "crash",
    [
        OSError(28, "No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),
        MemoryError(),
        KeyboardInterrupt(),
        pickle.PicklingError("cannot pickle"),
    ],
    ids=repr,
)
def test_a_crash_while_writing_leaves_the_old_checkpoint_whole_and_no_junk(
    tmp_path, monkeypatch, crash
):
    path, original, saved = tmp_path / "run.pt", torch.save, []

    def save(state, target):
        original(state, target)
        if not saved:
            saved.append(path)
            return
        Path(target).write_bytes(Path(target).read_bytes()[:100])
        raise crash

    monkeypatch.setattr(torch, "save", save)
    options = dict(epochs=3, batch_size=16, checkpoint=path)
    if isinstance(crash, KeyboardInterrupt):
        assert fit(resnet(), TRAIN, **options).interrupted
    else:
        expected = CheckpointError if isinstance(crash, (OSError, RuntimeError)) else type(crash)
        with pytest.raises(expected):
            fit(resnet(), TRAIN, **options)
    assert os.listdir(tmp_path) == ["run.pt"]
    assert len(load_checkpoint(path)["history"].loss) == 1
    monkeypatch.undo()
    resumed, whole = resnet(), resnet()
    fit(resumed, TRAIN, **options)
    fit(whole, TRAIN, epochs=3, batch_size=16)
    assert same(resumed, whole)


@pytest.mark.parametrize("free, reason", [(0, "the disk is full"), (2**30, "unexpected pos 24")])
def test_a_full_disk_is_called_so_and_not_what_pytorch_calls_it(
    tmp_path, monkeypatch, free, reason
):
    def save(state, target):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 24 vs 20")

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(training, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(CheckpointError, match=f"run.pt .*{reason}.*choose a folder"):
        fit(linear(), TRAIN, epochs=1, checkpoint=tmp_path / "run.pt")


def test_a_process_killed_while_writing_leaves_the_old_checkpoint_whole(tmp_path):
    """The new one is written under another name, so no moment exists with half of it in place."""
    path, seen = tmp_path / "run.pt", []
    original = torch.save

    def save(state, target):
        assert Path(target).name != path.name and Path(target).parent == path.parent
        seen.append(path.exists() and len(load_checkpoint(path)["history"].loss))
        original(state, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save)
        fit(linear(), TRAIN, epochs=3, checkpoint=path)
    assert seen == [False, 1, 2]


# Divergence.


@pytest.mark.parametrize("at, epochs_done", [(1, 0), (3, 0), (4, 1), (8, 2)])
def test_a_nan_loss_stops_with_an_explanation_and_the_history(at, epochs_done):
    with pytest.raises(TrainingDiverged, match="lower the learning rate") as caught:
        fit(TurnsNaN(at), TRAIN, TEST, epochs=4, batch_size=16)
    history = caught.value.history
    assert [len(c) for c in (*curves(history), history.seconds)] == [epochs_done] * 5
    assert f"became nan in epoch {epochs_done + 1} at learning rate" in str(caught.value)


def test_divergence_reaches_neither_the_weights_nor_the_checkpoint(tmp_path):
    model, path = TurnsNaN(4), tmp_path / "run.pt"
    with pytest.raises(TrainingDiverged):
        fit(model, TRAIN, epochs=4, batch_size=16, checkpoint=path)
    assert all(p.isfinite().all() for p in model.parameters())
    assert same(load_checkpoint(path)["model"], model)


def test_a_huge_learning_rate_diverges():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    with pytest.raises(TrainingDiverged, match="at learning rate 1e[+]38"):
        fit(model, TRAIN, epochs=5, batch_size=16, optimizer=optimizer)


# Progress.


@pytest.mark.parametrize(
    "environment, progress", [("0", None), ("0", False), ("1", False), (None, False)]
)
def test_nothing_is_printed_when_progress_is_not_wanted(monkeypatch, capfd, environment, progress):
    monkeypatch.delenv("D2LRES_PROGRESS")
    if environment is not None:
        monkeypatch.setenv("D2LRES_PROGRESS", environment)
    fit(resnet(), TRAIN, TEST, epochs=2, batch_size=16, progress=progress)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("environment, progress", [("1", None), (None, None), ("0", True)])
def test_a_bar_is_shown_when_progress_is_wanted(monkeypatch, capfd, environment, progress):
    monkeypatch.delenv("D2LRES_PROGRESS")
    if environment is not None:
        monkeypatch.setenv("D2LRES_PROGRESS", environment)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(resnet(), TRAIN, TEST, epochs=2, batch_size=16, progress=progress)
    out, err = capfd.readouterr()
    assert out == "" and "/6" in err and "batch" in err
    assert err.rstrip(" ").endswith("\r")  # it clears its line at the end


def test_a_bar_counts_whatever_is_looped_over(capfd):
    assert list(progress_bar(iter("abc"), total=3, show=True)) == ["a", "b", "c"]
    assert "/3" in capfd.readouterr().err
    assert list(progress_bar("abc")) == ["a", "b", "c"]  # D2LRES_PROGRESS=0
    assert capfd.readouterr() == ("", "")


def test_the_bar_of_a_resumed_run_counts_what_is_left(tmp_path, capfd, monkeypatch):
    options = dict(epochs=3, batch_size=16, checkpoint=tmp_path / "run.pt")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        fit(linear(), TRAIN, progress=False, **options)
    fit(linear(), TRAIN, progress=True, **options)
    assert "0/6" in capfd.readouterr().err


def test_the_bar_is_closed_after_ctrl_c_and_after_an_error(monkeypatch, capfd):
    with pytest.raises(TrainingDiverged):
        fit(TurnsNaN(2), TRAIN, epochs=1, batch_size=16, progress=True)
    assert capfd.readouterr().err.rstrip(" ").endswith("\r")
    interrupt(monkeypatch, 2)
    fit(linear(), TRAIN, epochs=1, batch_size=16, progress=True)
    assert capfd.readouterr().err.rstrip(" ").endswith("\r")
