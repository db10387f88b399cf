# %% [markdown]
# # Gradient flow
# Why do shortcuts make deep networks trainable? The usual answer, that they keep gradients from vanishing, does not survive a measurement. Here you measure the gradient instead, and at the end you train a network of 1,004 layers.
#
# **You can afterwards** say what shortcuts do to gradients, and train 1,004 layers.
#
# **What you will learn**
# - what the chain rule says about a stack of residual blocks, and what it does not say
# - when gradients explode, when they vanish, and what happens in the first ten steps of training
# - what a **shattered** gradient is, and why a healthy norm does not reveal it
# - why the branches of a residual network must start small, with and without batch normalisation
# - how to take blocks out of a trained network, and how to train one too deep for your memory
#
# **What you need**: chapters 1 and 2, and derivatives. **Minutes**: 120.

# %% tags=["setup"]

# %% [markdown]
# ## The chain rule, twice
# Take three blocks that multiply a number by 0.5, by -0.25 and by 0.5. A plain stack replaces the number, x → g(x). A residual stack adds, x → x + g(x).
#
# The chain rule multiplies the slopes of the steps. A plain step has slope *w*. A residual step has slope 1 + *w*.
#
# **Predict** both gradients, d(output)/d(input), on paper. Three multiplications each.

# %%
import torch

slopes = [0.5, -0.25, 0.5]


def stack(x, residual):
    for w in slopes:
        x = x + w * x if residual else w * x
    return x


for residual in (False, True):
    x = torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(stack(x, residual), x)
    print("residual:" if residual else "plain:   ", gradient.item())

# %% [markdown]
# 0.5 · (-0.25) · 0.5 = -0.0625, and 1.5 · 0.75 · 1.5 = 1.6875.
#
# With vectors the slopes become **Jacobians**: *J* holds the derivative of each output of a block with respect to each of its inputs. A plain stack multiplies the *J*, a residual one the matrices *I* + *J*, where *I* is the identity matrix.
#
# The blocks below are curved: each *J* depends on where the signal passes.
#
# **Predict**: in which order do you multiply the three matrices, *J*₁*J*₂*J*₃ or *J*₃*J*₂*J*₁? The cell does it in one of the two, and compares with autograd.

# %%
from torch.autograd.functional import jacobian

weights = torch.tensor(
    [[[0.6, -0.4], [0.2, 0.5]], [[-0.3, 0.8], [0.7, 0.1]], [[0.4, 0.4], [-0.9, 0.2]]],
    dtype=torch.float64,
)
start, eye = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.eye(2, dtype=torch.float64)


def blocks(x, residual):
    for w in weights:
        x = residual * x + torch.tanh(w @ x)
    return x


for residual in (0, 1):
    x, product = start, eye
    for w in weights:
        inner = torch.diag(1 - torch.tanh(w @ x) ** 2) @ w  # the Jacobian of tanh(w x)
        product, x = (residual * eye + inner) @ product, residual * x + torch.tanh(w @ x)
    by_autograd = jacobian(lambda x: blocks(x, residual), start)
    print("residual:" if residual else "plain:   ", torch.allclose(product, by_autograd))

# %% [markdown]
# *J*₃*J*₂*J*₁: the last block stands on the left, since the signal meets it last. Up to rounding the product is autograd's gradient.
#
# ## What the notes conclude from it
# One of the notes takes two steps, y = f(x) and z = g(y), adds them, and differentiates by a weight *w* of f:
#
# ∂(y + z)/∂w = ∂y/∂w + ∂z/∂w
#
# It concludes that lower layers get a larger gradient, since the first term does not shrink. The formula is right for one block. But the second term contains the first: ∂z/∂w = g′(y) · ∂y/∂w, so the sum is **(1 + g′(y)) · ∂y/∂w**.
#
# **Predict**: can a shortcut make the gradient *smaller*? And what do 50 blocks with g′ = 0.5 do?


# %% tags=["claim:N11"]
def gradient_by_w(g, shortcut):
    w = torch.tensor(3.0, requires_grad=True)
    y = 2 * w  # f(x) = w x, at x = 2
    return torch.autograd.grad(shortcut * y + g(y), w)[0].item()


print("g(y)       without    with shortcut    (1 + g') dy/dw")
for name, slope in (("0.5 y", 0.5), ("-0.5 y", -0.5), ("-y", -1.0)):
    alone, both = (gradient_by_w(lambda y: slope * y, shortcut) for shortcut in (0, 1))
    print(f"{name:8} {alone:8.1f} {both:12.1f} {(1 + slope) * 2:17.1f}")
    assert both == (1 + slope) * 2
assert gradient_by_w(lambda y: -y, True) == 0  # the two terms cancel
print(f"50 blocks with g' = 0.5: plain {0.5**50:.0e}, residual {1.5**50:.0e}")

# %% [markdown]
# The sum can be larger, smaller or 0. The shortcut keeps the gradient only while the Jacobians stay small or do not line up against it. If they are not small, fifty of them trade vanishing for explosion: 10⁻¹⁵ becomes 10⁸.
#
# So the formula alone settles nothing. Which of these happens in a real network? Measure.

# %% [markdown]
# ## Norms by layer
# The **gradient norm** of a layer is the length of the gradient of the loss by its weights. First by hand: one batch, one backward pass, one layer.

# %%
import copy
from functools import partial

import torch.nn.functional as F
from torch import nn

from d2lres import cifar_resnet, figures, probes
from d2lres.data import fashion_mnist

train, test = fashion_mnist(size=14)
some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:64]
images, labels = train[some].tensors()


def build(depth, residual, seed=0):
    torch.manual_seed(seed)
    return cifar_resnet(depth, in_channels=1, width=8, residual=residual)


net = build(20, residual=True)
F.cross_entropy(net(images), labels).backward()
by_hand = net.layer2[0].conv1.weight.grad.norm().item()
norms = probes.gradient_norms(build(20, residual=True), images, labels)
print("layers measured:", len(norms))
print("equal:", abs(norms["layer2.0.conv1"] - by_hand) < 1e-5 * by_hand)

# %% [markdown]
# `probes.gradient_norms` does this for every layer, and leaves the network as it was.
#
# The networks of chapter 1 have batch normalisation (BN) after each convolution. Depth hurt the plain ones.
#
# **Predict** for plain networks at initialisation: as they get deeper, does the gradient of the *first* layer shrink towards 0, stay, or grow? The standard answer is that it vanishes.

# %% tags=["claim:N10", "nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
profiles = {}
print("norm of the gradient:    first layer    last convolution")
for kind in ("plain", "residual"):
    for depth in (8, 20, 56, 110):
        net = build(depth, residual=kind == "residual")
        *norms, _ = probes.gradient_norms(net, images, labels).values()  # without the linear layer
        profiles[kind, depth] = norms
        print(f"{kind:>12}-{depth:<3} {norms[0]:18.2f} {norms[-1]:18.2f}")
first = {net: norms[0] for net, norms in profiles.items()}
assert first["plain", 110] > 100 * first["plain", 56] > 1000 * first["plain", 20]  # for seeds 0-4
assert first["residual", 110] < 50 and min(first.values()) > 0.1

# %% [markdown]
# It grows, and how. In a plain network of 110 layers the first gradient is *millions* of times larger than the last. Nothing vanishes: the gradient **explodes** towards the input. The residual networks stay within a factor of a hundred.

# %% tags=["nbval-ignore-output", "reason: the lines differ a little between machines"]
shown = {(kind, depth): norms for (kind, depth), norms in profiles.items() if depth >= 56}
figures.show(
    figures.lines(
        shown,
        "layer, counted from the image",
        "gradient norm",
        log="y",
        title="At initialisation, with batch normalisation",
    )
)
growth = (first["plain", 110] / first["plain", 56]) ** (1 / 54)
print(f"the gradient grows by a factor of {growth:.2f} per layer")
assert 1.1 < growth < 1.35  # for seeds 0-4

# %% [markdown]
# A straight line on a logarithmic scale: the same factor in each layer. One line of calculus gives it. ReLU passes half of the gradient's square, but only (1 - 1/π)/2 of the signal's variance, since the rest has become a mean. BN scales the variance back to 1, and the gradient by the same number. So per layer
#
# |gradient|² grows by (1/2) / ((1 - 1/π)/2) = π/(π - 1) ≈ 1.47, and the norm by its root, **1.21**.
#
# Yang et al. 2019 prove it for wide, fully connected networks and large batches. Ours are narrow, convolutional, and come close.
#
# That was one draw of the weights. The recorded experiment has five for each network (`python -m d2lres experiment gradients`).
#
# **Predict** for 110 plain layers: do five draws agree within a factor of ten? And from which depth on does every plain network lie above every residual one?

# %% tags=["claim:N10"]
from d2lres.records import recorded

growths = {}
for run in recorded("gradients")["runs"]:
    norms = run["with_bn"]
    growths.setdefault((run["kind"], run["depth"]), []).append(norms["first"] / norms["last"])
depths, ylabel = [8, 20, 56, 110], "first gradient / last gradient"
seeds = {(k,): (depths, list(zip(*(growths[k, d] for d in depths)))) for k in ("plain", "residual")}
figures.show(figures.lines(seeds, "depth (layers)", ylabel, log="y"))
for depth in depths:
    apart = min(growths["plain", depth]) > max(growths["residual", depth])
    print(depth, "layers, every plain network above every residual one:", apart)
    assert apart == (depth >= 56)
factor = max(growths["plain", 110]) / min(growths["plain", 110])
print("largest over smallest of five plain-110:", round(factor, 1))
assert factor < 10 and min(growths["plain", 110]) > 1e6 and max(growths["residual", 110]) < 100

# %% [markdown]
# They agree within a factor of ten, over a range of ten million. At 8 layers you cannot tell the two kinds apart; at 20 they overlap; from 56 on they never do.
#
# ## Where gradients do vanish
# Take BN away, and scale all initial weights by a factor.
#
# **Predict** for a plain network of 56 layers, weights halved: by what factor does the first layer's gradient change? Each path from it to the loss passes 54 other convolutions.


# %% tags=["claim:N10", "nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
def first_without_bn(residual, scale):
    net = probes.without_bn(build(56, residual))
    with torch.no_grad():
        for name in probes.weight_layers(net)[:-1]:
            net.get_submodule(name).weight.mul_(scale)
    return probes.gradient_norms(net, images, labels)["conv1"]


print("first layer, no BN      plain-56     residual-56")
bare = {}
for what, scale in (("weights halved", 0.5), ("He initialisation", 1.0), ("weights doubled", 2.0)):
    for residual in (False, True):
        bare[scale, residual] = first_without_bn(residual, scale)
    print(f"{what:20} {bare[scale, False]:11.1e} {bare[scale, True]:15.1e}")
assert bare[0.5, False] < 1e-12 and bare[1.0, False] < 0.02  # it vanishes, for seeds 0-4
assert bare[2.0, False] > 1e6  # or explodes
assert bare[0.5, True] > 1e-3 and bare[1.0, True] > 10  # the shortcut keeps it, and more than that

# %% [markdown]
# Halved weights change it by 0.5⁵⁴ ≈ 6·10⁻¹⁷. Here the textbook is right: the gradient vanishes, and with the shortcut it does not. The last layers fare no better than the first: what they receive has shrunk on the way *forward*.
#
# Doubled weights make it explode. **He initialisation** picks the scale in between, but with padded borders on small maps it comes out a little low, and 56 layers make much of a little.
#
# Look at the residual column, too. With He initialisation it explodes without BN. The shortcut alone is no cure. The section on small branches finds what is missing.

# %% [markdown]
# ## What the paper says
# He et al. 2015 do not claim to cure vanishing gradients. They argue that the trouble with plain networks is "unlikely to be caused by vanishing gradients", and report "healthy norms with BN" (section 4.1). That section is about ImageNet, with at most 34 layers.
#
# **Predict**: what does the *first* gradient of our plain-56 do during ten steps of training: stay at hundreds, settle near 1, or vanish?

# %%
from d2lres.training import progress_bar

SHOWN = (0, 1, 2, 5, 10)


def watch(depth, residual, steps=10):
    """First layer before some steps: gradient norm, length of the weights, cosine with step 0."""
    net, seen = build(depth, residual), {}
    start = net.conv1.weight.detach().flatten().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    batches = train.batches(64, shuffle=True, generator=torch.Generator().manual_seed(0))
    for step, (x, y) in progress_bar(zip(range(steps + 1), batches), steps + 1):
        if step in SHOWN:
            norm = probes.gradient_norms(net, images, labels)["conv1"]
            w = net.conv1.weight.detach().flatten()
            seen[step] = norm, w.norm().item(), F.cosine_similarity(w, start, dim=0).item()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return seen


plain, residual = watch(56, residual=False), watch(56, residual=True)

# %% tags=["claim:N10", "nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
print("         plain-56                          residual-56")
print("         gradient    length    cosine      gradient    length    cosine")
for step in SHOWN:
    row = "{:10.3f} {:9.1f} {:9.2f}"
    print(f"step {step:2}", row.format(*plain[step]), "   ", row.format(*residual[step]))
scale_free = {step: plain[step][0] * plain[step][1] for step in SHOWN}
print("plain-56, gradient times length:", {step: f"{x:.1f}" for step, x in scale_free.items()})
assert plain[0][0] > 50 and plain[10][0] < 0.2  # for seeds 0-4, as the following
assert plain[1][1] > 3 * plain[0][1] and plain[1][2] < 0.6 and scale_free[10] < scale_free[0] / 10
assert residual[10][0] > 0.05 and residual[1][2] > 0.9

# %% [markdown]
# It vanishes, and the explosion comes first. The first step does not nudge the first layer, it replaces it: the weights become many times longer, and their direction has little to do with the old one. BN ignores the length of weights, but divides every later gradient by it.
#
# The length explains only a part. Gradient times length, which is free of scale, falls as well: the explosion at initialisation is over after a few steps (Yang et al. 2019 see the same in their networks).
#
# So the verdict on 'residuals solve vanishing gradients': with BN there is no vanishing to solve at the start, and the paper's doubt is confirmed. 'Healthy', however, ends before 56 layers.

# %% [markdown]
# ## Shattered gradients
# A norm is one number. Does the gradient also point somewhere useful? A gradient by the weights is a product of the same Jacobians as the gradient by the input. If that one turns with every tiny move of the input, then each image asks for another step, however healthy the length. Such a gradient is **shattered**.
#
# Make it visible (Balduzzi et al. 2017, section 2): a network with **one** number as input and one as output, whose gradient you follow along a line.


# %%
class Skip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def gradient_along(line, depth, kind):
    """The gradient of a random network of `depth` linear layers at each point of the line."""
    net = nn.Sequential(first := nn.Linear(1, 200))
    for _ in range(depth - 2):
        linear, bn = nn.Linear(200, 200, bias=False), nn.BatchNorm1d(200, momentum=1.0)
        net.append((Skip if kind == "residual" else nn.Sequential)(nn.ReLU(), linear, bn))
    net.extend([nn.ReLU(), nn.Linear(200, 1)])
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.normal_(first.bias)  # sets the kinks apart: without it they all lie at 0
    net(line)  # every BN takes its statistics from the line
    outputs = net.eval()(line)  # and keeps them: no input changes another's output
    return torch.autograd.grad(outputs.sum(), line)[0].flatten()


line = torch.linspace(-2, 2, 256)[:, None].requires_grad_()
print("gradients:", tuple(gradient_along(line, 2, "plain").shape))

# %% [markdown]
# The deep networks have 50 layers, each behind a BN with fixed statistics, and differ in the shortcuts only. You see 100 neighbouring points of each.
#
# **Predict**: which of the two deep networks has gradients that you could mistake for noise?

# %% tags=["nbval-ignore-output", "reason: the lines differ a little between machines"]
kinds = {
    "shallow, 2 layers": (2, "plain"),
    "plain-50": (50, "plain"),
    "residual-50": (50, "residual"),
}
along = {}
for name, (depth, kind) in kinds.items():
    torch.manual_seed(0)
    g = gradient_along(line, depth, kind)
    along[name] = g / g.std()
nets = {"plain-50": ("plain", 50), "residual-50": ("residual", 50)}  # drawn by kind and depth
shifted = {nets.get(k, k): (g[:100] - 6 * i).tolist() for i, (k, g) in enumerate(along.items())}
figures.show(figures.lines(shifted, "place on the line", "gradient, each on its own level"))
turns = {name: (g[1:] * g[:-1] < 0).float().mean().item() for name, g in along.items()}
print("changes of sign from one point to the next:", {k: f"{v:.0%}" for k, v in turns.items()})
assert turns["plain-50"] > 0.3 > turns["shallow, 2 layers"]
assert turns["plain-50"] > turns["residual-50"]

# %% [markdown]
# In the plain network, neighbouring gradients have nothing to do with each other. Put a number on it: the **autocorrelation** at lag *k* is the correlation of the sequence with itself, shifted by *k* places. **White noise** (independent numbers) has 0. **Brown noise** (a random walk) stays high.
#
# **Predict** the order of the three networks, and put the two noises between them. Five seeds, and for each the cell asserts the order.


# %% tags=["nbval-ignore-output", "reason: correlations differ in their digits between machines"]
def autocorrelation(values, lags=15):
    v = values.double() - values.double().mean()
    return [((v[: len(v) - k] * v[k:]).sum() / v.square().sum()).item() for k in range(lags + 1)]


def correlations(seed):
    white = torch.randn(256, generator=torch.Generator().manual_seed(seed))
    found = {"white noise": white, "brown noise": white.cumsum(0)}  # a walk of white steps
    for name, (depth, kind) in kinds.items():
        torch.manual_seed(seed)
        found[name] = gradient_along(line, depth, kind)
    return {name: autocorrelation(values) for name, values in found.items()}


by_seed = [correlations(seed) for seed in range(5)]
print("lag 1 ", *(f"{name:>17}" for name in by_seed[0]))
for seed, found in enumerate(by_seed):
    print(f"seed {seed}", *(f"{values[1]:17.2f}" for values in found.values()))
    at = {name: values[1] for name, values in found.items()}
    assert at["shallow, 2 layers"] > at["residual-50"] + 0.05 > at["residual-50"] > 0.5
    assert abs(at["plain-50"]) < 0.25 and abs(at["white noise"]) < 0.25 < at["brown noise"]

# %% tags=["nbval-ignore-output", "reason: the lines differ a little between machines"]
mean = {
    name: [sum(found[name][lag] for found in by_seed) / 5 for lag in range(16)]
    for name in by_seed[0]
}
figures.show(
    figures.lines(
        {nets.get(name, name): (range(16), values) for name, values in mean.items()},
        "lag",
        "autocorrelation of the gradient",
        title="Mean of five seeds",
    )
)
assert mean["plain-50"][1] < 0.1 < mean["residual-50"][3]

# %% [markdown]
# By its autocorrelation the gradient of a plain network of 50 layers cannot be told from white noise. With shortcuts it lies between white and brown: it forgets, too, but over many points and not at once. Depth takes more from a plain network than a good length of its gradient: it takes the direction.
#
# ## Small branches
# A block adds two things: its **branch** g(x) and its **shortcut** x. Behind BN every branch has variance 1. The shortcut carries all that the blocks before have added up.
#
# **Predict**: in block 25, how large is the variance of the branch compared to the shortcut's: equal, about a tenth, or about a thousandth?

# %%
import numpy as np

from d2lres import BasicBlock, ResNet


def variance(maps):
    return maps.var((0, 2, 3), correction=0).mean().item()


def branch_variances(net, x):
    """For each block {"branch": v, "shortcut": v}: variances before the sum, mean over channels."""
    rows = []

    def watched(join, branch, x):  # in place of a block's addition
        total = join(branch, x)
        rows.append({"branch": variance(branch), "shortcut": variance(total - branch)})
        return total

    net = copy.deepcopy(net)
    for block in (m for m in net.modules() if isinstance(m, BasicBlock)):
        block.join = partial(watched, block.join)
    with torch.no_grad():
        net(x)
    return rows


# %% tags=["nbval-ignore-output", "reason: variances differ in their digits between machines"]
torch.manual_seed(0)
net = ResNet(BasicBlock, [50], 10, 1, width=8, small_images=True)  # one stage of 50 blocks
rows = branch_variances(net, images)
ratio = np.array([row["branch"] / row["shortcut"] for row in rows])
print("block   branch   shortcut   branch / shortcut   1 / block")
for k in (1, 5, 10, 25, 50):
    row = rows[k - 1]
    print(f"{k:5} {row['branch']:8.2f} {row['shortcut']:10.2f} {ratio[k - 1]:14.3f} {1 / k:15.3f}")
power = np.polyfit(np.log(np.arange(5, 51)), np.log(ratio[4:]), 1)[0]
print(f"from block 5 on, the ratio falls like block^{power:.2f}")
assert -1.5 < power < -0.6  # for seeds 0-4; 1 / block would be -1
depths, medians = (20, 56, 110), [np.median(growths["residual", d]) for d in (20, 56, 110)]
power = np.polyfit(np.log(depths), np.log(medians), 1)[0]
print(f"recorded residual networks: first / last gradient grows like depth^{power:.2f}")
assert 0.8 < power < 1.6

# %% [markdown]
# It falls like one over the block's number, up to a factor of two or so: the ReLU after each sum cuts off some of what has piled up. In standard deviations, BN silently scales block *k* down by about √*k* (De & Smith 2020). At initialisation deep blocks are almost identities.
#
# Now the calculus of the residual network fits in one line, too. Block *k* multiplies the gradient's square by about 1 + *c*/*k*, and the product of these factors grows like *n*ᶜ. So the norm grows like a *power* of the depth (the last line of the cell), where the plain one multiplies by 1.2 in each layer.
#
# Without BN, branch and shortcut are equally strong. Each block can double the variance, and 27 blocks 2²⁷ times. That was the explosion above.
#
# ## Smaller still: start at 0
# If small is good, start with nothing: set the weight of each block's last BN to 0 (`zero_init_residual` in torchvision). **Predict**: what does depth do to the first gradient then?


# %% tags=["nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
def zero_init(net):
    """Set the last BN weight of each BasicBlock to 0, so that each branch starts at 0."""
    for block in net.modules():
        if isinstance(block, BasicBlock):
            torch.nn.init.zeros_(block.bn2.weight)
    return net


at_zero = {}
for depth in (8, 20, 56, 110):
    net = zero_init(build(depth, residual=True))
    at_zero[depth] = probes.gradient_norms(net, images, labels)["conv1"]
    print(
        f"residual-{depth:<3}  first gradient {at_zero[depth]:.3f}"
        f"   branches: {sum(row['branch'] for row in branch_variances(net, images)):.1f}"
    )
assert max(at_zero.values()) < 3 * min(at_zero.values())

# %% [markdown]
# Nothing. The four numbers differ by the draw of the weights, and not with depth. At its first step the network of 110 layers is a shallow one.
#
# Then BN may not be needed. **SkipInit** (De & Smith 2020) removes it and multiplies each branch by one learnable number α that starts at 0: x + α g(x). Train 110 layers without BN, with and without α, on half of the images, once through and with the same optimizer.
#
# **Predict**: 54 extra parameters against none. Which of the two networks learns?

# %%
from d2lres.training import evaluate, fit


class Alpha(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.alpha * x


# %% tags=["nbval-ignore-output", "reason: losses differ in the last digits between machines"]
small, small_test = fashion_mnist(size=10)  # pixels
half = small[torch.randperm(len(small), generator=torch.Generator().manual_seed(0))[:3000]]
after = {}
for name in ("nothing", "SkipInit"):
    net = probes.without_bn(build(110, residual=True))
    for block in net.modules():
        if name == "SkipInit" and isinstance(block, BasicBlock):
            block.bn2 = Alpha()  # where the block's last BN was
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    history = fit(net, half, epochs=1, batch_size=64, optimizer=adam, device="cpu")
    after[name] = evaluate(net, half).loss
    print(f"{name:9} training loss: mean {history.loss[0]:8.2f}, at the end {after[name]:.2f}")
assert after["SkipInit"] < 1.8 and after["SkipInit"] < after["nothing"] - 0.3  # for seeds 0-4

# %% [markdown]
# Without α the first losses are so large that their mean over the epoch is in the thousands. In the end the loss is about ln 10 ≈ 2.30, which is what guessing costs. With 54 numbers that start at 0 the network learns. No normalisation was needed, only small branches.

# %% [markdown]
# ## Many short paths
# Multiply out (*I* + *J*₃)(*I* + *J*₂)(*I* + *J*₁): eight terms, one for each choice of blocks. A residual network is a sum over **paths**.

# %%
figures.show("paths")

# %% [markdown]
# **Predict**: the terms of the three-block stack at the top of the chapter sum to 1.6875. How much of this does the longest path contribute?

# %%
from itertools import product
from math import prod

total = 0.0
for taken in product((False, True), repeat=3):
    term = prod(w for w, yes in zip(slopes, taken) if yes)
    total += term
    print("length", sum(taken), f"  term {term:8.4f}", "   the plain stack" if all(taken) else "")
print("sum", total)
assert total == 1.6875

# %% [markdown]
# Hardly anything: -0.0625, and that is *all* that the plain stack has. The other seven paths are the shortcut's gift.
#
# With *n* blocks, 'n choose k' of the 2ⁿ paths have length *k*: path lengths are **binomial**, like heads in *n* tosses of a coin. Check with random paths through 54 blocks, the size of Veit et al.'s network of 110 layers.
#
# **Predict**: which share of the paths takes between 19 and 35 blocks?

# %% tags=["nbval-ignore-output", "reason: random paths differ between versions of PyTorch"]
from math import comb

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
# More than 95 %, as Veit et al. report. Most paths take about half of the blocks, and hardly any is as deep as the network. The gradient prefers still shorter ones: in their network most of it comes through paths of 10 to 34 layers (abstract). Exercise 2 shows the mechanism.
#
# If so, a residual network should survive the loss of a block: half of its paths never passed it. A plain network has one path. Train both, with 20 layers, and take out one block at a time.
#
# **Predict** the accuracy without one block: residual from about 80 % to …; plain from about 70 % to …

# %% tags=["nbval-ignore-output", "reason: accuracies differ a little between machines"]
lesions = {}
for kind in ("plain", "residual"):
    net = build(20, residual=kind == "residual")
    fit(net, small, epochs=2, lr=0.1, device="cpu")
    lesions[kind] = probes.lesion(net, small_test[:1000])
for kind, result in lesions.items():
    cut, swap = list(result["without"].values()), list(result["swapped"].values())
    print(
        f"{kind:8}  intact {result['intact']:.0%}"
        f"   without one block {min(cut):.0%} to {max(cut):.0%}"
        f"   two swapped {min(swap):.0%} to {max(swap):.0%}"
    )
numbers = (1, 2, 3, 5, 6, 8, 9)  # blocks 4 and 7 change the shape, so nothing can stand in for them
cut = {kind: list(result["without"].values()) for kind, result in lesions.items()}
figures.show(
    figures.lines(
        {(kind,): (numbers, values) for kind, values in cut.items()},
        "block taken out",
        "test accuracy",
        ylim=(0, 1),
    )
)
assert max(cut["plain"]) < 0.3 and np.mean(cut["residual"]) > 0.45  # guessing: 0.1
assert np.mean(cut["residual"]) > np.mean(cut["plain"]) + 0.3  # for seeds 0-4

# %% [markdown]
# The residual network loses accuracy, more with some blocks than with others, and works on. The plain one falls to guessing, whichever block is missing.
#
# Two epochs are few. The recorded experiment has ten, and five seeds (`python -m d2lres experiment lesion`). **Predict**: which block does a residual network miss most, the first, one in the middle, or the last?


# %%
def accuracies(kind, what):
    """Of the five recorded seeds, one row each, without each block or with two `swapped`."""
    runs = recorded("lesion")["runs"]
    return np.array([list(run["lesion"][what].values()) for run in runs if run["kind"] == kind])


cut = {kind: accuracies(kind, "without") for kind in ("plain", "residual")}
swapped = {kind: accuracies(kind, "swapped") for kind in cut}
for kind in cut:
    print(
        f"{kind:8}  medians: without one block {np.median(cut[kind]):.0%},"
        f" two swapped {np.median(swapped[kind]):.0%}"
    )
figures.show(
    figures.lines(
        {(kind,): (numbers, np.median(cut[kind], axis=0)) for kind in cut},
        "block taken out",
        "test accuracy, median of five seeds",
        ylim=(0, 1),
    )
)
print("missed most by residual networks: block", {numbers[i] for i in cut["residual"].argmin(1)})
assert (cut["residual"].argmin(1) == 0).all()
assert max(cut["plain"].max(), swapped["plain"].max()) < 0.3  # every block, swap and seed
assert min(np.median(cut["residual"]), np.median(swapped["residual"])) > 0.7

# %% [markdown]
# The first, with every seed. The last one is hardly missed. The plain network cannot do without any block, and no two of them can change places.
#
# ## x + f(x) is an Euler step
# One note gives the whole network as a repetition: x ← x + f(x). **Predict**: is this exact for the blocks of this course?

# %% tags=["claim:N13"]
from d2lres import PreActBlock

torch.manual_seed(0)
maps = torch.randn(4, 8, 6, 6)
pre = nn.Sequential(*(PreActBlock(8, 8) for _ in range(5)))
post = nn.Sequential(*(BasicBlock(8, 8) for _ in range(5)))

x = maps
for b in pre:  # BN, ReLU, convolution, twice
    x = x + b.conv2(F.relu(b.bn2(b.conv1(F.relu(b.bn1(x))))))
print("PreActBlock:", torch.allclose(x, pre(maps), atol=1e-5))
assert torch.allclose(x, pre(maps), atol=1e-5)
x = maps
for b in post:  # convolution, BN, ReLU, convolution, BN
    x = x + b.bn2(b.conv2(F.relu(b.bn1(b.conv1(x)))))
print("BasicBlock: ", torch.allclose(x, post(maps), atol=1e-5))
assert not torch.allclose(x, post(maps), atol=1e-5)

# %% [markdown]
# Exact when nothing follows the addition, as in the **pre-activation** block. The ReLU after the sum breaks it.
#
# Now read x ← x + *h* f(x) as a movement: f is the velocity, *h* a short time. This is **Euler's method** for the differential equation dx/dt = f(x). Halve the step and double the layers, and the output should approach a limit.
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
print(f"slope on the log-log plot: {slope:.2f}")
assert abs(slope + 1) < 0.15

# %% [markdown]
# Sixteen times the layers, one sixteenth of the distance: the error is proportional to *h*, the method of **first order**. Such a network has no 'right' depth, it approximates a flow (Chen et al. 2018). A trained ResNet need not: its blocks have weights of their own and nobody asked for small steps. The section on small branches gave a reason why they often are small.

# %% [markdown]
# ## A thousand layers
# The notes say that with residuals a thousand layers can be trained. The paper did it once, with 1,202 layers (section 4.2). You do it now, on 8×8 pixels, with every branch starting at 0.
#
# **Predict**: the plain twin has two ways to start, as it comes or with the same zeros. How does each of them fail?

# %% tags=["claim:N12", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
import time

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


print("layers:", len(probes.weight_layers(build(1004, residual=True))))
exploded = steps(build(1004, residual=False), 2)
silent = steps(zero_init(build(1004, residual=False)), 4)
print("plain, as it comes:", [f"{loss:.2f}" for loss in exploded])
print("plain, zeros:      ", [f"{loss:.2f}" for loss in silent])
assert np.isnan(exploded[1]) and 2.2 < min(silent) < max(silent) < 2.5  # guessing: 2.30

# %% [markdown]
# The first explodes beyond what 32 bits can hold: one step puts NaN into the early layers, and every later loss is NaN. The second passes zeros on to its last layer, so its loss hovers around guessing and only the last bias ever moves.

# %% tags=["claim:N12", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
thousand = zero_init(build(1004, residual=True))
start = time.perf_counter()
loss = steps(thousand, 24)
seconds = time.perf_counter() - start
figures.show(figures.lines({("residual", 1004): loss}, "step", "training loss"))
print(
    f"first four steps {np.mean(loss[:4]):.2f}, last four {np.mean(loss[-4:]):.2f};"
    f" {seconds / 24:.1f} s per step"
)
assert np.mean(loss[-4:]) < np.mean(loss[:4]) - 0.25  # for seeds 0-4

# %% [markdown]
# It learns, within a quarter of an epoch.
#
# The recorded experiment takes 60 steps with five seeds, and has a fourth network: residual, but as it comes, without the zeros (`python -m d2lres experiment thousand-layers`).
#
# **Predict**: where is the residual network without zeros after 60 steps: NaN, at guessing, or below?

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
# At guessing, after a long detour: its loss starts at 6 or more, is thrown further out, and has only just come back to 2.30. So the shortcut saves a thousand layers from NaN; that they *learn* at once is the work of the small branches.
#
# Are 1,004 layers *useful*? Hardly: the paper's 1,202 layers had a higher test error than its 110, at eleven times the cost (section 4.2). The claim is that depth no longer prevents training, and that holds.
#
# ## Too deep for the memory
# The backward pass needs what the forward pass computed: the **saved activations** of all layers. Count their bytes.
#
# **Activation checkpointing** saves only the input of each segment of blocks, and computes the rest again on the way back. With about √*n* segments of √*n* blocks, memory falls from *n* to 2√*n*. Here a stage has 167 blocks, and √167 ≈ 13.
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


# %% tags=["nbval-ignore-output", "reason: bytes and seconds depend a little on version and machine"]
x, y = tiny[some].tensors()
taken, gradients = {}, {}
for name, forward in (("everything", thousand), ("segments", lambda x: checkpointed(thousand, x))):
    start = time.perf_counter()
    logits, taken[name] = saved_bytes(lambda: forward(x))
    gradients[name] = torch.autograd.grad(F.cross_entropy(logits, y), list(thousand.parameters()))
    del logits
    print(f"{name:10}  {taken[name] / 1e6:6.1f} MB saved   {time.perf_counter() - start:.1f} s")

inside = F.relu(thousand.bn1(thousand.conv1(x)))  # on the way back one segment at a time is whole
_, segment = saved_bytes(lambda: thousand.layer1[:13](inside))
print(f"and the largest segment, while it is computed again: {segment / 1e6:.1f} MB")
off = max((a - b).norm() / (a.norm() + 1e-12) for a, b in zip(*gradients.values())).item()
less = taken["everything"] / (taken["segments"] + segment)
print(f"{less:.0f} times less; gradients off by {off:.0e}")
assert less > 5 and off < 1e-3

# %% [markdown]
# Nothing: the gradients are the same, for less than a fifth of the memory and the time of one more forward pass. The bytes are counted where autograd stores them; a process needs more than that, for weights, gradients and momentum.
#
# ## Turn the knobs
# All of this in one picture: the gradient norm by layer at initialisation, with depth, batch normalisation and shortcut on sliders. Where no kernel runs you see the starting point: plain, with BN, 110 layers.
#
# **Predict**, then move the sliders: at 110 layers, in which of the four settings of BN and shortcut does the gradient stay between 0.1 and 100 in all layers?


# %%
def profile(depth, batch_norm, shortcut):
    net = build(depth, residual=shortcut)
    net = net if batch_norm else probes.without_bn(net)
    *norms, _ = probes.gradient_norms(net, images[:16], labels[:16]).values()
    kind = "residual" if shortcut else "plain"
    title = f"{kind}-{depth}, {'with' if batch_norm else 'without'} BN"
    return figures.lines(
        {(kind, depth): norms},
        "layer, counted from the image",
        "gradient norm",
        log="y",
        ylim=(1e-10, 1e10),
        title=title,
    )


figures.interactive(
    profile, depth=(8, 20, 32, 56, 110), batch_norm=(False, True), shortcut=(True, False)
)

# %% [markdown]
# In one: shortcut *and* BN. Without BN the layers differ less, but all fade together (plain, around a millionth) or explode together (residual, around ten million). The shortcut needs small branches, and BN makes them small.

# %% [markdown]
# ## Pitfalls
# **Measuring changes the network.** A forward pass in train mode moves the running statistics of BN, and two backward passes add up their gradients. Both go unnoticed.

# %%
net = build(8, residual=True)
F.cross_entropy(net(images), labels).backward()
once = net.fc.bias.grad.clone()
F.cross_entropy(net(images), labels).backward()
print("two measurements, batches seen by BN:", net.bn1.num_batches_tracked.item())
twice = torch.allclose(net.fc.bias.grad, 2 * once, rtol=1e-3)
print("the gradient is twice what it was:   ", twice)
before = net.bn1.num_batches_tracked.item()
probes.gradient_norms(net, images, labels)
print("the probe leaves BN as it was:       ", before == net.bn1.num_batches_tracked.item())

# %% [markdown]
# **Checkpointing runs the forward pass twice.** The outputs and gradients are right, but BN has counted each batch twice, so its running statistics move twice as fast.

# %%
net = build(8, residual=True)
checkpointed(net, images).sum().backward()
seen = net.layer1[0].bn1.num_batches_tracked.item()
print("batches given: 1, batches seen by the BN of a block:", seen)

# %% [markdown]
# **A mean over layers hides the story.** The gradient of all weights together is dominated by its largest layer. In the exploding network above, clipping that total would shrink the healthy layers to nothing. Look at the profile before you clip.
#
# **'It trains' needs a reference.** In the record above, the residual network without zeros falls from about 8 to 2.5 and has learned nothing: guessing costs ln 10 ≈ 2.30 with ten classes. Name the loss of guessing beside every early loss.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (easy, 5 minutes): the gradient of a stack
# Blocks of one number each: block *k* adds g(x) with slope *j*ₖ to its input, or replaces it. What is the gradient of the whole stack?
# <details><summary>Hint</summary>Slopes multiply. A residual step has slope 1 + j. The empty stack is the identity, with gradient 1.</details>

# %%
from math import comb, prod

import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import gradient_flow as check


def stack_gradient(slopes: list[float], residual: bool) -> float:
    """d(output)/d(input) of blocks whose branches have these slopes, in order."""
    ### BEGIN SOLUTION
    return float(prod(1 + j if residual else j for j in slopes))
    ### END SOLUTION


check.stack_gradient(stack_gradient)

# %% [markdown]
# ### Exercise 2 (medium, 10 minutes): how deep is the gradient?
# Suppose that each block on a path scales the gradient by *c*, so that a path of length *k* weighs *c*ᵏ. What is the mean path length, weighted so, of *n* blocks? With *c* = 1 it is *n*/2.
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
# ### Exercise 3 (medium, 10 minutes): a probe that leaves no trace
# Write the number that tells explosion from vanishing: the gradient norm of the first convolution divided by that of the last. Leave the model's gradients and batch statistics as they were.
# <details><summary>Hint</summary>Work on <code>copy.deepcopy(model)</code>, or use <code>torch.autograd.grad</code> and restore the buffers. A convolution's weight has four dimensions.</details>

# %%
import copy


def first_to_last(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Gradient norm of the first convolution's weight over the last one's, in train mode.

    x: (N, C, H, W), y: int64 (N,); the loss is the mean cross-entropy. First and last in the order
    of `model.parameters()`. The model is afterwards what it was, `.grad` and BN included.
    """
    ### BEGIN SOLUTION
    model = copy.deepcopy(model).train()
    kernels = [p for p in model.parameters() if p.dim() == 4]
    first, *_, last = torch.autograd.grad(F.cross_entropy(model(x), y), kernels)
    return (first.norm() / last.norm()).item()
    ### END SOLUTION


check.first_to_last(first_to_last)

# %% [markdown]
# ### Exercise 4 (hard, 15 minutes): a block without batch normalisation
# Build SkipInit as a block of its own: two 3×3 convolutions with a ReLU between them, one learnable number that starts at 0, the addition, and a last ReLU.
# <details><summary>Hint</summary><code>nn.Parameter(torch.zeros(()))</code> is one learnable number. The convolutions keep their usual initial weights: if they start at 0 as well, no gradient reaches anything. They may have biases, since no BN follows.</details>


# %%
class SkipInitBlock(nn.Module):
    """relu(x + alpha * conv2(relu(conv1(x)))), (N, channels, H, W) to the same shape, without BN.

    `conv1` and `conv2` are 3x3 convolutions, `alpha` is a parameter with one element, at first 0.
    """

    def __init__(self, channels: int):
        super().__init__()
        ### BEGIN SOLUTION
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.alpha = nn.Parameter(torch.zeros(()))
        ### END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ### BEGIN SOLUTION
        return F.relu(x + self.alpha * self.conv2(F.relu(self.conv1(x))))
        ### END SOLUTION


check.skipinit(SkipInitBlock)

# %% [markdown]
# ## Summary
# - A shortcut turns the product of Jacobians *J* into a product of (*I* + *J*). That alone can shrink a gradient, even to 0, or blow it up (three blocks, 50 blocks).
# - In plain networks with BN the gradient *explodes* towards the input, by about 1.2 per layer (depths 8 to 110, first layer against last). It vanishes without BN and with small weights, and after the explosion has replaced the first layer's weights.
# - In a plain network of 50 layers the gradient along a line has the autocorrelation of white noise; with shortcuts neighbours are correlated (five seeds, each in the same order).
# - BN scales block *k* down by about √*k*. Branches that start at 0 do as well, without BN (SkipInit against nothing).
# - A residual network is a sum over paths of binomial length, and survives the loss of a block. A plain one does not (20 layers, each block taken out).
# - x ← x + f(x) is exact for pre-activation blocks, and with a step *h* it is Euler's method: slope -1.
# - 1,004 layers train if their branches start at 0, in memory that checkpointing cuts to less than a fifth.

# %% [markdown]
# ## Further reading
# - Kaiming He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): section 4.1 on vanishing gradients, section 4.2 on 1,202 layers. Kaiming He et al., *Identity Mappings in Deep Residual Networks*, 2016 (arXiv 1603.05027): section 2 for the sum of branches.
# - David Balduzzi et al., *The Shattered Gradients Problem*, 2017 (arXiv 1702.08591): sections 1 and 2.
# - Greg Yang et al., *A Mean Field Theory of Batch Normalization*, 2019 (arXiv 1902.08129): why gradients explode.
# - Soham De, Samuel L. Smith, *Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks*, 2020 (arXiv 2002.10444): SkipInit.
# - Andreas Veit, Michael Wilber, Serge Belongie, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, 2016 (arXiv 1605.06431): sections 3 to 5.
# - Ricky T. Q. Chen et al., *Neural Ordinary Differential Equations*, 2018 (arXiv 1806.07366): section 1.
# - Tianqi Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016 (arXiv 1604.06174): section 4.
