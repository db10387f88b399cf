"""The long experiments: run once, recorded with everything needed to run them again.

    python assets/make_experiments.py degradation            # resumable
    python assets/make_experiments.py degradation --quick    # a taste: fewer seeds, epochs, steps

`python -m d2lres experiment` is the same command. A record is a JSON file: settings and their hash,
one entry a run, wall time, versions, machine and date; those in assets/results are the course's.

An experiment is a function of this file: it makes one run, and the decorator above it holds its
settings. Whoever adds another one adds nothing else.
"""

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from d2lres import speed
from d2lres.arguments import whole
from d2lres.checkpoints import one_at_a_time
from d2lres.data import Images, fashion_mnist
from d2lres.distributed import end_with_parent
from d2lres.networks import cifar_resnet
from d2lres.probes import gradient_norms, lesion, without_bn
from d2lres.records import asset
from d2lres.references import notes_resnet18
from d2lres.training import TrainingDiverged, default_device, evaluate, fit

Run = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Nets of some kinds and depths, each with some seeds; a run is one kind, depth and seed.

    settings: "kinds", "depths" and "seeds", and what `run` needs to know.
    quick: the settings in which the short version differs.
    run: run(settings, kind, depth, seed) -> what was measured, as plain data.
    summary: what is printed of a finished run, in a few words.
    """

    name: str
    settings: dict[str, Any]
    quick: dict[str, Any]
    run: Callable[[dict[str, Any], str, int, int], Run]
    summary: Callable[[Run], str]

    def config(self, quick: bool = False) -> dict[str, Any]:
        return self.settings | (self.quick if quick else {})


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, *, settings: dict, quick: dict, summary: Callable[[Run], str]):
    """Decorator: the function becomes the run of the experiment `name`."""

    def enter(run: Callable) -> Callable:
        EXPERIMENTS[name] = Experiment(name, settings, quick, run, summary)
        return run

    return enter


# --- what the experiments share ---------------------------------------------------------------


def images(settings: dict) -> tuple[Images, Images]:
    """Training and test images, on the device that trains."""
    train, test = fashion_mnist(settings["subset"], size=settings["size"])
    return train.to(default_device()), test.to(default_device())


def set_up(settings: dict, kind: str, depth: int, seed: int) -> tuple[Images, Images, nn.Module]:
    """Training and test images, and the net. "-zero" after the kind: with zero_init_residual."""
    train, test = images(settings)
    torch.manual_seed(seed)
    model = cifar_resnet(
        depth,
        in_channels=1,
        width=settings["width"],
        residual=kind.startswith("residual"),
        zero_init_residual=kind.endswith("-zero"),
    )
    return train, test, model.to(default_device())


def train_and_test(
    settings: dict, kind: str, depth: int, seed: int
) -> tuple[Run, nn.Module, Images]:
    """A net trained by `fit`: its run, itself and the test images."""
    train, test, model = set_up(settings, kind, depth, seed)
    return fit_and_score(settings, model, train, test, seed, lr=settings["lr"]), model, test


def fit_and_score(
    settings: dict, model: nn.Module, train: Images, test: Images, seed: int, **how: Any
) -> Run:
    """The run of a training by `fit`, with its learning rate or optimizer in `how`."""
    how |= {key: settings[key] for key in ("epochs", "batch_size")}
    try:
        history = fit(model, train, test, seed=seed, progress=False, **how)
    except TrainingDiverged as stop:
        return dict(train=None, test=None, history=asdict(stop.history))
    if history.interrupted:
        raise KeyboardInterrupt
    scores = dict(train=evaluate(model, train)._asdict(), test=evaluate(model, test)._asdict())
    return scores | dict(history=asdict(history))


@cache
def chapter(name: str) -> dict[str, Any]:
    """What the source of a chapter imports and defines: the reader's own classes and functions."""
    tree = ast.parse(asset(f"../notebooks/src/{name}.py").read_text(encoding="utf-8"))
    kinds = ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, kinds)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper())
    ]
    exec(compile(tree, name, "exec"), names := {})
    return names


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Images,
    batch_size: int,
    count: int,
    generator: torch.Generator,
) -> tuple[list[float], list[float]]:
    """Loss and seconds of each of `count` steps, up to the first loss that is not finite."""
    losses: list[float] = []
    seconds: list[float] = []
    start = time.perf_counter()
    while True:
        for x, y in train.batches(batch_size, shuffle=True, generator=generator):
            loss = F.cross_entropy(model(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            start += seconds[-1]
            if len(losses) == count or not math.isfinite(losses[-1]):
                return losses, seconds


def scores_and_time(run: Run) -> str:
    train = run["train"] or dict(loss=math.nan, accuracy=math.nan)
    seconds = sum(run["history"]["seconds"])
    return f"training loss {train['loss']:.3f}, accuracy {train['accuracy']:.1%}, {seconds:.0f} s"


def first_and_last_loss(run: Run) -> str:
    return f"loss {run['losses'][0]:.3g} to {run['losses'][-1]:.3g}"


# --- the experiments --------------------------------------------------------------------------

TRAINED = dict(  # what the trainings of the record have in common
    subset="sample", size=14, width=8, seeds=[0, 1, 2, 3, 4], batch_size=128, lr=0.1
)


@experiment(
    "degradation",
    settings=TRAINED | dict(depths=[8, 20, 56], kinds=["plain", "residual"], epochs=40),
    quick=dict(seeds=[0], epochs=2),
    summary=scores_and_time,
)
def degradation(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Train a net, and measure it on its own training images and on the test images.

    Returns {"train", "test", "history"}: loss and accuracy in eval mode, None if training diverged.
    """
    return train_and_test(settings, kind, depth, seed)[0]


@experiment(
    "gradients",
    settings=dict(
        subset="sample",
        size=14,
        width=8,
        depths=[8, 20, 56, 110],
        kinds=["plain", "residual"],
        seeds=[0, 1, 2, 3, 4],
        batch_size=64,
    ),
    quick=dict(seeds=[0], depths=[8, 20, 56]),
    summary=lambda run: f"first convolution's gradient {run['with_bn']['first']:.2g} with BN",
)
def gradients(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Gradient norms of the convolutions at initialisation, on one batch.

    Returns {"with_bn", "without_bn"}, of each {"first", "last", "all"}: two numbers, and all of them.
    """
    train, _, model = set_up(settings, kind, depth, seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = next(train.batches(settings["batch_size"], shuffle=True, generator=generator))
    run = {}
    for name, net in (("with_bn", model), ("without_bn", without_bn(model))):
        *norms, _ = gradient_norms(net, x, y).values()  # the last layer is linear
        run[name] = dict(first=norms[0], last=norms[-1], all=norms)
    return run


@experiment(
    "lesion",
    settings=TRAINED | dict(depths=[20], kinds=["plain", "residual"], epochs=10),
    quick=dict(seeds=[0], epochs=2),
    summary=scores_and_time,
)
def lesions(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """The run of the degradation experiment, and the trained net's test accuracy without each of
    its blocks and with two swapped: the entry "lesion", as `probes.lesion` returns it, or None."""
    run, model, test = train_and_test(settings, kind, depth, seed)
    return run | dict(lesion=lesion(model, test) if run["test"] else None)


REMEDIES: dict[str, dict[str, Any]] = {  # what is changed in the kind before the comma
    "plain": {},
    "plain, rate 0.01": dict(lr=0.01),
    "plain, rate 0.03": dict(lr=0.03),
    "plain, rate 0.3": dict(lr=0.3),
    "plain, long warm-up": dict(warm_up=0.7),  # of the run; fit's own takes 0.3
    "plain, Adam": dict(optimizer=torch.optim.Adam, lr=0.003),
    "plain, orthogonal": dict(start="orthogonal"),
    "plain, Dirac": dict(start="dirac"),
    "plain, Dirac + 0.3 He": dict(start="dirac", noise=0.3),
    "residual": {},
    "plain, no BN": dict(batch_norm=False, lr=0.003),
    "plain, no BN, Dirac": dict(batch_norm=False, lr=0.003, start="dirac"),
}


@torch.no_grad()
def start_at(model: nn.Module, start: str, noise: float = 0.0) -> None:
    """New initial weights for every convolution that keeps its channels.

    start: "dirac", which passes its input on, or "orthogonal", which turns the channels of each
        pixel (delta-orthogonal, Xiao et al. 2018, section 3.2). Both use the kernel's centre alone.
    noise: how much of the weights that were there before is added.
    """
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        if conv.in_channels == conv.out_channels:
            before = conv.weight.clone()
            nn.init.dirac_(conv.weight)
            if start == "orthogonal":
                conv.weight[:, :, 1, 1] = nn.init.orthogonal_(conv.weight[:, :, 1, 1].clone())
            conv.weight += noise * before


@experiment(
    "remedies",
    settings=TRAINED | dict(depths=[56], kinds=["plain, Dirac"], epochs=40),
    quick=dict(seeds=[0], epochs=2),
    summary=scores_and_time,
)
@experiment(
    "remedies-short",
    settings=TRAINED | dict(depths=[56], kinds=list(REMEDIES), epochs=3),
    quick=dict(seeds=[0], epochs=1),
    summary=scores_and_time,
)
def remedies(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """The run of the degradation experiment with one of REMEDIES.

    Returns {"train", "test", "history", "gradients"}: the last is {"first", "last"}, the gradient
    norms of the first and the last convolution on 64 images before training.
    """
    change = REMEDIES[kind]
    train, test, model = set_up(settings, kind, depth, seed)
    if not change.get("batch_norm", True):
        model = without_bn(model)
    if "start" in change:
        start_at(model, change["start"], change.get("noise", 0.0))
    x, y = next(train.batches(64, shuffle=True, generator=torch.Generator().manual_seed(seed)))
    norms = list(gradient_norms(model, x, y).values())
    gradients = dict(first=norms[0], last=norms[-2])
    rate = change.get("lr", settings["lr"])
    steps = settings["epochs"] * math.ceil(len(train) / settings["batch_size"])
    if "optimizer" in change:
        optimizer = change["optimizer"](model.parameters(), rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=change.get("warm_up", 0.3), cycle_momentum=False
    )
    run = fit_and_score(settings, model, train, test, seed, optimizer=optimizer, scheduler=cycle)
    return run | dict(gradients=gradients)


@experiment(
    "thousand-layers",
    settings=dict(
        subset="sample",
        size=8,
        width=4,
        depths=[1004],
        kinds=["plain", "plain-zero", "residual", "residual-zero"],
        seeds=[0, 1, 2, 3, 4],
        steps=60,
        batch_size=64,
        lr=0.02,
    ),
    quick=dict(seeds=[0], steps=20),
    summary=first_and_last_loss,
)
def thousand_layers(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Train for some steps of SGD with momentum 0.9; with "-zero" a residual block starts as the
    identity, a plain one as 0.

    Returns {"losses", "seconds"}, one entry a step, up to the first loss that is not finite.
    """
    train, _, model = set_up(settings, kind, depth, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["lr"], momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    losses, seconds = take_steps(
        model, optimizer, train, settings["batch_size"], settings["steps"], generator
    )
    return dict(losses=losses, seconds=seconds)


@experiment(
    "recipe",
    settings=dict(
        subset="full",
        size=96,
        depths=[18],
        kinds=["residual"],
        seeds=[0],  # an epoch takes twenty minutes on two cores
        epochs=5,
        epochs_on_cpu=1,
        steps=None,  # all of them
        batch_size=512,
        lr=0.001,
    ),
    quick=dict(subset="sample", steps=6),
    summary=first_and_last_loss,
)
def recipe(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """The notes' own run: their ResNet-18, Adam at a constant rate, 96 x 96 pixels.

    Returns {"losses", "seconds", "test"}: loss and seconds of each step, and loss and accuracy on
    the test images after each epoch, or after `steps` if that is set.
    """
    device = default_device()
    train, test = images(settings)
    torch.manual_seed(seed)
    model = notes_resnet18().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    generator = torch.Generator().manual_seed(seed)
    batch_size = settings["batch_size"]
    steps = settings["steps"] or math.ceil(len(train) / batch_size)
    epochs = settings["epochs_on_cpu" if device.type == "cpu" else "epochs"]
    run: Run = dict(losses=[], seconds=[], test=[])
    for _ in range(1 if settings["steps"] else epochs):
        losses, seconds = take_steps(model, optimizer, train, batch_size, steps, generator)
        run["losses"] += losses
        run["seconds"] += seconds
        run["test"].append(evaluate(model, test)._asdict())
    return run


# Chapter 07 builds the nets of these three, and the directions of the last.


@experiment(
    "family",
    settings=dict(
        subset="full",
        size=28,
        validation=10_000,  # of the training images; the rest is trained on
        depths=[14],
        kinds=[
            "base",
            "zero padding",
            "zeros at the start",
            "D stem",
            "D shortcut",
            "bottleneck",
            "grouped",
            "wider, fewer blocks",
            "full pre-activation",
            "squeeze-excite",
            "stochastic depth",
            "longer",
            "longer, augmented",
        ],
        seeds=[0, 1, 2, 3, 4],
        epochs=4,
        longer=12,
        batch_size=128,
        lr=0.1,
    ),
    quick=dict(subset="sample", validation=1_000, seeds=[0], epochs=1, longer=2),
    summary=lambda run: f"validation accuracy {run['validation']['accuracy']:.1%}",
)
def family(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Train the base network of chapter 07 with one change, in its architecture or in its recipe.

    Returns {"train", "validation", "test", "history"}: loss and accuracy on the three sets, in eval
    mode, after training. The history's test is the validation set, too.
    """
    (train, test), cut = images(settings), settings["validation"]
    train, validation = train[:-cut], train[-cut:]
    torch.manual_seed(seed)
    model = chapter("07_the_family")["small"](kind).to(default_device())
    how: dict[str, Any] = dict(lr=settings["lr"])
    if kind.startswith("longer"):
        settings = settings | dict(epochs=settings["longer"])
    if kind.endswith("augmented"):
        how |= dict(augment=True, label_smoothing=0.1)
    run = fit_and_score(settings, model, train, validation, seed, **how)
    return run | dict(validation=run["test"], test=evaluate(model, test)._asdict())


@experiment(
    "orders",
    settings=TRAINED
    | dict(
        depths=[110],
        kinds=[
            "original",
            "BN after addition",
            "ReLU before addition",
            "ReLU-only pre-activation",
            "full pre-activation",
            "full pre-activation without the end",
            "original, dropped up to 0.2",
            "original, dropped up to 0.5",
        ],
        epochs=6,
    ),
    quick=dict(seeds=[0], epochs=1),
    summary=scores_and_time,
)
def orders(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """The run of the degradation experiment, with the deep networks of chapter 07."""
    train, test = images(settings)
    torch.manual_seed(seed)
    model = chapter("07_the_family")["deep"](kind, depth, settings["width"])
    return fit_and_score(settings, model.to(default_device()), train, test, seed, lr=settings["lr"])


@experiment(
    "surface",
    settings=TRAINED
    | dict(
        depths=[20, 56],
        kinds=["plain", "residual"],
        epochs=10,
        images=500,
        points=21,  # a side
        planes=2,  # other directions
    ),
    quick=dict(seeds=[0], epochs=1, points=5, planes=1),
    summary=scores_and_time,
)
def surface(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """The run of the degradation experiment, and the training loss around the trained weights.

    Returns also "planes": for each plane {"stored", "batch"}, `points` rows of as many losses, from
    -1 to 1 along two filter-normalised directions: with BN's running statistics and the batch's own.
    """
    run, model, _ = train_and_test(settings, kind, depth, seed)
    train, _ = images(settings)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    x, y = train[some[: settings["images"]]].tensors()
    n, names = settings["points"], chapter("07_the_family")
    line = torch.linspace(-1, 1, n).tolist()
    places = [(a, b) for a in line for b in line]
    run["planes"] = []
    for plane in range(settings["planes"]):
        steps = [names["direction"](model, 2 * plane + i) for i in (0, 1)]
        both = {}
        for mode, own in (("stored", False), ("batch", True)):
            found = names["losses"](model, steps, places, x, y, batch_statistics=own)
            both[mode] = [found[i : i + n] for i in range(0, n * n, n)]
        run["planes"].append(both)
    return run


# Chapter 08 reuses a trained net on other images; here "depth" is the number of frozen parts.


@experiment(
    "transfer",
    settings=dict(
        depths=[0, 7, 10],  # of eleven parts
        kinds=["digits, trained", "digits, new", "faces, trained", "faces, new"],
        labels=dict(digits=[5, 10, 50, 100], faces=[5, 10, 25]),  # a class
        rates=[0.01, 0.1, 1.0],
        seeds=[0, 1, 2, 3, 4],
        steps=200,
    ),
    quick=dict(seeds=[0], labels=dict(digits=[5], faces=[5]), steps=5),
    summary=lambda run: f"test accuracy {run['scores'][0]['test']:.1%} and more",
)
def transfer(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Train the parts above the first `depth` on a few labels; "trained" starts from the weights
    that the course ships, "new" from random ones.

    Returns {"scores"}: labels a class, rate, and accuracy on the images left over and on the test set.
    """
    names = chapter("08_transfer")
    which, start = kind.split(", ")
    pool, test = names[which]()
    torch.manual_seed(seed)
    net = cifar_resnet(20, in_channels=1, weights="fashion_mnist" if start == "trained" else None)
    scores = []
    for labels, rate in product(settings["labels"][which], settings["rates"]):
        train, left = names["few"](pool, labels, seed)
        reused = names["reuse"](net, depth, train, rate, seed, settings["steps"])
        sets = dict(validation=left[:200], test=test)
        found = {name: evaluate(reused, images).accuracy for name, images in sets.items()}
        scores.append(dict(labels=labels, rate=rate) | found)
    return dict(scores=scores)


@experiment(
    "thaw",
    settings=dict(
        depths=list(range(11)),
        kinds=["trained", "new"],
        labels=[5, 50],
        rate=0.1,
        seeds=[0, 1, 2, 3, 4],
        steps=200,
    ),
    quick=dict(depths=[0, 10], labels=[5], seeds=[0], steps=5),
    summary=lambda run: ", ".join(f"{n} labels {share:.1%}" for n, share in run["test"].items()),
)
def thaw(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Digits: freeze the first `depth` trained parts; the others start trained, or "new".

    Returns {"test"}: the test accuracy by the number of labels a class.
    """
    names = chapter("08_transfer")
    pool, test = names["digits"]()
    net = cifar_resnet(20, in_channels=1, weights="fashion_mnist")
    if kind == "new":
        torch.manual_seed(seed)
        new = names["parts"](cifar_resnet(20, in_channels=1))
        for part, other in list(zip(names["parts"](net), new))[depth:]:
            part.load_state_dict(other.state_dict())
    found = {}
    for labels in settings["labels"]:
        train, _ = names["few"](pool, labels, seed)
        reused = names["reuse"](net, depth, train, settings["rate"], seed, settings["steps"])
        found[str(labels)] = evaluate(reused, test).accuracy
    return dict(test=found)


@experiment(
    "clinic",
    settings=dict(
        depths=[8],
        kinds=[
            *("misspelt", "listed", "ignored", "in_place", "twice", "stride", "sequence"),
            *("scaled", "shuffled", "softmax_twice", "no_zero_grad", "scheduled", "thawing"),
            *("healthy", "plain", "pre_activation", "torchvisions", "perceptron"),
            *("without_norm", "transformer"),
        ],
        seeds=[0, 1, 2, 3, 4],
        steps=150,
    ),
    quick=dict(seeds=[0], steps=5),
    summary=lambda run: f"alarms: {', '.join(n for n, a in run['alarms'].items() if a) or 'none'}",
)
def clinic(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Examine a case of chapter 10, and train it for a few steps; all of them have `depth` 8.

    Returns {"alarms": by probe 1, 0 or None for not tested, "accuracy": None if it does not run}.
    """
    names = chapter("10_the_clinic")
    alarms, accuracy = names["row"](names[kind](seed)), None
    if not alarms["runs"]:
        *_, accuracy = names["course"](**names[kind](seed), seed=seed, steps=settings["steps"])
    return dict(alarms=alarms, accuracy=accuracy)


# Chapter 06 climbs a ladder of changes to a recipe; "depth" is the net's, but for one rung.


@experiment(
    "ladder",
    settings=dict(
        subset="full",
        validation=10_000,  # of the training images; the rest is trained on
        depths=[8],
        kinds=list(speed.LADDER),
        seeds=[0, 1, 2, 3, 4],
        lengths=[1, 3],  # epochs
    ),
    quick=dict(subset="sample", validation=1_000, seeds=[0], lengths=[1]),
    summary=lambda run: f"validation accuracy {run['lengths'][-1]['accuracy']:.1%}",
)
def ladder(settings: dict, kind: str, depth: int, seed: int) -> Run:
    """Train by the recipe of one rung, once for each of the lengths. On the CPU, whatever there is.

    Returns {"lengths"}: epochs, validation accuracy, and seconds of all cores together, from the
    images in memory to that accuracy.
    """
    (train, _), cut = fashion_mnist(settings["subset"], size=28), settings["validation"]
    train, validation = train[:-cut], train[-cut:]
    recipe, lengths = speed.rung(kind), []
    feed = chapter("06_training")["one_by_one"] if kind == "images one by one" else speed.batches
    for epochs in settings["lengths"]:
        start = time.process_time()
        net = speed.trained(replace(recipe, epochs=epochs), train, seed, feed)
        found = speed.accuracy(recipe, net, validation)
        seconds = time.process_time() - start
        lengths.append(dict(epochs=epochs, accuracy=found, seconds=seconds))
    return dict(lengths=lengths)


# --- recording --------------------------------------------------------------------------------


def config_hash(settings: dict) -> str:
    """Twelve hex digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def tasks(settings: dict) -> list[tuple[str, int, int]]:
    """Kind, depth and seed of every run: the deepest net first, so that processes end together."""
    return [
        (kind, depth, seed)
        for seed in settings["seeds"]
        for depth in sorted(settings["depths"], reverse=True)
        for kind in settings["kinds"]
    ]


def run_once(name: str, settings: dict, kind: str, depth: int, seed: int) -> Run:
    """One run of the experiment `name`, as it stands in a record."""
    measured = EXPERIMENTS[name].run(settings, kind, depth, seed)
    return dict(kind=kind, depth=depth, seed=seed) | measured


def record(
    name: str, quick: bool = False, output: str | Path | None = None, workers: int | None = None
) -> Path:
    """Run the experiment and record it in `output`, resumably. Returns the path.

    output: the default is results/NAME.json, or results/NAME-quick.json. Runs finished earlier are
        read from a file of this name with .unfinished after it, and not repeated.
    workers: processes of one thread each that share the runs; the default is one a core on a CPU,
        where a lone run gets all cores, and one on a GPU.

    Raises ValueError for an unknown name and for a file that does not fit, finished or not, and
    CheckpointError while another process records there.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: choose one of {', '.join(EXPERIMENTS)}.")
    if workers is not None:
        whole("workers", workers)
    settings = EXPERIMENTS[name].config(quick)
    output = Path(output or f"results/{name}{'-quick' if quick else ''}.json")
    with one_at_a_time(output):
        started(output, name, settings)  # a record of other settings is not written over
        _record(name, settings, output, workers)
    return output


def _record(name: str, settings: dict, output: Path, workers: int | None) -> None:
    unfinished = output.with_name(f"{output.name}.unfinished")
    result = started(unfinished, name, settings)
    done = {(run["kind"], run["depth"], run["seed"]) for run in result["runs"]}
    todo = [task for task in tasks(settings) if task not in done]
    if workers is None:
        on_cpu = default_device().type == "cpu"
        workers = min(os.cpu_count() or 1, len(tasks(settings))) if on_cpu else 1

    print(f"{name}: {len(done)} of {len(done) + len(todo)} runs done, {workers} at a time")
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (workers,)) as pool:
        before, start = result["seconds"], time.perf_counter()
        futures = [pool.submit(run_once, name, settings, *task) for task in todo]
        try:
            for future in as_completed(futures):
                run = future.result()
                result["runs"].append(run)
                result["seconds"] = round(before + time.perf_counter() - start, 1)
                write_json(unfinished, result)
                title = f"{run['kind']}-{run['depth']} seed {run['seed']}"
                print(f"{title}: {EXPERIMENTS[name].summary(run)}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    result["runs"].sort(key=lambda run: (run["depth"], run["kind"], run["seed"]))
    result |= dict(versions=versions(), machine=machine(workers), date=date.today().isoformat())
    write_json(unfinished, result)
    os.replace(unfinished, output)


def started(path: Path, name: str, settings: dict) -> dict:
    """The record as far as it has come: from the file, if there is one, else without runs."""
    fresh = dict(experiment=name, config=settings, config_hash=config_hash(settings))
    if not path.exists():
        return fresh | dict(seconds=0.0, runs=[])
    problem = f"{path} was made with other settings"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["config_hash"] == fresh["config_hash"] and earlier["experiment"] == name:
            return earlier
    except (ValueError, KeyError, TypeError):
        problem = f"{path} is no record, or a damaged one"
    raise ValueError(f"{problem}: choose another --output, or move it away to start afresh.")


def start_worker(workers: int) -> None:
    end_with_parent()
    if workers > 1:
        torch.set_num_threads(1)


def write_json(path: Path, value: dict) -> None:
    """Write in one step, with six digits a number; NaN and infinity become null."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: rounded(entry) for key, entry in value.items()}
        return [rounded(entry) for entry in value] if isinstance(value, list) else value

    text = json.dumps(rounded(value), indent=1)
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda row: "".join(row[0].split()), text)  # numbers: a line
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Of Python and of the packages that the figures depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "numpy")
    }


def cpu() -> str:
    """Number and model of the cores, and their instructions that matter here."""
    found = re.search(r"^model name\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name} ({', '.join(instruction_sets())})"


def instruction_sets() -> list[str]:
    """Those for vectors and for bfloat16 that the processor has, as Linux names them."""
    found = re.search(r"^(flags|Features)\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    names = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
    return [name for name in names if found and name in found[2].split()]


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def machine(workers: int) -> str:
    device = default_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu()}, {workers} runs at a time"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a long experiment and record it.")
    parser.add_argument("name", help=", ".join(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="fewer seeds, epochs or steps")
    parser.add_argument(
        "--output", type=Path, help="default: results/NAME.json, or results/NAME-quick.json"
    )
    parser.add_argument(
        "--workers", type=int, help="processes of one thread each (default: one a core)"
    )
    given = parser.parse_args(arguments)
    try:
        print("recorded in", record(given.name, given.quick, given.output, given.workers))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"d2lres: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nd2lres: stopped; what was finished is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
