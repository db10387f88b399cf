# %% [markdown]
# # Gradient flow
# Shortcuts make deep networks trainable, and the usual reason given is that they keep gradients from vanishing.
# Here you measure the gradients, and then you test the explanations: remove one suspect at a time, and see whether the deep plain network trains.
#
# **You can afterwards** say what shortcuts do to gradients, and test what holds a deep plain network back.
#
# **What you will learn**
# - what the chain rule says about a stack of residual blocks, and what it does not say
# - how gradient norms change with depth, with batch normalisation and without
# - what a **shattered** gradient is, and why a healthy norm does not reveal it
# - how large the branches of a residual network are, and what happens when they start at 0
# - how to test an explanation instead of believing it
#
# **What you need**: chapters 1 to 3, and derivatives. **Minutes**: 100, 30 of them for the exercises.

# %% tags=["setup"]

# %% [markdown]
# ## The chain rule, twice
# Take three blocks that multiply a number by 0.5, by -0.25 and by 0.5.
# A plain stack replaces the number, x → g(x).
# A residual stack adds, x → x + g(x).
#
# The chain rule multiplies the slopes of the steps.
# A plain step has slope *w*.
# A residual step has slope 1 + *w*.
#
# **Predict** both gradients, d(output)/d(input), on paper.
# Three multiplications each.

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
# With vectors the slopes become **Jacobians**: *J* holds the derivative of each output of a block with respect to each of its inputs.
# A plain stack multiplies the *J*, a residual one the matrices *I* + *J*, where *I* is the identity matrix.
#
# The blocks below are curved: each *J* depends on where the signal passes.
#
# **Predict**: in which order do you multiply the three matrices, *J*₁*J*₂*J*₃ or *J*₃*J*₂*J*₁?
# The cell does it in one of the two, and compares with autograd.

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
# *J*₃*J*₂*J*₁: the last block stands on the left, since the signal meets it last.
# Up to rounding the product is autograd's gradient.
#
# ## What the notes conclude from it
# One of the notes takes two steps, y = f(x) and z = g(y), adds them, and differentiates by a weight *w* of f:
#
# ∂(y + z)/∂w = ∂y/∂w + ∂z/∂w
#
# It concludes that lower layers get a larger gradient, since the first term does not shrink.
# The formula is right for one block.
# But the second term contains the first: ∂z/∂w = g′(y) · ∂y/∂w, so the sum is **(1 + g′(y)) · ∂y/∂w**.
#
# **Predict**: can a shortcut make the gradient *smaller*?
# And what do 50 blocks with g′ = 0.5 do?


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
# Yes: the sum can be larger, smaller or 0.
# The shortcut keeps the gradient only while the Jacobians stay small or do not line up against it.
# If they are not small, fifty of them trade vanishing for explosion: 10⁻¹⁵ becomes 6·10⁸.
#
# So the formula alone settles nothing.
# Which of these happens in a real network?
# Measure.

# %% [markdown]
# ## Norms by layer
# The **gradient norm** of a layer is the length of the gradient of the loss by its weights.
# First by hand: one batch, one backward pass, one layer.

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
# The networks of chapter 1 have batch normalisation (BN) after each convolution.
# Depth hurt the plain ones.
#
# **Predict** for plain networks at initialisation: as they get deeper, does the gradient of the *first* layer shrink towards 0, stay, or grow?

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
# It grows.
# In plain-110 the first gradient is *millions* of times larger than the last.
# With BN and at initialisation nothing vanishes: the gradient **explodes** towards the input.
# In the residual networks first and last gradient stay within a factor of a hundred.

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


def growth(norms):
    """The factor by which the gradient norm grows per layer, from the last to the first."""
    return (norms[0] / norms[-1]) ** (1 / (len(norms) - 1))


print(f"plain-110: a factor of {growth(profiles['plain', 110]):.2f} per layer")
assert 1.1 < growth(profiles["plain", 110]) < 1.25  # for seeds 0-4

# %% [markdown]
# A straight line on a logarithmic scale means the same factor in each layer.
# First against last gradient of plain-110 gives 1.14 to 1.18 for seeds 0 to 4.
# Where does such a number come from?
#
# > **Per layer, in a wide plain network with BN and a large batch** (Yang et al. 2019)
# >
# > - **He initialisation** draws weights so that ReLU's halving of the mean square is made good: a layer with these weights doubles it.
# > - BN gives ReLU an input z with mean 0 and variance 1. Take it as normally distributed.
# > - *Forward.* ReLU's output a = max(z, 0) has E[a²] = 1/2 and mean 1/√(2π), so its variance is 1/2 - 1/(2π) = (1 - 1/π)/2. The weights double a variance, so the next layer's outputs have variance 1 - 1/π over the batch. BN divides them by the root of this, to get 1 again.
# > - *Backward.* BN divides the gradient by the same root: its square grows by 1/(1 - 1/π). The weights double the square, too, and ReLU passes half of it. These two cancel.
# >
# > So the gradient's square grows by π/(π - 1) ≈ 1.47 per layer, and its norm by the root of that, **1.21**.
# > The scale of the weights drops out, since BN divides by it.
#
# The derivation speaks of wide layers and large batches.
# Check it there: 30 fully connected layers of width 512, a batch of 512.


# %% tags=["nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
def fully_connected(depth, width, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential()
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        net.extend([linear, nn.BatchNorm1d(width), nn.ReLU()])
    return net.append(nn.Linear(width, 10))


wide, noise = fully_connected(30, 512), torch.randn(512, 512)
*norms, _ = probes.gradient_norms(wide, noise, torch.randint(10, (512,))).values()
expected = (torch.pi / (torch.pi - 1)) ** 0.5
print(f"wide and fully connected: {growth(norms):.3f}; expected: {expected:.3f}")
assert abs(growth(norms) - expected) < 0.02  # for seeds 0-4: 1.203 to 1.207

# %% [markdown]
# It agrees within one per cent for seeds 0 to 4 (1.203 to 1.207).
# Our convolutional networks are narrow and see 64 images; their gradients grow a little more slowly.
# Which of the differences matters is not tested here.
#
# That was one draw of the weights.
# The recorded experiment has five for each network (`python -m d2lres experiment gradients`).
#
# **Predict** for plain-110: do five draws agree within a factor of ten?
# And from which depth on does every plain network lie above every residual one?

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
# They agree within a factor of ten.
# At 8 and at 20 layers some plain network lies below some residual one; at 56 and 110 none does.
#
# ## Where gradients do vanish
# Take BN away, and scale all initial weights by a factor.
#
# **Predict** for plain-56 with weights halved: by what factor does the first layer's gradient change?


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
# Halved weights change it by about 0.5⁵⁴ ≈ 6·10⁻¹⁷, since each path from the first layer to the loss passes 54 other convolutions.
# Here the textbook is right: the gradient vanishes, and with the shortcut it does not.
#
# Doubled weights make it explode.
# He initialisation picks the scale in between, here a little low, and 56 layers make much of a little.
#
# Look at the residual column, too.
# With He initialisation and without BN it explodes.
# The shortcut alone is no cure; the section on small branches finds what is missing.

# %% [markdown]
# ## What the paper says
# He et al. 2015 do not claim to cure vanishing gradients.
# They argue that the trouble with plain networks is "unlikely to be caused by vanishing gradients", and report "healthy norms with BN" (section 4.1).
# That is about ImageNet, where their plain networks have at most 34 layers.
#
# Healthy at which time?
# Watch the first ten steps of training.
# BN ignores the length of the weights before it: twice the weights give the same output, and half the gradient.
# So a gradient alone says little once the weights have changed.
# Gradient *times* length is free of that scale.
#
# **Predict** for the first layer of plain-56: what does the gradient do in ten steps?
# And what does gradient times length do, compared with residual-56?

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


# %% tags=["claim:N10", "nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
seen = {"plain-56": watch(56, residual=False), "residual-56": watch(56, residual=True)}
product = {}
for name, rows in seen.items():
    print(f"{name:11}   gradient   length of weights   gradient · length   cosine with step 0")
    product[name] = {step: norm * length for step, (norm, length, _) in rows.items()}
    for step, (norm, length, cosine) in rows.items():
        free = product[name][step]
        print(f"    step {step:2} {norm:11.3f} {length:15.1f} {free:19.1f} {cosine:19.2f}")
plain, residual = seen.values()
assert plain[0][0] > 50 and plain[10][0] < 0.2  # for seeds 0-4, as the following
assert plain[1][1] > 3 * plain[0][1] and plain[1][2] < 0.6 and residual[1][2] > 0.9
assert product["plain-56"][10] < product["plain-56"][0] / 10
assert 0.1 < product["plain-56"][10] / product["residual-56"][10] < 10

# %% [markdown]
# The gradient falls from hundreds to hundredths.
# But the first step has not nudged the first layer, it has replaced it: the weights are many times longer, and their direction has little to do with the old one.
# Later gradients are divided by that length.
#
# Free of scale, the gradient of the first layer has neither exploded nor vanished after ten steps: gradient times length is then 0.5 to 3 in plain-56 and 0.9 to 1.7 in residual-56 (seeds 0 to 4).
# But beside such long weights a step is tiny: the layer hardly turns any more.
#
# So the verdict on 'residuals solve vanishing gradients': with BN, the first layer of plain-56 has no vanishing gradient at the start, and none after ten steps once scale is taken out.
# This supports the paper's doubt.
# 'Healthy', however, ends before 56 layers.

# %% [markdown]
# ## Shattered gradients
# A norm is one number.
# Does the gradient also point somewhere useful?
# A gradient by the weights contains the Jacobians of all later layers, as the gradient by the input does.
# If that one turns with every tiny move of the input, then each image asks for another step, however healthy the length.
# Such a gradient is **shattered**.
#
# Make it visible (Balduzzi et al. 2017, section 2): a network with **one** number as input and one as output, whose gradient you follow along a line.


# %%
class Skip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def gradient_along(line, depth, kind, batch_norm=True):
    """The gradient of a random network of `depth` linear layers at each point of the line."""
    net = nn.Sequential(first := nn.Linear(1, 200))
    for _ in range(depth - 2):
        linear, bn = nn.Linear(200, 200, bias=False), nn.BatchNorm1d(200, momentum=1.0)
        layers = nn.ReLU(), linear, bn if batch_norm else nn.Identity()
        net.append((Skip if kind == "residual" else nn.Sequential)(*layers))
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
# The deep networks have 50 layers, with a BN of fixed statistics after each but the first and the last, and differ in the shortcuts only.
# You see 100 neighbouring points of each.
#
# **Predict**: which of the two deep networks has gradients that you could mistake for noise?

# %% tags=["nbval-ignore-output", "reason: the lines differ a little between machines"]
kinds = {
    "shallow, 2 layers": (2, "plain"),
    "plain-50": (50, "plain"),
    "residual-50": (50, "residual"),
}
along = {}
for name, how in kinds.items():
    torch.manual_seed(0)
    g = gradient_along(line, *how)
    along[name] = g / g.std()
nets = {"plain-50": ("plain", 50), "residual-50": ("residual", 50)}  # drawn by kind and depth
shifted = {nets.get(k, k): (g[:100] - 6 * i).tolist() for i, (k, g) in enumerate(along.items())}
figures.show(figures.lines(shifted, "place on the line", "gradient, each on its own level"))
turns = {name: (g[1:] * g[:-1] < 0).float().mean().item() for name, g in along.items()}
print("changes of sign from one point to the next:", {k: f"{v:.0%}" for k, v in turns.items()})
assert turns["plain-50"] > 0.3 > turns["shallow, 2 layers"]
assert turns["plain-50"] > turns["residual-50"]

# %% [markdown]
# The plain one: its gradient changes sign at about every second point.
# Put a number on it: the **autocorrelation** at lag *k* is the correlation of the sequence with itself, shifted by *k* places.
# **White noise** (independent numbers) has 0.
# **Brown noise** (a random walk) stays high.
#
# BN itself is a suspect: Yang et al. 2019 hold it responsible.
# So the table has a plain network without it, too.
#
# **Predict** the order of the four networks, and put the two noises between them.


# %% tags=["nbval-ignore-output", "reason: correlations differ in their digits between machines"]
def autocorrelation(values, lags=15):
    v = values.double() - values.double().mean()
    return [((v[: len(v) - k] * v[k:]).sum() / v.square().sum()).item() for k in range(lags + 1)]


def correlations(seed):
    white = torch.randn(256, generator=torch.Generator().manual_seed(seed))
    found = {"white noise": white, "brown noise": white.cumsum(0)}  # a walk of white steps
    for name, how in {**kinds, "plain-50, no BN": (50, "plain", False)}.items():
        torch.manual_seed(seed)
        found[name] = gradient_along(line, *how)
    return {name: autocorrelation(values) for name, values in found.items()}


by_seed = [correlations(seed) for seed in range(5)]
print("lag 1 ", *(f"{name:>17}" for name in by_seed[0]))
for seed, found in enumerate(by_seed):
    print(f"seed {seed}", *(f"{values[1]:17.2f}" for values in found.values()))
    at = {name: values[1] for name, values in found.items()}
    assert at["shallow, 2 layers"] > at["residual-50"] + 0.05 and at["residual-50"] > 0.5
    assert abs(at["plain-50"]) < 0.25 and abs(at["white noise"]) < 0.25 < at["brown noise"]
    assert at["plain-50, no BN"] > 0.5

# %% tags=["nbval-ignore-output", "reason: the lines differ a little between machines"]
names = [name for name in by_seed[0] if name != "plain-50, no BN"]
mean = {name: [sum(f[name][lag] for f in by_seed) / 5 for lag in range(16)] for name in names}
figures.show(
    figures.lines(
        {nets.get(name, name): (range(16), values) for name, values in mean.items()},
        "lag",
        "autocorrelation of the gradient",
        title="Mean of five seeds, with batch normalisation",
    )
)
assert mean["plain-50"][1] < 0.1 < mean["residual-50"][3]

# %% [markdown]
# With BN, the gradient of plain-50 cannot be told from white noise by its autocorrelation.
# The 2-layer network stays highest, as brown noise does; residual-50 and plain-50 without BN lie in between, in an order that depends on the seed.
# So with shortcuts the correlation fades over several points and not at once, and without BN plain-50 does not shatter, for any of the five seeds.
#
# In this deep plain network it is BN that takes the direction from the gradient, and shortcuts keep some of it.
# Why do shortcuts help?
# *I* + *J* turns a gradient less than *J* does when *J* is small beside *I*.
# How small it is, you measure next.
#
# ## Small branches
# A block adds two things: its **branch** g(x) and its **shortcut** x.
# Behind BN every branch has variance 1.
# The shortcut carries all that the blocks before have added up.
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
assert 0.02 < ratio[24] < 0.2

# %% [markdown]
# About a tenth.
# The ratio falls like one over the block's number, up to a factor of two or three: the ReLU after each sum cuts off some of what has piled up.
# In standard deviations, BN silently scales block *k* down by about √*k* (De & Smith 2020).
# At initialisation deep blocks are almost identities.
#
# This fits the kind of the residual curve above.
# If the branch of block *k* has *c*/*k* of the shortcut's variance, the block multiplies the gradient's square by about 1 + *c*/*k*.
# The product of these factors over *n* blocks grows like *n*ᶜ, and the norm like its root: a *power* of the depth, where the plain network multiplies by a fixed factor per layer.
# The networks of the record have three stages, so do not expect the same exponent.

# %%
depths, medians = (20, 56, 110), [np.median(growths["residual", d]) for d in (20, 56, 110)]
power = np.polyfit(np.log(depths), np.log(medians), 1)[0]
print(f"recorded residual networks: first / last gradient grows like depth^{power:.2f}")
assert 0.8 < power < 1.6

# %% [markdown]
# If, without BN, branch and shortcut are equally strong, each of 27 blocks doubles the gradient's square, and its norm grows by the root of 2²⁷, about 12,000.
# The table of 'Where gradients do vanish' shows thousands, too, at He initialisation.
#
# ## Smaller still: start at 0
# Make the branches smaller still: set the weight of each block's last BN to 0 (`zero_init_residual` in torchvision).
#
# **Predict**: what does depth do to the first gradient then?


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
# Nothing that shows: the four numbers, one draw each, have no trend.
# At its first step residual-110 is a shallow network.
#
# Then BN may not be needed.
# **SkipInit** (De & Smith 2020) removes it and multiplies each branch by one learnable number α that starts at 0: x + α g(x).
# Train 110 layers without BN, with and without α, on half of the images, once through and with the same optimiser.
#
# **Predict**: 54 extra parameters against none.
# Which of the two networks learns?

# %%
from d2lres.training import evaluate, fit


class Alpha(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.alpha * x


# %% tags=["claim:F7", "nbval-ignore-output", "reason: losses differ in the last digits between machines"]
small, _ = fashion_mnist(size=10)  # pixels
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
# SkipInit.
# Without α the first losses are so large that their mean over the epoch is in the thousands, and in the end the loss is about ln 10 ≈ 2.30, which is what guessing costs.
# With 54 numbers that start at 0 the network learns without any normalisation.
# This cell tries one learning rate.

# %% [markdown]
# ## Turn the knobs
# The gradient norm by layer at initialisation, with depth, batch normalisation and shortcut on sliders.
# Where no kernel runs you see the starting point: plain, with BN, 110 layers.
#
# **Predict**, then move the sliders: at 110 layers, in which of the four settings of BN and shortcut does the gradient stay between 0.1 and 100 in all layers?


# %%
def norms_of(depth, batch_norm, shortcut):
    net = build(depth, residual=shortcut)
    net = net if batch_norm else probes.without_bn(net)
    *norms, _ = probes.gradient_norms(net, images[:16], labels[:16]).values()
    return norms


def profile(depth, batch_norm, shortcut):
    kind = "residual" if shortcut else "plain"
    return figures.lines(
        {(kind, depth): norms_of(depth, batch_norm, shortcut)},
        "layer, counted from the image",
        "gradient norm",
        log="y",
        ylim=(1e-10, 1e10),
        title=f"{kind}-{depth}, {'with' if batch_norm else 'without'} BN",
    )


figures.interactive(
    profile, depth=(8, 20, 32, 56, 110), batch_norm=(False, True), shortcut=(True, False)
)

# %% tags=["claim:F8", "nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
print("110 layers                smallest    largest gradient norm")
extremes = {}
for kind in ("plain", "residual"):
    for bn in ("with BN", "without BN"):
        norms = norms_of(110, bn == "with BN", kind == "residual")
        low, high = extremes[kind, bn] = min(norms), max(norms)
        print(f"{kind:8} {bn:12} {low:12.0e} {high:10.0e}")
assert 0.1 < extremes["residual", "with BN"][0] < extremes["residual", "with BN"][1] < 100
assert extremes["plain", "with BN"][1] > 1e5  # these four hold for seeds 0-4
assert extremes["plain", "without BN"][1] < 1e-3 and extremes["residual", "without BN"][0] > 1e4

# %% [markdown]
# In one: shortcut *and* BN.
# Without BN the layers differ less from each other, but all fade together (plain) or explode together (residual).
# The shortcut needs small branches, and BN makes them small.

# %% [markdown]
# ## Which of these is to blame?
# So far you have seen what goes along with depth in a plain network: exploding norms, shattered gradients.
# That two things go together does not make one the cause of the other.
# To test a suspect, take it away and see whether plain-56 trains.
#
# How do you take it away without a shortcut?
#
# - *The rate is wrong, or its **warm-up**, the time in which it rises*: try others.
# - *The norms explode*: use the optimiser Adam, which divides each step by the running size of its gradient, so that an explosion cannot reach the weights.
# - *The search starts in a bad place*: start from kernels that pass their input on (**Dirac** kernels, `nn.init.dirac_`, the relay of chapter 1), so that the network of 56 layers begins as a short one.
#
# The last one changes no layer, no parameter count and no shortcut, only the initial weights.
# What does it do to the gradient?


# %% tags=["nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
def dirac_start(net):
    """Every convolution that keeps its channels passes its input on."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == conv.out_channels:
            nn.init.dirac_(conv.weight)
    return net


starts = {
    "plain": lambda seed: build(56, residual=False, seed=seed),
    "plain, Dirac start": lambda seed: dirac_start(build(56, residual=False, seed=seed)),
    "residual": lambda seed: build(56, residual=True, seed=seed),
}
ratio = {}
for name, start in starts.items():
    *norms, _ = probes.gradient_norms(start(0), images, labels).values()
    ratio[name] = norms[0] / norms[-1]
    print(f"{name:20} first gradient / last gradient: {ratio[name]:8.1f}")
assert ratio["plain"] > 20 * ratio["plain, Dirac start"]  # for seeds 0-4

# %% [markdown]
# The Dirac start takes the explosion away.
# Now train the three, for three epochs on half of the images of 10×10 pixels.
#
# **Predict** the training accuracy of the plain network with the Dirac start: near the plain one, half-way, or near the residual one?

# %% tags=["nbval-ignore-output", "reason: accuracies differ a little between machines"]
reached = {}
for name, start in starts.items():
    net = start(0)
    fit(net, half, epochs=3, lr=0.1, batch_size=64, device="cpu")
    reached[name] = evaluate(net, half).accuracy
    print(f"{name:20} training accuracy {reached[name]:.0%}")
assert reached["plain, Dirac start"] > reached["plain"] + 0.1  # for seeds 0-4

# %% [markdown]
# Nearer to the residual one, in four of five seeds: 66 to 72 %, and 52 % with seed 3.
# Plain gave 22 to 34 %, and residual 74 to 77 % (seeds 0 to 4).
#
# So a plain network of 56 layers can train, if it starts in another place.
# But the Dirac start removes much at once.
# The record tries the changes one at a time, on all images of 14×14 pixels: three epochs, five seeds, batches of 128, one cycle up to 0.1 (Adam and the networks without BN up to 0.003) (`python -m d2lres experiment remedies-short`).
# A **delta-orthogonal** start turns the channels of each pixel, and keeps their lengths (Xiao et al. 2018).
#
# **Predict**: which rows come within ten points of residual-56?


# %%
def by_kind(name, depth=56):
    """{kind: runs} of a recorded experiment."""
    kinds = {}
    for run in recorded(name)["runs"]:
        if run["depth"] == depth:
            kinds.setdefault(run["kind"], []).append(run)
    return kinds


remedies = by_kind("remedies-short")
print("56 layers, three epochs          training accuracy, five seeds    first / last gradient")
middle = {}
for kind in recorded("remedies-short")["config"]["kinds"]:
    scores = sorted(run["train"]["accuracy"] for run in remedies[kind])
    ratios = sorted(run["gradients"]["first"] / run["gradients"]["last"] for run in remedies[kind])
    middle[kind] = scores[2]
    print(
        f"{kind:24} median {scores[2]:4.0%}   {scores[0]:4.0%} to {scores[4]:4.0%} {ratios[2]:18.2g}"
    )
near = [kind for kind in middle if middle[kind] > middle["residual"] - 0.1]
assert near == ["plain, Dirac", "residual"]
others = [kind for kind in middle if "Dirac" not in kind and kind != "residual"]
best = max(run["train"]["accuracy"] for kind in others for run in remedies[kind])
assert best < min(run["train"]["accuracy"] for run in remedies["plain, Dirac"]) - 0.2

# %% [markdown]
# One: the Dirac start.
# What does each row say, in three epochs?
#
# - *The rate.* Ten times less, three times less or more, a longer warm-up: no seed gets beyond 51 %.
# - *The size of the gradients.* Adam does not see it, and does worse at the one rate tried. Residual-56 with Adam was not run, so this is weak evidence.
# - *Kernels that keep lengths.* The delta-orthogonal start does not help; with ReLU and BN its gradient explodes even more.
# - *Being exactly a short network.* With 0.3 of the usual weights added, the Dirac start still brings most of the gain.
# - *BN.* Without it nothing explodes, and at the one rate tried the usual start still does not get beyond guessing; the Dirac start does.
#
# What is left of these suspects is *where the search starts*.
# The Dirac start removes the explosion and presumably the shattering, which was not measured here.
# It cannot say which of the two matters.
#
# Is the shortcut then only a good start?
# Give both 40 epochs, with the settings of chapter 1 (`python -m d2lres experiment remedies`).
#
# **Predict**: does the plain network with the Dirac start catch up with the residual one?

# %% tags=["claim:F13"]
forty = {
    ("plain", 56): by_kind("degradation", depth=56)["plain"],
    ("plain", 56, "Dirac start"): by_kind("remedies")["plain, Dirac"],
    ("residual", 56): by_kind("degradation", depth=56)["residual"],
}
print("training error after 40 epochs, five seeds")
medians, error = {}, {}
for net, runs in forty.items():
    by_epoch = [run["history"]["accuracy"] for run in runs]
    medians[net] = 100 * (1 - np.median(by_epoch, axis=0))
    error[net] = sorted(100 * (1 - run["train"]["accuracy"]) for run in runs)
    print(f"{' '.join(map(str, net)):24} {error[net][0]:5.1f} to {error[net][-1]:5.1f} %")
figures.show(figures.lines(medians, "epoch", "training error (%), median of five seeds"))
plain, dirac, residual = error.values()
assert plain[0] > dirac[-1] > dirac[0] > residual[-1]

# %% [markdown]
# Not quite.
# With the Dirac start 1 to 4 % of the training images stay wrong, with the usual start 13 to 23 %, and with shortcuts none: the order is the same for all seeds.
#
# So chapter 1's question has an answer, as far as this experiment goes.
# The plain network of 56 layers is stuck mostly because of where it starts.
# A better start closes most of the gap, and the shortcut does better still.
# Others found related remedies: Balduzzi et al. 2017 (section 5), and Zagoruyko & Komodakis 2017, who train deep plain networks whose kernels contain the identity.

# %% [markdown]
# ## Pitfalls
# **Measuring changes the network.**
# A forward pass in train mode moves the running statistics of BN, and two backward passes add up their gradients.
# Both go unnoticed.

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
# **A mean over layers hides the story.**
# The gradient of all weights together is dominated by its largest layer.
# **Clipping** scales all gradients down together until their total length is at most 1.
#
# **Predict** for plain-110: what is left of the last convolution's gradient?

# %% tags=["nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
*norms, _ = probes.gradient_norms(build(110, residual=False), images, labels).values()
total = sum(norm**2 for norm in norms) ** 0.5
print(f"last convolution: {norms[-1]:.2f}, after clipping {norms[-1] / total:.0e}")
assert norms[-1] / total < 1e-4  # for seeds 0-4

# %% [markdown]
# Next to nothing.
# Look at the profile before you clip.
#
# **An explanation that fits is not yet a cause.**
# Two things that appear together, here depth and exploding norms, may have a third in common.
# Remove the one and look at the other, as 'Which of these is to blame?' does.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (easy, 5 minutes): the gradient of a stack
# Blocks of one number each: block *k* adds g(x) with slope *j*ₖ to its input, or replaces it. What is the gradient of the whole stack?
# <details><summary>Hint</summary>Slopes multiply. A residual step has slope 1 + j. The empty stack is the identity, with gradient 1.</details>

# %%
from math import prod

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
# ### Exercise 2 (medium, 10 minutes): a probe that leaves no trace
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
# ### Exercise 3 (hard, 15 minutes): a block without batch normalisation
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
# - A shortcut turns the product of Jacobians *J* into a product of (*I* + *J*).
#   That alone can shrink a gradient, even to 0, or blow it up (three blocks, 50 blocks).
# - In plain networks with BN the gradient *explodes* towards the input at initialisation, by 1.14 to 1.18 per layer in plain-110 (first convolution against last, seeds 0 to 4; 1.21 in theory for wide layers and large batches).
# - It vanishes without BN and with small weights.
#   With BN, gradient times weight length of plain-56 is after ten steps of the same size as in residual-56.
# - With BN, the gradient of a plain network of 50 layers along a line has the autocorrelation of white noise; with shortcuts, or without BN, neighbours are correlated (five seeds).
# - At initialisation BN scales block *k* down by about √*k*.
#   With branches that start at 0, residual-110 learns without BN (SkipInit against nothing, one learning rate).
# - What holds plain-56 back here (width 8, 14×14 pixels, BN) is mostly where its search starts: with Dirac kernels it reaches 77 % of training accuracy in three epochs, against 43 % without and 83 % with shortcuts (medians of five seeds).
#   Other rates, a longer warm-up, Adam at one rate and a delta-orthogonal start do not help in three epochs.
#   After 40 epochs 1 to 4 % of its training images are wrong, against 13 to 23 % without and none with shortcuts.

# %% [markdown]
# ## Further reading
# - Kaiming He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): section 4.1 on vanishing gradients.
# - David Balduzzi et al., *The Shattered Gradients Problem*, 2017 (arXiv 1702.08591): sections 1 and 2, and section 5 for another start that is close to linear.
# - Greg Yang et al., *A Mean Field Theory of Batch Normalization*, 2019 (arXiv 1902.08129): why gradients explode.
# - Soham De, Samuel L. Smith, *Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks*, 2020 (arXiv 2002.10444): SkipInit.
# - Sergey Zagoruyko, Nikos Komodakis, *DiracNets*, 2017 (arXiv 1706.00388): deep plain networks whose kernels contain the identity.
# - Lechao Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs*, 2018 (arXiv 1806.05393): the delta-orthogonal start.
