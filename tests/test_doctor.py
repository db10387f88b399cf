"""The doctor: what it reports, and whether the course can run; and the command `lab`."""

import re
from importlib.metadata import version
from unittest.mock import Mock

import pytest

from d2lres import doctor
from d2lres.cli import main
from d2lres.data import DataError


def without(package, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: version(name.replace(package, "absent")))


def test_it_reports_every_item_and_that_the_course_can_run(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    items = (
        "Python torch torchvision Device threads Memory d2l ipywidgets jupyterlab Sample Records"
    )
    for item in items.split():
        assert item in out
    assert out.rstrip().endswith("The course can run here.")


@pytest.mark.parametrize("package", ["d2l", "ipywidgets"])
def test_a_missing_package_ends_with_1_and_the_remedy(package, monkeypatch, capsys):
    without(package, monkeypatch)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"MISSING  {package}" in out and "pip install 'd2lres[course]'" in out
    assert "cannot run yet" in out


def test_a_missing_jupyterlab_is_no_obstacle(monkeypatch):
    without("jupyterlab", monkeypatch)
    text, ready = doctor.report()
    assert ready and "optional jupyterlab" in text


NMS = "operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    "broken, error, expected",
    [
        ("importlib.import_module", RuntimeError(NMS), f"torchvision {NMS}.*both from one source"),
        ("fashion_mnist", DataError("the sample is damaged"), "Sample .*is damaged"),
        ("asset", FileNotFoundError("it is not there"), "Records .*install the course again"),
    ],
)
def test_what_is_broken_is_named_with_reason_and_remedy(broken, error, expected, monkeypatch):
    monkeypatch.setattr(f"d2lres.doctor.{broken}", Mock(side_effect=error))
    text, ready = doctor.report()
    assert not ready and re.search(f"MISSING  {expected}", text, re.DOTALL)


def test_an_unsupported_python_is_named(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 0))
    text, ready = doctor.report()
    assert not ready and "MISSING  Python" in text


def test_lab_opens_the_first_chapter_and_without_a_display_no_browser(monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda path, command: started.extend(command))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    main(["lab", "--", "--port=8899"])
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in started
    assert "--no-browser" in started and started[-1] == "--port=8899"
    started.clear()
    monkeypatch.setenv("DISPLAY", ":0")
    main(["lab"])
    assert "--no-browser" not in started
