"""Self-checks of chapter 08."""

import torch

from d2lres.checks import Wrong, check


@check
def whole_gradient(answer) -> str:
    gradients = [torch.tensor([4.0, 0.0]), torch.tensor([1.0, 6.0]), torch.tensor([1.0, 0.0])]
    for counts in ([2, 2, 2], [3, 3, 2], [5, 1, 2]):
        weights = torch.tensor(counts) / sum(counts)
        expected = sum(w * g for w, g in zip(weights, gradients))
        got = answer([g.clone() for g in gradients], list(counts))
        if got is None:
            raise NotImplementedError
        got = torch.as_tensor(got, dtype=torch.float32)
        if got.shape != expected.shape:
            raise Wrong(f"return one gradient of shape (2,), yours has shape {tuple(got.shape)}.")
        if torch.allclose(got, expected, atol=1e-5):
            continue
        for value, advice in (
            (
                sum(gradients) / 3,
                "that is the plain mean: a share of 5 images must count five times "
                "as much as a share of 1.",
            ),
            (sum(gradients), "that is the sum: divide by something."),
            (expected * sum(counts), "those are sums over images: divide by the number of images."),
            (
                expected * sum(counts) / 3,
                "divide by the number of images of the whole batch, not by "
                "the number of processes.",
            ),
        ):
            if torch.allclose(got, value, atol=1e-5):
                raise Wrong(advice)
        raise Wrong(
            f"for shares of {counts} images {_row(expected)} is expected, not {_row(got)}: weigh "
            "each gradient by its share of the images."
        )
    return "weighed by their images, uneven shares give the gradient of the whole batch."


@check
def whole_statistics(answer) -> str:
    generator = torch.Generator().manual_seed(0)
    for counts in ([4, 4], [5, 2, 1]):
        shares = [torch.randn(n, 3, generator=generator) + 3 * i for i, n in enumerate(counts)]
        means = [share.mean(0) for share in shares]
        variances = [share.var(0, correction=0) for share in shares]
        got = answer(list(means), list(variances), list(counts))
        if got is None:
            raise NotImplementedError
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong("return two tensors, (mean, variance).")
        whole = torch.cat(shares)
        mean, variance = (torch.as_tensor(value, dtype=torch.float32) for value in got)
        if not _close(mean, whole.mean(0)):
            if _close(mean, sum(means) / len(means)):
                raise Wrong("the shares differ in size: weigh each mean by its number of images.")
            raise Wrong(
                f"the mean of the whole batch is {_row(whole.mean(0))}, not {_row(mean)}: weigh each "
                "mean by its number of images."
            )
        expected = whole.var(0, correction=0)
        if _close(variance, expected):
            continue
        weights = torch.tensor(counts) / sum(counts)
        within = sum(w * v for w, v in zip(weights, variances))
        for value, advice in (
            (
                within,
                "that is the mean of the variances: the shares' means differ from each other, "
                "and that spread belongs to the whole, too.",
            ),
            (
                sum(variances) / len(counts),
                "the mean of the variances leaves out how far apart the shares' means are.",
            ),
            (
                expected - within,
                "that is the spread of the means alone: add the shares' own variances.",
            ),
            (whole.var(0), "divide by the number of images, not by one less, as batch norm does."),
            (
                within + mean**2,
                "E[x²] of the whole is the mean of variance + mean²: the square of "
                "the mean is still to be taken off.",
            ),
            (expected.sqrt(), "that is the standard deviation: return the variance."),
        ):
            if _close(variance, value):
                raise Wrong(advice)
        raise Wrong(
            f"the variance of the whole batch is {_row(expected)}, not {_row(variance)}: start from "
            "E[x²], which is variance + mean² in each share."
        )
    return "two numbers a channel and share are all that synchronised batch norm has to send."


@check
def seconds_a_step(answer) -> str:
    for parameters, processes, gigabits in ((250_000, 4, 10), (11_175_370, 2, 1), (1_000, 1, 1)):
        expected = 2 * (processes - 1) / processes * 4 * parameters * 8 / (gigabits * 1e9)
        got = answer(parameters, processes, gigabits)
        if got is None:
            raise NotImplementedError
        got = float(got)
        if abs(got - expected) <= 1e-3 * expected:
            continue
        if processes == 1:
            raise Wrong(f"one process sends nothing, so 0 is expected, not {got:g}.")
        for factor, advice in (
            (1 / 8, "a network's speed is in bits: a byte has 8 of them."),
            (1 / 4, "a float32 number takes 4 bytes."),
            (1 / 32, "a float32 number takes 4 bytes of 8 bits each."),
            (1 / 2, "every number travels twice: once to be summed, once to be handed out."),
            (
                processes / (processes - 1),
                "each process sends (N - 1) / N of the gradients twice, its own part stays.",
            ),
            (processes, "that is the traffic of all processes: they send at the same time."),
            (1e9, "a gigabit is 10⁹ bits."),
        ):
            if abs(got - factor * expected) <= 1e-3 * factor * expected:
                raise Wrong(advice)
        raise Wrong(
            f"{parameters:,} parameters, {processes} processes and {gigabits} Gbit/s take "
            f"{expected:.4g} s, not {got:.4g}."
        )
    return "compare it with the seconds that a step computes: that decides whether machines pay."


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


def _row(values: torch.Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.flatten().tolist()) + "]"
