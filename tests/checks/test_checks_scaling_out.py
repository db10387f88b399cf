import pytest
import torch
from verdicts import stub, verdict

from d2lres.checks import scaling_out as check


@pytest.mark.parametrize("name", ["whole_gradient", "whole_statistics", "seconds_a_step"])
def test_a_stub_is_not_attempted(capsys, name):
    checked = getattr(check, name)
    expected = f"Not attempted yet: {name.replace('_', ' ')}\n"
    assert verdict(capsys, checked, stub) == expected
    assert verdict(capsys, checked, lambda *args: None) == expected


# Exercise 1 ---------------------------------------------------------------------------------------


def whole_gradient(gradients, counts):
    return sum(g * n for g, n in zip(gradients, counts)) / sum(counts)


def whole_gradient_by_stacking(gradients, counts):
    weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return weights @ torch.stack(gradients).double()


@pytest.mark.parametrize("answer", [whole_gradient, whole_gradient_by_stacking])
def test_whole_gradient_accepts(capsys, answer):
    assert verdict(capsys, check.whole_gradient, answer).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (lambda g, n: sum(g) / len(g), "that is the plain mean"),
        (lambda g, n: sum(g), "that is the sum"),
        (lambda g, n: sum(a * k for a, k in zip(g, n)), "divide by the number of images"),
        (lambda g, n: sum(a * k for a, k in zip(g, n)) / len(g), "not by the number of processes"),
        (lambda g, n: g[0], "weigh each gradient"),
        (lambda g, n: sum(a.mean() for a in g), "return one gradient of shape (2,)"),
    ],
)
def test_whole_gradient_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.whole_gradient, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 2 ---------------------------------------------------------------------------------------


def mean_of(values, counts):
    return sum(v * n for v, n in zip(values, counts)) / sum(counts)


def whole_statistics(means, variances, counts):
    mean = mean_of(means, counts)
    squares = mean_of([v + m**2 for m, v in zip(means, variances)], counts)
    return mean, squares - mean**2


def whole_statistics_by_spread(means, variances, counts):
    mean = mean_of(means, counts)
    between = mean_of([(m - mean) ** 2 for m in means], counts)
    return [mean, mean_of(variances, counts) + between]


@pytest.mark.parametrize("answer", [whole_statistics, whole_statistics_by_spread])
def test_whole_statistics_accepts(capsys, answer):
    assert verdict(capsys, check.whole_statistics, answer).startswith("Correct: ")


def but_variance(change):
    def answer(means, variances, counts):
        mean, variance = whole_statistics(means, variances, counts)
        return mean, change(mean, variance, mean_of(variances, counts), variances, counts)

    return answer


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (but_variance(lambda m, v, within, vs, n: within), "that is the mean of the variances"),
        (but_variance(lambda m, v, within, vs, n: v - within), "the spread of the means alone"),
        (but_variance(lambda m, v, within, vs, n: v * sum(n) / (sum(n) - 1)), "not by one less"),
        (but_variance(lambda m, v, within, vs, n: v.sqrt()), "the standard deviation"),
        (but_variance(lambda m, v, within, vs, n: v + 1), "start from E[x²]"),
        (lambda m, v, n: (sum(m) / len(m), whole_statistics(m, v, n)[1]), "weigh each mean"),
        (lambda m, v, n: (m[0], v[0]), "the mean of the whole batch is"),
        (lambda m, v, n: mean_of(m, n), "return two tensors"),
    ],
)
def test_whole_statistics_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.whole_statistics, answer)
    assert said.startswith("Not yet: ") and fragment in said


# Exercise 3 ---------------------------------------------------------------------------------------


def seconds_a_step(parameters, processes, gigabits):
    return 2 * (processes - 1) / processes * 4 * parameters * 8 / (gigabits * 1e9)


def seconds_by_megabytes(parameters, processes, gigabits):
    megabytes = parameters * 4 / 1e6
    sent = megabytes * 2 * (1 - 1 / processes)
    return torch.tensor(sent / (gigabits * 1000 / 8))


@pytest.mark.parametrize("answer", [seconds_a_step, seconds_by_megabytes])
def test_seconds_a_step_accepts(capsys, answer):
    assert verdict(capsys, check.seconds_a_step, answer).startswith("Correct: ")


def times(factor):
    return lambda p, n, g: factor(n) * seconds_a_step(p, n, g)


@pytest.mark.parametrize(
    "answer, fragment",
    [
        (times(lambda n: 1 / 8), "a byte has 8 of them"),
        (times(lambda n: 1 / 4), "takes 4 bytes"),
        (times(lambda n: 1 / 32), "4 bytes of 8 bits each"),
        (times(lambda n: 0.5), "once to be summed, once to be handed out"),
        (times(lambda n: 1e9), "a gigabit is 10⁹ bits"),
        (times(lambda n: 3), "not"),
        (lambda p, n, g: 2 * 4 * p * 8 / (g * 1e9), "its own part stays"),
        (lambda p, n, g: 2 * (n - 1) * 4 * p * 8 / (g * 1e9), "the traffic of all processes"),
        (lambda p, n, g: seconds_a_step(p, n, g) + (n == 1), "one process sends nothing"),
    ],
)
def test_seconds_a_step_names_the_mistake(capsys, answer, fragment):
    said = verdict(capsys, check.seconds_a_step, answer)
    assert said.startswith("Not yet: ") and fragment in said
