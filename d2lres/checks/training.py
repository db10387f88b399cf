"""Self-checks of chapter 05."""

import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import Wrong, check


@check
def recall_precision(answer) -> str:
    counts = torch.tensor([[8, 1, 0, 1], [2, 5, 0, 3], [1, 3, 0, 6], [0, 0, 0, 5]])
    diagonal = counts.diagonal()
    recall = diagonal / counts.sum(1)
    precision = diagonal / counts.sum(0).clamp(min=1)
    got = answer(counts.clone())
    if got is None:
        raise NotImplementedError
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("return two tensors, (recall, precision).")
    ours, theirs = (torch.as_tensor(values, dtype=torch.float32).flatten() for values in got)
    if len(ours) != 4 or len(theirs) != 4:
        raise Wrong(
            f"four classes need four values each, yours have {len(ours)} and {len(theirs)}."
        )
    if _close(ours, precision) and _close(theirs, recall):
        raise Wrong("the two are the other way round: a row holds what is truly of a class.")
    if _close(ours, diagonal / counts.sum()):
        raise Wrong("divide by the number of images of each class, not by all images.")
    if not _close(ours, recall):
        raise Wrong(
            f"recall of these counts is {_rounded(recall)}, yours is {_rounded(ours)}: "
            "divide the diagonal by the sums of the rows."
        )
    if theirs.isnan().any() or theirs.isinf().any():
        raise Wrong("one class is never predicted, and 0 / 0 is no number: its precision is 0.")
    if not _close(theirs, precision):
        raise Wrong(
            f"precision of these counts is {_rounded(precision)}, yours is {_rounded(theirs)}: "
            "divide the diagonal by the sums of the columns."
        )
    return "recall asks what became of a class, precision how far an answer can be trusted."


@check
def one_cycle(answer) -> str:
    steps, peak = 100, 0.4
    first = answer(0, steps, peak)
    if first is None:
        raise NotImplementedError
    got = [float(answer(step, steps, peak)) for step in range(steps + 1)]
    expected = [peak * min(step / 30, (steps - step) / 70) for step in range(steps + 1)]
    top = max(range(steps + 1), key=got.__getitem__)
    if abs(max(got) - peak) > 1e-3 * peak:
        raise Wrong(f"the largest rate is {max(got):.3g}: it should reach the peak, {peak}.")
    if abs(top - 30) > 1:
        raise Wrong(f"the peak comes at step {top} of {steps}: it belongs at three tenths, 30.")
    for step, where in ((0, "at the start"), (steps, "at the end")):
        if abs(got[step]) > 1e-6:
            raise Wrong(f"the rate {where} is {got[step]:.3g}: it should be 0.")
    off = max(range(steps + 1), key=lambda step: abs(got[step] - expected[step]))
    if abs(got[off] - expected[off]) > 1e-3 * peak:
        raise Wrong(
            f"at step {off} the rate is {got[off]:.3g}, on a straight line it is "
            f"{expected[off]:.3g}: both the way up and the way down are linear."
        )
    if abs(float(answer(6, 20, 1.0)) - 1) > 1e-6:
        raise Wrong("with 20 steps the peak is at step 6: work with fractions of `steps`.")
    return "small steps while BN and momentum settle, large ones to travel, small ones to land."


@check
def calibration_error(answer) -> str:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.1 + 0.9 * torch.rand(2000, generator=generator)
    right = torch.rand(2000, generator=generator) < confidence**2
    got = answer(confidence.clone(), right.clone())
    if got is None:
        raise NotImplementedError
    got, expected = float(got), _calibration_error(confidence, right, 10)
    overall = abs(confidence.mean() - right.float().mean()).item()
    places = (confidence * 10).long().clamp(max=9)
    gaps = torch.stack(
        [
            (confidence[places == b].mean() - right[places == b].float().mean()).abs()
            for b in range(1, 10)
        ]
    )
    for value, advice in (
        (gaps.mean().item(), "weight each bin by its share of the images: bins differ in size."),
        (100 * expected, "this is a percentage: give a fraction, 0 to 1."),
        (
            (right.float() - confidence).abs().mean().item(),
            "average within each bin first: a "
            "single image is right or wrong, and says nothing about 70 %.",
        ),
    ):
        if abs(got - value) < 1e-5 < abs(value - expected):
            raise Wrong(advice)
    if abs(got - expected) > 1e-5:
        raise Wrong(
            f"the error of this set is {expected:.4f}, yours is {got:.4f}: bins of equal width "
            "from 0 to 1, and in each |mean confidence - fraction right|."
        )
    both = (
        torch.tensor([0.55, 0.95, 0.95, 0.95, 1.0]),
        torch.tensor([True, True, True, False, False]),
    )
    for bins in (10, 2):
        got, expected = float(answer(*both, bins)), _calibration_error(*both, bins)
        if got != got:
            raise Wrong("an empty bin has no mean: leave it out.")
        if abs(got - expected) > 1e-5:
            raise Wrong(
                f"with {bins} bins the error of five images is {expected:.4f}, yours is "
                f"{got:.4f}: a confidence of exactly 1 belongs to the last bin."
            )
    return f"the average alone would have said {overall:.2f}: errors of opposite sign cancel in it."


def _calibration_error(confidence, right, bins: int) -> float:
    places = (confidence * bins).long().clamp(max=bins - 1)
    error = 0.0
    for place in places.unique():
        inside = places == place
        gap = confidence[inside].mean() - right[inside].float().mean()
        error += inside.float().mean().item() * gap.abs().item()
    return error


@check
def accumulate(answer) -> str:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(10, 3, 2, 2), torch.arange(10) % 3
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    parts = [F.cross_entropy(model(a), b) for a, b in zip(x.split(4), y.split(4))]
    wrong = {}
    for name, total in (("sum", sum(parts)), ("mean", sum(parts) / 3), ("last", parts[-1])):
        gradient = torch.autograd.grad(total, parameters, retain_graph=True)
        wrong[name] = torch.cat([g.flatten() for g in gradient])
    before = [p.detach().clone() for p in parameters]
    seen: list[int] = []
    hook = model.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    for p in parameters:
        p.grad = torch.ones_like(p)  # left over from the step before
    returned = answer(model, x, y, 4)
    hook.remove()
    if not seen:
        raise NotImplementedError
    if max(seen) > 4:
        raise Wrong(f"the model was given {max(seen)} images at once: at most `size`, 4 here.")
    if any(not torch.equal(p, b) for p, b in zip(parameters, before)):
        raise Wrong("the weights have changed: leave the step to the optimizer.")
    if any(p.grad is None for p in parameters):
        raise Wrong("a parameter has no gradient: call backward() on the loss of each part.")
    got = torch.cat([p.grad.flatten() for p in parameters])
    for value, advice in (
        (expected + 1, "the gradients of the step before are still in it: clear them first."),
        (wrong["sum"], "this is the gradient of a sum of means: a part of n images counts n / N."),
        (
            wrong["mean"],
            "the last part is smaller than the others: weight each by its size, n / N.",
        ),
        (wrong["last"], "only the last part is left: clear the gradients once, not for each part."),
        (
            wrong["last"] * 0.2,
            "only the last part is left: clear the gradients once, not each time.",
        ),
        (
            expected * 10,
            "this is the gradient of the summed loss: divide by the whole batch's size.",
        ),
    ):
        if _close(got, value) and not _close(got, expected):
            raise Wrong(advice)
    if not _close(got, expected):
        raise Wrong("the gradient is not that of the mean loss over the whole batch.")
    if returned is None or abs(float(returned) - loss.item()) > 1e-5:
        raise Wrong(f"return the mean loss of the whole batch, {loss.item():.3f} here.")
    return "any batch fits into any memory, as long as no layer mixes the images of a batch."


def _close(a, b) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def _rounded(values) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist())
