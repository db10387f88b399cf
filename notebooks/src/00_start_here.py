# %% [markdown]
# # Start here
# Two networks, one race: in half a minute you see the problem that residual networks solve, on real images and on your own machine.
#
# **You can afterwards** use the course, and say what happened in its first race.
#
# **What you will learn**
# - how every chapter works: a claim, your prediction, a cell, what was seen
# - whether this machine can run the course
# - what happens to a plain network of 44 layers, and what happens when its blocks also pass on their input
# - where to find the verdict on every claim
#
# **What you need**: PyTorch's `nn.Module`. You need not have met a skip connection before. **Minutes**: 30, half of them for the exercises.

# %% tags=["setup"]

# %% [markdown]
# ## How to use this course
# You read a claim, and you commit to a prediction before you run the cell.
# A wrong prediction is the most useful kind: note it down.
#
# Every cell has been executed, and its output is part of the page, so you can also just read.
# Cells whose output depends on your machine end with an `assert`.
# If the claim does not hold on your machine, the cell stops with an error.
#
# Digits in measured outputs differ a little from machine to machine.
# Shapes, counts and verdicts do not.

# %% [markdown]
# ## The chapters
# <!-- chapters -->
#
# The answers to all exercises stand in the folder `solutions`, executed as well.

# %% [markdown]
# ## Can this machine run it?
# The doctor looks at Python, the packages, the device and the data.
# It changes nothing and fetches nothing.

# %% tags=["nbval-ignore-output", "reason: what the doctor finds differs between machines"]
from d2lres.doctor import report

text, ready = report()
print(text)
assert ready, "follow the arrows above, then run this cell again"

# %% [markdown]
# A line marked `MISSING` says what to do.
# You can print the same report in a terminal with `python -m d2lres doctor`.

# %% [markdown]
# ## The images
# The course trains on **Fashion-MNIST**: grey images of clothing, 28×28 pixels, ten classes (Xiao et al. 2017).
# A balanced sample of the 70,000 comes with the course, so no cell waits for a download.

# %%
from d2lres import figures
from d2lres.data import fashion_mnist

train, test = fashion_mnist()
print(len(train), "training images,", len(test), "test images, each", tuple(train.images[0].shape))
first = [(train.labels == label).nonzero()[0].item() for label in range(10)]
figures.show(
    figures.images(
        train[first],
        titles=train.classes,
        columns=10,
        alt="One training image of each of the ten classes of clothing.",
    )
)

# %% [markdown]
# One image of each class.
# Some pairs are close: look at the pullover, the coat and the shirt.
#
# ## The race
# Take a network of 44 layers, small enough for a laptop.
# All but two of them come in pairs, called **blocks**.
# Build it twice, from the same random numbers:
#
# - the **plain** network passes each block's output on to the next block
# - the **residual** network passes on the block's output *plus its input*
#
# Nothing else differs.
# Both have the same layers, the same parameters and the same initial weights.

# %%
import torch

from d2lres import cifar_resnet


def build(residual, seed=0):
    torch.manual_seed(seed)
    return cifar_resnet(44, in_channels=1, width=8, residual=residual)


plain, residual = build(residual=False), build(residual=True)
same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), residual.parameters()))
print("parameters:", sum(p.numel() for p in plain.parameters()))
print("same initial weights:", same)
assert same

# %% [markdown]
# **Predict** before you run: after two passes over the training images, how far apart are they?
# Choose one: the plain network is ahead; both are within two points of accuracy; the residual network is ahead by two to ten points; by more than ten.

# %% tags=["nbval-ignore-output", "reason: losses and accuracies differ in the last digits between machines"]
from d2lres.training import evaluate, fit

train, test = fashion_mnist(size=14)  # 14x14 pixels: a quarter of the arithmetic
race = {
    "plain-44": fit(plain, train, epochs=2, lr=0.1),
    "residual-44": fit(residual, train, epochs=2, lr=0.1),
}
scores = {"plain-44": evaluate(plain, train), "residual-44": evaluate(residual, train)}
for name, score in scores.items():
    print(
        f"{name:12}  training loss {score.loss:.2f}  training accuracy {score.accuracy:.0%}"
        f"  {sum(race[name].seconds):.0f} s"
    )
assert scores["residual-44"].accuracy > scores["plain-44"].accuracy + 0.10  # holds for seeds 0-4

# %% [markdown]
# The residual network is ahead by more than ten points, on images that both have seen.
# So this is no matter of generalisation: the plain network fails to *learn* what its twin learns.
# One addition per block makes the difference.
#
# Does it only start slowly, or is it stuck?
# Would fewer layers help?
# Chapter 1 answers both.

# %% [markdown]
# ## The ledger
# This course grew out of five study notes on residual networks.
# They make claims, as all notes do.
# Each claim that a chapter has settled stands here, with its verdict and the chapter that shows it.
#
# Reading it now gives some predictions away.
# You may prefer to come back after each chapter.

# %%
from collections import Counter

from IPython.display import Markdown, display

from d2lres.records import claims, ledger

verdicts = Counter(row["verdict"].split()[0] for row in claims())
assert set(verdicts) <= {"holds", "false"}
display(Markdown(ledger()))

# %% [markdown]
# 'Holds when …' means that the claim is true under a condition that the notes leave out.
#
# ## Pitfalls
# **Weights are drawn when the model is built, not when it is trained.**
# A seed set after `cifar_resnet(…)` comes too late for the initial weights.
# The seed of `fit` orders the images, and nothing else.

# %%
torch.manual_seed(0)
early = cifar_resnet(8)
late = cifar_resnet(8)
torch.manual_seed(0)
print("seed before both, set once:", torch.equal(early.conv1.weight, late.conv1.weight))
again = cifar_resnet(8)
print("seed before each:          ", torch.equal(early.conv1.weight, again.conv1.weight))

# %% [markdown]
# The second network continues the stream of random numbers where the first one left it.
# A comparison of two such networks compares two things at once.
#
# ## Exercises
# Replace the `...` by your answer and run the cell.
# The check tells you what to fix.
# It judges what your answer does, not how it is written.
#
# ### Exercise 1 (easy, 3 minutes): error in percent
# Papers report the **error rate**: the share of wrong answers, in percent.
# Compute it from a model and a set of images.
# <details><summary>Hint</summary><code>evaluate(model, data)</code> gives a loss and an accuracy, and the accuracy is a fraction from 0 to 1.</details>

# %%
import torch

from d2lres import cifar_resnet
from d2lres.checks import start as check
from d2lres.training import evaluate


def error_rate(model, data) -> float:
    """Share of the images in `data` that `model`, in eval mode, classifies wrongly, 0 to 100."""
    ### BEGIN SOLUTION
    return 100 * (1 - evaluate(model, data).accuracy)
    ### END SOLUTION


check.error_rate(error_rate)

# %% [markdown]
# ### Exercise 2 (easy, 5 minutes): a fair start
# Build the plain and the residual network of a given depth so that they start from the same weights.
# <details><summary>Hint</summary>Each of the two constructions draws random numbers. Where must <code>torch.manual_seed</code> stand, and how often?</details>


# %%
def twins(depth: int, seed: int):
    """A pair (plain, residual) of `cifar_resnet(depth, in_channels=1)` with equal initial weights.

    The weights are drawn from `seed`. The two networks share no tensor.
    """
    ### BEGIN SOLUTION
    pair = []
    for residual in (False, True):
        torch.manual_seed(seed)
        pair.append(cifar_resnet(depth, in_channels=1, residual=residual))
    return tuple(pair)
    ### END SOLUTION


check.twins(twins)

# %% [markdown]
# ### Exercise 3 (medium, 8 minutes): know your data
# A classifier that ignores its input can still score.
# What does it reach if it always answers with the most frequent class?
# <details><summary>Hint</summary><code>torch.bincount(labels)</code> counts each class.</details>


# %%
def majority_accuracy(labels: torch.Tensor) -> float:
    """Accuracy, 0 to 1, of always answering the most frequent of `labels`, an int64 tensor (N,)."""
    ### BEGIN SOLUTION
    return (torch.bincount(labels).max() / len(labels)).item()
    ### END SOLUTION


check.majority_accuracy(majority_accuracy)

# %% [markdown]
# ## Summary
# - Two networks with equal layers, parameters and initial weights train very differently: the one that adds each block's input is ahead by more than ten points of training accuracy after two epochs (the race, seeds 0 to 4).
# - The difference shows on the training images, so it is about optimisation and not about overfitting.
# - A comparison is fair only if the seed is set before each network is built.
#
# ## Further reading
# - Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): sections 1 and 3.1 take ten minutes.
# - Han Xiao, Kashif Rasul, Roland Vollgraf, *Fashion-MNIST*, 2017 (arXiv 1708.07747).
