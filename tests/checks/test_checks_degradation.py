import copy

import pytest
import torch
from torch import nn
from verdicts import stub, verdict

from d2lres.checks import degradation as check


@pytest.mark.parametrize("name", ["anatomy", "contains", "silence", "gaps"])
def test_a_stub_is_not_attempted(capsys, name):
    checked = getattr(check, name)
    assert verdict(capsys, checked, stub) == f"Not attempted yet: {name}\n"
    assert verdict(capsys, checked, lambda *args: None) == f"Not attempted yet: {name}\n"


# Exercise 1 ---------------------------------------------------------------------------------------


def anatomy(depth):
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"depth must be 6n + 2 with n of at least 1, not {depth}")
    return n, 3 * n


def anatomy_by_search(depth):
    for n in range(1, 300):
        if 1 + 3 * n * 2 + 1 == depth:
            return [n, n + n + n]
    raise ValueError("no such network")


@pytest.mark.parametrize("answer", [anatomy, anatomy_by_search])
def test_anatomy_accepts(capsys, answer):
    assert verdict(capsys, check.anatomy, answer).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda d: ((d - 2) // 6, (d - 2) // 2), "no network of the family has 18 layers"),
        (lambda d: ((d - 2) // 2, (d - 2) // 6), "the other way round"),
        (lambda d: (d // 6 + 1, 3 * (d // 6 + 1)), "so n is 3, not 4"),
        (lambda d: ((d - 2) // 6, (d - 2) // 6), "count the additions of all three"),
        (lambda d: ((d - 2) // 6, d - 2), "not once for each"),
        (lambda d: ((d - 2) // 2, (d - 2) // 2), "give those of one stage"),
        (lambda d: (d - 2) // 6, "return two numbers"),
        (lambda d: anatomy(d) if d != 2 else (0, 0), "no blocks at all"),
    ],
)
def test_anatomy_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.anatomy, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 2 ---------------------------------------------------------------------------------------

rank = torch.linalg.matrix_rank


def contains(large, small):
    return bool(rank(torch.cat([large, small], dim=1)) == rank(large))


def contains_by_least_squares(large, small):
    q, s, _ = torch.linalg.svd(large, full_matrices=False)
    q = q[:, s > 1e-9 * s[0]]
    return (small - q @ (q.T @ small)).abs().max() < 1e-9  # a tensor of one element


@pytest.mark.parametrize("answer", [contains, contains_by_least_squares])
def test_contains_accepts(capsys, answer):
    assert verdict(capsys, check.contains, answer).startswith("Correct: ")


def columns_of(large, small):
    return all(any(torch.allclose(a, b) for a in large.T) for b in small.T)


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda a, b: a.shape[1] >= b.shape[1], "more columns are not enough"),
        (lambda a, b: bool(rank(a) >= rank(b)), "more columns are not enough"),
        (lambda a, b: contains(b, a), "set two weights to 0"),
        (columns_of, "need not be a column"),
        (lambda a, b: bool(rank(torch.cat([a, b], 1)) == a.shape[1]), "count independent columns"),
        (lambda a, b: a.shape[1] >= b.shape[1] and contains(a, b), "may have more columns"),
        (lambda a, b: any(contains(a, c[:, None]) for c in b.T), "do not contain"),
        (lambda a, b: True, "do not contain"),
        (lambda a, b: b.T == b.T, "not one for each entry"),
    ],
)
def test_contains_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.contains, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 3 ---------------------------------------------------------------------------------------


def last_norm(block):
    return block.bn3 if hasattr(block, "bn3") else block.bn2


def silence(block):
    if block.downsample is not None:
        raise ValueError("the shortcut changes its input, so this block cannot be an identity")
    last = last_norm(block)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return block


def silence_in_place(block):
    if block.downsample:
        raise ValueError("no identity")
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[-1].weight *= 0
        norms[-1].bias *= 0


def silence_a_copy(block):
    return silence(copy.deepcopy(block))


@pytest.mark.parametrize("answer", [silence, silence_in_place, silence_a_copy])
def test_silence_accepts(capsys, answer):
    assert verdict(capsys, check.silence, answer).startswith("Correct: ")


def zeroing(*names):
    def answer(block):
        for name, parameter in block.named_parameters():
            if name in names:
                nn.init.zeros_(parameter)
        return block

    return answer


def zero_everything(block):
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    return block


def replace_by_nothing(block):
    block.forward = lambda x: x
    return block


def without_refusal(block):
    nn.init.zeros_(last_norm(block).weight)
    nn.init.zeros_(last_norm(block).bias)
    return block


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (zeroing("bn2.weight", "bn3.weight"), "it still adds its bias"),
        (zeroing("bn2.bias", "bn3.bias"), "it still multiplies by its weight"),
        (zeroing("bn1.weight", "bn1.bias"), "bn2 is the last layer before the addition"),
        (zeroing("conv2.weight", "conv3.weight"), "neither its weight nor bias is 0"),
        (zeroing("bn2.weight", "bn2.bias"), "the Bottleneck changes its input"),
        (zero_everything, "leave all but bn2 as it was"),
        (replace_by_nothing, "it can never learn"),
        (without_refusal, "raise a ValueError"),
    ],
)
def test_silence_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.silence, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 4 ---------------------------------------------------------------------------------------


def gaps(runs, shallow, deep):
    errors = {
        (run["depth"], run["seed"]): 1 - run["train"]["accuracy"]
        for run in runs
        if run["kind"] == "plain"
    }
    seeds = sorted({seed for _, seed in errors})
    return {seed: errors[deep, seed] - errors[shallow, seed] for seed in seeds}


def gaps_by_looking_twice(runs, shallow, deep):
    return {
        b["seed"]: torch.tensor(a["train"]["accuracy"] - b["train"]["accuracy"])
        for a in runs
        for b in runs
        if a["kind"] == b["kind"] == "plain"
        and a["seed"] == b["seed"]
        and (a["depth"], b["depth"]) == (shallow, deep)
    }


@pytest.mark.parametrize("answer", [gaps, gaps_by_looking_twice])
def test_gaps_accepts(capsys, answer):
    assert verdict(capsys, check.gaps, answer).startswith("Correct: ")


def gaps_of(kind, error):
    def answer(runs, shallow, deep):
        found = {(r["depth"], r["seed"]): error(r) for r in runs if r["kind"] == kind}
        return {seed: found[deep, seed] - found[shallow, seed] for seed in (0, 3)}

    return answer


def paired_by_position(runs, shallow, deep):
    errors = {
        depth: [
            1 - r["train"]["accuracy"] for r in runs if r["kind"] == "plain" and r["depth"] == depth
        ]
        for depth in (shallow, deep)
    }
    return dict(zip((0, 3), (b - a for a, b in zip(errors[shallow], errors[deep]))))


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda runs, a, b: gaps(runs, b, a), "the sign is turned"),
        (gaps_of("plain", lambda r: r["train"]["accuracy"]), "the sign is turned"),
        (gaps_of("plain", lambda r: 1 - r["test"]["accuracy"]), "these are test errors"),
        (gaps_of("plain", lambda r: 1 - r["history"]["accuracy"][-1]), "while training"),
        (gaps_of("residual", lambda r: 1 - r["train"]["accuracy"]), "select the plain ones"),
        (gaps_of("plain", lambda r: 100 * (1 - r["train"]["accuracy"])), "percentages"),
        (gaps_of("plain", lambda r: r["train"]["loss"]), "pair plain runs of the same seed"),
        (paired_by_position, "pair plain runs of the same seed"),
        (lambda runs, a, b: list(gaps(runs, a, b).values()), "return a dictionary"),
        (lambda runs, a, b: {0: 0.2}, "the runs have the seeds 0 and 3"),
    ],
)
def test_gaps_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.gaps, answer)
    assert said.startswith("Not yet: ") and fragment in said
