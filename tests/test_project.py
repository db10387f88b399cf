"""The project's files agree with each other: dependencies, README, environment, Makefile, claims."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).exists()]


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def pins() -> list[tuple[str, str]]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.split(";")[0].strip() for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    return [tuple(line.split("==")) for line in lines]


def test_environment_yml_only_points_at_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[course]"]}
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert "course" in PROJECT["optional-dependencies"]


def test_every_direct_dependency_is_pinned_in_the_constraints():
    extras = PROJECT["optional-dependencies"]
    direct = requirement_names(PROJECT["dependencies"] + extras["course"] + extras["dev"])
    pinned = {name.lower().replace("_", "-") for name, _ in pins()}
    assert direct - {"d2lres"} <= pinned


def test_the_pinned_torch_is_not_below_the_floor():
    floor = next(line for line in PROJECT["dependencies"] if line.startswith("torch>"))
    versions = [tuple(map(int, v.split("."))) for name, v in pins() if name == "torch"]
    assert versions and min(versions) >= tuple(map(int, floor.split(">=")[1].split(".")))


def test_python_versions_agree_everywhere():
    names = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(workflow)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert names == matrix == ["3.10", "3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.10,<3.14"


def test_the_readme_begins_with_exactly_two_commands_and_both_are_make_targets():
    quick = README.split("## Quick start")[1].split("## ")[0]
    commands = re.search(r"```\n(.*?)```", quick, re.DOTALL)[1].split("\n")
    assert commands == ["make lab", "make test", ""]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands[:2]:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


def test_ci_calls_the_readmes_test_command():
    assert "\nexec make test\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "run: make test\n" in (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_stands_in_both_tables_with_the_same_title_and_minutes(chapter):
    notebook = json.loads((ROOT / f"notebooks/{chapter}.ipynb").read_text(encoding="utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    minutes = re.search(r"\*\*Minutes\*\*: (\d+)", first)[1]
    start = (ROOT / "notebooks/src/00_start_here.py").read_text(encoding="utf-8")
    for text, link in ((README, f"notebooks/{chapter}.ipynb"), (start, f"{chapter}.ipynb")):
        row = re.search(rf"^.*\]\({link}\).*$", text, re.MULTILINE)
        assert row, f"{link} is missing from a table of chapters"
        assert f"| {minutes} |" in row[0], f"{link}: the chapter says {minutes} minutes"
    assert README.count(f"/notebooks/{chapter}.ipynb)") == 1  # the badge
    assert (
        f"{PROJECT['urls']['Repository'].split('.com/')[1]}/blob/main/notebooks/{chapter}" in README
    )


def test_every_file_the_readme_links_to_exists():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_readmes_python_example_runs(tmp_path):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    shorter = example.replace("cifar_resnet(20,", "cifar_resnet(8,").replace("epochs=3", "epochs=1")
    shorter = shorter.replace("fashion_mnist()", "fashion_mnist(size=8)")
    assert shorter.count("(8,") == shorter.count("epochs=1") == shorter.count("size=8") == 1
    done = subprocess.run(
        [sys.executable, "-c", shorter], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Score(loss=")


def test_no_file_names_a_machines_folder_or_a_package_host():
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org"]
    folders = ["/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/"]
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".yml", ".ipynb", ".txt", ".json", ".cfg", ""}:
            text = path.read_text(encoding="utf-8")
            assert not [word for word in hosts + folders if word in text], path


def test_the_core_imports_torch_and_nothing_else_heavy():
    heavy = {"torchvision", "matplotlib", "d2l", "IPython", "tqdm", "pandas"}
    code = f"import torch, sys; before = set(sys.modules); import d2lres; print(*({heavy} & (set(sys.modules) - before)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
