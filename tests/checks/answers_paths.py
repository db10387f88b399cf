"""Answers to the exercises of chapter 05. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "by_length": [
        """
        import numpy as np

        p = np.poly1d([1.0])
        for j in slopes:
            p = p * np.poly1d([j, 1.0])
        return p.coeffs[::-1].tolist() + [0.0] * (len(slopes) - p.order)
        """,
        """
        import torch

        t = torch.zeros(len(slopes) + 1, dtype=torch.float64)
        t[0] = 1
        for j in slopes:
            t[1:] += j * t[:-1].clone()
        return t
        """,
        """
        if not slopes:
            return [1.0]
        shorter = by_length(slopes[1:])
        return [a + slopes[0] * b for a, b in zip(shorter + [0.0], [0.0] + shorter)]
        """,
    ],
    "effective_depth": [
        "return n * c / (1 + c)",
        "import numpy as np\n\np = np.poly1d([c, 1.0]) ** n\nreturn p.deriv()(1.0) / p(1.0)",
        """
        import torch

        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(n * torch.log(1 + c * t.exp()), t)[0]
        """,
    ],
    "best_segment": [
        """
        counts = [-(-n // s) + s for s in range(1, n + 1)]
        return counts.index(min(counts)) + 1
        """,
        """
        best = n
        for s in range(n, 0, -1):
            if (n + s - 1) // s + s <= -(-n // best) + best:
                best = s
        return best
        """,
        """
        from math import ceil

        return sorted((ceil(n / s) + s, s) for s in range(1, n + 1))[0][1]
        """,
    ],
}

WRONG = {
    "by_length": [
        ("return sums", "return sums[1:]", "length 0 is the path that passes"),
        ("return sums", "return sums[::-1]", "begin with length 0"),
        ("return sums", "return [sum(sums)]", "keep the lengths apart"),
        ("", "return [float(comb(len(slopes), k)) for k in range(len(slopes) + 1)]", "numbers of"),
        ("past + j * taken", "past + abs(j) * taken", "a term keeps the signs"),
        ("past + j * taken", "past * j + taken", "begin with length 0"),
        ("return sums", "return sums[-1]", "n + 1 numbers"),
        ("return sums", "return sums[-1:]", "longest path alone"),
        ("return sums", "return [a / comb(len(slopes), k) for k, a in enumerate(sums)]", "average"),
        ("sums = [1.0]", "sums = [1.0]\n    slopes.reverse()", "changes"),
        (
            "",
            """
            from itertools import product
            from math import prod

            sums = [0.0] * (len(slopes) + 1)
            for way in product((0, 1), repeat=len(slopes)):
                sums[sum(way)] += prod(j for j, yes in zip(slopes, way) if yes)
            return sums
            """,
            "seconds",
        ),
    ],
    "effective_depth": [
        ("", "return n / 2", "all paths weigh the same: a path of length k"),
        ("comb(n, k) * c**k", "c**k", "paths of length"),
        ("c**k for", "c * k for", "c**k"),
        ("range(n + 1)", "range(n)", "the path of length n is missing in both sums."),
        ("c**k for", "c ** (n - k) for", "c**k"),
        ("/ sum(weights)", "/ 2**n", "divide by the weights, not by the number of"),
        ("", "return max(range(n + 1), key=lambda k: comb(n, k) * c**k)", "should give 0.4118"),
        ("", "return round(n * c / (1 + c), 2)", "should give 0.4118"),
    ],
    "best_segment": [
        ("-(-n // s) + s", "n // s + s", "the last segment may be shorter"),
        ("-(-n // s) + s", "n / s + s", "the root of n is close"),
        ("", "return round(n**0.5)", "the root of n is close"),
        ("", "return min(-(-n // s) + s for s in range(1, n + 1))", "not how many blocks"),
        ("range(1, n + 1)", "range(n, 0, -1)", "of several take the shortest"),
        ("range(1, n + 1)", "range(1, n)", "best_segment(1)"),
        ("-(-n // s) + s", "-(-n // s)", "best_segment("),
        ("return min", "return -min", "best_segment("),
    ],
}
