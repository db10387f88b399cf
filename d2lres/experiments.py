"""The long experiments: run once, recorded with everything needed to run them again.

    python -m d2lres experiment degradation            # resumable
    python -m d2lres experiment degradation --quick    # a taste: the same with fewer seeds, epochs

The others are gradients, lesion, thousand-layers and recipe. All train or measure plain and residual
nets of some depths with some seeds; a run is one kind, depth and seed.

A record is a JSON file: configuration and its hash, seeds, versions, machine, wall time, date and
one entry a run. The chapters plot it beside their own short runs.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from d2lres._assets import asset
from d2lres.data import Images, fashion_mnist
from d2lres.networks import cifar_resnet
from d2lres.probes import gradient_norms, lesion, without_bn
from d2lres.references import notes_resnet18
from d2lres.training import TrainingDiverged, default_device, evaluate, fit

CONFIGS = {
    "degradation": dict(
        subset="sample",
        size=14,
        width=8,
        depths=[8, 20, 56],
        kinds=["plain", "residual"],
        seeds=[0, 1, 2, 3, 4],
        epochs=40,
        batch_size=128,
        lr=0.1,
    ),
    "gradients": dict(
        subset="sample",
        size=14,
        width=8,
        depths=[8, 20, 56, 110],
        kinds=["plain", "residual"],
        seeds=[0, 1, 2, 3, 4],
        batch_size=64,
    ),
    "lesion": dict(
        subset="sample",
        size=14,
        width=8,
        depths=[20],
        kinds=["plain", "residual"],
        seeds=[0, 1, 2, 3, 4],
        epochs=10,
        batch_size=128,
        lr=0.1,
    ),
    "thousand-layers": dict(
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
    "recipe": dict(
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
}
QUICK = {
    "degradation": dict(seeds=[0], epochs=2),
    "gradients": dict(seeds=[0], depths=[8, 20, 56]),
    "lesion": dict(seeds=[0], epochs=2),
    "thousand-layers": dict(seeds=[0], steps=20),
    "recipe": dict(subset="sample", steps=6),
}


def config(name: str, quick: bool = False) -> dict:
    """The settings of an experiment. Raises ValueError for a name that is none."""
    if name not in CONFIGS:
        raise ValueError(f"unknown experiment {name!r}: choose one of {', '.join(CONFIGS)}.")
    return CONFIGS[name] | (QUICK[name] if quick else {})


def config_hash(settings: dict) -> str:
    """Twelve hex digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def degradation_run(settings: dict, kind: str, depth: int, seed: int, progress=None) -> dict:
    """Train one net and measure it on its own training images and on the test images.

    Returns {"kind", "depth", "seed", "history", "train", "test"}; the last two hold loss and
    accuracy in eval mode, None if training diverged.
    """
    return _train(settings, kind, depth, seed, progress)[0]


def gradients_run(settings: dict, kind: str, depth: int, seed: int, progress=None) -> dict:
    """Gradient norms of the first and the last convolution at initialisation, on one batch.

    Returns {"kind", "depth", "seed", "with_bn": {"first", "last"}, "without_bn": {...}}.
    """
    train, _, model = _set_up(settings, kind, depth, seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = next(train.batches(settings["batch_size"], shuffle=True, generator=generator))
    run = dict(kind=kind, depth=depth, seed=seed)
    for name, net in (("with_bn", model), ("without_bn", without_bn(model))):
        norms = list(gradient_norms(net, x, y).values())
        run[name] = dict(first=norms[0], last=norms[-2])  # the very last layer is linear
    return run


def lesion_run(settings: dict, kind: str, depth: int, seed: int, progress=None) -> dict:
    """The run of the degradation experiment, and the trained net's test accuracy without each of
    its blocks and with two swapped: the entry "lesion", as `probes.lesion` returns it, or None."""
    run, model, test = _train(settings, kind, depth, seed, progress)
    return run | {"lesion": lesion(model, test) if run["test"] else None}


def thousand_layers_run(settings: dict, kind: str, depth: int, seed: int, progress=None) -> dict:
    """Train for some steps of SGD with momentum 0.9. "-zero" after the kind of net: with
    zero_init_residual, so that a residual block starts as the identity, a plain one as 0.

    Returns {"kind", "depth", "seed", "losses", "seconds"}, one entry a step; the losses end with
    the first that is not finite.
    """
    train, _, model = _set_up(settings, kind, depth, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["lr"], momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    losses, seconds = _steps(model, optimizer, train, settings, generator, settings["steps"])
    return dict(kind=kind, depth=depth, seed=seed, losses=losses, seconds=seconds)


def recipe_run(settings: dict, kind: str, depth: int, seed: int, progress=None) -> dict:
    """The notes' own run: their ResNet-18, Adam at a constant rate, 96 x 96 pixels.

    Returns {"kind", "depth", "seed", "losses", "seconds", "test"}: loss and seconds of each step,
    and loss and accuracy on the test images after each epoch, or after `steps` if that is set.
    """
    device = default_device()
    train, test = fashion_mnist(settings["subset"], size=settings["size"])
    train, test = train.to(device), test.to(device)
    torch.manual_seed(seed)
    model = notes_resnet18().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    generator = torch.Generator().manual_seed(seed)
    epochs = settings["epochs_on_cpu" if device.type == "cpu" else "epochs"]
    steps = settings["steps"] or math.ceil(len(train) / settings["batch_size"])
    run = dict(kind=kind, depth=depth, seed=seed, losses=[], seconds=[], test=[])
    for _ in range(1 if settings["steps"] else epochs):
        losses, seconds = _steps(model, optimizer, train, settings, generator, steps)
        run["losses"] += losses
        run["seconds"] += seconds
        run["test"].append(evaluate(model, test)._asdict())
    return run


def _steps(model, optimizer, train, settings, generator, count) -> tuple[list[float], list[float]]:
    """Loss and seconds of each of `count` steps, up to the first loss that is not finite."""
    losses: list[float] = []
    seconds: list[float] = []
    start = time.perf_counter()
    while len(losses) < count and all(map(math.isfinite, losses)):
        for x, y in train.batches(settings["batch_size"], shuffle=True, generator=generator):
            loss = F.cross_entropy(model(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            start += seconds[-1]
            if len(losses) == count or not math.isfinite(losses[-1]):
                break
    return losses, seconds


def _set_up(settings: dict, kind: str, depth: int, seed: int) -> tuple[Images, Images, nn.Module]:
    device = default_device()
    train, test = fashion_mnist(settings["subset"], size=settings["size"])
    torch.manual_seed(seed)
    model = cifar_resnet(
        depth,
        in_channels=1,
        width=settings["width"],
        residual=kind.startswith("residual"),
        zero_init_residual=kind.endswith("-zero"),
    )
    return train.to(device), test.to(device), model.to(device)


def _train(settings, kind, depth, seed, progress) -> tuple[dict, nn.Module, Images]:
    train, test, model = _set_up(settings, kind, depth, seed)
    hyperparameters = {key: settings[key] for key in ("epochs", "batch_size", "lr")}
    run = dict(kind=kind, depth=depth, seed=seed, train=None, test=None)
    try:
        history = fit(model, train, test, seed=seed, progress=progress, **hyperparameters)
    except TrainingDiverged as stop:
        return run | {"history": asdict(stop.history)}, model, test
    if history.interrupted:
        raise KeyboardInterrupt
    run["history"] = asdict(history)
    last_test = dict(loss=history.test_loss[-1], accuracy=history.test_accuracy[-1])
    return run | {"train": evaluate(model, train)._asdict(), "test": last_test}, model, test


RUN = {
    "degradation": degradation_run,
    "gradients": gradients_run,
    "lesion": lesion_run,
    "thousand-layers": thousand_layers_run,
    "recipe": recipe_run,
}


def runs(settings: dict, progress: bool | None = None, name: str = "degradation") -> Iterator[dict]:
    """Every run of experiment `name`, one after the other, in this process."""
    for task in _tasks(settings):
        yield RUN[name](settings, *task, progress)


def record(
    name: str, quick: bool = False, output: str | Path | None = None, workers: int | None = None
) -> Path:
    """Run the experiment and record it in `output` (default: results/NAME.json), resumably.

    Runs finished earlier are read from NAME.json.unfinished beside it and not repeated. On a CPU,
    `workers` processes of one thread each (default: one a core) share the runs. Returns the path.
    """
    settings = config(name, quick)
    output = Path(output) if output is not None else Path("results") / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.unfinished")
    if workers is None:
        workers = 1 if default_device().type != "cpu" else os.cpu_count() or 1
        workers = min(workers, len(_tasks(settings)))  # a lone run gets all cores

    result = dict(experiment=name, config=settings, config_hash=config_hash(settings))
    result |= dict(seconds=0.0, runs=[])
    if unfinished.exists():
        try:
            earlier = json.loads(unfinished.read_text())
            same = earlier["config_hash"] == result["config_hash"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{unfinished} is damaged: delete it to start afresh.") from error
        if not same:
            raise ValueError(
                f"{unfinished} was made with other settings: delete it to start afresh."
            )
        result = earlier
    done = {(run["kind"], run["depth"], run["seed"]) for run in result["runs"]}
    todo = [task for task in _tasks(settings) if task not in done]

    print(f"{name}: {len(done)} of {len(done) + len(todo)} runs done, {workers} at a time")
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread, (workers,)) as pool:
        before, start = result["seconds"], time.perf_counter()
        futures = [pool.submit(RUN[name], settings, *task, False) for task in todo]
        try:
            for future in as_completed(futures):
                run = future.result()
                result["runs"].append(run)
                result["seconds"] = round(before + time.perf_counter() - start, 1)
                _write(unfinished, result)
                print(_summary(run), flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    result["runs"].sort(key=lambda run: (run["depth"], run["kind"], run["seed"]))
    result |= dict(versions=_versions(), machine=_machine(workers), date=date.today().isoformat())
    _write(unfinished, result)
    os.replace(unfinished, output)
    return output


def recorded(name: str) -> dict:
    """The record that comes with the course. Raises FileNotFoundError if there is none."""
    return json.loads(asset(f"results/{name}.json").read_text())


def _tasks(settings: dict) -> list[tuple[str, int, int]]:
    """Seed by seed, the deepest net first, so that processes finish together."""
    return [
        (kind, depth, seed)
        for seed in settings["seeds"]
        for depth in sorted(settings["depths"], reverse=True)
        for kind in settings["kinds"]
    ]


def _summary(run: dict) -> str:
    title = f"{run['kind']}-{run['depth']} seed {run['seed']}:"
    if "losses" in run:
        return f"{title} loss {run['losses'][0]:.3g} to {run['losses'][-1]:.3g}"
    if "with_bn" in run:
        return f"{title} first convolution's gradient {run['with_bn']['first']:.2g} with BN"
    train = run["train"] or dict(loss=math.nan, accuracy=math.nan)
    return (
        f"{title} training loss {train['loss']:.3f}, accuracy {train['accuracy']:.1%}, "
        f"{sum(run['history']['seconds']):.0f} s"
    )


def _one_thread(workers: int) -> None:
    if workers > 1:
        torch.set_num_threads(1)


def _write(path: Path, result: dict) -> None:
    def rounded(value):
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON has no nan
        if isinstance(value, dict):
            return {key: rounded(entry) for key, entry in value.items()}
        return [rounded(entry) for entry in value] if isinstance(value, list) else value

    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(json.dumps(rounded(result), indent=1) + "\n")
    os.replace(temporary, path)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "numpy")
    }


def _machine(workers: int) -> str:
    device = default_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} {platform.machine()} CPU cores, {workers} runs at a time"
