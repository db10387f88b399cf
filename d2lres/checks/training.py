"""Self-checks of chapter 06."""

import time
from statistics import mean

import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import Wrong, call, check, compare, require
from d2lres.data import fashion_mnist
from d2lres.speed import Recipe, accuracy, trained


@check
def recall_precision(answer) -> str:
    def right(n):
        return n.diagonal() / n.sum(1), n.diagonal() / n.sum(0).clamp(min=1)

    mistakes = {
        "swap the two: a row holds what is truly of a class.": lambda n: right(n)[::-1],
        "divide by the images of each class, not by all.": lambda n: (n.diagonal() / n.sum(),) * 2,
        "both are recall: precision divides by the columns.": lambda n: (right(n)[0],) * 2,
        "both are precision: recall divides by the rows.": lambda n: (right(n)[1],) * 2,
    }
    cases = [(torch.tensor([[3, 1, 0], [2, 2, 0], [0, 1, 0]]),)]  # the last is never predicted
    cases.append((torch.tensor([[1, 3, 0], [0, 4, 2], [0, 0, 2]]),))  # the first once, and rightly
    for n, most in (2, 40), (3, 9_000), (12, 40), (1, 40):
        cases.append((torch.randint(most, (n, n)) + torch.eye(n, dtype=torch.int64),))
    hint = "the diagonal over the sums of rows and of columns, and 0 for what is never predicted"
    compare(answer, right, cases, mistakes, form="two tensors, (recall, precision)", hint=hint)
    return "recall asks what became of a class, precision how far an answer can be trusted."


@check
def one_cycle(answer) -> str:
    def right(step, steps, peak, top=0.3):
        return peak * min(step / (top * steps), (steps - step) / ((1 - top) * steps))

    mistakes = {
        "the peak comes half-way, not at three tenths.": lambda a, n, peak: right(a, n, peak, 0.5),
        "the peak is missing: that is the fraction of it.": lambda a, n, peak: right(a, n, 1.0),
        "the way down is missing.": lambda a, n, peak: peak * min(a / (0.3 * n), 1),
    }
    sizes = (100, 0.4), (20, 1.2345), (7, 0.01234), (33, 2.5), (1, 0.1)
    cases = [(step, steps, peak) for steps, peak in sizes for step in range(steps + 1)]
    cases += [(step, 250_000, 0.1) for step in (0, 40_000, 75_000, 200_000, 250_000)]
    hint = "straight lines from 0 to the peak at 0.3 · steps, and from there to 0"
    compare(answer, right, cases, mistakes, form="one number", hint=hint)
    return "0 at both ends, the peak at three tenths, and straight lines between them."


@check
def calibration_error(answer) -> str:
    def gaps(confidence, right, bins=10):
        place = (confidence * bins).long().clamp(max=bins - 1)
        off = confidence - right.float()
        inside = [place == b for b in place.unique()]
        return torch.tensor([[off[it].mean(), it.sum()] for it in inside])

    def error(*case):
        gap, size = gaps(*case).T
        return (gap.abs() * size / size.sum()).sum().item()

    mistakes = {
        "weight each bin by its images.": lambda *it: gaps(*it)[:, 0].abs().mean().item(),
        "this is a percentage: give a fraction, 0 to 1.": lambda *it: 100 * error(*it),
        "gaps must not cancel: take each without its sign.": lambda a, b, *_: error(a, b, 1),
        "average within a bin first.": lambda a, b, *_: (a - b.float()).abs().mean().item(),
    }
    few = torch.tensor([0.55, 0.95, 0.93, 0.97, 1.0]), torch.tensor([1, 1, 1, 1, 0]) == 1
    cases = [few, (*few, 2), *((torch.tensor([c]), torch.tensor([c < 1])) for c in (0.0, 1.0))]
    for n, *bins in (401, 15), (97, 3), (2000,):
        confidence = torch.rand(n).sqrt()
        wave = 0.3 * torch.sin(torch.pi * (*bins, 10)[0] * confidence)  # each bin's other way round
        cases.append((confidence, torch.rand(n) < confidence + wave, *bins))
    hint = "bins of equal width from 0 to 1, and in each |mean confidence - fraction right|"
    compare(answer, error, cases, mistakes, form="one number", hint=hint)
    whole, fine = error(*cases[-1], 1), error(*cases[-1])
    return f"on one set all images together are off by {whole:.2f}, its ten bins by {fine:.2f}."


class _Louder(nn.Module):
    """Shows in which mode it runs."""

    def forward(self, x):
        return 2 * x if self.training else x


@check
def accumulate(answer) -> str:
    def accumulate(model, x, y, size):
        def watch(_, args):
            n = len(args[0])
            require(n <= size, f"the model was given {n} images at once: at most {size} here.")

        hooks = [module.register_forward_pre_hook(watch) for module in model.modules()]
        loss = answer(model, x, y, size)
        for hook in hooks:
            hook.remove()
        gradients = [0 * p if p.grad is None else p.grad for p in model.parameters()]
        return {"loss": loss, "gradient": torch.cat([g.flatten() for g in gradients]).detach()}

    def by(weigh=lambda n: n / n.sum(), old=0.0, first=0, times=1.0):
        def run(model, x, y, size):
            losses = [F.cross_entropy(model(a), b) for a, b in zip(x.split(size), y.split(size))]
            n = torch.tensor([len(part) for part in y.split(size)])
            loss = (torch.stack(losses) * weigh(n))[first:].sum()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            mean = F.cross_entropy(model(x), y).item()
            return {
                "loss": mean,
                "gradient": torch.cat([times * g.flatten() for g in gradients]) + old,
            }

        return run

    mistakes = {
        "the step before is still in `.grad`: clear it first.": by(old=1.0),
        "parts' means are added up: a part of n counts n / N.": by(lambda n: 1),
        "the last part may be smaller: weigh each by its size.": by(lambda n: 1 / len(n)),
        "only the last part is left: clear once, at the start.": by(first=-1),
        "that is the summed loss: divide by all images, N.": by(lambda n: n),
        "`.grad` is empty afterwards: call backward() on each part's loss.": by(times=0.0),
        "`.grad` is what it was before: use the model itself.": by(old=1.0, times=0.0),
    }
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3), _Louder())
    conv = nn.Sequential(nn.Conv2d(3, 4, 2), _Louder(), nn.Flatten(), nn.Linear(4, 5)).eval()
    cases = []
    for model, n, size in (flat, 10, 4), (conv, 9, 2), (flat, 6, 9), (conv, 5, 1), (flat, 12, 4):
        for p in model.parameters():
            p.grad = torch.ones_like(p)  # left over from the step before
        cases.append((model, 9 * torch.randn(n, 3, 2, 2), torch.arange(n) % 3, size))
    cases.append((flat, torch.randn(7, 12), torch.arange(7) % 3, 3))
    form, hint = "the mean loss", "the mean loss of all images, and in `.grad` its gradient"
    watch = dict(changes=("model.*.grad",), draws=True)
    compare(accumulate, by(), cases, mistakes, form=form, hint=hint, **watch)
    return "any batch fits into any memory, as long as no layer mixes the images of a batch."


def _raced(recipe: Recipe, few: int = 3000) -> tuple[float, float]:
    """Accuracy on images that were not trained on, and processor seconds: means of two seeds."""
    images, _ = fashion_mnist()
    runs = []
    for seed in (0, 1):
        start = time.process_time()
        net = trained(recipe, images[:few], seed)
        runs.append((accuracy(recipe, net, images[5000:]), time.process_time() - start))
    return mean(run[0] for run in runs), mean(run[1] for run in runs)


@check
def own_rung(answer) -> str:
    below = Recipe(width=8, epochs=2)
    above = call(answer, below)
    require(isinstance(above, Recipe), f"return a Recipe, by replace(); yours is {above!r:.60}.")
    require(above != below, "that is the recipe as it was: change something by replace().")
    require(above.epochs == below.epochs, "epochs stay as they are: a rung makes each one better.")
    try:
        _raced(below, few=128)  # so that what is loaded once is not in the seconds
        (before, took), (after, takes) = _raced(below), _raced(above)
    except Exception as error:
        raise Wrong(f"that recipe cannot be trained: {type(error).__name__}: {error}") from error
    gain, factor = 100 * (after - before), takes / took
    told = f"{after:.1%} in {takes:.1f} s against {before:.1%} in {took:.1f} s, two seeds"
    require(factor < 1.5, f"{told}: that takes {factor:.1f} times as long, at most 1.5 is allowed.")
    require(gain >= 5, f"{told}: {gain:+.1f} points, where 5 can be had with another change.")
    return "at least five points more, on images that neither was trained on, for at most 1.5 times the seconds."
