# %% [markdown]
# # Paths and depth
# What is a residual network made of?
# You take it apart: into paths, into single blocks, into small steps, and at the end you train a network of 1,004 layers.
#
# **You can afterwards** take a residual network apart, and get 1,004 layers to learn.
#
# **What you will learn**
# - how many paths lead through a residual network, and how long they are
# - what happens when you take a block out of a trained network
# - when the whole network is a sum, and when it approximates a differential equation
# - how to start a thousand layers so that they learn
# - how to train a network that is too deep for your memory
#
# **What you need**: chapters 1 to 4. **Minutes**: 70, 25 of them for the exercises.

# %% tags=["setup"]

# %% [markdown]
# ## Many short paths
# In chapter 4 a stack of three residual blocks had the Jacobian (*I* + *J*₃)(*I* + *J*₂)(*I* + *J*₁).
# Multiply it out: eight terms, one for each choice of blocks.
# So the Jacobian of a residual network is a sum over **paths**.

# %%
from d2lres import figures

figures.show("paths")

# %% [markdown]
# Chapter 4 began with three blocks of one number each, with slopes 0.5, -0.25 and 0.5.
# Their eight terms sum to 1.6875.
#
# **Predict**: how much of this does the longest path contribute?

# %%
from itertools import product
from math import prod

slopes = [0.5, -0.25, 0.5]
total = 0.0
for taken in product((False, True), repeat=3):
    term = prod(w for w, yes in zip(slopes, taken) if yes)
    total += term
    print("length", sum(taken), f"  term {term:8.4f}", "   the plain stack" if all(taken) else "")
print("sum", total)
assert total == 1.6875

# %% [markdown]
# Hardly anything: -0.0625, and that is *all* that the plain stack has.
# The other seven paths come from the shortcuts.
#
# With *n* blocks, '*n* choose *k*' of the 2ⁿ paths have length *k*: path lengths are **binomial**, like heads in *n* tosses of a coin.
# Check with random paths through 54 blocks, the size of Veit et al.'s network of 110 layers.
#
# **Predict**: which share of the paths takes between 19 and 35 of the 54 blocks?

# %% tags=["nbval-ignore-output", "reason: random paths differ between versions of PyTorch"]
from math import comb

import torch

n = 54
exact = [comb(n, k) / 2**n for k in range(n + 1)]
torch.manual_seed(0)
lengths = torch.randint(0, 2, (100_000, n)).sum(1)
drawn = (torch.bincount(lengths, minlength=n + 1) / len(lengths)).tolist()
figures.show(
    figures.lines(
        {"counted": (range(n + 1), exact), "drawn": (range(n + 1), drawn)},
        "length of the path (blocks)",
        "share of the paths",
    )
)
share = sum(exact[19:36])
print(f"19 to 35 blocks: {share:.1%} of the paths; all 54 blocks: {exact[54]:.0e}")
assert share > 0.95 and max(abs(a - b) for a, b in zip(exact, drawn)) < 0.01

# %% [markdown]
# More than 95 %, as Veit et al. report.
# Most paths take about half of the blocks, and hardly any is as deep as the network.
#
# That counts paths, and not what flows through them.
# In Veit et al.'s trained network most of the gradient comes through still shorter paths, of 10 to 34 layers (abstract); a block has two, so these are 5 to 17 blocks.
# Exercise 2 shows how that can be.

# %% [markdown]
# ## Take a block out
# If there are many paths, a residual network should survive the loss of a block: half of its paths never passed it.
# A plain network has one path.
# Train both, with 20 layers, and replace one block at a time by the identity, a **lesion** (Veit et al. 2016).
#
# **Predict** the accuracy without one block: residual from about 80 % to …; plain from about 70 % to …

# %%
import numpy as np

from d2lres import cifar_resnet, probes
from d2lres.data import fashion_mnist
from d2lres.training import fit


def build(depth, residual, seed=0, zeros=False):
    torch.manual_seed(seed)
    how = dict(residual=residual, zero_init_residual=zeros)
    return cifar_resnet(depth, in_channels=1, width=8, **how)


train, test = fashion_mnist(size=10)  # pixels
trained = {"plain": build(20, residual=False), "residual": build(20, residual=True)}
for net in trained.values():
    fit(net, train, epochs=2, lr=0.1, device="cpu")

# %% tags=["nbval-ignore-output", "reason: accuracies differ a little between machines"]
lesions = {kind: probes.lesion(net, test[:1000]) for kind, net in trained.items()}
cut = {kind: list(result["without"].values()) for kind, result in lesions.items()}
for kind, result in lesions.items():
    swap = result["swapped"].values()
    print(
        f"{kind:8}  intact {result['intact']:.0%}"
        f"   without one block {min(cut[kind]):.0%} to {max(cut[kind]):.0%}"
        f"   two swapped {min(swap):.0%} to {max(swap):.0%}"
    )
numbers = (1, 2, 3, 5, 6, 8, 9)  # blocks 4 and 7 change the shape, so nothing can stand in for them
lines = {(kind,): (numbers, values) for kind, values in cut.items()}
figures.show(figures.lines(lines, "block taken out", "test accuracy", ylim=(0, 1)))
assert max(cut["plain"]) < 0.3 and np.mean(cut["residual"]) > 0.45  # guessing: 0.1
assert np.mean(cut["residual"]) > np.mean(cut["plain"]) + 0.3  # for seeds 0-4

# %% [markdown]
# The residual network loses accuracy, with some blocks much and with others little, and is on average above 45 % (seeds 0 to 4).
# The plain one falls to 30 % or below, whichever of the seven blocks is missing; guessing gives 10 %.
#
# Two epochs are few.
# The recorded experiment has ten, and five seeds (`python -m d2lres experiment lesion`).
#
# **Predict**: which block does a residual network miss most, the first, one in the middle, or the last?


# %% tags=["claim:F5"]
from d2lres.records import recorded


def accuracies(kind, what):
    """Of the five recorded seeds, one row each, without each block or with two `swapped`."""
    runs = recorded("lesion")["runs"]
    return np.array([list(run["lesion"][what].values()) for run in runs if run["kind"] == kind])


cut = {kind: accuracies(kind, "without") for kind in ("plain", "residual")}
swapped = {kind: accuracies(kind, "swapped") for kind in cut}
for kind in cut:
    medians = np.median(cut[kind]), np.median(swapped[kind])
    print("{:8}  medians: without one block {:.0%}, two swapped {:.0%}".format(kind, *medians))
lines = {(kind,): (numbers, np.median(cut[kind], axis=0)) for kind in cut}
label = "test accuracy, median of five seeds"
figures.show(figures.lines(lines, "block taken out", label, ylim=(0, 1)))
print("missed most by residual networks: block", {numbers[i] for i in cut["residual"].argmin(1)})
print(f"without it: {cut['residual'][:, 0].min():.0%} to {cut['residual'][:, 0].max():.0%}")
assert (cut["residual"].argmin(1) == 0).all()
assert max(cut["plain"].max(), swapped["plain"].max()) < 0.3  # every block, swap and seed
assert min(np.median(cut["residual"], axis=0)[1:]) > 0.7 > max(cut["residual"][:, 0])

# %% [markdown]
# The first, with every seed: the accuracy falls to 32 to 62 %.
# Without any other of the seven blocks the median of the five seeds is about 75 % or more.
# The plain network cannot do without any of them, and none of the swaps tried works.

# %% [markdown]
# ## How large are the branches now?
# Chapter 4 measured the branch of each block against its shortcut at initialisation: in a long stage it falls with the block's number, roughly like 1/*k*.
# Here a stage has three blocks.
# Training may change that.
#
# **Predict**: after two epochs, are the branches of residual-20 larger or smaller beside their shortcuts than at the start?


# %%
import copy

from d2lres import BasicBlock


def branch_shares(net):
    """Variance of each block's branch over that of its shortcut, in train mode."""
    net, shares = copy.deepcopy(net).train(), []

    def watch(block, args, out):
        x = args[0]
        shortcut = x if block.downsample is None else block.downsample(x)
        branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        shares.append((branch.var((0, 2, 3)).mean() / shortcut.var((0, 2, 3)).mean()).item())

    for module in net.modules():
        if isinstance(module, BasicBlock):
            module.register_forward_hook(watch)
    with torch.no_grad():
        net(train[:256].tensors()[0])
    return shares


# %% tags=["nbval-ignore-output", "reason: variances differ in their digits between machines"]
before, after = branch_shares(build(20, residual=True)), branch_shares(trained["residual"])
print("block          ", *(f"{k:5}" for k in range(1, 10)))
for when, shares in (("at the start", before), ("after training", after)):
    print(f"{when:15}", *(f"{share:5.2f}" for share in shares))
assert all(0.3 < share < 1.7 for share in before[1:] + after[1:])  # for seeds 0-4
assert min(before[0], after[0]) > 1.8

# %% [markdown]
# Smaller, all nine in this run, by a tenth to a third; with other seeds single ones grow.
# The first block's branch is the largest, two to three and a third times its shortcut, before and after (seeds 0 to 4).
# That fits the lesion: the block that a network misses most is the one whose branch outweighs its shortcut.
# It is no proof: the network might miss the first block only because all others were trained on its output.

# %% [markdown]
# ## A sum of all that was added
# One note gives the whole network as a repetition: x ← x + f(x).
# If that is exact, then every feature is an earlier feature plus the branches in between, *x*_L = *x*_l + Σ f(*x*_i), and no product of layers is left (He et al. 2016, section 2).
#
# **Predict**: is this exact for the blocks of this course?

# %% tags=["claim:N13"]
from torch import nn

from d2lres import PreActBlock


def followed(blocks, branch, x):
    """Whether x plus the sum of all branches, each at its place, is what `blocks` return."""
    features, added = x, torch.zeros_like(x)
    for block in blocks:
        added += branch(block, features)
        features = block(features)
    return torch.allclose(x + added, features, atol=1e-4)


torch.manual_seed(0)
maps = torch.randn(4, 8, 6, 6)
pre = nn.Sequential(*(PreActBlock(8, 8) for _ in range(5)))
post = nn.Sequential(*(BasicBlock(8, 8) for _ in range(5)))
with torch.no_grad():
    exact_pre = followed(pre, lambda b, x: b.conv2(b.bn2(b.conv1(b.bn1(x).relu())).relu()), maps)
    exact_post = followed(post, lambda b, x: b.bn2(b.conv2(b.bn1(b.conv1(x)).relu())), maps)
print("PreActBlock:", exact_pre)
print("BasicBlock: ", exact_post)
assert exact_pre and not exact_post

# %% [markdown]
# Exact when nothing follows the addition, as in the **pre-activation** block.
# In the BasicBlock the ReLU after each sum breaks it.
#
# ## x + f(x) is an Euler step
# Now read x ← x + *h* f(x) as a movement: f is the velocity, *h* a short time.
# This is **Euler's method** for the differential equation dx/dt = f(x).
# Halve the step and double the layers, and the output should approach a limit.
#
# **Predict**: from 16 to 256 layers, by what factor does the distance from the limit shrink?

# %% tags=["claim:N13"]
torch.manual_seed(0)
w = torch.randn(16, 16, dtype=torch.float64) / 4
points = torch.randn(32, 16, dtype=torch.float64)


def network(layers):
    """`layers` residual blocks x + h tanh(w x) with the same w, from time 0 to time 1."""
    x = points
    for _ in range(layers):
        x = x + torch.tanh(x @ w) / layers
    return x


limit, layers = network(2**14), [2**k for k in range(3, 10)]
errors = [(network(n) - limit).norm(dim=1).mean().item() for n in layers]
slope = np.polyfit(np.log(layers), np.log(errors), 1)[0]
figures.show(
    figures.lines({"distance": (layers, errors)}, "layers", "distance from the limit", log="xy")
)
print(f"256 layers: {errors[1] / errors[5]:.0f} times closer than 16; slope {slope:.2f}")
assert abs(slope + 1) < 0.15

# %% [markdown]
# Sixteen times the layers, about one sixteenth of the distance: the error is proportional to *h*, the method is of **first order**.
# Such a network has no 'right' depth, it approximates a flow (Chen et al. 2018).
# A trained ResNet need not: its blocks have weights of their own, and nobody asked for small steps.

# %% [markdown]
# ## A thousand layers
# The notes say that with residuals a thousand layers can be trained.
# The paper did it once, with 1,202 layers (section 4.2).
# You do it now, on 8×8 pixels, with every branch starting at 0 (chapter 4).
#
# **Predict**: the plain twin has two ways to start, as it comes or with the same zeros.
# How does each of them fail?

# %%
import torch.nn.functional as F

from d2lres.training import progress_bar

tiny, _ = fashion_mnist(size=8)


def steps(net, count):
    """Train for `count` batches of 64; the loss before each step."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9), []
    batches = tiny.batches(64, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _, (x, y) in progress_bar(zip(range(count), batches), count):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% tags=["claim:N12", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
print("layers:", len(probes.weight_layers(build(1004, residual=True))))
exploded = steps(build(1004, residual=False), 2)
silent = steps(build(1004, residual=False, zeros=True), 4)
print("plain, as it comes:", [f"{loss:.2f}" for loss in exploded])
print("plain, zeros:      ", [f"{loss:.2f}" for loss in silent])
assert np.isnan(exploded[1]) and 2.2 < min(silent) < max(silent) < 2.5  # guessing: 2.30

# %% [markdown]
# The first explodes beyond what 32 bits can hold: after one step the loss is NaN.
# The second passes zeros on to its last layer, so its loss stays around guessing, and only the last bias can move.

# %% tags=["claim:N12", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
thousand = build(1004, residual=True, zeros=True)
loss = steps(thousand, 24)
figures.show(figures.lines({("residual", 1004): loss}, "step", "training loss"))
print(f"first four steps {np.mean(loss[:4]):.2f}, last four {np.mean(loss[-4:]):.2f}")
assert np.mean(loss[-4:]) < np.mean(loss[:4]) - 0.25  # for seeds 0-4

# %% [markdown]
# It learns, in about a quarter of an epoch.
#
# The recorded experiment (width 4 in place of 8) takes 60 steps with five seeds, and has a fourth network: residual, but as it comes, without the zeros (`python -m d2lres experiment thousand-layers`).
#
# **Predict**: where is the residual network without zeros after 60 steps: NaN, at guessing or above, or below?

# %% tags=["claim:N12"]
curves = {}
for run in recorded("thousand-layers")["runs"]:
    curves.setdefault(run["kind"], []).append(run["losses"])
exploded = curves.pop("plain")
print("plain: steps before the loss is NaN:", [losses.index(None) for losses in exploded])
nets = {
    "plain-zero": ("plain", 1004, "zeros"),
    "residual": ("residual", 1004),
    "residual-zero": ("residual", 1004, "zeros"),
}
medians = {net: np.median(curves[kind], axis=0) for kind, net in nets.items()}
figures.show(figures.lines(medians, "step", "training loss, median of five seeds", log="y"))
ends = {kind: [np.mean(losses[-10:]) for losses in runs] for kind, runs in curves.items()}
for kind, losses in ends.items():
    print(f"{kind:13} last ten steps: {min(losses):.2f} to {max(losses):.2f}")
assert all(losses[1] is None for losses in exploded)  # JSON has no NaN
assert min(ends["plain-zero"]) > 2.2 and min(ends["residual"]) > 2.2  # guessing: 2.30
assert max(ends["residual-zero"]) < 1.8

# %% [markdown]
# At guessing or a little above it (2.29 to 2.54), after a long detour: its loss starts at 6 or more and is thrown further out first.
# So the shortcut saves a thousand layers from NaN; that they *learn* within 60 steps, at this rate, is the work of the branches that start at 0.
#
# Are 1,004 layers *useful*?
# This run does not say.
# The paper's 1,202 layers had a higher test error than its 110 (section 4.2).

# %% [markdown]
# ## Too deep for the memory
# The backward pass needs what the forward pass computed: the **saved activations** of all layers.
# Count their bytes.
#
# **Activation checkpointing** saves only the input of each segment of blocks, and computes the rest again on the way back.
# With about √*n* segments of √*n* blocks, what *n* blocks of a stage keep falls to that of 2√*n*.
# Here a stage has 167 blocks, and √167 ≈ 13.
#
# **Predict**: what does the second computation do to the gradients?

# %%
from torch.utils.checkpoint import checkpoint


def checkpointed(net, x, size=13):
    """net(x), in segments of `size` blocks that save nothing but their input."""
    x = F.relu(net.bn1(net.conv1(x)))
    for stage in (net.layer1, net.layer2, net.layer3):
        for i in range(0, len(stage), size):
            x = checkpoint(stage[i : i + size], x, use_reentrant=False)
    return net.fc(x.mean((2, 3)))


def saved_bytes(compute):
    """The result of compute() and the bytes it saves for the backward pass, without the weights."""
    saved, weights = {}, {p.data_ptr() for p in thousand.parameters()}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    return result, sum(size for pointer, size in saved.items() if pointer not in weights)


# %% tags=["nbval-ignore-output", "reason: bytes and rounding depend a little on version and machine"]
x, y = tiny[:64].tensors()
taken, gradients = {}, {}
for name, forward in (("everything", thousand), ("segments", lambda x: checkpointed(thousand, x))):
    logits, taken[name] = saved_bytes(lambda: forward(x))
    gradients[name] = torch.autograd.grad(F.cross_entropy(logits, y), list(thousand.parameters()))
    del logits
    print(f"{name:10}  {taken[name] / 1e6:6.1f} MB saved")

inside = F.relu(thousand.bn1(thousand.conv1(x)))  # on the way back one segment at a time is whole
_, segment = saved_bytes(lambda: thousand.layer1[:13](inside))
print(f"and the largest segment, while it is computed again: {segment / 1e6:.1f} MB")
off = max((a - b).norm() / (a.norm() + 1e-12) for a, b in zip(*gradients.values())).item()
less = taken["everything"] / (taken["segments"] + segment)
print(f"{less:.0f} times less; gradients off by {off:.0e}")
assert less > 10 and off < 1e-3

# %% [markdown]
# Nothing, up to rounding: the gradients are the same, for less than a tenth of the saved bytes.
# The price is time: all blocks are computed forward twice.
# The bytes are counted where autograd stores them; a process needs more than that, for weights, gradients and momentum.

# %% [markdown]
# ## Pitfalls
# **Checkpointing runs the forward pass twice.**
# The outputs and gradients are right, but the running statistics of BN are not what you might think.
#
# **Predict**: you give one batch.
# How many batches has the BN of a block counted after the backward pass?

# %%
net = build(8, residual=True)
checkpointed(net, train[:64].tensors()[0]).sum().backward()
seen = net.layer1[0].bn1.num_batches_tracked.item()
print("batches given: 1, batches seen by the BN of a block:", seen)

# %% [markdown]
# Two, so the running statistics move twice as fast.
#
# **'It trains' needs a reference.**
# In the record above, the residual network without zeros falls from 6 or more to about 2.3, and has learned nothing: guessing costs ln 10 ≈ 2.30 with ten classes.
# Name the loss of guessing beside every early loss.
#
# **A lesion says what is missed, not what is used.**
# The other blocks were trained beside the one that you take out.
# That a network falls without its first block does not show that the first block does more than the others.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (medium, 10 minutes): the gradient, sorted by length
# Blocks of one number each: block *k* adds g(x) with slope *j*ₖ to its input.
# The gradient of the stack is a sum over paths.
# Add up the terms of each length, without visiting all 2ⁿ paths.
# <details><summary>Hint</summary>One block more doubles the paths: each old one passes the new block by, with its length and its term as they were, or takes it, one longer and its term times the new slope. Start with no block: one path of length 0 with the term 1.</details>

# %%
from math import comb

from d2lres.checks import paths as check


def by_length(slopes: list[float]) -> list[float]:
    """The sum of the terms of all paths of length 0, 1, ..., n through n residual blocks.

    slopes: of the branches, in order. 30 blocks are no problem.
    """
    ### BEGIN SOLUTION
    sums = [1.0]
    for j in slopes:
        sums = [past + j * taken for past, taken in zip([*sums, 0.0], [0.0, *sums])]
    return sums
    ### END SOLUTION


check.by_length(by_length)

# %% [markdown]
# ### Exercise 2 (medium, 10 minutes): how deep is the gradient?
# Suppose that each block on a path scales the gradient by *c*, so that a path of length *k* weighs *c*ᵏ.
# What is the mean path length, weighted so, of *n* blocks?
# With *c* = 1 it is *n*/2.
# <details><summary>Hint</summary>Of length k there are <code>math.comb(n, k)</code> paths. A weighted mean is the sum of weight times length, divided by the sum of the weights.</details>


# %%
def effective_depth(n: int, c: float) -> float:
    """Mean length of the paths through n residual blocks, a path of length k weighing c**k."""
    ### BEGIN SOLUTION
    weights = [comb(n, k) * c**k for k in range(n + 1)]
    return sum(k * weight for k, weight in enumerate(weights)) / sum(weights)
    ### END SOLUTION


check.effective_depth(effective_depth)

# %% [markdown]
# ### Exercise 3 (easy, 5 minutes): how long is a segment?
# With checkpointing in segments of *s* blocks, one input is kept for each segment, the last and perhaps shorter one included.
# On the way back one segment at a time is computed again: then *s* more are kept.
# Which *s* keeps the fewest at a time?
# <details><summary>Hint</summary>There are n / s segments, rounded up: <code>-(-n // s)</code>. Try every s from 1 to n.</details>


# %%
def best_segment(n: int) -> int:
    """The segment length, 1 to n, for which n blocks keep the fewest; the shortest of several."""
    ### BEGIN SOLUTION
    return min(range(1, n + 1), key=lambda s: -(-n // s) + s)
    ### END SOLUTION


check.best_segment(best_segment)

# %% [markdown]
# ## Summary
# - The Jacobian of a residual network is a sum over paths, whose lengths are binomial: more than 95 % of those through 54 blocks take 19 to 35 of them.
# - A residual network of 20 layers keeps an accuracy of about 75 % or more without any of six blocks, but not without the first (medians of five seeds, ten epochs).
#   A plain one falls below 30 %, whichever of seven blocks is missing.
# - Every feature is an earlier one plus the branches in between: exact for pre-activation blocks, not with a ReLU after the sum.
# - With a step *h* the iteration is Euler's method: sixteen times the layers, about a sixteenth of the error (one smooth f for all layers).
# - 1,004 layers lower their loss within 24 steps at rate 0.02 if their branches start at 0 (seeds 0 to 4).
#   Without the zeros the residual network is at guessing after 60 steps, and the plain one is NaN after one.
# - Checkpointing in segments of √*n* blocks, *n* those of a stage, cuts the saved bytes to less than a tenth (1,004 layers) and leaves the gradients as they are.

# %% [markdown]
# ## Further reading
# - Andreas Veit, Michael Wilber, Serge Belongie, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, 2016 (arXiv 1605.06431): sections 3 to 5.
# - Kaiming He et al., *Identity Mappings in Deep Residual Networks*, 2016 (arXiv 1603.05027): section 2 for the sum of branches.
# - Kaiming He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): section 4.2 on 1,202 layers.
# - Ricky T. Q. Chen et al., *Neural Ordinary Differential Equations*, 2018 (arXiv 1806.07366): section 1.
# - Tianqi Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016 (arXiv 1604.06174): section 4.
