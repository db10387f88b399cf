"""The doctor and the command line: what they report, and the exit code they end with."""

import pytest

from d2lres import doctor
from d2lres.__main__ import main
from d2lres.data import DataError


def test_it_reports_every_item_and_that_the_course_can_run(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for item in (
        "Python",
        "torch",
        "torchvision",
        "Device",
        "threads",
        "Memory",
        "d2l",
        "Sample",
        "Full set",
    ):
        assert item in out
    assert out.rstrip().endswith("The course can run here.")


@pytest.mark.parametrize("package", ["d2l", "ipywidgets"])
def test_a_missing_package_ends_with_1_and_the_remedy(package, monkeypatch, capsys):
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == package else found(name))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"MISSING  {package}" in out and "pip install 'd2lres[course]'" in out
    assert "cannot run yet" in out


def test_a_missing_jupyterlab_is_no_obstacle(monkeypatch):
    found = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name == "jupyterlab" else found(name)
    )
    text, ready = doctor.report()
    assert ready and "optional jupyterlab" in text


def test_a_torchvision_that_does_not_import_is_named_with_its_reason(monkeypatch):
    real = __import__

    def broken(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", broken)
    text, ready = doctor.report()
    assert not ready
    assert "operator torchvision::nms does not exist" in text and "both from one source" in text


def test_a_damaged_sample_is_named(monkeypatch):
    def damaged(*args, **kwargs):
        raise DataError("the bundled sample is damaged")

    monkeypatch.setattr("d2lres.data.fashion_mnist", damaged)
    text, ready = doctor.report()
    assert not ready and "the bundled sample is damaged" in text


def test_an_absent_full_set_is_optional_and_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("D2LRES_CACHE", str(tmp_path))
    monkeypatch.setattr("d2lres.data.SYSTEM_FOLDERS", ())
    text, ready = doctor.report()
    assert ready
    assert "optional Full set" in text and "dataset-fashion-mnist" in text


def test_an_unsupported_python_is_named(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 0))
    text, ready = doctor.report()
    assert not ready and "MISSING  Python" in text


def test_an_unknown_experiment_is_one_sentence(capsys):
    assert main(["experiment", "nonsense"]) == 1
    assert capsys.readouterr().err.startswith(
        "d2lres: unknown experiment 'nonsense': choose one of"
    )


def test_workers_must_be_a_whole_number(capsys):
    with pytest.raises(SystemExit):
        main(["experiment", "degradation", "--workers", "0"])
    assert "whole number from 1 on" in capsys.readouterr().err


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
