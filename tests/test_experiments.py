"""The long experiments: settings and their hash, runs that repeat, records that can be resumed."""

import json
import math
import os
import re

import pytest
import torch

from d2lres import experiments
from d2lres.data import Images
from d2lres.experiments import config, config_hash, degradation_run, record, recorded, runs
from d2lres.training import History, TrainingDiverged

TINY = dict(
    subset="sample",
    size=4,
    width=1,
    depths=[8],
    kinds=["plain", "residual"],
    seeds=[0],
    epochs=1,
    batch_size=1024,
    lr=0.05,
)


@pytest.fixture
def tiny(monkeypatch):
    """An experiment of two runs of a second each."""
    monkeypatch.setitem(experiments.CONFIGS, "degradation", TINY)
    monkeypatch.setitem(experiments.QUICK, "degradation", dict(kinds=["plain"]))
    return TINY


@pytest.fixture
def few(monkeypatch):
    """Fewer images, for runs in this process (those of `record` are in processes of their own)."""

    def fashion_mnist(subset, size):
        assert (subset, size) == ("sample", 4)
        generator = torch.Generator().manual_seed(0)
        return tuple(
            Images(
                torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=generator),
                torch.arange(n) % 10,
            )
            for n in (60, 30)
        )

    monkeypatch.setattr(experiments, "fashion_mnist", fashion_mnist)


def without_seconds(run):
    return run | {"history": {k: v for k, v in run["history"].items() if k != "seconds"}}


def made_up_run(kind, depth, seed):
    history = dict(
        loss=[2.0],
        accuracy=[0.2],
        test_loss=[2.1],
        test_accuracy=[0.1],
        seconds=[1.5],
        interrupted=False,
    )
    return dict(
        kind=kind,
        depth=depth,
        seed=seed,
        history=history,
        train=dict(loss=1.9, accuracy=0.25),
        test=dict(loss=2.1, accuracy=0.1),
    )


def unfinished(output, settings, done, **more):
    path = output.with_name(output.name + ".unfinished")
    path.write_text(
        json.dumps(
            dict(
                experiment="degradation",
                config=settings,
                config_hash=config_hash(settings),
                seconds=10.0,
                runs=done,
            )
            | more
        )
    )
    return path


# Settings.


def test_config_gives_the_settings_and_quick_a_part_of_them():
    full, quick = config("degradation"), config("degradation", quick=True)
    assert full["kinds"] == ["plain", "residual"] and full["seeds"] == [0, 1, 2, 3, 4]
    assert list(full) == list(quick)
    assert len(quick["seeds"]) < len(full["seeds"]) and quick["epochs"] < full["epochs"]
    assert quick["depths"] == full["depths"]


def test_config_cannot_change_the_settings_of_others():
    config("degradation")["epochs"] = 1
    assert config("degradation")["epochs"] != 1


def test_an_unknown_experiment_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown experiment 'gravity': choose one of degradation"):
        config("gravity")
    with pytest.raises(ValueError, match="unknown experiment"):
        record("gravity")


def test_the_hash_changes_with_any_setting_and_with_nothing_else():
    assert re.fullmatch("[0-9a-f]{12}", config_hash(TINY))
    assert config_hash(dict(reversed(TINY.items()))) == config_hash(TINY)
    assert config_hash(json.loads(json.dumps(TINY))) == config_hash(TINY)
    changed = [TINY | {key: 99} for key in TINY] + [TINY | {"more": 1}]
    assert len({config_hash(settings) for settings in [TINY, *changed]}) == len(TINY) + 2


# Runs.


def test_a_run_is_a_history_and_the_scores_of_eval_mode(few):
    run = degradation_run(TINY | dict(epochs=2), "residual", 8, 3, progress=False)
    assert list(run) == ["kind", "depth", "seed", "train", "test", "history"]
    assert (run["kind"], run["depth"], run["seed"]) == ("residual", 8, 3)
    assert len(run["history"]["loss"]) == len(run["history"]["seconds"]) == 2
    for part in ("train", "test"):
        assert set(run[part]) == {"loss", "accuracy"} and 0 <= run[part]["accuracy"] <= 1
    assert History(**run["history"]).interrupted is False
    assert json.loads(json.dumps(run)) == run


def test_a_run_repeats_and_depends_on_seed_and_kind(few):
    def run(kind, seed):
        return without_seconds(degradation_run(TINY, kind, 8, seed, progress=False))

    torch.manual_seed(1)
    first = run("plain", 0)
    torch.manual_seed(2)
    assert run("plain", 0) == first
    assert run("plain", 1)["train"] != first["train"] != run("residual", 0)["train"]


def test_a_run_has_its_settings_as_argument(few):
    longer = degradation_run(TINY | dict(epochs=3), "plain", 8, 0, progress=False)
    assert len(longer["history"]["loss"]) == 3
    deeper = degradation_run(TINY, "plain", 20, 0, progress=False)
    other = degradation_run(TINY | dict(lr=0.5, width=2), "plain", 8, 0, progress=False)
    assert len({run["train"]["loss"] for run in (longer, deeper, other)}) == 3


def test_a_run_that_diverges_keeps_its_history_without_scores(few, monkeypatch):
    def diverges(*args, **options):
        raise TrainingDiverged("nan", History(loss=[3.0], accuracy=[0.1], seconds=[1.0]))

    monkeypatch.setattr(experiments, "fit", diverges)
    run = degradation_run(TINY, "plain", 8, 0)
    assert run["train"] is None and run["test"] is None and run["history"]["loss"] == [3.0]


def test_an_interrupted_run_is_no_result(few, monkeypatch):
    monkeypatch.setattr(experiments, "fit", lambda *args, **options: History(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        degradation_run(TINY, "plain", 8, 0)


def test_runs_gives_every_combination_once_and_quietly(few, capfd):
    settings = TINY | dict(depths=[8, 14], seeds=[0, 1])
    seen = [(run["seed"], run["depth"], run["kind"]) for run in runs(settings, progress=False)]
    assert len(seen) == 8 and sorted(seen) == sorted(
        (s, d, k) for s in (0, 1) for d in (8, 14) for k in ("plain", "residual")
    )
    assert seen[0][1] == 14 and [s for s, _, _ in seen] == [0] * 4 + [1] * 4
    assert capfd.readouterr() == ("", "")


# Records.


def test_a_record_goes_on_where_it_stopped_in_processes_of_their_own(tiny, tmp_path, capfd):
    output = tmp_path / "new" / "degradation.json"
    output.parent.mkdir()
    unfinished(output, tiny, [made_up_run("plain", 8, 0)])
    assert record("degradation", output=output, workers=1) == output
    assert os.listdir(output.parent) == ["degradation.json"]

    result = json.loads(output.read_text())
    assert result["experiment"] == "degradation" and result["config"] == tiny
    assert result["config_hash"] == config_hash(tiny)
    assert set(result["versions"]) == {"python", "torch", "torchvision", "numpy"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"]) and result["machine"]
    assert result["seconds"] > 10
    assert [run["kind"] for run in result["runs"]] == ["plain", "residual"]
    assert result["runs"][0] == made_up_run("plain", 8, 0)  # not repeated

    run = result["runs"][1]
    here = degradation_run(tiny, "residual", 8, 0, progress=False)
    for part in ("train", "test"):
        assert run[part] == pytest.approx(here[part], rel=1e-3)
    out, err = capfd.readouterr()
    assert "1 of 2 runs done" in out and "residual-8 seed 0: training loss" in out and err == ""


def test_when_all_runs_are_done_the_record_is_sorted_and_closed(tiny, tmp_path, capfd):
    output = tmp_path / "degradation.json"
    settings = tiny | dict(depths=[20, 8], seeds=[1, 0])
    experiments.CONFIGS["degradation"] = settings
    todo = experiments._tasks(settings)
    unfinished(output, settings, [made_up_run(*task) for task in todo])
    record("degradation", output=output, workers=1)
    result = json.loads(output.read_text())
    order = [(run["depth"], run["kind"], run["seed"]) for run in result["runs"]]
    assert order == sorted(order) and len(order) == 8
    assert result["seconds"] == 10.0 and os.listdir(tmp_path) == ["degradation.json"]


def test_the_quick_record_has_the_quick_settings(tiny, tmp_path):
    output = tmp_path / "quick.json"
    unfinished(output, config("degradation", quick=True), [made_up_run("plain", 8, 0)])
    record("degradation", quick=True, output=str(output), workers=1)
    assert json.loads(output.read_text())["config"]["kinds"] == ["plain"]


def test_an_unfinished_record_of_other_settings_is_refused_and_kept(tiny, tmp_path):
    output = tmp_path / "degradation.json"
    path = unfinished(output, tiny | dict(epochs=2), [made_up_run("plain", 8, 0)])
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"unfinished was made with other settings: delete it"):
        record("degradation", output=output, workers=1)
    assert path.read_bytes() == content and not output.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runs": []}', "null"])
def test_an_unfinished_record_that_is_damaged_is_refused_and_kept(tiny, tmp_path, content):
    path = tmp_path / "degradation.json.unfinished"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"degradation.json.unfinished.*delete it to start afresh"):
        record("degradation", output=tmp_path / "degradation.json", workers=1)
    assert path.read_text() == content


def test_numbers_are_written_short_and_the_file_in_one_step(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    value = dict(a=[1 / 3, 2], b=dict(c=123456.789), d=True, e="text", f=None, seeds=[0, 1])
    experiments._write(path, value)
    assert json.loads(path.read_text()) == value | dict(a=[0.333333, 2], b=dict(c=123457.0))
    with pytest.raises(TypeError):
        experiments._write(path, dict(a=object()))
    assert json.loads(path.read_text())["e"] == "text" and os.listdir(tmp_path) == ["result.json"]


# What comes with the course.


@pytest.mark.parametrize("name", experiments.CONFIGS)
def test_a_record_belongs_to_the_current_settings(name):
    result, settings = recorded(name), config(name)
    assert result["config"] == settings and result["experiment"] == name
    assert result["config_hash"] == config_hash(settings)
    assert {"versions", "machine", "date", "seconds"} <= set(result)


@pytest.mark.parametrize("name", experiments.CONFIGS)
def test_a_record_has_every_run_once(name):
    result, settings = recorded(name), config(name)
    expected = {
        (k, d, s) for k in settings["kinds"] for d in settings["depths"] for s in settings["seeds"]
    }
    assert {(run["kind"], run["depth"], run["seed"]) for run in result["runs"]} == expected
    assert len(result["runs"]) == len(expected)
    assert settings["seeds"] == ([0] if name == "recipe" else [0, 1, 2, 3, 4])


@pytest.mark.parametrize("name", ["degradation", "lesion"])
def test_every_recorded_net_was_trained_to_the_end(name):
    result, settings = recorded(name), config(name)
    for run in result["runs"]:
        assert len(run["history"]["loss"]) == len(run["history"]["test_loss"]) == settings["epochs"]
        assert math.isfinite(run["train"]["loss"]) and 0 <= run["test"]["accuracy"] <= 1


def test_the_lesion_record_took_the_measured_net_apart():
    for run in recorded("lesion")["runs"]:
        assert run["lesion"]["intact"] == run["test"]["accuracy"]
        assert len(run["lesion"]["without"]) == 7 and len(run["lesion"]["swapped"]) == 5


def test_the_thousand_layer_record_stops_only_where_the_loss_is_not_finite():
    result = recorded("thousand-layers")
    for run in result["runs"]:
        *before, last = run["losses"]
        assert len(run["losses"]) == len(run["seconds"]) and None not in before
        assert (last is None) == (len(run["losses"]) < result["config"]["steps"])


def test_the_recipe_record_holds_whole_epochs_of_the_full_set():
    (run,) = recorded("recipe")["runs"]
    assert len(run["test"]) in (1, 5)  # on a CPU, with a GPU
    assert len(run["losses"]) == len(run["seconds"]) == len(run["test"]) * math.ceil(60_000 / 512)
    assert None not in run["losses"] and min(run["seconds"]) > 0


def test_a_record_the_course_does_not_have_is_named():
    with pytest.raises(FileNotFoundError, match="gravity.json"):
        recorded("gravity")
