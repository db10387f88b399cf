"""Checkpoints: a run is resumed exactly, by itself alone, and no damage or malice gets through."""

import os
import pickle
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import training_runs
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from training_runs import TEST, TRAIN, interrupt, linear, resnet, same, weights, with_dropout

from d2lres import checkpoints
from d2lres.checkpoints import CheckpointError, load_checkpoint
from d2lres.training import fit

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

    whole, broken, resumed = make(), make(), make(seed=7)
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
    model = resnet(seed=8)
    assert fit(model, TRAIN, TEST, checkpoint=checkpoint, **SAME) == finished[2]
    assert same(model, finished[1]) and checkpoint.read_bytes() == finished[0].read_bytes()
    state = load_checkpoint(str(checkpoint))
    assert same(state["model"], finished[1]) and state["history"] == finished[2]


def refused(path, message, model=None, train=TRAIN, **options):
    """fit refuses `path`, saying `message`, and leaves file, folder and model alone."""
    model = model or resnet(seed=8)
    before, content, folder = weights(model), path.read_bytes(), sorted(os.listdir(path.parent))
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(model, train, TEST, checkpoint=path, **(SAME | options))
    assert same(model, before)
    assert path.read_bytes() == content and sorted(os.listdir(path.parent)) == folder
    text = str(caught.value)
    assert str(path) in text and text.endswith((".", ").")) and "\n" not in text


CONV = r"conv1.weight \(2, 1, 3, 3\) there and"
SETTINGS = dict(epochs=3, batch_size=8, seed=1, lr=0.2, augment=True, label_smoothing=0.1)
SETTINGS |= dict(mixed_precision=True)


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
        ("Adam", "Adam in groups", "was made with another optimizer: use the same one"),
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
        refused(path, "elete it to start afresh")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    junk = [b"\0" * 5000, b"text", b"PK\3\4" + b"x" * 99, b"<html>not found</html>"]
    for content in (*junk, bytes(range(256)) * 20):
        (tmp_path / "run.pt").write_bytes(content)
        refused(tmp_path / "run.pt", "elete it to start afresh")


def test_other_torch_files_are_refused_and_said_to_be_whole(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["history"]["temperature"] = 3
    torch.save(state, checkpoint)
    refused(checkpoint, "run.pt")
    torch.save(resnet().state_dict(), checkpoint)
    refused(checkpoint, "is no checkpoint of fit, it lacks architecture, history, model")
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
    refused(checkpoint, "holds more than tensors and plain data, so it was not opened")
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
        fit(model, TRAIN, epochs=1, checkpoint=tmp_path / place)
    assert "elete" not in str(caught.value) and same(model, before)
    assert (tmp_path / "file").read_text() == "in the way"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "folder"]


@pytest.mark.parametrize(
    "crash, raised",
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (RuntimeError("basic_ios::clear: iostream error"), CheckpointError),
        (MemoryError(), MemoryError),
        (pickle.PicklingError("cannot pickle"), pickle.PicklingError),
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
        assert Path(target).name != path.name and Path(target).parent == path.parent
        original(state, target)
        if saved:
            Path(target).write_bytes(Path(target).read_bytes()[:100])
            raise crash
        saved.append(path)

    monkeypatch.setattr(torch, "save", save)
    options = dict(epochs=3, batch_size=16, checkpoint=path)
    with pytest.raises(raised) if raised else nullcontext():
        assert fit(linear(), TRAIN, **options).interrupted
    assert os.listdir(tmp_path) == ["run.pt"] and len(load_checkpoint(path)["history"].loss) == 1
    monkeypatch.undo()
    resumed, whole = linear(seed=5), linear()
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
        fit(linear(), TRAIN, epochs=1, checkpoint=tmp_path / "run.pt")
