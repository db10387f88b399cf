"""The benchmarks: eight comparisons, each made side by side on this machine.

    make bench                                                # 20 minutes on 2 idle cores
    python assets/make_benchmarks.py --only imports depth     # these, the others as they were
    python assets/make_benchmarks.py --only ninety_four        # half an hour more

A row times both sides alternately, several times; its ratios are taken within a repetition, and
their median, lowest and highest value are kept. A row that varies by more than a fifth and takes
less than a minute is measured once more, and the steadier of the two is kept. The rows go into assets/results/benchmarks.json as
they are finished, from there into a page beside it, and a few lines of that into the README. A
target that is missed stays missed.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_experiments import cpu, instruction_sets, versions, write_json
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

from d2lres import BasicBlock, ResNet, cifar_resnet, resnet18
from d2lres import speed as fast
from d2lres.checkpoints import load_checkpoint
from d2lres.data import Images, fashion_mnist
from d2lres.references import d2l, notes_resnet18
from d2lres.training import evaluate, fit

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "assets/results/benchmarks.json"
PAGE = RESULT.with_suffix(".md")
HEAD = [
    "| measure | against | target | median (lowest to highest) | |",
    "|---|---|---|---|---|",
]
# The README shows the first line of each of these.
SHOWN = ["resnet18", "feeding", "ninety", "ninety_three", "ninety_four"]
MARKS = ("<!-- benchmarks: written by make bench -->\n", "<!-- end of benchmarks -->\n")


def check(
    measure: str, against: str, samples: list[float], unit: str = "", *, digits: int = 2, **target
) -> dict:
    """One line of the table: the samples' median and spread against at_most= or at_least=.

    "met" is decided by the median; "off" is the fraction of the target by which it is missed.
    at_least=0 has nothing to miss: the line states a figure.
    """
    ((kind, goal),) = target.items()
    median = statistics.median(samples)
    ratio = median / goal if goal else 1.0
    off = max(0.0, ratio - 1 if kind == "at_most" else 1 - ratio)
    line = dict(measure=measure, against=against, unit=unit, digits=digits, target={kind: goal})
    line |= dict(median=median, low=min(samples), high=max(samples), repetitions=len(samples))
    return line | dict(met=off == 0, off=off)


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def clock(function: Callable, *args, **kwargs) -> float:
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


# --- the rows: each returns its lines of the table and whatever explains them -----------------


def imports(repetitions: int = 5) -> dict:
    """Wall time of a fresh interpreter that imports one thing and ends."""
    code = {"torch": "import torch", "d2lres": "import d2lres", "d2l": "from d2l import torch"}
    seconds = {name: [] for name in code}
    for i in range(repetitions + 1):
        for name, line in code.items():
            took = clock(subprocess.run, [sys.executable, "-c", line], cwd=ROOT, check=True)
            if i:  # the first time the files come from the disk
                seconds[name].append(took)
    ours = seconds["d2lres"]
    torch_alone, d2l_too = (ratios(ours, seconds[name]) for name in ("torch", "d2l"))
    return dict(
        checks=[
            check("`import d2lres`, seconds", "`import torch`", torch_alone, "×", at_most=1.05),
            check("the same", "`from d2l import torch`", d2l_too, "×", at_most=0.5),
        ],
        seconds=seconds,
    )


def resnet18_at_96(repetitions: int = 3, batch: int = 256, steps: int = 3) -> dict:
    """Training images a second of one net in two loops, and the FLOP/s that ours makes of them.

    Ours runs as it comes out of the box, where it chooses its arithmetic by a measurement, and in
    float32 with channels-last weights.
    """
    train, test = fashion_mnist("full", size=96)
    torch.manual_seed(0)
    net = resnet18(num_classes=10, in_channels=1)
    work = training_flops(net, train)
    speed: dict[str, list[float]] = dict(d2lres=[], float32=[], d2l=[])
    tops: dict[str, list[float]] = dict(float32=[], bfloat16=[])
    settings = dict(d2lres={}, float32=dict(mixed_precision=False, channels_last=True))
    for how in settings.values():  # the first call of each operation prepares it
        our_speed(net, train[:batch], batch, **how)
    part, few = train[: steps * batch], list(test[:2].batches(2))
    with d2l_loaders(train, test, batch, resize=96) as (loader, _):
        for _ in range(repetitions):
            speed["d2lres"].append(our_speed(net, part, batch))
            speed["d2l"].append(d2l_speed(net, loader, few, batch, steps))
            speed["float32"].append(our_speed(net, part, batch, **settings["float32"]))
            for kind, top in tops.items():
                top.append(max(kernel_flops(getattr(torch, kind)).values()))
    faster, gained = (ratios(speed["d2lres"], speed[name]) for name in ("d2l", "float32"))
    reached = {
        kind: [work * images / top for images, top in zip(speed[name], tops[kind])]
        for name, kind in (("float32", "float32"), ("d2lres", "bfloat16"))
    }
    measure = f"training ResNet-18 at 96×96, batch {batch}, images/s"
    goal = 2.0 if bfloat16_units() else 1.1
    return dict(
        checks=[
            check(measure, "d2l's loader and loop", faster, "×", at_least=goal),
            check("the same", "ours in float32, channels-last", gained, "×", at_least=1),
            check(
                "float32 in FLOP/s, as a fraction",
                f"the fastest of {len(kernels())} matrix products and convolutions",
                reached["float32"],
                at_least=0.5,
            ),
            check(
                "the first in FLOP/s, as a fraction",
                "the fastest of them in bfloat16",
                reached["bfloat16"],
                at_least=0,
            ),
        ],
        images_per_second=speed,
        flops_per_image=work,
        ceiling_flops_per_second=tops,
    )


def training_flops(net: nn.Module, data: Images) -> float:
    """Floating-point operations of one training step for an image: convolutions and matrix
    products, forward and backward, a multiplication and an addition each."""
    x, y = next(data[:2].batches(2))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(copy.deepcopy(net)(x), y).backward()
    return counter.get_total_flops() / 2


def bfloat16_units() -> bool:
    """Whether the processor has instructions for bfloat16."""
    return bool({"avx512_bf16", "amx_bf16"} & set(instruction_sets()))


def kernels(batch: int = 32, dtype: torch.dtype = torch.float32) -> dict[str, tuple[int, Callable]]:
    """Where nothing but arithmetic is asked for: {name: (floating-point operations, function)}.

    Matrix products and convolutions have libraries of their own, and which is the faster one
    depends on the processor; so do sizes, and the order of a convolution's numbers in memory.
    """
    found: dict[str, tuple[int, Callable]] = {}
    for n in (1024, 2048, 4096):
        a, b = torch.randn(2, n, n).to(dtype)
        found[f"matmul {n}"] = 2 * n**3, partial(torch.matmul, a, b)
    a, b, c = (torch.randn(s).to(dtype) for s in ((2048, 2048), (2048, 2048), (16, 512, 512)))
    found["linear 2048"] = 2 * 2048**3, partial(F.linear, a, b)
    found["bmm 16 x 512"] = 16 * 2 * 512**3, partial(torch.bmm, c, c)
    for kernel, channels, side in (1, 64, 24), (1, 256, 24), (3, 64, 24), (3, 128, 12), (3, 256, 6):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, channels, side, side).to(dtype, memory_format=layout)
            w = torch.randn(channels, channels, kernel, kernel).to(dtype, memory_format=layout)
            name = f"convolution {kernel}x{kernel}, {channels} channels, {layout}"
            function = partial(F.conv2d, x, w, padding=kernel // 2)
            found[name] = 2 * batch * side**2 * w.numel(), function
    return found


def kernel_flops(dtype: torch.dtype = torch.float32, repetitions: int = 3) -> dict[str, float]:
    """What each kernel reaches on this machine: FLOP/s in its median time. The first is not timed."""
    reached = {}
    for name, (work, function) in kernels(dtype=dtype).items():
        seconds = [clock(function) for _ in range(repetitions + 1)][1:]
        reached[name] = work / statistics.median(seconds)
    return reached


def our_speed(net: nn.Module, train: Images, batch: int, **how) -> float:
    """Of the first epoch of what is announced as a long run: a short one would measure nothing."""

    def stop(history) -> None:
        raise KeyboardInterrupt

    settings = dict(epochs=1000, lr=0.05, batch_size=batch, device="cpu", after_epoch=stop)
    history = fit(copy.deepcopy(net), train, **settings, **how)
    return len(train) / history.seconds[0]


def d2l_speed(net: nn.Module, loader, test, batch: int, steps: int, warm_up: int = 2) -> float:
    """Images a second in d2l's train_ch6, from the end of step `warm_up` on: its workers have
    started by then, and filled their queues. `test`, its few test batches, is not timed."""
    first, book = First(loader, warm_up + steps), d2l()
    with contextlib.redirect_stdout(io.StringIO()):
        book.train_ch6(copy.deepcopy(net), first, test, 1, 0.05, torch.device("cpu"))
    return steps * batch / (first.ends[-1] - first.ends[warm_up - 1])


class First:
    """The first `steps` batches of a loader; `ends` are the times at which each was done with."""

    def __init__(self, loader, steps: int) -> None:
        self.loader, self.steps, self.ends = loader, steps, []

    def __len__(self) -> int:
        return len(self.loader)  # of the whole epoch: d2l redraws its plot every fifth of it

    def __iter__(self):
        for _, batch in zip(range(self.steps), self.loader):
            yield batch
            self.ends.append(time.perf_counter())


@contextlib.contextmanager
def d2l_loaders(train: Images, test: Images, batch: int, resize: int):
    """d2l's own loaders, in a folder where their ../data holds the files: nothing is fetched."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four workers on two cores, a plot with one epoch
        write_idx(Path(folder, "data/FashionMNIST/raw"), train, test)
        work = Path(folder, "work")
        work.mkdir()
        os.chdir(work)
        try:
            yield d2l().load_data_fashion_mnist(batch, resize=resize)
        finally:
            os.chdir(here)


def write_idx(folder: Path, train: Images, test: Images) -> None:
    """The four files of Fashion-MNIST as torchvision wants them, unpacked."""
    folder.mkdir(parents=True)
    for split, data in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", data.images[:, 0]), ("labels-idx1", data.labels)):
            array = values.numpy().astype(np.uint8)
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())


def feeding(repetitions: int = 3, batch: int = 256) -> dict:
    """Images a second of one epoch of batches at 96x96, start to end, with nothing done to them."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    train, test = fashion_mnist("full", size=96)
    workers = os.cpu_count() or 1
    speed: dict[str, list[float]] = {"d2lres": [], "torchvision": []}
    with tempfile.TemporaryDirectory() as folder:
        write_idx(Path(folder, "FashionMNIST/raw"), train, test)
        resize = transforms.Compose([transforms.Resize(96), transforms.ToTensor()])
        data = datasets.FashionMNIST(folder, transform=resize)
        loader = DataLoader(data, batch, shuffle=True, num_workers=workers)
        for _ in range(repetitions):
            for name in speed:
                batches = train.batches(batch, shuffle=True) if name == "d2lres" else loader
                speed[name].append(len(train) / clock(deque, batches, maxlen=0))
    against = f"torchvision and a DataLoader, {workers} workers"
    measure = f"feeding batches of {batch} at 96×96, images/s"
    return dict(
        checks=[check(measure, against, ratios(*speed.values()), "×", digits=1, at_least=5)],
        images_per_second=speed,
    )


def small_net(width: int, seed: int, stem: int = 5) -> ResNet:
    """Three stages of one basic block, for 28x28 images: the stem halves them and has no pooling.

    In channels-last order, which CPUs and GPUs with tensor cores convolve faster.
    """
    torch.manual_seed(seed)
    net = ResNet(BasicBlock, [1, 1, 1], 10, in_channels=1, width=width, small_images=True)
    net.conv1 = nn.Conv2d(1, width, stem, stride=2, padding=stem // 2, bias=False)
    return net.to(memory_format=torch.channels_last)


RECIPES = {  # those that were ours before the ladder of chapter 06
    "three epochs": dict(width=16, epochs=3, batch_size=256, lr=0.4, weight_decay=1e-4),
    "five minutes": dict(
        width=32,
        epochs=10,
        batch_size=256,
        lr=0.4,
        weight_decay=5e-4,
        label_smoothing=0.1,
        mixed_precision=True,
    ),
}


def earlier(name: str, seed: int, epochs: int = 0) -> dict:
    """One run of an earlier recipe on the full set: its test accuracy, and the seconds it took to get
    it, from the images in memory on: building the net, training and testing.

    epochs: of so many alone, and the seconds are scaled to the whole recipe.
    """
    recipe = dict(RECIPES[name])
    scale = recipe["epochs"] / (epochs or recipe["epochs"])
    recipe["epochs"] = epochs or recipe["epochs"]
    train, test = fashion_mnist("full")
    start = time.perf_counter()
    net = small_net(recipe.pop("width"), seed)
    lr, decay = recipe.pop("lr"), recipe.pop("weight_decay")
    optimizer = SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)
    steps = recipe["epochs"] * math.ceil(len(train) / recipe["batch_size"])
    scheduler = OneCycleLR(optimizer, lr, steps, cycle_momentum=False)
    recipe = dict(mixed_precision=False, channels_last=False) | recipe
    fit(net, train, seed=seed, optimizer=optimizer, scheduler=scheduler, device="cpu", **recipe)
    trained = time.perf_counter()
    accuracy = evaluate(net, test).accuracy
    seconds = (trained - start) * scale + time.perf_counter() - trained
    return dict(seed=seed, accuracy=accuracy, seconds=seconds)


def raced(recipe: fast.Recipe, seed: int) -> dict:
    """The same of a recipe of the ladder, in bfloat16 where the processor has units for it."""
    recipe = dataclasses.replace(recipe, bfloat16=bfloat16_units())
    train, test = fashion_mnist("full")
    start = time.perf_counter()
    accuracy = fast.accuracy(recipe, fast.trained(recipe, train, seed), test)
    return dict(seed=seed, accuracy=accuracy, seconds=time.perf_counter() - start)


def mark(
    recipe: fast.Recipe, against: str, goal: float, ratio: float, seeds: int, epochs: int = 0
) -> dict:
    """Test accuracy and seconds of a recipe, against those of an earlier one in the same run."""
    runs, old = [], []
    for seed in range(seeds):
        old.append(earlier(against, seed, epochs))
        runs.append(raced(recipe, seed))
    seconds, theirs = ([run["seconds"] for run in both] for both in (runs, old))
    part = f", {epochs} of them timed" if epochs else ""
    name = f"our earlier recipe, {RECIPES[against]['epochs']} epochs{part}"
    measure = f"seconds to {goal:.0%} test accuracy on the full set"
    return dict(
        checks=[
            check(measure, name, ratios(seconds, theirs), "×", at_most=ratio),
            check("the same", "", seconds, " s", digits=0, at_least=0),
            check("test accuracy then", "", [r["accuracy"] for r in runs], digits=4, at_least=goal),
        ],
        recipe=dataclasses.asdict(recipe),
        runs=runs,
        earlier=old,
    )


def ninety(seeds: int = 5, batch: int = 512, steps: int = 2) -> dict:
    """Seconds to 90 % test accuracy, against an earlier recipe and one epoch of the notes' recipe.

    The notes' epoch of 118 steps is not run here: a few steps of it are timed and scaled to 60,000
    images. Its end is where that recipe is compared, whatever it has reached.
    """
    row = mark(fast.NINETY, "three epochs", 0.9, 0.6, seeds)
    train, _ = fashion_mnist("full", size=96)
    torch.manual_seed(0)
    net, part = notes_resnet18(), train[: steps * batch]
    optimizer = Adam(net.parameters(), lr=1e-3)
    how = dict(epochs=1, batch_size=batch, optimizer=optimizer, device="cpu")
    row["notes_epoch_seconds"] = [
        fit(net, part, **how).seconds[0] * len(train) / len(part) for _ in range(2)
    ]
    return row


def ninety_three(seeds: int = 5) -> dict:
    """Seconds to 93 % test accuracy."""
    return mark(fast.NINETY_THREE, "five minutes", 0.93, 0.5, seeds, epochs=1)


def ninety_four(seeds: int = 5) -> dict:
    """Seconds to 94 % test accuracy, one net, no ensemble; more than half an hour in all."""
    return mark(fast.NINETY_FOUR, "five minutes", 0.94, 3.5, seeds, epochs=1)


def depth(repetitions: int = 2, depths: tuple = (8, 20, 56, 110, 1004)) -> dict:
    """Seconds a step and memory of residual nets, and how far they lie from a straight line.

    1004 stands for 1001, which is not 6n + 2. Each measurement has a process of its own.
    """
    # By name: once d2l has drawn a plot, __main__ is IPython's, and what it held is not found there.
    from make_benchmarks import training_step

    seconds, memory = ({d: [] for d in depths} for _ in range(2))
    for _ in range(repetitions):
        for d in depths:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                took, grown = process.submit(training_step, d).result()
            seconds[d].append(took)
            memory[d].append(grown)

    deep, shallow = max(depths), 56
    a_layer = [a / deep / (b / shallow) for a, b in zip(seconds[deep], seconds[shallow])]
    off = [straightness({d: memory[d][i] for d in depths}) for i in range(repetitions)]
    return dict(
        checks=[
            check(f"seconds a layer, {deep} layers", "56 layers", a_layer, "×", at_most=1.25),
            check(f"memory of 8 to {deep} layers", "a straight line", off, " off", at_most=0.15),
        ],
        seconds=seconds,
        bytes=memory,
    )


def straightness(values: dict[int, float]) -> float:
    """The largest relative distance of the values from the line a + b depth that fits them best,
    in relative least squares: a depth counts as much as another, however small its value."""
    x, y = np.array(list(values)), np.array(list(values.values()))
    design = np.stack([1 / y, x / y], 1)
    a, b = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
    return float(np.abs(y / (a + b * x) - 1).max())


def training_step(
    depth: int, batch: int = 128, steps: int = 3, at_least: float = 5
) -> tuple[float, int]:
    """Seconds of the fastest step, the one that other work disturbed least, and how far the process
    has grown beyond the net and its images. It takes `steps`, or as many as fill `at_least` seconds.
    """
    train, _ = fashion_mnist(size=14)
    x, y = next(train.batches(batch))
    net = cifar_resnet(depth, in_channels=1, width=8)
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
    before, seconds = peak_memory(), []

    def step() -> None:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    while len(seconds) <= steps or sum(seconds) < at_least:
        seconds.append(clock(step))
    return min(seconds[1:]), peak_memory() - before


def peak_memory() -> int:
    """The most this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage starts from the peak of the parent
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def processes(repetitions: int = 2) -> dict:
    """Training images a second of two processes and of one, with the same threads in total; and of
    two with one thread each against one of them alone, with the same batch and with twice as much."""
    cores = os.cpu_count() or 1
    half = max(1, cores // 2)
    ways = dict(  # processes, threads of each, images in a batch
        one=(1, cores, 256),
        two=(2, half, 256),
        alone=(1, half, 128),
        strong=(2, half, 128),
        weak=(2, half, 256),
    )
    speed: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, (count, threads, batch) in ways.items():
            start = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m"]
            command = [sys.executable, "-m", *(start if count > 1 else [])]
            command += ["d2lres", "train", "--model", "cifar_resnet", "--epochs", "2"]
            command += ["--device", "cpu", "--batch-size", str(batch), "--threads", str(threads)]
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "run.pt")
                command += ["--checkpoint", str(file)]
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                last = load_checkpoint(file)["history"].seconds[-1]
            speed[name].append(len(fashion_mnist()[0]) / last)
    measure = "two processes training ResNet-20, batch 256, images/s"
    against = f"one process, {cores} threads in total in both"
    equal = ratios(speed["two"], speed["one"])
    return dict(
        checks=[
            check(measure, against, equal, "×", at_least=0.95),
            *(
                check(
                    f"two of them, batch {ways[name][2]}",
                    "one alone, batch 128",
                    more,
                    "×",
                    at_least=0,
                )
                for name in ("strong", "weak")
                for more in [ratios(speed[name], speed["alone"])]
            ),
        ],
        images_per_second=speed,
    )


ROWS = dict(
    imports=imports,
    resnet18=resnet18_at_96,
    feeding=feeding,
    ninety=ninety,
    ninety_three=ninety_three,
    ninety_four=ninety_four,
    depth=depth,
    processes=processes,
)
LONG = ("ninety_four",)  # half an hour: only when named

# --- the record and the table -----------------------------------------------------------------


def machine() -> dict:
    """What the figures depend on."""
    return dict(machine=cpu(), threads=torch.get_num_threads(), versions=versions())


def busy(seconds: float = 1.0) -> float:
    """The part of all cores' time that others use while this process waits; 0 where that is not told."""

    def ticks() -> list[int]:
        first = Path("/proc/stat").read_text().partition("\n")[0]
        return [int(value) for value in first.split()[1:9]]

    if not Path("/proc/stat").exists():
        return 0.0
    before = ticks()
    time.sleep(seconds)
    passed = [after - earlier for after, earlier in zip(ticks(), before)]
    idle = passed[3] + passed[4]
    return 1 - idle / max(1, sum(passed))


def spread(row: dict) -> float:
    """By how much the most variable line of a row varies, as a fraction of its lowest value."""
    lines = [line for line in row["checks"] if line["low"] > 0]
    return max((line["high"] / line["low"] - 1 for line in lines), default=0.0)


def measure(names: list[str], path: Path = RESULT) -> dict:
    """Measure the rows `names` and write each into the record at `path` when it is finished.

    Rows that were measured before stay, if they come from the same machine and versions.
    """
    result = dict(experiment="benchmarks", **machine(), rows={})
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if all(earlier.get(key) == result[key] for key in machine()):
            result = earlier
        else:
            print("The record comes from another machine or other versions: it starts afresh.")
    for name in names:
        print(f"{name} ...", flush=True)
        if (others := busy()) > 0.1:
            print(
                f"The machine is not idle ({others:.0%} busy): other work will be in the timings."
            )
        start = time.perf_counter()
        row = ROWS[name]()
        if spread(row) > 0.2 and time.perf_counter() - start < 60:
            row = min(row, ROWS[name]() | dict(repeated=True), key=spread)
        row |= dict(busy=others, took=time.perf_counter() - start, date=date.today().isoformat())
        result["rows"][name] = row
        result["rows"] = {key: result["rows"][key] for key in ROWS if key in result["rows"]}
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
        print("\n".join(lines(result, [name])), flush=True)
    return result


def lines(result: dict, names: list[str]) -> list[str]:
    """The table's lines for these rows, in Markdown."""
    out = []
    for c in (c for name in names for c in result["rows"][name]["checks"]):
        value, low, high = (f"{c[key]:.{c['digits']}f}" for key in ("median", "low", "high"))
        ((kind, goal),) = c["target"].items()
        target = f"{'≤' if kind == 'at_most' else '≥'} {goal:g}{c['unit']}" if goal else ""
        verdict = "met" if c["met"] else f"missed by {100 * c['off']:.0f} %"
        verdict = verdict if goal else "stated"
        measured = f"{value}{c['unit']} ({low} to {high})"
        out.append(f"| {c['measure']} | {c['against']} | {target} | {measured} | {verdict} |")
    return out


def page(result: dict) -> str:
    """The whole table and the machine it was measured on: a page of its own."""
    days = sorted({row["date"] for row in result["rows"].values()})
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Written by `make bench`. A ratio compares two runs made one after the other.",
            "",
            *HEAD,
            *lines(result, list(result["rows"])),
            "",
            f"Measured on {result['machine']}, {result['threads']} threads, with {versions}; "
            f"{' to '.join(days[:: max(1, len(days) - 1)])}.",
            "",
        ]
    )


def into_readme(text: str, result: dict) -> str:
    """README text with the short table of `result` between its two marks."""
    start, end = MARKS
    before, after = text.split(start)[0], text.split(end)[1]
    checks = [c for row in result["rows"].values() for c in row["checks"]]
    missed = sum(not c["met"] for c in checks)
    shown = [lines(result, [name])[0] for name in SHOWN if name in result["rows"]]
    where = PAGE.relative_to(ROOT).as_posix()
    rest = f"[All {len(checks)} lines and the machine]({where}): {missed} targets are missed."
    return f"{before}{start}" + "\n".join([*HEAD, *shown, "", rest, end]) + after


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    usual = [name for name in ROWS if name not in LONG]
    parser.add_argument("--only", nargs="+", choices=ROWS, default=usual, metavar="ROW")
    os.environ["D2LRES_PROGRESS"] = "0"
    result = measure(parser.parse_args(arguments).only)
    PAGE.write_text(page(result), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(into_readme(readme.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
