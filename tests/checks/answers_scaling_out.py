"""Answers to the exercises of chapter 09. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "whole_gradient": [
        "import numpy as np\n\nreturn torch.as_tensor(np.average(gradients, 0, counts))",
        "return torch.stack(gradients, 1) @ torch.tensor(counts).to(gradients[0]) / sum(counts)",
        """
        total = torch.zeros_like(gradients[0])
        for g, n in zip(gradients, counts):
            total.add_(g, alpha=n / sum(counts))
        return total
        """,
    ],
    "whole_statistics": [
        """
        m, v, w = torch.stack(list(means)), torch.stack(list(variances)), torch.tensor(counts)
        mean, w = (w[:, None] * m).sum(0) / sum(counts), w[:, None] / sum(counts)
        return [mean, (w * (v + (m - mean).square())).sum(0)]
        """,
        """
        mean, variance, total = means[0], variances[0], counts[0]
        for m, v, n in zip(means[1:], variances[1:], counts[1:]):
            share = n / (total + n)
            variance = variance + share * (v - variance + (1 - share) * (m - mean) ** 2)
            mean, total = mean + share * (m - mean), total + n
        return mean, variance
        """,
        ("sum(m * n for m, n in zip(means, counts)) / total", "whole_gradient(means, counts)"),
    ],
    "seconds_a_step": [
        "return (1 - 1 / processes) * parameters * 64 / gigabits / 1e9",
        "return torch.tensor(64e-9 * parameters / gigabits).mul(processes - 1).div(processes)",
        """
        import numpy as np

        sent = sum(np.full(2 * (processes - 1), 4 * parameters / processes))
        return sent * 8 / (gigabits * np.float64(10) ** 9)
        """,
    ],
}

WRONG = {
    "whole_gradient": [
        ("", "return sum(gradients) / len(gradients)", "counts"),
        (" / sum(counts)", "", "divide"),
        (" / sum(counts)", " / len(counts)", "divide by all images, not by processes."),
        ("g * n", "g / n", "should give [3.25, 1.5]"),
        ("g * n for g, n", "g.mul_(n) for g, n", "changes"),
        ("zip(gradients, counts)", "zip(gradients, sorted(counts))", "should give [3.25, 1.5]"),
        ("g * n for", "g * (n // min(counts)) for", "should give"),
        ("", "return max(zip(counts, gradients), key=lambda pair: pair[0])[1]", "should give"),
    ],
    "whole_statistics": [
        (" * n for", " for", "should give"),
        ("total = sum(counts)", "total = len(counts)", "should give"),
        ("(v + m**2)", "v", "should give"),
        ("squares - mean**2", "(squares - mean**2) * total / (total - 1)", "divide by N, not N -"),
        ("(v + m**2) * n", "(v * (n - 1) / n + m**2) * n", "should give"),
        ("squares - mean**2", "(squares - mean**2).sqrt()", "that is the standard deviation."),
        ("squares - mean**2", "squares", "mean"),
        ("v + m**2", "v**2 + m**2", "variance"),
    ],
    "seconds_a_step": [
        ("2 * (processes", "(processes", "twice"),
        (" / processes", "", "(N - 1) / N"),
        ("(processes - 1) / processes * ", "", "a process keeps its own part of N."),
        ("(processes - 1) / processes", "(processes + 1) / processes", "(N - 1) / N"),
        ("(processes - 1) / processes", "(processes - 1) // processes", "should give 0.0012"),
        ("parameters * 8", "parameters", "bits"),
        ("4 * parameters", "2 * parameters", "half of it: each number travels twice, and"),
        ("return ", "return 1000 * ", "seconds"),
    ],
}
