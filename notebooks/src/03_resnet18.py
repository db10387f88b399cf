# %% [markdown]
# # Chapter 3. ResNet-18
# You assemble ResNet-18 from the block of Chapter 2, account for every one of its parameters, and pour torchvision's weights into your own copy until both give the same answers.
#
# **What you will learn**
# - to build the network from a stem, four stages and a head, and to predict every shape on the way
# - what the 18 counts, and what it takes to get to 34, 50, 101 and 152
# - why two ResNet-18 differ by 3,008 parameters, and which 4,800 do nothing at all
# - to load another library's weights, and to notice when nothing was loaded
# - to train the network on real images and to look at what it gets wrong
#
# **What you need**: Chapter 2, `nn.Module` and `nn.Sequential`. **Time**: 60 minutes, half of them for the exercises. The cells run for about a minute.

# %% tags=["setup"]

# %%
from collections import Counter, OrderedDict

import torch
from torch import nn
from torchvision import models

from d2lres import BasicBlock, Bottleneck, Residual, ResNet, probes
from d2lres import figures
from d2lres.checks import resnet18 as check
from d2lres.figures import show

# %% [markdown]
# ## The whole net in one line
# **Predict** before you look: a picture of 224 × 224 goes in. How large are the feature maps just before the head, and how many times was the side halved to get there?

# %%
show(figures.resnet18())

# %% [markdown]
# The maps end at 7 × 7, after five halvings: one in the first convolution, one in the max-pool, and one at the start of stages 2, 3 and 4. The numbered layers are the ones that count. You will count them yourself below.

# %% [markdown]
# ## Five map sizes, as in VGG and GoogLeNet
# ResNet did not invent this layout. Networks before it, too, worked at five resolutions, each half the one before.
#
# The cell lists the sizes at which a network's convolutions produce maps. It builds all three on PyTorch's **meta device**, where a tensor has a shape but no numbers, so that 138 million weights of VGG cost nothing.
#
# **Predict**: one of the three still has maps of 224 × 224. Which one, and what does its first layer do differently?

# %% tags=["claim:N5"]
def map_sizes(build) -> list[int]:
    """Sides of the maps that the convolutions produce for a 224 × 224 picture, each once."""
    sides = []
    with torch.device("meta"):
        model = build().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, args, out: sides.append(out.shape[-1]))
        model(torch.rand(1, 3, 224, 224))
    return list(dict.fromkeys(sides))


def googlenet():
    return models.googlenet(init_weights=False, aux_logits=False)


for name, build in [("VGG-16", models.vgg16), ("GoogLeNet", googlenet), ("ResNet-18", models.resnet18)]:
    print(f"{name:10}", sizes := map_sizes(build))
    assert len(sizes) == 5 and all(a == 2 * b for a, b in zip(sizes, sizes[1:]))

# %% [markdown]
# Five sizes each. VGG starts at full size because its first convolution is 3 × 3 with stride 1. GoogLeNet and ResNet start with 7 × 7 and stride 2, which leaves a quarter of the pixels for everything after it.

# %% [markdown]
# ## The stem
# The **stem** is what comes before the first block: a 7 × 7 convolution with stride 2, batch normalisation (BN), ReLU and a 3 × 3 max-pool with stride 2. Our pictures are grey, so it has one input channel.
#
# **Predict**: which padding keeps 224 → 112 exact? The kernel reaches 3 pixels to each side of its centre.

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
# With `padding=3` the kernel's centre stands on every second pixel, and 224 becomes 112. The max-pool has its own padding of 1 and makes 56. Two layers with a stride, and 15 of 16 positions are gone before the first residual block. What happens without that padding is the first pitfall below.

# %% [markdown]
# ## A stage is a list of blocks
# A **stage** is a row of blocks at one map size. Its first block halves the side and changes the channels, through a shortcut with a 1 × 1 convolution. The other blocks keep the shape. Stage 1 is the exception: the max-pool has halved already, so all its blocks keep the shape.

# %%
def stage(input_channels, num_channels, num_residuals, first_block=False):
    """One stage, as a list of blocks."""
    halve = not first_block
    first = Residual(input_channels, num_channels, use_1x1conv=halve, strides=2 if halve else 1)
    return [first] + [Residual(num_channels, num_channels) for _ in range(num_residuals - 1)]

# %% [markdown]
# `nn.Sequential` wants modules, one argument each. You have a list. **Predict**: is a list accepted?

# %% tags=["raises-exception"]
nn.Sequential(stage(64, 64, 2, first_block=True))

# %% [markdown]
# ## One star, two directions
# A star in a call **unpacks**: each element of the list becomes an argument of its own. A star in a definition **packs**: all arguments that arrive become one tuple. `nn.Sequential` is defined with `*args`, so in `nn.Sequential(*blocks)` you unpack and it packs again.
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
# Without the star one list arrives; with it, two blocks. `nn.Sequential(*blocks)` holds exactly those two, in order.
#
# The course's `resnet_block` does what your `stage` does. Do both even draw the same first weights?

# %%
from d2lres import resnet_block

torch.manual_seed(0)
by_hand = nn.Sequential(*stage(64, 128, 2)).state_dict()
torch.manual_seed(0)
imported = nn.Sequential(*resnet_block(64, 128, 2)).state_dict()
print("same names:", list(by_hand) == list(imported))
print("same numbers:", all(torch.equal(by_hand[name], imported[name]) for name in by_hand))

# %% [markdown]
# ## The net
# The **head** averages each of the 512 final maps to one number and maps those 512 numbers to 10 classes with a linear layer. Stem, stages and head are lists, and the star joins them.

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
# ## Follow one picture through it
# **Predict** the side after each of the eleven layers, from 224 down. Write the numbers down first; the cell asserts its own.

# %% tags=["claim:N16"]
names = ["convolution", "BN", "ReLU", "max-pool", "stage 1", "stage 2", "stage 3", "stage 4",
         "average pool", "flatten", "linear"]
x, shapes = torch.rand(1, 1, 224, 224), []
for name, layer in zip(names, net):
    x = layer(x)
    shapes.append(tuple(x.shape))
    print(f"{name:13}{shapes[-1]}")

assert [s[-1] for s in shapes[:9]] == [112, 112, 112, 56, 56, 28, 14, 7, 1]
assert [s[1] for s in shapes] == [64] * 5 + [128, 256, 512, 512, 512, 10]

# %% [markdown]
# From stage 1 to stage 4 the channels double each time the side halves. A 3 × 3 convolution then costs the same in every stage: a quarter of the positions, four times the weights at each. The picture of 50,176 numbers leaves as 10, one for each class.

# %% [markdown]
# ## Count to eighteen
# Walk through all modules and count everything that has a weight matrix: convolutions and linear layers. BN, ReLU and pooling do not count, by convention.
#
# **Predict** the total. It is not 18.

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
# There are 20 convolutions and 21 layers with weights. The name counts the longest path: one 7 × 7, four 3 × 3 in each of four stages, one linear layer. The three 1 × 1 convolutions lie *beside* that path, on shortcuts.
#
# The rule is therefore 'not on a shortcut', not 'not 1 × 1'. For ResNet-18 that is the same; for the next section it is not.

# %% [markdown]
# ## From 18 to 152
# Other ResNets come from other numbers of blocks per stage. From 50 layers on there is also another block, the **bottleneck**: 1 × 1 to narrow, 3 × 3, 1 × 1 to widen four times. Its 1 × 1 convolutions are on the main path, so they count.
#
# `ResNet(block, counts)` builds any of them as torchvision does, for 3 channels and 1,000 classes. **Predict**: ResNet-34 and ResNet-50 share one list of counts. Which list?

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
# Every count of layers is the name, and every count of parameters is the one torchvision publishes, to the last digit. ResNet-34 and ResNet-50 both have [3, 4, 6, 3]: 16 blocks of two layers against 16 blocks of three.
#
# So is it enough to change the numbers? **Predict** how many layers you get from ResNet-152's counts with the basic block.

# %% tags=["claim:N7"]
for name in (50, 101, 152):
    with torch.device("meta"):
        basic = ResNet(BasicBlock, family[name][1])
    layers = len(probes.weight_layers(basic))
    print(f"counts of ResNet-{name}, basic blocks: {layers} layers, {count(basic):,} parameters")
    assert layers == 2 * sum(family[name][1]) + 2 < name
    assert (count(basic) > family[name][2]) == (name > 50)

# %% [markdown]
# No: you get 34, 68 and 102 layers. Block counts alone lead from 18 to 34. The other three need the bottleneck as well. It is also the thrifty choice: with ResNet-152's counts the basic block gives 50 layers fewer and still more parameters.

# %% [markdown]
# ## Where the parameters are
# Back to your net. Beside it stands torchvision's ResNet-18, with the same one input channel and ten classes.
#
# **Predict**: all stages have the same number of 3 × 3 convolutions. What share of all parameters is in stage 4?

# %%
from d2lres.references import torchvision_resnet

theirs = torchvision_resnet(18, num_classes=10, in_channels=1)
table = [("stem", count(*stem), count(theirs.conv1, theirs.bn1))]
table += [
    (f"stage {i}", count(stages[i - 1]), count(theirs.get_submodule(f"layer{i}")))
    for i in range(1, 5)
]
table += [("head", count(*head), count(theirs.fc)), ("all", count(net), count(theirs))]
print(f"{'':10}{'yours':>12}{'torchvision':>14}{'difference':>12}")
for part, ours, other in table:
    print(f"{part:10}{ours:12,}{other:14,}{ours - other:+12,}")
print(f"share of stage 4: {count(stages[3]) / count(net):.0%}")

# %% [markdown]
# Three quarters of the net are in stage 4: each doubling of the channels quadruples the weights of a 3 × 3 convolution. The two nets agree only in the head. Yours is larger by 3,008, and no part in the middle differs by the same number.

# %% [markdown]
# ## The bill
# Two decisions separate the nets, and both were in Chapter 2. Your block's convolutions have biases; torchvision's have none. Torchvision's 1 × 1 shortcut has a BN behind it; yours has not.
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
# The bill closes: 4,800 biases more, 1,792 BN parameters fewer. Nothing is left over.

# %% [markdown]
# ## 4,800 parameters that do nothing
# A BN subtracts the mean of its batch, and with it any constant that was added before. So 3,904 biases cannot matter. The 896 on the shortcuts have no BN behind them, but they are added to the output of `bn2`, which has a shift of its own: only the sum of the two matters.
#
# **Predict**: add 1 to every one of the 4,800 biases, and take 1 from the `bn2` shift beside each shortcut. By how much do the outputs change in train mode?

# %%
x = torch.rand(8, 1, 64, 64)
with torch.no_grad():
    before = net.train()(x)
    for conv in branch + shortcut:
        conv.bias += 1
    for block in net.modules():
        if isinstance(block, Residual) and block.conv3 is not None:
            block.bn2.bias -= 1
    after = net(x)
print("biases moved:", sum(conv.bias.numel() for conv in branch + shortcut))
print("same outputs, to 0.001:", torch.allclose(before, after, atol=1e-3))
assert torch.allclose(before, after, atol=1e-3)

# %% [markdown]
# Not at all, up to rounding. That is why torchvision writes `bias=False`. It costs your net 0.04 % of its parameters and nothing in accuracy, so it is untidy, not wrong.

# %% [markdown]
# ## Your own copy of torchvision's net
# To take over another net's weights, yours needs the same tensors under the same names. `nn.Sequential` takes names when you hand it an ordered dictionary. With `BasicBlock`, which has torchvision's names inside, your net is twenty lines.

# %%
def layer(inplanes, planes, stride):
    downsample = None
    if stride != 1:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
        )
    return nn.Sequential(BasicBlock(inplanes, planes, stride, downsample), BasicBlock(planes, planes))


mine = nn.Sequential(OrderedDict(
    conv1=nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False),
    bn1=nn.BatchNorm2d(64),
    relu=nn.ReLU(),
    maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    layer1=layer(64, 64, 1), layer2=layer(64, 128, 2),
    layer3=layer(128, 256, 2), layer4=layer(256, 512, 2),
    avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(512, 10),
))  # fmt: skip

# %% [markdown]
# A fresh BN has scale 1, shift 0, mean 0 and variance 1. Swap two of them and nobody notices. So the test first gives every BN of torchvision's net values that training could have left there.
#
# Then `load_state_dict`, which is strict by default: one missing, extra or misshapen tensor and it raises. **Predict**: do the outputs agree in eval mode only, or in train mode as well?

# %%
import d2lres

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
# Both, in both modes, and weights travel in both directions. You have not imitated ResNet-18; you have built it. Any checkpoint that torchvision publishes for it fits, once the net is built for 3 channels and 1,000 classes.

# %% [markdown]
# ## The same weights in the first net
# Now try the net you built first, with biases and without BN on the shortcuts. A common way to silence complaints is `strict=False`.
#
# **Predict**: how many of torchvision's 122 tensors arrive?

# %%
state = theirs.state_dict()
report = net.load_state_dict(state, strict=False)
print("tensors offered:", len(state), "loaded:", len(state) - len(report.unexpected_keys))
assert len(report.unexpected_keys) == len(state)

# %% [markdown]
# None, and no error. Your layers are called `0.weight` and `4.0.conv1.weight`; not one name matches. After `strict=False`, always read the report it returns.
#
# With the names sorted out, two differences remain. The biases are easy: zeros. But what takes the place of the BN on the shortcut? In eval mode a BN multiplies by a fixed number and adds a fixed number, per channel. A convolution with a bias can do both by itself. This is called **folding**.

# %%
def folded(conv, bn):
    """Weight and bias of one convolution that does what conv and then bn do in eval mode."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return dict(weight=conv.weight * scale.view(-1, 1, 1, 1), bias=bn.bias - bn.running_mean * scale)


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
# In eval mode the first net computes torchvision's function. In train mode it cannot: there a BN uses the mean and variance of the current batch, and no fixed weight replaces that. The two designs can say the same things; they learn differently.

# %% [markdown]
# ## Train it
# Real pictures at last: 6,000 from Fashion-MNIST to train on, 2,000 to test with, at their native 28 × 28. The run is small, two passes over the data, so that it fits into half a minute on two CPU cores.
#
# **Predict** the accuracy on the test pictures after 94 steps from random weights. Guessing gives 10 %.

# %% tags=["nbval-ignore-output", "reason: accuracy and time differ between machines"]
from d2lres.data import fashion_mnist
from d2lres.training import fit

train, test = fashion_mnist()
torch.manual_seed(0)
model = d2lres.resnet18(num_classes=10, in_channels=1)
history = fit(model, train, test, epochs=2, lr=0.05)
for epoch, (loss, seen, unseen) in enumerate(
    zip(history.loss, history.accuracy, history.test_accuracy), start=1
):
    print(f"epoch {epoch}: training loss {loss:.2f}, accuracy {seen:.1%}, on test pictures {unseen:.1%}")
print(f"{sum(history.seconds):.0f} seconds")
assert history.test_accuracy[-1] > 0.70  # holds for seeds 0-4
