"""Self-checks of chapter 09."""

import torch

from d2lres.checks import check, compare


@check
def whole_gradient(answer) -> str:
    def right(gradients, counts):
        return sum(g * n for g, n in zip(gradients, counts)) / sum(counts)

    mistakes = {
        "a plain mean: an image of a large share counts less in it.": lambda g, n: sum(g) / len(n),
        "that is the sum: weigh each by its share of the images.": lambda g, n: sum(g),
        "those are sums over images: divide by their number.": lambda g, n: right(g, n) * sum(n),
        "divide by all images, not by processes.": lambda g, n: right(g, n) * sum(n) / len(n),
    }
    cases = [([torch.tensor([4.0, 0.0]), torch.tensor([1.0, 6.0])], [3, 1])]
    cases += [
        ([torch.randn(4) for _ in n], n)
        for n in ([2, 2, 2], [5, 1, 2], [7], [300, 100], [6, 1, 1, 2, 1, 1])
    ]
    form = "one gradient, a tensor as long as each of those that came"
    compare(
        answer,
        right,
        cases,
        mistakes,
        form=form,
        hint="their sum, each weighed by its share of the images",
    )
    return "weighed by their images, uneven shares give the gradient of the whole batch."


@check
def whole_statistics(answer) -> str:
    def mean(values, counts):
        return sum(v * n for v, n in zip(values, counts)) / sum(counts)

    def right(means, variances, counts):
        centre = mean(means, counts)
        return centre, mean([v + (m - centre) ** 2 for m, v in zip(means, variances)], counts)

    def off(change):
        return lambda m, v, n: (mean(m, n), change(m, v, n, right(m, v, n)[1]))

    mistakes = {
        "the order is (mean, variance).": lambda *it: right(*it)[::-1],
        "the variance leaves out how far the means are apart.": off(lambda m, v, n, _: mean(v, n)),
        "the variances are averaged, unweighed.": off(lambda m, v, n, _: sum(v) / len(n)),
        "add the shares' own variances.": off(lambda m, v, n, it: it - mean(v, n)),
        "take the square of the mean off E[x²].": off(lambda m, v, n, it: it + mean(m, n) ** 2),
        "that is the standard deviation.": off(lambda m, v, n, it: it.sqrt()),
        "divide by N, not N - 1, as BN does.": off(lambda m, v, n, it: it * sum(n) / (sum(n) - 1)),
    }
    shares = [torch.tensor([[0.0, 4.0], [2.0, 4.0]]), torch.tensor([[5.0, 1.0]])]
    cases: list = [([s.mean(0) for s in shares], [s.var(0, correction=0) for s in shares], [2, 1])]
    for counts in [4, 4], [5, 2, 1], [3], [2, 9, 2, 7]:
        moments = zip(*[(3 * torch.randn(3), torch.rand(3) * (n > 1)) for n in counts])
        cases.append((*map(list, moments), counts))
    hint = "mean and variance of all images together"
    compare(answer, right, cases, mistakes, form="two tensors, (mean, variance)", hint=hint)
    return "two numbers a channel and share are all that synchronised batch norm has to send."


@check
def seconds_a_step(answer) -> str:
    def right(parameters, processes, gigabits):
        return 2 * (processes - 1) / processes * 4 * parameters * 8 / (gigabits * 1e9)

    mistakes = {
        "a network's speed is in bits: a byte has 8 of them.": lambda *it: right(*it) / 8,
        "a float32 number takes 4 bytes.": lambda *it: right(*it) / 4,
        "half of it: each number travels twice, and takes 4 bytes.": lambda *it: right(*it) / 2,
        "a process keeps its own part of N.": lambda p, n, g: 64 * p / (g * 1e9),
        "(N - 1) / N, not N - 1: all send at the same time.": lambda p, n, g: n * right(p, n, g),
        "a gigabit is 10⁹ bits.": lambda *it: 1e9 * right(*it),
    }
    cases = [(250_000, 4, 10), (11_175_370, 2, 1), (1_000, 1, 1), (25_557_032, 8, 2.5)]
    cases += [(500_000_000, 2, 0.4), (1_000_000, 4096, 0.05)]
    cases += [(997 * p, n, 0.1 * p) for p, n in torch.randint(2, 900, (4, 2)).tolist()]
    hint = "2 · (N - 1) / N of all gradients, 32 bits each, at this speed"
    compare(answer, right, cases, mistakes, form="one number", hint=hint)
    return "compare it with the seconds that a step computes: that decides whether machines pay."
