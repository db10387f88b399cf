# %% [markdown]
# # Training
# You repeat the training run of the notes, find out where its time goes, and then reach a better network in a fraction of that time, one measured change after the other.
#
# **You can afterwards** run the notes' recipe, find where its time goes, and beat it.
#
# **What you will learn**
# - to run a recipe as written, even when its batch is too large for your memory
# - to measure what a training step spends its time on, and what your machine could do at best
# - which changes make training faster, which do not, and why the order matters
# - to read learning curves, a confusion matrix and a network's confidence
# - to save, load and resume, and to open a stranger's file without running it
#
# **What you need**: chapter 3 for the network. **Minutes**: 90, half of them for the exercises.

# %% tags=["setup"]

# %% tags=["needed"]
import copy
import os
import re
import time
from math import ceil, log

import torch
import torch.nn.functional as F
from torch import nn

from d2lres import BasicBlock, ResNet, figures, probes
from d2lres.data import fashion_mnist
from d2lres.records import recorded
from d2lres.references import notes_resnet18
from d2lres.training import default_device, fit

# %% [markdown]
# ## The recipe of the notes
# ResNet-18 on Fashion-MNIST, images enlarged to 96 × 96, Adam with learning rate 0.001, 512 images in a batch. The run behind the notes prints six losses and stops there: on its CPU, one epoch of 118 batches takes about twenty minutes.
#
# You run those six steps now. The network is the one you built first in chapter 3, with biases and without BN on its shortcuts. One difference stays: your pixels have mean 0 and deviation 1, theirs run from 0 to 1. The BN after the first convolution takes that out again, save at the border.
#
# **Predict**: the first loss, before anything is learned. There are ten classes.

# %%
noted = [2.353, 1.957, 2.378, 1.593, 1.145, 1.138]  # what the notes print
train96, test96 = fashion_mnist(size=96)
torch.manual_seed(0)
net = notes_resnet18()
print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
print(f"60,000 images make {ceil(60_000 / 512)} batches; guessing costs ln 10 = {log(10):.2f}")

# %% [markdown]
# ## A batch that does not fit
# Before you start: the backward pass needs the **saved activations** of the forward pass. A notebook on Binder, a free host, has 2 GB for everything.
#
# **Predict**: how many gigabytes does this network save for a batch of 512?


# %% tags=["nbval-ignore-output", "reason: the number of saved bytes depends a little on the version"]
def saved(forward, x):
    """Bytes that forward(x) keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def per_batch(forward, size=512):  # the difference leaves the weights out
    x, _ = train96[:8].tensors()
    return size * (saved(forward, x) - saved(forward, x[:4])) / 4 / 1e9


whole = per_batch(net)
print(f"a batch of 512 saves {whole:.1f} GB")
assert whole > 1.5

# %% [markdown]
# Too much, with PyTorch itself still to come. **Gradient accumulation** takes the batch in eight parts of 64, adds up an eighth of each part's gradient, and lets Adam step once. The step is then one for 512 images, in an eighth of the memory.
#
# One thing does change: BN takes its mean and variance from the 64 images of a part. One of the pitfalls below measures that. With more than 3 GB, `python -m d2lres experiment recipe` runs whole batches.

# %% [markdown]
# ## Six steps
# The sample of 6,000 images that comes with the course is enough: six batches are 3,072 of them. This cell is the slowest of the chapter, about a minute on two cores.
#
# **Predict**: in the notes the loss *rises* in one of the six steps. Will yours?

# %% tags=["claim:N17", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
torch.manual_seed(0)
device = default_device()
net = notes_resnet18().to(device)
optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
order = torch.Generator().manual_seed(0)
batches = train96.batches(512, shuffle=True, generator=order, device=device)
losses, start = [], time.perf_counter()
for _, (x, y) in zip(range(6), batches):
    optimizer.zero_grad()
    losses.append(0.0)
    for part_x, part_y in zip(x.split(64), y.split(64)):
        loss = F.cross_entropy(net(part_x), part_y) / 8
        loss.backward()
        losses[-1] += loss.item()
    optimizer.step()
    print(f"step {len(losses)}: loss {losses[-1]:.3f} (notes {noted[len(losses) - 1]:.3f})")
six_seconds = time.perf_counter() - start
print(f"{six_seconds:.0f} seconds, {6 * 512 / six_seconds:.0f} images per second")
assert 2.1 < losses[0] < 2.7 and min(losses[4:]) < losses[0] - 0.6  # holds for seeds 0-4

# %% tags=["claim:N17", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
record = recorded("recipe")["runs"][0]
figures.show(
    figures.lines(
        {"the notes": noted, "yours": losses, "recorded": record["losses"][:6]},
        "step",
        "training loss",
        alt="Training loss over six steps: the notes', yours, recorded.",
    )
)
minutes = 60_000 / 60 / (6 * 512 / six_seconds)
print(f"at this pace one epoch of the full set takes {minutes:.1f} minutes")
assert min(record["losses"][4:6]) < record["losses"][0] - 0.6

# %% [markdown]
# The third line is the start of the same run on all 60,000 images, with each batch of 512 in one piece. On a CPU the record stops after one epoch (`python -m d2lres experiment recipe`; with a GPU it goes on to the five that the notes ask for).
#
# **Predict** its accuracy on the 10,000 test images after those 118 steps. Chapter 3 got about 80 % out of a tenth of the images.

# %%
print(
    len(record["losses"]),
    "steps in",
    f"{sum(record['seconds']) / 60:.0f} minutes:",
    f"test accuracy {record['test'][0]['accuracy']:.1%}",
)
assert len(record["losses"]) == 118 * len(record["test"]) and record["test"][0]["accuracy"] > 0.7

# %% [markdown]
# The claim holds: from the loss of guessing to about half of it, in six steps, and not in a straight line. Adam's first steps are all about 0.001 long for each of eleven million weights, wherever the gradient points.
#
# Half of the loss of guessing is not much. The rest of the chapter is about the minutes.

# %% [markdown]
# ## Where the time goes
# A training step has four parts: fetch the data, forward pass, backward pass, update. PyTorch's **profiler** records every operation with its start and end. `record_function` gives a part its name, and the function below adds up the seconds by part and kind of operation. From here on everything runs on the CPU.

# %%
KINDS = {  # the first whose pattern is found in PyTorch's name for the operation
    "convolution": r"conv|aten::(addmm|mm)$",
    "batch norm": r"batch_norm",
    "ReLU, addition, pooling": r"relu|clamp_min|threshold|pool|aten::(add|mean)$",
    "other": "",
}


def where_time_goes(step):
    """Seconds on the CPU, {part: {kind of operation: seconds}}, of the named parts of step()."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler talks about itself
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, acc_events=True) as profiler:
        step()
    parts = {}
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        top = event
        while top.cpu_parent is not None:
            top = top.cpu_parent
        if "::" not in top.name:  # a part; PyTorch's own names look like aten::add
            kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, event.name))
            part = parts.setdefault(top.name, dict.fromkeys(KINDS, 0.0))
            part[kind] += event.self_cpu_time_total / 1e6
    return parts


# %% [markdown]
# **Predict**: how many times as long as the forward pass does the backward pass take? And what share has BN?

# %% tags=["nbval-ignore-output", "reason: seconds differ between machines"]
from torch.profiler import record_function

net = net.cpu()
optimizer = torch.optim.Adam(net.parameters(), lr=0.001)


def step(size=32):
    with record_function("data"):
        x, y = next(train96.batches(size, shuffle=True))
    with record_function("forward"):
        loss = F.cross_entropy(net(x), y)
    with record_function("backward"):
        loss.backward()
    with record_function("update"):
        optimizer.step()
        optimizer.zero_grad()


step()  # the first step also allocates memory
spent = where_time_goes(step)
total = sum(sum(part.values()) for part in spent.values())
share = {name: {k: 100 * s / total for k, s in part.items()} for name, part in spent.items()}
convolution = sum(part["convolution"] for part in share.values())
assert convolution > 30 and sum(share["backward"].values()) > 0.5 * sum(share["forward"].values())

# %% tags=["nbval-ignore-output", "reason: shares differ between machines"]
fig, ax = figures.axes("share of a training step (%)", "")
left = torch.zeros(len(share))
colours = figures.BLUE, figures.ORANGE, figures.GREEN, figures.YELLOW
for kind, colour, hatch in zip(KINDS, colours, ("", "//", "..", "xx")):
    lengths = torch.tensor([part[kind] for part in share.values()])
    ax.barh(
        list(share), lengths, 0.6, left, color=colour, hatch=hatch, edgecolor="white", label=kind
    )
    left += lengths
ax.invert_yaxis()
ax.grid(visible=False)
ax.legend(frameon=False, loc="lower right")
fig.alt = f"Bars of {', '.join(share)} in per cent of a step, each made of {', '.join(KINDS)}."
figures.show(fig)
assert abs(left.sum().item() - 100) < 0.1

# %% [markdown]
# Most of the time goes into convolutions. The backward pass computes two of them for each one of the forward pass: one for the gradient of the input, one for that of the weights. Batch norm, ReLU and addition take their share although they hardly compute anything: they read and write every number of a map. Fetching the data is nearly free here.

# %% [markdown]
# ## How far from the ceiling
# A convolution is a large matrix product, and no program multiplies matrices faster than the machine's own matrix product. That is the **ceiling**. Count the multiplications and additions of a training step, three forward passes' worth, and compare.
#
# **Predict**: which fraction of the ceiling does the step reach?


# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
def seconds(function, repeats=5):
    """The shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


a, b = torch.rand(2, 2048, 2048)
ceiling = 2 * 2048**3 / seconds(lambda: a @ b)
work = 3 * sum(probes.flops(net, train96[:1].tensors()[0]).values())
reached = 32 * work / seconds(step, repeats=2)
print(
    f"{torch.get_num_threads()} threads; matrix product {ceiling / 1e9:.0f} GFLOP/s, "
    f"training step {reached / 1e9:.0f} GFLOP/s: {reached / ceiling:.0%}"
)
print(f"{work / 1e9:.1f} GFLOP per image: at most {ceiling / work:.0f} images per second")
assert 0.01 < reached / ceiling < 2  # far from the truth only if other programs disturb it

# %% [markdown]
# The last line decides what to do. Even a perfect program would be stuck at the ceiling, so tuning this network can gain what is missing up to there, and no more. A larger factor has to come from doing *less*: fewer pixels, fewer multiplications, fewer steps.

# %% [markdown]
# ## One change at a time
# Now make it fast, and measure after each change. The same table each time: images per second in training, and the time for the 60,000 images of one epoch. Where it is affordable, the last column is the accuracy on test images after two epochs of the *sample*.

# %%
table = [("the six steps", 6 * 512 / six_seconds, None)]


def add_row(change, speed, accuracy=None):
    table.append((change, speed, accuracy))
    print(f"{'':32}{'images/s':>11}{'an epoch takes':>16}{'test accuracy':>15}")
    for name, speed, accuracy in table:
        result = "" if accuracy is None else f"{accuracy:.1%}"
        print(f"{name:32}{speed:11,.0f}{60_000 / speed:14,.0f} s{result:>15}")


def speed_of(net, batches, steps=2):
    """Images per second of training a copy of `net`: its fastest step, the first not counted."""
    net, ends = copy.deepcopy(net), []
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for _, (x, y) in zip(range(steps + 1), batches):
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return len(y) / min(end - start for start, end in zip(ends, ends[1:]))


# %% [markdown]
# ### Images in memory
# The usual loader opens each image with the library PIL, enlarges it, makes a tensor of it, and stacks them. `d2lres` keeps all images in one tensor and does the same to a whole batch at once.
#
# **Predict** how much faster the second way feeds a network, and how much faster *training* gets.

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image


class OneByOne(torch.utils.data.Dataset):
    def __init__(self, data, size):
        self.data = data
        self.transform = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.transform(to_pil_image(self.data.images[i])), int(self.data.labels[i])


memory = train96[:256]
pil = DataLoader(OneByOne(memory, 96), 32)
feed = {"PIL": seconds(lambda: list(pil)), "memory": seconds(lambda: list(memory.batches(32)))}
feed = {name: 256 / took for name, took in feed.items()}
print({name: f"{images:,.0f} images/s" for name, images in feed.items()})
add_row("one by one with PIL", speed_of(net, pil))
add_row("+ images in memory", speed_of(net, train96.batches(32)))
assert feed["memory"] > feed["PIL"]

# %% [markdown]
# Feeding is several times faster, and training hardly changes: feeding was a few per cent of a step, as the profile said. Speed up what takes the time. But keep the number of the first line in mind. It is a second ceiling, and a fast network will hit it.

# %% [markdown]
# ### Channels last
# A batch has four dimensions, N, C, H, W, and memory has one. **Channels-last** stores the channels of a pixel side by side. It changes no result but rounding. It is one call, and the convolutions of many processors prefer it.

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
x = torch.rand(2, 3, 4, 4)
print(x.stride(), "->", x.to(memory_format=torch.channels_last).stride())
net = net.to(memory_format=torch.channels_last)
add_row("+ channels-last", speed_of(net, train96.batches(32)))
assert net[4][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)

# %% [markdown]
# Whether that pays depends on the machine and on the network; your table says what it does on yours. Both changes so far kept all the arithmetic, so neither could do wonders.

# %% [markdown]
# ### The images' own size
# Fashion-MNIST is 28 × 28. Enlarged to 96 × 96 an image has twelve times as many pixels and not one bit more information.
#
# **Predict** the speed without the enlargement. Chapter 3 warns of something: what is left of a 28 × 28 image in stage 4?

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
train, test = fashion_mnist()
add_row("+ 28 × 28 images", speed_of(net, train.batches(128)))
assert table[-1][1] > table[0][1]

# %% [markdown]
# ### A network that fits
# ResNet-18 shrinks a 28 × 28 image to a single pixel, and most of its weights multiply zeros (chapter 3). A network for small images has a small stem, three stages, and far fewer channels: 8 layers here. It trains so quickly that you can afford the last column.
#
# **Predict**: what do eleven million weights fewer cost in accuracy?


# %% tags=["nbval-ignore-output", "reason: speed and accuracy differ between machines"]
def small_net(width=16, seed=0):
    """8 layers: a 5 × 5 stem with stride 2, so that the maps are 14, 7 and 4 pixels wide."""
    torch.manual_seed(seed)
    net = ResNet(BasicBlock, [1, 1, 1], 10, in_channels=1, width=width, small_images=True)
    net.conv1 = nn.Conv2d(1, width, kernel_size=5, stride=2, padding=2, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net.to(memory_format=torch.channels_last)


small = small_net()
print(f"{sum(p.numel() for p in small.parameters()):,} parameters")
adam = torch.optim.Adam(small.parameters(), lr=0.001)
constant = fit(small, train, test, epochs=2, optimizer=adam, device="cpu")
add_row("+ a small network", len(train) / min(constant.seconds), constant.test_accuracy[-1])
assert table[-1][1] > 2 * table[-2][1] and constant.test_accuracy[-1] > 0.6

# %% [markdown]
# ### A learning rate that rises and falls
# Everything so far made a step cheaper. Now make each step count. **One cycle** (Smith and Topin) starts with small steps, goes up to a large learning rate, here ten times the constant one, and comes down to zero. Nothing else changes.
#
# **Predict**: ten times the rate, in the middle of the run. Does that not break what is learned?


# %% tags=["nbval-ignore-output", "reason: speed and accuracy differ between machines"]
def one_cycle_adam(net, peak=0.01, epochs=2):
    optimizer = torch.optim.Adam(net.parameters(), lr=peak)
    steps = epochs * ceil(len(train) / 128)  # it is asked after every batch, not after every epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, cycle_momentum=False)
    return dict(epochs=epochs, optimizer=optimizer, scheduler=schedule, device="cpu")


cycled = small_net()
cycle = fit(cycled, train, test, **one_cycle_adam(cycled))
add_row("+ one cycle", len(train) / min(cycle.seconds), cycle.test_accuracy[-1])
assert cycle.test_accuracy[-1] > constant.test_accuracy[-1]  # holds for seeds 0-4

# %% [markdown]
# Better, at no cost. The large steps in the middle do cost accuracy for a while, and the small ones at the end bring it back with interest. With `lr=` and no optimizer, `fit` uses one cycle as well, with SGD and momentum.

# %% [markdown]
# ### Label smoothing
# **Label smoothing** asks for 91 % of the right class and 1 % of each other one, not for 100 %. **Predict**: does that help in a run of two epochs?

# %% tags=["nbval-ignore-output", "reason: speed and accuracy differ between machines"]
softened = small_net()
soft = fit(softened, train, test, label_smoothing=0.1, **one_cycle_adam(softened))
add_row("  with label smoothing", len(train) / min(soft.seconds), soft.test_accuracy[-1])
assert abs(soft.test_accuracy[-1] - cycle.test_accuracy[-1]) < 0.03  # holds for seeds 0-4

# %% [markdown]
# Hardly a difference. It makes the task harder, and that pays in long runs, when the network begins to know its training images by heart. **Augmentation**, `augment=True`, is of the same kind: it flips and moves the images at random, so that none comes back quite the same. Predict what it does here, and try it in the cell above.

# %% [markdown]
# ### And back to PIL
# One more row for the feed that did not matter at the start. **Predict** first: is it still nearly free?

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
pil28 = DataLoader(OneByOne(train[:1024], 28), 128)
fed = {
    "memory": speed_of(cycled, train.batches(128), steps=7),
    "PIL": speed_of(cycled, pil28, steps=7),
}
add_row("the small network, fed by PIL", fed["PIL"])
feeding = {
    "at the start": table[1][1] / feed["PIL"],
    "now": fed["PIL"] * seconds(lambda: list(pil28), repeats=2) / 1024,
}
print("PIL's share of the time:", {when: f"{share:.1%}" for when, share in feeding.items()})
fastest = max(fed["memory"], *(speed for _, speed, _ in table))
print(
    f"training from memory runs at {fed['memory']:,.0f} images/s, "
    f"{fastest / table[1][1]:.0f} times the speed of the second row"
)
assert feeding["now"] > 3 * feeding["at the start"] and fastest > 15 * table[1][1]

# %% [markdown]
# PIL is no slower than before, but all the rest is faster, and so its share has grown many times over. What to speed up depends on what you have sped up already. Measure again after each change.

# %% [markdown]
# ### All 60,000 images
# Everything together, on the full set: this network, batches of 256, SGD with one cycle up to 0.4, three epochs. The record (`make bench`) holds the seconds from images in memory to the test accuracy. Beside them stands one epoch of the notes' recipe on the same machine.
#
# **Predict** how many times the small network could be trained from scratch before the notes' recipe has finished one epoch.

# %%
from statistics import median

bench = recorded("benchmarks")
rows = bench["rows"]
ninety, notes = rows["ninety"]["runs"], median(rows["ninety"]["notes_epoch_seconds"])
took = median(run["seconds"] for run in ninety)
print(bench["machine"])
print(f"small network: {median(run['accuracy'] for run in ninety):.1%} after {took:.0f} s")
print(f"one epoch of the notes' recipe: {notes:.0f} s, {notes / took:.0f} times as long")
longer = rows["five_minutes"]["runs"]
print(
    f"in {max(run['seconds'] for run in longer):.0f} s: {min(run['accuracy'] for run in longer):.1%}"
    " (Dive into Deep Learning, ten epochs on a GPU: 89.3 %)"
)
assert min(run["accuracy"] for run in ninety) > 0.895 and notes > 15 * took

# %% [markdown]
# Neither the machine nor the task has changed, only the work.

# %% [markdown]
# ## Mixed precision
# **Mixed precision** computes convolutions in bfloat16, 16 bits per number, and keeps weights and losses in float32. Half as many bytes, and on hardware with units for it, several times the speed. On hardware without them, the numbers are converted back and forth for nothing.
#
# **Predict** for your machine: faster or slower? Then measure; nobody should assume it.


# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
def one_step(net, x, y, mixed):
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        logits = net(x)
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    return loss.item()


x, y = train[:256].tensors()
time_in, loss_in = {}, {}
for mixed in (False, True):
    trial = copy.deepcopy(cycled)
    loss_in[mixed] = one_step(trial, x, y, mixed)
    time_in[mixed] = seconds(lambda: one_step(trial, x, y, mixed))
print(
    f"loss {loss_in[False]:.3f} in float32, {loss_in[True]:.3f} mixed; "
    f"mixed takes {time_in[True] / time_in[False]:.2f} times as long"
)
assert abs(loss_in[True] - loss_in[False]) < 0.05

# %% [markdown]
# The loss is the same to two digits. The time is your machine's answer, and it can be another one for another network.

# %% [markdown]
# ## The same code on a GPU
# `fit` asks `default_device()` where to train: CUDA if there is a GPU for it, else Apple's MPS, else the CPU. It moves the network and the images there, once; batches are then made on the GPU itself. On CUDA GPUs with bfloat16 it also uses mixed precision; `mixed_precision=False` switches that off.
#
# So `fit(model, train, test, epochs=3, lr=0.1)` is all you write anywhere. (Above, `device="cpu"` held it back, for the sake of the table.)

# %%
device = default_device()
print("one of the three:", device.type in ("cuda", "mps", "cpu"))
run = fit(small_net(), train[:256], epochs=1, lr=0.1)
print("epochs done:", len(run.loss))

# %% [markdown]
# One warning for your own measurements: a GPU works while Python goes on. Read the clock only after `torch.cuda.synchronize()` or after something that needs the result, such as `loss.item()`.

# %% [markdown]
# ## Reading the curves
# Two epochs are too few to read. The record of chapter 1 holds forty, for a residual network of 20 layers on the same 6,000 images, five seeds.
#
# **Predict**: training accuracy ends near 100 %. What does the *test loss* do meanwhile, and what does the test error?

# %%
runs = [
    run["history"]
    for run in recorded("degradation")["runs"]
    if (run["kind"], run["depth"]) == ("residual", 20)
]
curve = {
    key: [median(values) for values in zip(*(run[key] for run in runs))]
    for key in ("loss", "test_loss", "test_accuracy")
}
drawn = {"training": curve["loss"], "test": curve["test_loss"]}
alt = "Over forty epochs the training loss falls to nearly zero; the test loss falls, then rises."
figures.show(figures.lines(drawn, "epoch", "loss", alt=alt))
error = [1 - accuracy for accuracy in curve["test_accuracy"]]
best = {"test loss": curve["test_loss"], "test error": error}
best = {key: values.index(min(values)) + 1 for key, values in best.items()}
print("epoch of the lowest value:", best)
assert curve["test_loss"][-1] > 1.2 * min(curve["test_loss"])
assert best["test loss"] < best["test error"]

# %% [markdown]
# The test loss turns early, the test error much later. Both are right. The late network gets more images right, and where it is wrong it is *sure*, which the loss punishes. Decide what you need before you decide when to stop: answers, or trustworthy confidence.

# %% [markdown]
# ## Which for which
# Back to the network you trained. In chapter 3 you asked which class is the hardest. A **confusion matrix** asks for all pairs at once: one row for each true class, one column for each answer.
#
# **Predict**: a matrix is symmetric if A is taken for B as often as B for A. Is this one?


# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
@torch.no_grad()
def predict(net):
    """Probabilities of all test images, (N, 10)."""
    return torch.cat([net.eval()(x).softmax(1) for x, _ in test.batches(500)])


confidence, guess = predict(cycled).max(1)
right = guess == test.labels
counts = torch.bincount(10 * test.labels + guess, minlength=100).view(10, 10)
tops = counts[[0, 2, 3, 4, 6]][:, [0, 2, 3, 4, 6]]  # T-shirt, pullover, dress, coat, shirt
among = (tops.sum() - tops.trace()) / (~right).sum()
print(f"{among:.0%} of all mistakes are among five classes with sleeves")
assert counts.sum() == len(test) and among > 0.5

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
fig, ax = figures.axes("predicted", "true", width=940, height=470)
ax.imshow(counts / counts.sum(1, keepdim=True), "Blues", vmin=0, vmax=2, aspect="auto")
for true, answer in counts.nonzero().tolist():
    weight = "bold" if true == answer else "normal"
    ax.text(answer, true, counts[true, answer].item(), ha="center", va="center", weight=weight)
ax.set(xticks=range(10), xticklabels=test.classes, yticks=range(10), yticklabels=test.classes)
ax.tick_params(length=0, labelsize=10)
ax.grid(visible=False)
fig.alt = "Confusion matrix of ten classes: a row for each true class, a column for each answer. "
fig.alt += "The darker a field, the larger its share of the row."
figures.show(fig)
assert (counts.diagonal() * 2 > counts.sum(1)).sum() >= 9  # dark along the diagonal

# %% [markdown]
# More than half of the mistakes are among five classes, all of them worn on the upper body, and shoes are taken for shoes. The matrix is nearly made of blocks. It is not symmetric: a class that is answered too often has a heavy column and light rows.

# %% [markdown]
# ## Mistakes that two networks share
# In chapter 3 you saw the mistakes that one network was surest of. Whose fault are they, the network's or the label's? You have a second network, trained with smoothed labels. Take the images on which both agree, and both contradict the label.
#
# **Predict**: of the mistakes of the first network, how many does the second one make as well, with the same wrong answer?

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
soft_confidence, soft_guess = predict(softened).max(1)
shared = ~right & (soft_guess == guess)
print(f"{int((~right).sum())} mistakes, {shared.sum() / (~right).sum():.0%} of them shared")
surest = torch.where(shared, confidence + soft_confidence, 0).argsort(descending=True)[:12]
titles = [f"{test.classes[guess[i]]}\n({test.classes[test.labels[i]]})" for i in surest]
figures.show(
    figures.images(
        test[surest],
        titles,
        columns=6,
        correct=[False] * 12,
        alt="Twelve test images that two networks misread in the same way, "
        "each with their answer and, in brackets, the label.",
    )
)
assert 0.3 < shared.sum() / (~right).sum() < 1

# %% [markdown]
# A large part is shared, though nine answers are possible. Look at the images: for several of them you may side with the networks. Such labels set a limit that no recipe gets past.

# %% [markdown]
# ## How sure, how right
# A network is **calibrated** if it is right in 80 % of the cases in which it says 80 %. **Predict** which of the two networks doubts too much.

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
doubt = {}
for name, sure, said in (
    ("one cycle", confidence, guess),
    ("label smoothing", soft_confidence, soft_guess),
):
    correct = (said == test.labels).float().mean()
    doubt[name] = (correct - sure.mean()).item()
    print(f"{name}: on average {sure.mean():.1%} sure and {correct:.1%} right")
assert doubt["label smoothing"] > doubt["one cycle"]  # holds for seeds 0-4

# %% [markdown]
# The one trained on smoothed labels claims less than it knows, because that is what it was asked to do; the other one is within a few points of the truth after so short a training.

# %% [markdown]
# ## Save and load
# What you trained is its **state dict**: names and tensors, the running statistics of BN among them. Save that, not the network object, which only loads where the same code is.
#
# **Predict**: are the answers of the loaded network equal to the last bit?

# %%
import tempfile
from pathlib import Path

folder = tempfile.TemporaryDirectory()
weights = Path(folder.name, "small.pt")
torch.save(cycled.state_dict(), weights)
loaded = small_net(seed=1)
print("before loading, the same answers:", torch.equal(predict(loaded), predict(cycled)))
print(loaded.load_state_dict(torch.load(weights)))
print("after loading, the same answers: ", torch.equal(predict(loaded), predict(cycled)))

# %% [markdown]
# ## Stop and resume
# To *continue* training you need more than the weights: the momentum of the optimizer, the place in the schedule, the random numbers. `fit(..., checkpoint=file)` writes all of it after each epoch, into a new file that then replaces the old one, so that a crash never leaves half a file.
#
# The cell interrupts a run of three epochs in the middle of the second, as Ctrl-C would, and starts it again. **Predict**: does it end with the same weights as a run without interruption?


# %%
def press_ctrl_c(net, after):
    """Interrupt the training of `net` in forward pass number `after`."""
    count = iter(range(after))

    def hook(module, args, out):
        if next(count, None) is None:
            raise KeyboardInterrupt

    return net.register_forward_hook(hook)


few, run_file = train[:512], Path(folder.name, "run.pt")
settings = dict(epochs=3, lr=0.1, device="cpu")
straight = small_net()
fit(straight, few, **settings)
stopped = small_net()
press_ctrl_c(stopped, after=6)  # an epoch has four batches
print("interrupted:", fit(stopped, few, checkpoint=run_file, **settings).interrupted)
resumed = small_net(seed=1)
history = fit(resumed, few, checkpoint=run_file, **settings)
ours, theirs = straight.state_dict(), resumed.state_dict()
same = all(torch.equal(ours[k], theirs[k]) for k in ours)
print("epochs:", len(history.loss), " same weights:", same)

# %% [markdown]
# To the last bit, although the resumed network started from other weights: everything came out of the file. `fit` refuses a file that belongs to other settings or to another network.

# %% [markdown]
# ## A file is a program
# `torch.save` writes a **pickle**, and a pickle may contain instructions: 'call this function with these arguments'. Opening a stranger's file can run a stranger's code.
#
# The file below pretends to hold weights. Its function is harmless: `print`. **Predict** at which line of the cell it is called.

# %%
from pickle import UnpicklingError


class Weights:
    def __reduce__(self):  # tells pickle how to rebuild the object
        return print, ("this line was printed by a file that was merely opened",)


gift = Path(folder.name, "gift.pt")
torch.save({"weights": Weights()}, gift)
torch.load(gift, weights_only=False)
try:
    torch.load(gift, weights_only=True)
except UnpicklingError:
    print("refused: with weights_only=True there is no function to call")

# %% [markdown]
# `torch.load(..., weights_only=False)` called it, and could as well have deleted your files. With `weights_only=True`, the default since PyTorch 2.6, only tensors and plain data are read, and everything else is an error. It protects from code, not from bad weights, and the guard itself has had holes: for strangers' files use PyTorch 2.10 or newer (CVE-2026-24747). Before 2.6 it is off unless you ask for it, and most other libraries that unpickle have none.

# %% [markdown]
# ## Pitfalls
# ### A schedule that never gets going
# `OneCycleLR` counts *batches*. Called once per epoch, as older schedules are, it gets nowhere. **Predict** the learning rate after three epochs of 47 batches.


# %%
def final_rate(step_every_batch):
    optimizer = torch.optim.SGD(small_net().parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=3 * 47)
    peak = 0
    for _epoch in range(3):
        for _ in range(47):
            optimizer.step()
            peak = max(peak, optimizer.param_groups[0]["lr"])
            if step_every_batch:
                schedule.step()
        if not step_every_batch:
            schedule.step()
    return peak


print(
    f"highest rate, one step per batch: {final_rate(True):.3f}, per epoch: {final_rate(False):.3f}"
)
assert final_rate(False) < 0.1 * final_rate(True)

# %% [markdown]
# Nothing fails. Training runs, slowly, at a twentieth of the rate that you asked for. Print the learning rate once.
#
# ### Evaluating in train mode
# Without `net.eval()`, BN uses the batch's own mean, so that an image's answer depends on its neighbours. Shuffled test images hide it. **Predict** the accuracy on test images that come sorted by class.


# %% tags=["nbval-ignore-output", "reason: accuracy differs between machines"]
def accuracy(net, data):
    with torch.no_grad():
        return sum((net(x).argmax(1) == y).sum().item() for x, y in data.batches(200)) / len(data)


by_class = test[test.labels.argsort(stable=True)]
trial, found = copy.deepcopy(cycled), {}
for mode in ("eval", "train"):
    trial.train(mode == "train")
    found[mode] = accuracy(trial, test), accuracy(trial, by_class)
    print(f"{mode:5} mode: mixed {found[mode][0]:.1%}, sorted by class {found[mode][1]:.1%}")
assert found["train"][1] < found["eval"][1] - 0.2  # holds for seeds 0-4

# %% [markdown]
# In eval mode the order does not matter. In train mode, each batch of one class is shifted until it looks average, and what made it a class is gone. `d2lres.training.evaluate` sets the mode, and puts it back.
#
# ### A copy that is none
# You want to keep the best weights while training goes on. **Predict** what `best` holds after the step.

# %%
net = small_net()
best, kept = net.state_dict(), copy.deepcopy(net.state_dict())
fit(net, train[:128], epochs=1, lr=0.1, device="cpu")
now = net.state_dict()
print("best is still the old weights:", not torch.equal(best["fc.weight"], now["fc.weight"]))
print("kept is still the old weights:", not torch.equal(kept["fc.weight"], now["fc.weight"]))

# %% [markdown]
# `state_dict()` hands out the tensors themselves. Training changes them in place, and 'the best' is always the latest. Copy them, or save them to a file.
#
# ### Small batches added up
# The six steps took their batches in parts. **Predict** whether four batches of 32 give the gradient of one of 128, with BN and without.


# %%
def gradient(net, parts):
    net.zero_grad()
    for x, y in parts:
        (F.cross_entropy(net(x), y) / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


x, y = train[:128].tensors()
for name, net in (("with BN", small_net()), ("without BN", probes.without_bn(small_net()))):
    whole, parts = gradient(net, [(x, y)]), gradient(net, list(zip(x.split(32), y.split(32))))
    print(f"{name:10}: the same gradient:", bool((whole - parts).norm() < 1e-3 * whole.norm()))

# %% [markdown]
# Without BN it is exact. With BN it is another computation: each small batch is normalised by itself. Often that does no harm, sometimes it even helps, but it is not quite what the recipe says. Say so when you report such a run.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (easy, 5 minutes): two ways to read a matrix
# **Recall** of a class: which fraction of its images is recognised? **Precision**: of the answers that name this class, which fraction is right? Compute both for all classes.
# <details><summary>Hint</summary><code>counts.diagonal()</code> holds the right answers, <code>counts.sum(1)</code> the images of each class, <code>counts.sum(0)</code> the answers. <code>clamp(min=1)</code> avoids 0 / 0.</details>

# %%
from d2lres.checks import training as check


def recall_precision(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(recall, precision), each (C,), from counts[true, predicted], (C, C) whole numbers.

    The precision of a class that is never predicted is 0. Every class has an image.
    """
    ### BEGIN SOLUTION
    right = counts.diagonal()
    return right / counts.sum(1), right / counts.sum(0).clamp(min=1)
    ### END SOLUTION


check.recall_precision(recall_precision)

# %% [markdown]
# ### Exercise 2 (easy, 10 minutes): one cycle by hand
# Write the schedule with straight lines: from 0 up to the peak in the first three tenths of the steps, and down to 0 in the rest.
# <details><summary>Hint</summary>The way up is step / (0.3 · steps), the way down (steps - step) / (0.7 · steps). The smaller of the two is the schedule.</details>


# %%
def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate at `step`, 0 to `steps`; the peak is at 0.3 * steps, be that whole or not."""
    ### BEGIN SOLUTION
    return peak * min(step / (0.3 * steps), (steps - step) / (0.7 * steps))
    ### END SOLUTION


check.one_cycle(one_cycle)

# %% [markdown]
# ### Exercise 3 (medium, 15 minutes): how far from calibrated
# Average confidence and average accuracy can agree by accident. The **expected calibration error** looks closer. Sort the images into bins by confidence; in each bin take the distance between mean confidence and the fraction that is right; average these distances, weighted by the number of images in the bin.
# <details><summary>Hint</summary><code>(confidence * bins).long().clamp(max=bins - 1)</code> is the bin of each image. Skip bins that are empty.</details>


# %%
def calibration_error(confidence: torch.Tensor, right: torch.Tensor, bins: int = 10) -> float:
    """Expected calibration error, 0 to 1, with bins of equal width from 0 to 1.

    confidence: float (N,), 0 to 1.  right: bool (N,). 0 is in the first bin, 1 in the last.
    """
    ### BEGIN SOLUTION
    place, error = (confidence * bins).long().clamp(max=bins - 1), 0.0
    for b in place.unique():
        inside = place == b
        gap = confidence[inside].mean() - right[inside].float().mean()
        error += inside.float().mean().item() * gap.abs().item()
    return error
    ### END SOLUTION


check.calibration_error(calibration_error)

# %% [markdown]
# ### Exercise 4 (medium, 15 minutes): a batch in parts
# The six steps divide each loss by 8, and that is right only because all parts are equal. Write gradient accumulation that is exact for any network without BN, also when the last part is smaller than the others.
# <details><summary>Hint</summary>The mean over a batch of N is the sum over its parts of n / N times the part's mean. <code>backward()</code> adds to what is in <code>.grad</code>, so clear it once, before the first part.</details>


# %%
def accumulate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> float:
    """Leave the gradient of the mean cross-entropy of (x, y) in the parameters' `.grad`.

    x: (N, ...), y: int64 (N,). The model sees at most `size` images at once. What was in `.grad`
    before is dropped, no weight is changed. Returns the mean loss over all N images.
    """
    ### BEGIN SOLUTION
    model.zero_grad()
    total = 0.0
    for part_x, part_y in zip(x.split(size), y.split(size)):
        loss = F.cross_entropy(model(part_x), part_y) * len(part_y) / len(y)
        loss.backward()
        total += loss.item()
    return total
    ### END SOLUTION


check.accumulate(accumulate)

# %% [markdown]
# ## Summary
# - The notes' recipe does what they report: six steps take the loss from guessing to about half of it (live, batches of 512 in eight parts).
# - Convolutions take most of a step, and a good part of the machine's ceiling is reached, so the large factors come from doing less (profile, matrix product).
# - Images of 28 × 28 and a network that fits them bring more than a factor of 15; channels-last and the feed matter only where they are the bottleneck (the table).
# - One cycle beats a constant rate over two epochs; label smoothing changes little that early.
# - On all 60,000 images the small network passes 90 % more than twenty times sooner than the notes' recipe finishes one epoch (record, five seeds).
# - Test loss and test error disagree late in training: the network becomes too sure (record of forty epochs, five seeds).
# - More than half of the mistakes are among five classes, and a large part is shared by two networks.
# - A checkpoint resumes to the last bit; `weights_only=True` refuses a file that would run code.

# %% [markdown]
# ## Further reading
# - Kaiming He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): section 3.4, the paper's own recipe.
# - Leslie N. Smith, Nicholay Topin, *Super-Convergence*, 2018 (arXiv 1708.07120): sections 3 and 4 on one cycle.
# - Chuan Guo et al., *On Calibration of Modern Neural Networks*, 2017 (arXiv 1706.04599): sections 2 and 3.
# - Rafael Müller, Simon Kornblith, Geoffrey Hinton, *When Does Label Smoothing Help?*, 2019 (arXiv 1906.02629): section 3 on calibration.
# - Paulius Micikevicius et al., *Mixed Precision Training*, 2018 (arXiv 1710.03740): section 3.
# - Aston Zhang, Zachary C. Lipton, Mu Li, Alexander J. Smola, *Dive into Deep Learning*, section 8.6.5, Training.
# - PyTorch documentation: *Automatic Mixed Precision*, *torch.profiler*, and *Serialization semantics* for `weights_only`.
