import pytest
import torch
import torch.nn.functional as F
from verdicts import stub, verdict

from d2lres.checks import training as check

NAMES = ["recall_precision", "one_cycle", "calibration_error", "accumulate"]


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_attempted(capsys, name):
    checked, said = getattr(check, name), f"Not attempted yet: {name.replace('_', ' ')}\n"
    assert verdict(capsys, checked, stub) == said
    assert verdict(capsys, checked, lambda *args: None) == said


def names_the_mistake(capsys, checked, answer, fragment):
    said = verdict(capsys, checked, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 1 ---------------------------------------------------------------------------------------


def recall_precision(counts):
    right = counts.diagonal()
    return right / counts.sum(1), right / counts.sum(0).clamp(min=1)


def recall_precision_by_loop(counts):
    recall, precision = [], []
    for c in range(len(counts)):
        said = sum(int(row[c]) for row in counts)
        recall.append(int(counts[c, c]) / int(counts[c].sum()))
        precision.append(int(counts[c, c]) / said if said else 0)
    return recall, precision


@pytest.mark.parametrize("answer", [recall_precision, recall_precision_by_loop])
def test_recall_precision_accepts(capsys, answer):
    assert verdict(capsys, check.recall_precision, answer).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda c: recall_precision(c)[::-1], "the other way round"),
        (lambda c: (c.diagonal() / c.sum(1), c.diagonal() / c.sum(0)), "never predicted"),
        (lambda c: (c.diagonal() / c.sum(), recall_precision(c)[1]), "not by all images"),
        (lambda c: (recall_precision(c)[0], c.diagonal() / c.sum(1)), "sums of the columns"),
        (lambda c: (c.sum(1) / c.sum(), recall_precision(c)[1]), "sums of the rows"),
        (lambda c: recall_precision(c)[0], "return two tensors"),
        (lambda c: (c.diagonal().sum() / c.sum(), torch.ones(4)), "four values each"),
    ],
)
def test_recall_precision_names_the_mistake(capsys, answer, fragment):
    names_the_mistake(capsys, check.recall_precision, answer, fragment)


# Exercise 2 ---------------------------------------------------------------------------------------


def one_cycle(step, steps, peak):
    top = 0.3 * steps
    return peak * step / top if step < top else peak * (steps - step) / (steps - top)


def one_cycle_as_minimum(step, steps, peak):
    return torch.tensor(min(step / (0.3 * steps), (1 - step / steps) / 0.7) * peak)


@pytest.mark.parametrize("answer", [one_cycle, one_cycle_as_minimum])
def test_one_cycle_accepts(capsys, answer):
    assert verdict(capsys, check.one_cycle, answer).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda s, n, p: one_cycle(s, n, 1.0), "should reach the peak, 0.4"),
        (lambda s, n, p: p * min(s / n, 1 - s / n) * 2, "the peak comes at step 50"),
        (lambda s, n, p: p if s <= 30 else one_cycle(s, n, p), "the peak comes at step 0"),
        (lambda s, n, p: max(one_cycle(s, n, p), 0.01), "the rate at the start is 0.01"),
        (lambda s, n, p: one_cycle(s, n, p) if s < n else 0.1, "the rate at the end is 0.1"),
        (lambda s, n, p: one_cycle(s, n, p) ** 2 / p, "on a straight line"),
        (lambda s, n, p: p * min(s / 30, (100 - s) / 70), "with 20 steps"),
    ],
)
def test_one_cycle_names_the_mistake(capsys, answer, fragment):
    names_the_mistake(capsys, check.one_cycle, answer, fragment)


# Exercise 3 ---------------------------------------------------------------------------------------


def calibration_error(confidence, right, bins=10):
    error, places = 0.0, (confidence * bins).long().clamp(max=bins - 1)
    for place in range(bins):
        inside = places == place
        if inside.any():
            gap = confidence[inside].mean() - right[inside].float().mean()
            error += inside.float().mean() * gap.abs()
    return error


def calibration_error_by_sums(confidence, right, bins=10):
    places = (confidence * bins).floor().long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add(0, places, confidence - right.float())
    return (gaps.abs().sum() / len(right)).item()


@pytest.mark.parametrize("answer", [calibration_error, calibration_error_by_sums])
def test_calibration_error_accepts(capsys, answer):
    assert verdict(capsys, check.calibration_error, answer).startswith("Correct: ")


def unweighted(confidence, right, bins=10):
    places = (confidence * bins).long()
    pairs = [(confidence[places == b], right[places == b].float()) for b in range(bins)]
    gaps = [(c.mean() - r.mean()).abs() for c, r in pairs if len(c)]
    return sum(gaps) / len(gaps)


def with_empty_bins(confidence, right, bins=10):
    places, error = (confidence * bins).long().clamp(max=bins - 1), 0.0
    for place in range(1 if bins == 10 and len(right) > 100 else 0, bins):
        inside = places == place
        gap = confidence[inside].mean() - right[inside].float().mean()
        error += inside.float().mean() * gap.abs()
    return error


def without_the_last(confidence, right, bins=10):
    keep = confidence < 1
    return calibration_error(confidence[keep], right[keep], bins) * keep.float().mean()


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (unweighted, "weight each bin"),
        (with_empty_bins, "an empty bin has no mean"),
        (without_the_last, "exactly 1 belongs to the last bin"),
        (lambda c, r, bins=10: 100 * calibration_error(c, r, bins), "this is a percentage"),
        (lambda c, r, bins=10: (r.float() - c).abs().mean(), "average within each bin first"),
        (lambda c, r, bins=10: r.float().mean(), "bins of equal width"),
        (lambda c, r: calibration_error(c, r), "your code raised TypeError"),
    ],
)
def test_calibration_error_names_the_mistake(capsys, answer, fragment):
    names_the_mistake(capsys, check.calibration_error, answer, fragment)


# Exercise 4 ---------------------------------------------------------------------------------------


def accumulate(model, x, y, size):
    model.zero_grad()
    total = 0.0
    for a, b in zip(x.split(size), y.split(size)):
        loss = F.cross_entropy(model(a), b) * len(b) / len(y)
        loss.backward()
        total += loss.item()
    return total


def accumulate_by_sums(model, x, y, size):
    parameters, total = list(model.parameters()), 0.0
    gradients = [torch.zeros_like(p) for p in parameters]
    for i in range(0, len(y), size):
        loss = F.cross_entropy(model(x[i : i + size]), y[i : i + size], reduction="sum") / len(y)
        for sum_, part in zip(gradients, torch.autograd.grad(loss, parameters)):
            sum_ += part
        total += loss.detach()
    for p, gradient in zip(parameters, gradients):
        p.grad = gradient
    return total


@pytest.mark.parametrize("answer", [accumulate, accumulate_by_sums])
def test_accumulate_accepts(capsys, answer):
    assert verdict(capsys, check.accumulate, answer).startswith("Correct: ")


def scaled(weight, clear="once", reduction="mean"):
    def answer(model, x, y, size):
        if clear == "once":
            model.zero_grad()
        total = 0.0
        for a, b in zip(x.split(size), y.split(size)):
            if clear == "each":
                model.zero_grad()
            loss = F.cross_entropy(model(a), b, reduction=reduction) * weight(len(b), len(y))
            loss.backward()
            total += loss.item()
        return total

    return answer


def steps_too(model, x, y, size):
    total = accumulate(model, x, y, size)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return total


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (scaled(lambda n, all: 1), "a sum of means"),
        (scaled(lambda n, all: 1 / 3), "the last part is smaller"),
        (scaled(lambda n, all: n / all, clear="never"), "the step before are still in it"),
        (scaled(lambda n, all: n / all, clear="each"), "only the last part is left"),
        (scaled(lambda n, all: 1, clear="each"), "only the last part is left"),
        (scaled(lambda n, all: 1, reduction="sum"), "the gradient of the summed loss"),
        (scaled(lambda n, all: -n / all), "not that of the mean loss"),
        (lambda m, x, y, size: accumulate(m, x, y, len(y)), "given 10 images at once"),
        (lambda m, x, y, size: accumulate(m, x, y, size) * 2, "return the mean loss"),
        (lambda m, x, y, size: m(x[:size]) and None, "your code raised RuntimeError"),
        (lambda m, x, y, size: m(x[:size]).sum().item(), "the gradient is not"),
        (steps_too, "the weights have changed"),
    ],
)
def test_accumulate_names_the_mistake(capsys, answer, fragment):
    names_the_mistake(capsys, check.accumulate, answer, fragment)
