"""What goes wrong on a learner's machine, played for real: a kernel that is stopped, folders that
cannot be written, a disk that fills. Faults of one function are in its own tests (test_data,
test_training)."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parent.parent
POSIX = os.name == "posix"
posix_only = pytest.mark.skipif(not POSIX, reason="limits and signals of POSIX")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
# Root may write everywhere; without these two capabilities it is bound by permissions like others.
AS_OTHERS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
AS_OTHERS = AS_OTHERS if POSIX and os.geteuid() == 0 else []


class Kernel:
    """A kernel as JupyterLab starts it; `run(code)` gives the reply, the text and the errors."""

    def __init__(self, folder, environment=ENVIRONMENT, prefix=()):
        self.manager = KernelManager(kernel_name="python3")
        command = self.manager.kernel_spec.argv
        self.manager.kernel_spec.argv = [*prefix, sys.executable, *command[1:]]
        self.manager.start_kernel(cwd=str(folder), env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code, on_text=None):
        text = []

        def output(message):
            kind, content = message["msg_type"], message["content"]
            text.append(content.get("text") or content.get("data", {}).get("text/plain") or "")
            if kind == "stream" and on_text:
                on_text(content["text"])

        reply = self.client.execute_interactive(code, timeout=300, output_hook=output)["content"]
        return reply, "".join(text)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@posix_only
def test_the_stop_button_ends_training_with_the_history_and_the_kernel_goes_on(tmp_path):
    """With the progress bar on, as readers have it."""
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "D2LRES_PROGRESS"}
    with closing(Kernel(tmp_path, environment | {"OMP_NUM_THREADS": "1"})) as kernel:
        kernel.run(
            "import time, torch\n"
            "from d2lres.data import Images\n"
            "from d2lres.training import fit\n"
            "y = torch.arange(40) % 10\n"
            "train = Images(torch.zeros(40, 1, 6, 6, dtype=torch.uint8), y)\n"
            "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10))\n"
            "slow = model.register_forward_hook(lambda *args: time.sleep(0.05))\n"
            "seen = model.register_forward_hook(lambda *args: print('training', flush=True))"
        )
        stopped = []

        def stop(text):
            if "training" in text and not stopped:
                stopped.append(time.perf_counter())
                kernel.manager.interrupt_kernel()

        code = (
            "history = fit(model, train, epochs=10_000, batch_size=10)\nprint(history.interrupted)"
        )
        reply, text = kernel.run(code, on_text=stop)
        assert reply["status"] == "ok" and text.endswith("True\n"), (reply, text)
        assert time.perf_counter() - stopped[0] < 10
        again = "slow.remove(); seen.remove()\nprint(fit(model, train, epochs=1).interrupted)"
        reply, text = kernel.run(again)
        assert reply["status"] == "ok" and text.endswith("False\n"), (reply, text)


@pytest.fixture
def read_only(tmp_path):
    """A copy of the repository and an empty home, in neither of which anything can be written."""
    home, clone = tmp_path / "home", tmp_path / "clone"
    home.mkdir()
    for name in ("d2lres", "assets", "notebooks"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    everything = [home, clone, *clone.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield home, clone
    for path in everything:
        path.chmod(0o755)


def run_all(kernel, notebook: Path) -> None:
    for cell in nbformat.read(notebook, nbformat.NO_CONVERT).cells:
        if cell.cell_type == "code":
            expected = "error" if "raises-exception" in cell.metadata.get("tags", []) else "ok"
            reply, _ = kernel.run(cell.source)
            assert reply["status"] == expected, (cell.source, reply)


@posix_only
@pytest.mark.skipif(bool(AS_OTHERS) and not shutil.which(AS_OTHERS[0]), reason="root, no setpriv")
def test_a_read_only_clone_and_home_run_chapter_00_twice_and_name_what_they_cannot_write(read_only):
    home, clone = read_only
    environment = ENVIRONMENT | {"HOME": str(home), "PYTHONPATH": str(clone)}
    environment = {k: v for k, v in environment.items() if not k.startswith(("XDG_", "D2LRES_C"))}
    files = sorted(path for folder in read_only for path in folder.rglob("*"))
    # Jupyter itself needs a place for its own files; the course must not.
    environment |= {"JUPYTER_RUNTIME_DIR": str(home.parent), "IPYTHONDIR": str(home.parent)}
    with closing(Kernel(clone / "notebooks", environment, AS_OTHERS)) as kernel:
        reply, _ = kernel.run("open('new', 'w')")
        assert reply.get("ename") == "PermissionError", (
            "the clone can be written: nothing is tested"
        )
        for _ in range(2):
            run_all(kernel, ROOT / "notebooks/00_start_here.ipynb")
        reply, _ = kernel.run(
            "from d2lres import data\ndata.SYSTEM_FOLDERS = ()\nfashion_mnist('full')"
        )
        assert "the cache" in reply["evalue"] and "is not writable" in reply["evalue"], reply
        assert "D2LRES_CACHE names another folder" in reply["evalue"]
        reply, _ = kernel.run("fit(plain, train[:64], epochs=1, checkpoint='run.pt')")
        assert reply["ename"] == "CheckpointError", reply
        assert "could not write the checkpoint run.pt" in reply["evalue"]
        assert "choose a folder that you may write to and that has room" in reply["evalue"]
    assert sorted(path for folder in read_only for path in folder.rglob("*")) == files


def test_a_chapter_runs_twice_in_one_kernel_that_was_started_in_another_folder(tmp_path):
    with closing(Kernel(tmp_path)) as kernel:
        for _ in range(2):
            run_all(kernel, ROOT / "notebooks/02_residual_block.ipynb")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def gigabyte():
    """What to put before a command so that it may use 1 GB of memory, the files it maps included,
    and a function that tells the most it has used. Needs Linux and the rights of root."""
    groups = Path("/sys/fs/cgroup")
    v2 = (groups / "cgroup.controllers").exists()
    group = (groups if v2 else groups / "memory") / f"d2lres-{os.getpid()}"
    limit, peak = ("max", "peak") if v2 else ("limit_in_bytes", "max_usage_in_bytes")
    try:
        group.mkdir()
        (group / f"memory.{limit}").write_text(str(2**30))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"memory cannot be limited here: {error}")
    join = f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'
    yield ["sh", "-c", join], lambda: int((group / f"memory.{peak}").read_text())
    group.rmdir()


@pytest.mark.parametrize("chapter", ["01_degradation", "02_residual_block", "03_resnet18"])
def test_chapters_01_to_03_run_in_a_gigabyte_of_memory(chapter, gigabyte, tmp_path):
    prefix, peak = gigabyte
    with closing(Kernel(tmp_path, prefix=prefix)) as kernel:
        run_all(kernel, ROOT / f"notebooks/{chapter}.ipynb")
        assert 2**28 < peak() <= 2**30, "the kernel did not run within the limit"


FULL_DISK = """
import resource, sys, torch
from d2lres.data import Images
from d2lres.training import CheckpointError, fit, load_checkpoint

train = Images(torch.zeros(40, 1, 6, 6, dtype=torch.uint8), torch.arange(40) % 10)

def run(epochs, stop_after=None):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10))
    hooks = []
    def full(module, args):
        if module.training:
            hooks.append(1)
            if len(hooks) == stop_after:  # the next file ends after 1000 bytes
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    model.register_forward_pre_hook(full)
    return fit(model, train, epochs=epochs, batch_size=40, checkpoint="run.pt")

try:
    run(3, stop_after=2)
except CheckpointError as error:
    print(error)
print("epochs kept:", len(load_checkpoint("run.pt")["history"].loss))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("epochs in the end:", len(run(3).loss))
"""


@posix_only
def test_a_disk_that_fills_during_training_is_named_and_costs_no_finished_epoch(tmp_path):
    """The process may write 1,000 bytes to a file from the second epoch on; Linux then says no."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK],
        cwd=tmp_path,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said, kept, end = done.stdout.splitlines() or [done.stderr, "", ""]
    assert "could not write the checkpoint run.pt" in said, said
    assert said.endswith("has room; the model keeps what it has learned.")
    assert (kept, end) == ("epochs kept: 1", "epochs in the end: 3")
    assert os.listdir(tmp_path) == ["run.pt"]
