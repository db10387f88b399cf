"""Training: the loop does what it says, and ends as it should when it is stopped."""

import math
import signal
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from training_runs import TEST, TRAIN, curves, interrupt, lengths, linear, resnet, same, weights

from d2lres import rehearsal, training
from d2lres.checkpoints import load_checkpoint
from d2lres.training import History, TrainingDiverged, evaluate, fit, progress_bar


class TurnsNaN(nn.Module):
    """A linear model whose logits become NaN from the given training step on."""

    def __init__(self, at):
        super().__init__()
        self.net, self.at, self.passes = linear(), at, 0

    def forward(self, x):
        self.passes += self.training  # undone after the rehearsal, as whatever that changes
        return self.net(x) * (math.nan if self.passes >= self.at else 1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_full_batch_gives_the_scores_of_the_model_it_started_with(smoothing):
    model, (x, y) = linear(), TRAIN.tensors()
    logits = model(x)
    expected = F.cross_entropy(logits, y, label_smoothing=smoothing).item()
    history = fit(model, TRAIN, epochs=2, batch_size=100, label_smoothing=smoothing)
    assert history.loss[0] == pytest.approx(expected, rel=1e-5)
    assert history.accuracy[0] == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_the_default_is_sgd_with_momentum_and_weight_decay_on_one_cycle():
    by_hand, fitted, (x, y) = linear(), linear(), TRAIN.tensors()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = OneCycleLR(optimizer, 0.05, 5, cycle_momentum=False)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        optimizer.step()
        scheduler.step()
    fit(fitted, TRAIN, epochs=5, lr=0.05, batch_size=100)
    for a, b in zip(fitted.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("epochs, batch_size", [(2, 100), (1, 14), (3, 13), (4, 8)])
def test_the_default_schedule_ends_near_zero_whatever_its_length(monkeypatch, epochs, batch_size):
    rates = []

    class Spy(OneCycleLR):
        def step(self, *args):
            rates.append(self.optimizer.param_groups[0]["lr"])
            super().step(*args)

    monkeypatch.setattr(rehearsal, "OneCycleLR", Spy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(linear(), TRAIN, epochs=epochs, batch_size=batch_size)
    steps = epochs * math.ceil(40 / batch_size)
    assert len(rates) == steps + 1  # one schedule, which steps once when it is made
    if steps >= 10:
        assert 0.09 < max(rates) <= 0.1 + 1e-9 and rates[-1] < 1e-5


def test_a_seed_gives_the_same_run_whatever_the_global_seed_and_another_seed_another():
    runs = []
    for seed, global_seed in ((3, 1), (3, 2), (4, 2)):
        model = resnet()
        torch.manual_seed(global_seed)
        runs.append((curves(fit(model, TRAIN, TEST, epochs=2, batch_size=16, seed=seed)), model))
    (first, w), (again, v), (other, u) = runs
    assert first == again and same(w, v)
    assert first != other and not same(w, u)


def test_augment_changes_the_images_and_only_when_asked():
    plain, augmented, again = models = [linear() for _ in range(3)]
    for model in models:
        fit(model, TRAIN, epochs=1, batch_size=16, augment=model is not plain)
    assert same(augmented, again) and not same(plain, augmented)


def test_training_lowers_the_loss_of_what_can_be_learned():
    history = fit(linear(), TRAIN, epochs=20, batch_size=10)
    assert history.loss[-1] < 0.5 * history.loss[0] and history.accuracy[-1] > 0.9


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_history_has_one_entry_an_epoch_and_the_scores_of_evaluate(device):
    model, without = resnet(), resnet()
    history = fit(model, TRAIN, TEST, epochs=3, batch_size=16, device=device)
    assert isinstance(history, History) and history.interrupted is False
    assert lengths(history) == [3] * 5
    assert all(isinstance(v, float) for v in (*history.loss, *history.accuracy, *history.seconds))
    assert all(0 <= a <= 1 for a in history.accuracy + history.test_accuracy)
    assert all(s > 0 for s in history.seconds)
    assert (history.test_loss[-1], history.test_accuracy[-1]) == evaluate(model, TEST)
    assert lengths(fit(without, TRAIN, epochs=3, batch_size=16)) == [3, 3, 0, 0, 3]
    assert same(model, without)  # testing changes nothing in training
    assert next(model.parameters()).device.type == "cpu"
    assert training.default_device().type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_any_optimizer_is_accepted_with_a_scheduler_stepped_after_every_batch_or_none(kind):
    for gamma, left in ((None, 0.01), (0.5, 0.01 * 0.5**6)):
        model = linear()
        optimizer = kind(model.parameters(), lr=0.01)
        scheduler = gamma and StepLR(optimizer, 1, gamma)
        options = dict(optimizer=optimizer, scheduler=scheduler)
        history = fit(model, TRAIN, epochs=2, batch_size=16, **options)
        assert history.loss[-1] < history.loss[0]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(left, rel=1e-12)


def test_parameters_without_gradient_stay_as_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 10))
    model[1].requires_grad_(False)
    before = weights(model)
    fit(model, TRAIN, epochs=1, batch_size=16)
    assert torch.equal(before["1.weight"], model[1].weight)
    assert not torch.equal(before["3.weight"], model[3].weight)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(train=TRAIN.tensors()),
            "must be d2lres.data.Images.*wraps your own, not of type tuple",
        ),
        (dict(test=TRAIN.tensors()), "must be d2lres.data.Images"),
        (dict(epochs=0), "epochs must be a whole number from 1 on, not 0"),
        (dict(batch_size=0), "batch_size must be a whole number from 1 on, not 0"),
        (dict(train=TRAIN[:1]), "train needs at least two images"),
        (dict(lr=0.1, optimizer=True), "lr is the default optimizer's: set it in yours"),
        (dict(scheduler=True), "a scheduler needs the optimizer it drives"),
        (dict(lr=-1.0), r"lr must be a number from 0 to 3e\+38, not -1.0"),
        (dict(label_smoothing=1.5), "label_smoothing"),
    ],
)
def test_bad_input_raises_valueerror_and_trains_nothing(arguments, message):
    model = linear()
    before, optimizer = weights(model), torch.optim.SGD(model.parameters(), lr=0.1)
    drivers = dict(optimizer=optimizer, scheduler=StepLR(optimizer, 1))
    given = {key: drivers.get(key, value) for key, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        fit(model, **(dict(train=TRAIN, epochs=1) | given))
    assert same(before, model)


def test_bfloat16_is_used_when_asked_for_and_not_in_tests():
    losses = []
    for mixed, kind in ((True, torch.bfloat16), (False, torch.float32), (None, torch.float32)):
        model, seen = resnet(), set()
        model.layer1[0].conv1.register_forward_hook(
            lambda m, _, out, seen=seen: seen.add((m.training, out.dtype))
        )
        options = dict(epochs=2, batch_size=20, device="cpu", mixed_precision=mixed)
        losses.append(fit(model, TRAIN, TRAIN, **options).loss)
        assert all(value.dtype == torch.float32 for value in model.parameters())
        assert seen == {(True, kind), (False, torch.float32)}
    loss, exact, default = losses
    assert loss != exact and loss == pytest.approx(exact, rel=0.05)
    assert default == exact


def test_channels_last_weights_stay_so():
    model = resnet(width=4).to(memory_format=torch.channels_last)
    fit(model, TRAIN, epochs=1, batch_size=20)
    weight = model.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_evaluate_is_mean_cross_entropy_and_accuracy_in_eval_mode():
    model, (x, y) = resnet(), TEST.tensors()
    with torch.no_grad():
        logits = model.eval()(x)
    model.train()
    for batch_size in (5, 24, 512):
        score = evaluate(model, TEST, batch_size)
        assert score.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
        assert score.accuracy == (logits.argmax(1) == y).sum().item() / 24
    assert score == (score.loss, score.accuracy)
    assert evaluate(nn.Sequential(nn.AdaptiveAvgPool2d((2, 5)), nn.Flatten()), TEST).loss > 0


@pytest.mark.parametrize("stop", [None, RuntimeError, KeyboardInterrupt])
def test_evaluate_leaves_the_model_as_it_was_whatever_happens(stop):
    model = resnet()
    model(TRAIN.tensors()[0]).sum().backward()
    model.layer2.eval()
    modes = [module.training for module in model.modules()]
    grads, state = [p.grad.clone() for p in model.parameters()], weights(model)

    def fail(module, args):
        raise stop

    if stop:
        model.fc.register_forward_pre_hook(fail)
    raised = {None: None, RuntimeError: ValueError}.get(stop, stop)
    with pytest.raises(raised) if raised else nullcontext():
        evaluate(model, TEST)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2 and same(model, state)
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters()) and torch.is_grad_enabled()


# Three forward passes of the rehearsal, then four an epoch, the last of them in the test.
@pytest.mark.parametrize("at, epochs_done", [(1, 0), (4, 0), (7, 0), (8, 1), (11, 1), (14, 2)])
def test_ctrl_c_returns_the_history_so_far_in_which_all_lists_are_of_one_length(at, epochs_done):
    model, passes = resnet(), []

    def press(*args):
        passes.append(1)
        if len(passes) == at:
            signal.raise_signal(signal.SIGINT)

    model.layer2.register_forward_hook(press)
    history = fit(model, TRAIN, TEST, epochs=5, batch_size=16)
    assert history.interrupted is True and lengths(history) == [epochs_done] * 5


@pytest.mark.parametrize("at, epochs_done", [(1, 0), (3, 0), (4, 1), (8, 2)])
def test_a_nan_loss_stops_with_an_explanation_and_spoils_nothing(tmp_path, at, epochs_done):
    model, path = TurnsNaN(at), tmp_path / "run.pt"
    with pytest.raises(TrainingDiverged, match="lower the learning rate") as caught:
        fit(model, TRAIN, TEST, epochs=4, batch_size=16, checkpoint=path)
    assert lengths(caught.value.history) == [epochs_done] * 5
    assert f"became nan in epoch {epochs_done + 1} at learning rate" in str(caught.value)
    assert all(p.isfinite().all() for p in model.parameters())
    assert len(load_checkpoint(path)["history"].loss) == epochs_done
    assert all(value.isfinite().all() for value in load_checkpoint(path)["model"].values())


def test_a_huge_learning_rate_diverges():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    with pytest.raises(TrainingDiverged, match=r"at learning rate 1e\+38"):
        fit(model, TRAIN, epochs=5, batch_size=16, optimizer=optimizer)


@pytest.mark.parametrize(
    "environment, progress, shown",
    [
        *[("0", None, False), ("0", False, False), ("1", False, False), (None, False, False)],
        *[("1", None, True), (None, None, True), ("0", True, True)],
    ],
)
def test_a_bar_is_shown_when_it_is_wanted(monkeypatch, capfd, environment, progress, shown):
    monkeypatch.delenv("D2LRES_PROGRESS")
    if environment is not None:
        monkeypatch.setenv("D2LRES_PROGRESS", environment)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(linear(), TRAIN, TEST, epochs=2, batch_size=16, progress=progress)
    out, err = capfd.readouterr()
    assert out == "" and bool(err) == shown
    if shown:
        assert "/6" in err and "batch" in err and err.rstrip(" ").endswith("\r")


def test_a_bar_counts_whatever_is_looped_over(capfd):
    assert list(progress_bar(iter("abc"), total=3, show=True)) == ["a", "b", "c"]
    assert "/3" in capfd.readouterr().err
    assert list(progress_bar("abc")) == ["a", "b", "c"]  # D2LRES_PROGRESS=0
    assert capfd.readouterr() == ("", "")


def test_the_bar_is_closed_after_ctrl_c_and_an_error_and_counts_what_a_resumed_run_has_left(
    tmp_path, capfd
):
    with pytest.raises(TrainingDiverged):
        fit(TurnsNaN(2), TRAIN, epochs=1, batch_size=16, progress=True)
    assert capfd.readouterr().err.rstrip(" ").endswith("\r")
    options = dict(epochs=3, batch_size=16, checkpoint=tmp_path / "run.pt", progress=True)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        fit(linear(), TRAIN, **options)
    assert capfd.readouterr().err.rstrip(" ").endswith("\r")
    fit(linear(), TRAIN, **options)
    assert "0/6" in capfd.readouterr().err
