"""The benchmarks: eight comparisons, each made side by side on this machine.

    make bench                                                # all; 40 minutes on 2 idle cores
    python assets/make_benchmarks.py --only imports depth     # these, the others as they were

A row times both sides alternately, several times; its ratios are taken within a repetition, and
their median, lowest and highest value are kept. The rows go into assets/results/benchmarks.json as
they are finished, from there into a page beside it, and a few lines of that into the README. A
target that is missed stays missed.
"""

import argparse
import contextlib
import copy
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
from make_experiments import cpu, versions, write_json
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

from d2lres import BasicBlock, ResNet, cifar_resnet, resnet18
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
SHOWN = ["resnet18", "feeding", "ninety", "five_minutes", "processes"]
MARKS = ("<!-- benchmarks: written by make bench -->\n", "<!-- end of benchmarks -->\n")


def check(
    measure: str, against: str, samples: list[float], unit: str = "", *, digits: int = 2, **target
) -> dict:
    """One line of the table: the samples' median and spread against at_most= or at_least=.

    "met" is decided by the median; "off" is the fraction of the target by which it is missed.
    """
    ((kind, goal),) = target.items()
    median = statistics.median(samples)
    off = max(0.0, median / goal - 1 if kind == "at_most" else 1 - median / goal)
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


def imports(repetitions: int = 9) -> dict:
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
            check("`import d2lres`, seconds", "`import torch`", torch_alone, "×", at_most=1.1),
            check("the same", "`from d2l import torch`", d2l_too, "×", at_most=0.5),
        ],
        seconds=seconds,
    )


def resnet18_at_96(repetitions: int = 4, batch: int = 256, steps: int = 4) -> dict:
    """Training images a second of one net in two loops, and the FLOP/s that ours makes of them."""
    train, test = fashion_mnist("full", size=96)
    torch.manual_seed(0)
    net = resnet18(num_classes=10, in_channels=1)
    work = training_flops(net, train)
    speed: dict[str, list[float]] = dict(d2lres=[], bfloat16=[], d2l=[])
    ceiling = []
    for bfloat16 in (False, True):  # the first call of each operation prepares it
        our_speed(net, train[:batch], batch, bfloat16)
    part, few = train[: steps * batch], list(test[:2].batches(2))
    with d2l_loaders(train, test, batch, resize=96) as (loader, _):
        for _ in range(repetitions):
            before = kernel_flops()
            speed["d2lres"].append(our_speed(net, part, batch))
            after = kernel_flops()
            ceiling.append((max(before.values()) + max(after.values())) / 2)
            speed["d2l"].append(d2l_speed(net, loader, few, batch, steps))
            speed["bfloat16"].append(our_speed(net, part, batch, bfloat16=True))
    reached = [work * images / top for images, top in zip(speed["d2lres"], ceiling)]
    faster, bfloat16 = (ratios(speed[name], speed["d2l"]) for name in ("d2lres", "bfloat16"))
    measure = f"training ResNet-18 at 96×96, batch {batch}, images/s"
    theirs = "d2l's loader and loop"
    return dict(
        checks=[
            check(measure, theirs, faster, "×", at_least=1.3),
            check("the same with `mixed_precision=True`", theirs, bfloat16, "×", at_least=1.3),
            check(
                "the first in FLOP/s, as a fraction",
                f"the fastest of {len(after)} kernels: matrix products and convolutions, float32",
                reached,
                at_least=0.65,
            ),
        ],
        images_per_second=speed,
        flops_per_image=work,
        ceiling_flops_per_second=ceiling,
        kernels_flops_per_second=after,
    )


def training_flops(net: nn.Module, data: Images) -> float:
    """Floating-point operations of one training step for an image: convolutions and matrix
    products, forward and backward, a multiplication and an addition each."""
    x, y = next(data[:2].batches(2))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(copy.deepcopy(net)(x), y).backward()
    return counter.get_total_flops() / 2


def kernels(batch: int = 32) -> dict[str, tuple[int, Callable]]:
    """Where nothing but arithmetic is asked for: {name: (floating-point operations, function)}.

    Matrix products and convolutions have libraries of their own, and which is the faster one
    depends on the processor; so do sizes, and the order of a convolution's numbers in memory.
    """
    found: dict[str, tuple[int, Callable]] = {}
    for n in (1024, 2048, 4096):
        a, b = torch.randn(2, n, n)
        found[f"matmul {n}"] = 2 * n**3, partial(torch.matmul, a, b)
    a, b, c = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.randn(16, 512, 512)
    found["linear 2048"] = 2 * 2048**3, partial(F.linear, a, b)
    found["bmm 16 x 512"] = 16 * 2 * 512**3, partial(torch.bmm, c, c)
    for kernel, channels, side in (1, 64, 24), (1, 256, 24), (3, 64, 24), (3, 128, 12), (3, 256, 6):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, channels, side, side).to(memory_format=layout)
            w = torch.randn(channels, channels, kernel, kernel).to(memory_format=layout)
            name = f"convolution {kernel}x{kernel}, {channels} channels, {layout}"
            function = partial(F.conv2d, x, w, padding=kernel // 2)
            found[name] = 2 * batch * side**2 * w.numel(), function
    return found


def kernel_flops(repetitions: int = 5) -> dict[str, float]:
    """What each kernel reaches on this machine: FLOP/s in its median time. The first is not timed."""
    reached = {}
    for name, (work, function) in kernels().items():
        seconds = [clock(function) for _ in range(repetitions + 1)][1:]
        reached[name] = work / statistics.median(seconds)
    return reached


def our_speed(net: nn.Module, train: Images, batch: int, bfloat16: bool = False) -> float:
    model = copy.deepcopy(net).to(memory_format=torch.channels_last)
    settings = dict(epochs=1, lr=0.05, batch_size=batch, device="cpu", mixed_precision=bfloat16)
    history = fit(model, train, **settings)
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


RECIPES = {
    "ninety": dict(width=16, epochs=3, batch_size=256, lr=0.4, weight_decay=1e-4),
    "five_minutes": dict(
        width=32,
        epochs=10,
        batch_size=256,
        lr=0.4,
        weight_decay=5e-4,
        label_smoothing=0.1,
        mixed_precision=True,
    ),
}


def train_small(name: str, seed: int) -> dict:
    """One run of a recipe on the full set: its test accuracy, and the seconds it took to get it, from
    the images in memory on: building the net, training and testing."""
    recipe = dict(RECIPES[name])
    train, test = fashion_mnist("full")
    start = time.perf_counter()
    net = small_net(recipe.pop("width"), seed)
    lr, decay = recipe.pop("lr"), recipe.pop("weight_decay")
    optimizer = SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)
    steps = recipe["epochs"] * math.ceil(len(train) / recipe["batch_size"])
    scheduler = OneCycleLR(optimizer, lr, steps, cycle_momentum=False)
    fit(net, train, seed=seed, optimizer=optimizer, scheduler=scheduler, device="cpu", **recipe)
    accuracy = evaluate(net, test).accuracy
    return dict(seed=seed, accuracy=accuracy, seconds=time.perf_counter() - start)


def ninety(seeds: int = 5, batch: int = 512, steps: int = 2) -> dict:
    """Seconds to 90 % test accuracy, against one epoch of the notes' recipe.

    The notes' epoch of 118 steps is not run here: a few steps of it are timed between our runs and
    scaled to 60,000 images. Its end is where that recipe is compared, whatever it has reached.
    """
    train, _ = fashion_mnist("full", size=96)
    torch.manual_seed(0)
    net = notes_resnet18()
    optimizer = Adam(net.parameters(), lr=1e-3)
    runs, epoch = [], []
    for seed in range(seeds):
        part = train[: steps * batch]
        history = fit(net, part, epochs=1, batch_size=batch, optimizer=optimizer, device="cpu")
        epoch.append(history.seconds[0] * len(train) / len(part))
        runs.append(train_small("ninety", seed))
    seconds = [run["seconds"] for run in runs]
    measure = "seconds to 90 % test accuracy on the full set"
    against = "the notes' recipe, one epoch (timed in part)"
    return dict(
        checks=[
            check(measure, against, ratios(epoch, seconds), "× faster", digits=0, at_least=15),
            check("the same", "two idle cores", seconds, " s", digits=0, at_most=60),
            check("test accuracy then", "", [r["accuracy"] for r in runs], digits=3, at_least=0.9),
        ],
        recipe=RECIPES["ninety"],
        runs=runs,
        notes_epoch_seconds=epoch,
    )


def five_minutes(seeds: int = 5) -> dict:
    """Test accuracy within five minutes."""
    runs = [train_small("five_minutes", seed) for seed in range(seeds)]
    against = "d2l's published 0.893 after 10 epochs on a GPU"
    accuracy, seconds = ([run[key] for run in runs] for key in ("accuracy", "seconds"))
    return dict(
        checks=[
            check("test accuracy within 5 minutes", against, accuracy, digits=3, at_least=0.93),
            check("the same", "5 minutes", seconds, " s", digits=0, at_most=300),
        ],
        recipe=RECIPES["five_minutes"],
        runs=runs,
    )


def depth(repetitions: int = 3, depths: tuple = (8, 20, 56, 110, 1004)) -> dict:
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

    def line(measure: str, values: dict) -> dict:
        off = [straightness({d: values[d][i] for d in depths}) for i in range(repetitions)]
        return check(measure, "a straight line", off, " off", at_most=0.15)

    return dict(
        checks=[line("cost of depth 8 to 1004: seconds a step", seconds), line("memory", memory)],
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


def processes(repetitions: int = 3) -> dict:
    """Training images a second of two processes and of one, with the same threads in total."""
    cores = os.cpu_count() or 1
    one = [sys.executable, "-m"]
    two = [*one, "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    train = ["d2lres", "train", "--model", "cifar_resnet", "--epochs", "2", "--device", "cpu"]
    train += ["--batch-size", "256"]
    speed: dict[str, list[float]] = {"two": [], "one": []}
    for _ in range(repetitions):
        for name, start, threads in (("one", one, cores), ("two", two, max(1, cores // 2))):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "run.pt")
                command = [*start, *train, "--threads", str(threads), "--checkpoint", str(file)]
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                last = load_checkpoint(file)["history"].seconds[-1]
            speed[name].append(len(fashion_mnist()[0]) / last)
    measure = "two processes training ResNet-20, batch 256, images/s"
    against = f"one process, {cores} threads in total in both"
    return dict(
        checks=[check(measure, against, ratios(*speed.values()), "×", at_least=0.9)],
        images_per_second=speed,
    )


ROWS = dict(
    imports=imports,
    resnet18=resnet18_at_96,
    feeding=feeding,
    ninety=ninety,
    five_minutes=five_minutes,
    depth=depth,
    processes=processes,
)

# --- the record and the table -----------------------------------------------------------------


def machine() -> dict:
    """What the figures depend on."""
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return dict(machine=f"{cpu()} ({capability})", threads=threads, versions=versions())


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
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5:
        print(f"The machine is not idle (load {load:.1f}): other work will be in the timings.")
    for name in names:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        row = ROWS[name]()
        row |= dict(took=time.perf_counter() - start, date=date.today().isoformat())
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
        target = f"{'≤' if kind == 'at_most' else '≥'} {goal:g}{c['unit']}"
        verdict = "met" if c["met"] else f"missed by {100 * c['off']:.0f} %"
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
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    os.environ["D2LRES_PROGRESS"] = "0"
    result = measure(parser.parse_args(arguments).only)
    PAGE.write_text(page(result), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(into_readme(readme.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
