"""`fit` in two real processes: what they share, what they agree on, and what stays one."""

import math
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context

import pytest
import torch
import torch.distributed as dist
import tqdm.auto
from torch import nn
from training_runs import curves, random_images

from d2lres import cifar_resnet
from d2lres.checkpoints import CheckpointError, load_checkpoint
from d2lres.data import MEAN, STD
from d2lres.training import TrainingDiverged, evaluate, fit

# Sums in another order: after a few dozen float32 steps weights of size 1 differ by less than this.
CLOSE = dict(rtol=0, atol=1e-5)


def join(rank, file):
    os.environ["D2LRES_PROGRESS"] = "0"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(function, *arguments) calls function(rank, *arguments) in two processes, both results."""
    file = tmp_path_factory.mktemp("group") / "rendezvous"
    pools = [
        ProcessPoolExecutor(1, get_context("spawn"), join, (rank, file.as_posix()))
        for rank in range(2)
    ]

    def call(function, *arguments):
        futures = [pool.submit(function, rank, *arguments) for rank, pool in enumerate(pools)]
        return [future.result(timeout=120) for future in futures]

    yield call
    for pool in pools:
        pool.shutdown()


def numbered(n, seed=0):
    """Random images of 6x6; the first two pixels of each hold its number."""
    data = random_images(n, seed=seed)
    data.images[:, 0, 0, 0], data.images[:, 0, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    return data


def numbers(x):
    pixels = ((x[:, 0, 0, :2] * STD + MEAN) * 255).round().long()
    return (256 * pixels[:, 0] + pixels[:, 1]).tolist()


TEST = numbered(33, seed=1)


def without_bn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )


def with_bn(seed=0):
    torch.manual_seed(seed)
    return cifar_resnet(8, in_channels=1, width=4)


def with_dropout(seed=0):
    return nn.Sequential(with_bn(seed), nn.Dropout(0.3), nn.Linear(10, 10))


def stopped(model, step, action):
    """`model`, calling `action` in the given forward pass in train mode."""
    passes = 0

    def count(module, args):
        nonlocal passes
        passes += module.training
        if module.training and passes == step:
            action()

    model.register_forward_pre_hook(count)
    return model


def arrays(model):
    return {key: value.clone().numpy() for key, value in model.state_dict().items()}


def train(rank, make, n, options):
    """fit in this process: weights and buffers, curves, whether interrupted."""
    model = make(seed=rank)  # the second process starts from other weights
    history = fit(model, numbered(n), TEST, **(dict(epochs=3, lr=0.05, batch_size=16) | options))
    return arrays(model), curves(history), history.interrupted


def same(a, b):
    return list(a) == list(b) and all((a[key] == b[key]).all() for key in a)


def close(a, b):
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(torch.tensor(a[key]), torch.tensor(b[key]), **CLOSE)


# Shares


def seen(rank, n, batch_size):
    batches, model = [], without_bn()

    def note(module, args):
        if module.training:
            batches.append(numbers(args[0]))

    model.register_forward_pre_hook(note)
    fit(model, numbered(n), epochs=2, batch_size=batch_size)
    return batches


@pytest.mark.parametrize("n, batch_size", [(64, 16), (300, 64), (51, 16), (52, 7), (45, 100)])
def test_every_image_is_seen_once_an_epoch_and_never_twice(pair, n, batch_size):
    first, second = pair(seen, n, batch_size)
    whole = seen(0, n, batch_size)  # here there is one process
    steps = math.ceil(n / batch_size)
    assert len(first) == len(second) == len(whole) == 2 * steps
    for epoch in range(2):
        one, two = (
            [i for batch in batches[epoch * steps :][:steps] for i in batch]
            for batches in (first, second)
        )
        assert sorted(one + two) == list(range(n))
    for one, two, both in zip(first, second, whole, strict=True):
        assert sorted(one + two) == sorted(both)  # the batches are those of one process
        assert 0 <= len(one) - len(two) <= 1 and two


@pytest.mark.parametrize("n, batch_size, test", [(33, 16, 20), (40, 1, 20), (40, 16, 1)])
def test_a_batch_or_test_set_too_small_to_share_is_refused_by_all(pair, n, batch_size, test):
    for said in pair(refusal, n, batch_size, test):
        assert said == (
            "ValueError: 2 processes cannot share a batch or test set of 1 images: choose another "
            "batch_size, or fewer processes."
        )


def refusal(rank, n, batch_size, test):
    try:
        fit(without_bn(), numbered(n), numbered(test), epochs=1, batch_size=batch_size)
    except ValueError as error:
        return f"ValueError: {error}"


# The same result as one process


@pytest.mark.parametrize(
    "n, options",
    [
        (64, {}),
        (51, {}),  # the last batch: 2 images and 1
        (52, dict(batch_size=7)),  # every batch: 4 images and 3
        (64, dict(augment=True, label_smoothing=0.1)),
    ],
)
def test_without_batch_statistics_two_processes_give_the_weights_of_one(pair, n, options):
    (weights, history, _), _ = pair(train, without_bn, n, options)
    expected, expected_history, _ = train(0, without_bn, n, options)
    close(weights, expected)
    for ours, one in zip(history, expected_history, strict=True):
        assert ours == pytest.approx(one, abs=1e-5)


def test_with_batch_statistics_they_do_not(pair):
    (weights, _, _), _ = pair(train, with_bn, 64, {})
    expected, _, _ = train(0, with_bn, 64, {})
    assert max(abs(weights[key] - expected[key]).max() for key in weights) > 1e-2


@pytest.mark.parametrize("make", [without_bn, with_bn, with_dropout])
def test_all_end_with_the_same_weights_buffers_and_history(pair, make):
    (one, history, _), (two, history_two, _) = pair(train, make, 51, {})
    assert same(one, two)  # to the last bit, from different initial weights
    assert history == history_two
    assert [len(curve) for curve in history] == [3] * 4


def test_the_test_scores_are_those_of_all_test_images(pair):
    (weights, (_, _, loss, accuracy), _), _ = pair(train, with_bn, 64, {})
    model = with_bn()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    score = evaluate(model, TEST)
    assert (loss[-1], accuracy[-1]) == pytest.approx(tuple(score), abs=1e-6)


def masks(rank):
    model, drawn = with_dropout(), []
    torch.manual_seed(5)  # the same everywhere, as `train --seed` sets it
    model[1].register_forward_hook(lambda module, args, out: drawn.append((out == 0).numpy()))
    fit(model, numbered(32), epochs=1, batch_size=32)
    return drawn[0]


def test_each_process_draws_its_own_dropout(pair):
    one, two = pair(masks)
    assert (one != two).any() and 0.1 < one.mean() < 0.5 and 0.1 < two.mean() < 0.5


# Agreement


class NaNFor(nn.Module):
    """A linear model that answers NaN from the third training step on, for this image only."""

    def __init__(self, number):
        super().__init__()
        self.net, self.number, self.steps = without_bn(), number, 0

    def forward(self, x):
        self.steps += self.training
        spoilt = torch.tensor([self.steps > 2 and i == self.number for i in numbers(x)])
        return torch.where(spoilt[:, None], math.nan, self.net(x))


def diverge(rank):
    model = NaNFor(7)
    try:
        fit(model, numbered(40), epochs=5, batch_size=16)
    except TrainingDiverged as error:
        return str(error), model.steps, curves(error.history), arrays(model)


def test_all_say_alike_that_training_diverged_whoever_met_the_nan(pair):
    (said, steps, history, weights), two = pair(diverge)
    assert "the loss became nan in epoch" in said
    assert (said, steps, history) == two[:3] and same(weights, two[3])
    assert all((abs(value) < 100).all() for value in weights.values())


def press_ctrl_c(rank, who, file):
    def press():
        if rank == who:
            os.kill(os.getpid(), signal.SIGINT)

    steps = []
    model = stopped(with_bn(seed=rank), 6, press)
    model.register_forward_pre_hook(lambda module, args: steps.append(module.training))
    before = signal.getsignal(signal.SIGINT)
    history = fit(model, numbered(64), TEST, epochs=3, lr=0.05, batch_size=16, checkpoint=file)
    assert signal.getsignal(signal.SIGINT) == before
    return arrays(model), curves(history), history.interrupted, sum(steps)


@pytest.mark.skipif(os.name == "nt", reason="os.kill cannot send Ctrl-C on Windows")
@pytest.mark.parametrize("who", [0, 1])
def test_ctrl_c_in_one_process_stops_all_at_the_same_step(pair, tmp_path, who):
    file = tmp_path / "run.pt"
    (weights, history, interrupted, steps), two = pair(press_ctrl_c, who, file)
    assert interrupted and steps == 6 and two[1:] == (history, True, 6)
    assert same(weights, two[0]) and [len(curve) for curve in history] == [1] * 4
    assert os.listdir(tmp_path) == ["run.pt"] and len(load_checkpoint(file)["history"].loss) == 1
    resumed = pair(train, with_bn, 64, dict(checkpoint=file))
    whole = pair(train, with_bn, 64, {})
    assert same(resumed[0][0], whole[0][0]) and resumed[0][1] == whole[0][1]


# Checkpoints


def train_with_own_file(rank, make, n, folder, stop_at=None):
    """As two machines would: each process has a file of its own, and only rank 0's is there."""

    def build(seed):
        return stopped(make(seed), stop_at, lambda: os.kill(os.getpid(), signal.SIGINT))

    return train(rank, build, n, dict(checkpoint=folder / f"{rank}.pt"))


def test_only_the_first_process_writes_and_reads_and_keys_have_no_prefix(pair, tmp_path):
    (weights, history, _), _ = pair(train_with_own_file, with_bn, 64, tmp_path)
    assert os.listdir(tmp_path) == ["0.pt"]
    state = load_checkpoint(tmp_path / "0.pt")
    assert same(arrays_of(state["model"]), weights)
    assert list(weights) == list(with_bn().state_dict())
    again, two = pair(train_with_own_file, with_bn, 64, tmp_path)  # nothing is left to do
    assert same(again[0], weights) and same(two[0], weights) and again[1] == two[1] == history


def arrays_of(state):
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.skipif(os.name == "nt", reason="os.kill cannot send Ctrl-C on Windows")
def test_a_run_of_two_goes_on_exactly_with_two(pair, tmp_path):
    broken, _ = pair(train_with_own_file, with_dropout, 64, tmp_path, 6)
    assert broken[2]
    resumed = pair(train_with_own_file, with_dropout, 64, tmp_path)
    whole = pair(train, with_dropout, 64, {})
    assert same(resumed[0][0], whole[0][0]) and same(resumed[1][0], whole[0][0])
    assert resumed[0][1] == whole[0][1] == resumed[1][1]


@pytest.mark.skipif(os.name == "nt", reason="os.kill cannot send Ctrl-C on Windows")
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path, before, after):
    expected, history, _ = train(0, without_bn, 51, {})
    if before == 2:
        (_, _, interrupted), _ = pair(train_with_own_file, without_bn, 51, tmp_path, 6)
        resumed = train(0, without_bn, 51, dict(checkpoint=tmp_path / "0.pt"))
    else:
        interrupted = train_with_own_file(0, without_bn, 51, tmp_path, 6)[2]
        resumed, _ = pair(train_with_own_file, without_bn, 51, tmp_path)
    assert interrupted and len(resumed[1][0]) == 3
    close(resumed[0], expected)
    for ours, one in zip(resumed[1], history, strict=True):
        assert ours == pytest.approx(one, abs=1e-5)


def complaint(rank, file):
    model = without_bn()
    before = arrays(model)
    try:
        fit(model, numbered(40), epochs=1, checkpoint=file)
    except CheckpointError as error:
        return str(error), same(before, arrays(model))


@pytest.mark.parametrize(
    "content, message",
    [(b"junk", "is not a complete checkpoint|is damaged"), (None, "could not write")],
)
def test_a_checkpoint_that_cannot_be_used_stops_all_alike(pair, tmp_path, content, message):
    file = tmp_path / "run.pt" if content else tmp_path / "file" / "run.pt"
    (tmp_path / ("run.pt" if content else "file")).write_bytes(content or b"in the way")
    one, two = pair(complaint, file)
    assert one == two and one[1]
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(one[0])


# What is shown


def shown(rank):
    calls, bars = [], []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, **options):
            bars.append(options["disable"])
            super().__init__(**(options | dict(disable=True)))

    def called(history):
        calls.append(len(history.loss))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm.auto, "tqdm", Bar)
        fit(without_bn(), numbered(40), epochs=2, progress=True, after_epoch=called)
    return bars, calls


def test_the_first_process_alone_shows_a_bar_and_calls_after_epoch(pair):
    assert pair(shown) == [([False], [1, 2]), ([True], [])]


def fail(rank):
    def full(history):
        raise OSError("disk full")

    try:
        fit(without_bn(), numbered(40), epochs=2, after_epoch=full)
    except OSError as error:
        return str(error)


def test_an_error_in_after_epoch_reaches_all(pair):
    assert pair(fail) == ["disk full", "disk full"]
