"""The doctor: what it reports, and whether the course can run; and the command `lab`."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from unittest.mock import Mock

import pytest

from d2lres.cli import main
from d2lres.data import DataError


def test_it_reports_every_item_and_that_the_course_can_run(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    items = "Python torch torchvision Asserts Home Device threads Memory matplotlib d2l ipywidgets "
    items += "jupyterlab Sample"
    for item in items.split():
        assert item in out
    assert out.rstrip().endswith("The course can run here.")


def absent(package):
    return lambda name: version(name.replace(package, "absent"))


def broken(error):
    return Mock(side_effect=error)


NMS = "operator torchvision::nms does not exist"
OTHER_BUILD = f"MISSING  torchvision  {NMS}.*both from one source"
EXTRA = r"pip install 'd2lres\[course\]'"


@pytest.mark.parametrize(
    "what, replacement, expected",
    [
        ("version", absent("d2l"), f"MISSING  d2l.*{EXTRA}"),
        ("version", absent("ipywidgets"), f"MISSING  ipywidgets.*{EXTRA}"),
        ("version", absent("jupyterlab"), "optional jupyterlab"),
        ("importlib.import_module", broken(RuntimeError(NMS)), OTHER_BUILD),
        ("fashion_mnist", broken(DataError("damaged")), "MISSING  Sample .*damaged.*install the"),
        ("sys.version_info", (3, 9, 0), "MISSING  Python"),
        (
            "importlib.import_module",
            broken(ValueError("no backend")),
            "MISSING  matplotlib .*unset",
        ),
        ("os.access", lambda path, mode: False, "optional Home .*set HOME to a folder of yours"),
        ("Path.expanduser", broken(RuntimeError("no home directory")), "optional Home .*no home"),
    ],
)
def test_what_is_missing_or_broken_is_named_with_reason_and_remedy(
    what, replacement, expected, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(f"d2lres.doctor.{what}", replacement)
        status = main(["doctor"])
    out = capsys.readouterr().out
    assert re.search(expected, out, re.DOTALL)
    needed = "optional" not in expected
    assert status == needed == ("MISSING" in out) == ("cannot run yet" in out)


@pytest.mark.parametrize(
    "flag, environment, expected",
    [
        (["-O"], {}, "MISSING  Asserts"),
        ([], {"PYTHONOPTIMIZE": "1"}, "MISSING  Asserts"),
        ([], {"MPLBACKEND": "nonsense"}, "MISSING  matplotlib"),
        ([], {"HOME": "/dev/null"}, "optional Home"),
    ],
)
def test_an_interpreter_that_checks_nothing_and_a_home_that_is_none_are_found(
    flag, environment, expected
):
    command = [sys.executable, *flag, "-m", "d2lres", "doctor"]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert expected in done.stdout and "Traceback" not in done.stderr
    without = "Python runs with -O or PYTHONOPTIMIZE, which leave out every assert"
    assert (without in done.stderr) == ("Asserts" in expected)


def test_lab_opens_the_first_chapter_and_without_a_display_no_browser(monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda path, command: started.append(command))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    main(["lab", "--", "--port=8899"])
    monkeypatch.setenv("DISPLAY", ":0")
    main(["lab"])
    without, with_display = started
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in without
    assert "--no-browser" in without and without[-1] == "--port=8899"
    assert "--no-browser" not in with_display
