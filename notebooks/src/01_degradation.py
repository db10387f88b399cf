# %% [markdown]
# # Chapter 1. Degradation
# You make a network deeper, and it gets worse on the very images it is trained on. Here you produce this effect, rule out the obvious explanations, and find out what remains.
#
# **What you will learn**
# - when a larger class of functions is sure to be at least as good, and when it is not
# - how to build a 56-layer network that computes exactly what an 8-layer one computes
# - how to measure **degradation**: a deeper plain network with a higher *training* error
# - why neither overfitting nor missing batch normalisation explains it
# - how a short run can point the wrong way
#
# **What you need**: PyTorch's `nn.Module`, convolution, and chapter 0 for how the cells work. **Minutes**: 40.

# %% tags=["setup"]

# %% [markdown]
# ## Larger is not the same as better
# A network of fixed architecture is a **function class**: all the functions you get by choosing its weights. Training searches the class for a good one. Before networks, take a class you can search perfectly: sums of a few powers of *x*, fitted by least squares.
#
# The goal is sin(3*x*) between -1 and 1. Both families below have *k* coefficients at size *k*. The first takes the powers 0 to *k* - 1. The second takes *k* odd powers when *k* is odd, and *k* even powers when *k* is even.
#
# **Predict**: which of the eight fits is the worst? Remember that sin(3*x*) is an odd function.

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
# The largest class of the second family shares the last place: four even powers fit no better than two, for the best they can do is to answer 0. One odd power beats them.
#
# The first family never gets worse. Its classes are **nested**: each contains the one before, because a new coefficient can be 0. When it helps, the error drops; when it does not, as for size 3, the error stays.

# %%
from d2lres import figures

figures.show(figures.function_classes())

# %% [markdown]
# The picture behind the numbers: *f*\* is the goal, and each region a class. On the left, the largest class is farther from the goal than the smallest. On the right, growing cannot hurt.
#
# Keep the trick in mind: *the larger class copies the smaller one by setting what is new to 0.*

# %% [markdown]
# ## A deep network that contains a shallow one
# Can a network do the same? Take a residual block, two convolutions whose result is added to the block's input. Chapter 2 builds it; here you need its last lines: `out = bn2(conv2(out))`, then `relu(out + x)`.
#
# **Predict**: set weight and bias of `bn2` to 0. What does the block return for an input *x* without negative numbers? And for any *x*?

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
# The sum is x + 0, and ReLU leaves x alone only where x is not negative. Inside a network this is always so: the block before has ended with a ReLU. So a silent block may be put after any block.
#
# Train a network of 8 layers for one epoch, and lengthen it by 8 silent blocks in each of its three stages: 48 new layers, all with random convolutions.
#
# **Predict**: how close are the outputs of the two networks? To the first digit, to the sixth, or to the last bit?

# %% tags=["claim:N2"]
import copy

from d2lres import cifar_resnet, probes
from d2lres.data import fashion_mnist
from d2lres.training import evaluate, fit


def grow(net, extra, new_block):
    """A copy of `net` with `extra` more blocks at the end of each stage."""
    net = copy.deepcopy(net)
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.extend([new_block(stage[-1].conv2.out_channels) for _ in range(extra)])
    return net


train, test = fashion_mnist(size=14)
images, labels = train[:256].tensors()
torch.manual_seed(0)
shallow = cifar_resnet(8, in_channels=1, width=8)
fit(shallow, train, epochs=1, device="cpu")
deep = grow(shallow, 8, silent)
print("layers:", len(probes.weight_layers(shallow)), "and", len(probes.weight_layers(deep)))
for mode in (True, False):
    same = torch.equal(shallow.train(mode)(images), deep.train(mode)(images))
    print("train mode:" if mode else "eval mode: ", "equal to the last bit:", same)
    assert same

# %% [markdown]
# To the last bit, in both modes. Every function that the 8-layer residual network computes, the 56-layer one computes, too. The two classes are nested, and the best 56-layer network cannot be worse on the training images.
#
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
# Zeros no longer copy the input, they erase it: only the bias of the last layer is left. To pass its input on, a plain block has to learn kernels with a 1 in the centre of the right channel and 0 everywhere else. `nn.init.dirac_` writes such kernels.
#
# **Predict**: with them, does a plain network of 56 layers classify as the one of 8 layers does?

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
# It does. This matters more than it seems to. Often degradation is explained by classes that are not nested. But up to rounding the 56-layer plain network *can* compute what the 8-layer one computes; He et al. argue so in section 1. **A solution exists.** If training ends with something worse, the search failed and not the class.
#
# The difference lies in how the copy is reached. The residual block needs zeros. The plain block needs one exact pattern in every kernel of every new layer.

# %% [markdown]
# ## The experiment
# Train plain and residual networks of 8, 20 and 56 layers on the 6,000 images of the sample, with everything else equal. **Training error** is the share of training images that the finished network gets wrong.
#
# **Predict** the order of the three plain networks after two epochs, from best to worst. Then the same for the residual ones. Six networks train here, so give the cell a minute.

# %% tags=["claim:N1", "nbval-ignore-output", "reason: losses and errors differ in the last digits between machines"]
from statistics import median

from d2lres import experiments


def table(runs):
    """One line per kind and depth, medians over the seeds, measured on the finished networks."""
    print("                training loss   training error   test error")
    for kind, depth in sorted({(run["kind"], run["depth"]) for run in runs}):
        mine = [run for run in runs if (run["kind"], run["depth"]) == (kind, depth)]
        loss = median(run["train"]["loss"] for run in mine)
        errors = [100 * (1 - median(run[s]["accuracy"] for run in mine)) for s in ("train", "test")]
        print(f"{kind:>8}-{depth:<2} {loss:15.3f} {errors[0]:14.1f} % {errors[1]:10.1f} %")


short = list(experiments.runs(experiments.config("degradation", quick=True)))
table(short)
loss = {(run["kind"], run["depth"]): run["history"]["loss"][-1] for run in short}
assert loss["plain", 56] > loss["plain", 20] + 0.2 > loss["plain", 8] + 0.2  # seeds 0-4
assert loss["plain", 56] > loss["residual", 56] + 0.3

# %% tags=["nbval-ignore-output", "reason: the points differ a little between machines"]
end = {kind_and_depth: [value] for kind_and_depth, value in loss.items()}
figures.show(figures.depth_summary(end, ylabel="training loss in epoch 2", title="After two epochs"))
assert len(end) == 6

# %% [markdown]
# Each step in depth makes the plain network worse. The residual network of 56 layers is far ahead of its plain twin.
#
# But be careful. Two epochs show which network is *slower*. Whether the deep plain one arrives later or never, they cannot show.

# %% [markdown]
# ## Slower or stuck?
# The long run was recorded once, by `python -m d2lres experiment degradation`: the same 6,000 images (the sample, not the full 60,000), 40 epochs, five seeds. Its learning rate sinks to zero at the end, so that each network settles.
#
# **Predict**: after 40 epochs, which of the three plain networks has the lowest training error?

# %%
from d2lres.training import History

record = experiments.recorded("degradation")
nets = {}
for run in sorted(record["runs"], key=lambda run: (run["kind"], run["depth"], run["seed"])):
    nets.setdefault((run["kind"], run["depth"]), []).append(run)
for key in ("subset", "epochs", "seeds", "batch_size", "lr"):
    print(f"{key:11}", record["config"][key])
curves = {f"{kind}-{depth}": [History(**run["history"]) for run in runs]
          for (kind, depth), runs in nets.items()}
figures.show(figures.learning_curves(curves, metric="error", title="40 epochs, five seeds"))

# %% [markdown]
# Thin lines are seeds, thick ones medians. Now the networks as they are at the end, in the same table as before, and one dot per seed:

# %% tags=["claim:N1"]
def error(kind, depth, part="train"):
    """Error of the finished networks on their training (or "test") images, one entry per seed."""
    return [1 - run[part]["accuracy"] for run in nets[kind, depth]]


def loss_at_end(kind, depth):
    return [run["train"]["loss"] for run in nets[kind, depth]]


table(record["runs"])
figures.show(figures.depth_summary({net: error(*net) for net in nets}, ylabel="training error"))
assert max(error("plain", 8) + error("plain", 20)) < 0.01
assert min(error("plain", 56)) > 0.02
assert max(error("residual", 56)) < 0.01

# %% [markdown]
# TODO
#
# ## Is it overfitting?
# **Overfitting** means: good on the training images, bad on new ones. Then a network with more capacity has the *lower* training error and the higher test error.
#
# **Predict**: compared with 20 plain layers, is the network of 56 layers worse on the test images only, on the training images only, or on both?

# %%
print("seed   training error: 20, 56 layers     test error: 20, 56 layers")
for seed, *values in zip(record["config"]["seeds"], error("plain", 20), error("plain", 56),
                         error("plain", 20, "test"), error("plain", 56, "test")):
    print("{:>4} {:>20.1%} {:>8.1%} {:>20.1%} {:>8.1%}".format(seed, *values))
for part in ("train", "test"):
    assert all(b > a for a, b in zip(error("plain", 20, part), error("plain", 56, part)))

# %% [markdown]
# Worse on both, for every seed. This is no overfitting.
