# %% [markdown]
# # The family
# Since 2015 the ResNet has been changed in many ways: which of the changes matter, and at what scale?
# You build them in a few lines each, compare them with another library's, and let five seeds judge them.
#
# **You can afterwards** build ResNeXt, ResNet-D, SE-ResNet and the pre-activation network, and judge a change by five seeds.
#
# **What you will learn**
# - what a block costs: weights, multiplications, outputs, receptive field
# - how little separates ResNet-50 from its best-known relatives
# - what the order of BN, ReLU and addition does to a deep network
# - whether the changes help a small network, and how to tell
# - what a picture of a loss surface shows, and what it does not
#
# **What you need**: chapters 1 to 5. **Minutes**: 100, 43 of them for the exercises.

# %% tags=["setup"]

# %% [markdown]
# ## What a block costs
# The **bottleneck** of ResNet-50 narrows the maps with a 1×1 convolution, filters them with a 3×3 one, and widens them again.
# Its bill can be written down before anything is built.
# The **receptive field** is the side of the square of input pixels on which one output depends.
#
# **Predict**: beside a basic block of 64 channels, does a bottleneck between maps of 256 channels need more weights, about as many, or fewer?
# And which of the two sees further?

# %%
import torch

BRANCHES = {  # kernel, channels in, channels out of each convolution
    "basic, 64": [(3, 64, 64), (3, 64, 64)],
    "basic, 256": [(3, 256, 256), (3, 256, 256)],
    "bottleneck, 256": [(1, 256, 64), (3, 64, 64), (1, 64, 256)],
}


def bill(convs, side=56):
    """Of a branch on side x side maps: weights, multiplications, outputs, receptive field."""
    weights = sum(k * k * a * b for k, a, b in convs)
    outputs = side**2 * sum(b for _, _, b in convs)
    return weights, weights * side**2, outputs, 1 + sum(k - 1 for k, _, _ in convs)


for name, convs in BRANCHES.items():
    weights, products, outputs, field = bill(convs)
    print(
        f"{name:16} {weights:9,} weights {products / 1e6:6.0f} M multiplications"
        f" {outputs / 1e6:5.2f} M outputs   sees {field}×{field}"
    )

# %% [markdown]
# About as many, 6 % fewer.
# It sees 3×3 pixels and not 5×5, and its convolutions put out three times as many numbers, which training keeps for the backward pass unless it computes them again (chapter 5).
#
# A formula is a claim, too.
# Build the blocks and count.

# %% tags=["claim:F9"]
from torch import nn

from d2lres import BasicBlock, Bottleneck, probes


def counted(block, channels):
    """The same four numbers of a block that was built."""
    x, outputs = torch.ones(1, channels, 56, 56, requires_grad=True), []
    products = probes.flops(block, x)["convolution"] // 2  # a multiplication and an addition
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_hook(lambda conv, args, out: outputs.append(out.numel()))
    for p in block.parameters():
        p.data.abs_()  # so that no ReLU hides a pixel
    block.eval()(x)[0, 0, 28, 28].backward()
    field = (x.grad.abs().sum((0, 1)) > 0).any(0).sum().item()
    return sum(conv.weight.numel() for conv in convs), products, sum(outputs), field


blocks = BasicBlock(64, 64), BasicBlock(256, 256), Bottleneck(256, 64)
for (name, convs), block in zip(BRANCHES.items(), blocks):
    found = counted(block, convs[0][1])
    print(f"{name:16} as the formulas say:", found == bill(convs))
    assert found == bill(convs)

# %% [markdown]
# So 'bottlenecks are cheaper' depends on what you put beside them.
# Between maps of 256 channels a bottleneck needs a seventeenth of the multiplications of two 3×3 convolutions.
# Beside a basic block between maps of 64 channels it saves next to nothing.

# %% [markdown]
# ## Where the stride sits
# In this course's blocks `build` makes the layers, and `join` adds the shortcut to the branch.
# A change of the block overwrites one of the two.
#
# At the start of a stage one convolution has stride 2.
# In 2015 it was the first 1×1 of the bottleneck ('v1').
# torchvision, and this course, put it into the 3×3 ('v1.5').
#
# **Predict**: how many of its input's pixels does each version of the block never look at?
# And the shortcut alone?


# %%
from d2lres.blocks import Block, conv1x1, conv3x3, make_shortcut


class StrideFirst(Bottleneck):
    """The bottleneck of 2015: the stride sits in the first convolution."""

    def build(self, inplanes, planes, stride):
        super().build(inplanes, planes, stride=1)
        self.conv1 = conv1x1(inplanes, planes, stride)


def unseen(module):
    """The share of the input's pixels on which no output of the module depends."""
    x = torch.rand(1, 64, 16, 16, requires_grad=True)
    module.eval()(x).sum().backward()
    return (x.grad.abs().sum((0, 1)) == 0).float().mean().item()


shortcut = make_shortcut(Bottleneck, 64, 64, 2, "B")
for kind in (StrideFirst, Bottleneck):
    print(f"{kind.__name__:12} ignores {unseen(kind(64, 64, 2, shortcut)):.0%} of the pixels")
print(f"its shortcut ignores {unseen(shortcut):.0%}")
assert unseen(StrideFirst(64, 64, 2, shortcut)) == unseen(shortcut) == 0.75
assert unseen(Bottleneck(64, 64, 2, shortcut)) == 0

# %% [markdown]
# In v1 three quarters: a 1×1 convolution with stride 2 reads every other pixel of every other row, and so does the shortcut.
# In v1.5 the branch reads all pixels.
# Its price shows when you count.

# %%
from d2lres import ResNet

LAYERS = [3, 4, 6, 3]  # blocks in the four stages of a network of 50 layers
for kind in (StrideFirst, Bottleneck):
    done = probes.flops(ResNet(kind, LAYERS), torch.zeros(1, 3, 224, 224))
    print(
        f"{kind.__name__:12} {(done['convolution'] + done['linear']) / 2e9:.2f} G multiplications"
    )

# %% [markdown]
# 3.86 against 4.09 billion multiplications, 6 % more.
# The paper prints 3.8 for its network (table 1).
# Both are called ResNet-50.

# %% [markdown]
# ## Width and groups
# A **wide** ResNet has more channels (Zagoruyko & Komodakis 2016), a **grouped convolution** splits its channels into groups that do not see each other, and ResNeXt does both (Xie et al. 2017).
# Beside the bottleneck each is a change of a few lines.
#
# **Predict**: with 128 channels, by what factor do 32 groups shrink the 3×3 convolution?


# %%
class WideBottleneck(Bottleneck):
    """Twice as wide inside: the block of wide ResNet-50-2."""

    groups = 1

    def build(self, inplanes, planes, stride):
        super().build(inplanes, planes, stride)
        width = 2 * planes
        self.conv1, self.bn1 = conv1x1(inplanes, width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=self.groups, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(width), conv1x1(width, 4 * planes)


class ResNeXtBottleneck(WideBottleneck):
    """The block of ResNeXt-50 32×4d: 32 groups, of 4 channels in the first stage."""

    groups = 32


for kind in (Bottleneck, WideBottleneck, ResNeXtBottleneck):
    block = kind(256, 64)
    total = sum(p.numel() for p in block.parameters())
    print(f"{kind.__name__:18} {total:9,} parameters, 3×3: {block.conv2.weight.numel():9,}")

# %% [markdown]
# By 32: each output channel reads 4 channels in place of 128.
# So ResNeXt pays for the double width with groups, and is about as large as the bottleneck.

# %% [markdown]
# ## The D of ResNet-D
# Two changes that T. He et al. 2019 collect, and that timm's 'd' means: the **deep stem**, three 3×3 convolutions in place of the 7×7, which is older, and their own, an average over 2×2 pixels before the 1×1 convolution on a shortcut, which then needs no stride.
#
# **Predict**: D adds the same number of parameters to 18 and to 152 layers.
# To which part does it add them, and what does it do to the share of pixels that the shortcut ignores?


# %%
class DeepStem(nn.Sequential):
    """(N, in_channels, H, W) -> (N, width, ceil(H / 2), ceil(W / 2)), as the 7x7 with stride 2."""

    def __init__(self, in_channels, width):
        half = width // 2
        first, second = conv3x3(in_channels, half, stride=2), conv3x3(half, half)
        norm1, norm2 = nn.BatchNorm2d(half), nn.BatchNorm2d(half)
        super().__init__(first, norm1, nn.ReLU(), second, norm2, nn.ReLU(), conv3x3(half, width))
        self.in_channels = in_channels  # which ResNet asks its first layer for


def average_first(net):
    """Each 1x1 convolution on a shortcut gets stride 1, behind a mean over 2x2 where it had 2."""
    for block in net.modules():
        if isinstance(block, Block) and block.downsample is not None:
            conv, norm = block.downsample
            pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
            pool = pool if conv.stride == (2, 2) else nn.Identity()
            block.downsample = nn.Sequential(pool, conv1x1(*conv.weight.shape[1::-1]), norm)


# %%
block = Bottleneck(64, 64, 2, shortcut)
average_first(block)
more = sum(p.numel() for p in DeepStem(3, 64).parameters()) - 7 * 7 * 3 * 64
print(f"parameters more: {more:,}; the shortcut ignores {unseen(block.downsample):.0%}")
assert more == 19_232 and unseen(block.downsample) == 0

# %% [markdown]
# To the stem, which every depth has once: 19,232.
# The shortcut, averaging first, ignores no pixel (of an even number of rows and columns).

# %% [markdown]
# ## Squeeze and excite
# A **squeeze-excite** layer takes the mean of each map, passes these means through two small layers, and multiplies each map by the number from 0 to 1 that comes out (Hu et al. 2018).
# It stands at the end of the branch, before the addition.
#
# **Predict**: to ResNet-50 it adds 10 % more parameters.
# How many per cent does it add to the multiplications in convolutions: 0.1, 1 or 10?

# %%
import torch.nn.functional as F


class SqueezeExcite(nn.Module):
    """(N, C, H, W) -> the same shape, each map times a number from 0 to 1."""

    def __init__(self, channels):
        super().__init__()
        few = max(8, channels // 16)
        self.fc1, self.fc2 = nn.Conv2d(channels, few, 1), nn.Conv2d(few, channels, 1)

    def forward(self, x):
        means = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(means))).sigmoid()


# %%
class WithSE(Block):
    """Any block of this course, with squeeze-excite at the end of its branch."""

    def build(self, inplanes, planes, stride):
        super().build(inplanes, planes, stride)
        self.se = SqueezeExcite(planes * self.expansion)

    def join(self, branch, x):
        return super().join(self.se(branch), x)


class SEBasicBlock(WithSE, BasicBlock): ...


class SEBottleneck(WithSE, Bottleneck): ...


# %% tags=["claim:F10"]
bills = {}
for kind in (Bottleneck, SEBottleneck):
    net = ResNet(kind, LAYERS)
    products = probes.flops(net, torch.zeros(1, 3, 224, 224))["convolution"] // 2
    bills[kind] = sum(p.numel() for p in net.parameters()), products
    print(f"{kind.__name__:13} {bills[kind][0]:11,} parameters {products:14,} multiplications")
more = [with_se / without - 1 for without, with_se in zip(*bills.values())]
print(f"more: {more[0]:.1%} parameters, {more[1]:.2%} multiplications")
assert more[0] > 0.09 and more[1] < 0.001

# %% [markdown]
# Less than 0.1 %, since the two small layers see one number a map.
# The products of maps and numbers, which `flops` leaves out, come on top, one for each pixel of each map.
# And multiplications are not seconds: the time is not measured here.

# %% [markdown]
# ## Before the convolution
# The **pre-activation** order puts BN and ReLU before each convolution (He et al. 2016).
# Nothing follows the addition, as in the `PreActBlock` of chapter 5, so `ResNet` adds one more BN and ReLU behind the last block.
# A shortcut with a convolution starts behind the first BN and ReLU, `active` below.


# %%
from d2lres import PreActBlock


class PreActBottleneck(PreActBlock):
    """BN, ReLU, convolution, three times."""

    expansion = 4

    def build(self, inplanes, planes, stride):
        self.bn1, self.conv1 = nn.BatchNorm2d(inplanes), conv1x1(inplanes, planes)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv3x3(planes, planes, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), conv1x1(planes, 4 * planes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        active = self.relu(self.bn1(x))
        branch = self.conv2(self.relu(self.bn2(self.conv1(active))))
        branch = self.conv3(self.relu(self.bn3(branch)))
        return self.join(branch, x if self.downsample is None else active)


# %% [markdown]
# ## Are they the real thing?
# Equal numbers of parameters prove little.
# Equal answers prove more: give your network and that of another library the same weights and the same images, and compare the logits.
#
# The library timm has all of these networks.
# The tests of this course compare with it; you compare with what timm answered, which comes with the course as **fingerprints**: hashes of the logits, in 64 bits and rounded to thousandths.
# The weights are whole random numbers, scaled, so that they are the same on every machine.

# %%
import hashlib


def with_d(net):
    net.conv1 = DeepStem(3, 64)
    average_first(net)
    return net


FAMILY = {
    "resnet18": lambda: ResNet(BasicBlock, [2, 2, 2, 2]),
    "resnet50": lambda: ResNet(Bottleneck, LAYERS),
    "resnet18d": lambda: with_d(ResNet(BasicBlock, [2, 2, 2, 2])),
    "resnet50d": lambda: with_d(ResNet(Bottleneck, LAYERS)),
    "resnext50_32x4d": lambda: ResNet(ResNeXtBottleneck, LAYERS),
    "seresnet50": lambda: ResNet(SEBottleneck, LAYERS),
    "resnetv2_50": lambda: ResNet(PreActBottleneck, LAYERS),
}


# %%
@torch.no_grad()
def fixed_weights(net):
    """The network in 64 bits, its weights and statistics made of random whole numbers."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(net.double().state_dict().items()):
        if value.is_floating_point():
            numbers = torch.randint(-512, 513, value.shape, generator=generator) / 512
            if value.ndim > 1:
                value.copy_(numbers * (6 / value[0].numel()) ** 0.5)
            else:  # BN's weights and variances lie around 1, all else around 0
                value.copy_(numbers / 4 + name.endswith(("weight", "running_var")))
    return net


def answer(net, training):
    """The logits (2, 1000) of two images of 64x64 pixels that are no photographs."""
    x = torch.arange(2 * 3 * 64 * 64).view(2, 3, 64, 64) % 251 / 125.0 - 1
    with torch.no_grad():
        return net.train(training)(x.double())


def fingerprint(logits):
    """Twelve digits of a hash of the logits in thousandths."""
    thousandths = (1000 * logits).round().to(torch.int32)
    return hashlib.sha256(thousandths.numpy().tobytes()).hexdigest()[:12]


# %% [markdown]
# **Predict**: your classes use no line of timm's.
# How many of the fourteen fingerprints agree?

# %%
from d2lres.records import recorded
from d2lres.training import progress_bar

timm = recorded("timm")
for name, build in progress_bar(FAMILY.items(), len(FAMILY)):
    net = fixed_weights(build())
    found = {mode: fingerprint(answer(net, mode == "train")) for mode in ("eval", "train")}
    parameters = sum(p.numel() for p in net.parameters())
    equal = {mode: found[mode] == timm["nets"][name][mode] for mode in found}
    print(f"{name:16} {parameters:11,} parameters   equal: {equal}")
    assert parameters == timm["nets"][name]["parameters"] and all(equal.values())

# %% [markdown]
# All of them, in both modes, for one set of weights and two images of 64×64 pixels.
# The record also has the largest differences: none for six networks, and less than 10⁻¹² for resnetv2_50.
# A fingerprint would not notice a change that keeps every logit to a thousandth.
#
# The names promise something, too: the number of layers.
#
# **Predict**: which of the seven have as many layers as their name says, if only convolutions and linear layers count, and none on a shortcut?

# %% tags=["claim:F12"]
layers = {}
for name, build in FAMILY.items():
    with torch.device("meta"):  # no weights are made
        layers[name] = len(probes.weight_layers(build()))
print(layers)
as_named = [name for name, count in layers.items() if str(count) in name]
print("as named:", ", ".join(as_named))
assert as_named == ["resnet18", "resnet50", "resnext50_32x4d", "resnetv2_50"]

# %% [markdown]
# Four.
# The deep stem adds two layers that the names of resnet18d and resnet50d do not count, and seresnet50 has two more in each of its 16 blocks.

# %% [markdown]
# ## What the order does
# He et al. 2016 compare five orders of the same layers.
# Three of them are a change of two lines to the basic block of chapter 2.


# %%
class BNAfter(BasicBlock):
    def forward(self, x):
        branch = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.join(branch, x)))


class ReLUBefore(BasicBlock):
    def forward(self, x):
        branch = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return self.join(F.relu(self.bn2(branch)), x)


class ReLUOnly(BasicBlock):
    def forward(self, x):
        branch = self.conv2(self.relu(self.bn1(self.conv1(F.relu(x)))))
        return self.join(self.bn2(branch), x)


ORDERS = {
    "original": BasicBlock,
    "BN after addition": BNAfter,
    "ReLU before addition": ReLUBefore,
    "ReLU-only pre-activation": ReLUOnly,
    "full pre-activation": PreActBlock,
}

# %% [markdown]
# If nothing stands on the way of the shortcut, a feature is an earlier one plus all branches in between, *x*_L = *x*_l + Σ f(*x*_i) (chapter 5).
#
# **Predict**: for which of the five orders is this exact?
# And in which one can no number ever become smaller on its way through the blocks?


# %%
def path(kind, blocks=5):
    """(input, output, sum of all branches) of a stack of such blocks, in train mode."""
    torch.manual_seed(0)
    x, branches = torch.randn(4, 8, 6, 6), []

    def noting(join):
        return lambda branch, x: join(branches.append(branch) or branch, x)

    net = nn.Sequential(*(kind(8, 8) for _ in range(blocks)))
    for block in net:
        block.join = noting(block.join)
    with torch.no_grad():
        return x, net(x), sum(branches)


clear, falls = {}, {}
for name, kind in ORDERS.items():
    x, out, added = path(kind)
    clear[name] = torch.allclose(x + added, out, atol=1e-5)
    falls[name] = (out < x).any().item()
    print(f"{name:25} a sum of branches: {clear[name]!s:6} a number fell: {falls[name]}")
assert list(clear.values()) == [False, False, True, True, True]
assert [name for name in ORDERS if not falls[name]] == ["ReLU before addition"]

# %% [markdown]
# For the last three orders.
# With the ReLU at the end of the branch nothing is ever subtracted, so no number falls.
#
# What does the order do to gradients?
# Build each order with 110 and with 1,004 layers, and compare the gradient of the first convolution with that of the last.
#
# **Predict**: in which order does the gradient explode?
#
# <details><summary>How the networks are built</summary>They are those of chapter 1, for 8×8 pixels and with 4 channels, with another block. A name such as 'original, dropped up to 0.5' is for the section after this one.</details>

# %%
from d2lres.data import fashion_mnist


def deep(kind, depth, width=8):
    """The network for small images with blocks in one of the ORDERS, or with stochastic depth."""
    order, _, rate = kind.partition(", dropped up to ")
    order, cut, _ = order.partition(" without the end")
    block = StochasticDepth if rate else ORDERS[order]
    options = dict(width=width, small_images=True, shortcut="A")
    net = ResNet(block, [(depth - 2) // 6] * 3, 10, 1, **options)
    if rate:
        set_rates(net, float(rate))
    if cut:  # of the pre-activation network: its last BN and ReLU
        net.last = nn.Identity()
    return net


# %% tags=["nbval-ignore-output", "reason: gradient norms differ in their digits between machines"]
tiny, _ = fashion_mnist(size=8)
x, y = tiny[torch.randperm(len(tiny), generator=torch.Generator().manual_seed(0))[:32]].tensors()
growth = {}
print("first gradient / last gradient     110 layers   1,004 layers")
for name in progress_bar(ORDERS, len(ORDERS)):
    for depth in (110, 1004):
        torch.manual_seed(0)
        *norms, _ = probes.gradient_norms(deep(name, depth, width=4), x, y).values()
        growth[name, depth] = norms[0] / norms[-1]
    print(f"{name:30} {growth[name, 110]:14.3g} {growth[name, 1004]:14.3g}")
assert growth["BN after addition", 1004] > 1e15  # for seeds 0-4
assert all(growth[name, 1004] < 1e5 for name in ORDERS if name != "BN after addition")

# %% [markdown]
# In the one with BN after the addition: at 1,004 layers and at initialisation, by more than 10¹⁵.
# In the four others the factor stays below 100,000 (seeds 0 to 4; you see seed 0).
#
# Does training tell them apart?
# The paper's test errors with 110 layers on CIFAR-10 are 6.61 % for the original, then 8.17, 7.84, 6.71 and 6.37 (table 2).
# The recorded experiment has 110 layers too, but width 8, the sample at 14×14 pixels, 6 epochs at the rate 0.1, and five seeds (`python -m d2lres experiment orders`).
#
# **Predict**: which orders train better than the original, with each of the five seeds, and which worse?

# %%
import numpy as np


def by_kind(name):
    """{kind: runs} of a recorded experiment, the runs in the order of their seeds."""
    kinds = {kind: [] for kind in recorded(name)["config"]["kinds"]}
    for run in recorded(name)["runs"]:
        kinds[run["kind"]].append(run)
    return kinds


def accuracies(runs, part):
    """In per cent, one entry a seed; nan where training diverged."""
    return np.array([100 * run[part]["accuracy"] if run[part] else np.nan for run in runs])


# %% tags=["claim:F2"]
orders = by_kind("orders")
original = accuracies(orders["original"], "train")
better = {}
print("110 layers, 6 epochs         training accuracy, seeds 0 to 4 (%)   above the original")
for name in ORDERS:
    scores = accuracies(orders[name], "train")
    better[name] = (scores > original).sum()
    print(f"{name:25}", *(f"{score:7.1f}" for score in scores), f"{better[name]:14} of 5")
assert better["ReLU-only pre-activation"] == 5 and 0 < better["full pre-activation"] < 5
assert better["BN after addition"] == better["ReLU before addition"] == 0

# %% [markdown]
# One trains better with each seed, ReLU-only pre-activation, and two worse.
# The full pre-activation, the best of the paper, is above the original with three of five seeds: no verdict.
# The two that are worse are so in the paper, too.
# But ReLU-only, the best here, lies just behind the original there (6.71 against 6.61 %), after tens of thousands of steps; six epochs at one rate are short.
#
# ## Stochastic depth
# **Stochastic depth** leaves out whole branches at random while it trains (Huang et al. 2016).
# Of *L* blocks the last one is left out with the highest probability, its **rate**, and the rates rise linearly.
# A branch that stays is divided by its probability of staying, so that its mean is what it is in eval mode (the paper scales in eval mode instead, and its first block already has a small rate).


# %%
class StochasticDepth(BasicBlock):
    """In train mode a batch skips the branch with probability `rate`."""

    rate = 0.0

    def forward(self, x):
        if self.training and self.rate and torch.rand(()) < self.rate:
            return F.relu(x if self.downsample is None else self.downsample(x))
        return super().forward(x)

    def join(self, branch, x):
        kept = 1 - self.rate if self.training else 1
        return super().join(branch / kept, x)


def set_rates(net, last):
    """Rates that rise linearly, from 0 in the first block to `last` in the last."""
    blocks = [block for block in net.modules() if isinstance(block, StochasticDepth)]
    for i, block in enumerate(blocks):
        block.rate = last * i / (len(blocks) - 1)


# %% [markdown]
# **Predict** for 54 blocks with rates up to 0.5: how many branches does a batch go through on average?
# And what does the network with rate 0 compute, beside the original?


# %%
def passed(net, x):
    """How many branches a batch goes through in train mode."""
    seen, blocks = [], [block for block in net.modules() if isinstance(block, BasicBlock)]
    hooks = [block.conv1.register_forward_hook(lambda *_: seen.append(1)) for block in blocks]
    with torch.no_grad():
        net.train()(x)
    for hook in hooks:
        hook.remove()
    return len(seen)


torch.manual_seed(0)
original = deep("original", 110, 4)
never, half = (deep(f"original, dropped up to {rate}", 110, 4) for rate in ("0.0", "0.5"))
never.load_state_dict(original.state_dict())
print("rate 0, equal bit for bit:", torch.equal(never(x), original(x)))
expected = sum(1 - block.rate for block in half.modules() if isinstance(block, StochasticDepth))
counts = [passed(half, x[:2]) for _ in range(40)]
print("branches on average, expected:", expected)
assert torch.equal(never(x), original(x))
assert abs(np.mean(counts) - expected) < 3 and min(counts) < max(counts)

# %% [markdown]
# 40.5, three quarters of 54, and with rate 0 the same, bit for bit.
#
# A branch that is skipped costs no time.
#
# **Predict**: what share of the time of a training step is saved?

# %% tags=["claim:F11", "nbval-ignore-output", "reason: seconds differ between machines"]
import time

spent = {"rate 0": 0.0, "up to 0.5": 0.0}
for step in range(25):  # in turn, so that a busy moment meets both
    for name, net in zip(spent, (never, half)):
        start = time.perf_counter()
        F.cross_entropy(net.train()(x), y).backward()
        spent[name] += (time.perf_counter() - start) * (step > 4)  # the first ones warm up
share = spent["up to 0.5"] / spent["rate 0"]
print(f"seconds of 20 steps: {spent['rate 0']:.2f} and {spent['up to 0.5']:.2f}, {share:.0%}")
assert share < 0.95

# %% [markdown]
# A quarter by the count, and as the paper reports; somewhat less in this run, of forward and backward pass together.
# That holds for branches that a whole batch skips.
# Libraries such as timm drop the branch of single images, **drop path**: they compute every branch, and save nothing.
#
# Does it help 110 layers?
# The paper used it with up to 1,202 layers (4.91 % test error on CIFAR-10), and trained far longer.
# Six epochs on the sample ask something smaller: does training still work while on average up to a quarter of the branches is missing?
#
# **Predict** training and test accuracy of 110 layers, beside the original: higher or lower?

# %% tags=["claim:F11"]
worse = {}
for part in ("train", "test"):
    print(
        f"110 layers, 6 epochs          {part:5} accuracy, seeds 0 to 4 (%)    below the original"
    )
    for name in ("original", "original, dropped up to 0.2", "original, dropped up to 0.5"):
        scores = accuracies(orders[name], part)
        worse[name, part] = (scores < accuracies(orders["original"], part)).sum()
        print(f"{name:28}", *(f"{score:6.1f}" for score in scores), f"{worse[name, part]:15} of 5")
assert worse["original, dropped up to 0.5", "train"] == 5
assert worse["original, dropped up to 0.5", "test"] == 5

# %% [markdown]
# Lower, on both, with rates up to 0.5 for each seed and up to 0.2 for four of five.
# It trains, but in six epochs it learns less.
# That says nothing about long runs, for which it was made.
#
# ## Does it help here?
# Each paper reports that its change helps, on ImageNet or CIFAR, with its own recipe.
# Here is a test at a size that you can run: 50,000 images of Fashion-MNIST, 14 layers of basic blocks with 16, 32 and 64 channels, 4 epochs.
# Each row of the experiment makes one change, for five seeds, at one learning rate, 0.1 (`python -m d2lres experiment family`).
#
# Where the best of several is chosen, the test images must not choose, or the test is spoilt.
# So 10,000 of the training images are kept apart as **validation images**: they judge the changes.


# %%
class SmallResNeXt(WideBottleneck):
    groups = 6


CHANGES = {  # block, blocks in each of three stages, width
    "bottleneck": (Bottleneck, 2, 14),
    "grouped": (SmallResNeXt, 2, 12),
    "wider, fewer blocks": (BasicBlock, 1, 22),
    "full pre-activation": (PreActBlock, 2, 16),
    "squeeze-excite": (SEBasicBlock, 2, 16),
    "stochastic depth": (StochasticDepth, 2, 16),
}


# %%
def he(module):
    """New weights for a convolution, as ResNet draws them (He initialisation)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def small(change):
    """The network of the experiment, for 28x28 pixels, with one change."""
    block, blocks, width = CHANGES.get(change, (BasicBlock, 2, 16))
    options = dict(shortcut="A" if change == "zero padding" else "B")
    options |= dict(zero_init_residual=change == "zeros at the start")
    net = ResNet(block, [blocks] * 3, 10, 1, width=width, **options)
    net.maxpool = nn.Identity()  # the 7x7 stem has made 14x14 of 28x28 already
    if change == "D stem":
        net.conv1 = DeepStem(1, width).apply(he)
    if change == "D shortcut":
        average_first(net)
        net.apply(he)
    set_rates(net, 0.2)
    return net


# %% [markdown]
# Stochastic depth has rates up to 0.2.
# The bottleneck and the grouped network have 20 layers and the wider one 8, with widths chosen so that the bill stays near the base network's.
#
# **Predict**: do all of them stay within 15 % of its multiplications?

# %%
family = by_kind("family")
cost = {}
for change in family:
    net = small(change)
    cost[change] = probes.flops(net, torch.zeros(1, 1, 28, 28))["convolution"] / 2e6
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{change:20} {parameters:8,} parameters {cost[change]:6.2f} M multiplications")
assert all(0.85 < it / cost["base"] < 1.15 for it in cost.values())

# %% [markdown]
# Yes: from 12 % below to 4 % above.
#
# The two rows called 'longer' change the recipe of the base network, not its layers: 12 epochs in place of 4, and the same with flipped and shifted images and smoothed labels.
#
# A change and the base network share the order of the images for each seed, so their **difference** is looked at seed by seed.
# From five differences comes an interval: mean ± 2.776 standard errors, which would cover the true mean in 95 % of such experiments if the differences were normally distributed.
#
# **Predict**: how many of the other ten changes are better than the base network in five of five seeds?


# %%
def differences(change, part="validation"):
    """Accuracy minus that of the base network, in points, one entry a seed."""
    return accuracies(family[change], part) - accuracies(family["base"], part)


# %%
from d2lres import figures


def forest(changes, part="validation"):
    """Each change: the difference of each seed, their mean and its 95 % interval."""
    label, height = f"{part} accuracy minus that of the base network", 95 + 32 * len(changes)
    fig, ax = figures.axes(f"{label} (points)", None, height=height)
    for row, change in enumerate(changes):
        gaps, y = differences(change, part), len(changes) - row
        half = 2.776 * gaps.std(ddof=1) / len(gaps) ** 0.5
        ax.plot(gaps, [y] * len(gaps), "|", color=figures.GREY, markersize=11)
        ax.plot([gaps.mean() - half, gaps.mean() + half], [y, y], color=figures.BLUE, lw=2.4)
        ax.plot(gaps.mean(), y, "o", color=figures.BLUE, markersize=8, markeredgecolor="white")
        print(f"{change:20} {gaps.mean():+5.2f} ± {half:4.2f}   better in {(gaps > 0).sum()} of 5")
    ax.axvline(0, color=figures.INK, linewidth=1)
    ax.set_yticks(range(len(changes), 0, -1), changes)
    ax.set_ylim(0.4, len(changes) + 0.6)
    fig.alt = f"Forest plot, a dot with its interval and a line at zero: {', '.join(changes)}."
    return fig


# %% tags=["claim:F3", "claim:F4", "claim:F10", "claim:F11", "claim:F14", "claim:F15"]
changes = [change for change in family if change != "base" and "longer" not in change]
figures.show(forest(changes))
won = {change: (differences(change) > 0).sum() for change in changes}
assert [change for change in changes if won[change] == 5] == ["D shortcut"]
assert [change for change in changes if won[change] == 0] == [
    "zeros at the start",
    "stochastic depth",
]
assert sum(0 < seeds < 5 for seeds in won.values()) == 7

# %% [markdown]
# One: the D shortcut, by a third of a point on average, and with one seed by a single image.
# Two are worse in five of five, zeros at the start and stochastic depth.
# For the other seven these five seeds show no difference on the validation images; more seeds or more images might.
#
# Is one in ten a discovery?
# A change that does nothing is better in five of five with a chance of 1/32.
# Among ten such changes there is one in about a quarter of such experiments, roughly, since all rows share their base network.
# The test images check one part of it, whether the lead is luck with the validation images: look at them once, for the one that was chosen.
#
# **Predict**: does the D shortcut keep its lead there?

# %% tags=["claim:F15"]
(chosen,) = (change for change in changes if won[change] == 5)
figures.show(forest([chosen], part="test"))
assert (differences(chosen, "test") > 0).all()

# %% [markdown]
# It does, in five of five.
# The networks are the same, so luck with the seeds is not ruled out: that would take new ones.
#
# What the table does not say is *why*, nor what happens elsewhere.
# All rows have one learning rate, the base network's, and four epochs may favour what learns fast.
# Zeros at the start cost three quarters of a point with 14 layers and 4 epochs; without them 1,004 layers did not learn within 60 steps, at one rate (chapter 5).

# %% [markdown]
# ## Recipe or architecture?
# The two 'longer' rows change nothing but the training.
#
# **Predict**: which is larger, the gain of the best of the ten changes or that of three times the epochs?
# And do flips, shifts and smoothed labels add to it?

# %% tags=["claim:F16"]
figures.show(forest([chosen, "longer", "longer, augmented"]))
assert (differences("longer") > differences(chosen)).all()
extra = differences("longer, augmented") - differences("longer")
print("augmented against longer, by seed:", *(f"{value:+.2f}" for value in extra))
for change in ("longer", "longer, augmented"):
    fitted = accuracies(family[change], "train")
    print(f"{change:18} accuracy on the training images {fitted.min():.1f} to {fitted.max():.1f} %")
assert (extra > 0).any() and (extra < 0).any()

# %% [markdown]
# Three times the epochs gain more than the best of the ten, for each seed (14 layers, Fashion-MNIST, validation images).
# Flips, shifts and smoothing add nothing that five seeds can see within 12 epochs, though the network fits its training images far less.
#
# At ImageNet's size others have measured it.
# timm's table of results gives these top-1 accuracies, for the weights of torchvision ('old' and 'new') and of *ResNet strikes back* (Wightman et al. 2021; A3 takes 100 epochs, A1 600).
#
# **Predict**: how much does the recipe alone gain for ResNet-50?
# And does every new recipe help every network?

# %%
IMAGENET = {  # top-1 accuracy (%) by recipe, timm's results
    "resnet18": {"old": 69.75, "A3": 68.25, "A1": 71.50},
    "resnet34": {"old": 73.30, "A3": 73.00, "A1": 76.42},
    "resnet50": {"old": 76.16, "A3": 78.05, "A1": 80.38, "new": 80.85},
    "seresnet50": {"A1": 80.01},
}
for name, by_recipe in IMAGENET.items():
    print(f"{name:11}", "  ".join(f"{recipe} {score:.2f}" for recipe, score in by_recipe.items()))

# %% [markdown]
# 4.2 points with A1 and 4.7 with torchvision's new recipe, for the same layers.
# A3, the short one, is *worse* than the old recipe for ResNet-18 and -34, and better for ResNet-50.
# And under A1 seresnet50 lies below resnet50.
# Whoever compares an old network with an old recipe against a new one with a new recipe measures both at once.

# %% [markdown]
# ## A picture of the loss
# Li et al. 2018 drew a famous picture: around a trained network without shortcuts the loss is a mountain range, with shortcuts a bowl.
# To draw it, take two random directions in the space of all weights, walk along both, and note the loss.
#
# How long should a random direction be?
# They make each filter of the direction as long as the same filter of the network (**filter normalisation**), and leave biases and BN alone.

# %%
import copy


def direction(net, seed):
    """A random step for each parameter: filters as long as the network's own, all else stays."""
    generator, steps = torch.Generator().manual_seed(seed), []
    for w in net.parameters():
        step = torch.randn(w.shape, generator=generator).to(w.device) * (w.ndim > 1)
        if w.ndim > 1:
            scale = w.flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
            step *= scale.view(-1, *[1] * (w.ndim - 1))
        steps.append(step)
    return steps


@torch.no_grad()
def losses(net, steps, places, x, y, batch_statistics=False):
    """The loss at each place (a, b): weights plus a times the first step plus b times the second."""
    moved, found = copy.deepcopy(net).train(batch_statistics), []
    for a, b in places:
        for p, w, first, second in zip(moved.parameters(), net.parameters(), *steps):
            p.copy_(w + a * first + b * second)
        found.append(F.cross_entropy(moved(x), y).item())
    return found


# %% [markdown]
# Why normalise?
# With the statistics of the batch, a convolution before BN may be three times as large without any change of the network's function.
#
# **Predict**: go the same way from a network and from its twin with threefold convolutions, once with a step of fixed length and once filter-normalised.
# With which of the two steps do network and twin get different losses?

# %%
from d2lres import cifar_resnet
from d2lres.training import fit

train, test = fashion_mnist(size=14)
images, labels = train[
    torch.randperm(6000, generator=torch.Generator().manual_seed(0))[:500]
].tensors()
torch.manual_seed(0)
net = cifar_resnet(20, in_channels=1, width=8)
fit(net, train, epochs=2, lr=0.1, device="cpu")
twin = copy.deepcopy(net)
with torch.no_grad():
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.weight *= 3


# %% tags=["nbval-ignore-output", "reason: losses differ in their digits between machines"]
def fixed(net, seed):
    """A random step of the same length for every network."""
    generator = torch.Generator().manual_seed(seed)
    return [
        0.05 * torch.randn(w.shape, generator=generator) * (w.ndim > 1) for w in net.parameters()
    ]


away = {}
for name, step in (("fixed length", fixed), ("filter-normalised", direction)):
    for what, model in (("network", net), ("twin", twin)):
        steps = step(model, 0), step(model, 1)
        places = [(0, 0), (1, 0)]
        there = losses(model, steps, places, images, labels, batch_statistics=True)
        away[name, what] = there[1]
        print(f"{name:18} {what:8} loss {there[0]:.3f}, one step away {there[1]:.3f}")
assert abs(away["filter-normalised", "network"] - away["filter-normalised", "twin"]) < 0.02
assert away["fixed length", "network"] > away["fixed length", "twin"] + 0.05

# %% [markdown]
# With the fixed one the twin, which computes the same, seems to lie in a flatter place.
# Filter normalisation takes the scale out.
#
# Now the picture, live and coarse.
# There is a choice that the picture does not show: in eval mode BN uses its **stored statistics**, the running ones of chapter 3.
# In train mode it uses the **statistics of the batch**.
#
# **Predict**: does the choice change the picture?


# %%
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

LEVELS = np.geomspace(0.1, 100, 31)  # ten for each power of ten


def contours(panels, columns):
    """Contour lines of the logarithm of the loss, one panel for each title of `panels`."""
    rows, side = -(-len(panels) // columns), 9.4 / max(columns, 3)
    size = side * columns, (side + 0.2) * rows
    fig = Figure(figsize=size, facecolor="white", layout="constrained")
    for i, (title, grid) in enumerate(panels.items()):
        ax = fig.add_subplot(rows, columns, i + 1, aspect="equal")
        line, heights = np.linspace(-1, 1, len(grid)), np.clip(grid, LEVELS[0], LEVELS[-1])
        ax.contourf(line, line, heights, LEVELS, norm=LogNorm(), cmap="cividis")
        drawn = ax.contour(line, line, heights, LEVELS, colors="white", linewidths=0.5)
        ax.clabel(drawn, LEVELS[10:-1:10], fmt="%g", fontsize=8)
        ax.plot(0, 0, "+", color="white")
        ax.set_title(title, fontsize=10)
        ax.set_xticks([-1, 0, 1])
        ax.set_yticks([-1, 0, 1])
    fig.alt = f"Contour plots of the loss around trained weights: {', '.join(panels)}."
    return fig


# %% tags=["nbval-ignore-output", "reason: losses differ in their digits between machines"]
side = np.linspace(-1, 1, 11)
places, steps = [(a, b) for a in side for b in side], (direction(net, 0), direction(net, 1))
live = {}
for title, own in (("stored statistics", False), ("statistics of the batch", True)):
    found = losses(net, steps, places, images, labels, batch_statistics=own)
    live[f"residual-20, {title}"] = np.array(found).reshape(11, 11)
figures.show(contours(live, 2))
stored, batch = live.values()
print(f"at the centre {stored[5, 5]:.2f} and {batch[5, 5]:.2f}; corners: ", end="")
print(f"{stored[::10, ::10].max():.1f} and {batch[::10, ::10].max():.1f} at most")
assert stored[::10, ::10].min() > batch[::10, ::10].max()

# %% [markdown]
# It does: the same network lies in a steep bowl or in a shallow one (in this run).
# With stored statistics each of the four corners lies higher than the highest of them with those of the batch.
# The stored ones were measured in the centre, with other weights.
#
# Two epochs, one seed, 11 points a side: that is a sketch.
# The recorded experiment has four networks, ten epochs, five seeds, two planes and 21 points a side (`python -m d2lres experiment surface`).
#
# A **plane** is a pair of directions.
#
# **Predict**: in which of the four networks does the shape of the picture change most with the statistics?

# %%
from itertools import product

surface = recorded("surface")["runs"]
MODES = {"stored": "stored", "batch": "of the batch"}
panels = {
    f"{run['kind']}-{run['depth']}, {words}": np.array(run["planes"][0][mode], dtype=float)
    for mode, words in MODES.items()
    for run in sorted(surface, key=lambda run: (run["depth"], run["kind"]))
    if run["seed"] == 0
}
figures.show(contours(panels, 4))

# %% [markdown]
# In plain-56: with stored statistics there are cliffs and dents, as in the famous picture.
# In height all four change.
#
# That is one seed and one plane.
# Put a number on it: a **valley** is a place of the grid that lies lower than its eight neighbours.
# A bowl has one.
#
# **Predict**: with the statistics of the batch, in how many of ten pictures (five seeds, two planes each) does plain-56 have more than three valleys?
# And with stored ones?


# %% tags=["claim:F1"]
def valleys(grid):
    """How many inner places of the grid lie lower than all their eight neighbours."""
    grid, around = np.array(grid, dtype=float), [(i, j) for i in range(3) for j in range(3)]
    n = len(grid) - 2
    sides = [grid[i : i + n, j : j + n] for i, j in around if (i, j) != (1, 1)]
    return int((grid[1:-1, 1:-1] < np.min(sides, axis=0)).sum())


found = {}
for run in sorted(surface, key=lambda run: (run["depth"], run["kind"], run["seed"])):
    for mode, plane in product(MODES, run["planes"]):
        key = f"{run['kind']}-{run['depth']}", mode
        found.setdefault(key, []).append(valleys(plane[mode]))
for (name, mode), counts in found.items():
    print(f"{name:11} statistics {MODES[mode]:12} valleys:", *(f"{n:2}" for n in sorted(counts)))
assert min(found["plain-56", "stored"]) > 3 > max(found["plain-56", "batch"])
assert all(set(counts) == {1} for (name, _), counts in found.items() if "residual" in name)

# %% [markdown]
# In none, and in all ten: 4 to 12 valleys with stored statistics, 1 or 2 with those of the batch.
# The residual networks have one in every picture.
#
# So the difference in valleys survives other seeds and planes, but not the other statistics: with those of the batch, which training uses, most of the mountains around plain-56 disappear.
# What is left is small: one valley in every residual picture, one to three in the plain ones.
#
# Two things are not separated here.
# The plain networks of 56 layers are far less trained, 42 to 68 % of the training images against 95 % and more.
# And whether a smoother surface is what makes a network train, a picture cannot say.

# %% [markdown]
# Walk along one direction yourself, from the residual network of 20 layers that you trained above.
# The slider chooses the direction; where no kernel runs you see the last one.
#
# **Predict**: is each of the five directions higher at its ends with the stored statistics?


# %%
def along(number, own, line):
    """The places of the line, and the losses there along the direction of that number."""
    steps = direction(net, number), direction(net, number)
    return line, losses(net, steps, [(t, 0) for t in line], images, labels, own)


def walk(number):
    names = {"stored statistics": False, "of the batch": True}
    curves = {name: along(number, own, np.linspace(-1, 1, 21)) for name, own in names.items()}
    return figures.lines(curves, "steps along the direction", "training loss", log="y")


figures.interactive(walk, number=(5, 4, 3, 2, 1))
ends = [[sum(along(n, own, (-1, 1))[1]) for own in (False, True)] for n in range(1, 6)]
steeper = sum(stored > batch for stored, batch in ends)
print(f"higher at its ends with stored statistics: {steeper} of 5 directions")
assert steeper == 5

# %% [markdown]
# Yes, all five.
#
# ## What the field says
# Courses, books and posts repeat a number of sentences about ResNets.
# These are tested in this course, each where the table says.

# %%
from IPython.display import Markdown, display

from d2lres.records import ledger

display(Markdown(ledger("F")))

# %% [markdown]
# Most hold under a condition that the sentence does not name, sometimes a depth or a size.
# 'Not seen' is no 'no': five seeds of a small network saw no difference, and a larger experiment might.
#
# ## Pitfalls
# **The end of the pre-activation network is missing.**
# Nothing follows the last addition, so the network needs one more BN and ReLU before its average.
# kuangliu's pytorch-cifar, for one, has been without them.
# The logits of such a network have the right shape, so nothing complains.
#
# **Predict**: how many of the five recorded runs with 110 layers, at the learning rate 0.1, end below 50 % training accuracy?

# %%
complete, cut = (
    accuracies(orders[f"full pre-activation{end}"], "train") for end in ("", " without the end")
)
print("complete       ", *(f"{score:6.1f}" for score in complete))
print("without the end", *(f"{score:6.1f}" for score in cut))
assert complete.min() > 80 and sorted(cut)[2] < 50 and sorted(cut)[3] > 80

# %% [markdown]
# Three: they end below 50 %, and the other two look healthy.
# A bug that spares two of five seeds is one that a single test run may miss.
#
# **A name is not a network.**
# 'ResNet-50' is v1 or v1.5, with or without zeros at the start, and its accuracy may come from one of half a dozen recipes.
# Say which.
#
# **The best of ten rows is too good.**
# Of ten changes that do nothing, one or more is better with five of five seeds in about a quarter of such experiments.
# Choose on validation images, look at the test images once, and before you believe it, take new seeds.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (easy, 8 minutes): the bill of a grouped bottleneck
# Count the multiplications in the branch of a bottleneck with groups, without building it.
# The first 1×1 convolution leads to `width` channels, the 3×3 one has the groups and the stride, the last 1×1 leads to `outplanes` channels.
# <details><summary>Hint</summary>A convolution needs kernel² · channels in · channels out / groups multiplications for each pixel that it puts out. With stride s, a side of n pixels becomes n / s, rounded up: <code>-(-n // s)</code>.</details>

# %%
import torch
import torch.nn.functional as F
from torch import nn

from d2lres.checks import family as check


def multiplications(
    inplanes: int, width: int, outplanes: int, groups: int, stride: int, side: int
) -> int:
    """The multiplications of the three convolutions, for one image of side x side pixels going in.

    groups divides width. stride is any whole number from 1 on. The 3x3 convolution has padding 1,
    and products with its zeros count. BN, ReLU and the shortcut do not.
    """
    ### BEGIN SOLUTION
    out = -(-side // stride)
    first = side**2 * inplanes * width
    return first + out**2 * (9 * width**2 // groups + width * outplanes)
    ### END SOLUTION


check.multiplications(multiplications)

# %% [markdown]
# ### Exercise 2 (medium, 10 minutes): drop path
# Libraries draw for each image whether its branch is dropped, independently of the others.
# Write the function that does it to the output of a branch, before the addition.
# <details><summary>Hint</summary><code>torch.rand(n, 1, 1, 1)</code> is one number from 0 to 1 for each image. Comparing it with the rate says who stays. What stays is divided by the probability of staying.</details>


# %%
def drop_path(branch: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """(N, C, H, W) -> the same shape.

    In training each image's branch becomes 0 with probability `rate`, 0 <= rate < 1, and is divided
    by 1 - rate otherwise, which keeps its mean. Outside training it stays as it is. `branch` itself
    is not changed, and the result has its dtype.
    """
    ### BEGIN SOLUTION
    if not training:
        return branch
    stays = torch.rand(len(branch), 1, 1, 1) >= rate
    return branch * stays / (1 - rate)
    ### END SOLUTION


check.drop_path(drop_path)

# %% [markdown]
# ### Exercise 3 (medium, 10 minutes): filter normalisation, for any layer
# `direction` above takes it for granted that the first index counts the filters, and that no filter of the random step is zero.
# Write it for one weight and without either assumption.
# A transposed convolution, for example, counts its filters with the second index.
# <details><summary>Hint</summary><code>tensor.movedim(dim, 0).flatten(1)</code> has one row for each filter; or take <code>torch.linalg.vector_norm(tensor, dim=others, keepdim=True)</code> over all other indices. <code>torch.where</code>, or a small number in the denominator only where the norm is 0, avoids 0 / 0.</details>


# %%
def filter_normalised(step: torch.Tensor, weight: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """A new tensor: `step`, each filter of it rescaled to the norm of that filter of `weight`.

    step, weight: of one shape, in which index `dim` counts the filters; a negative dim counts from
    the end. Weights with fewer than two indices (biases, BN) do not move: their step is 0. A filter
    of `step` that is 0 stays 0.
    """
    ### BEGIN SOLUTION
    if weight.ndim < 2:
        return torch.zeros_like(step)
    others = [i for i in range(weight.ndim) if i != dim % weight.ndim]
    wanted, given = (t.square().sum(others, keepdim=True).sqrt() for t in (weight, step))
    return step * wanted / torch.where(given == 0, 1, given)
    ### END SOLUTION


check.filter_normalised(filter_normalised)

# %% [markdown]
# ### Exercise 4 (hard, 15 minutes): a block from a paper
# MobileNetV2 turns the bottleneck inside out: narrow maps outside, wide ones inside, which a **depthwise** convolution, with one channel a group, makes affordable (Sandler et al. 2018, table 1 and figure 4).
# Its branch has three steps:
#
# | step | from | to |
# |---|---|---|
# | 1×1 convolution, BN, ReLU6 | `inplanes` | `factor` · `inplanes` |
# | 3×3 depthwise convolution with the stride, BN, ReLU6 | the same | the same |
# | 1×1 convolution, BN, and nothing more | the same | `planes` |
#
# The input is added if the stride is 1 and `inplanes` equals `planes`; otherwise there is no shortcut.
# ReLU6 is min(max(x, 0), 6).
# <details><summary>Hint</summary>The convolutions have no bias. <code>groups</code> of the depthwise one is its number of channels, and its padding is 1. The narrow end is linear: no ReLU stands before or after the addition.</details>


# %%
class InvertedResidual(nn.Module):
    """InvertedResidual(inplanes, planes, stride, factor), with a factor of 2 or more.

    (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)). Its layers are called
    conv1, bn1, conv2, bn2, conv3, bn3.
    """

    ### BEGIN SOLUTION
    def __init__(self, inplanes: int, planes: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = factor * inplanes
        self.conv1, self.bn1 = nn.Conv2d(inplanes, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3, self.bn3 = nn.Conv2d(wide, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.shortcut = stride == 1 and inplanes == planes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu6(self.bn1(self.conv1(x)))
        out = F.relu6(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return x + out if self.shortcut else out

    ### END SOLUTION


check.inverted_residual(InvertedResidual)

# %% [markdown]
# ## Summary
# - A bottleneck between maps of 256 channels has about the weights and multiplications of a basic block of 64, sees less, and puts out three times as many numbers (formulas, checked on the blocks).
# - The bottleneck of 2015 and a 1×1 shortcut with stride 2 never look at three quarters of the pixels; ResNet-D's shortcut and the bottleneck in use today look at all.
# - ResNet-D, ResNeXt, SE-ResNet and the pre-activation network are changes of a few lines: with equal weights they give timm's logits, in eval and in train mode (seven networks).
# - The order of BN, ReLU and addition matters in deep networks: with BN after the addition, gradients explode by more than 10¹⁵ at 1,004 layers at the start, and 110 layers train worst (six epochs, five seeds).
# - Stochastic depth with rates up to 0.5 leaves out a quarter of the branches and saves somewhat less of the time (one run); 110 layers learn less with it in six epochs (five seeds).
# - Of ten changes to a network of 14 layers, one is better with five of five seeds, the averaging shortcut, two are worse, and of seven five seeds cannot tell (four epochs of Fashion-MNIST, one learning rate).
# - Three times the epochs gain more than the best of the ten.
# - Around plain-56 the picture of the loss has 4 to 12 valleys with stored BN statistics and 1 or 2 with those of the batch (ten epochs, five seeds, two planes).

# %% [markdown]
# ## Further reading
# - Kaiming He et al., *Identity Mappings in Deep Residual Networks*, 2016 (arXiv 1603.05027): figure 4 and table 2.
# - Sergey Zagoruyko, Nikos Komodakis, *Wide Residual Networks*, 2016 (arXiv 1605.07146).
# - Gao Huang et al., *Deep Networks with Stochastic Depth*, 2016 (arXiv 1603.09382).
# - Saining Xie et al., *Aggregated Residual Transformations for Deep Neural Networks*, 2017 (arXiv 1611.05431): figure 3.
# - Jie Hu et al., *Squeeze-and-Excitation Networks*, 2018 (arXiv 1709.01507).
# - Tong He et al., *Bag of Tricks for Image Classification with Convolutional Neural Networks*, 2019 (arXiv 1812.01187): section 4.
# - Ross Wightman, Hugo Touvron, Hervé Jégou, *ResNet strikes back*, 2021 (arXiv 2110.00476).
# - Hao Li et al., *Visualizing the Loss Landscape of Neural Nets*, 2018 (arXiv 1712.09913): section 4 on filter normalisation.
# - Mark Sandler et al., *MobileNetV2*, 2018 (arXiv 1801.04381): table 1.
