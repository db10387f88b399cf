"""The command line: its options, its files, its exit codes, and what torchrun makes of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import training_runs

from d2lres import cli
from d2lres.checkpoints import load_checkpoint
from d2lres.cli import main
from d2lres.training import fit

# Six steps an epoch.
TINY = ["--model=cifar_resnet", "--depth=8", "--width=2", "--size=6", "--batch-size=1000"]


def train(*options):
    return main(["train", *TINY, *options])


@pytest.mark.parametrize(
    "options, message",
    [
        ("--model vgg", "argument --model: invalid choice: 'vgg'"),
        ("--epochs 0", "argument --epochs: 0 is not a whole number from 1 on"),
        ("--batch-size 12.5", "argument --batch-size: 12.5 is not a whole number from 1 on"),
        ("--size -3", "--size"),
        ("--lr 0", "argument --lr: 0 is not a number above 0"),
        ("--lr nan", "argument --lr: nan is not a number above 0"),
        ("--lr fast", "argument --lr: fast is not a number above 0"),
        ("--label-smoothing 1.5", "argument --label-smoothing: 1.5 is not a number from 0 to 1"),
        ("--seed x", "argument --seed: x is not a whole number from 0 to 2**40"),
        ("--depth 9", "argument --depth: 9 is not 6n + 2"),
        ("--model resnet18 --width 4", "--depth and --width are for --model cifar_resnet"),
        ("--root folder", "--root is for --subset full"),
        ("--threads 0", "argument --threads: 0 is not a whole number from 1 on"),
        ("--device tpu", "argument --device: invalid choice"),
        ("--device cuda", "PyTorch finds no such device here"),
        ("--speed 9", "unrecognized arguments: --speed 9"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_one_sentence(capsys, options, message):
    if options == "--device cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stop:
        main(["train", *options.split()])
    *usage, said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and usage[0].startswith("usage: ")
    assert said.startswith("python -m d2lres") and ": error: " in said and message in said


def test_every_option_has_a_help_text(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out.split("options:")[1]
    entries = re.findall(r"^  (--[\w-]+)(.*?)(?=^  -|\Z)", text, re.MULTILINE | re.DOTALL)
    assert " ".join(name for name, _ in entries) == (
        "--model --depth --width --subset --root --size --epochs --batch-size --lr --augment "
        "--label-smoothing --seed --device --mixed-precision --channels-last --threads --checkpoint"
    )
    for name, rest in entries:
        assert len(re.sub(r"\{.*?\}|[A-Z_]{4,}", "", rest).split()) >= 2, name


@pytest.mark.parametrize("name", cli.MODELS)
def test_every_model_is_built_for_ten_classes_of_grey_images(name):
    parser = cli.argparse.ArgumentParser()
    cli.add_options(parser)
    with torch.device("meta"):
        model = cli.build(parser.parse_args(["--model", name]))
        assert model.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_options_reach_fit(monkeypatch, tmp_path):
    called = {}

    def spy(model, train, test, **options):
        called.update(options, images=len(train), test=len(test), size=train.size, model=model)
        return fit(model, train[:64], test[:20], **(options | dict(checkpoint=None)))

    monkeypatch.setattr("d2lres.training.fit", spy)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: called.update(threads=n))
    given = "--epochs 2 --batch-size 32 --lr 0.02 --augment --seed 3 --label-smoothing 0.1"
    given += f" --no-mixed-precision --threads 3 --device cpu --checkpoint {tmp_path / 'run.pt'}"
    assert train(*given.split()) == 0
    expected = dict(epochs=2, batch_size=32, lr=0.02, augment=True, seed=3, label_smoothing=0.1)
    expected |= dict(mixed_precision=False, device=torch.device("cpu"), size=6, images=6000)
    expected |= dict(test=2000, checkpoint=tmp_path / "run.pt", threads=3)
    assert {key: called[key] for key in expected} == expected
    assert called["model"].conv1.out_channels == 2


def test_each_epoch_is_shown_and_a_stopped_run_gives_what_an_uninterrupted_one_gives(
    tmp_path, capsys, monkeypatch
):
    def run(name, seed="1"):
        file = tmp_path / name
        status = train("--epochs", "3", "--seed", seed, "--checkpoint", str(file))
        return status, load_checkpoint(file)["history"].loss, *capsys.readouterr()

    with monkeypatch.context() as patch:
        training_runs.interrupt(patch, 2 * 6 + 1)
        status, losses, _, err = run("a")
    assert status == 130 and len(losses) == 2 and "a keeps every finished epoch" in err
    status, losses, out, err = run("b")
    header, *epochs = out.splitlines()
    what = r"cifar_resnet: [\d,]+ parameters, 6,000 images, processes: 1, device: \w+"
    assert status == 0 and err == "" and re.fullmatch(what, header)
    for number, (shown, loss) in enumerate(zip(epochs, losses, strict=True), start=1):
        assert shown.startswith(f"epoch {number}/3  loss {loss:.3f}  accuracy ")
        assert shown.endswith(" images/s")
    assert run("a")[:2] == (0, losses) and run("c", seed="2")[1] != losses
    assert run("a") == (0, losses, header + "\n", "")  # nothing is left to do


@pytest.mark.parametrize(
    "options, message",
    [
        (["--checkpoint", "run.pt"], "run.pt is a text file"),
        (["--subset", "full", "--root", "nowhere"], "root='nowhere' is not a folder"),
        (["--lr", "1e38"], "the loss became"),
    ],
)
def test_what_goes_wrong_is_said_in_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.pt").write_bytes(b"junk")
    assert train("--epochs", "1", *options) == 1
    err = capsys.readouterr().err
    assert err.startswith("d2lres: ") and message in err and err.count("\n") == 1


STREAMS = {
    "a reader who has gone": "--epochs 3 --checkpoint run.pt | head -n 1",
    "a full device": "--epochs 3 --checkpoint run.pt > /dev/full",
    "no output": "--epochs 3 --checkpoint run.pt >&-",
    "no errors": "--epochs 3 --checkpoint run.pt 2>&-",
    "nothing at all": "--epochs 3 --checkpoint run.pt <&- >&- 2>&-",
    "letters that ASCII lacks": "--epochs 3 --checkpoint gewichte-ä.pt",
}


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize("rest", STREAMS.values(), ids=STREAMS)
def test_a_run_goes_on_though_nobody_reads_what_it_says(tmp_path, rest):
    line = f"set -o pipefail; {sys.executable} -m d2lres train {' '.join(TINY)} {rest}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(tmp_path)}
    options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
    done = subprocess.run(["bash", "-c", line], **options)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (file,) = tmp_path.glob("*.pt")
    assert len(load_checkpoint(file)["history"].loss) == 3


def test_a_path_that_ascii_lacks_is_told_in_escapes(tmp_path):
    (tmp_path / "gewichte-ä.pt").write_text("no checkpoint")
    command = [sys.executable, "-m", "d2lres", "train", *TINY, "--checkpoint", "gewichte-ä.pt"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and r"gewichte-\xe4.pt is a text file" in done.stderr


def test_experiment_hands_its_arguments_to_the_authors_script(monkeypatch):
    execve = Mock()
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    main(["experiment", "gravity", "--quick"])
    (python, command, environment), _ = execve.call_args
    root = Path(cli.__file__).parents[1]  # where the script finds this d2lres
    script = str(root / "assets/make_experiments.py")
    assert python == sys.executable and command == [python, script, "gravity", "--quick"]
    assert environment == {**os.environ, "PYTHONPATH": str(root)}


def finished(path):
    return path.exists() and len(load_checkpoint(path)["history"].loss)


def torchrun(*command, cwd, ctrl_c_after=None):
    """Status, output and errors of two processes; Ctrl-C once `ctrl_c_after` has an epoch."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = dict(env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, cwd=cwd)
    options |= dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process, patience = subprocess.Popen([*line, *command], **options), time.monotonic() + 90
    try:
        if ctrl_c_after:
            while not finished(ctrl_c_after) and time.monotonic() < patience:
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, out, err


KILLER = """
import os, signal, sys
from d2lres import cli

build, steps = cli.build, []

def spoilt(given):
    def die(module, args):
        steps.append(module.training)
        if sum(steps) == 9 and os.environ["RANK"] == "1":  # in the second epoch of 6 steps
            os.kill(os.getpid(), signal.SIGKILL)

    model = build(given)
    model.register_forward_pre_hook(die)
    return model

cli.build = spoilt
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_worker_ends_the_job_with_an_error_and_one_process_or_two_can_go_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "killer.py").write_text(KILLER)
    command = ["train", *TINY, "--epochs", "3", "--checkpoint", "run.pt"]
    status, _, err = torchrun("killer.py", *command, cwd=tmp_path)
    assert status not in (0, None)
    assert "exitcode  : -9" in err and "rank      : 1" in err  # torchrun says who and how
    assert "d2lres: process 0 of 2 cannot go on, perhaps because another one has ended" in err
    assert "run.pt keeps every finished epoch, and the same command goes on from there." in err
    assert sorted(os.listdir()) == ["killer.py", "run.pt"]
    state = load_checkpoint("run.pt")
    assert len(state["history"].loss) == 1 and next(iter(state["model"])) == "conv1.weight"

    with monkeypatch.context() as patch:
        training_runs.interrupt(patch, 6 + 1)
        assert main(command) == 130
    assert "epoch 2/3" in capsys.readouterr().out
    status, out, err = torchrun("-m", "d2lres", *command, cwd=tmp_path)
    assert status == 0 and err.count("d2lres: ") == 1, err
    assert "run.pt goes on with processes=2 after 1: the weights will be close to those" in err
    header, epoch = out.splitlines()  # of one process only
    assert "processes: 2, device: " in header and epoch.startswith("epoch 3/3")
    assert sorted(os.listdir()) == ["killer.py", "run.pt"]
    assert len(load_checkpoint("run.pt")["history"].loss) == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_on_torchrun_ends_all_and_keeps_the_checkpoint(tmp_path):
    command = ["-m", "d2lres", "train", *TINY, "--epochs", "5000", "--checkpoint", "run.pt"]
    status, _, err = torchrun(*command, cwd=tmp_path, ctrl_c_after=tmp_path / "run.pt")
    assert status != 0 and "d2lres: stopped; run.pt keeps every finished epoch" in err, err
    assert os.listdir(tmp_path) == ["run.pt"]
    assert 1 <= len(load_checkpoint(tmp_path / "run.pt")["history"].loss) < 5000
