"""`fit` in two real processes: what they share, what they agree on, and what stays one."""

import math
import os
import re
import signal
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from itertools import count
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import tqdm.auto
from torch import nn
from training_runs import curves, random_images, resnet, same, with_dropout

from d2lres import arithmetic
from d2lres.checkpoints import CheckpointError, load_checkpoint
from d2lres.data import MEAN, STD
from d2lres.training import TrainingDiverged, evaluate, fit

no_windows = pytest.mark.skipif(os.name == "nt", reason="os.kill cannot send Ctrl-C on Windows")


def join(rank, file):
    torch.set_num_threads(1)
    options = dict(rank=rank, world_size=2, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", init_method=f"file://{file}", **options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(function, **arguments) calls function(rank, **arguments) in two processes: the results."""
    file = (tmp_path_factory.mktemp("group") / "rendezvous").as_posix()
    context = get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        context.set_forkserver_preload(["d2lres.training"])  # imported once, for both
    pools = [ProcessPoolExecutor(1, context, join, (rank, file)) for rank in range(2)]

    def call(function, **arguments):
        futures = [pool.submit(function, rank, **arguments) for rank, pool in enumerate(pools)]
        return [future.result(timeout=120) for future in futures]

    yield call
    for pool in pools:
        pool.shutdown()


def numbered(n, seed=0):
    """Random images of 6x6; the first two pixels of each hold its number."""
    data = random_images(n, seed)
    data.images[:, 0, 0, 0], data.images[:, 0, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    return data


def numbers(x):
    pixels = ((x[:, 0, 0, :2] * STD + MEAN) * 255).round().long()
    return (256 * pixels[:, 0] + pixels[:, 1]).tolist()


def without_bn(seed=0):
    torch.manual_seed(seed)
    norm = nn.GroupNorm(2, 4)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


def train(rank, make=resnet, images=64, test=33, ctrl_c=None, second=(), **options):
    """fit in this process: what it saw, learned and raised. `second`: what only the second is given.

    ctrl_c: the rank and step at which it is pressed. `{rank}` in the name of a checkpoint gives each
    process a file of its own, as on two machines.
    """
    model, seen = make(seed=rank), []  # the second process starts from other weights

    size = options.get("batch_size", 16)
    passes = count(0 if images % size and images > size else 1)  # two of the rehearsal, or one

    def look(module, args):
        if module.training and next(passes) > 1:
            seen.append(numbers(args[0]))
            if (rank, len(seen)) == ctrl_c:
                os.kill(os.getpid(), signal.SIGINT)

    model.register_forward_pre_hook(look)
    options = dict(epochs=3, lr=0.05, batch_size=16) | options
    options |= dict(train=numbered(images), test=test and numbered(test, seed=1))
    options |= second if rank == 1 else {}
    if "checkpoint" in options:
        options["checkpoint"] = str(options["checkpoint"]).format(rank=rank)
    before, handler, said = arrays(model), signal.getsignal(signal.SIGINT), None
    try:
        history = fit(model, **options)
    except (ValueError, OSError, CheckpointError, TrainingDiverged) as error:
        history, said = getattr(error, "history", None), f"{type(error).__name__}: {error}"
    assert signal.getsignal(signal.SIGINT) == handler
    result = dict(
        seen=seen, weights=arrays(model), untouched=same(before, arrays(model)), said=said
    )
    if history is not None:
        result |= dict(curves=curves(history), interrupted=history.interrupted)
    return SimpleNamespace(**result)


def arrays(model):
    return {key: value.clone().numpy() for key, value in model.state_dict().items()}


def close(a, b):
    """Sums in another order: after a few dozen float32 steps weights of size 1 differ by less."""
    assert list(a.weights) == list(b.weights)
    for ours, theirs in zip(a.weights.values(), b.weights.values()):
        assert abs(ours - theirs).max() <= 1e-5
    for ours, theirs in zip(a.curves, b.curves, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def chosen(rank):
    """What a long run chooses, whose processes measure different things, and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "LONG", 0)
        patch.setattr(arithmetic, "CHOSEN", {})
        best = (False, True) if rank == 0 else (True, False)
        patch.setattr(arithmetic, "seconds", lambda run, images, *way: 1 if way == best else 9)
        model = resnet(seed=rank)
        options = dict(epochs=1, batch_size=16, device="cpu", progress=False)
        history = fit(model, random_images(64), **options)
    return (history.mixed_precision, history.channels_last), model.state_dict()


def test_the_first_process_chooses_the_arithmetic_of_all(pair):
    (one, weights), (two, others) = pair(chosen)
    assert one == two == (False, True) and same(weights, others)


@pytest.mark.parametrize(
    "images, options",
    [
        (64, {}),
        (300, dict(batch_size=64)),
        (51, {}),  # the last batch: 2 images and 1
        (52, dict(batch_size=7)),  # every batch: 4 images and 3
        (45, dict(batch_size=100)),
        (64, dict(augment=True, label_smoothing=0.1)),
    ],
)
def test_two_processes_share_the_batches_of_one_and_give_its_weights(pair, images, options):
    first, second = pair(train, make=without_bn, images=images, **options)
    whole = train(0, without_bn, images, **options)  # here there is one process
    close(first, whole)
    steps = math.ceil(images / options.get("batch_size", 16))
    assert len(first.seen) == len(second.seen) == len(whole.seen) == 3 * steps
    for one, two, both in zip(first.seen, second.seen, whole.seen):
        assert 0 <= len(one) - len(two) <= 1 and two
        assert sorted(one + two) == sorted(both)
    if "augment" not in options:  # which may shift a number out of its image
        for start in range(0, 3 * steps, steps):
            epoch = slice(start, start + steps)
            seen = [i for batch in first.seen[epoch] + second.seen[epoch] for i in batch]
            assert sorted(seen) == list(range(images))
        assert whole.seen[:steps] != whole.seen[steps : 2 * steps]  # each epoch has its own order


@pytest.mark.parametrize("images, batch_size, test", [(33, 16, 20), (40, 1, 20), (40, 16, 1)])
def test_a_batch_or_test_set_too_small_to_share_is_refused_by_all(pair, images, batch_size, test):
    for process in pair(train, images=images, batch_size=batch_size, test=test):
        assert process.untouched and process.said == (
            "ValueError: 2 processes cannot share a batch or test set of 1 images: choose another "
            "batch_size, or fewer processes."
        )


@pytest.mark.parametrize("make", [without_bn, resnet, with_dropout])
def test_all_end_with_the_same_weights_and_history_and_the_scores_of_all_test_images(pair, make):
    one, two = pair(train, make=make, images=51)
    assert same(one.weights, two.weights)  # to the last bit, from different initial weights
    assert one.curves == two.curves and [len(curve) for curve in one.curves] == [3] * 4
    model = make()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in one.weights.items()})
    score = evaluate(model, numbered(33, seed=1))
    assert [curve[-1] for curve in one.curves[2:]] == pytest.approx(list(score), abs=1e-6)
    if make is resnet:  # batch norm's statistics are those of a share
        whole = train(0, make, 51).weights
        assert max(abs(one.weights[key] - whole[key]).max() for key in whole) > 1e-2


def masks(rank):
    model, drawn = with_dropout(), []
    torch.manual_seed(5)  # the same everywhere, as `train --seed` sets it
    model[1].register_forward_hook(
        lambda module, args, out: drawn.append((out == 0).numpy()) if module.training else None
    )
    fit(model, numbered(32), epochs=2, batch_size=32)
    return drawn[-1]


def test_each_process_draws_its_own_dropout(pair):
    one, two = pair(masks)
    assert (one != two).any() and 0.1 < one.mean() < 0.5 and 0.1 < two.mean() < 0.5


class NaNForImage7(nn.Module):
    """A model that answers NaN in the third training step and later, for this image only."""

    def __init__(self, seed):
        super().__init__()
        self.net, self.steps = without_bn(seed), 0

    def forward(self, x):
        self.steps += self.training
        spoilt = torch.tensor([self.training and self.steps > 2 and i == 7 for i in numbers(x)])
        return torch.where(spoilt[:, None], math.nan, self.net(x))


def test_all_say_alike_that_training_diverged_whoever_met_the_nan(pair):
    one, two = pair(train, make=NaNForImage7, images=40)
    assert one.said.startswith("TrainingDiverged: the loss became nan in epoch")
    assert (one.said, one.curves, len(one.seen)) == (two.said, two.curves, len(two.seen))
    assert same(one.weights, two.weights)
    assert all((abs(value) < 100).all() for value in one.weights.values())


@no_windows
@pytest.mark.parametrize("make, who, name", [(resnet, 0, "0.pt"), (with_dropout, 1, "{rank}.pt")])
def test_ctrl_c_in_one_stops_all_and_two_go_on_exactly(pair, tmp_path, make, who, name):
    one, two = pair(train, make=make, checkpoint=tmp_path / name, ctrl_c=(who, 6))
    assert one.interrupted and two.interrupted and len(one.seen) == len(two.seen) == 6
    assert same(one.weights, two.weights) and one.curves == two.curves
    assert [len(curve) for curve in one.curves] == [1] * 4
    assert os.listdir(tmp_path) == [
        "0.pt"
    ]  # of the first process, whether they share a file or not
    assert len(load_checkpoint(tmp_path / "0.pt")["history"].loss) == 1
    resumed, whole = pair(train, make=make, checkpoint=tmp_path / name), pair(train, make=make)
    for process in resumed:
        assert same(process.weights, whole[0].weights) and process.curves == whole[0].curves


def test_only_the_first_process_writes_and_reads_and_keys_have_no_prefix(pair, tmp_path):
    one, _ = pair(train, checkpoint=tmp_path / "{rank}.pt")
    assert os.listdir(tmp_path) == ["0.pt"]
    assert same(load_checkpoint(tmp_path / "0.pt")["model"], one.weights)
    assert list(one.weights) == list(resnet().state_dict())
    for process in pair(train, checkpoint=tmp_path / "{rank}.pt"):
        assert process.seen == []  # nothing is left to do
        assert same(process.weights, one.weights) and process.curves == one.curves


@no_windows
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path, before, after):
    def processes(count, **options):
        options |= dict(make=without_bn, images=51)
        return train(0, **options) if count == 1 else pair(train, **options)[0]

    file = tmp_path / "{rank}.pt"
    assert processes(before, checkpoint=file, ctrl_c=(0, 6)).interrupted
    resumed = processes(after, checkpoint=file)
    assert len(resumed.curves[0]) == 3
    close(resumed, processes(1))


def test_a_checkpoint_that_cannot_be_used_stops_all_alike(pair, tmp_path):
    (tmp_path / "file").write_bytes(b"junk")
    damaged, no_place = "is a text file", "could not write"
    for name, message in (("file", damaged), ("file/run.pt", no_place)):
        one, two = pair(train, checkpoint=tmp_path / name)
        assert one.said == two.said and re.match(f"CheckpointError: .*{message}", one.said)
        assert one.untouched and two.untouched


def shown(rank):
    calls, bars = [], []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, **options):
            bars.append(options["disable"])
            super().__init__(**(options | dict(disable=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm.auto, "tqdm", Bar)
        options = dict(progress=True, after_epoch=lambda history: calls.append(len(history.loss)))
        fit(without_bn(), numbered(40), epochs=2, **options)
    return bars, calls


def test_the_first_process_alone_shows_a_bar_and_calls_after_epoch(pair):
    assert pair(shown) == [([False], [1, 2]), ([True], [])]


def full(history):
    raise OSError("disk full")


def test_an_error_in_after_epoch_reaches_all(pair):
    assert [it.said for it in pair(train, after_epoch=full)] == ["OSError: disk full"] * 2


DIFFERENT = {
    "seed": (dict(seed=1), "process 1 has seed=1, process 0 has 0: call fit with the same"),
    "batch size": (dict(batch_size=8), "process 1 has batch_size=8, process 0 has 16: call fit"),
    "epochs": (dict(epochs=2), "process 1 has epochs=2, process 0 has 3: call fit"),
    "no test set": (dict(test=None), "process 1 has test images=None, process 0 has .*: call fit"),
    "other images": (dict(train=random_images(64, seed=3)), "process 1 has training images="),
    "a function": (dict(after_epoch=print), "process 1 has after_epoch=True, process 0 has False"),
    "a file": (dict(checkpoint="one.pt"), "process 1 has checkpoint=True, process 0 has False"),
    "nonsense": (dict(epochs="three"), "epochs must be a whole number from 1 on, not 'three'"),
}


@pytest.mark.parametrize("second, message", DIFFERENT.values(), ids=DIFFERENT)
def test_processes_with_other_arguments_end_with_one_sentence(pair, second, message):
    one, two = pair(train, second=second)
    assert one.said == two.said and re.match(f"ValueError: {message}", one.said)
    assert one.untouched and two.untouched and not os.path.exists("one.pt")


def plain(seed=0):
    return resnet(seed, residual=False, shortcut="B")


def deeper(seed=0):
    return resnet(seed, depth=14 if seed else 8)


def test_processes_with_another_architecture_end_with_one_sentence(pair):
    one, two = pair(train, make=deeper)
    assert one.said == two.said and re.match(
        r"ValueError: process 1 has model=ResNet \(\w{8}\), process 0", one.said
    )


def test_the_plain_twin_whose_shortcuts_have_unused_layers_trains(pair):
    one, two = pair(train, make=plain)
    assert one.said is None and same(one.weights, two.weights)
    unused = "layer2.0.downsample.0.weight"
    assert (one.weights[unused] == arrays(plain())[unused]).all()
    assert (one.weights["conv1.weight"] != arrays(plain())["conv1.weight"]).any()


def moved(rank):
    model = without_bn(rank)

    def move(history):
        with torch.no_grad():
            model[0].weight += 1

    fit(model, numbered(32), epochs=2, lr=1e-6, batch_size=16, after_epoch=move)
    return arrays(model)


def test_weights_that_after_epoch_changes_are_changed_everywhere(pair):
    one, two = pair(moved)
    assert same(one, two) and (one["0.weight"] - arrays(without_bn())["0.weight"]).min() > 1.9


class Own(Exception):
    """An exception that does not survive pickling."""

    def __init__(self, a, b):
        super().__init__(a + b)


def own(history):
    raise Own("disk", " full")


def test_an_exception_that_cannot_be_sent_is_told_all_the_same(pair):
    assert [it.said for it in pair(told)] == ["RuntimeError: Own: disk full"] * 2


def told(rank):
    try:
        fit(without_bn(), numbered(32), epochs=1, batch_size=16, after_epoch=own)
    except RuntimeError as error:
        return SimpleNamespace(said=f"{type(error).__name__}: {error}")
