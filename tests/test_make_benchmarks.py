"""The benchmarks: the record is whole, the README shows it, and the script's parts measure what they
say. Nothing here depends on how fast anything is."""

import json
import os

import make_benchmarks as bench
import pytest
import torch
from commands import ROOT, python
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import FashionMNIST

from d2lres.data import Images, fashion_mnist
from d2lres.records import recorded

NAMES = ["imports", "resnet18", "feeding", "ninety", "ninety_three", "ninety_four"]
NAMES += ["depth", "processes"]
GOALS = [1.05, 0.5, 2.0, 1, 0.5, 0, 5, 0.6, 0, 0.9, 0.5, 0, 0.93, 3.5, 0, 0.94, 1.25, 0.15]
GOALS += [0.95, 0, 0]  # 2.0 where the processor has units for bfloat16, else 1.1


@pytest.fixture(scope="module")
def few():
    return fashion_mnist()[0][:64]


def test_the_record_holds_every_row_with_its_spread_and_an_honest_verdict_as_the_readme_shows():
    record, readme = recorded("benchmarks"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench.into_readme(readme, record) == readme
    assert bench.page(record) == bench.PAGE.read_text(encoding="utf-8")
    start, end = bench.MARKS
    shown = readme.split(start)[1].split(end)[0]
    assert shown.count("\n| ") == len(bench.SHOWN) == 5
    assert all(line in bench.page(record) for line in shown.splitlines() if line[:1] == "|")
    assert list(record["rows"]) == list(bench.ROWS) == NAMES
    assert record["machine"] and {"python", "torch"} <= record["versions"].keys()
    assert all(row["checks"] and row["date"] for row in record["rows"].values())
    assert "bf16" in record["machine"], "GOALS are those of such a processor"
    lines = [line for row in record["rows"].values() for line in row["checks"]]
    assert [goal for line in lines for goal in line["target"].values()] == GOALS
    for line, goal in zip(lines, GOALS):
        assert line["repetitions"] >= 2 and line["low"] <= line["median"] <= line["high"]
        below, above = line["median"] <= goal, line["median"] >= goal
        assert (
            line["met"] == (below if "at_most" in line["target"] else above) == (line["off"] == 0)
        )


@pytest.mark.parametrize(
    "samples, target, said",
    [
        ([1.0, 3.0, 1.2], dict(at_most=1.2), "≤ 1.2× | 1.20× (1.00 to 3.00) | met"),
        ([1.5, 1.5, 1.5], dict(at_most=1.2), "≤ 1.2× | 1.50× (1.50 to 1.50) | missed by 25 %"),
        ([0.9, 0.1, 3.0], dict(at_least=1.2), "≥ 1.2× | 0.90× (0.10 to 3.00) | missed by 25 %"),
    ],
)
def test_a_target_is_met_or_missed_by_the_median_and_the_table_says_so(samples, target, said):
    line = bench.check("speed", "theirs", samples, "×", **target)
    assert line["off"] == pytest.approx(0 if line["met"] else 0.25)
    (shown,) = bench.lines({"rows": {"a": {"checks": [line]}}}, ["a"])
    assert shown == f"| speed | theirs | {said} |"


def test_straightness_is_the_largest_relative_distance_from_a_line():
    assert bench.straightness({8: 10.0, 20: 22.0, 1004: 1006.0}) == pytest.approx(0, abs=1e-9)
    assert 0.1 < bench.straightness({8: 10.0, 20: 22.0, 56: 58.0, 110: 150.0, 1004: 1006.0}) < 0.4


def test_training_flops_count_what_is_computed(few):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert bench.training_flops(net, few) == 2 * 2 * 784 * 10  # images need no gradient
    net.append(nn.Linear(10, 10))
    assert bench.training_flops(net, few) == 2 * 2 * 784 * 10 + 3 * 2 * 10 * 10


def test_the_operations_of_each_kernel_of_the_ceiling_are_counted_as_pytorch_counts_them():
    for name, (work, function) in bench.kernels(batch=2, dtype=torch.bfloat16).items():
        if "4096" not in name:  # it takes seconds
            with FlopCounterMode(display=False) as counter:
                assert function().dtype == torch.bfloat16
            assert counter.get_total_flops() == work, name


def test_the_ceiling_knows_products_and_convolutions_in_both_orders(monkeypatch):
    names = list(bench.kernels(batch=1))
    for part in ("matmul", "linear", "bmm", "1x1", "3x3", "contiguous_format", "channels_last"):
        assert any(part in name for name in names)
    times = iter([9.0, 2.0, 9.0, 4.0])  # the first of each kernel is not timed
    monkeypatch.setattr(bench, "clock", lambda function: next(times))
    monkeypatch.setattr(bench, "kernels", lambda dtype: {"a": (8, None), "b": (8, None)})
    assert bench.kernel_flops(repetitions=1) == {"a": 4.0, "b": 2.0}


def test_first_takes_no_batch_too_many_and_notes_the_end_of_each_step():
    given = iter(range(10))
    loader = type("Loader", (), {"__len__": lambda self: 10, "__iter__": lambda self: given})()
    first = bench.First(loader, 3)
    assert len(first) == 10 and list(first) == [0, 1, 2] and next(given) == 3
    assert len(first.ends) == 3 and first.ends == sorted(first.ends)


def test_the_files_for_torchvision_hold_the_same_images(few, tmp_path):
    bench.write_idx(tmp_path / "FashionMNIST/raw", few, few[:8])
    for train, images in ((True, few), (False, few[:8])):
        theirs = FashionMNIST(tmp_path, train=train, download=True)
        assert torch.equal(theirs.data, images.images[:, 0])
        assert torch.equal(theirs.targets, images.labels)


def test_our_loop_is_timed_in_its_first_epoch_and_free_to_choose(few, monkeypatch):
    seen = []

    def fit(net, train, **settings):
        seen.append(settings["epochs"])
        return real(net, train, **settings)

    real = bench.fit
    monkeypatch.setattr(bench, "fit", fit)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = net[1].weight.clone()
    assert bench.our_speed(net, few, batch=32, mixed_precision=False) > 0
    assert seen == [1000] and torch.equal(net[1].weight, before)


def test_d2ls_loop_is_timed_after_its_warm_up(few):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = net[1].weight.clone()
    loader, test = list(few.batches(8)), list(few[:2].batches(2))
    assert bench.d2l_speed(net, loader, test, batch=8, steps=3) > 0
    assert torch.equal(net[1].weight, before)  # each repetition starts from the same net


@pytest.mark.parametrize("name", bench.RECIPES)
def test_an_earlier_recipe_is_timed_whole_or_in_part(few, name, monkeypatch):
    monkeypatch.setattr(bench, "fashion_mnist", lambda subset: (few, few))
    times = iter([0.0, 10.0, 10.5, 0.0, 10.0, 10.5])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(times, 0.0))
    monkeypatch.setattr(bench, "fit", lambda *args, **how: epochs.append(how["epochs"]))
    epochs = []
    run, whole = bench.earlier(name, 1, epochs=1), bench.earlier(name, 1)
    total = bench.RECIPES[name]["epochs"]
    assert epochs == [1, total] and 0 <= run["accuracy"] <= 1
    assert (run["seconds"], whole["seconds"]) == (10.0 * total + 0.5, 10.5)


def test_a_mark_compares_within_a_seed(few, monkeypatch):
    monkeypatch.setattr(bench, "fashion_mnist", lambda subset: (few, few))
    run = bench.raced(bench.fast.Recipe(width=2, epochs=1), seed=1)
    assert run["seed"] == 1 and 0 <= run["accuracy"] <= 1 and run["seconds"] > 0
    raced = iter([dict(accuracy=0.95, seconds=1.0), dict(accuracy=0.93, seconds=2.0)])
    earlier = iter([dict(seconds=2.0), dict(seconds=8.0)])
    monkeypatch.setattr(bench, "raced", lambda recipe, seed: next(raced))
    monkeypatch.setattr(bench, "earlier", lambda *args: next(earlier))
    row = bench.mark(bench.fast.NINETY, "three epochs", 0.9, 0.6, seeds=2)
    ratio, _, accuracy = row["checks"]
    assert (ratio["low"], ratio["high"]) == (0.25, 0.5) and ratio["met"]
    assert accuracy["median"] == pytest.approx(0.94)


def test_the_small_net_halves_its_images_once_and_depends_on_its_seed():
    net = bench.small_net(8, seed=3)
    assert net.maxpool(net.conv1(torch.randn(2, 1, 28, 28))).shape == (2, 8, 14, 14)
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.fc.weight, bench.small_net(8, seed=3).fc.weight)
    assert not torch.equal(net.conv1.weight, bench.small_net(8, seed=4).conv1.weight)


def test_the_memory_of_a_step_is_the_peak_of_the_process():
    """In a process of its own, as the row is measured: a peak never falls again."""
    code = """
import make_benchmarks as bench, torch
seconds, grown = bench.training_step(8, batch=8, steps=1, at_least=0)
before, kept = bench.peak_memory(), torch.ones(2**26)
assert seconds > 0 and grown >= 0
assert bench.peak_memory() - before > 0.9 * 4 * len(kept)"""
    python("-c", code, cwd=ROOT / "assets", env=os.environ | {"PYTHONPATH": str(ROOT)})


def measured(monkeypatch, path, names, **values):
    """The rows after measuring `names` on a machine where each row gives its value of `values`."""

    def row(value):
        return lambda: dict(checks=[bench.check("a row", "", [value, value], at_least=1)])

    monkeypatch.setattr(bench, "ROWS", {name: row(value) for name, value in values.items()})
    result = bench.measure(names, path)
    assert list(result["rows"]) == list(json.loads(path.read_text())["rows"])
    return {name: row["checks"][0]["median"] for name, row in result["rows"].items()}


def test_rows_measured_again_replace_their_own_unless_the_machine_is_another(monkeypatch, tmp_path):
    path = tmp_path / "results/record.json"
    first = measured(monkeypatch, path, ["c", "a"], a=1.0, b=2.0, c=3.0)
    assert list(first.items()) == [("a", 1.0), ("c", 3.0)]  # in the table's order
    again = measured(monkeypatch, path, ["b", "c"], a=5.0, b=6.0, c=7.0)
    assert again == {"a": 1.0, "b": 6.0, "c": 7.0}
    path.write_text(path.read_text().replace('"machine": "', '"machine": "another, '))
    assert measured(monkeypatch, path, ["b"], a=1.0, b=2.0, c=3.0) == {"b": 2.0}


@pytest.mark.parametrize("second, kept", [([1.0, 1.1], True), ([1.0, 9.0], False)])
def test_a_row_that_varies_is_measured_once_more_and_the_steadier_kept(
    second, kept, monkeypatch, tmp_path
):
    samples = iter([[1.0, 1.5], second])

    def row():
        return dict(checks=[bench.check("a row", "", next(samples), at_least=1)])

    monkeypatch.setattr(bench, "ROWS", {"a": row})
    monkeypatch.setattr(bench, "busy", lambda: 0.5)
    result = bench.measure(["a"], tmp_path / "record.json")["rows"]["a"]
    assert next(samples, None) is None and result.get("repeated", False) == kept
    assert result["checks"][0]["high"] == (1.1 if kept else 1.5) and result["busy"] == 0.5


def test_a_busy_machine_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "busy", lambda: 0.5)
    measured(monkeypatch, tmp_path / "record.json", ["a"], a=1.0)
    assert "not idle (50% busy)" in capsys.readouterr().out
    monkeypatch.undo()
    assert 0 <= bench.busy(0.05) <= 1


def test_a_row_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "everything"])
    assert "imports" in capsys.readouterr().err


def test_feeding_counts_every_image_of_both_sides(few, monkeypatch):
    sets = Images(few.images, few.labels, size=96), few[:8]
    monkeypatch.setattr(bench, "fashion_mnist", lambda subset, size: sets)
    row = bench.feeding(repetitions=2, batch=16)
    assert [len(row["images_per_second"][name]) for name in ("d2lres", "torchvision")] == [2, 2]
    assert row["checks"][0]["repetitions"] == 2
