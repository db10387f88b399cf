# %% [markdown]
# # ResNet-18
# You assemble ResNet-18 from the block of chapter 2, account for every one of its parameters, and pour torchvision's weights into your own copy until both give the same answers.
#
# **You can afterwards** assemble the network and account for every parameter.
#
# **What you will learn**
# - to build the network from a stem, four stages and a head, and to predict every shape on the way
# - what the 18 counts, and what it takes to get to 34, 50, 101 and 152
# - why two ResNet-18 differ by 3,008 parameters, and which 4,800 are redundant
# - to load another library's weights, and to notice when nothing was loaded
# - to train the network on real images and to look at what it gets wrong
#
# **What you need**: chapter 2, `nn.Module` and `nn.Sequential`. **Minutes**: 75, half of them for the exercises.

# %% tags=["setup"]

# %% tags=["needed"]
from collections import Counter, OrderedDict

import torch
from torch import nn
from torchvision import models

import d2lres
from d2lres import BasicBlock, Bottleneck, Residual, ResNet, figures, probes
from d2lres.checks import resnet18 as check
from d2lres.figures import show

# %% [markdown]
# ## The whole net in one line
# **Predict** before you look: an image of 224 × 224 goes in. How large are the feature maps just before the head, and how many times was the side halved to get there?

# %%
show("resnet18")

# %% [markdown]
# The maps end at 7 × 7, after five halvings: one in the first convolution, one in the max-pool, and one at the start of stages 2, 3 and 4. The numbered layers are the ones that count. You will count them yourself below.

# %% [markdown]
# ## Five map sizes, as in VGG and GoogLeNet
# ResNet did not invent this layout. VGG and GoogLeNet, too, worked at five resolutions, each half the one before.
#
# The cell lists the sizes at which a network's convolutions produce maps. It builds all three on PyTorch's **meta device**, where a tensor has a shape but no numbers, so that 138 million weights of VGG cost nothing.
#
# **Predict**: one of the three still has maps of 224 × 224. Which one, and what does its first layer do differently?


# %% tags=["claim:N5"]
def map_sizes(build) -> list[int]:
    """Sides of the maps that the convolutions produce for a 224 × 224 image, each once."""
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


for name, build in [
    ("VGG-16", models.vgg16),
    ("GoogLeNet", googlenet),
    ("ResNet-18", models.resnet18),
]:
    print(f"{name:10}", sizes := map_sizes(build))
    assert len(sizes) == 5 and all(a == 2 * b for a, b in zip(sizes, sizes[1:]))

# %% [markdown]
# Five sizes each. VGG starts at full size because its first convolution is 3 × 3 with stride 1. GoogLeNet and ResNet start with 7 × 7 and stride 2, which leaves a quarter of the pixels for everything after it.

# %% [markdown]
# ## The stem
# The **stem** is what comes before the first block: a 7 × 7 convolution with stride 2, batch normalisation (BN), ReLU and a 3 × 3 max-pool with stride 2. Our images are grey, so it has one input channel.
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
# A **stage** is a row of blocks at one map size. Its first block halves the side and changes the channels, so its shortcut needs a 1 × 1 convolution. The other blocks keep the shape. Stage 1 is the exception: the max-pool has halved already, so all its blocks keep the shape.


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
# No: a list is not a module.

# %% [markdown]
# ## One star, two directions
# A star in a call **unpacks**: each element of the list becomes an argument of its own. A star in a definition **packs**: all positional arguments become one tuple. `nn.Sequential` is defined with `*args`, so in `nn.Sequential(*blocks)` you unpack and it packs again.
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
# ## Follow one image through it
# **Predict** the shape after each of the eleven layers: channels and side. Write the numbers down first; the cell asserts its own.

# %% tags=["claim:N16"]
names = [
    "convolution",
    "BN",
    "ReLU",
    "max-pool",
    "stage 1",
    "stage 2",
    "stage 3",
    "stage 4",
    "average pool",
    "flatten",
    "linear",
]
x, shapes = torch.rand(1, 1, 224, 224), []
for name, layer in zip(names, net):
    x = layer(x)
    shapes.append(tuple(x.shape))
    print(f"{name:13}{shapes[-1]}")

assert [s[-1] for s in shapes[:9]] == [112, 112, 112, 56, 56, 28, 14, 7, 1]
assert [s[1] for s in shapes] == [64] * 5 + [128, 256, 512, 512, 512, 10]

# %% [markdown]
# From stage 1 to stage 4 the channels double each time the side halves. A 3 × 3 convolution then costs the same in every stage: a quarter of the positions, four times the weights at each. (The first of stages 2 to 4 costs only half: it has half the inputs.) The image of 50,176 numbers leaves as 10, one for each class.

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
# There are 20 convolutions and one linear layer, 21 in all. The name counts the longest path: one 7 × 7, four 3 × 3 in each of four stages, one linear layer. The three 1 × 1 convolutions lie *beside* that path, on shortcuts.
#
# The rule is therefore 'not on a shortcut', not 'not 1 × 1'. For ResNet-18 that is the same; for the next section it is not.

# %% [markdown]
# ## From 18 to 152
# Other ResNets come from other numbers of blocks per stage. From 50 layers on there is also another block, the **bottleneck**: 1 × 1 to narrow, 3 × 3, 1 × 1 to widen four times. Its 1 × 1 convolutions are on the main path, so they count.
#
# `ResNet(block, counts)` builds any of them as torchvision does, for 3 channels and 1,000 classes. **Predict**: ResNet-34 and ResNet-50 share one list of counts. How many blocks must that list add up to?

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

# %% [markdown]
# No: you get 34, 68 and 102 layers. Block counts alone lead from 18 to 34. The other three need the bottleneck as well. It is also the thrifty choice: for nearly the same number of parameters, 58 million against 60, ResNet-152's counts give 102 layers of basic blocks or 152 of bottlenecks.

# %% [markdown]
# ## Where the parameters are
# Back to your net. Beside it stands torchvision's ResNet-18, with the same one input channel and ten classes.
#
# **Predict**: all stages have the same number of 3 × 3 convolutions. What share of all parameters is in stage 4?

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
print(f"share of stage 4: {count(stages[3]) / count(net):.0%}")

# %% [markdown]
# Three quarters of the net are in stage 4: each doubling of the channels quadruples the weights of a 3 × 3 convolution. The two nets agree in the head only. Every other part of yours is a little larger, by 3,008 parameters in all. Where do they come from?

# %% [markdown]
# ## The bill
# Two decisions separate the nets, and both were in chapter 2. Your block's convolutions have biases; torchvision's have none. Torchvision's 1 × 1 shortcut has a BN behind it; yours has not.
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
# ## What the 4,800 biases do
# In train mode a BN subtracts the mean of its batch, and with it any constant that was added before. So 3,904 biases cannot matter there. The 896 on the shortcuts have no BN behind them, but they are added to the output of `bn2`, which has a shift of its own: only the sum of the two matters.
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
# Not at all, up to rounding. In eval mode the outputs do move: the running means still hold the old biases. A BN makes a bias before it redundant, and that is why torchvision writes `bias=False`. The biases are 0.04 % of your net: untidy, not wrong.

# %% [markdown]
# ## Your own copy of torchvision's net
# To take over another net's weights, yours needs the same tensors under the same names. `nn.Sequential` takes names when you hand it an ordered dictionary. With `BasicBlock`, which has torchvision's names inside, your net is sixteen lines.


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
# All fresh BN are alike: swap two layers and nobody notices. So the test first gives every BN of torchvision's net values that training could have left there.
#
# Then `load_state_dict`, which is strict by default: one missing, extra or misshapen tensor and it raises. **Predict**: do the outputs agree in eval mode only, or in train mode as well?

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
# Both nets agree in both modes, and weights travel in both directions: before each comparison the cell loads them back into torchvision's net. Build yours for 3 channels and 1,000 classes, and torchvision's trained weights fit as well.

# %% [markdown]
# ## The same weights in your first net
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
# In eval mode the first net computes torchvision's function. In train mode it cannot: there a BN uses the mean and variance of the current batch, and no fixed weight replaces that. The two designs can say the same things; they learn differently.

# %% [markdown]
# ## Train it
# Real images at last: 6,000 from Fashion-MNIST to train on, 2,000 to test with, at their native 28 × 28. You train `d2lres.resnet18`, which computed the same as your copy above. The run is small, two passes over the data, to suit two CPU cores.
#
# **Predict** the accuracy on the test images after 94 steps from random weights. Guessing gives 10 %.

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
#
# | run | images | side | epochs | test accuracy |
# |---|---|---|---|---|
# | yours | 6,000 | 28 | 2 | printed above |
# | *Dive into Deep Learning*, English | 60,000 | 96 | 10 | 86.5 % |
# | the same, Chinese edition, slides | 60,000 | 96 | 10 | 89.3 % |
#
# This is not a race: those runs saw 50 times as many images, each about 12 times as large. Nor does yours say much about the paper, whose task had 1,000 classes and 1.28 million photographs. It says that this architecture learns.

# %% [markdown]
# ## Look at the answers
# A percentage hides what a network does. Here are the first 18 test images; where the net is wrong, the truth stands in brackets.
#
# **Predict**: how many of the 18 do you expect to be wrong, going by the accuracy above?

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
device = next(model.parameters()).device
model.eval()
with torch.no_grad():
    logits = torch.cat([model(x).cpu() for x, _ in test.batches(500, device=device)])
confidence, guess = logits.softmax(1).max(1)
right = guess == test.labels


def titles(chosen):
    names = [(test.classes[guess[i]], test.classes[test.labels[i]]) for i in chosen]
    return [said if said == true else f"{said}\n({true})" for said, true in names]


show(
    figures.images(
        test[:18],
        titles(range(18)),
        columns=6,
        correct=right[:18].tolist(),
        alt="Eighteen test images, each titled with the net's prediction. Wrong ones "
        "are crossed and vermillion and carry the true class in brackets.",
    )
)
assert right.float().mean() > 0.7  # holds for seeds 0-4

# %% [markdown]
# **Predict**: which of the ten classes is the hardest, and what is it taken for? They are T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag and ankle boot.

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
by_class = {name: right[test.labels == i].float().mean() for i, name in enumerate(test.classes)}
for name, accuracy in sorted(by_class.items(), key=lambda item: item[1]):
    print(f"{name:12}{accuracy:.0%}")
hardest = min(by_class, key=by_class.get)
taken_for = Counter(test.classes[i] for i in guess[test.labels == test.classes.index(hardest)])
print(f"answers for a {hardest.lower()}:", dict(taken_for.most_common(5)))
assert "Shirt" in sorted(by_class, key=by_class.get)[:2]  # holds for seeds 0-4

# %% [markdown]
# Shirts are among the two hardest classes with each of five seeds. They are taken for everything else that has two sleeves. Trousers and bags are nearly solved: nothing else has their outline.
#
# Now the mistakes that the net is surest of. **Predict**: are they careless, or would you have made them too?

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
wrong = (~right).nonzero().flatten()
surest = wrong[confidence[wrong].argsort(descending=True)[:12]]
show(
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
# At 28 × 28 many of these are a matter of opinion: one kind of shoe taken for another, a long coat for a dress. The confidence is worth something, as it is lower where the net is wrong, but a sure answer is no guarantee.

# %% [markdown]
# ## Pitfalls
# Four pitfalls. None of them raises an error where it is made.
#
# ### A stem without padding
# One of the notes behind this course leaves `padding=3` out of the 7 × 7 convolution. 224 becomes 109. **Predict**: how far down the net do the sizes stay wrong?

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
# At 224 only 109 and 55 are off. From stage 2 on the sizes agree again, by rounding. So the output has the right shape, nothing raises, and the last row and column of the image are never seen. At 28 the difference reaches stage 2. Check the first shape, not the last.

# %% [markdown]
# ### A pool that pools nothing
# Another note ends with `nn.AvgPool2d((1, 1))`. The argument is the size of the *window*: the mean of one number is that number. In `nn.AdaptiveAvgPool2d((1, 1))` it is the size of the *result*.
#
# **Predict**: at which of these sides does the net fail: 28, 32, 64, 224?

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
# Small images hide the mistake: their last map is 1 × 1 already, so there is nothing left to pool. A test on one size proves one size.

# %% [markdown]
# ### A stage builder with three mistakes
# This function builds a stage for either block, and three things are wrong with it. `inplanes`, `planes` and `expansion` are torchvision's names: channels in, channels inside the block, and the factor at its end. Read it before you run it.
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
# Always three. `(1, blocks)` is a tuple with two elements, whatever they are; `range(1, blocks)` was meant. For a stage of three the result is right by accident.
#
# The second mistake shows with the bottleneck only, whose `expansion` is 4. For the basic block it is 1, and multiplying by it twice changes nothing.

# %% tags=["raises-exception"]
stage2 = broken_layer(Bottleneck, 256, 128, 4, stride=2)
stage2(torch.rand(1, 256, 56, 56))

# %% [markdown]
# The block multiplies by `expansion` itself, so `outplanes` multiplies twice: 2,048 channels meet 512. You find the third mistake in Exercise 4.

# %% [markdown]
# ### A net larger than its maps
# At 28 × 28 the maps of stage 4 are 1 × 1. A 3 × 3 kernel on a 1 × 1 map sees one number and eight zeros of padding.
#
# **Predict**: what share of the net's weights can never learn anything there?

# %%
# Which places of a kernel are used does not depend on the channels: few will do.
few = d2lres.ResNet(BasicBlock, [2, 2, 2, 2], width=4).layer4.double()
few(torch.rand(32, 16, 2, 2).double()).square().sum().backward()  # 2 × 2: stage 3's maps
idle = 0
for name, conv in model.layer4.named_modules():
    if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
        weight = few.get_submodule(name).weight
        used = weight.grad.abs().sum((0, 1)) > 0  # 3 × 3: where any gradient arrives
        idle += conv.in_channels * conv.out_channels * int((~used).sum())
        print(name, "uses", int(used.sum()), "of 9 places")
print(f"{idle:,} of {count(model):,} weights are idle: {idle / count(model):.0%}")
assert idle == 512 * 256 * 5 + 3 * 512 * 512 * 8

# %% [markdown]
# Sixty-two per cent of the net you have just trained multiplied zeros all the time. It worked, but it was a net of 4.2 million parameters in the coat of 11.2 million. ResNet-18 is made for 224 × 224. For small images there is `cifar_resnet`, with a 3 × 3 stem that keeps the size.

# %% [markdown]
# ## Exercises
#
# ### Exercise 1 (easy, 5 minutes): how large is the map
# Write down the rule that you have used all along: the side of a convolution's output, for any side, kernel, stride and padding. The same rule holds for pooling, unless `ceil_mode=True` asks to round up.
# <details><summary>Hint</summary>With padding the side is size + 2 · padding. The kernel's first position uses up kernel pixels; each further step needs stride more. Round down.</details>


# %%
def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Side of the output map of a convolution, in pixels, for a square input of side `size`."""
    ### BEGIN SOLUTION
    return (size + 2 * padding - kernel) // stride + 1
    ### END SOLUTION


check.output_size(output_size)

# %% [markdown]
# ### Exercise 2 (medium, 10 minutes): the size of a stage by formula
# How many parameters has `resnet_block(input_channels, num_channels, num_residuals)`, without building it? Its convolutions have biases, and its first block a 1 × 1 shortcut.
# <details><summary>Hint</summary>A k × k convolution from a to b channels has a · b · k² weights and b biases; a BN of b channels has 2b parameters. Only the first block reads input_channels.</details>


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
# Build ResNet-34 as you built `net`: stem, four calls of `resnet_block`, head, all in one `nn.Sequential`. Make every layer anew: two calls give two networks that share nothing, with each other or with `net`.
# <details><summary>Hint</summary>The counts are in the table of the family above. Only stage 1 has first_block=True, and each list needs its star.</details>


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
# <details><summary>Hint</summary>You know two of them. For the third, think of stage 1 of ResNet-50: stride 1, 64 channels in, 256 out. Can x be added there as it is?</details>


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
# - **Five map sizes.** VGG-16, GoogLeNet and ResNet-18 each have five, each half the one before, counted at their convolutions.
# - **Shapes.** 224 → 112 → 56 → 56, 28, 14, 7 → 1 → 10 numbers, asserted layer by layer.
# - **Eighteen** is the number of convolutions and linear layers on the main path. With the three on shortcuts it is 21.
# - **Block counts** alone lead from 18 to 34. For 50, 101 and 152 you need the bottleneck, too; all five sizes match to the last parameter.
# - **A star** packs in a definition and unpacks in a call.
# - **The bill.** 11,178,378 = 11,175,370 + 4,800 biases − 1,792 shortcut BN parameters. In train mode 3,904 biases change no output, and 896 only repeat the `bn2` shift.
# - **Weights travel.** Your own net loads torchvision's strictly and agrees to 1e-5 in both modes; the net without shortcut BN agrees in eval mode only, after folding.
# - **It learns**, in a small run: about four in five right after two epochs.

# %% [markdown]
# ## Further reading
# - K. He, X. Zhang, S. Ren, J. Sun, [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), 2015: table 1 for the family, section 3.3 for the rules behind it, figure 5 for the bottleneck.
# - A. Zhang, Z. Lipton, M. Li, A. Smola, [Dive into Deep Learning](https://d2l.ai/chapter_convolutional-modern/resnet.html), section 8.6, for the version with biases.
# - torchvision's [resnet.py](https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py): after this chapter you can read all of it.
# - C. Szegedy et al., [Going Deeper with Convolutions](https://arxiv.org/abs/1409.4842), 2014, section 5, and K. Simonyan, A. Zisserman, [Very Deep Convolutional Networks](https://arxiv.org/abs/1409.1556), 2014, section 2, for the two layouts that came before.
