"""One training run from the command line, in one process or in many.

    python -m d2lres train --model resnet18 --size 96 --epochs 5
    torchrun --standalone --nproc_per_node=2 -m d2lres train --model resnet18 --size 96 --epochs 5

Both call `fit` with the same settings. `--batch-size` is that of all processes together, so that
the number of processes changes the speed and, batch norm's statistics aside, not the result.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "cifar_resnet")


def add_options(parser: argparse.ArgumentParser) -> None:
    def option(name, help, **more):
        if "default" in more:
            help += " (default: %(default)s)"
        parser.add_argument(name, help=help, **more)

    option("--model", "which network", choices=MODELS, default="resnet18")
    option("--depth", "layers of cifar_resnet: 8, 14, 20, 26, ...  (default: 20)", type=cifar_depth)
    option("--width", "channels of cifar_resnet's first stage (default: 16)", type=positive)
    option("--data", "which images", choices=["fashion_mnist"], default="fashion_mnist")
    option(
        "--subset",
        "6,000 images that come along, or all 60,000",
        choices=["sample", "full"],
        default="sample",
    )
    option("--root", "folder searched first for the full set", type=Path)
    option("--size", "side of the images in pixels (default: as they are)", type=positive)
    option("--epochs", "passes over the training images", type=positive, default=5)
    option("--batch-size", "images in a batch, all processes together", type=positive, default=128)
    option("--lr", "highest learning rate of SGD's one cycle", type=rate, default=0.1)
    option("--augment", "flip and shift the images at random", action="store_true")
    option(
        "--label-smoothing",
        "share of each label spread over all classes, 0 to 1",
        type=fraction,
        default=0.0,
    )
    option("--seed", "decides initial weights and order of images", type=whole, default=0)
    option(
        "--device",
        "where to train (default: a GPU if there is one)",
        choices=["cpu", "cuda", "mps"],
    )
    option(
        "--mixed-precision",
        "compute in bfloat16, or not (default: on GPUs that have it)",
        action=argparse.BooleanOptionalAction,
    )
    option(
        "--threads",
        "CPU threads of each process (default: OMP_NUM_THREADS, which torchrun "
        "sets to 1, else as many as cores)",
        type=positive,
    )
    option(
        "--checkpoint",
        "file written after every epoch; if it exists, the run goes on from "
        "there, also with another number of processes",
        type=Path,
    )
    option("--history", "file that gets a line of JSON after every epoch", type=Path)
    parser.set_defaults(refuse=parser.error)


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def cifar_depth(text: str) -> int:
    if not text.isdecimal() or int(text) < 8 or int(text) % 6 != 2:
        raise argparse.ArgumentTypeError(f"{text} is not 6n + 2 with n from 1 on, such as 8 or 20")
    return int(text)


def rate(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def fraction(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # is in no range


def train(given: argparse.Namespace) -> int:
    """The command. Returns its exit status: 130 after Ctrl-C, else 0. Raises what `fit` raises."""
    import torch

    from d2lres.data import DataError, fashion_mnist
    from d2lres.processes import Processes
    from d2lres.training import CheckpointError, TrainingDiverged, fit, load_checkpoint

    if given.model != "cifar_resnet" and (given.depth or given.width):
        given.refuse("--depth and --width are for --model cifar_resnet")
    if given.root and given.subset != "full":
        given.refuse("--root is for --subset full")
    if given.device in ("cuda", "mps") and not getattr(torch, given.device).is_available():
        given.refuse(f"--device {given.device}: PyTorch finds no such device here")
    if given.threads:
        torch.set_num_threads(given.threads)
    device = join(given.device)
    together = Processes(device)
    first = together.rank == 0

    def begin():
        """Rank 0 alone reads files: one download, one opinion, and a second machine needs none."""
        data = fashion_mnist(given.subset, given.size, given.root)
        done = 0
        if given.checkpoint and given.checkpoint.exists():
            done = len(load_checkpoint(given.checkpoint)["history"].loss)
        return *data, lines_written(given.history, done)

    def after_epoch(history):
        epochs = [
            {"epoch": epoch} | {key: values[epoch - 1] for key, values in curves(history).items()}
            for epoch in range(1, len(history.loss) + 1)
        ]
        if given.history:
            nonlocal written
            with open(given.history, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(epoch) + "\n" for epoch in epochs[written:])
            written = len(epochs)
        print(progress_line(epochs[-1], given.epochs, len(train_set)), flush=True)

    try:
        train_set, test_set, written = together.first(begin)
        torch.manual_seed(given.seed)
        model = build(given)
        if first:
            weights = sum(parameter.numel() for parameter in model.parameters())
            print(
                f"{given.model}: {weights:,} parameters, {len(train_set):,} images, "
                f"processes: {together.count}, device: {device.type}",
                flush=True,
            )
        history = fit(
            model,
            train_set,
            test_set,
            epochs=given.epochs,
            lr=given.lr,
            seed=given.seed,
            batch_size=given.batch_size,
            augment=given.augment,
            label_smoothing=given.label_smoothing,
            device=device,
            mixed_precision=given.mixed_precision,
            checkpoint=given.checkpoint,
            progress=None if sys.stderr.isatty() else False,
            after_epoch=after_epoch,
        )
    except (CheckpointError, DataError, TrainingDiverged):
        if first:  # all processes raise these alike, and one sentence is enough
            raise
        return 1
    except RuntimeError as error:
        if together.count == 1:
            raise
        raise RuntimeError(
            f"process {together.rank} of {together.count} cannot go on, perhaps because another "
            f"one has ended ({str(error).partition('. ')[0]}); {keeps(given)}."
        ) from error
    if together.count > 1:
        torch.distributed.destroy_process_group()
    if history.interrupted and first:
        print(f"d2lres: stopped; {keeps(given)}.", file=sys.stderr)
    return 130 if history.interrupted else 0


def join(wanted: str | None):
    """Joins the processes that torchrun has started, if it has. Returns this one's device."""
    import torch
    import torch.distributed as dist

    from d2lres.training import default_device

    device = torch.device(wanted) if wanted else default_device()
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return device
    if device.type == "mps":  # torch.distributed has no backend for it
        device = torch.device("cpu")
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"every process needs its own GPU: use --nproc_per_node={gpus}.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def build(given: argparse.Namespace):
    import d2lres

    options = dict(num_classes=10, in_channels=1)
    if given.model == "cifar_resnet":
        return d2lres.cifar_resnet(given.depth or 20, width=given.width or 16, **options)
    return getattr(d2lres, given.model)(**options)


def curves(history) -> dict[str, list[float]]:
    return {key: values for key, values in asdict(history).items() if isinstance(values, list)}


def lines_written(path: Path | None, done: int) -> int:
    """How many of the `done` epochs stand in the file; a crash may have kept the last one out."""
    if path is None or not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").count("\n")
    if lines > done:
        raise ValueError(
            f"{path} holds {lines} epochs and this run has done {done}: choose another --history, "
            "or delete it."
        )
    return lines


def progress_line(epoch: dict, epochs: int, images: int) -> str:
    return (
        f"epoch {epoch['epoch']}/{epochs}  loss {epoch['loss']:.3f}  "
        f"accuracy {epoch['accuracy']:.1%}  test accuracy {epoch['test_accuracy']:.1%}  "
        f"{epoch['seconds']:.1f} s  {images / epoch['seconds']:,.0f} images/s"
    )


def keeps(given: argparse.Namespace) -> str:
    if given.checkpoint is None:
        return "nothing is kept, as there was no --checkpoint"
    return f"{given.checkpoint} keeps every finished epoch, and the same command goes on from there"
