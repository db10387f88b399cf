# %% [markdown]
# # Degradation
# You make a network deeper, and it gets worse on the very images it is trained on.
# Here you produce this effect, rule out the obvious explanations, and find out what remains.
#
# **You can afterwards** show that more layers can mean worse *training* error.
#
# **What you will learn**
# - when a larger class of functions is sure to be at least as good, and when it is not
# - how to build a 56-layer network that computes exactly what an 8-layer one computes
# - how to measure **degradation**: a deeper plain network with a higher *training* error
# - why neither overfitting nor missing batch normalisation explains it
# - how a short run can point the wrong way
#
# **What you need**: PyTorch's `nn.Module`, convolution, and chapter 0 for how the cells work. **Minutes**: 75, half of them for the exercises.

# %% tags=["setup"]

# %% [markdown]
# ## Larger is not the same as better
# A network of fixed architecture is a **function class**: all the functions you get by choosing its weights.
# Training searches the class for a good one.
# Before networks, take a class you can search perfectly: sums of a few powers of *x*, fitted by least squares.
#
# The goal is sin(3*x*) between -1 and 1.
# Both families below have *k* coefficients at size *k*.
# The first takes the powers 0 to *k* - 1.
# The second takes *k* odd powers when *k* is odd, and *k* even powers when *k* is even.
#
# **Predict**: at which size does the second family fit best, and at which sizes worst?
# Remember that sin(3*x*) is an odd function.

# %% tags=["claim:N2"]
import torch

x = torch.linspace(-1, 1, 201, dtype=torch.float64)
goal = torch.sin(3 * x)


def best_error(powers):
    """Root mean square error of the best sum of these powers of x."""
    features = torch.stack([x**p for p in powers], dim=1)
    weights = torch.linalg.lstsq(features, goal[:, None]).solution
    return (features @ weights - goal[:, None]).square().mean().sqrt().item()


nested = [best_error(range(k)) for k in (1, 2, 3, 4)]
other = [best_error(range(k % 2, 2 * k, 2)) for k in (1, 2, 3, 4)]
print("size         1      2      3      4")
print("nested  ", *(f"{error:6.3f}" for error in nested))
print("other   ", *(f"{error:6.3f}" for error in other))
assert all(b <= a + 1e-9 for a, b in zip(nested, nested[1:]))  # never worse with size
assert other[3] > other[2] + 0.5 and other[1] > other[0] + 0.2  # size alone promises nothing

# %% [markdown]
# Three odd powers are almost perfect.
# Four even ones fail completely: the best they can do is to answer 0, so a single odd power beats them.
#
# The first family never gets worse.
# Its classes are **nested**: each contains the one before, because a new coefficient can be 0.
# When it helps, the error drops; when it does not, as for size 3, the error stays.

# %%
from d2lres import figures

figures.show("function_classes")

# %% [markdown]
# The picture behind the numbers: *f*\* is the goal, and each region a class.
# On the left, the largest class is farther from the goal than the smallest.
# On the right, growing cannot hurt.
#
# Keep the trick in mind: *the larger class copies the smaller one by setting what is new to 0.*

# %% [markdown]
# ## A deep network that contains a shallow one
# Can a network do the same?
# Take a residual block, two convolutions whose result is added to the block's input.
# Chapter 2 builds it; here you need its last lines: `out = bn2(conv2(out))`, then `relu(out + x)`.
#
# **Predict**: set weight and bias of `bn2` to 0.
# What does the block return for an input *x* without negative numbers?
# And for any *x*?

# %%
from d2lres import BasicBlock


def silent(channels, residual=True):
    """A block whose two convolutions contribute exactly 0."""
    block = BasicBlock(channels, channels, residual=residual)
    torch.nn.init.zeros_(block.bn2.weight)
    torch.nn.init.zeros_(block.bn2.bias)
    return block


torch.manual_seed(0)
maps, block = torch.randn(2, 8, 14, 14), silent(8)
print("x without negatives:", torch.equal(block(maps.relu()), maps.relu()))
print("any x:              ", torch.equal(block(maps), maps))

# %% [markdown]
# The sum is x + 0, and ReLU leaves x alone only where x is not negative.
# Inside a network this is always so: the block before has ended with a ReLU. So a silent block may be put after any block.
#
# Train a network of 8 layers for one epoch, and lengthen it by 8 silent blocks in each of its three stages.
# The 8 layers are one convolution, three stages of one block each, and a linear layer; the 24 new blocks add 48.
# `probes.weight_layers` lists them all.
#
# **Predict**: how close are the outputs of the two networks?
# To the first digit, to the sixth, or to the last bit?

# %%
import copy

from d2lres import cifar_resnet, probes
from d2lres.data import fashion_mnist
from d2lres.training import fit


def grow(net, extra, new_block):
    """A copy of `net` with `extra` more blocks at the end of each stage."""
    net = copy.deepcopy(net)
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.extend([new_block(stage[-1].conv2.out_channels) for _ in range(extra)])
    return net


train, _ = fashion_mnist(size=14)  # 14x14 pixels: a quarter of the arithmetic
images, _ = train[:256].tensors()

# %% tags=["claim:N2"]
torch.manual_seed(0)
shallow = cifar_resnet(8, in_channels=1, width=8)
fit(shallow, train, epochs=1, device="cpu")
deep = grow(shallow, 8, silent)
print("layers:", len(probes.weight_layers(shallow)), "and", len(probes.weight_layers(deep)))
for mode in (True, False):
    same = torch.equal(shallow.train(mode)(images), deep.train(mode)(images))
    assert same
    print("train mode:" if mode else "eval mode: ", "equal to the last bit:", same)

# %% [markdown]
# To the last bit, in both modes.
# Every function that the 8-layer residual network computes, the 56-layer one computes, too.
# The two classes are nested, and the best 56-layer network cannot be worse on the training images.

# %% [markdown]
# ## Does the plain network contain it, too?
# A **plain** network has no additions: each block returns `relu(out)`.
#
# **Predict**: what do 24 silent blocks do to a plain network?

# %%
torch.manual_seed(0)
shallow = cifar_resnet(8, in_channels=1, width=8, residual=False)
fit(shallow, train, epochs=1, device="cpu")
shallow.eval()

dead = grow(shallow, 8, lambda channels: silent(channels, residual=False)).eval()
with torch.no_grad():
    answers = dead(images)
print("same answer to every image:", torch.allclose(answers, dead.fc.bias.expand_as(answers)))

# %% [markdown]
# Zeros no longer copy the input, they erase it: only the bias of the last layer is left.
# One way for a plain block to pass its input on is a kernel with a 1 in the centre of the right channel and 0 everywhere else.
# `nn.init.dirac_` writes such kernels.
#
# **Predict**: with them, does a plain network of 56 layers classify as the one of 8 layers does, in eval mode?


# %% tags=["claim:N2"]
def relay(channels):
    """A plain block that passes on what it gets, if nothing in it is negative."""
    block = BasicBlock(channels, channels, residual=False)
    torch.nn.init.dirac_(block.conv1.weight)
    torch.nn.init.dirac_(block.conv2.weight)
    return block


deep = grow(shallow, 8, relay).eval()
with torch.no_grad():
    before, after = shallow(images), deep(images)
apart = (after - before).abs().max() / before.abs().max()
print("layers:", len(probes.weight_layers(deep)))
print("outputs agree to one part in a thousand:", bool(apart < 1e-3))
assert apart < 1e-3  # not to the last bit: 48 batch norms divide by sqrt(1 + 0.00001)

# %% [markdown]
# It does, in eval mode.
# But training lowers the *train-mode* loss, in which each BN rescales to the batch.
# So each new BN must give back what it takes: its weight becomes the standard deviation of its input, its bias the mean.
#
# **Predict**: with such weights and biases, how close does the deep network come to the shallow one in train mode?


# %%
import torch.nn.functional as F


@torch.no_grad()
def give_back(net, x):
    """Set every new BN, in the order they run, so that it returns the maps of batch x as they are."""

    def measure(bn, args):
        var, mean = torch.var_mean(args[0], (0, 2, 3), correction=0)
        bn.weight.copy_((var + bn.eps).sqrt())
        bn.bias.copy_(mean)

    new = [block for stage in (net.layer1, net.layer2, net.layer3) for block in stage[1:]]
    hooks = [bn.register_forward_pre_hook(measure) for b in new for bn in (b.bn1, b.bn2)]
    net.train()(x)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def train_mode_loss(net):
    net, batches = copy.deepcopy(net).train(), train.batches(100)
    return sum(F.cross_entropy(net(x), y).item() for x, y in batches) / (len(train) / 100)


# %% tags=["claim:N2", "nbval-ignore-output", "reason: losses differ in the last digits between machines"]
print(f"train mode: shallow, 8 layers        loss {train_mode_loss(shallow):.3f}")
print(f"            relay, BN as it comes    loss {train_mode_loss(deep):.3f}")
give_back(deep, images)
print(f"            relay, BN gives back     loss {train_mode_loss(deep):.3f}")
with torch.no_grad():
    before, after = copy.deepcopy(shallow).train()(images), deep.train()(images)
apart = (after - before).abs().max() / before.abs().max()
print(f"on the batch that set the BN, outputs differ by one part in {1 / apart:,.0f}")
assert apart < 1e-3 and train_mode_loss(deep) < train_mode_loss(shallow) + 0.02  # seeds 0-4

# %% [markdown]
# On the batch that has set the BN, equal up to rounding; over all batches, the loss differs in the third digit.
#
# This matters more than it seems to.
# Often degradation is explained by classes that are not nested.
# But up to rounding the 56-layer plain network *can* compute what the 8-layer one computes, in eval mode and on a batch in train mode; He et al. argue so in section 1.
# **A solution exists.**
# If training ends with something worse, the search failed and not the class.
#
# The difference lies in how the copy is written.
# A residual block becomes a copy by two vectors of zeros.
# A plain block needs two exact kernels, and in train mode the right scale and shift in each BN.

# %% [markdown]
# ## The experiment
# Train plain and residual networks of 8, 20 and 56 layers on the 6,000 images of the sample, with everything else equal.
# **Training error** is the share of training images that the finished network gets wrong.
#
# **Predict** the order of the three plain networks after two epochs, from best to worst.
# And is the residual network of 56 layers better or worse than its plain twin?
# Six networks train here, so give the cell a minute.

# %%
from d2lres.records import recorded
from d2lres.training import evaluate

settings = recorded("degradation")["config"]  # of the long run below, for more epochs and seeds
train, test = fashion_mnist(settings["subset"], size=settings["size"])
short = []
for kind in settings["kinds"]:
    for depth in settings["depths"]:
        torch.manual_seed(0)
        residual = kind == "residual"
        net = cifar_resnet(depth, in_channels=1, width=settings["width"], residual=residual)
        fit(net, train, epochs=2, lr=settings["lr"], batch_size=settings["batch_size"])
        scores = {"train": evaluate(net, train)._asdict(), "test": evaluate(net, test)._asdict()}
        short.append({"kind": kind, "depth": depth, **scores})

# %% tags=["claim:N1", "nbval-ignore-output", "reason: losses and errors differ in the last digits between machines"]
from statistics import median


def table(runs):
    """One line per kind and depth, medians over the seeds, measured on the finished networks."""
    print("                training loss   training error   test error")
    for kind, depth in sorted({(run["kind"], run["depth"]) for run in runs}):
        mine = [run for run in runs if (run["kind"], run["depth"]) == (kind, depth)]
        loss = median(run["train"]["loss"] for run in mine)
        errors = [100 * (1 - median(run[s]["accuracy"] for run in mine)) for s in ("train", "test")]
        print(f"{kind:>8}-{depth:<2} {loss:15.3f} {errors[0]:14.1f} % {errors[1]:10.1f} %")


table(short)
loss = {(run["kind"], run["depth"]): run["train"]["loss"] for run in short}
assert loss["plain", 20] > loss["plain", 8] + 0.03  # these three hold for seeds 0-4
assert loss["plain", 56] > loss["plain", 20] + 0.2
assert loss["plain", 56] > loss["residual", 56] + 0.4

# %% tags=["nbval-ignore-output", "reason: the points differ a little between machines"]
depths = [8, 20, 56]
end = {(kind,): (depths, [loss[kind, d] for d in depths]) for kind in ("plain", "residual")}
figures.show(figures.lines(end, "depth (layers)", "training loss", title="After two epochs"))
assert max(loss, key=loss.get) == ("plain", 56)

# %% [markdown]
# From best to worst it is 8, 20, 56: each step in depth makes the plain network worse.
# Seeds 0 to 4 agree on this order.
# The residual network of 56 layers is far ahead of its plain twin.
# In this run it is no better than the shallower residual ones; watch it in the long run below.
#
# But be careful.
# Two epochs show which network is *slower*.
# Whether the deep plain one arrives later or never, they cannot show.

# %% [markdown]
# ## Slower or stuck?
# The long run was recorded once, by `python -m d2lres experiment degradation`: the same 6,000 images (the sample, not the full 60,000), 40 epochs, five seeds.
# Its learning rate rises during the first 30 % of the run and then sinks to zero, so that each network settles.
# So epoch 2 of this run is not the end of the two-epoch run above.
#
# **Predict**: after 40 epochs, which of the three plain networks has the lowest training loss, in the median of five seeds?

# %%
from d2lres.training import History

record = recorded("degradation")
nets = {}
for run in sorted(record["runs"], key=lambda run: (run["kind"], run["depth"], run["seed"])):
    nets.setdefault((run["kind"], run["depth"]), []).append(run)
for key in ("subset", "epochs", "seeds", "batch_size", "lr"):
    print(f"{key:11}", record["config"][key])
curves = {net: [History(**run["history"]) for run in runs] for net, runs in nets.items()}
figures.show(figures.learning_curves(curves, title="40 epochs, five seeds", log="y"))

# %% [markdown]
# Thin lines are seeds, thick ones medians; the scale is logarithmic.
# Here are all six networks as they are at the end, in the same table as before and by depth:


# %% tags=["claim:N1"]
def error(kind, depth, part="train"):
    """Error of the finished networks on their training (or "test") images, one entry per seed."""
    return [1 - run[part]["accuracy"] for run in nets[kind, depth]]


table(record["runs"])
by_seed = {
    (kind,): (depths, 100 * torch.tensor([error(kind, d) for d in depths]).T)
    for kind in ("plain", "residual")
}
figures.show(figures.lines(by_seed, "depth (layers)", "training error at the end (%)"))
assert max(error("plain", 8) + error("plain", 20)) < 0.01
assert min(error("plain", 56)) > 0.02
assert max(error("residual", 56)) < 0.01
loss = {net: median(run["train"]["loss"] for run in nets[net]) for net in nets}
assert loss["plain", 20] < loss["plain", 8] < loss["plain", 56] / 10

# %% [markdown]
# The one of 20 layers, by a little: 0.009 against 0.012 with 8 layers.
# Both end with less than 1 % training error, for every seed.
# What looked like a deficit of the 20 layers after two epochs is gone: they were only *slower*.
#
# The plain networks of 56 layers do not catch up, with any seed: 13 to 23 % of the training images are wrong when the learning rate runs out.
# They are *stuck*, as far as this schedule goes.
# The residual networks of 56 layers fit nearly every image.
#
# Would twice the epochs free the plain ones?
# This record cannot tell.
# He et al. tried three times as many iterations on ImageNet, and degradation was still there (footnote in section 4.1).

# %% [markdown]
# ## Is it overfitting?
# **Overfitting** means: good on the training images, bad on new ones.
# Then a network with more capacity has the *lower* training error and the higher test error.
#
# The figure above shows the training errors of all seeds: 56 plain layers are worse than 20.
#
# **Predict**: for how many of the five seeds are they worse on the *test* images, too?

# %%
print("seed   training error: 20, 56 layers     test error: 20, 56 layers")
for seed, *values in zip(
    record["config"]["seeds"],
    error("plain", 20),
    error("plain", 56),
    error("plain", 20, "test"),
    error("plain", 56, "test"),
):
    print("{:>4} {:>20.1%} {:>8.1%} {:>20.1%} {:>8.1%}".format(seed, *values))
for part in ("train", "test"):
    assert all(b > a for a, b in zip(error("plain", 20, part), error("plain", 56, part)))
others = [net for net in nets if net != ("plain", 56)]
assert all(max(error(*net)) < 0.01 and min(error(*net, "test")) > 0.10 for net in others)

# %% [markdown]
# For all five, worse on both.
# This is no overfitting.
#
# All other networks show the gap that overfitting means: hardly any training error and a test error over ten percent.
# That is a problem, too, but a different one with different remedies.
# Only the plain networks of 56 layers fail on their own training images.

# %% [markdown]
# ## Is batch normalisation missing?
# **Batch normalisation** (BN) shifts and scales each channel to mean 0 and standard deviation 1 over the batch.
# One of the notes says that it steadies the values inside the network and yet does not remove the problem.
# Both halves can be tested.
#
# **Predict**: take an untrained plain network of 56 layers.
# By which factor is the standard deviation at its last convolution smaller without BN than after the BN that follows it: 1, 10, or more than 100?

# %% tags=["claim:N9", "nbval-ignore-output", "reason: the spread without BN differs in its digits between machines"]
from torch import nn


def watch(net, kinds, look):
    """look(module, output) of each module of these kinds, in the order they run."""
    found = []
    for module in (module for module in net.modules() if isinstance(module, kinds)):
        module.register_forward_hook(lambda module, args, out: found.append(look(module, out)))
    with torch.no_grad():
        net(images)
    return found


torch.manual_seed(0)
net = cifar_resnet(56, in_channels=1, width=8, residual=False)
with_bn = watch(copy.deepcopy(net), nn.BatchNorm2d, lambda module, out: out.std().item())
for name, module in list(net.named_modules()):  # the same weights without BN
    if isinstance(module, nn.BatchNorm2d):
        net.set_submodule(name, nn.Identity())
without = watch(net, nn.Conv2d, lambda module, out: out.std().item())
print(f"with BN    first {with_bn[0]:.3f}   last {with_bn[-1]:.3f}")
print(f"without    first {without[0]:.3f}   last {without[-1]:.5f}")
print(f"at the end a factor of {with_bn[-1] / without[-1]:.0f}")
assert max(abs(spread - 1) for spread in with_bn) < 0.01
assert with_bn[-1] / without[-1] > 100  # for seeds 0-4

# %% [markdown]
# More than 100: seeds 0 to 4 gave 235 to 15,000.
# Before training, BN does what the note says: the spread is 1 after every BN, by construction, while without BN the signal fades on its way.
# Now, are all layers of the plain networks in this chapter protected?

# %% tags=["claim:N9"]
for depth in (8, 20, 56):
    net = cifar_resnet(depth, in_channels=1, width=8, residual=False)
    ran = watch(net, (nn.Conv2d, nn.BatchNorm2d), lambda module, out: type(module))
    assert ran == [nn.Conv2d, nn.BatchNorm2d] * (depth - 1)
    print(f"plain-{depth}: {ran.count(nn.Conv2d)} convolutions, each followed by BN")
assert all(b > a + 0.02 for a, b in zip(error("plain", 20), error("plain", 56)))  # and still

# %% [markdown]
# Every convolution has its BN, and with every seed the 56 layers end more than two points above the 20.
# The second half of the claim holds as well.
#
# So at the start the values on their way forward are in order.
# The gradients on their way back are another matter, and chapter 4 measures them and tests what is to blame.

# %% [markdown]
# ## The paper's numbers and ours
# He et al. saw it on ImageNet, at 18 and 34 layers (table 2, top-1 error on validation images).
# Ours are 20 and 56 layers on the sample, error on test images.
#
# **Predict**: in the paper, by how many points do the deeper networks differ from the shallower ones, plain and residual?

# %%
paper = {"plain": (27.94, 28.54), "residual": (27.88, 25.03)}
print("           paper: 18, 34 layers, change      ours: 20, 56 layers, change")
change = {}
for kind in ("plain", "residual"):
    ours = [100 * median(error(kind, depth, "test")) for depth in (20, 56)]
    change[kind] = ours[1] - ours[0]
    print(
        "{:8} {:13.2f} {:6.2f} {:+7.2f} {:17.2f} {:6.2f} {:+7.2f}".format(
            kind, *paper[kind], paper[kind][1] - paper[kind][0], *ours, change[kind]
        )
    )
assert change["plain"] > 2 > change["residual"]

# %% [markdown]
# In the paper depth costs the plain network 0.6 points and gains the residual one almost 3.
#
# Ours agree in sign for the plain networks: depth costs, and more than in the paper.
# For the residual ones there is no gain to see: less than two points either way.
# Depths, width, images and their number all differ between the two, so this comparison cannot say which of these makes the difference.
#
# For small images, the CIFAR-10 experiment, the paper prints a table for residual networks only.
# Its plain ones are curves in figure 6; the plain network of 110 layers stays above 60 % error.
#
# 'With shortcuts, deeper is better' is often heard.
#
# **Predict** for the record's residual networks: with how many of the five seeds is the test error smaller with 20 layers than with 8, and with 56 than with 20?

# %% tags=["claim:F6"]
better = {}
for fewer, more in ((8, 20), (20, 56)):
    pairs = zip(error("residual", fewer, "test"), error("residual", more, "test"))
    better[more] = sum(b < a for a, b in pairs)
    print(f"{more} residual layers beat {fewer} with {better[more]} of 5 seeds")
assert better[20] == 5 and better[56] < 3

# %% [markdown]
# With all five, and with one.
# On this sample more residual layers help up to a point; beyond it they cost 0.6 points in the median, and the plain ones more than 7.

# %% [markdown]
# ## Pitfalls
# **The two networks differ in more than you think.**
# A fair comparison has the same number of parameters and the same initial weights.
# The second needs a seed before *each* construction.


# %%
def twins(depth, seed_both):
    torch.manual_seed(0)
    plain = cifar_resnet(depth, in_channels=1, width=8, residual=False)
    if seed_both:
        torch.manual_seed(0)
    return plain, cifar_resnet(depth, in_channels=1, width=8)


for seed_both in (False, True):
    plain, residual = (net.state_dict() for net in twins(56, seed_both))
    print(
        "seed set before each:" if seed_both else "seed set once:       ",
        "same shapes:",
        [v.shape for v in plain.values()] == [v.shape for v in residual.values()],
        "  same weights:",
        all(torch.equal(plain[name], residual[name]) for name in plain),
    )

# %% [markdown]
# The second network takes its weights from where the first one left the random numbers.
# With the seed set once, you compare two things at the same time.
#
# **A look at a quarter of the run misleads.**
# In the record, compare the training loss of 8 and 20 plain layers, epoch by epoch.

# %%
ahead = {}
for epoch in (5, 10, 20, 30, 40):
    ahead[epoch] = sum(
        more.loss[epoch - 1] < fewer.loss[epoch - 1]
        for fewer, more in zip(curves["plain", 8], curves["plain", 20])
    )
    print(f"epoch {epoch:2}: 20 plain layers are ahead for {ahead[epoch]} of 5 seeds")
assert ahead[10] == 0 and ahead[40] >= 4

# %% [markdown]
# At epoch 10 the 8 layers lead for all five seeds, at the end the 20 layers for at least four.
# Both fit nearly every image by then, so call it a tie.
# With 56 layers no such turn comes.
#
# **Test error alone cannot tell two illnesses apart.**
# Overfitting and degradation both raise it.
# Look at the training error first.
# Low: overfitting.
# High although a solution is known to exist, as here: the search failed.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (easy, 5 minutes): from depth to blocks
# A network of this family has one convolution, three stages of *n* blocks with two convolutions each, and one linear layer.
# Compute *n*, and how often the residual version adds.
# <details><summary>Hint</summary>Solve depth = 1 + 3 · 2n + 1 for n. Each block adds once. <code>divmod</code> gives quotient and remainder.</details>

# %%
import torch
from torch import nn

from d2lres.checks import degradation as check


def anatomy(depth: int) -> tuple[int, int]:
    """(blocks per stage, additions in the whole network) of the network with `depth` layers.

    Raises ValueError if no network of the family has this depth; the smallest has 8.
    """
    ### BEGIN SOLUTION
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"depth must be 6n + 2 with n of at least 1, not {depth}")
    return n, 3 * n
    ### END SOLUTION


check.anatomy(anatomy)

# %% [markdown]
# ### Exercise 2 (medium, 10 minutes): nested or not
# A linear class is given by a matrix of features, one function per column, one point per row.
# The class is every weighted sum of the columns.
# Decide whether one class contains another.
# <details><summary>Hint</summary>If the large class already contains the small one, then its columns and those of the small one side by side span no more than its own. <code>torch.linalg.matrix_rank</code> counts how many columns are independent.</details>


# %%
def contains(large: torch.Tensor, small: torch.Tensor) -> bool:
    """Whether every weighted sum of the columns of `small` is one of columns of `large`.

    large: float64 (points, a).  small: float64 (points, b). Columns may repeat each other.
    """
    ### BEGIN SOLUTION
    both = torch.cat([large, small], dim=1)
    return bool(torch.linalg.matrix_rank(both) == torch.linalg.matrix_rank(large))
    ### END SOLUTION


check.contains(contains)

# %% [markdown]
# ### Exercise 3 (medium, 10 minutes): silence any block
# Deep networks use a second kind of block, the **bottleneck**, with three convolutions and `bn1`, `bn2`, `bn3`.
# Write a function that silences either kind and leaves everything else ready to learn.
# <details><summary>Hint</summary>Only the last batch norm before the addition decides: <code>bn3</code> if the block has one, else <code>bn2</code>. A batch norm multiplies by its weight and adds its bias. A block whose <code>downsample</code> is not None changes its input on the shortcut.</details>


# %%
def silence(block: nn.Module) -> nn.Module:
    """Change a trained `d2lres.BasicBlock` or `Bottleneck` in place: it passes on its input.

    (N, C, H, W) without negative numbers comes out unchanged, in train and in eval mode. All other
    tensors stay. Returns the block itself. If `block.downsample` is not None, raises ValueError and
    changes nothing.
    """
    ### BEGIN SOLUTION
    if block.downsample is not None:
        raise ValueError("the shortcut changes its input, so this block cannot be an identity")
    last = block.bn3 if hasattr(block, "bn3") else block.bn2
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return block
    ### END SOLUTION


check.silence(silence)

# %% [markdown]
# ### Exercise 4 (medium, 10 minutes): read a record
# The **degradation gap** is what depth costs: training error of the deep plain network minus that of the shallow one, for the same seed.
# Compute it from a list of runs like `record["runs"]`.
# <details><summary>Hint</summary>Each run is a dictionary: <code>run["kind"]</code>, <code>run["depth"]</code>, <code>run["seed"]</code> and <code>run["train"]["accuracy"]</code>, a fraction. Collect the errors by (depth, seed) first; the runs come in no particular order.</details>


# %%
def gaps(runs: list[dict], shallow: int, deep: int) -> dict[int, float]:
    """For each seed the gap between plain networks of `deep` and `shallow` layers, -1 to 1.

    The error is that of the finished network on its training images. Where the deep network is
    better, the gap is negative.
    """
    ### BEGIN SOLUTION
    errors = {
        (run["depth"], run["seed"]): 1 - run["train"]["accuracy"]
        for run in runs
        if run["kind"] == "plain"
    }
    seeds = sorted({seed for _, seed in errors})
    return {seed: errors[deep, seed] - errors[shallow, seed] for seed in seeds}
    ### END SOLUTION


check.gaps(gaps)

# %% [markdown]
# ## Summary
# - A larger function class is sure to be at least as good only if it contains the smaller one (least squares: nested errors never rise, the others do).
# - A 56-layer residual network can equal an 8-layer one to the last bit: 24 blocks with two vectors of zeros each.
# - A 56-layer plain network can equal an 8-layer one, too, up to rounding: in eval mode, and on a batch in train mode.
# - Training does not find it: 56 plain layers end with a higher training error than 20, for five of five seeds (40 epochs, 6,000 images), although every convolution has its batch norm.
#   56 residual layers do not.
# - It is not overfitting: the training error rises.
# - Slower and stuck look alike in a short run: 20 plain layers were slower, 56 are stuck for this schedule.
#
# ## Further reading
# - Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): section 1 for the argument by construction, section 4.1 and table 2 for ImageNet, section 4.2 and figure 6 for small images.
# - Aston Zhang, Zachary C. Lipton, Mu Li, Alexander J. Smola, *Dive into Deep Learning*, section 8.6.1, Function Classes.
# - Sergey Ioffe, Christian Szegedy, *Batch Normalization*, 2015 (arXiv 1502.03167): section 3.
