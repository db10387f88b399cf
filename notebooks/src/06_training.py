# %% [markdown]
# # Training
# You repeat the training run of the notes, find out where its time goes, and then make it many times faster, one measured change after the other.
#
# **You can afterwards** run the notes' recipe, find where its time goes, and beat it.
#
# **What you will learn**
# - to run a recipe as written, even when its batch is too large for your memory
# - to measure what a training step spends its time on, and what your machine could do at best
# - to change one thing at a time, and to choose settings without looking at the test images
# - to read learning curves and a confusion matrix
# - to save, load and resume
#
# **What you need**: chapter 3 for the network. **Minutes**: 100, half of them for the exercises.

# %% tags=["setup"]

# %% tags=["needed"]
import copy
import os
import re
import time
from dataclasses import replace
from functools import partial
from math import ceil, log
from statistics import mean, median

import torch
import torch.nn.functional as F
from torch import nn

from d2lres import BasicBlock, ResNet, figures, probes, speed
from d2lres.checkpoints import CheckpointError
from d2lres.data import fashion_mnist
from d2lres.records import recorded
from d2lres.references import notes_resnet18
from d2lres.speed import Recipe
from d2lres.training import default_device, evaluate, fit

# %% [markdown]
# ## The recipe of the notes
# ResNet-18 on Fashion-MNIST, images enlarged to 96×96, Adam with learning rate 0.001, 512 images in a batch.
# The run behind the notes prints six losses and stops there.
#
# You run those six steps below.
# The network is the one you built first in chapter 3, with biases and without BN on its shortcuts.
# One difference stays: your pixels have mean 0 and deviation 1, theirs run from 0 to 1.
# The BN after the first convolution takes that out again, save at the border.
#
# **Predict** the loss before anything is learned.
# There are ten classes, and an answer of 10 % for each costs ln 10 = 2.30.

# %% tags=["nbval-ignore-output", "reason: the last digits differ between machines"]
noted = [2.353, 1.957, 2.378, 1.593, 1.145, 1.138]  # what the notes print
train96, _ = fashion_mnist(size=96)
torch.manual_seed(0)
net = notes_resnet18()
print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
print(f"60,000 images make {ceil(60_000 / 512)} batches")
x, y = train96[:64].tensors()
with torch.no_grad():
    logits = net(x)
print(f"loss before training {F.cross_entropy(logits, y):.2f}, of ten equal outputs {log(10):.2f}")
print(f"spread of the ten outputs of an image: {logits.std(1).mean():.2f}")
assert 2.1 < F.cross_entropy(logits, y) < 2.7 and logits.std(1).mean() > 0.1  # holds for seeds 0-4

# %% [markdown]
# A little more than 2.30 (seeds 0 to 4 gave 2.32 to 2.41), as in the notes.
# An untrained network does not answer 10 % for each class: its ten outputs differ by chance, as the last line shows, and a random preference costs more than none.

# %% [markdown]
# ## A batch that does not fit
# The backward pass needs the **saved activations** of the forward pass.
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
# That is too much for a free notebook host such as Binder, which gives you 2 GB for everything.
# **Gradient accumulation** takes the batch in eight parts of 64, adds up an eighth of each part's gradient, and lets Adam step once: one step for 512 images, in an eighth of the memory.
#
# Is that the same step?
# Keep the question; the last pitfall of this chapter measures it.
# With more than 3 GB, `python -m d2lres experiment recipe` runs whole batches.

# %% [markdown]
# ## Six steps
# The sample of 6,000 images that comes with the course is enough: six batches are 3,072 of them.
# This cell is the slowest of the chapter.
# The recorded run below took a minute for its six steps, on two cores; on a processor without AVX expect two to three times as long.
#
# **Predict**: in the notes the loss *rises* in one of the six steps.
# Will yours?

# %% tags=["claim:N17", "nbval-ignore-output", "reason: losses and seconds differ between machines"]
torch.manual_seed(0)
device = default_device()
net = notes_resnet18().to(device)
optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
order = torch.Generator().manual_seed(0)
batches = train96.batches(512, shuffle=True, generator=order, device=device)
losses, moved, start = [], [], time.perf_counter()
for _, (x, y) in zip(range(6), batches):
    optimizer.zero_grad()
    losses.append(0.0)
    for part_x, part_y in zip(x.split(64), y.split(64)):
        loss = F.cross_entropy(net(part_x), part_y) / 8
        loss.backward()
        losses[-1] += loss.item()
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    optimizer.step()
    after = nn.utils.parameters_to_vector(net.parameters()).detach()
    moved.append((after - before).abs().mean().item())
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
print("how far Adam moved a weight, on average:", [f"{step:.5f}" for step in moved])
minutes = 60_000 / 60 / (6 * 512 / six_seconds)
print(f"at this pace one epoch of the full set takes {minutes:.1f} minutes")
assert min(record["losses"][4:6]) < record["losses"][0] - 0.6
assert 0.0008 < moved[0] < 0.00101 and moved[-1] < moved[0]

# %% [markdown]
# The notes' loss rises in its third step; look in the chart whether yours does on the way.
# After six steps the notes are at 1.1 and the recorded run at 1.0, from 2.4 both; yours has come down by at least 0.6, or the cell would have stopped.
# A single step that raises the loss decides nothing.
#
# Adam's first step moves each weight by about the learning rate, however small its gradient is.
# In this run the later steps are shorter: gradients of different batches disagree, and Adam averages over them.
#
# The third line is the start of the same run on all 60,000 images, with each batch of 512 in one piece, for one epoch on a CPU.
#
# **Predict** its accuracy on the 10,000 test images after those 118 steps.
# Chapter 3 got about 80 % out of a tenth of the images.

# %%
print(
    len(record["losses"]),
    "steps in",
    f"{sum(record['seconds']) / 60:.0f} minutes:",
    f"test accuracy {record['test'][0]['accuracy']:.1%}",
)
assert len(record["losses"]) == 118 * len(record["test"]) and record["test"][0]["accuracy"] > 0.7

# %% [markdown]
# Ten times as many images, and enlarged, brought about three points (one recorded run, one seed).
# The rest of the chapter is about the minutes.

# %% [markdown]
# ## Where the time goes
# A training step has four parts: fetch the data, forward pass, backward pass, update.
# PyTorch's **profiler** records every operation with its start and end.
# `record_function` gives a part its name, and the function below adds up the seconds by part and kind of operation.
# From here on everything runs on the CPU.

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
# **Predict**: how many times as long as the forward pass does the backward pass take?
# And what share of the step has batch norm?

# %% tags=["nbval-ignore-output", "reason: seconds differ between machines"]
from torch.profiler import record_function

optimizer = torch.optim.Adam(net.cpu().parameters(), lr=0.001)


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
part = {name: sum(kinds.values()) for name, kinds in spent.items()}
kind = {name: sum(kinds[name] for kinds in spent.values()) for name in KINDS}
total = sum(part.values())
print(f"the backward pass takes {part['backward'] / part['forward']:.1f} times the forward pass")
print(f"batch norm takes {kind['batch norm'] / total:.0%} of the step")
assert kind["convolution"] == max(kind.values()) and part["backward"] > 0.5 * part["forward"]

# %% tags=["nbval-ignore-output", "reason: shares differ between machines"]
fig, ax = figures.axes("share of one training step (%)", "", height=320)
colours = figures.BLUE, figures.ORANGE, figures.GREEN, figures.YELLOW
for row, cut in (("by part", part), ("by kind", kind)):
    left = 0
    for (name, took), colour in zip(cut.items(), colours):
        width = 100 * took / total
        ax.barh(row, width, 0.6, left, color=colour, edgecolor="white", alpha=0.55)
        if width > 1.2 * max(map(len, name.split())):  # or there is no room for a label
            label = name.replace(" ", "\n") + f"\n{width:.0f} %"
            ax.text(left + width / 2, row, label, ha="center", va="center", size=10)
        left += width
ax.set_xlim(0, 100)
ax.invert_yaxis()
ax.grid(visible=False)
fig.alt = "One training step as two bars of 100 per cent, cut once by part and once by kind: "
fig.alt += ", ".join(
    f"{name} {100 * took / total:.0f} %" for name, took in {**part, **kind}.items()
)
figures.show(fig)
assert abs(left - 100) < 0.1

# %% [markdown]
# Both bars are the same step; narrow pieces have no label.
# From left to right they are data, forward, backward and update, and below convolution, batch norm, then ReLU, addition and pooling, then the rest.
# Its largest part goes into convolutions.
# The backward pass computes two of them for each one of the forward pass: one for the gradient of the input, one for that of the weights.
# Batch norm computes little and still takes its share: it reads and writes every number of a map.

# %% [markdown]
# ## How far from the ceiling
# How fast could a step be on this machine?
# Take operations that do nothing but multiply and add, and measure how many floating-point operations each does per second (**FLOP/s**; a GFLOP is a thousand million of them).
# No single one will do: PyTorch hands matrix products and convolutions to different libraries.
# A convolution's speed also depends on the order of its numbers in memory.
# Usually one whole map comes after the other; **channels-last** stores the channels of a pixel side by side.


# %%
def kernels():
    """{name: (floating-point operations, function)}: matrix products and convolutions."""
    found = {}
    for n in (512, 1024, 2048):
        a, b = torch.rand(2, n, n)
        found[f"a @ b, {n}×{n}"] = 2 * n**3, partial(torch.matmul, a, b)
    a, b, c = torch.rand(1024, 1024), torch.rand(1024, 1024), torch.rand(16, 256, 256)
    found["F.linear, 1024×1024"] = 2 * 1024**3, partial(F.linear, a, b)
    found["bmm, 16 of 256×256"] = 16 * 2 * 256**3, partial(torch.bmm, c, c)
    for size, channels, side in ((1, 64, 24), (1, 256, 12), (3, 64, 24), (3, 128, 12), (3, 256, 6)):
        for layout, name in ((torch.contiguous_format, ""), (torch.channels_last, ", ch.-last")):
            x = torch.rand(32, channels, side, side).to(memory_format=layout)
            w = torch.rand(channels, channels, size, size).to(memory_format=layout)
            function = partial(F.conv2d, x, w, padding=size // 2)
            work = 2 * 32 * side**2 * w.numel()
            found[f"{size}×{size} convolution, {channels} channels{name}"] = work, function
    return found


print(len(kernels()), "kernels")


# %%
def seconds(function, repeats=5):
    """The shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


# %% [markdown]
# Call the fastest of these fifteen, or the training step itself should it be faster still, the **ceiling**.
# A training step counts as three forward passes' worth of multiplications and additions: one for the pass itself, two for its gradients.
#
# **Predict**: which fraction of the ceiling does the step reach?

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
reach = {name: work / seconds(function, 3) for name, (work, function) in kernels().items()}
work = 3 * sum(probes.flops(net, train96[:1].tensors()[0]).values())
reach["the training step"] = 32 * work / seconds(step, repeats=2)
for name, flops in sorted(reach.items(), key=lambda row: -row[1]):
    print(f"{name:46}{flops / 1e9:7.0f} GFLOP/s")
ceiling = max(reach.values())
fraction = reach["the training step"] / ceiling
print(f"{torch.get_num_threads()} threads; the step reaches {fraction:.0%} of the ceiling")
print(f"{work / 1e9:.1f} GFLOP per image: the ceiling is {ceiling / work:.0f} images per second")
assert 0.01 < fraction <= 1, "the step is one of those that the ceiling is the maximum of"

# %% [markdown]
# The last two lines decide what to do.
# Tuning this network can gain what is missing up to the ceiling and, as far as these sixteen speeds tell, no more.
# A larger factor has to come from doing *less*: fewer pixels, fewer multiplications, fewer steps.

# %% [markdown]
# ## One change at a time
# Now make it fast, and measure after each change.
# Each row of the table differs from an earlier one in exactly one thing.
# It shows images per second in training, and the time that the 60,000 images of an epoch would take.
#
# The last column will be an accuracy, and it decides which settings you keep.
# Whoever tries ten settings on the same test images and keeps the best keeps some luck with it: that number is no longer a test.
# So hold back 1,000 of the 6,000 training images, the **validation set**, for all decisions, and look at the test images once, at the end.

# %%
sample, test = fashion_mnist()
train, validation = sample[:5000], sample[5000:]
print(len(train), "to train on,", len(validation), "to decide with,", len(test), "for the end")
table = {}


def add_row(change, speed=None, accuracy=None, show=2):
    table[change] = speed, accuracy
    print(f"{'':34}{'images/s':>10}{'an epoch takes':>16}{'validation':>12}")
    for name in list(table)[-show:]:
        speed, accuracy = table[name]
        pace = f"{speed:10,.0f}{60_000 / speed:14,.0f} s" if speed else " " * 26
        print(f"{name:34}{pace}" + (f"{accuracy:12.1%}" if accuracy is not None else ""))


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
# The usual loader opens each image with the library PIL, enlarges it, makes a tensor of it, and stacks them.
# `d2lres` keeps all images in one tensor and does the same to a whole batch at once.
# Both rows have batches of 32.
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


memory, pil = train96[:256], DataLoader(OneByOne(train96[:256], 96), 32)
feed = {"PIL": seconds(lambda: list(pil)), "memory": seconds(lambda: list(memory.batches(32)))}
feed = {name: 256 / took for name, took in feed.items()}
first = speed_of(net, pil)
add_row("the notes' network, fed by PIL", first)
print({name: f"feeds {images:,.0f} images/s" for name, images in feed.items()})
print(f"PIL takes {first / feed['PIL']:.1%} of the time")
assert feed["memory"] > feed["PIL"] and first < 0.2 * feed["PIL"]

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
add_row("+ images in memory", speed_of(net, train96.batches(32)))
assert table["+ images in memory"][0] > 0.3 * first  # noise is larger than the change

# %% [markdown]
# Feeding is several times faster, and training cannot gain more than PIL's share of the time, which is small.
# A larger difference between the two rows is noise: measure twice and see.
# Speed up what takes the time.

# %% [markdown]
# ### Channels last
# A batch has four dimensions, N, C, H, W, and memory has one.
# The cell shows how far apart neighbours lie in the usual order and in channels-last.
# The change is one call, and it alters results by rounding only.

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
x = torch.rand(2, 3, 4, 4)
print(x.stride(), "->", x.to(memory_format=torch.channels_last).stride())
trial = copy.deepcopy(net).to(memory_format=torch.channels_last)
add_row("+ channels-last", speed_of(trial, train96.batches(32)))
paid = table["+ channels-last"][0] > table["+ images in memory"][0]
layout = torch.channels_last if paid else torch.contiguous_format
net = net.to(memory_format=layout)
print("channels-last", "paid here and is kept" if paid else "did not pay here and is dropped")
assert trial[4][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)

# %% [markdown]
# It pays on some processors and costs on others, so the cell keeps whichever was faster on yours.
# Both changes so far kept all the arithmetic, so neither could pass the ceiling.

# %% [markdown]
# ### The images' own size
# Fashion-MNIST is 28×28.
# Enlarged to 96×96 an image has twelve times as many pixels and not one bit more information.
#
# **Predict** the speed without the enlargement: twelve times?

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
add_row("+ 28×28 images", speed_of(net, train.batches(32)))
large, own = (sum(probes.flops(net, d[:1].tensors()[0]).values()) for d in (train96, train))
gain = table["+ 28×28 images"][0] / max(table["+ images in memory"][0], table["+ channels-last"][0])
print(f"{large / own:.1f} times less arithmetic per image, {gain:.1f} times as fast")
assert 8 < large / own < 12 and gain > 1.2

# %% [markdown]
# Not twelve times: sides are rounded up at each stride, so even the arithmetic shrinks only 9.7 times.
# And the update of eleven million weights costs as much as before, for a batch that has become cheap.
# A larger batch shares one update among more images.

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
add_row("+ batches of 128", speed_of(net, train.batches(128)))
assert table["+ batches of 128"][0] > 0.5 * table["+ 28×28 images"][0]

# %% [markdown]
# A larger batch makes fewer updates from the same images; only an accuracy can tell whether that is a gain.
# From here on a row needs seconds, so you can afford one.

# %% [markdown]
# ### A network that fits
# ResNet-18 shrinks a 28×28 image to a single pixel, and most of its weights multiply zeros (chapter 3).
# A network for small images has a small stem, three stages, and far fewer channels: 8 layers here.
#
# **Predict**: it has 143 times fewer weights.
# Is it 143 times as fast?


# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
def small_net(width=16, seed=0):
    """8 layers: a 5×5 stem with stride 2, so that the maps are 14, 7 and 4 pixels wide."""
    torch.manual_seed(seed)
    net = ResNet(BasicBlock, [1, 1, 1], 10, in_channels=1, width=width, small_images=True)
    net.conv1 = nn.Conv2d(1, width, kernel_size=5, stride=2, padding=2, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net.to(memory_format=layout)


small = small_net()
print(f"{sum(p.numel() for p in small.parameters()):,} parameters")
add_row("+ a small network", speed_of(small, train.batches(128), steps=7))
little = sum(probes.flops(small, train[:1].tensors()[0]).values())
faster = table["+ a small network"][0] / table["+ batches of 128"][0]
print(f"{own / little:.0f} times less arithmetic per image, {faster:.0f} times as fast")
assert 2 < faster < 143 and table["+ a small network"][0] > 15 * first

# %% [markdown]
# No: weights do not set the time.
# The arithmetic shrinks 13 times, and the last line says how much of that, or more, you see here: the update of the weights counts too, and how well each network uses the processor.

# %% [markdown]
# ### A learning rate is found
# Everything so far made a step cheaper.
# Now make each step count.
# The three runs differ in Adam's learning rate alone; each is two epochs, and all start from the same weights.

# %% tags=["nbval-ignore-output", "reason: accuracy differs between machines"]
for rate in (0.001, 0.003, 0.01):
    net = small_net()
    adam = torch.optim.Adam(net.parameters(), lr=rate)
    run = fit(net, train, validation, epochs=2, optimizer=adam, device="cpu")
    add_row(f"  constant rate {rate}", accuracy=run.test_accuracy[-1])
constant = {rate: table[f"  constant rate {rate}"][1] for rate in (0.001, 0.003, 0.01)}
assert constant[0.001] > 0.6 and constant[0.003] > 0.6  # hold for seeds 0-4

# %% [markdown]
# The notes' rate of 0.001 is not the best for this network and this short run: seeds 0 to 4 gave 73 to 78 % with 0.001, 76 to 81 % with 0.003 and 51 to 81 % with 0.01.
# The largest is the least reliable of the three.

# %% [markdown]
# ### A learning rate that rises and falls
# **One cycle** (Smith and Topin) starts with small steps, goes up to a large learning rate, and comes down to zero.
# Nothing else changes.
#
# **Predict**: its peak is 0.01, the unreliable rate above.
# Does that spoil the run?


# %% tags=["nbval-ignore-output", "reason: speed and accuracy differ between machines"]
def one_cycle_adam(net, peak=0.01, epochs=2):
    optimizer = torch.optim.Adam(net.parameters(), lr=peak)
    steps = epochs * ceil(len(train) / 128)  # it is asked after every batch, not after every epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, cycle_momentum=False)
    return dict(epochs=epochs, optimizer=optimizer, scheduler=schedule, device="cpu")


cycled = small_net()
cycle = fit(cycled, train, validation, **one_cycle_adam(cycled))
add_row("  one cycle up to 0.01", accuracy=cycle.test_accuracy[-1])
assert cycle.test_accuracy[-1] > constant[0.001] + 0.01  # holds for seeds 0-4

# %% [markdown]
# It does not: seeds 0 to 4 gave 79 to 81 %.
# That is, for each seed at least 3 points above the constant 0.001, and 1 to 3 above the constant 0.003.
# Peaks of 0.003 and 0.03 gave 76 to 79 % and 78 to 82 %, so the peak need not be hit as exactly as a constant rate.
# With `lr=` and no optimizer, `fit` uses one cycle as well, with SGD and momentum.

# %% [markdown]
# ### Harder tasks
# **Label smoothing** asks for 91 % of the right class and 1 % of each other one, not for 100 %.
# **Augmentation** flips and moves the images at random, so that none comes back quite the same.
# Each is a change of the one-cycle run.
#
# **Predict**: do they help in a run of two epochs?

# %% tags=["nbval-ignore-output", "reason: accuracy differs between machines"]
softened, moving = small_net(), small_net()
soft = fit(softened, train, validation, label_smoothing=0.1, **one_cycle_adam(softened))
augmented = fit(moving, train, validation, augment=True, **one_cycle_adam(moving))
add_row("    with label smoothing", accuracy=soft.test_accuracy[-1])
add_row("    with augmentation", accuracy=augmented.test_accuracy[-1])
assert abs(soft.test_accuracy[-1] - cycle.test_accuracy[-1]) < 0.03  # holds for seeds 0-4
assert augmented.test_accuracy[-1] < cycle.test_accuracy[-1] - 0.01  # holds for seeds 0-4

# %% [markdown]
# Not here: label smoothing makes hardly a difference, and augmentation costs accuracy; seeds 0 to 4 gave 79 to 81 % and 74 to 76 %.
# Both make the training task harder, against a network that learns its training images by heart; after two epochs it is far from that.
# So the one-cycle run stays as it is.

# %% [markdown]
# ### And back to PIL
# One more row for the feed that did not matter at the start.

# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
pil28 = DataLoader(OneByOne(train[:1024], 28), 128)
fed = speed_of(small, pil28, steps=7)
add_row("the small network, fed by PIL", fed, show=len(table) + 1)
now = fed * seconds(lambda: list(pil28), repeats=2) / 1024
print(f"PIL's share of the time: {first / feed['PIL']:.1%} at the start, {now:.1%} now")
print(f"the small network trains {table['+ a small network'][0] / first:.0f} times as fast")
assert now > 3 * first / feed["PIL"]

# %% [markdown]
# PIL is no slower than before, but all the rest is faster, and so its share has grown many times over.
# What to speed up depends on what you have sped up already.

# %% [markdown]
# ### The test images, once
# The decisions are made: the small network, one cycle.
# Now the 2,000 test images say how good it is.

# %% tags=["nbval-ignore-output", "reason: accuracy differs between machines"]
tested = evaluate(cycled, test).accuracy
print(f"validation {cycle.test_accuracy[-1]:.1%}, test {tested:.1%}")
assert tested > 0.75 and abs(tested - cycle.test_accuracy[-1]) < 0.05  # holds for seeds 0-4

# %% [markdown]
# Seeds 0 to 4 gave 80 to 82 % on the test images.
# That is about what chapter 3's ResNet-18 reached in two epochs of all 6,000 images, by another recipe.

# %% [markdown]
# ## Up the ladder
# You have made one change at a time, and kept what helped.
# **Speed runs** do the same for a fixed accuracy, with a longer list of changes (Jordan 2024 reaches 94 % on CIFAR-10 in a few seconds on a GPU).
# `d2lres.speed` has your small network, one loop, and a field for each change in a `Recipe`.
# `rung(name)` is the recipe at that rung: one change, and all below that stayed.
#
# Try three rungs that lie above your one-cycle run: labels smoothed, and then
# - a **whitened** first layer: its kernels are the principal components of 5×5 patches, each scaled to variance 1, and are not trained
# - **Muon**: momentum as in SGD, but the step of each convolution is turned into one that changes all directions about equally
#
# **Predict**: which of the two helps more, in two epochs of 5,000 images?

# %% tags=["nbval-ignore-output", "reason: speed and accuracy differ between machines"]
climbed = {}
names = ["label smoothing", "whitened first layer", "Muon"]
for name in names if hasattr(torch.optim, "Muon") else names[:2]:  # from PyTorch 2.9
    recipe = replace(speed.rung(name), epochs=2, bfloat16=False)
    start = time.perf_counter()
    climbed[name] = speed.accuracy(recipe, speed.trained(recipe, train), validation)
    print(f"{name:22}{climbed[name]:6.1%} in {time.perf_counter() - start:.1f} s")
assert climbed["whitened first layer"] > climbed["label smoothing"] - 0.02  # both: seeds 0-4
assert climbed.get("Muon", 1.0) > climbed["label smoothing"] + 0.005

# %% [markdown]
# In these runs each may gain something; one seed does not tell you how much.
# Seeds 0 to 4 gave 79 to 82 % with smoothed labels, 81 to 83 % with the whitened layer, and 82 to 84 % with Muon as well.
# So whitening alone gains 0 to 4 points over the rung below, and both together 2 to 5.
#
# ### The rest of it, recorded
# The record has 20 rungs, each trained on 50,000 images for one and for three epochs, five seeds, on one core at a time; the other 10,000 training images decide.
# Between these two runs, times and accuracies are read off a straight line over the logarithm of the seconds.
#
# **Predict** which of these bring a higher accuracy after 25 seconds: channels-last, larger batches, averaged weights, smaller images at first, flips, squeeze-excite, a wider and shallower network.


# %%
def one_by_one(recipe, train, epoch, seed):
    """The batches of an epoch as the lowest rung of the record has had them."""
    data, order = OneByOne(train, 28), torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    for x, y in DataLoader(data, recipe.batch_size, shuffle=True, generator=order):
        yield (x - train.mean[0]) / train.std[0], y


# %%
def accuracy_at(seconds, short, long):
    """Accuracy after so many seconds, which lie between those of the two runs."""
    assert short["seconds"] < seconds < long["seconds"]
    part = log(seconds / short["seconds"]) / log(long["seconds"] / short["seconds"])
    return short["accuracy"] + part * (long["accuracy"] - short["accuracy"])


def seconds_to(mark, short, long):
    """Seconds to an accuracy, at most those of the short run; None if the long one is below it."""
    if long["accuracy"] < mark:
        return None
    part = (mark - short["accuracy"]) / (long["accuracy"] - short["accuracy"])
    return short["seconds"] * (long["seconds"] / short["seconds"]) ** max(part, 0)


ladder, pairs = recorded("ladder"), {}
for run in ladder["runs"]:
    pairs.setdefault(run["kind"], []).append(run["lengths"])
print(len(pairs), "rungs with", {len(them) for them in pairs.values()}, "seeds each")
print(ladder["machine"])

# %%
print(f"{'':34}  3 epochs   accuracy after 25 s      91 % after")
at_25, to_91 = {}, {}
for kind, (_, stayed) in speed.LADDER.items():
    took = median(long["seconds"] for _, long in pairs[kind])
    at_25[kind] = sorted(accuracy_at(25, *pair) for pair in pairs[kind])
    to_91[kind] = [seconds_to(0.91, *pair) for pair in pairs[kind]]
    low, _, middle, _, high = at_25[kind]
    row = (
        f"{'+' if stayed else ' '} {kind:34}{took:5.0f} s   {middle:.1%} ({low:.1%} to {high:.1%})"
    )
    if None not in to_91[kind]:
        row += f"{median(to_91[kind]):8.0f} s"
    print(row)

# %%
chosen = ("images one by one", "one cycle", "Muon")
drawn = {
    kind: tuple(
        [median(run[key] for run in runs) for runs in zip(*pairs[kind])]
        for key in ("seconds", "accuracy")
    )
    for kind in chosen
}
alt = "Validation accuracy against seconds, after one and three epochs, for three rungs of the ladder."
figures.show(figures.lines(drawn, "seconds on one core", "validation accuracy", alt=alt))
middle = {kind: them[2] for kind, them in at_25.items()}
up = [kind for kind, (_, stayed) in speed.LADDER.items() if stayed]
assert all(middle[a] < middle[b] for a, b in zip(up, up[1:]))  # each that stayed helped
below = up[0]
for kind, (_, stayed) in speed.LADDER.items():
    assert stayed or middle[kind] < middle[below] + 0.001, kind  # and no other one
    below = kind if stayed else below

# %% [markdown]
# Each rung that stayed is ahead of the one below it after 25 seconds, in the median of five seeds.
# Images in memory, channels-last and bfloat16 save seconds: together they halve the time of three epochs, which reach 89 % as before.
# The others learn more from each image: one cycle gains two points, the whitened layer half a point, SGD and Muon a third of one each.
# Label smoothing stayed for less than a tenth of a point, and the ranges overlap: five seeds do not settle it.
#
# The other eleven are not ahead of the rung below them by more than a tenth of a point:
# - AdamW, BN's momentum and averaged weights change next to nothing
# - larger batches, and small images at first, are faster and learn less
# - flips and shifts make the task harder, as you saw above; testing mirrored images, too, gives a part of it back
# - squeeze-excite and the wider, shallower network take longer
#
# That is a verdict on runs of at most three epochs of this network.
# A longer run can want what these do not: the recipe for 94 % below has flips and small images.

# %% [markdown]
# ### 90, 93 and 94 per cent
# The decisions are made, on images held back from training.
# Now the test images, and all 60,000 training images, for the README's benchmarks: five seeds on two cores, from images in memory to the test accuracy.
#
# **Predict**: how long does one network take to 94 %?
# And how many times could the recipe for 90 % be run before the notes' recipe has finished one epoch?

# %%
bench = recorded("benchmarks")
rows = bench["rows"]
print(bench["machine"])
for name in ("ninety", "ninety_three", "ninety_four"):
    runs = rows[name]["runs"]
    right, took = ([run[key] for run in runs] for key in ("accuracy", "seconds"))
    print(f"{mean(right):.2%} ({min(right):.2%} to {max(right):.2%}) after {median(took):.0f} s")
    if name == "ninety":
        notes = median(rows[name]["notes_epoch_seconds"])
        print(
            f"one epoch of the notes' recipe: {notes:.0f} s, {notes / median(took):.0f} times that"
        )
        assert min(right) > 0.895 and notes > 15 * median(took)
assert mean(run["accuracy"] for run in rows["ninety_three"]["runs"]) > 0.93
assert mean(right) > 0.94

# %% [markdown]
# The first is one epoch of the recipe at Muon's rung, the second five epochs of a network twice as wide, the third ten of one three times as wide, with flips and mirrored tests; both of these begin with small images.
# Before the notes' recipe has finished one epoch, the first can be trained about a hundred times.
# Machine and images are the same; the work is not.
# *Dive into Deep Learning* prints 89.3 % for its own ResNet-18 after ten epochs on a GPU.

# %% [markdown]
# ## Reading the curves
# Two epochs are too few to read.
# The record of chapter 1 holds forty, for a residual network of 20 layers on all 6,000 images of the sample, five seeds.
#
# **Predict**: training accuracy ends near 100 %.
# What does the *test loss* do meanwhile, and what does the test error?

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
# The test loss turns early, the test error much later (medians of five seeds).
# Both are right.
# The late network gets more images right, and where it is wrong it is *sure*, which the loss punishes.
# Decide what you need before you decide when to stop: answers, or trustworthy confidence.

# %% [markdown]
# ## Which for which
# Back to the network you trained.
# In chapter 3 you asked which class is the hardest.
# A **confusion matrix** asks for all pairs at once: one row for each true class, one column for each answer.
#
# **Predict**: a matrix is symmetric if A is taken for B as often as B for A.
# Is this one?


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
a, b = divmod((counts - counts.T).argmax().item(), 10)
one, other = test.classes[a], test.classes[b]
print(f"{one} taken for {other}: {counts[a, b]} times, {other} for {one}: {counts[b, a]} times")
print(f"{among:.0%} of all mistakes are among T-shirt, pullover, dress, coat and shirt")
assert counts.sum() == len(test) and among > 0.6  # holds for seeds 0-4
assert counts[a, b] - counts[b, a] >= 10  # holds for seeds 0-4

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
assert (counts.diagonal() * 2 > counts.sum(1)).sum() >= 8  # dark along the diagonal

# %% [markdown]
# It is not symmetric: the first line printed shows the pair that differs most.
# About three quarters of the mistakes are among five classes, all of them worn on the upper body (76 to 79 % for seeds 0 to 4).
# In the run shown, more than half of the rest take one shoe for another.

# %% [markdown]
# ## Save and load
# What you trained is its **state dict**: names and tensors, the running statistics of BN among them.
# Save that, not the network object, which only loads where the same code is.
# The loaded network gives the same answers to the last bit.

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
# To *continue* training you need more than the weights: the momentum of the optimiser, the place in the schedule, the random numbers.
# `fit(..., checkpoint=file)` writes all of it after each epoch, into a new file that then replaces the old one, so that a crash never leaves half a file.
#
# The cell interrupts a run of three epochs in the middle of the second, as Ctrl-C would, and starts it again.
#
# **Predict**: does it end with the same weights as a run without interruption?


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
press_ctrl_c(stopped, after=8)  # one to rehearse, four in an epoch, one to look at the result
print("interrupted:", fit(stopped, few, checkpoint=run_file, **settings).interrupted)
resumed = small_net()
history = fit(resumed, few, checkpoint=run_file, **settings)
ours, theirs = straight.state_dict(), resumed.state_dict()
same = all(torch.equal(ours[k], theirs[k]) for k in ours)
print("epochs:", len(history.loss), " same weights:", same)

# %% [markdown]
# To the last bit: everything that the second half needs came out of the file.
#
# A file that belongs to another run would be just as easy to go on with, and wrong.
# So `fit` notes in it what the run is: its settings, the images, the network and the weights that it began with.
#
# **Predict**: the next cell goes on with another seed, and then with 512 other images.
# Which of the two is refused?


# %%
def refused(images, seed=0):
    try:
        fit(small_net(), images, checkpoint=run_file, seed=seed, **settings)
    except CheckpointError as error:
        return str(error).partition("run.pt ")[2].partition(":")[0]


print("another seed: the file", refused(few, seed=1))
print("other images: the file", refused(train[512:1024]))

# %% [markdown]
# Both, and the sentence says what differs.

# %% [markdown]
# ## Pitfalls
# ### A schedule that never gets going
# `OneCycleLR` counts *batches*.
# Called once per epoch, as older schedules are, it gets nowhere.
#
# **Predict** the highest learning rate that three epochs of 47 batches then see, where 0.2 was asked for.


# %%
def highest_rate(step_every_batch):
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


print(f"highest rate, one step per batch: {highest_rate(True):.3f}")
print(f"highest rate, one step per epoch: {highest_rate(False):.3f}")
assert highest_rate(False) < 0.1 * highest_rate(True)

# %% [markdown]
# Nothing fails.
# Training runs, slowly, at less than a twentieth of the rate that you asked for.
# Print the learning rate once.
#
# ### Evaluating in train mode
# Without `net.eval()`, BN uses the batch's own mean, so that an image's answer depends on its neighbours.
# Shuffled test images hide it.
#
# **Predict** the accuracy on test images that come sorted by class.


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
# About a fifth (18 to 22 % for seeds 0 to 4), and in eval mode the order does not matter.
# In train mode, each batch of one class is shifted until it looks average, and what made it a class is gone.
# `d2lres.training.evaluate` sets the mode, and puts it back.
#
# ### Small batches added up
# The six steps took their batches in parts.
#
# **Predict** whether four batches of 32 give the gradient of one of 128, with BN and without.


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
# Without BN it is the same but for rounding.
# With BN it is another computation: each small batch is normalised by itself.
# So your six steps were not quite the notes' six steps.
# Say so when you report such a run.

# %% [markdown]
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# ### Exercise 1 (easy, 5 minutes): two ways to read a matrix
# **Recall** of a class: which fraction of its images is recognised? **Precision**: of the answers that name this class, which fraction is right?
# Compute both for all classes.
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
# A network is **calibrated** if it is right in 80 % of the cases in which it says 80 %.
# Average confidence and average accuracy can agree by accident.
# The **expected calibration error** looks closer.
# Sort the images into bins by confidence; in each bin take the distance between mean confidence and the fraction that is right; average these distances, weighted by the number of images in the bin.
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
# The six steps divide each loss by 8, and that is right only because all parts are equal.
# Write gradient accumulation that is exact for any network without BN, also when the last part is smaller than the others.
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
# ### Exercise 5 (medium, 10 minutes): a rung of your own
# The recipe that you are given trains a network of 8 channels by Adam, at a constant rate of 0.001.
# Change something, so that it gets at least five points more after as many epochs, in at most 1.5 times as long.
# The check trains both on the same 3,000 images with the same two seeds, and tests them on 1,000 others.
# <details><summary>Hint</summary><code>replace(recipe, label_smoothing=0.1)</code> is a recipe with another field; <code>Recipe?</code> lists them. In this chapter, what gained most of all that costs nothing?</details>


# %%
def own_rung(recipe: Recipe) -> Recipe:
    """The recipe with a change; `epochs` stays as it is."""
    ### BEGIN SOLUTION
    return replace(recipe, cycle=True, lr=0.01)
    ### END SOLUTION


check.own_rung(own_rung)

# %% [markdown]
# ## Summary
# - The notes' recipe does what they report: six steps take the loss from near that of guessing to about half of it (live, seed 0, batches of 512 in eight parts).
# - Convolutions take the largest part of a step of ResNet-18 at 96×96 (profile, batch 32).
#   Against the fastest of fifteen kernels, tuning can gain a limited factor, so the large ones come from doing less.
# - Images of their own size and a network that fits them make training more than 15 times as fast; the feed, at first a small share of the time, then takes a large one (the table, Adam, this machine).
# - After two epochs of 5,000 images one cycle up to 0.01 beats a constant Adam rate of 0.001 for seeds 0 to 4.
#   A constant 0.003 comes close, label smoothing changes little, and augmentation costs accuracy (all by validation).
# - On all 60,000 images one epoch passes 90 %, five of a wider network 93 %, ten of a still wider one 94 % (record, means of five seeds, one machine).
# - Test loss and test error disagree late in training: the network becomes too sure (record of residual-20, forty epochs, five seeds).
# - About three quarters of the small network's mistakes are among five of the ten classes (2,000 test images, seeds 0 to 4).
# - A checkpoint resumes to the last bit (a run of three epochs, on the CPU).

# %% [markdown]
# ## Appendix: mixed precision
# **Mixed precision** computes convolutions in bfloat16, 16 bits per number, and keeps weights and losses in float32.
# It moves half as many bytes, and hardware with units for it computes several times as fast.
# On hardware without them, the numbers are converted back and forth for nothing.
# Is it faster on your machine?
# Measure; nobody should assume it.


# %% tags=["nbval-ignore-output", "reason: speed differs between machines"]
def one_step(net, x, y, mixed):
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        logits = net(x)
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    return loss.item()


x, y = train[:128].tensors()
time_in, loss_in = {}, {}
for mixed in (False, True):
    trial = copy.deepcopy(cycled)
    loss_in[mixed] = one_step(trial, x, y, mixed)
    time_in[mixed] = seconds(lambda: one_step(trial, x, y, mixed), repeats=2)
print(f"loss {loss_in[False]:.3f} in float32, {loss_in[True]:.3f} mixed")
print(f"mixed takes {time_in[True] / time_in[False]:.2f} times as long")
assert abs(loss_in[True] - loss_in[False]) < 0.05

# %% [markdown]
# The loss hardly differs.
# The time is your machine's answer, and it can be another one for another network.

# %% [markdown]
# ## Appendix: the same code on a GPU
# `fit` asks `default_device()` where to train: CUDA if there is a GPU for it, else Apple's MPS, else the CPU.
# It moves the network and the images there, once; batches are then made on the GPU itself.
# On CUDA GPUs with bfloat16 it also uses mixed precision; `mixed_precision=False` switches that off.
#
# So `fit(model, train, test, epochs=3, lr=0.1)` is all you write anywhere.
# (Above, `device="cpu"` held it back, for the sake of the table.)

# %%
device = default_device()
print("one of the three:", device.type in ("cuda", "mps", "cpu"))
run = fit(small_net(), train[:256], epochs=1, lr=0.1)
print("epochs done:", len(run.loss))

# %% [markdown]
# One warning for your own measurements: a GPU works while Python goes on.
# Read the clock only after `torch.cuda.synchronize()` or after something that needs the result, such as `loss.item()`.

# %% [markdown]
# ## Appendix: how sure, how right
# Which of two networks is calibrated (exercise 3), the one-cycle network or the one trained with smoothed labels?

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
soft_confidence, soft_guess = predict(softened).max(1)
doubt = {}
for name, sure, said in (
    ("one cycle", confidence, guess),
    ("label smoothing", soft_confidence, soft_guess),
):
    correct = (said == test.labels).float().mean()
    doubt[name] = (correct - sure.mean()).item()
    print(f"{name}: on average {sure.mean():.1%} sure and {correct:.1%} right")
assert doubt["label smoothing"] > doubt["one cycle"] + 0.02  # holds for seeds 0-4

# %% [markdown]
# The one trained on smoothed labels claims less than it knows, because that is what it was asked to do.
# The other is within a few points of the truth, on average and after so short a training (seeds 0 to 4: 1 to 4 points too modest).

# %% [markdown]
# ## Appendix: mistakes that two networks share
# In chapter 3 you saw the mistakes that one network was surest of.
# Train a second network, from other weights and with the images in another order.
# How many of the first one's mistakes does it make as well, with the same wrong answer?

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
second = small_net(seed=1)
fit(second, train, seed=1, **one_cycle_adam(second))
second_confidence, second_guess = predict(second).max(1)
shared = ~right & (second_guess == guess)
part = (shared.sum() / (~right).sum()).item()
print(f"{int((~right).sum())} mistakes, {part:.0%} of them shared")
assert 0.45 < part < 0.9  # holds for each two of seeds 0-4

# %% [markdown]
# About two thirds (61 to 76 % for each two of seeds 0 to 4), though nine wrong answers are possible.
# Here are the twelve of which both are surest, each with their answer and, in brackets, the label.

# %% tags=["nbval-ignore-output", "reason: predictions differ between machines"]
surest = torch.where(shared, confidence + second_confidence, 0).argsort(descending=True)[:12]
titles = [f"{test.classes[guess[i]]}\n({test.classes[test.labels[i]]})" for i in surest]
alt = "Twelve test images that two networks misread in the same way, "
alt += "each with their answer and, in brackets, the label."
figures.show(figures.images(test[surest], titles, columns=6, correct=[False] * 12, alt=alt))
assert shared[surest].all()

# %% [markdown]
# Would you have given the label?
# Shared mistakes may come from the labels, from images too coarse to tell, or from what both networks have in common: the training images and the architecture.
# The cell does not separate these.

# %% [markdown]
# ## Appendix: a file is a program
# `torch.save` writes a **pickle**, and a pickle may contain instructions: 'call this function with these arguments'.
# Opening a stranger's file can run a stranger's code.
#
# The file below pretends to hold weights.
# Its function is harmless: `print`.
#
# **Predict** at which line of the cell it is called.

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
# `torch.load(..., weights_only=False)` called it, and could as well have deleted your files.
# With `weights_only=True`, the default since PyTorch 2.6, only tensors and plain data are read, and everything else is an error.
# It protects from code, not from bad weights, and the guard itself has had holes: for strangers' files use PyTorch 2.10 or newer (CVE-2026-24747).
# Before 2.6 it is off unless you ask for it.

# %% [markdown]
# ## Appendix: a copy that is none
# You want to keep the best weights while training goes on.
# Two ways to keep them:

# %%
net = small_net()
best, kept = net.state_dict(), copy.deepcopy(net.state_dict())
fit(net, train[:128], epochs=2, lr=0.1, device="cpu")
now = net.state_dict()
print("best is still the old weights:", not torch.equal(best["fc.weight"], now["fc.weight"]))
print("kept is still the old weights:", not torch.equal(kept["fc.weight"], now["fc.weight"]))

# %% [markdown]
# `state_dict()` hands out the tensors themselves.
# Training changes them in place, and 'the best' is always the latest.
# Copy them, or save them to a file.

# %% [markdown]
# ## Further reading
# - Kaiming He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385): section 3.4, the paper's own recipe.
# - Keller Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024 (arXiv 2404.00498): sections 2 and 3 on the changes that the ladder tries.
# - Leslie N. Smith, Nicholay Topin, *Super-Convergence*, 2018 (arXiv 1708.07120): sections 3 and 4 on one cycle.
# - Chuan Guo et al., *On Calibration of Modern Neural Networks*, 2017 (arXiv 1706.04599): sections 2 and 3.
# - Rafael Müller, Simon Kornblith, Geoffrey Hinton, *When Does Label Smoothing Help?*, 2019 (arXiv 1906.02629): section 3 on calibration.
# - Paulius Micikevicius et al., *Mixed Precision Training*, 2018 (arXiv 1710.03740): section 3.
# - Aston Zhang, Zachary C. Lipton, Mu Li, Alexander J. Smola, *Dive into Deep Learning*, section 8.6.4, Training.
# - PyTorch documentation: *Automatic Mixed Precision*, *torch.profiler*, and *Serialization semantics* for `weights_only`.
