"""Self-checks of chapter 05."""

import math

import torch

from d2lres.checks import check, compare


@check
def by_length(answer) -> str:
    def sums(slopes):
        found = [1.0]
        for j in slopes:
            found = [past + j * taken for past, taken in zip([*found, 0.0], [0.0, *found])]
        return torch.tensor(found, dtype=torch.float64)

    def paths(slopes):
        n = len(slopes)
        return torch.tensor([float(math.comb(n, k)) for k in range(n + 1)], dtype=torch.float64)

    mistakes = {
        "that is the longest path alone: sort all terms by length.": lambda s: sums(s)[-1:],
        "length 0 is the path that passes all blocks by: its term is 1.": lambda s: sums(s)[1:],
        "the path that takes all blocks is missing.": lambda s: sums(s)[:-1],
        "that is the whole sum: keep the lengths apart.": lambda s: sums(s).sum(0, keepdim=True),
        "these are the numbers of paths: add up their terms.": paths,
        "begin with length 0, end with length n.": lambda s: sums(s).flip(0),
        "add the terms of a length up: do not average them.": lambda s: sums(s) / paths(s),
        "a term keeps the signs of its slopes.": lambda s: sums([abs(j) for j in s]),
    }
    slopes = [[0.5, -0.25, 0.5], [2.0], [], [0.0, 3.0], [-1.0, 1.0, 4.0, 0.5], [0.25] * 30]
    slopes += [torch.randn(n).double().tolist() for n in (2, 5, 9)]
    hint = "the sums of the terms of length 0, 1, ..., n"
    compare(answer, sums, [(it,) for it in slopes], mistakes, form="n + 1 numbers", hint=hint)
    return "their sum is the residual gradient, and the last one alone is the plain gradient."


@check
def effective_depth(answer) -> str:
    def mean(n, c, norm=0.0, last=1, count=math.comb):
        weights = [count(n, k) * c**k for k in range(n + last)]
        return sum(k * weight for k, weight in enumerate(weights)) / (norm or sum(weights))

    mistakes = {
        "all paths weigh the same: a path of length k weighs c**k.": lambda n, c: n / 2,
        "there are comb(n, k) paths of length k.": lambda n, c: mean(n, c, count=lambda *_: 1),
        "divide by the sum of the weights, (1 + c)**n.": lambda n, c: mean(n, c, 1),
        "divide by the weights, not by the number of paths.": lambda n, c: mean(n, c, 2**n),
        "range(n + 1) ends with the path of length n.": lambda n, c: mean(n, c, (1 + c) ** n, 0),
        "the path of length n is missing in both sums.": lambda n, c: mean(n, c, last=0),
    }
    cases = [(2, 1.0), (3, 2.0), (10, 1.0), (5, 0.0), (1, 0.7), (54, 0.25), (54, 1.0), (110, 0.1)]
    cases += [(int(n), c) for n, c in zip((4, 13, 31), (3 * torch.rand(3)).tolist())]
    hint = "the mean length, where each of the comb(n, k) paths of length k weighs c**k"
    compare(answer, mean, cases, mistakes, form="one number", hint=hint)
    return (
        "the mean is n c / (1 + c): with c = 0.25 the gradient of 54 blocks comes from paths of "
        "about 11."
    )


@check
def best_segment(answer) -> str:
    def kept(n, s, whole=False):
        return (n // s if whole else -(-n // s)) + s

    def best(n, key=kept):
        return min(range(1, n + 1), key=lambda s: key(n, s))

    mistakes = {
        "the last segment may be shorter, and keeps its input, too.": lambda n: best(
            n, lambda n, s: kept(n, s, whole=True)
        ),
        "of several take the shortest.": lambda n: min(range(n, 0, -1), key=lambda s: kept(n, s)),
        "return the segment length, not how many blocks are kept.": lambda n: kept(n, best(n)),
        "the root of n is close, but not always the best: try every s.": lambda n: round(n**0.5),
        "the root of n, rounded up, is not always the shortest.": lambda n: math.ceil(n**0.5),
        "return the segment length, not the number of segments.": lambda n: -(-n // best(n)),
    }
    cases = [(n,) for n in (*range(1, 19), 54, 110, 167)]
    hint = "the s with the smallest sum of segments and s"
    compare(answer, best, cases, mistakes, form="a whole number", hint=hint)
    return "about the root of n: a stage of 167 blocks keeps 26 at a time in place of 167."
