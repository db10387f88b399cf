"""Checkpoints: a run is resumed exactly, by itself alone, and no damage or malice gets through."""

import io
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training_runs
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR
from training_runs import TEST, TRAIN, interrupt, linear, resnet, same, weights, with_dropout

from d2lres import checkpoints
from d2lres.checkpoints import CheckpointError, load_checkpoint
from d2lres.data import Images
from d2lres.training import TrainingDiverged, fit

SAME = dict(epochs=2, batch_size=16)


def drivers(model, kind):
    """fit's arguments optimizer and scheduler; `kind`: their names."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if kind == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if kind == "Adam in groups":
        optimizer = torch.optim.Adam([{"params": [p]} for p in model.parameters()], lr=0.01)
    scheduler = StepLR(optimizer, 2, gamma=0.9) if "StepLR" in kind else None
    if "OneCycleLR" in kind:
        scheduler = OneCycleLR(optimizer, 0.01, 6)
    return dict(optimizer=optimizer, scheduler=scheduler) if kind else {}


@pytest.mark.parametrize(
    "make, options, kind, done",
    [
        (resnet, {}, "", 1),
        (resnet, {}, "", 2),
        (resnet, dict(augment=True), "", 2),
        (with_dropout, {}, "", 1),
        (resnet, {}, "Adam", 1),
        (with_dropout, dict(augment=True), "Adam, StepLR", 2),
        (resnet, dict(label_smoothing=0.1, lr=0.3, seed=9), "", 1),
    ],
    ids=["default", "late", "augment", "dropout", "adam", "all", "settings"],
)
def test_a_resumed_run_gives_the_weights_of_a_whole_one(tmp_path, make, options, kind, done):
    def run(model, **more):
        given = options | drivers(model, kind) | more
        return fit(model, TRAIN, TEST, epochs=3, batch_size=16, **given)

    whole, broken, resumed = make(), make(), make()
    torch.manual_seed(1)
    expected = run(whole)
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 3 * done + 2)
        assert run(broken, checkpoint=tmp_path / "run.pt").interrupted
    assert not same(whole, broken)
    torch.manual_seed(99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = run(resumed, checkpoint=tmp_path / "run.pt")
    assert same(whole, resumed) and not history.interrupted
    assert len(history.seconds) == 3
    assert training_runs.curves(history) == training_runs.curves(expected)


def test_writing_a_checkpoint_changes_nothing_in_the_run(tmp_path):
    a, b = with_dropout(), with_dropout()
    for model, options in ((a, {}), (b, dict(checkpoint=str(tmp_path / "new" / "run.pt")))):
        torch.manual_seed(0)
        fit(model, TRAIN, **SAME, **options)
    assert same(a, b) and os.listdir(tmp_path / "new") == ["run.pt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's checkpoint, to copy: (path, its model, its history)."""
    path, model = tmp_path_factory.mktemp("finished") / "run.pt", resnet()
    return path, model, fit(model, TRAIN, TEST, **SAME, checkpoint=path)


@pytest.fixture
def checkpoint(finished, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(finished[0].read_bytes())
    return path


def test_a_finished_checkpoint_gives_its_model_and_history_without_training(finished, checkpoint):
    model = resnet()
    assert fit(model, TRAIN, TEST, checkpoint=checkpoint, **SAME) == finished[2]
    assert same(model, finished[1]) and checkpoint.read_bytes() == finished[0].read_bytes()
    state = load_checkpoint(str(checkpoint))
    assert same(state["model"], finished[1]) and state["history"] == finished[2]


def refused(path, message, model=None, train=TRAIN, **options):
    """fit refuses `path`, saying `message`, and leaves file, folder and model alone."""
    model = model or resnet()
    before, content, folder = weights(model), path.read_bytes(), sorted(os.listdir(path.parent))
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(model, train, TEST, checkpoint=path, **(SAME | options))
    assert same(model, before)
    assert path.read_bytes() == content and sorted(os.listdir(path.parent)) == folder
    text = str(caught.value)
    assert str(path) in text and text.endswith((".", ").")) and "\n" not in text


CONV = r"conv1.weight \(2, 1, 3, 3\) there and"
SETTINGS = dict(epochs=3, batch_size=8, seed=1, lr=0.2, augment=True, label_smoothing=0.1)
SETTINGS |= dict(mixed_precision=True, channels_last=True)


@pytest.mark.parametrize(
    "other, message",
    [
        *[({k: v}, f"with {k}=.*, not {v}: use the same settings") for k, v in SETTINGS.items()],
        (dict(train=TRAIN[:30]), "a run with images=40, not 30"),
        (dict(model=resnet(shortcut="B")), r"layer2.0.downsample.0.weight \(4, 2, 1, 1\) here"),
        (dict(model=linear()), rf"{CONV} 1.weight \(10, 36\) here"),
        (dict(model=resnet(width=3)), rf"{CONV} conv1.weight \(3, 1, 3, 3\) here"),
        (dict(model=resnet(depth=14)), "there and layer1.1.conv1.weight .* here"),
        (dict(model=resnet(residual=False)), "another architecture.*residual=False here"),
    ],
    ids=[*SETTINGS, "images", "shortcut", "linear", "width", "depth", "plain twin"],
)
def test_a_checkpoint_of_another_run_is_refused(checkpoint, other, message):
    refused(checkpoint, message, device="cpu", **other)


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("", "Adam", "optimizer=SGD, not Adam"),
        ("", "Adam, StepLR", "optimizer=SGD, not Adam"),
        ("", "SGD", "scheduler=OneCycleLR, not None"),
        ("Adam, StepLR", "Adam", "scheduler=StepLR, not None"),
        ("Adam, StepLR", "Adam, OneCycleLR", "scheduler=StepLR, not OneCycleLR"),
        ("Adam", "Adam in groups", r"optimizer's params=\[2\], not \[1, 1\]"),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path, before, after, message):
    path, first, other = tmp_path / "run.pt", linear(), linear()
    fit(first, TRAIN, TEST, checkpoint=path, **SAME, **drivers(first, before))
    given = drivers(other, after)
    state = str(given["optimizer"].state_dict())
    refused(path, message, other, **given)
    assert str(given["optimizer"].state_dict()) == state


def test_a_truncated_checkpoint_is_refused_whatever_its_length(finished, tmp_path):
    content, path = finished[0].read_bytes(), tmp_path / "run.pt"
    size = len(content)
    lengths = {0, 1, 4, 10, 100, 1000, size - 1, size - 2, size - 22, size - 100}
    for length in sorted(lengths | {size * k // 13 for k in range(13)}):
        path.write_bytes(content[:length])
        refused(path, "half-written|is empty|is a text file" if length < 4 else "half-written")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path, archive = tmp_path / "run.pt", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("word/document.xml", "text")
    junk = {
        b"text": "is a text file",
        b"<html>not found</html>": "is a text file",
        b"\0" * 5000: "is no file of torch.save",
        bytes(range(256)) * 20: "is no file of torch.save",
        pickle.dumps([1, 2]): "is no file of torch.save, or one in its old format",
        b"PK\3\4" + b"x" * 99: "is not a complete checkpoint, but half-written or damaged",
        archive.getvalue(): "is an archive of something else",
    }
    for content, message in junk.items():
        path.write_bytes(content)
        refused(path, f"{message}.*; choose another path, or move the file away to start afresh")
    torch.jit.script(nn.Linear(2, 2)).save(path)
    refused(path, "is a TorchScript model, which torch.jit.load opens")


def test_a_flipped_bit_and_what_would_fill_the_memory_are_refused(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as file:
        entries = {entry.filename: file.read(entry) for entry in file.infolist()}
        place = max(file.infolist(), key=lambda entry: entry.file_size).header_offset + 200
    content[place] ^= 4
    checkpoint.write_bytes(content)
    refused(checkpoint, "damaged")
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    refused(checkpoint, "is a compressed archive, which fit never writes")


def test_other_torch_files_are_refused_and_said_to_be_whole(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["history"]["temperature"] = 3
    torch.save(state, checkpoint)
    refused(checkpoint, "run.pt")
    torch.save(resnet().state_dict(), checkpoint)
    refused(checkpoint, "is no checkpoint of fit, it lacks architecture, buffers, history, model")
    for other in (torch.rand(3), [1, 2], {"history": 1}, None, "text"):
        torch.save(other, checkpoint)
        refused(checkpoint, "is no checkpoint of fit")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("hidden", ["alone", "inside", "pickle", "old format"])
def test_a_malicious_checkpoint_runs_no_code(checkpoint, tmp_path, hidden):
    payload = Payload(tmp_path / "owned")
    if hidden == "pickle":
        checkpoint.write_bytes(pickle.dumps(payload))
    else:
        state = torch.load(checkpoint, weights_only=True) | {"history": payload}
        new_format = dict(_use_new_zipfile_serialization=hidden != "old format")
        torch.save(state if hidden == "inside" else payload, checkpoint, **new_format)
    message = "holds more than tensors and plain data, perhaps a pickled model, so it was not"
    refused(checkpoint, "in its old format" if hidden in ("pickle", "old format") else message)
    assert not payload.path.exists()
    if hidden == "pickle":
        pickle.loads(checkpoint.read_bytes())
    else:
        torch.load(checkpoint, weights_only=False)
    assert payload.path.exists()  # the payload would have run


@pytest.mark.parametrize(
    "place, message",
    [("folder", "folder cannot be read"), ("file/run.pt", "could not write .*choose a folder")],
)
def test_a_missing_or_impossible_file_is_named_before_training(tmp_path, place, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    model = linear()
    before = weights(model)
    with pytest.raises(CheckpointError, match="there is no checkpoint .*missing"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(model, TRAIN, epochs=2, checkpoint=tmp_path / place)
    assert "elete" not in str(caught.value) and same(model, before)
    assert (tmp_path / "file").read_text() == "in the way"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "folder"]


@pytest.mark.parametrize(
    "crash, raised",
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (RuntimeError("basic_ios::clear: iostream error"), CheckpointError),
        (MemoryError(), MemoryError),
        (pickle.PicklingError("cannot pickle"), CheckpointError),
        (KeyboardInterrupt(), None),
    ],
    ids=repr,
)
def test_a_crash_while_writing_leaves_the_old_checkpoint_whole_and_no_junk(
    tmp_path, monkeypatch, crash, raised
):
    path, original, saved = tmp_path / "run.pt", torch.save, []

    def save(state, target):
        # The new one is written under another name, so no moment exists with half of it in place.
        assert Path(target.name).name != path.name and Path(target.name).parent == path.parent
        original(state, target)
        saved.append(path)
        if len(saved) == 3:  # the first is that of the start
            target.truncate(100)
            raise crash

    monkeypatch.setattr(torch, "save", save)
    options = dict(epochs=3, batch_size=16, checkpoint=path)
    with pytest.raises(raised) if raised else nullcontext():
        assert fit(linear(), TRAIN, **options).interrupted
    assert os.listdir(tmp_path) == ["run.pt"] and len(load_checkpoint(path)["history"].loss) == 1
    monkeypatch.undo()
    resumed, whole = linear(), linear()
    fit(resumed, TRAIN, **options)
    fit(whole, TRAIN, epochs=3, batch_size=16)
    assert same(resumed, whole)


@pytest.mark.parametrize("free, reason", [(0, "the disk is full"), (2**30, "unexpected pos 24")])
def test_a_full_disk_is_called_so(tmp_path, monkeypatch, free, reason):
    def save(state, target):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 24 vs 20")

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(checkpoints, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(CheckpointError, match=f"run.pt .*{reason}.*choose a folder"):
        fit(linear(), TRAIN, epochs=2, checkpoint=tmp_path / "run.pt")


# A run has an identity


def swapped():
    """Other images, of the same number, size and labels."""
    return Images(TRAIN.images.flip(3), TRAIN.labels)


@pytest.mark.parametrize(
    "other, message",
    [
        (dict(train=swapped()), "a run with other training images: use the same"),
        (dict(train=replace(TRAIN, labels=TRAIN.labels.flip(0))), "other training images"),
        (dict(train=replace(TRAIN, size=5)), "a run with size=None, not 5"),
        (
            dict(train=TRAIN.normalised(), test=TEST.normalised(TRAIN.normalised())),
            "other training images",
        ),
        (dict(test=swapped()), "other test images"),
        (dict(test=None), "other test images"),
        (dict(test=replace(TEST, size=5)), "other test images"),
        (dict(model=resnet(seed=1)), "other initial weights, which torch.manual_seed decides"),
    ],
    ids=[
        "images",
        "labels",
        "size",
        "mean and deviation",
        "test images",
        "no test images",
        "size of the tests",
        "another seed",
    ],
)
def test_other_images_or_weights_are_another_run(checkpoint, other, message):
    given = dict(model=resnet(), train=TRAIN, test=TEST) | other
    content = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        fit(**given, **SAME, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == content


def test_five_seeds_with_one_path_are_not_five_times_the_first(tmp_path):
    path = tmp_path / "run.pt"
    fit(linear(0), TRAIN, **SAME, checkpoint=path)
    for seed in range(1, 5):
        with pytest.raises(CheckpointError, match="other initial weights"):
            fit(linear(seed), TRAIN, **SAME, checkpoint=path)


@pytest.mark.parametrize("change, name", [(dict(lr=0.2), "lr"), (dict(momentum=0.5), "momentum")])
def test_another_setting_of_the_optimizer_is_another_run(tmp_path, change, name):
    path, model = tmp_path / "run.pt", linear()
    settings = dict(lr=0.1, momentum=0.9)
    fit(model, TRAIN, **SAME, checkpoint=path, optimizer=SGD(model.parameters(), **settings))
    model = linear()
    optimizer = SGD(model.parameters(), **settings | change)
    with pytest.raises(CheckpointError, match=rf"optimizer's {name}=\[{settings[name]}\], not \["):
        fit(model, TRAIN, **SAME, checkpoint=path, optimizer=optimizer)


def test_another_setting_of_the_scheduler_is_another_run(tmp_path):
    for gamma in (0.9, 0.5):
        model = linear()
        optimizer = SGD(model.parameters(), lr=0.1)
        given = dict(optimizer=optimizer, scheduler=StepLR(optimizer, 2, gamma=gamma))
        stops = pytest.raises(CheckpointError, match="scheduler's gamma=0.9, not 0.5")
        with nullcontext() if gamma == 0.9 else stops:
            fit(model, TRAIN, **SAME, checkpoint=tmp_path / "run.pt", **given)


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 10))


def grouped(model, first, second):
    groups = [dict(params=model[i].parameters(), lr=lr) for i, lr in ((first, 0.1), (second, 0.01))]
    return SGD(groups, momentum=0.9)


def test_the_same_groups_of_other_parameters_are_another_run(tmp_path):
    for (first, second), refused in (((1, 2), False), ((2, 1), True)):
        model = two_layers()
        given = SAME | dict(optimizer=grouped(model, first, second), checkpoint=tmp_path / "run.pt")
        stops = pytest.raises(CheckpointError, match="other parameters in the optimizer's groups")
        with stops if refused else nullcontext():
            fit(model, TRAIN, **given)


def test_other_frozen_layers_are_another_run_and_what_after_epoch_froze_stays_so(tmp_path):
    def run(frozen, name, stop=None):
        def freeze(history):
            model[1].requires_grad_(False)
            if len(history.loss) == stop:
                raise RuntimeError("stop")

        model = two_layers()
        model[2].requires_grad_(not frozen)
        fit(model, TRAIN, epochs=3, batch_size=16, checkpoint=tmp_path / name, after_epoch=freeze)
        return model

    whole = run(False, "whole.pt")
    with pytest.raises(RuntimeError, match="stop"):
        run(False, "broken.pt", stop=1)
    assert same(run(False, "broken.pt"), whole)
    with pytest.raises(CheckpointError, match="other trained parameters"):
        run(True, "broken.pt")


def test_another_function_of_the_rates_is_another_run(tmp_path):
    for base in (0.9, 0.5):
        model = linear()
        optimizer = SGD(model.parameters(), lr=0.1)
        rates = LambdaLR(optimizer, lambda step, base=base: base**step)
        stops = pytest.raises(CheckpointError, match="other rates of the scheduler")
        with nullcontext() if base == 0.9 else stops:
            given = dict(optimizer=optimizer, scheduler=rates, checkpoint=tmp_path / "run.pt")
            fit(model, TRAIN, **SAME, **given)


def test_half_trained_weights_do_not_begin_another_run_in_the_same_file(tmp_path):
    model, path = linear(), tmp_path / "run.pt"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)
        fit(model, TRAIN, **SAME, checkpoint=path)
    with pytest.raises(CheckpointError, match="a run with lr=0.1, not 0.01"):
        fit(model, TRAIN, **SAME, lr=0.01, checkpoint=path)


@pytest.mark.parametrize("kind", ["", "Adam, StepLR"])
def test_the_same_cell_run_again_goes_on_with_what_ctrl_c_left(tmp_path, kind):
    """The same objects, in the middle of an epoch; and once more, when all is done."""
    whole, model, options = linear(), linear(), dict(epochs=3, batch_size=16)
    fit(whole, TRAIN, TEST, **options, **drivers(whole, kind))
    given = options | drivers(model, kind) | dict(checkpoint=tmp_path / "run.pt")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        assert len(fit(model, TRAIN, TEST, **given).loss) == 1
    assert len(fit(model, TRAIN, TEST, **given).loss) == 3 and same(model, whole)
    assert len(fit(model, TRAIN, TEST, **given).loss) == 3 and same(model, whole)
    with torch.no_grad():
        model[1].bias += 1  # somebody touches it: now it is another model
    with pytest.raises(CheckpointError, match="other initial weights"):
        fit(model, TRAIN, TEST, **given)


def test_ctrl_c_in_the_first_epoch_is_no_different(tmp_path):
    whole, model, path = linear(), linear(), tmp_path / "run.pt"
    fit(whole, TRAIN, TEST, epochs=3, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)
        assert fit(model, TRAIN, TEST, epochs=3, batch_size=16, checkpoint=path).loss == []
    assert not same(model, linear())
    fit(model, TRAIN, TEST, epochs=3, batch_size=16, checkpoint=path)
    assert same(model, whole)


def test_a_run_that_had_only_begun_gives_way_to_another(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)
        fit(linear(), TRAIN, **SAME, checkpoint=path)
    assert len(fit(linear(seed=1), TRAIN, **SAME, lr=0.01, checkpoint=path).loss) == 2


LINES = """
import signal, sys
from pathlib import Path

import torch
from training_runs import TEST, TRAIN, curves, lengths, resnet, same
from d2lres.training import fit

def run(model, path, stop=None):
    events = [0]

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.endswith(("training.py", "checkpoints.py", "state.py")):
            return None
        if event == "line":
            events[0] += 1
            if events[0] == stop:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace if stop != 0 else None)
    try:
        history = fit(model, TRAIN, TEST, epochs=2, batch_size=20, checkpoint=path)
    except KeyboardInterrupt:  # before fit has begun, or once it had ended
        history = None
    finally:
        sys.settrace(None)
    return history, events[0]

folder, whole = Path(sys.argv[1]), resnet()
expected, total = run(whole, folder / "whole.pt", stop=-1)
for number in range(1, total, int(sys.argv[2])):
    path, model = folder / f"{number}.pt", resnet()
    history, _ = run(model, path, stop=number)
    assert history is None or len(set(lengths(history))) == 1, (number, history)
    again, _ = run(model, path, stop=0)  # with what was left
    assert same(model, whole) and curves(again) == curves(expected), number
    assert not history or history.interrupted or history.loss == expected.loss, number
assert {name.suffix for name in folder.iterdir()} == {".pt"}
print("all", total)
"""


def test_ctrl_c_at_any_line_loses_nothing_and_breaks_no_model(tmp_path):
    """At every hundredth line of a run; D2LRES_KILLS makes it more of them."""
    step = max(1, 400 // int(os.environ.get("D2LRES_KILLS", "4")))
    command = [sys.executable, "-c", LINES, str(tmp_path), str(step)]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "D2LRES_PROGRESS": "0"}
    done = subprocess.run(command, env=where, capture_output=True, text=True)
    assert done.stdout.startswith("all "), done.stderr[-2000:]


def test_a_trained_model_begins_another_run_as_what_it_is(tmp_path):
    model, first, second = linear(), tmp_path / "1.pt", tmp_path / "2.pt"
    fit(model, TRAIN, **SAME, checkpoint=first)
    trained = weights(model)
    fit(model, TRAIN, **SAME, checkpoint=second)
    again = linear(seed=5)
    again.load_state_dict(trained)
    history = fit(again, TRAIN, **SAME, checkpoint=second)  # begins as that run did, and goes on
    assert same(again, model) and len(history.loss) == 2
    loaded = linear(seed=6)
    loaded.load_state_dict(load_checkpoint(second)["model"])
    assert fit(loaded, TRAIN, **SAME, checkpoint=second) == history  # is what that run came to


def test_scores_of_the_test_may_begin_late(tmp_path):
    options = dict(epochs=3, batch_size=16, checkpoint=tmp_path / "run.pt")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        fit(linear(), TRAIN, **options)
    history = fit(linear(), TRAIN, TEST, **options)
    assert len(history.loss) == 3 and len(history.test_loss) == 2


def test_what_after_epoch_does_is_saved(tmp_path):
    """It draws random numbers and changes weights; Python's and NumPy's generators count, too."""

    def run(model, stop=None, **options):
        def draw(history):
            noise = random.random() + np.random.rand() + torch.rand(()).item()
            with torch.no_grad():
                model[1].bias += noise
            if stop == len(history.loss):
                raise RuntimeError("stop")

        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        return fit(model, TRAIN, epochs=3, batch_size=16, after_epoch=draw, **options)

    whole, broken, resumed, path = linear(), linear(), linear(), tmp_path / "run.pt"
    run(whole)
    with pytest.raises(RuntimeError, match="stop"):
        run(broken, stop=2, checkpoint=path)
    assert len(load_checkpoint(path)["history"].loss) == 2
    run(resumed, checkpoint=path)
    assert same(whole, resumed)


class Counts(nn.Module):
    """A model with a buffer that no state dict has."""

    def __init__(self):
        super().__init__()
        self.net = linear()
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.scale *= 1.5
        return self.net(x) * self.scale


def test_buffers_that_no_state_dict_has_are_saved_as_well(tmp_path):
    whole, broken, resumed = Counts(), Counts(), Counts()
    options = dict(epochs=3, batch_size=16, lr=0.001)
    fit(whole, TRAIN, **options)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        fit(broken, TRAIN, **options, checkpoint=tmp_path / "run.pt")
    fit(resumed, TRAIN, **options, checkpoint=tmp_path / "run.pt")
    assert same(whole, resumed) and whole.scale == resumed.scale == torch.tensor(1.5) ** 9


def test_numpy_numbers_are_saved_as_numbers_and_arrays_refused_at_once(tmp_path):
    model, path = linear(), tmp_path / "run.pt"
    optimizer = SGD(model.parameters(), lr=np.float64(0.1))
    rates = LambdaLR(optimizer, lambda step: np.float64(0.9) ** step)
    rates.note = np.bool_(True)
    given = SAME | dict(checkpoint=path, optimizer=optimizer, scheduler=rates)
    fit(model, TRAIN, **given)
    assert load_checkpoint(path)["scheduler"]["note"] is True
    for odd in (np.zeros(3), object(), lambda: 1):
        model, path = linear(), tmp_path / "other.pt"
        optimizer = SGD(model.parameters(), lr=0.1)
        rates = StepLR(optimizer, 2)
        rates.note = odd
        before = weights(model)
        with pytest.raises(CheckpointError, match="no checkpoint can be written, model, optimizer"):
            fit(model, TRAIN, **SAME, checkpoint=path, optimizer=optimizer, scheduler=rates)
        assert same(before, model) and os.listdir(tmp_path) == ["run.pt"]


def test_a_tensor_may_be_the_rate(tmp_path):
    histories = []
    for _ in range(2):
        model = linear()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
        given = dict(checkpoint=tmp_path / "run.pt", optimizer=optimizer)
        histories.append(fit(model, TRAIN, **SAME, **given))
    assert histories[0] == histories[1]


def test_another_number_of_threads_is_said_to_change_the_last_digits(
    finished, checkpoint, tmp_path
):
    """Where something is left to do: a finished run is only read."""
    threads, path = torch.get_num_threads(), tmp_path / "broken.pt"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        fit(resnet(), TRAIN, TEST, **SAME, checkpoint=path)
    torch.set_num_threads(threads + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fit(resnet(), TRAIN, TEST, **SAME, checkpoint=checkpoint) == finished[2]
        with pytest.warns(
            UserWarning, match=f"goes on with threads={threads + 1} after {threads}: "
        ):
            fit(resnet(), TRAIN, TEST, **SAME, checkpoint=path)
    finally:
        torch.set_num_threads(threads)


def test_where_a_file_cannot_be_locked_it_is_said_and_the_run_goes_on(tmp_path):
    (tmp_path / "run.pt.lock").mkdir()
    with pytest.warns(UserWarning, match="run.pt cannot be locked .*: let no second run use it"):
        assert len(fit(linear(), TRAIN, **SAME, checkpoint=tmp_path / "run.pt").loss) == 2


# One truth on disk


def test_weights_that_are_not_finite_are_never_written_over_good_ones(tmp_path):
    path, model = tmp_path / "run.pt", linear()

    def spoil(history):
        if len(history.loss) == 2:
            model[1].weight.data[3, 3] = float("nan")

    options = dict(epochs=3, batch_size=16, checkpoint=path, after_epoch=spoil)
    with pytest.raises(TrainingDiverged, match="a weight became nan in epoch 2 at learning rate"):
        fit(model, TRAIN, **options)
    state = load_checkpoint(path)
    assert len(state["history"].loss) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def into_infinity(model):
    """A schedule whose second and last step makes each weight infinite."""
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda step: float("inf") if step == 1 else 1)
    return dict(optimizer=optimizer, scheduler=schedule)


def too_large(model):
    """Weights so large that the next logits are not finite, though they are."""
    return dict(optimizer=SGD(model.parameters(), lr=1e30))


@pytest.mark.parametrize("test", [None, TEST])
@pytest.mark.parametrize(
    "how, what", [(into_infinity, "a weight"), (too_large, "the loss after it")]
)
def test_divergence_in_the_very_last_step_is_one(tmp_path, how, what, test):
    layers = [nn.Linear(10, 10) for _ in range(3)]
    model, path = nn.Sequential(linear(), *layers), tmp_path / "run.pt"
    options = dict(epochs=1, batch_size=20 if how is into_infinity else 40) | how(model)
    with pytest.raises(TrainingDiverged, match=f"{what} became .* in epoch 1 at") as caught:
        fit(model, TRAIN, test, **options, checkpoint=path)
    assert caught.value.history.loss == load_checkpoint(path)["history"].loss == []


def test_a_link_is_followed_and_the_mode_kept(tmp_path):
    real, link = tmp_path / "disk" / "real.pt", tmp_path / "link.pt"
    real.parent.mkdir()
    link.symlink_to(real)
    options = dict(epochs=2, batch_size=16, checkpoint=link)
    fit(linear(), TRAIN, after_epoch=lambda history: real.exists() and real.chmod(0o640), **options)
    assert link.is_symlink() and len(load_checkpoint(link)["history"].loss) == 2
    assert real.stat().st_mode & 0o777 == 0o640 and os.listdir(real.parent) == ["real.pt"]


def test_a_path_means_the_same_file_whatever_becomes_of_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    for name, place in (("run.pt", tmp_path), ("~/run.pt", tmp_path / "home")):
        monkeypatch.chdir(tmp_path)
        fit(linear(), TRAIN, **SAME, checkpoint=name, after_epoch=lambda _: os.chdir("/"))
        assert len(load_checkpoint(place / "run.pt")["history"].loss) == 2
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "home", "run.pt"]


def test_what_a_killed_run_left_is_cleared_and_nothing_else(tmp_path):
    ours = [f"run.pt.{i:016x}.unfinished" for i in range(3)]
    others = ["other.pt.0.unfinished", "run.pt.backup", "run.ptx.1.unfinished"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    fit(linear(), TRAIN, **SAME, checkpoint=tmp_path / "run.pt")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "run.pt"])


def test_one_run_at_a_time_uses_a_file(tmp_path):
    path, refusals = tmp_path / "run.pt", []

    def again(history):
        with pytest.raises(
            CheckpointError, match="run.pt is in use by another run: wait"
        ) as caught:
            fit(linear(), TRAIN, **SAME, checkpoint=path)
        refusals.append(caught)

    fit(linear(), TRAIN, **SAME, checkpoint=path, after_epoch=again)
    assert len(refusals) == 2 and os.listdir(tmp_path) == ["run.pt"]
    fit(linear(), TRAIN, **SAME, checkpoint=path)
