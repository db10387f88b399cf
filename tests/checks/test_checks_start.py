"""The checks of chapter 00 accept every right answer and name the mistake in a wrong one."""

import pytest
import torch

from d2lres import cifar_resnet
from d2lres.checks import start as check
from d2lres.training import evaluate


def said(capsys, exercise, answer) -> str:
    getattr(check, exercise)(answer)
    return capsys.readouterr().out


def count_wrong(model, data):
    x, y = data.tensors()
    with torch.no_grad():
        return (model(x).argmax(1) != y).double().mean().item() * 100


def pair(depth, seed, swap=False):
    nets = []
    for residual in (True, False) if swap else (False, True):
        torch.manual_seed(seed)
        nets.append(cifar_resnet(depth, in_channels=1, residual=residual))
    return tuple(nets)


def copied(depth, seed):
    torch.manual_seed(seed)
    plain = cifar_resnet(depth, in_channels=1, residual=False)
    residual = cifar_resnet(depth, in_channels=1)
    residual.load_state_dict(plain.state_dict())
    return [plain, residual]


def seeded_once(depth, seed):
    torch.manual_seed(seed)
    return (
        cifar_resnet(depth, in_channels=1, residual=False),
        cifar_resnet(depth, in_channels=1),
    )


def most_common(labels):
    return max((labels == label).float().mean().item() for label in labels.unique())


@pytest.mark.parametrize(
    "exercise, answer",
    [
        ("error_rate", lambda model, data: 100 * (1 - evaluate(model, data).accuracy)),
        ("error_rate", count_wrong),
        ("twins", pair),
        ("twins", copied),
        ("majority_accuracy", lambda y: (torch.bincount(y).max() / len(y)).item()),
        ("majority_accuracy", most_common),
    ],
)
def test_right_answers_are_accepted(exercise, answer, capsys):
    assert said(capsys, exercise, answer).startswith("Correct: ")


@pytest.mark.parametrize(
    "exercise, answer, advice",
    [
        ("error_rate", lambda m, d: 100 * evaluate(m, d).accuracy, "accuracy in percent"),
        ("error_rate", lambda m, d: 1 - evaluate(m, d).accuracy, "multiply by 100"),
        ("error_rate", lambda m, d: evaluate(m, d).accuracy, "accuracy"),
        ("error_rate", lambda m, d: len(d) * (1 - evaluate(m, d).accuracy), "divide by the number"),
        ("error_rate", lambda m, d: 25.0, "always wrong"),
        ("twins", seeded_once, "before each construction"),
        ("twins", lambda d, s: pair(d, s, swap=True), "other way round"),
        ("twins", lambda d, s: pair(d, 0), "argument `seed`"),
        ("twins", lambda d, s: pair(8, s), "argument `depth`"),
        ("twins", lambda d, s: pair(d, s)[0], "two networks"),
        ("twins", lambda d, s: (pair(d, s)[0],) * 2, "residual=True"),
        ("majority_accuracy", lambda y: torch.bincount(y).max(), "divide by the number"),
        ("majority_accuracy", lambda y: 100 * torch.bincount(y).max() / len(y), "percentage"),
        ("majority_accuracy", lambda y: 1 / len(y.unique()), "balanced"),
        ("majority_accuracy", lambda y: 0.5, "0.75"),
    ],
)
def test_wrong_answers_are_told_what_to_fix(exercise, answer, advice, capsys):
    out = said(capsys, exercise, answer)
    assert out.startswith("Not yet: ") and advice in out


@pytest.mark.parametrize("exercise", ["error_rate", "twins", "majority_accuracy"])
def test_the_stub_is_not_attempted_yet(exercise, capsys):
    def stub(*args): ...

    assert said(capsys, exercise, stub).startswith("Not attempted yet: ")
