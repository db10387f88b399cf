"""The experiments beside degradation: what a run holds, and that records hold it too."""

import json
import math

import pytest
import torch
from torch import nn

from d2lres import cifar_resnet, experiments, probes
from d2lres.data import Images
from d2lres.experiments import CONFIGS, QUICK, RUN, config, record, runs
from d2lres.training import History, TrainingDiverged

NAMES = ["degradation", "gradients", "lesion", "thousand-layers", "recipe"]
TINY = dict(size=4, width=1, depths=[8], seeds=[0])


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer images, for runs in this process."""
    x = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8)
    data = Images(x, torch.arange(60) % 10)
    monkeypatch.setattr(experiments, "fashion_mnist", lambda subset, size: (data, data[:20]))


def test_every_experiment_has_settings_a_quick_version_and_a_run():
    assert list(CONFIGS) == list(QUICK) == list(RUN) == NAMES
    for name in NAMES:
        full, quick = config(name), config(name, quick=True)
        assert list(full) == list(quick) and full != quick
        if name == "recipe":  # one net, one seed
            continue
        assert {"plain", "residual"} <= set(full["kinds"]) and full["seeds"] == [0, 1, 2, 3, 4]
        for depth in full["depths"]:
            cifar_resnet(depth, width=1)  # no depth that does not exist
    assert min(config("thousand-layers")["depths"]) > 1000


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_run_is_plain_data_names_its_task_and_repeats(name):
    def without_seconds(run):
        history = {k: v for k, v in run.get("history", {}).items() if k != "seconds"}
        return {k: v for k, v in run.items() if k != "seconds"} | {"history": history}

    settings = CONFIGS[name] | TINY | {k: 1 for k in ("epochs", "steps") if k in CONFIGS[name]}
    first = list(runs(settings, False, name))
    assert [(run["kind"], run["depth"], run["seed"]) for run in first] == [
        (kind, 8, 0) for kind in settings["kinds"]
    ]
    assert json.loads(json.dumps(first)) == first
    torch.manual_seed(7)
    assert [*map(without_seconds, runs(settings, False, name))] == [*map(without_seconds, first)]


def test_gradients_are_those_of_the_probe_with_and_without_bn():
    settings = CONFIGS["gradients"] | TINY | dict(width=2, size=None, batch_size=60)
    run = experiments.gradients_run(settings, "plain", 14, 3)
    torch.manual_seed(3)
    model = cifar_resnet(14, in_channels=1, width=2, residual=False)
    x, y = experiments.fashion_mnist("sample", None)[0].tensors()
    for name, net in (("with_bn", model), ("without_bn", probes.without_bn(model))):
        norms = probes.gradient_norms(net, x, y)
        expected = dict(first=norms["conv1"], last=norms["layer3.1.conv2"])
        assert run[name] == pytest.approx(expected, rel=1e-3)


def test_lesions_are_of_the_trained_net_on_the_test_images():
    settings = CONFIGS["lesion"] | TINY | dict(epochs=1)
    run = experiments.lesion_run(settings, "residual", 14, 0)
    assert run["lesion"]["intact"] == run["test"]["accuracy"]
    assert list(run["lesion"]["without"]) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]


def test_a_net_that_diverges_has_no_lesions(monkeypatch):
    def diverges(*args, **options):
        raise TrainingDiverged("nan", History())

    monkeypatch.setattr(experiments, "fit", diverges)
    run = experiments.lesion_run(CONFIGS["lesion"] | TINY, "plain", 8, 0)
    assert run["lesion"] is None and run["test"] is None


def unstable(*args, **options):
    """A net without BN, which any large learning rate drives to infinity."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


def test_thousand_layers_counts_steps_over_epochs_and_learns():
    settings = CONFIGS["thousand-layers"] | TINY | dict(width=4, steps=40, lr=0.05, batch_size=20)
    run = experiments.thousand_layers_run(settings, "residual", 8, 0)
    assert len(run["losses"]) == len(run["seconds"]) == 40 and min(run["seconds"]) > 0
    assert sum(run["losses"][-5:]) < sum(run["losses"][:5])


def test_thousand_layers_starts_branches_at_zero_where_the_kind_says_so(monkeypatch):
    seen = []

    def net(*args, **options):
        seen.append(cifar_resnet(*args, **options))
        return seen[-1]

    monkeypatch.setattr(experiments, "cifar_resnet", net)
    settings = CONFIGS["thousand-layers"] | TINY | dict(steps=1, lr=0.0)
    for kind in settings["kinds"]:
        experiments.thousand_layers_run(settings, kind, 8, 0)
        block = seen[-1].layer1[0]
        assert block.residual == kind.startswith("residual")
        assert block.bn2.weight.item() == (0 if kind.endswith("zero") else 1)


def test_thousand_layers_stops_at_the_first_loss_that_is_not_finite(monkeypatch):
    monkeypatch.setattr(experiments, "cifar_resnet", unstable)
    settings = CONFIGS["thousand-layers"] | TINY | dict(steps=40, lr=1e30, batch_size=20)
    losses = experiments.thousand_layers_run(settings, "plain", 8, 0)["losses"]
    assert len(losses) < 40 and all(map(math.isfinite, losses[:-1]))
    assert not math.isfinite(losses[-1])


def test_any_experiment_is_recorded_and_nan_becomes_null(tmp_path, monkeypatch, capfd):
    settings = CONFIGS["gradients"] | TINY | dict(batch_size=4)
    monkeypatch.setitem(CONFIGS, "gradients", settings)
    output = tmp_path / "gradients.json"
    done = dict(kind="plain", depth=8, seed=0, with_bn=None, without_bn=None)
    unfinished = output.with_name("gradients.json.unfinished")
    unfinished.write_text(
        json.dumps(
            dict(
                experiment="gradients",
                config=settings,
                seconds=1.0,
                runs=[done],
                config_hash=experiments.config_hash(settings),
            )
        )
    )
    record("gradients", output=output, workers=1)
    result = json.loads(output.read_text())
    assert result["experiment"] == "gradients" and not unfinished.exists()
    assert [run["kind"] for run in result["runs"]] == ["plain", "residual"]
    assert result["runs"][0] == done and set(result["runs"][1]["with_bn"]) == {"first", "last"}
    assert "residual-8 seed 0: first convolution's gradient" in capfd.readouterr().out
    experiments._write(output, dict(losses=[1.0, math.nan, math.inf]))
    assert json.loads(output.read_text()) == dict(losses=[1.0, None, None])


def test_a_finished_run_is_summed_up_in_a_line():
    run = dict(kind="plain", depth=1004, seed=2)
    losses = experiments._summary(run | dict(losses=[2.32, math.nan], seconds=[1, 1]))
    assert losses == "plain-1004 seed 2: loss 2.32 to nan"
    diverged = experiments._summary(run | dict(train=None, history=dict(seconds=[])))
    assert diverged == "plain-1004 seed 2: training loss nan, accuracy nan%, 0 s"


@pytest.fixture
def linear(monkeypatch):
    """In place of the notes' net, whose 11 million weights take seconds a step."""

    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 10))

    monkeypatch.setattr(experiments, "notes_resnet18", net)


def test_the_recipe_runs_whole_epochs_and_one_on_a_cpu(linear, monkeypatch):
    settings = config("recipe") | dict(size=4, batch_size=25)  # 60 images: 3 steps
    run = experiments.recipe_run(settings, "residual", 18, 0)
    assert [len(run[key]) for key in ("losses", "seconds", "test")] == [3, 3, 1]
    assert set(run["test"][0]) == {"loss", "accuracy"} and min(run["seconds"]) > 0
    assert json.loads(json.dumps(run)) == run
    again = experiments.recipe_run(settings | dict(epochs_on_cpu=2), "residual", 18, 0)
    assert again["losses"][:3] == run["losses"] and len(again["test"]) == 2


def test_the_quick_recipe_takes_six_steps_of_the_notes_net(monkeypatch, linear):
    run = experiments.recipe_run(config("recipe", quick=True), "residual", 18, 0)
    assert len(run["losses"]) == 6 and len(run["test"]) == 1
    full = config("recipe")
    assert (full["batch_size"], full["size"], full["lr"]) == (512, 96, 0.001)


def test_a_lone_run_gets_all_cores(linear, tmp_path, monkeypatch, capfd):
    settings = config("recipe")
    output = tmp_path / "recipe.json"
    done = dict(kind="residual", depth=18, seed=0, losses=[2.3], seconds=[1.0], test=[])
    output.with_name("recipe.json.unfinished").write_text(
        json.dumps(
            dict(
                experiment="recipe",
                config=settings,
                seconds=1.0,
                runs=[done],
                config_hash=experiments.config_hash(settings),
            )
        )
    )
    record("recipe", output=output)
    assert "1 of 1 runs done, 1 at a time" in capfd.readouterr().out
    assert json.loads(output.read_text())["machine"].endswith("1 runs at a time")
