"""The command line: python -m d2lres doctor | lab | train | examine | experiment

`train` runs in one process or, under torchrun, in many; `--batch-size` is that of all together.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "cifar_resnet")


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns its exit status: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser("python -m d2lres", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="can the course run here, and what is missing")
    lab = commands.add_parser("lab", help="open the course in JupyterLab (in a clone)")
    lab.add_argument("options", nargs="*", help="passed on to JupyterLab, after --")
    add_options(commands.add_parser("train", help="train a network, in one process or in many"))
    look = commands.add_parser("examine", help="try the probes of chapter 10 on a network of yours")
    look.add_argument("factory", help="module:function, which returns a model or (model, data)")
    commands.add_parser("experiment", help="run and record a long experiment", add_help=False)
    given, rest = parser.parse_known_args(arguments)
    if rest and given.command != "experiment":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run = dict(doctor=doctor, lab=open_lab, train=train, examine=examine, experiment=experiment)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"d2lres: {message}", sys.stderr)
            return run[given.command](given, *rest)
    except (ValueError, RuntimeError, OSError) as error:
        say(f"d2lres: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nd2lres: stopped; what was finished is kept.", sys.stderr)
        return 130


def say(text: str, stream: Any) -> None:
    """Print a line in one piece, as several processes may share the terminal. A letter it does not
    have is escaped, and where nobody listens any more the run goes on."""
    try:
        letters = stream.encoding or "utf-8"
        stream.write(f"{text}\n".encode(letters, "backslashreplace").decode(letters))
        stream.flush()
    except (OSError, ValueError, AttributeError):  # a broken pipe, a closed stream, None
        with suppress(OSError, ValueError, AttributeError):  # so that Python's own flush succeeds
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def doctor(given: argparse.Namespace) -> int:
    from d2lres.doctor import report

    text, ready = report()
    say(text, sys.stdout)
    return int(not ready)


def examine(given: argparse.Namespace) -> int:
    """The command. A model alone is examined with the bundled images; 1 after an alarm.

    The function returns a model, or (model, data), or these and (optimizer, step), as in
    `d2lres.clinic.examine`, and is looked for in the working folder first.
    """
    import pkgutil

    from d2lres import clinic
    from d2lres.data import fashion_mnist

    sys.path.insert(0, "")
    try:
        made = pkgutil.resolve_name(given.factory)()
    except Exception as error:
        what = f"{given.factory} should be module:function, a function without arguments"
        raise ValueError(f"{what}; calling it raised {type(error).__name__}: {error}") from error
    model, *more = made if isinstance(made, tuple) else (made,)
    data, optimizer, step = [*more, *[None] * 3][:3]
    data = fashion_mnist()[0] if data is None else data
    report = clinic.examine(model, data, optimizer=optimizer, step=step)
    say(str(report), sys.stdout)
    return int(not report.ok)


def experiment(given: argparse.Namespace, *rest: str) -> int:
    from d2lres.records import asset

    command = [sys.executable, str(asset("make_experiments.py")), *rest]
    os.execve(sys.executable, command, {"PYTHONPATH": str(Path(__file__).parents[1]), **os.environ})


def open_lab(given: argparse.Namespace) -> int:
    clone, first = Path(__file__).resolve().parents[1], "notebooks/00_start_here.ipynb"
    if not (clone / first).exists():
        raise RuntimeError("the notebooks are not part of the package: run this in a clone.")
    # As the default address, and not as an argument, it is also in the address that is printed.
    command = [sys.executable, "-m", "jupyterlab", f"--LabApp.default_url=/lab/tree/{first}"]
    command.append(f"--ServerApp.root_dir={clone}")
    settings = [str(clone / ".jupyter"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(settings)
    if sys.platform == "linux" and not ({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
        command.append("--no-browser")  # it prints the address instead
    os.execv(sys.executable, [*command, *given.options])


def number(kind: type, fits: Callable, what: str) -> Callable[[str], int | float]:
    """A type for argparse: a number for which `fits` holds; else the error says `what` it is not."""

    def parse(text: str) -> int | float:
        with suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {what}")

    return parse


def add_options(parser: argparse.ArgumentParser) -> None:
    def option(name, help, **more):
        shown = " (default: %(default)s)" if more.get("default") is not None else ""
        parser.add_argument(name, help=help + shown, **more)

    seed = number(int, lambda n: 0 <= n <= 2**40, "a whole number from 0 to 2**40")
    count = number(int, lambda n: n >= 1, "a whole number from 1 on")
    depth = number(int, lambda n: n >= 8 and n % 6 == 2, "6n + 2 with n from 1 on, as 8 or 20")
    rate = number(float, lambda x: 0 < x < 3e38, "a number above 0")
    share = number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
    option("--model", "which network", choices=MODELS, default="resnet18")
    option("--depth", "layers of cifar_resnet, 8, 14, 20, ... (default: 20)", type=depth)
    option("--width", "channels of cifar_resnet's first stage (default: 16)", type=count)
    option("--subset", "6,000 images or 60,000", choices=["sample", "full"], default="sample")
    option("--root", "folder searched first for the full set", type=Path)
    option("--size", "side of the images in pixels (default: as they are)", type=count)
    option("--epochs", "passes over the training images", type=count, default=5)
    option("--batch-size", "images in a batch, all processes together", type=count, default=128)
    option("--lr", "highest learning rate of SGD's one cycle", type=rate, default=0.1)
    option("--augment", "flip and shift the images at random", action="store_true")
    option("--label-smoothing", "share of each label spread over all", type=share, default=0.0)
    option("--seed", "decides initial weights and order of images", type=seed, default=0)
    option("--device", "where to train (default: a GPU if any)", choices=["cpu", "cuda", "mps"])
    either = argparse.BooleanOptionalAction
    pays = "(default: where a long run gains by it)"
    option("--mixed-precision", f"compute in bfloat16 {pays}", action=either)
    option("--channels-last", f"keep the network in this order of memory {pays}", action=either)
    threads = "CPU threads of each process (default: one a core; one if torchrun starts several)"
    option("--threads", threads, type=count)
    resumes = "file written after every epoch; if it exists, the run goes on from there"
    option("--checkpoint", resumes, type=Path)
    parser.set_defaults(refuse=parser.error)


def train(given: argparse.Namespace) -> int:
    """The command. Returns its exit status: 130 after Ctrl-C, else 0. Raises what `fit` raises."""
    import torch

    from d2lres.checkpoints import CheckpointError
    from d2lres.data import DataError
    from d2lres.distributed import Group, join
    from d2lres.training import TrainingDiverged, default_device

    if given.model != "cifar_resnet" and (given.depth or given.width):
        given.refuse("--depth and --width are for --model cifar_resnet")
    if given.root and given.subset != "full":
        given.refuse("--root is for --subset full")
    if given.device in ("cuda", "mps") and not getattr(torch, given.device).is_available():
        given.refuse(f"--device {given.device}: PyTorch finds no such device here")
    if given.threads:
        torch.set_num_threads(given.threads)
    keeps = "nothing is kept, as there was no --checkpoint"
    if file := given.checkpoint:
        keeps = f"{file} keeps every finished epoch, and the same command goes on from there"
    group = Group(join(torch.device(given.device) if given.device else default_device()))
    try:
        interrupted = run_fit(given, group)
    except (CheckpointError, DataError, TrainingDiverged, ValueError):
        if group.rank == 0:  # all processes raise these alike, and one sentence is enough
            raise
        return 1
    except RuntimeError as error:
        if group.count == 1:
            raise
        who = f"process {group.rank} of {group.count} cannot go on"
        why = f"perhaps because another one has ended ({str(error).partition('. ')[0]})"
        raise RuntimeError(f"{who}, {why}; {keeps}.") from error
    if group.count > 1:
        torch.distributed.destroy_process_group()
    if interrupted and group.rank == 0:
        say(f"d2lres: stopped; {keeps}.", sys.stderr)
    return 130 if interrupted else 0


def run_fit(given: argparse.Namespace, group) -> bool:
    """Train as the options say; returns whether Ctrl-C ended it. Rank 0 alone touches files."""
    import torch

    from d2lres import data, identity, training

    def show(history):
        speed = len(train_set) / history.seconds[-1]
        say(
            f"epoch {len(history.loss)}/{given.epochs}  loss {history.loss[-1]:.3f}  "
            f"accuracy {history.accuracy[-1]:.1%}  test accuracy {history.test_accuracy[-1]:.1%}  "
            f"{history.seconds[-1]:.1f} s  {speed:,.0f} images/s",
            sys.stdout,
        )

    train_set, test_set = group.first(data.fashion_mnist, given.subset, given.size, given.root)
    torch.manual_seed(given.seed)
    model = build(given)
    if group.rank == 0:
        weights = sum(parameter.numel() for parameter in model.parameters())
        what = f"{given.model}: {weights:,} parameters, {len(train_set):,} images"
        say(f"{what}, processes: {group.count}, device: {group.device.type}", sys.stdout)
    options = {name: getattr(given, name) for name in (*identity.SETTINGS, "checkpoint")}
    options |= dict(device=group.device, after_epoch=show)
    if sys.stderr is None or not sys.stderr.isatty():
        options["progress"] = False
    return training.fit(model, train_set, test_set, **options).interrupted


def build(given: argparse.Namespace):
    import d2lres

    options = dict(num_classes=10, in_channels=1)
    if given.model == "cifar_resnet":
        options |= dict(depth=given.depth or 20, width=given.width or 16)
    return getattr(d2lres, given.model)(**options)
