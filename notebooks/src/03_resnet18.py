# %% [markdown]
# # ResNet-18
# You assemble ResNet-18 from the block of chapter 2 and account for every one of its parameters.
# Then you pour torchvision's weights into your own copy until both give the same answers.
#
# **You can afterwards** assemble the network and account for every parameter.
#
# **What you will learn**
# - to build the network from its parts, and to predict every shape on the way
# - what the number in a ResNet's name counts, and what the larger networks of the family need
# - where the parameters are, and where the arithmetic is
# - why two ResNet-18 differ in their parameters, and which of them are redundant
# - to load another library's weights, and to notice when nothing was loaded
# - to train the network on real images and to look at what it gets wrong
#
# **What you need**: chapter 2, `nn.Module` and `nn.Sequential`.
#
# **Minutes**: 90, less than half of them for the exercises.
# The appendix takes three more.

# %% tags=["setup"]

# %% tags=["needed"]
from collections import Counter, OrderedDict

import torch
from torch import nn
from torchvision import models

import d2lres
from d2lres import BasicBlock, Bottleneck, Residual, ResNet, figures, probes

# %% [markdown]
# ## Five map sizes, as in VGG and GoogLeNet
# A ResNet has three parts.
# The **stem** turns the image into feature maps of a quarter of its side.
# Four **stages** of residual blocks come next; chapter 2 built a stage's blocks.
# The **head** turns the last maps into one number for each class, the **logits**; softmax makes probabilities of them.
#
# ResNet did not invent this layout.
# VGG and GoogLeNet, too, worked at five resolutions, each half the one before.
#
# The cell lists each network's first convolution, and the sizes at which its convolutions produce maps.
# It builds all three on PyTorch's **meta device**, where a tensor has a shape but no numbers, so that 138 million weights of VGG cost nothing.
#
# **Predict**: one of the three still has maps of 224×224.
# Which one, and what does its first layer do differently?


# %% tags=["claim:N5"]
def map_sizes(model) -> list[int]:
    """Sides of the maps that the convolutions produce for a 224×224 image, each once."""
    sides = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: sides.append(out.shape[-1]))
    model.eval()(torch.rand(1, 3, 224, 224))
    return list(dict.fromkeys(sides))


with torch.device("meta"):
    for name, model in [
        ("VGG-16", models.vgg16()),
        ("GoogLeNet", models.googlenet(init_weights=False, aux_logits=False)),
        ("ResNet-18", models.resnet18()),
    ]:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        print(f"{name:10} kernel {first.kernel_size}, stride {first.stride}", map_sizes(model))
        sides = map_sizes(model)
        assert len(sides) == 5 and all(a == 2 * b for a, b in zip(sides, sides[1:]))

# %% [markdown]
# VGG starts at full size: its first convolution is 3×3 with stride 1.
# GoogLeNet and ResNet start with 7×7 and stride 2, which leaves a quarter of the pixels for everything after it.

# %% [markdown]
# ## The stem
# The stem is a 7×7 convolution with stride 2, batch normalisation (BN), ReLU and a 3×3 **max-pool** with stride 2, which keeps the largest value of each window.
# Our images are grey, so it has one input channel.
#
# The kernel reaches 3 pixels to each side of its centre, so `padding=3` lets the first centre stand on the first pixel.

# %%
stem = [
    nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
]
x = torch.rand(1, 1, 224, 224)
for layer in stem:
    x = layer(x)
    print(f"{type(layer).__name__:12}", tuple(x.shape))

# %% [markdown]
# The centre stands on every second pixel, and 224 becomes 112.
# The max-pool has its own padding of 1 and makes 56.
# Two layers with a stride, and 15 of 16 positions are gone before the first residual block.
# What happens without that padding is the first pitfall below.

# %% [markdown]
# ## A stage is a list of blocks
# All blocks of a stage work at one map size.
# The first block halves the side and changes the channels, so its shortcut needs a 1×1 convolution.
# The other blocks keep the shape.
# Stage 1 is the exception: the max-pool has halved already, so all its blocks keep the shape.


# %%
def stage(input_channels, num_channels, num_residuals, first_block=False):
    """One stage, as a list of blocks."""
    halve = not first_block
    first = Residual(input_channels, num_channels, use_1x1conv=halve, strides=2 if halve else 1)
    return [first] + [Residual(num_channels, num_channels) for _ in range(num_residuals - 1)]


# %% [markdown]
# `nn.Sequential` should make one module of them.

# %% tags=["raises-exception"]
nn.Sequential(stage(64, 64, 2, first_block=True))

# %% [markdown]
# It refuses: a list is not a module.

# %% [markdown]
# ## One star, two directions
# A star in a call **unpacks**: each element of the list becomes an argument of its own.
# A star in a definition **packs**: all positional arguments become one tuple.
# `nn.Sequential` is defined with `*args`, so in `nn.Sequential(*blocks)` you unpack and it packs again.
#
# **Predict** the two numbers that the cell prints.


# %% tags=["claim:N18"]
def how_many(*modules):  # packs
    assert isinstance(modules, tuple)
    return len(modules)


blocks = stage(64, 64, 2, first_block=True)
print(how_many(blocks), how_many(*blocks))  # the second call unpacks
assert (how_many(blocks), how_many(*blocks)) == (1, 2)
assert list(nn.Sequential(*blocks)) == blocks

# %% [markdown]
# Without the star one list arrives; with it, two blocks.
# `nn.Sequential(*blocks)` holds exactly those two, in order.
#
# The course's `resnet_block` does what your `stage` does.
# The next cell compares even the first weights that the two draw.

# %%
from d2lres import resnet_block

torch.manual_seed(0)
by_hand = nn.Sequential(*stage(64, 128, 2)).state_dict()
torch.manual_seed(0)
imported = nn.Sequential(*resnet_block(64, 128, 2)).state_dict()
print("same names:", list(by_hand) == list(imported))
print("same numbers:", all(torch.equal(by_hand[name], imported[name]) for name in by_hand))

# %% [markdown]
# Same names, same numbers: from here on, `resnet_block` is your `stage`.
#
# ## The network
# The head averages each of the 512 final maps to one number, which is called **global average pooling**, and maps those 512 numbers to 10 classes with a linear layer.
# Stem, stages and head are lists, and the star joins them.

# %%
torch.manual_seed(0)
stages = [
    nn.Sequential(*resnet_block(64, 64, 2, first_block=True)),
    nn.Sequential(*resnet_block(64, 128, 2)),
    nn.Sequential(*resnet_block(128, 256, 2)),
    nn.Sequential(*resnet_block(256, 512, 2)),
]
head = [nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(512, 10)]
net = nn.Sequential(*stem, *stages, *head)
len(net)

# %% [markdown]
# ## Follow one image through it
# **Predict** the shape after each of the eleven layers: channels and side.
# Write the numbers down first; the cell asserts its own.

# %% tags=["claim:N16"]
names = ["convolution", "BN", "ReLU", "max-pool"]
names += [f"stage {i}" for i in range(1, 5)] + ["average pool", "flatten", "linear"]
x, shapes = torch.rand(1, 1, 224, 224), []
for name, layer in zip(names, net):
    x = layer(x)
    shapes.append(tuple(x.shape))
    print(f"{name:13}{shapes[-1]}")

assert [s[-1] for s in shapes[:9]] == [112, 112, 112, 56, 56, 28, 14, 7, 1]
assert [s[1] for s in shapes] == [64] * 5 + [128, 256, 512, 512, 512, 10]

# %% [markdown]
# The stem makes 56×56 maps of 64 channels.
# Each stage after the first halves the side and doubles the channels, down to 7×7 with 512.
# The image of 50,176 numbers leaves as 10, one for each class.

# %% [markdown]
# ## What the 18 counts
# Walk through all modules and count everything that has a weight matrix: convolutions and linear layers.
# BN, ReLU and pooling do not count, by convention.
#
# **Predict** the total.
# It is not 18.

# %% tags=["claim:N6"]
convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
kernels = Counter(f"{m.kernel_size[0]}×{m.kernel_size[1]}" for m in convolutions)
print(dict(kernels), "convolutions and", len(linear), "linear layer")
print("all of them:", len(convolutions) + len(linear))
print("without the 1×1 convolutions:", len(convolutions) - kernels["1×1"] + len(linear))

assert kernels == {"7×7": 1, "3×3": 4 * 4, "1×1": 3} and len(linear) == 1
assert len(probes.weight_layers(net)) == 18

# %% [markdown]
# There are 20 convolutions and one linear layer, 21 in all.
# The name counts the longest path: one 7×7, four 3×3 in each of four stages, one linear layer.
# The picture numbers them.

# %%
figures.show("resnet18")

# %% [markdown]
# The three 1×1 convolutions lie *beside* that path, on shortcuts.
#
# The rule is therefore 'not on a shortcut', not 'not 1×1'.
# For ResNet-18 that is the same; for the next section it is not.

# %% [markdown]
# ## From 18 to 152
# Other ResNets come from other numbers of blocks per stage.
# From 50 layers on there is also another block, the **bottleneck**: 1×1 to narrow, 3×3, 1×1 to widen four times.
# Its 1×1 convolutions are on the main path, so they count.
#
# `ResNet(block, counts)` builds any of them as torchvision does, for 3 channels and 1,000 classes.
#
# **Predict**: ResNet-34 and ResNet-50 share one list of counts.
# How many blocks must that list add up to?

# %% tags=["claim:N15"]
family = {
    18: (BasicBlock, [2, 2, 2, 2], 11_689_512),
    34: (BasicBlock, [3, 4, 6, 3], 21_797_672),
    50: (Bottleneck, [3, 4, 6, 3], 25_557_032),
    101: (Bottleneck, [3, 4, 23, 3], 44_549_160),
    152: (Bottleneck, [3, 8, 36, 3], 60_192_808),
}


def count(*modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


for name, (block, counts, published) in family.items():
    with torch.device("meta"):
        model = ResNet(block, counts)
    layers = len(probes.weight_layers(model))
    print(f"{block.__name__:10} {counts!s:13} {layers:4} layers {count(model):11,} parameters")
    assert (layers, count(model)) == (name, published)

# %% [markdown]
# Sixteen, [3, 4, 6, 3]: with stem and head, 16 blocks of two layers make 34, and 16 blocks of three make 50.
# Every count of layers is the name, and every count of parameters is the one torchvision publishes, to the last digit.
#
# So is it enough to change the numbers?
# **Predict** how many layers you get from ResNet-152's counts with the basic block.

# %% tags=["claim:N7"]
for name in (50, 101, 152):
    with torch.device("meta"):
        basic = ResNet(BasicBlock, family[name][1])
    layers = len(probes.weight_layers(basic))
    print(f"counts of ResNet-{name}, basic blocks: {layers} layers, {count(basic):,} parameters")
    assert layers == 2 * sum(family[name][1]) + 2 < name

# %% [markdown]
# ResNet-152's counts give 102 layers; those of 50 and 101 give 34 and 68.
# Block counts alone lead from 18 to 34, and the other three need the bottleneck as well.
# It is also the thrifty choice: for nearly the same number of parameters, 58 million against 60, ResNet-152's counts give 102 layers of basic blocks or 152 of bottlenecks.
#
# One thing differs between libraries: where the first bottleneck of a stage has its stride.
# The paper puts it into the first 1×1 convolution; torchvision puts it into the 3×3 one, a variant known as 'v1.5'.
#
# **Predict**: which place costs fewer FLOPs, and is it by 1 %, 5 % or 20 % of the whole ResNet-50?

# %%
with torch.device("meta"):
    resnet50, image = ResNet(Bottleneck, [3, 4, 6, 3]), torch.rand(1, 3, 224, 224)
    in_3x3 = sum(probes.flops(resnet50, image).values())
    for m in resnet50.modules():
        if isinstance(m, Bottleneck):
            m.conv1.stride, m.conv2.stride = m.conv2.stride, m.conv1.stride
    in_1x1 = sum(probes.flops(resnet50, image).values())
print(f"stride in the 3×3 convolution: {in_3x3 / 1e9:.2f} billion FLOPs")
print(
    f"stride in the 1×1 convolution: {in_1x1 / 1e9:.2f} billion FLOPs, {in_1x1 / in_3x3 - 1:+.1%}"
)

# %% [markdown]
# The paper's place costs about 6 % less, since the first 1×1 convolution then works on a quarter of the positions.
# It pays for that with what it sees: a strided 1×1 convolution skips three pixels of four, as chapter 2 showed, and there both the branch and the shortcut skip them.
# (Halve the numbers to compare them with the paper's table 1, which has 3.8 billion: it counts a multiplication and an addition as one.)

# %% [markdown]
# ## Where the parameters are, and where the arithmetic is
# Back to your own network.
#
# **Predict**: stages 2 to 4 have the same number of convolutions, of the same sizes.
# What share of all parameters is in stage 4, and what share of the FLOPs of one image?

# %%
parts = {"stem": net[:4], **{f"stage {i + 1}": net[4 + i] for i in range(4)}, "head": net[8:]}
x, costs = torch.rand(1, 1, 224, 224), []
for name, part in parts.items():
    costs.append((count(part), sum(probes.flops(part, x).values())))
    print(f"{name:8}{costs[-1][0]:12,} parameters{costs[-1][1]:15,} FLOPs")
    with torch.no_grad():
        x = part.eval()(x)

# %%
shares = 100 * torch.tensor(costs, dtype=torch.float64) / torch.tensor(costs).sum(0)
fig, ax = figures.axes(
    None, "share of the network, %", "Where ResNet-18 has its weights and its work"
)
for side, what, colour, hatch in [
    (-1, "parameters", figures.ORANGE, ""),
    (1, "FLOPs", figures.BLUE, "//"),
]:
    heights = shares[:, max(side, 0)].tolist()
    style = dict(color=colour, hatch=hatch, edgecolor="white", label=what, zorder=2)
    bars = ax.bar([i + 0.2 * side for i in range(6)], heights, 0.38, **style)
    ax.bar_label(bars, fmt="%.0f", size=11)
ax.set_xticks(range(6), list(parts))
ax.legend(frameon=False, fontsize=12)
fig.alt = (
    "Bars for stem, stages 1 to 4 and head of ResNet-18. Parameters grow about fourfold from stage "
    "to stage, to 75 % in stage 4. FLOPs are nearly equal in all four stages, 24 to 27 % each."
)
figures.show(fig)

# %% [markdown]
# Three quarters of the parameters are in stage 4, but only a quarter of the FLOPs.
# Each doubling of the channels quadruples the weights of a 3×3 convolution, and each halving of the side leaves a quarter of the positions at which they work: the product stays.
# (The first convolution of stages 2 to 4 costs only half, as it has half the inputs; the 1×1 one makes up for a part of that.)
#
# Beside your network, put torchvision's ResNet-18, with the same one input channel and ten classes, and count the parameters of both.

# %%
import torchvision

theirs = torchvision.models.resnet18(num_classes=10)
theirs.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)  # for grey images
table = [("stem", count(*stem), count(theirs.conv1, theirs.bn1))]
table += [
    (f"stage {i}", count(stages[i - 1]), count(theirs.get_submodule(f"layer{i}")))
    for i in range(1, 5)
]
table += [("head", count(*head), count(theirs.fc)), ("all", count(net), count(theirs))]
print(f"{'':10}{'yours':>12}{'torchvision':>14}{'difference':>12}")
for part, ours, other in table:
    print(f"{part:10}{ours:12,}{other:14,}{ours - other:+12,}")

# %% [markdown]
# The two agree in the head only.
# Every other part of yours is a little larger, by 3,008 parameters in all.
# Where do they come from?

# %% [markdown]
# ## The bill
# Two decisions separate the two networks, and both were in chapter 2.
# Your block's convolutions have biases; torchvision's have none.
# torchvision's 1×1 shortcut has a BN behind it; yours does not.
#
# **Predict**: which of the two decisions costs more parameters?

# %%
shortcut = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
branch = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m not in shortcut]
their_shortcut_bn = [m.downsample[1] for m in theirs.modules() if getattr(m, "downsample", None)]
bill = {
    "torchvision": count(theirs),
    "+ biases of the 17 convolutions before a BN": sum(m.bias.numel() for m in branch),
    "+ biases of the 3 shortcut convolutions": sum(m.bias.numel() for m in shortcut),
    "- scale and shift of the 3 shortcut BN": -count(*their_shortcut_bn),
}
for line, amount in bill.items():
    print(f"{line:45}{amount:12,}")
print(f"{'= yours':45}{sum(bill.values()):12,}")
assert (len(branch), len(shortcut)) == (17, 3)
assert sum(bill.values()) == count(net) == 11_178_378

# %% [markdown]
# The biases cost more, 4,800 parameters against 1,792 of the BN.
# The bill closes: nothing is left over.

# %% [markdown]
# ## What these biases do
# Chapter 2 moved the biases of one block.
# Now add 1 to every one of the 4,800, and take 1 from the `bn2` shift beside each 1×1 shortcut.
#
# **Predict**: by how much do the outputs of the whole network change in train mode, and in eval mode?

# %%
x = torch.rand(8, 1, 64, 64)
with torch.no_grad():
    before = {mode: net.train(mode == "train")(x) for mode in ("train", "eval")}
    for conv in branch + shortcut:
        conv.bias += 1
    for block in net.modules():
        if isinstance(block, Residual) and block.conv3 is not None:
            block.bn2.bias -= 1
    after = {mode: net.train(mode == "train")(x) for mode in ("eval", "train")}
same = {mode: torch.allclose(before[mode], after[mode], atol=1e-3) for mode in before}
print("biases moved:", sum(conv.bias.numel() for conv in branch + shortcut))
print("same outputs, to 0.001:", same)
assert same == {"train": True, "eval": False}

# %% [markdown]
# In train mode not at all, up to rounding.
# A BN subtracts the mean of its batch, and with it any constant that was added before, so 3,904 biases cannot matter there.
# The 896 on the shortcuts have no BN behind them, but they are added to the output of `bn2`, which has a shift of its own: only the sum of the two matters.
#
# In eval mode the outputs do move: the running means still hold the old biases.
# A BN makes a bias before it redundant, and torchvision's convolutions have none.
# The 4,800 biases are 0.04 % of your network: untidy, not wrong.

# %% [markdown]
# ## Your own copy of torchvision's network
# To take over another network's weights, yours needs the same tensors under the same names.
# `nn.Sequential` takes names when you hand it an ordered dictionary.
# With `BasicBlock`, which has torchvision's names inside, your network is a short cell.


# %%
def two_blocks(inplanes, planes, stride):
    downsample = None
    if stride != 1:
        conv = nn.Conv2d(inplanes, planes, 1, stride=stride, bias=False)
        downsample = nn.Sequential(conv, nn.BatchNorm2d(planes))
    first = BasicBlock(inplanes, planes, stride, downsample)
    return nn.Sequential(first, BasicBlock(planes, planes))


mine = nn.Sequential(
    OrderedDict(
        conv1=nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        layer1=two_blocks(64, 64, 1),
        layer2=two_blocks(64, 128, 2),
        layer3=two_blocks(128, 256, 2),
        layer4=two_blocks(256, 512, 2),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(512, 10),
    )
)

# %% [markdown]
# All fresh BN are alike: swap two layers and nobody notices.
# So the test first gives every BN of torchvision's network values such as training could have left there.
#
# Then `load_state_dict`, which is strict by default: one missing, extra or misshapen tensor and it raises.
# **Predict**: do the outputs agree in eval mode only, or in train mode as well?

# %%
torch.manual_seed(0)
for bn in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias, std=0.1)
    bn.running_mean.normal_(std=0.1)
    bn.running_var.uniform_(0.5, 1.5)

packaged = d2lres.resnet18(num_classes=10, in_channels=1)
for name, model in {"your own": mine, "d2lres.resnet18": packaged}.items():
    print(f"{name:16}", model.load_state_dict(theirs.state_dict()))

# %%
x = torch.rand(4, 1, 96, 96)
for name, model in {"your own": mine, "d2lres.resnet18": packaged}.items():
    for mode in (False, True):
        reference = theirs.train(mode)
        reference.load_state_dict(model.state_dict())  # train mode moves the running statistics
        with torch.no_grad():
            difference = (model.train(mode)(x) - reference(x)).abs().max()
        print(f"{name:16} {'train' if mode else 'eval':6} same to 1e-5: {bool(difference <= 1e-5)}")
        assert difference <= 1e-5

# %% [markdown]
# In both modes, and with both networks.
# The weights travel in both directions: before each comparison the cell loads them back into torchvision's network.
# Built for 3 channels and 1,000 classes, yours has the names and shapes of torchvision's trained weights.

# %% [markdown]
# ## The same weights in your first network
# Now try the network you built first, with biases and without BN on the shortcuts.
# A common way to silence complaints is `strict=False`.
#
# **Predict**: how many of torchvision's 122 tensors arrive?

# %%
state = theirs.state_dict()
report = net.load_state_dict(state, strict=False)
print("tensors offered:", len(state), "loaded:", len(state) - len(report.unexpected_keys))
assert len(report.unexpected_keys) == len(state)

# %% [markdown]
# None, and no error.
# Your layers are called `0.weight` and `4.0.conv1.weight`; not one name matches.
# After `strict=False`, always read the report it returns.
#
# With the names sorted out, two differences remain.
# The biases are easy: zeros.
# But what takes the place of the BN on the shortcut?
# In eval mode a BN multiplies by a fixed number and adds a fixed number, per channel.
# A convolution with a bias can do both by itself.
# This is called **folding**.


# %%
def folded(conv, bn):
    """Weight and bias of one convolution that does what conv and then bn do in eval mode."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return dict(
        weight=conv.weight * scale.view(-1, 1, 1, 1), bias=bn.bias - bn.running_mean * scale
    )


def without_bias(conv):
    return dict(weight=conv.weight, bias=torch.zeros(conv.out_channels))


net[0].load_state_dict(without_bias(theirs.conv1))
net[1].load_state_dict(theirs.bn1.state_dict())
net[-1].load_state_dict(theirs.fc.state_dict())
for i in range(4):
    for ours, other in zip(stages[i], theirs.get_submodule(f"layer{i + 1}")):
        ours.conv1.load_state_dict(without_bias(other.conv1))
        ours.bn1.load_state_dict(other.bn1.state_dict())
        ours.conv2.load_state_dict(without_bias(other.conv2))
        ours.bn2.load_state_dict(other.bn2.state_dict())
        if other.downsample is not None:
            ours.conv3.load_state_dict(folded(*other.downsample))

# %% [markdown]
# **Predict** once more: eval mode, train mode, both, neither?

# %%
same = {}
for mode in (False, True):
    with torch.no_grad():
        ours, reference = net.train(mode)(x), theirs.train(mode)(x)
    same["train" if mode else "eval"] = torch.allclose(ours, reference, atol=1e-3)
print(same)
assert same == {"eval": True, "train": False}

# %% [markdown]
# In eval mode only: there the first network computes torchvision's function, up to rounding.
# In train mode it cannot: there a BN uses the mean and variance of the current batch, and no fixed weight replaces that.
# So the two designs are one function when they are used, and two while they are trained.

# %% [markdown]
# ## Train it
# Real images at last: 6,000 from Fashion-MNIST to train on, 2,000 to test with, at their native 28×28.
# You train `d2lres.resnet18`, which computed the same as your copy above.
# The run is small, two passes over the data, to suit two CPU cores.
#
# **Predict** the accuracy on the test images after 94 steps from random weights.
# Guessing gives 10 %.

# %% tags=["nbval-ignore-output", "reason: accuracy and time differ between machines"]
from d2lres.data import fashion_mnist
from d2lres.training import fit

train, test = fashion_mnist()
torch.manual_seed(0)
model = d2lres.resnet18(num_classes=10, in_channels=1)
history = fit(model, train, test, epochs=2, lr=0.05)
for i in range(2):
    print(
        f"epoch {i + 1}: training loss {history.loss[i]:.2f}, accuracy "
        f"{history.accuracy[i]:.1%}, on test images {history.test_accuracy[i]:.1%}"
    )
print(f"{sum(history.seconds):.0f} seconds")
assert history.test_accuracy[-1] > 0.7  # holds for seeds 0-4

# %% [markdown]
# About four in five, after two passes over a tenth of the data set.
# Seeds 0 to 4 gave 80.2 to 81.2 %.
#
# | run | images | side | epochs | test accuracy |
# |---|---|---|---|---|
# | yours | 6,000 | 28 | 2 | printed above |
# | *Dive into Deep Learning*, English edition | 60,000 | 96 | 10 | 86.5 % |
# | the slides of its Chinese edition | 60,000 | 96 | 10 | 89.3 % |
#
# The last two are outputs stored in the published notebooks.
# This is not a race: those runs saw 50 times as many images, each about 12 times as large.
# Nor does yours say much about the paper, whose task had 1,000 classes and 1.28 million photographs.
# It says that this architecture learns.

# %% [markdown]
# ## Look at the answers
# A percentage hides what a network does.
# Here are the first 18 test images; where the network is wrong, the truth stands in brackets.

# %%
device = next(model.parameters()).device
model.eval()
with torch.no_grad():
    logits = torch.cat([model(x).cpu() for x, _ in test.batches(500, device=device)])
confidence, guess = logits.softmax(1).max(1)
right = guess == test.labels


def titles(chosen):
    names = [(test.classes[guess[i]], test.classes[test.labels[i]]) for i in chosen]
    return [said if said == true else f"{said}\n({true})" for said, true in names]


# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
alt = (
    "Eighteen test images, each titled with the network's prediction. Wrong ones are crossed and "
    "vermillion and carry the true class in brackets."
)
correct = right[:18].tolist()
figures.show(figures.images(test[:18], titles(range(18)), columns=6, correct=correct, alt=alt))
assert right.float().mean() > 0.7  # holds for seeds 0-4

# %% [markdown]
# **Predict**: which of the ten classes is the hardest, and what is it taken for?
# They are T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag and ankle boot.

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
by_class = {name: right[test.labels == i].float().mean() for i, name in enumerate(test.classes)}
for name, accuracy in sorted(by_class.items(), key=lambda item: item[1]):
    print(f"{name:12}{accuracy:.0%}")
hardest = min(by_class, key=by_class.get)
taken_for = Counter(test.classes[i] for i in guess[test.labels == test.classes.index(hardest)])
print(f"answers for a {hardest.lower()}:", dict(taken_for.most_common(5)))
assert "Shirt" in sorted(by_class, key=by_class.get)[:2]  # holds for seeds 0-4

# %% [markdown]
# Shirts are the hardest class, and they are taken for pullovers, coats and T-shirts.
# With each of seeds 0 to 4 these four, all for the upper body, were the four hardest, shirts first, and of each of the other six at least 86 % were right.
#
# Now the mistakes that the network is surest of.
# Are they careless, or would you have made them too?

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
wrong = (~right).nonzero().flatten()
surest = wrong[confidence[wrong].argsort(descending=True)[:12]]
figures.show(
    figures.images(
        test[surest],
        titles(surest),
        columns=6,
        correct=[False] * len(surest),
        alt="The twelve wrong predictions with the highest confidence, each titled "
        "with the prediction and, in brackets, the true class.",
    )
)
print(
    f"mean confidence where right {confidence[right].mean():.0%}, where wrong "
    f"{confidence[wrong].mean():.0%}"
)
assert confidence[right].mean() > confidence[wrong].mean() + 0.1  # holds for seeds 0-4

# %% [markdown]
# In this run some are a matter of opinion, such as two shirts taken for T-shirts; others are careless, such as a bag taken for a sandal.
# The confidence is worth something, as its mean is lower where the network is wrong, but a sure answer is no guarantee.

# %% [markdown]
# ## Pitfalls
# Three pitfalls.
# None of them raises an error where it is made.
#
# ### A stem without padding
# One of the study notes that this course grew out of leaves `padding=3` out of the 7×7 convolution.
# 224 becomes 109.
# **Predict**: how far down the network do the sizes stay wrong?

# %%
bare = nn.Conv2d(1, 64, kernel_size=7, stride=2)
for side in (224, 96, 28):
    for name, first in (("with", net[0]), ("without", bare)):
        trace, x = [], torch.rand(1, 1, side, side)
        for layer in [first, net[3], *stages]:
            x = layer.eval()(x)
            trace.append(x.shape[-1])
        print(f"{side:4} px, {name:7} padding: {trace}")

# %%
x = torch.rand(1, 1, 224, 224, requires_grad=True)
bare(x).sum().backward()
seen = x.grad[0, 0].ne(0)
print("rows never looked at:", (~seen.any(1)).nonzero().flatten().tolist())
print("columns never looked at:", (~seen.any(0)).nonzero().flatten().tolist())

# %% [markdown]
# At 224 as far as stage 1: only 109 and 55 are off, and from stage 2 on the sizes agree again, by rounding.
# So the output has the right shape, nothing raises, and the last row and column of the image are never seen.
# At 28 the difference reaches stage 2.
# Check the first shape, not the last.

# %% [markdown]
# ### A pool that pools nothing
# Another of these notes ends with `nn.AvgPool2d((1, 1))`.
# The argument is the size of the *window*: the mean of one number is that number.
# In `nn.AdaptiveAvgPool2d((1, 1))` it is the size of the *result*.
#
# **Predict**: at which of these sides does the network fail: 28, 32, 64, 224?

# %%
unpooled = nn.Sequential(*net[:8], nn.AvgPool2d((1, 1)), nn.Flatten(), net[-1]).eval()
for side in (28, 32, 64, 224):
    try:
        outcome = f"output {tuple(unpooled(torch.rand(1, 1, side, side)).shape)}"
    except RuntimeError:
        features = unpooled[:-1](torch.rand(1, 1, side, side)).shape[1]
        outcome = f"fails: {features:,} features for a linear layer of 512"
    print(f"{side:4} px: {outcome}")

# %% [markdown]
# It fails at 64 and 224.
# Small images hide the mistake: their last map is 1×1 already, so there is nothing left to pool.
# A test on one size proves one size.

# %% [markdown]
# ### A stage builder with three mistakes
# This function builds a stage for either block, and three things are wrong with it.
# `inplanes`, `planes` and `expansion` are torchvision's names: channels in, channels inside the block, and the factor at its end.
# Read it before you run it.
#
# **Predict**: how many blocks come out when you ask for 2, 3 and 6?


# %%
def broken_layer(block, inplanes, planes, blocks, stride=1):
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False), nn.BatchNorm2d(outplanes)
        )
    layers = [block(inplanes, outplanes, stride, downsample)]
    for _ in (1, blocks):
        layers.append(block(outplanes, planes))
    return nn.Sequential(*layers)


print({asked: len(broken_layer(BasicBlock, 64, 64, asked)) for asked in (2, 3, 6)})

# %% [markdown]
# Always three.
# `(1, blocks)` is a tuple with two elements, whatever they are; `range(1, blocks)` was meant.
# For a stage of three the result is right by accident.
#
# The second mistake shows with the bottleneck only, whose `expansion` is 4.
# For the basic block it is 1, and multiplying by it twice changes nothing.

# %% tags=["raises-exception"]
stage2 = broken_layer(Bottleneck, 256, 128, 4, stride=2)
stage2(torch.rand(1, 256, 56, 56))

# %% [markdown]
# The block multiplies by `expansion` itself, so `outplanes` multiplies twice: 2,048 channels meet 512.
# You find the third mistake in Exercise 4.

# %% [markdown]
# ## Exercises
# ### Exercise 1 (easy, 5 minutes): how large is the map
# Write down the rule that you have used all along: the side of a convolution's output, for any side, kernel, stride and padding.
# The same rule holds for pooling, unless `ceil_mode=True` asks to round up.
# <details><summary>Hint</summary>With padding the side is size + 2 · padding.
# The kernel's first position uses up kernel pixels; each further step needs stride more.
# Round down.</details>


# %%
from d2lres.checks import resnet18 as check


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Side of the output map of a convolution, in pixels, for a square input of side `size`."""
    ### BEGIN SOLUTION
    return (size + 2 * padding - kernel) // stride + 1
    ### END SOLUTION


check.output_size(output_size)

# %% [markdown]
# ### Exercise 2 (medium, 10 minutes): the size of a stage by formula
# How many parameters does `resnet_block(input_channels, num_channels, num_residuals)` have?
# Answer without building it: its convolutions have biases, and its first block has a 1×1 convolution on the shortcut.
# <details><summary>Hint</summary>A *k*×*k* convolution from *a* to *b* channels has a · b · k² weights and *b* biases; a BN of *b* channels has 2b parameters.
# Only the first block reads input_channels.</details>


# %%
def stage_parameters(input_channels: int, num_channels: int, num_residuals: int) -> int:
    """Parameters of a stage of `Residual` blocks whose first block halves the map."""

    ### BEGIN SOLUTION
    def conv(a, b, k):
        return a * b * k * k + b

    c, bn = num_channels, 2 * num_channels
    first = conv(input_channels, c, 3) + conv(c, c, 3) + 2 * bn + conv(input_channels, c, 1)
    other = 2 * conv(c, c, 3) + 2 * bn
    return first + (num_residuals - 1) * other
    ### END SOLUTION


check.stage_parameters(stage_parameters)

# %% [markdown]
# ### Exercise 3 (medium, 10 minutes): ResNet-34 from the same parts
# Build ResNet-34 as you built `net`: stem, four calls of `resnet_block`, head, all in one `nn.Sequential`.
# Make every layer anew: two calls give two networks that share nothing, with each other or with `net`.
# <details><summary>Hint</summary>The counts are in the table of the family above.
# Only stage 1 has first_block=True, and each list needs its star.</details>


# %%
from d2lres import resnet_block


def resnet34_from_blocks(num_classes: int = 10) -> nn.Sequential:
    """(N, 1, H, W) -> logits (N, num_classes), from layers made anew in every call."""
    ### BEGIN SOLUTION
    return nn.Sequential(
        nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        *resnet_block(64, 64, 3, first_block=True),
        *resnet_block(64, 128, 4),
        *resnet_block(128, 256, 6),
        *resnet_block(256, 512, 3),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )
    ### END SOLUTION


check.resnet34_from_blocks(resnet34_from_blocks)

# %% [markdown]
# ### Exercise 4 (hard, 15 minutes): repair the stage builder
# Copy `broken_layer` from above and repair its three mistakes, so that it builds every stage of ResNet-18 to ResNet-152.
# <details><summary>Hint</summary>You know two of them.
# For the third, think of stage 1 of ResNet-50: stride 1, 64 channels in, 256 out.
# Can *x* be added there as it is?</details>


# %%
def make_layer(block, inplanes: int, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """`blocks` blocks: (N, inplanes, H, W) -> (N, planes * block.expansion, H/stride, W/stride).

    The first block has the stride, and a shortcut of a 1 × 1 convolution without bias and a BN
    where x does not have the output's shape already.
    """
    ### BEGIN SOLUTION
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False), nn.BatchNorm2d(outplanes)
        )
    layers = [block(inplanes, planes, stride, downsample)]
    for _ in range(1, blocks):
        layers.append(block(outplanes, planes))
    return nn.Sequential(*layers)
    ### END SOLUTION


check.make_layer(make_layer)

# %% [markdown]
# ## Summary
# - **Five map sizes.** The convolutions of VGG-16, GoogLeNet and ResNet-18 each produce maps of five sizes, each half the one before.
# - **Shapes.** 224 → 112 → 56 → 56, 28, 14, 7 → 1 → 10 numbers, asserted layer by layer.
# - **Eighteen** is the number of convolutions and linear layers on the main path.
#   With the three on shortcuts it is 21.
# - **Block counts** alone lead from 18 to 34.
#   For 50, 101 and 152 you need the bottleneck, too; all five sizes match to the last parameter.
# - **Parameters and FLOPs.** Stage 4 has 75 % of the parameters and 24 % of the FLOPs of a grey 224×224 image.
# - **A star** packs in a definition and unpacks in a call.
# - **The bill.** 11,178,378 = 11,175,370 + 4,800 biases − 1,792 shortcut BN parameters.
#   In train mode 3,904 biases change no output, and 896 only repeat the `bn2` shift.
# - **Weights travel.** Your own network loads torchvision's strictly and agrees to 1e-5 in both modes; the network without shortcut BN agrees in eval mode only, after folding.
# - **It learns**, in a small run: about four in five right after two epochs.

# %% [markdown]
# ## Appendix: a network larger than its maps
# At 28×28 the maps of stage 3 are 2×2 and those of stage 4 are 1×1.
# The place of a kernel that only ever meets padding multiplies zeros, and its weight gets no gradient.
# The first convolution of stage 4 goes from 2×2 to 1×1 with stride 2, the other three stay at 1×1.
#
# **Predict**: how many of its 9 places does a 3×3 kernel use in either case, and what share of ResNet-18's weights is idle?


# %%
def places_used(side, stride):
    kernel = nn.Conv2d(1, 1, 3, stride=stride, padding=1)
    kernel(torch.rand(1, 1, side, side)).sum().backward()
    return int(kernel.weight.grad.ne(0).sum())


first, others = places_used(2, stride=2), places_used(1, stride=1)
idle = 256 * 512 * (9 - first) + 3 * 512 * 512 * (9 - others)
print("places used:", first, "and", others)
print(f"{idle:,} of {count(model):,} weights are idle: {idle / count(model):.0%}")
assert (first, others) == (4, 1)

# %% [markdown]
# Four places, and one: 62 % of the network that you have trained multiplied zeros all the time.
# What learned was a network of 4.2 million parameters.
# ResNet-18 is made for 224×224.
# For small images there is `cifar_resnet`, with a 3×3 stem that keeps the size.

# %% [markdown]
# ## Further reading
# - K. He, X. Zhang, S. Ren, J. Sun, [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), 2015: table 1 for the family, section 3.3 for the rules behind it, figure 5 for the bottleneck.
# - A. Zhang, Z. Lipton, M. Li, A. Smola, [Dive into Deep Learning](https://d2l.ai/chapter_convolutional-modern/resnet.html), section 8.6, for the version with biases.
# - torchvision's [resnet.py](https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py): after this chapter you can read all of it.
# - C. Szegedy et al., [Going Deeper with Convolutions](https://arxiv.org/abs/1409.4842), 2014, section 5, and K. Simonyan, A. Zisserman, [Very Deep Convolutional Networks](https://arxiv.org/abs/1409.1556), 2014, section 2, for the two layouts that came before.
