# %% [markdown]
# # The residual block
# You write f(x) = x + g(x) by hand and find out what it can and cannot do.
# Then you compare your block with those of `d2l` and of torchvision.
#
# **You can afterwards** build the block, and say what it can and cannot represent.
#
# **What you will learn**
# - to write a residual block in a dozen lines, and to say which shapes it accepts
# - when a block whose branch is zero changes nothing
# - what a 1×1 convolution on the shortcut is for, and what it costs
# - which parts of the block in the books are superfluous
# - mistakes that PyTorch reports late, far away, or not at all
#
# **What you need**: `nn.Module`, convolutions, batch normalisation; chapter 1 for the reason behind all this.
#
# **Minutes**: 100, half of them for the exercises.
# The appendix takes ten more.

# %% tags=["setup"]

# %% tags=["needed"]
import torch
import torch.nn.functional as F
from torch import nn

from d2lres import figures

# %% [markdown]
# ## Add the input back
# Chapter 1 made a network deeper without changing its answers: the new blocks could say "nothing to add".
# Here you build such a block.
# It has some layers *g*, the **branch**, and beside them a wire, the **shortcut**, that carries *x* past the layers.
# The block forms the sum
#
# f(x) = x + g(x)
#
# and returns ReLU(f(x)).
# The picture shows the usual branch: convolution, batch normalisation (BN), ReLU, convolution, BN.

# %%
figures.show("block")

# %% [markdown]
# You can build it without a class.
# The addition needs equal shapes on both sides.
#
# **Predict**: the images have three channels and 6×6 pixels.
# Which of the five layers must be told something so that its output still fits *x*, and what would happen to the size without it?

# %%
torch.manual_seed(0)
g = nn.Sequential(
    nn.Conv2d(3, 3, 3, padding=1),
    nn.BatchNorm2d(3),
    nn.ReLU(),
    nn.Conv2d(3, 3, 3, padding=1),
    nn.BatchNorm2d(3),
)
x = out = torch.rand(4, 3, 6, 6)
for layer in g:
    out = layer(out)
    print(f"{type(layer).__name__:12s} {tuple(out.shape)}")
print("x + g(x)    ", tuple((x + g(x)).shape))

# %% [markdown]
# Both convolutions: no other layer could change the size.
# Without `padding=1` a 3×3 window loses one row on each side, so two of them would turn 6×6 into 2×2 and the sum would fail.
# This is the **shape contract**: the branch must return exactly the shape of *x*.
#
# Now as a class.
# The branch gets a method of its own, so that you can look at *g* alone.


# %%
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def g(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out))

    def forward(self, x):
        return F.relu(x + self.g(x))


class Plain(Block):  # the same layers without the shortcut
    def forward(self, x):
        return F.relu(self.g(x))


Block(3)(x).shape == Plain(3)(x).shape == x.shape

# %% [markdown]
# ## What is left for the branch to learn
# If the sum should become h(x), the branch has to learn only the rest, h(x) − x.
# That rest is called the **residual**.
# The easiest test is h(x) = x: layers without a shortcut must learn to copy an image through two convolutions, whereas a residual branch must learn zero.
#
# Both get the same initial weights and the same 256 real images, cut into four channels of 14×14 so that there is something to mix.
#
# **Predict**: which of them starts with the larger error, and which ends with it?

# %%
from d2lres.data import fashion_mnist
from d2lres.training import progress_bar

train, test = fashion_mnist()
images = F.pixel_unshuffle(train[:256].images / 255, 2)  # (256, 4, 14, 14), none negative


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def learn_to_copy(kind, seed=0, steps=60, make_optimizer=sgd):
    torch.manual_seed(seed)
    block = kind(4)
    optimizer, losses = make_optimizer(block.parameters()), []
    for _ in progress_bar(range(steps)):
        loss = F.mse_loss(block(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, block.g(images)[images > 0].abs().mean().item()


# %% tags=["nbval-ignore-output", "reason: losses differ in the last digits between machines"]
_, size_before = learn_to_copy(Block, steps=0)
plain, _ = learn_to_copy(Plain)
residual, size_after = learn_to_copy(Block)
print("                                 at first    at last")
print(f"plain: error                   {plain[0]:10.4f} {plain[-1]:10.4f}")
print(f"residual: error                {residual[0]:10.4f} {residual[-1]:10.4f}")
print(f"residual: mean |g(x)|, x > 0   {size_before:10.4f} {size_after:10.4f}")
assert residual[0] > plain[0] and residual[-1] < plain[-1] / 4  # holds for seeds 0-4
assert size_after < size_before / 4

# %% [markdown]
# The residual block starts *worse*, because its random branch disturbs an image that was already right.
# It ends far better: seeds 0 to 4 gave errors of 0.001 to 0.003, and 0.019 to 0.029 for the plain block.
# It got there by shrinking *g* where *x* > 0.
# Where *x* = 0, *g* need not shrink: any negative value will do, because the last ReLU turns it into 0.
#
# Do not read too much into one race.
# The appendix runs it again with another optimiser, and there the lead is not safe.

# %% [markdown]
# ## When does a block do nothing?
# Suppose the branch has arrived: g(x) = 0 for every *x*.
# Chapter 1 has shown what your block then returns, ReLU(x), which is *x* only where *x* is not negative.
#
# There is another design.
# In a **pre-activation block** BN and ReLU stand *before* each convolution, and nothing follows the addition: x + conv2(relu(bn2(conv1(relu(bn1(x)))))).
#
# **Predict**: both blocks get an image with a zero branch.
# The image is normalised: 0 is the average shade of the training images, so many values are negative.
# Which parts of the picture does your block lose, and which parts does the other one lose?

# %% tags=["claim:N3"]
from d2lres import PreActBlock

block = Block(1)
block.g = torch.zeros_like  # the branch, replaced by the zero function
pre = PreActBlock(1, 1)
nn.init.zeros_(pre.conv2.weight)  # its last layer, without bias

pixels, _ = test[:2].tensors()
with torch.no_grad():
    after, after_pre = block(pixels), pre(pixels)
    print("block, any x:    ", torch.equal(after, pixels))
    print("block, x >= 0:   ", torch.equal(block(pixels.relu()), pixels.relu()))
    print("pre-activation:  ", torch.equal(after_pre, pixels))
assert torch.equal(after, pixels.relu()) and not torch.equal(after, pixels)
assert torch.equal(after_pre, pixels)

# %%
rows = torch.stack([pixels, after, after_pre], dim=1).flatten(0, 1)
titles = ["x", "block, g = 0", "pre-activation, g = 0"] * 2
figures.show(
    figures.images(
        rows,
        titles,
        columns=3,
        alt=(
            "Two test images, each three times: as given; after a block with zero branch, where all dark "
            "shades have become one flat grey; after a pre-activation block, unchanged."
        ),
    )
)

# %% [markdown]
# Your block loses everything darker than average: it becomes one flat shade.
# The pre-activation block loses nothing: it returns every *x* as it came.
#
# Inside a ResNet the usual block does no damage.
# It receives what an earlier ReLU let through, so its input is never negative, and "do nothing" is within reach of every block whose shortcut is *x*.
# That is why chapter 1 could insert silent blocks and find the outputs unchanged.

# %% [markdown]
# ## Where are the two ReLUs?
# A common description says: each convolution is followed by batch normalisation and ReLU.
# Compare it with your class.
# PyTorch can list what a module really calls, in order, without any data; the ends of the list are `x` and `output`.

# %% tags=["claim:N8"]
from torch import fx

steps = [node.name for node in fx.symbolic_trace(Block(3)).graph.nodes]
print(" -> ".join(steps))
after_bn = [steps[steps.index(name) + 1] for name in ("bn1", "bn2")]
print("after bn1:", after_bn[0], "   after bn2:", after_bn[1])
assert after_bn == ["relu", "add"]

# %% [markdown]
# The description is right for the first convolution and wrong for the second.
# Between its BN and its ReLU stands the addition.
#
# Does it matter?
# **Predict**: in the variant below, a ReLU closes the branch.
# What can such a branch no longer do to *x*?

# %%
branch = Block(3).g(x)
relu_first, usual = x + F.relu(branch), x + branch
print("branch ends in ReLU, some value falls:", bool((relu_first < x).any()))
print("branch ends in BN,   some value falls:", bool((usual < x).any()))
assert (relu_first >= x).all() and (usual < x).any()

# %% [markdown]
# It can no longer lower a value: block after block, the values can only grow.
# He et al. tried it (2016, section 4.1): on CIFAR-10 the test error of their ResNet-110 went from 6.61 to 7.84 %.

# %% [markdown]
# ## More channels, fewer pixels
# So far shapes never change.
# But a network has to trade resolution for channels somewhere.
# The branch can do that: give its first convolution `stride=2` and more output channels.
# Then *x* no longer fits, and the shortcut needs a layer, too: a **1×1 convolution**, which mixes the channels of each pixel and takes the same stride as the branch.


# %% tags=["needed"]
class FullBlock(nn.Module):
    def __init__(self, input_channels, num_channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, num_channels, 3, padding=1, stride=strides)
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(num_channels)
        self.conv3 = None
        if use_1x1conv:
            self.conv3 = nn.Conv2d(input_channels, num_channels, 1, stride=strides)

    def g(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out))

    def forward(self, x):
        shortcut = x if self.conv3 is None else self.conv3(x)
        return F.relu(shortcut + self.g(x))


# %% [markdown]
# **Predict**: 3 channels in, 6 out, stride 2, and no 1×1 convolution.
# Three dimensions of the two tensors disagree.
# Which does PyTorch complain about?

# %% tags=["raises-exception"]
FullBlock(3, 6, strides=2)(x)

# %% [markdown]
# About the last one only, the width: it compares from the right and stops at the first conflict.
# It does not say which tensor is the shortcut, nor what to do.
# `d2lres.Residual` is the same block with a check in front of the addition:

# %% tags=["raises-exception"]
from d2lres import Residual

Residual(3, 6, strides=2)(x)

# %% [markdown]
# Now both ways.
# Take 3 → 3 channels with stride 2, 3 → 6 with stride 2, and 3 → 6 with stride 1.
#
# **Predict** the three shapes, and which of the blocks work without the 1×1 convolution.


# %% tags=["claim:N4"]
def result(block):
    try:
        return tuple(block(x).shape)
    except RuntimeError:
        return "fails"


for channels, strides in [(3, 2), (6, 2), (6, 1)]:
    without = result(FullBlock(3, channels, strides=strides))
    with_1x1 = result(FullBlock(3, channels, use_1x1conv=True, strides=strides))
    print(f"3 -> {channels} channels, strides={strides}: without {without}, with 1x1 {with_1x1}")
    assert without == "fails" and with_1x1 == (4, channels, 6 // strides, 6 // strides)

# %% [markdown]
# None works without it.
# With it, stride 2 halves 6 to 3, and the channels are those you asked for.
# (Odd sizes fit as well: see the appendix.)
#
# With a stride, the 1×1 convolution has a price.
# **Predict**: of the 36 pixels of a 6×6 image, how many can reach the output through the shortcut?

# %%
block = FullBlock(1, 2, use_1x1conv=True, strides=2)
for name, convolution in [("branch", block.conv1), ("shortcut", block.conv3)]:
    probe = torch.rand(1, 1, 6, 6, requires_grad=True)
    convolution(probe).sum().backward()
    seen = probe.grad[0, 0] != 0
    print(f"{name}: {seen.sum()} of {seen.numel()} pixels")
print(seen.int())  # through the shortcut

# %% [markdown]
# Nine, every second one in both directions.
# A pixel whose gradient is exactly 0 adds nothing to the convolution's output.
# The first convolution of the branch looks at all 36, so the other 27 reach the output through the branch only.

# %% [markdown]
# ## Two kinds of block
# You now have both: one whose shortcut is *x* itself, and one whose shortcut is a 1×1 convolution s(x).

# %%
figures.show("blocks")

# %% [markdown]
# A **stage** is a run of blocks that work at the same resolution.
# `resnet_block` lists the blocks of one stage.
# Only the first stage of a network is called with `first_block=True`: the layers in front of it have already reduced the image, and there are 64 channels already.
#
# **Predict**: ResNet-18 has four stages of two blocks.
# How many of the eight are of which kind?

# %% tags=["claim:N20"]
from d2lres import resnet_block

kinds = []
plan = [(64, 64), (64, 128), (128, 256), (256, 512)]  # (channels in, channels out) of each stage
for i, channels in enumerate(plan):
    stage = resnet_block(*channels, 2, first_block=i == 0)
    kinds.append(["identity" if block.conv3 is None else "1x1" for block in stage])
    print(channels, kinds[-1])
print("identity:", sum(kinds, []).count("identity"), "  1x1:", sum(kinds, []).count("1x1"))
assert kinds[0] == ["identity", "identity"]
assert all(stage == ["1x1", "identity"] for stage in kinds[1:])

# %% [markdown]
# Five identity blocks and three 1×1 blocks: every stage but the first opens with one.
# This is option B of the ResNet paper (He et al. 2015, section 4.1): a convolution on the shortcut only where the shapes leave no choice.

# %% [markdown]
# ## Is your block the one in the books?
# Reading the same names proves little; computing the same numbers proves a lot.
# Your block meets two others: `d2lres.Residual`, and `Residual` from `d2l`, the package of *Dive into Deep Learning*.
# All get your weights.
#
# **Predict**: equal to the last bit, or only to about six digits?

# %%
import contextlib
import io

from d2lres import references

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    d2l = references.d2l()  # takes a few seconds

for arguments in [(3, 3), (3, 6, True, 2)]:
    mine = FullBlock(*arguments)
    for name, kind in {"d2lres": Residual, "d2l": d2l.Residual}.items():
        other = kind(*arguments)
        other.load_state_dict(mine.state_dict())  # strict: the names must match, too
        trained = torch.equal(mine.train()(x), other.train()(x))
        evaluated = torch.equal(mine.eval()(x), other.eval()(x))
        print(arguments, name, trained, evaluated)
        assert trained and evaluated

# %% [markdown]
# To the last bit, in train mode and in eval mode: the three run the same operations in the same order.
# From here on, `from d2lres import Residual` is *your* block with better error messages.

# %% [markdown]
# ## How torchvision's block differs
# torchvision calls its block `BasicBlock`.

# %%
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

downsample = nn.Sequential(nn.Conv2d(3, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
theirs = TorchvisionBlock(3, 6, stride=2, downsample=downsample)
mine = FullBlock(3, 6, use_1x1conv=True, strides=2)
for name, block in {"mine": mine, "torchvision": theirs}.items():
    print(name, [n for n, _ in block.named_parameters() if "conv" in n or "downsample" in n])

# %% [markdown]
# Two differences: its convolutions have no bias, and its shortcut has a BN.
# The BN follows the ResNet paper, which puts one right after each convolution (section 3.4).
#
# Take the bias first.
# In your branch each convolution is followed by a BN, which subtracts the mean of each channel.
#
# **Predict**: add 1 to every bias of `conv1` and `conv2`.
# How much does the output change in train mode?
# And in eval mode, where BN subtracts the running mean that it has collected before?

# %% tags=["nbval-ignore-output", "reason: rounding errors differ between machines"]
import copy


def change(shifted, block, mode):
    block, shifted = copy.deepcopy(block).train(mode), copy.deepcopy(shifted).train(mode)
    with torch.no_grad():
        return (block(x) - shifted(x)).abs().max().item()


torch.manual_seed(0)
mine = FullBlock(3, 6, use_1x1conv=True, strides=2)
for _ in range(50):
    mine(x)  # lets BN collect its running means
shifted = copy.deepcopy(mine)
with torch.no_grad():
    shifted.conv1.bias += 1
    shifted.conv2.bias += 1
in_training, in_evaluation = change(shifted, mine, True), change(shifted, mine, False)
print(f"largest change in train mode {in_training:.0e}, in eval mode {in_evaluation:.1f}")
assert in_training < 1e-5 and in_evaluation > 0.1

# %% [markdown]
# In train mode nothing is left but rounding: whatever a constant adds, the mean takes away.
# Such a bias cannot learn anything either, as nothing depends on it.
# In eval mode the shift does show, because the running mean knows the old bias.
# So the bias is idle, not harmless: you must not edit it after training.
#
# The bias of `conv3` has no BN behind it and does reach the output.
# It is only superfluous, because `bn2` adds a bias to the same sum (Exercise 5).
#
# Now the second difference.
# **Predict**: in train mode BN keeps the branch at a standard deviation of about 1.
# Is the shortcut's larger or smaller?
# What becomes of the two when the input grows tenfold?


# %% tags=["nbval-ignore-output", "reason: standard deviations differ in the last digits"]
def spread(out):
    return out.std((0, 2, 3)).mean().item()  # per channel, then averaged


mine.train()
for factor in (1, 10):
    with torch.no_grad():
        branch, shortcut = mine.g(factor * x), mine.conv3(factor * x)
        normalised = nn.BatchNorm2d(6)(shortcut)
    print(
        f"{factor:2d} x: branch {spread(branch):.2f}, shortcut {spread(shortcut):.2f}, "
        f"shortcut with BN {spread(normalised):.2f}"
    )
    assert abs(spread(branch) - 1) < 0.05 and abs(spread(normalised) - 1) < 0.05
    assert 0.05 < spread(shortcut) / factor < 0.4  # holds for seeds 0-7

# %% [markdown]
# The shortcut's is smaller here and grows tenfold with the input, while the branch stays where it was.
# Without BN the shortcut enters the sum at whatever scale the input and its convolution give.
# With BN both terms start at the same scale.
#
# Are these *all* the differences?
# If so, nothing should be left once they are gone.
#
# **Predict**: three biases of 6 go, one BN of 6 comes.
# Does your block gain or lose parameters?


# %%
def parameters(block):
    return sum(p.numel() for p in block.parameters())


print("mine as written:", parameters(mine))
for conv in (mine.conv1, mine.conv2, mine.conv3):
    conv.bias = None
mine.conv3 = nn.Sequential(mine.conv3, nn.BatchNorm2d(6))
print("mine changed:   ", parameters(mine), "  torchvision:", parameters(theirs))

theirs.load_state_dict(dict(zip(theirs.state_dict(), mine.state_dict().values())))
print("equal outputs:  ", torch.equal(mine.train()(x), theirs.train()(x)))
assert torch.equal(mine.eval()(x), theirs.eval()(x))

# %% [markdown]
# It loses 18 and gains 12, since a BN has a weight and a bias for each channel.
# Nothing else differs: the outputs are equal to the last bit, in both modes.
# `d2lres.BasicBlock` is built this way, so that it can take torchvision's weights.

# %% [markdown]
# ## Does the shortcut save arithmetic?
# One of the study notes that this course grew out of says that learning the residual means computing less.
# Arithmetic can be counted: here in **FLOPs**, floating-point operations, with a multiplication and an addition counted separately.
# BN, ReLU and pooling are left out; both networks have the same.
#
# **Predict**: two networks of 20 layers, plain-20 without shortcuts and residual-20 with them, get an image of 28×28.
# Which needs less, and by about what share: 10 %, 1 %, 0.1 %?

# %% tags=["claim:N14"]
from d2lres import cifar_resnet
from d2lres.probes import flops

image = torch.rand(1, 1, 28, 28)
networks = {
    "plain": cifar_resnet(20, in_channels=1, residual=False),
    "residual": cifar_resnet(20, in_channels=1),
    "residual, 1x1": cifar_resnet(20, in_channels=1, shortcut="B"),
}
count = {name: flops(network, image) for name, network in networks.items()}
print(f"{'':14s}{'convolution':>12s}{'linear':>8s}{'addition':>10s}{'more':>7s}")
for name, n in count.items():
    more = sum(n.values()) / sum(count["plain"].values()) - 1
    print(f"{name:14s}{n['convolution']:12,d}{n['linear']:8,d}{n['addition']:10,d}{more:7.1%}")
assert count["residual"] == {**count["plain"], "addition": 65_856}
assert count["residual, 1x1"]["convolution"] > count["plain"]["convolution"]

# %% [markdown]
# The plain network needs less, by 0.1 %.
# Residual-20 does everything that plain-20 does *and* 65,856 additions, one for each number that leaves one of its nine blocks.
# The row "residual" reaches new shapes by padding with zeros, which costs no FLOPs; with 1×1 convolutions the whole is 0.8 % dearer than plain-20.
# The ResNet paper calls the additions negligible (section 3.2); it never calls the shortcut a saving.

# %% [markdown]
# ## Pitfalls
# ### A missing 1×1 convolution
# It gave an error above.
# **Predict**: `FullBlock(1, 6)` on images with one channel, again without a 1×1 convolution: an error, or which shape?

# %%
grey = torch.rand(4, 1, 6, 6)
block = FullBlock(1, 6)
print(tuple(block(grey).shape))
copies = F.conv2d(grey, torch.ones(6, 1, 1, 1))  # a frozen 1x1 convolution, all ones
print(torch.allclose(block(grey), F.relu(block.g(grey) + copies)))

# %% [markdown]
# No error: the shape is (4, 6, 6, 6).
# PyTorch **broadcasts** a dimension of size 1: the grey image is copied into all six channels, as if the shortcut were a 1×1 convolution of ones that never learns.
# The network trains without the weights that you meant to give it, and nobody tells you.
# (The appendix shows how broadcasting hides forgotten padding, too.)
#
# `d2lres.Residual` compares the shapes first and refuses.

# %% tags=["raises-exception"]
Residual(1, 6)(grey)

# %% [markdown]
# ### `Y += X` or `X += Y`?
# The books add in place: `Y += X` overwrites the branch's result and saves memory.
# By commutativity `X += Y` should do as well.
#
# **Predict**: same output?
# Same gradient?
# And what has become of the caller's batch?


# %%
class Overwriting(Block):
    def forward(self, x):
        x += self.g(x)
        return F.relu(x)


block = Overwriting(3)
batch = x.clone()
print("same output:     ", torch.equal(block(batch), Block.forward(block, x)))
print("batch unchanged: ", torch.equal(batch, x))

# %% tags=["raises-exception"]
block(x.clone()).sum().backward()

# %% [markdown]
# The output is right, the caller's batch is ruined, and `backward` fails: the gradient of `conv1`'s weight needs the *x* that `conv1` saw, and the addition has overwritten it.
# Autograd counts the changes of every tensor that it has saved, and notices.
#
# `Y += X` is fine, because Y comes out of a BN, which has saved its input and not Y.
# The appendix tries this for other operations.
# When in doubt, write `Y = Y + X`.
#
# ### A misspelt `forward`
# Python lets you give a method any name.
# **Predict** when the typo below is noticed, and whether the message mentions it.

# %% tags=["claim:N19"]
import traceback


class Misspelt(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def foward(self, x):
        return F.relu(x + self.conv(x))


block = Misspelt(3)
print("built, parameters:", parameters(block))
try:
    block(x)
except NotImplementedError as error:
    places = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    print("called: NotImplementedError; names the typo:", "foward" in str(error))
    assert "foward" not in str(error) and "foward" not in places

# %% [markdown]
# The class, the object, its parameters: all fine.
# Only the call fails, inside PyTorch, with a `NotImplementedError` that says `forward` is missing and does not mention the typo; no line of your class appears in it.
# When you meet it, compare your method names letter by letter, and their indentation.

# %% [markdown]
# ## Exercises
# ### Exercise 1 (easy, 5 minutes): a forward that does not broadcast
# Write the forward of a block that behaves like `FullBlock`, but raises `ValueError` when shortcut and branch differ in any dimension.
# Leave the caller's *x* as it is.
#
# <details><summary>Hint</summary>Compute both first and compare their <code>.shape</code> before you add.</details>

# %%
from d2lres import Residual
from d2lres.checks import block as check


class CarefulBlock(FullBlock):
    def forward(self, x):
        """(N, input_channels, H, W) -> (N, num_channels, H', W'); ValueError if shapes differ.

        Use self.g(x), once, and self.conv3, which is None or a 1x1 convolution.
        """
        ### BEGIN SOLUTION
        shortcut = x if self.conv3 is None else self.conv3(x)
        branch = self.g(x)
        if branch.shape != shortcut.shape:
            raise ValueError(f"branch {branch.shape} and shortcut {shortcut.shape} differ")
        return F.relu(branch + shortcut)
        ### END SOLUTION


check.careful_block(CarefulBlock)

# %% [markdown]
# ### Exercise 2 (easy, 10 minutes): from shapes to arguments
# You know the shape that comes in and the one that should go out.
# Choose the arguments of `Residual`, with a 1×1 convolution only where one is needed.
#
# <details><summary>Hint</summary>The side is divided by the stride and rounded <em>up</em>: 7 with stride 2 gives 4, with stride 3 it gives 3.
# So neither 7 // 4 nor round(7 / 3) is the stride.</details>


# %%
def block_arguments(before: tuple, after: tuple) -> dict:
    """Arguments of Residual that turn maps of shape `before` into `after`.

    before, after: (C, H, W) with H = W. Returns a dict with the keys
    input_channels, num_channels, use_1x1conv, strides.
    """
    ### BEGIN SOLUTION
    return dict(
        input_channels=before[0],
        num_channels=after[0],
        use_1x1conv=before != after,
        strides=-(-before[1] // after[1]),
    )
    ### END SOLUTION


check.block_arguments(block_arguments)

# %% [markdown]
# ### Exercise 3 (medium, 15 minutes): three bugs, two of them silent
# This block should run a 1×1, a 3×3 and a 1×1 convolution, each with BN, the first two with ReLU, and add *x*.
# It was written in a hurry.
# One bug stops it when you build it.
# Repair that one and the block runs and returns the right shape, but it is still wrong twice: one bug keeps the other from showing.
#
# ```python
# class Hasty(nn.Module):
#     def __init__(self, channels):
#         super().__init__()
#         self.conv1 = nn.Conv2d(channels, channels, 1)
#         self.bn1 = nn.BatchNorm2d(channels)
#         self.conv2 = nn.Conv2d(channels, channels, 3)
#         self.bn2 = nn.BatchNorm2d(channels)
#         self.conv3 = nn.Conv2d(channels, channels)
#         self.bn3 = nn.BatchNorm2d(channels)
#
#     def forward(self, x):
#         out = F.relu(self.bn1(self.conv1(x)))
#         out = F.relu(self.bn2(self.conv2(out)))
#         out = self.bn3(self.conv3(x))
#         return F.relu(x + out)
# ```
#
# Write the repaired class.
# Keep the names of the layers.
#
# <details><summary>Hint</summary>After <code>backward()</code>, a layer that took no part has a gradient of <code>None</code>.
# Which ones are they here?
# Once they take part again, mind the sizes.</details>


# %%
class Repaired(nn.Module):
    """(N, channels, H, W) -> the same shape: ReLU(x + g(x)), g of three convolutions."""

    ### BEGIN SOLUTION
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(x + out)

    ### END SOLUTION


check.repaired(Repaired)

# %% [markdown]
# ### Exercise 4 (medium, 8 minutes): the identity through a 1×1 convolution
# A trained `Residual(c, c, use_1x1conv=True)` has a convolution on its shortcut that it does not need.
# Make the block the identity for x ≥ 0, in train mode and in eval mode, without taking anything out: change at most four of its parameter tensors, in place.
# (Three are enough.)
#
# <details><summary>Hint</summary>A 1×1 convolution multiplies the channels of each pixel by a matrix; which matrix passes them on, and what must its bias be?
# In *g*, the last BN computes weight · normalised + bias.
# Zeroing a convolution of *g* does not help, as the BN behind it still adds its bias.
# Change parameters inside <code>torch.no_grad()</code>.</details>


# %%
def make_identity(block: Residual) -> None:
    """Changes at most four parameters of `block` in place so that block(x) = x for all x >= 0.

    block: a trained Residual(c, c, use_1x1conv=True). In place means that the same `nn.Parameter`
    objects get new values, so that an optimizer made before still holds them.
    """
    ### BEGIN SOLUTION
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    nn.init.dirac_(block.conv3.weight)
    nn.init.zeros_(block.conv3.bias)
    ### END SOLUTION


check.make_identity(make_identity)

# %% [markdown]
# ### Exercise 5 (hard, 15 minutes): move the biases out
# You saw that biases in front of a BN are idle in train mode but not in eval mode, and that the third is superfluous.
# Set all three biases of a trained `Residual` with a 1×1 convolution to zero, and adjust other tensors so that its output stays the same in *both* modes.
#
# <details><summary>Hint</summary>For <code>conv1</code> and <code>conv2</code>, ask what the running mean of the BN behind them would be if the bias had always been zero.
# <code>conv3</code> has no BN behind it: its bias goes straight into the sum, and so does another bias.</details>


# %%
def without_biases(block: Residual) -> None:
    """Zeroes conv1.bias, conv2.bias and conv3.bias in place; the output stays the same.

    In place means that the same `nn.Parameter` objects get new values.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        block.bn1.running_mean -= block.conv1.bias
        block.bn2.running_mean -= block.conv2.bias
        block.bn2.bias += block.conv3.bias
        for conv in (block.conv1, block.conv2, block.conv3):
            conv.bias.zero_()
    ### END SOLUTION


check.without_biases(without_biases)

# %% [markdown]
# ## Summary
# | claim | verdict | evidence |
# |---|---|---|
# | a block forms x + g(x), and its branch learns the residual | holds; with g = 0 the block is the identity when x ≥ 0 | copying images with SGD shrank *g* where x > 0; with g = 0 the output was ReLU(x) |
# | a 1×1 convolution on the shortcut changes channels and resolution | holds | three shapes with it, three errors without it |
# | every convolution is followed by BN and ReLU | false | in the usual block, the addition stands between the second BN and its ReLU |
# | there are two kinds of block | holds | five identity blocks and three 1×1 blocks in the stages of ResNet-18 |
# | learning the residual computes less | false | at 20 layers and 28×28: 65,856 additions more, everything else equal |
# | a misspelt `forward` is noticed only at the call | holds | built without complaint; the error does not name the typo |
#
# Your block equals the ones of `d2lres` and `d2l` to the last bit, in both modes.
# torchvision's differs by a BN on the shortcut and by the biases: in train mode BN makes two of them idle, and the third is superfluous.

# %% [markdown]
# ## Appendix: four side paths
# ### The race with another optimiser
# The two blocks learn to copy again, with Adam and a learning rate of 0.01 in place of SGD, from two seeds.


# %% tags=["nbval-ignore-output", "reason: losses differ in the last digits between machines"]
def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


lead = {}
for seed in (0, 3):
    plain, residual = (
        learn_to_copy(kind, seed, make_optimizer=adam)[0][-1] for kind in (Plain, Block)
    )
    lead[seed] = plain / residual
    print(
        f"seed {seed}: error of the plain block {plain:.4f}, of the residual block {residual:.4f}"
    )
assert lead[0] > 1.5 and lead[3] < 0.9

# %% [markdown]
# With seed 0 the residual block is ahead after 60 steps, with seed 3 it is behind.
# Of seeds 0 to 4 it was ahead with four, and with seed 1 by 2 % only; with SGD it was ahead with all five, at least tenfold.
# The shortcut makes *copy* a small goal; how fast you get there depends on the optimiser, too.
#
# ### Odd sizes
# For odd sizes the branch rounds up, since its padding lets the window reach over the edge.
# The 1×1 convolution has no padding, and the two must still agree.
#
# **Predict**: is there an image size below 40 and a stride up to 4 for which they do not?


# %%
def sides_agree(size, strides):
    block = FullBlock(1, 2, use_1x1conv=True, strides=strides)
    image = torch.rand(1, 1, size, size)
    side = -(-size // strides)  # size / strides, rounded up
    with torch.no_grad():
        branch, shortcut = block.eval().g(image), block.conv3(image)
    return branch.shape == shortcut.shape == (1, 2, side, side)


all(sides_agree(size, strides) for size in range(1, 40) for strides in range(1, 5))

# %% [markdown]
# There is none: a 3×3 window with padding 1 and a 1×1 window without padding stop at the same pixels, and the side is the size divided by the stride, rounded up.
#
# ### Forgotten padding
# Broadcasting hides forgotten padding at exactly one of the sizes 8, 7, 6 and 5.
# **Predict** which, before you run:

# %%
for size in (8, 7, 6, 5):
    image = torch.rand(4, 3, size, size)
    g = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
    )
    try:
        print(size, "branch", tuple(g(image).shape), "sum", tuple((image + g(image)).shape))
    except RuntimeError:
        print(size, "branch", tuple(g(image).shape), "fails")

# %% [markdown]
# At 5×5 the branch shrinks to one number per channel, and the sum spreads it over the image.
#
# ### What each operation saves
# In-place addition fails where it overwrites what an operation has saved for `backward`.
# **Predict** for which of these you may change the *output* in place.

# %%
operations = {
    "conv": nn.Conv2d(3, 3, 3, padding=1),
    "batch norm": nn.BatchNorm2d(3),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "square": torch.square,
}
source = x.clone().requires_grad_()
for name, operation in operations.items():
    y = operation(source)
    y += x
    try:
        y.sum().backward()
        print(f"{name:12s} fine")
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        print(f"{name:12s} backward fails")

# %% [markdown]
# For convolution, BN and square, which save their input; ReLU, sigmoid and exp save their output.
# Had the branch ended in a ReLU, as the common description has it, the in-place addition would fail in the first training step.
# `ReLU(inplace=True)` after the addition is safe: a sum saves nothing.

# %% [markdown]
# ## Further reading
# - K. He, X. Zhang, S. Ren, J. Sun, *Deep Residual Learning for Image Recognition*, 2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385): sections 3.1 and 3.2 for the block, 4.1 for shortcut options A, B and C.
# - K. He and others, *Identity Mappings in Deep Residual Networks*, 2016, [arXiv:1603.05027](https://arxiv.org/abs/1603.05027): section 4.1 tries other places for ReLU and BN and measures each.
# - S. Ioffe, C. Szegedy, *Batch Normalization*, 2015, [arXiv:1502.03167](https://arxiv.org/abs/1502.03167): section 3.2 on the bias that is not needed.
# - P. Goyal and others, *Accurate, Large Minibatch SGD*, 2017, [arXiv:1706.02677](https://arxiv.org/abs/1706.02677): section 5.1 starts the last BN of each block at zero, as in Exercise 4.
# - A. Zhang and others, *Dive into Deep Learning*, [section 8.6](https://d2l.ai/chapter_convolutional-modern/resnet.html).
# - PyTorch, [Autograd mechanics](https://pytorch.org/docs/stable/notes/autograd.html): saved tensors and in-place operations.
