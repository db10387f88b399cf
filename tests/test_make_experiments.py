"""The long experiments: settings and their hash, runs that repeat, records that can be resumed."""

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import make_experiments
import pytest
import torch
from make_experiments import EXPERIMENTS, config_hash, main, record, run_once, tasks, write_json
from torch import nn

from d2lres import cifar_resnet, probes
from d2lres.checkpoints import one_at_a_time
from d2lres.data import Images
from d2lres.records import asset
from d2lres.training import History, TrainingDiverged

NAMES = list(EXPERIMENTS)
TINY = dict(size=4, width=1, depths=[8], seeds=[1, 0], epochs=1, steps=1, batch_size=32)
TINY |= dict(validation=20, longer=2, images=20, points=3, planes=1, rates=[0.1], lengths=[1])


def tiny(name, **changes):
    settings = EXPERIMENTS[name].settings
    labels = dict(labels=dict(digits=[1], faces=[1]) if name == "transfer" else [1, 5])
    kinds = dict(clinic=["twice", "healthy"], ladder=["images one by one", "label smoothing"])
    few = dict(kinds=kinds[name]) if name in kinds else {}  # other tests have them all
    small = {key: v for key, v in (TINY | labels).items() if key in settings}
    return settings | small | few | changes


def without_bn(*args, **options):
    """A net that a large learning rate drives to infinity."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 9), nn.Linear(9, 10))


@pytest.fixture
def few(monkeypatch):
    """60 images for 6,000 or 60,000, 80 for other sets, and a small net for the notes' ResNet-18.
    What was loaded."""
    x = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8)
    loaded = []

    def fashion_mnist(subset, size):
        loaded.append((subset, size))
        train = Images(x, torch.arange(60) % 10, size=size)
        return train, train[:20]

    monkeypatch.setattr(make_experiments, "fashion_mnist", fashion_mnist)
    monkeypatch.setattr(make_experiments, "notes_resnet18", without_bn)
    for name, classes in (("digits", 10), ("faces", 2)):
        other = Images(x, torch.arange(60) % classes, tuple("0123456789"[:classes]))
        sets = other, other[:20]
        monkeypatch.setitem(make_experiments.chapter("08_transfer"), name, lambda it=sets: it)
    return loaded


@pytest.fixture
def here(few, monkeypatch, tmp_path):
    """`record` makes its runs in this process, with tiny settings. The working folder."""
    monkeypatch.setattr(make_experiments, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.chdir(tmp_path)
    for name, experiment in EXPERIMENTS.items():
        changed = replace(experiment, settings=tiny(name), quick=dict(seeds=[0]))
        monkeypatch.setitem(EXPERIMENTS, name, changed)
    return tmp_path


def stopped(output, name, settings, runs):
    """The file of a recording that was stopped after these runs."""
    content = dict(experiment=name, config=settings, config_hash=config_hash(settings))
    path = output.with_name(f"{output.name}.unfinished")
    path.write_text(json.dumps(content | dict(seconds=10.0, runs=runs)))
    return path


def whole(path, name, settings):
    """The record at `path`, which belongs to these settings and lacks nothing."""
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["experiment"] == name and result["config"] == settings
    assert result["config_hash"] == config_hash(settings) and result["seconds"] >= 0
    assert set(result["versions"]) == {"python", "torch", "torchvision", "numpy"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"]) and result["machine"]
    runs = [(run["kind"], run["depth"], run["seed"]) for run in result["runs"]]
    assert sorted(runs) == sorted(tasks(settings))
    assert runs == sorted(runs, key=lambda run: (run[1], run[0], run[2]))
    return result


def test_every_experiment_has_settings_and_a_quick_version():
    others = {"benchmarks", "timm", "checkpoint"}
    assert others | set(NAMES) == {path.stem for path in asset("results").glob("*.json")}
    for name, experiment in EXPERIMENTS.items():
        full, quick = experiment.config(), experiment.config(quick=True)
        assert experiment.name == name and list(full) == list(quick) and full != quick
        assert quick["seeds"] == [0]
        if name != "recipe":  # one net, one seed
            twins = {"plain", "residual"} <= set(full["kinds"])
            others = ("remedies", "family", "orders", "transfer", "thaw", "clinic", "ladder")
            assert twins or name in others
            assert full["seeds"] == [0, 1, 2, 3, 4]
            for depth in full["depths"] if name not in ("transfer", "thaw") else ():
                cifar_resnet(depth, width=1)  # no depth that does not exist
        full["kinds"] = 1  # a copy
        assert experiment.config()["kinds"] != 1
    assert min(EXPERIMENTS["thousand-layers"].settings["depths"]) > 1000
    full = EXPERIMENTS["recipe"].settings
    assert (full["batch_size"], full["size"], full["lr"], full["seeds"]) == (512, 96, 0.001, [0])


def test_settings_give_every_combination_once_the_deepest_first_and_a_hash_of_nothing_else():
    every = [(kind, n, seed) for seed in (1, 0) for n in (14, 8) for kind in ("plain", "residual")]
    assert tasks(tiny("degradation", depths=[8, 14])) == every
    settings = tiny("degradation")
    assert re.fullmatch("[0-9a-f]{12}", config_hash(settings))
    assert config_hash(dict(reversed(settings.items()))) == config_hash(settings)
    assert config_hash(json.loads(json.dumps(settings))) == config_hash(settings)
    changed = [settings | {key: 99} for key in [*settings, "more"]]
    assert len({config_hash(s) for s in [settings, *changed]}) == len(settings) + 2


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_plain_data_names_its_task_and_repeats(few, name):
    kinds = EXPERIMENTS[name].settings["kinds"]
    kind = "residual" if "residual" in kinds else kinds[0]

    def run():
        run = run_once(name, tiny(name), kind, 8, 3)
        for timed in (run.get("history") or run, *run.get("lengths", [])):
            timed.pop("seconds", None)
        return run

    first = run()
    assert (first["kind"], first["depth"], first["seed"]) == (kind, 8, 3)
    assert json.loads(json.dumps(first)) == first
    torch.manual_seed(7)
    subset = tiny(name).get("subset")
    size = tiny(name).get("size", 28)
    assert run() == first and set(few) == ({(subset, size)} if subset else set())


def test_a_run_depends_on_kind_depth_seed_and_settings(few):
    def run(kind="plain", depth=8, seed=0, **changes):
        return run_once("degradation", tiny("degradation", **changes), kind, depth, seed)

    runs = [run(), run("residual"), run(depth=14), run(seed=1), run(lr=0.5), run(width=2)]
    runs.append(run(epochs=3))
    assert len({run["train"]["loss"] for run in runs}) == len(runs)
    history = History(**runs[-1]["history"])
    assert len(history.loss) == len(history.test_loss) == 3 and history.interrupted is False
    for part in ("train", "test"):
        assert set(runs[0][part]) == {"loss", "accuracy"} and 0 <= runs[0][part]["accuracy"] <= 1


@pytest.mark.parametrize("name", ["degradation", "lesion"])
def test_a_net_that_diverges_keeps_its_history_without_scores(few, monkeypatch, name):
    def diverges(*args, **options):
        raise TrainingDiverged("nan", History(loss=[3.0], accuracy=[0.1], seconds=[1.0]))

    monkeypatch.setattr(make_experiments, "fit", diverges)
    run = run_once(name, tiny(name), "plain", 8, 0)
    assert run["history"]["loss"] == [3.0]
    assert run["train"] is run["test"] is run.get("lesion") is None
    assert EXPERIMENTS[name].summary(run) == "training loss nan, accuracy nan%, 1 s"


def test_gradients_and_lesions_are_those_of_the_probes(few):
    run = run_once("lesion", tiny("lesion"), "residual", 14, 0)
    assert run["lesion"]["intact"] == run["test"]["accuracy"]
    assert list(run["lesion"]["without"]) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    run = run_once("gradients", tiny("gradients", width=2, batch_size=60), "plain", 14, 3)
    torch.manual_seed(3)
    model = cifar_resnet(14, in_channels=1, width=2, residual=False)
    x, y = make_experiments.fashion_mnist("sample", 4)[0].tensors()
    for name, net in (("with_bn", model), ("without_bn", probes.without_bn(model))):
        norms = probes.gradient_norms(net, x, y)
        *every, _ = norms.values()
        assert run[name].pop("all") == pytest.approx(every, rel=1e-3)
        expected = dict(first=norms["conv1"], last=norms["layer3.1.conv2"])
        assert run[name] == pytest.approx(expected, rel=1e-3)


def test_a_remedy_changes_what_its_name_says_and_nothing_else(few, monkeypatch):
    seen = {}

    def fit(model, *args, optimizer, scheduler, **how):
        seen[kind] = copy.deepcopy(model), optimizer
        return History()

    monkeypatch.setattr(make_experiments, "fit", fit)
    settings = tiny("remedies-short", width=4)
    for kind in settings["kinds"]:
        gradients = run_once("remedies-short", settings, kind, 8, 0)["gradients"]
        assert gradients["first"] >= 0 and set(gradients) == {"first", "last"}
    plain = seen["plain"][0].state_dict()
    kernels = {}
    for kind, (model, optimizer) in seen.items():
        kernels[kind] = w = model.layer1[0].conv1.weight.detach()
        assert model.layer1[0].residual == (kind == "residual")
        assert isinstance(model.bn1, nn.Identity) == ("no BN" in kind)
        assert isinstance(optimizer, torch.optim.Adam) == ("Adam" in kind)
        assert torch.equal(model.conv1.weight, plain["conv1.weight"])  # it changes the channels
        usual = torch.equal(w, plain["layer1.0.conv1.weight"])
        assert usual != ("Dirac" in kind or "orthogonal" in kind)
    dirac = nn.init.dirac_(torch.empty(4, 4, 3, 3))
    assert torch.equal(kernels["plain, Dirac"], dirac)
    nudged = dirac + 0.3 * plain["layer1.0.conv1.weight"]
    assert torch.allclose(kernels["plain, Dirac + 0.3 He"], nudged)
    centre = kernels["plain, orthogonal"][:, :, 1, 1]
    assert torch.allclose(centre @ centre.T, torch.eye(4), atol=1e-5)


def test_the_family_is_judged_on_images_it_was_not_trained_on_and_tested_once(few, monkeypatch):
    seen = {}

    def fit(model, train, validation, *, epochs, **how):
        seen[kind] = model, train, validation, epochs, how
        return History()

    monkeypatch.setattr(make_experiments, "fit", fit)
    settings = tiny("family")
    for kind in EXPERIMENTS["family"].settings["kinds"]:
        run = run_once("family", settings, kind, 14, 0)
        assert set(run) >= {"train", "validation", "test", "history"}
    assert [tuple(map(len, it[1:3])) for it in seen.values()] == [(40, 20)] * len(seen)
    train, validation = seen["base"][1:3]
    assert not torch.equal(train.images[:20], validation.images)
    base = seen["base"][0].state_dict()
    for kind, (model, *_, epochs, how) in seen.items():
        longer = kind.startswith("longer")
        assert epochs == settings["longer" if longer else "epochs"]
        assert ("augment" in how) == kind.endswith("augmented")
        state = model.state_dict()
        same = state.keys() == base.keys() and all(map(torch.equal, state.values(), base.values()))
        assert same == (longer or kind in ("base", "stochastic depth"))
        rates = [getattr(block, "rate", 0) for block in model.modules()]
        assert max(rates) == (0.2 if kind == "stochastic depth" else 0)


def test_a_surface_has_the_trained_loss_in_its_centre(few):
    run = run_once("surface", tiny("surface", images=60), "residual", 8, 0)
    (plane,) = run["planes"]
    assert [len(rows) for rows in plane["stored"]] == [3, 3, 3]
    assert plane["stored"][1][1] == pytest.approx(run["train"]["loss"], rel=1e-4)
    assert plane["batch"][1][1] != plane["stored"][1][1]


def test_orders_with_the_end_cut_off_or_branches_dropped_are_what_their_names_say():
    deep = make_experiments.chapter("07_the_family")["deep"]
    whole, cut, dropped = (
        deep(kind, 20, 4)
        for kind in (
            "full pre-activation",
            "full pre-activation without the end",
            "original, dropped up to 0.5",
        )
    )
    assert len(whole.last) == 2 and isinstance(cut.last, nn.Identity)
    rates = [block.rate for block in dropped.modules() if hasattr(block, "rate")]
    assert len(rates) == 9 and rates[0] == 0 and rates[-1] == 0.5 and rates == sorted(rates)


def test_thousand_layers_starts_at_zero_learns_over_epochs_and_stops_at_infinity(few, monkeypatch):
    settings = tiny("thousand-layers", width=4, steps=40, lr=0.05)
    for kind in ("plain", "plain-zero", "residual", "residual-zero"):
        block = make_experiments.set_up(settings, kind, 8, 0)[2].layer1[0]
        assert block.residual == kind.startswith("residual")
        assert (block.bn2.weight == (0 if kind.endswith("zero") else 1)).all()
    run = run_once("thousand-layers", settings, "residual", 8, 0)
    assert len(run["losses"]) == len(run["seconds"]) == 40 and min(run["seconds"]) > 0
    assert sum(run["losses"][-5:]) < sum(run["losses"][:5])
    monkeypatch.setattr(make_experiments, "cifar_resnet", without_bn)
    run = run_once("thousand-layers", settings | dict(lr=1e30), "plain", 8, 0)
    *before, last = run["losses"]
    assert len(before) < 39 and all(map(math.isfinite, before)) and not math.isfinite(last)
    assert EXPERIMENTS["thousand-layers"].summary(run).endswith((" to nan", " to inf"))


def test_the_recipe_runs_whole_epochs_or_the_quick_six_steps(few):
    settings = tiny("recipe", steps=None, batch_size=25)  # 60 images: 3 steps
    run = run_once("recipe", settings, "residual", 18, 0)
    assert [len(run[key]) for key in ("losses", "seconds", "test")] == [3, 3, 1]  # one on a CPU
    assert set(run["test"][0]) == {"loss", "accuracy"} and min(run["seconds"]) > 0
    again = run_once("recipe", settings | dict(epochs_on_cpu=2), "residual", 18, 0)
    assert again["losses"][:3] == run["losses"] and len(again["test"]) == 2
    quick = run_once("recipe", EXPERIMENTS["recipe"].config(quick=True), "residual", 18, 0)
    assert len(quick["losses"]) == 6 and len(quick["test"]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_recorded_and_its_quick_version_beside_it(here, capsys, name):
    assert main([name]) == main([name, "--quick", "--workers", "1"]) == 0
    assert sorted(os.listdir("results")) == [f"{name}-quick.json", f"{name}.json"]
    whole(here / f"results/{name}.json", name, EXPERIMENTS[name].config())
    whole(here / f"results/{name}-quick.json", name, EXPERIMENTS[name].config(quick=True))
    out, err = capsys.readouterr()
    scores, losses = r"training loss \d\.\d{3}, accuracy \d+\.\d%, 0 s", r"loss [\d.]+ to [\d.]+"
    said = {"recipe": losses, "thousand-layers": losses}.get(name, scores)
    other = dict(gradients=r"first convolution's gradient [\de.-]+ with BN")
    other |= dict.fromkeys(("family", "ladder"), r"validation accuracy \d+\.\d%")
    other |= dict(transfer=r"test accuracy \d+\.\d% .*")
    other |= dict(clinic="alarms: .*")
    said = (other | dict(thaw=r"1 labels \d+\.\d%, 5 labels \d+\.\d%")).get(name, said)
    kind = EXPERIMENTS[name].config()["kinds"][-1]
    assert re.search(f"^{kind}-8 seed 1: {said}$", out, re.MULTILINE)
    assert out.endswith(f"recorded in {os.path.join('results', name)}-quick.json\n") and err == ""


def close(norms):
    return {name: pytest.approx(value, rel=1e-3) for name, value in norms.items()}


def test_the_script_goes_on_from_any_folder_with_processes_of_its_own(tmp_path):
    script = tmp_path / "d2lres/assets/make_experiments.py"  # where a wheel puts it
    script.parent.mkdir(parents=True)
    shutil.copy(make_experiments.__file__, script)
    output, settings = tmp_path / "record.json", EXPERIMENTS["gradients"].config(quick=True)
    *others, last = tasks(settings)
    done = [dict(kind=k, depth=d, seed=s, with_bn=None, without_bn=None) for k, d, s in others]
    stopped(output, "gradients", settings, done)
    command = [sys.executable, script, "gradients", "--quick", "--output", output, "--workers", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert f"{len(done)} of {len(done) + 1} runs done" in run.stdout
    assert sorted(os.listdir(tmp_path)) == ["d2lres", "record.json"]
    result = whole(output, "gradients", settings)
    assert result["seconds"] > 10 and all(run in result["runs"] for run in done)  # not repeated
    (new,) = (run for run in result["runs"] if run not in done)
    for part, norms in run_once("gradients", settings, *last).items():
        assert new[part] == (close(norms) if part.endswith("bn") else norms)


def test_when_all_runs_are_done_the_record_is_closed_and_a_lone_run_gets_all_cores(here, capsys):
    output, settings = here / "recipe.json", EXPERIMENTS["recipe"].config(quick=True)
    stopped(output, "recipe", settings, [dict(kind="residual", depth=8, seed=0, losses=[2.3])])
    assert record("recipe", quick=True, output=str(output)) == output
    assert capsys.readouterr().out == "recipe: 1 of 1 runs done, 1 at a time\n"
    result = whole(output, "recipe", settings)
    assert result["seconds"] == 10.0 and result["machine"].endswith("1 runs at a time")
    assert os.listdir(here) == ["recipe.json"]


def test_ctrl_c_keeps_what_was_finished(here, capsys, monkeypatch):
    fit = make_experiments.fit
    left = iter([fit, lambda *args, **options: History(interrupted=True)])  # no result
    monkeypatch.setattr(make_experiments, "fit", lambda *a, **options: next(left)(*a, **options))
    assert main(["degradation"]) == 130
    assert capsys.readouterr().err == "\nd2lres: stopped; what was finished is kept.\n"
    assert os.listdir("results") == ["degradation.json.unfinished"]
    monkeypatch.setattr(make_experiments, "fit", fit)
    assert main(["degradation"]) == 0 and "1 of 4 runs done" in capsys.readouterr().out
    assert os.listdir("results") == ["degradation.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runs": []}', "null", None])
def test_an_unfinished_record_that_does_not_fit_is_refused_and_kept(here, content):
    output, problem = here / "degradation.json", "was made with other settings"
    path = stopped(output, "degradation", tiny("degradation", epochs=2), [])
    if content is not None:
        path.write_text(content)
        problem = "is no record, or a damaged one"
    before = path.read_text()
    with pytest.raises(ValueError, match=rf"unfinished {problem}: choose another --output"):
        record("degradation", output=output)
    assert path.read_text() == before and not output.exists()


def test_a_quick_version_is_not_written_over_the_long_one(here, capsys):
    assert main(["recipe"]) == 0
    long = (here / "results/recipe.json").read_text()
    assert main(["recipe", "--quick", "--output", "results/recipe.json"]) == 1
    assert "recipe.json was made with other settings: choose another" in capsys.readouterr().err
    assert (here / "results/recipe.json").read_text() == long
    assert main(["recipe"]) == 0 and os.listdir("results") == ["recipe.json"]


def test_two_do_not_record_in_one_file(here, capsys):
    with one_at_a_time(here / "results/recipe.json"):
        assert main(["recipe"]) == 1
    assert "recipe.json is in use by another run" in capsys.readouterr().err
    assert os.listdir("results") == []


def test_a_wrong_argument_is_one_sentence(here, capsys):
    assert main(["gravity"]) == main(["degradation", "--workers", "0"]) == 1
    assert capsys.readouterr() == (
        "",
        f"d2lres: unknown experiment 'gravity': choose one of {', '.join(NAMES)}.\n"
        "d2lres: workers must be a whole number from 1 on, not 0.\n",
    )
    assert os.listdir(here) == []


def test_numbers_are_written_short_nan_as_null_and_the_file_in_one_step(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    value = dict(a=[1 / 3, 2, math.nan, math.inf], b=dict(c=123456.789), d=True, e="text", f=None)
    write_json(path, value)
    written = json.loads(path.read_text())
    assert written == value | dict(a=[0.333333, 2, None, None], b=dict(c=123457.0))
    with pytest.raises(TypeError):
        write_json(path, dict(a=object()))
    assert json.loads(path.read_text()) == written and os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_record_is_whole_and_belongs_to_the_current_settings(name):
    settings = EXPERIMENTS[name].settings
    for run in whole(asset(f"results/{name}.json"), name, settings)["runs"]:
        if "history" in run:  # trained to the end
            lengths = {len(run["history"][key]) for key in ("loss", "test_loss")}
            longer = run["kind"].startswith("longer")
            assert lengths == {settings["longer" if longer else "epochs"]}
            assert math.isfinite(run["train"]["loss"]) and 0 <= run["test"]["accuracy"] <= 1
        if name == "transfer":
            labels = settings["labels"][run["kind"].split(",")[0]]
            pairs = [(score["labels"], score["rate"]) for score in run["scores"]]
            assert pairs == [(n, rate) for n in labels for rate in settings["rates"]]
        if name == "clinic":
            assert len(run["alarms"]) == 16 and (run["accuracy"] is None) == (
                run["kind"] == "misspelt"
            )
        if name == "ladder":
            assert [length["epochs"] for length in run["lengths"]] == settings["lengths"]
            assert all(
                0.5 < length["accuracy"] < 1 < length["seconds"] for length in run["lengths"]
            )
        if name == "thaw":
            assert list(run["test"]) == ["5", "50"] and 0.1 < run["test"]["5"] <= 1
        if "lesion" in run:
            assert run["lesion"]["intact"] == run["test"]["accuracy"]
            assert len(run["lesion"]["without"]) == 7 and len(run["lesion"]["swapped"]) == 5
        if "losses" in run:  # it stops early only where the loss is not finite
            *before, last = run["losses"]
            assert len(run["losses"]) == len(run["seconds"]) and None not in before
            steps = settings["steps"] or len(run["test"]) * math.ceil(60_000 / 512)
            assert (last is None) == (len(run["losses"]) < steps) and min(run["seconds"]) > 0
    if name == "recipe":
        assert len(run["test"]) in (1, 5)  # on a CPU, with a GPU
        assert None not in run["losses"] and len(run["losses"]) == steps
