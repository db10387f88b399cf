"""python -m d2lres doctor | lab | train | experiment"""

import argparse
import os
import sys
from pathlib import Path

from d2lres.train import add_options, positive, train


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m d2lres", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="can the course run here, and what is missing")
    lab = commands.add_parser("lab", help="open the course in JupyterLab (in a clone)")
    lab.add_argument("options", nargs="*", help="passed on to JupyterLab, after --")
    add_options(commands.add_parser("train", help="train a network, in one process or in many"))
    experiment = commands.add_parser("experiment", help="run and record a long experiment")
    experiment.add_argument(
        "name", help="degradation, gradients, lesion, thousand-layers or recipe"
    )
    experiment.add_argument("--quick", action="store_true", help="the chapter's short live version")
    experiment.add_argument("--output", type=Path, help="default: results/NAME.json")
    experiment.add_argument(
        "--workers", type=positive, help="processes of one thread each (default: one a core)"
    )
    given = parser.parse_args(arguments)
    run = {"doctor": doctor, "lab": open_lab, "train": train, "experiment": run_experiment}
    try:
        return run[given.command](given)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"d2lres: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nd2lres: stopped; what was finished is kept.", file=sys.stderr)
        return 130


def doctor(given: argparse.Namespace) -> int:
    from d2lres.doctor import report

    text, ready = report()
    print(text)
    return 0 if ready else 1


def run_experiment(given: argparse.Namespace) -> int:
    from d2lres.experiments import record

    print("recorded in", record(given.name, given.quick, given.output, given.workers))
    return 0


def open_lab(given: argparse.Namespace) -> int:
    clone = Path(__file__).resolve().parent.parent
    first = "notebooks/00_start_here.ipynb"
    if not (clone / first).exists():
        raise RuntimeError("the notebooks are not part of the package: run this in a clone.")
    # As the default address, and not as an argument, it is also in the address that is printed.
    command = [sys.executable, "-m", "jupyterlab", f"--LabApp.default_url=/lab/tree/{first}"]
    command.append(f"--ServerApp.root_dir={clone}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container; JupyterLab refuses root without it
    if sys.platform == "linux" and not ({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
        command.append("--no-browser")  # it prints the address instead
    os.execv(sys.executable, [*command, *given.options])


if __name__ == "__main__":
    sys.exit(main())
