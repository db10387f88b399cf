"""The project's files agree with each other: dependencies, README, environment, Makefile, sizes."""

import argparse
import ast
import re
import sys
from pathlib import Path

import yaml
from commands import ROOT, python, run

from d2lres.cli import add_options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def text(name) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(text("pyproject.toml"))["project"]
README = text("README.md")
WORKFLOW = text(".github/workflows/test.yml")
PINS = [line.strip() for line in re.findall(r"^[^#;\n]+", text("constraints.txt"), re.MULTILINE)]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def test_environment_yml_only_points_at_pyproject_and_python_versions_agree_everywhere():
    *conda, pip = yaml.safe_load(text("environment.yml"))["dependencies"]
    assert pip == {"pip": ["-e .[course]"]}
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert "course" in PROJECT["optional-dependencies"]
    said = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    matrix = yaml.safe_load(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert said == matrix == ["3.10", "3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.10,<3.14"


def test_every_direct_dependency_is_pinned_and_torch_not_below_its_floor():
    extras = PROJECT["optional-dependencies"]
    direct = names(PROJECT["dependencies"] + extras["course"] + extras["site"] + extras["dev"])
    assert direct - {"d2lres"} <= names(PINS)
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in PINS)
    torch = re.findall(r"torch[>=]=([\d.]+)", "\n".join(PROJECT["dependencies"] + PINS))
    floor, *pinned = [tuple(map(int, version.split("."))) for version in torch]
    assert pinned and min(pinned) >= floor


def test_the_readme_begins_with_two_make_targets_of_which_ci_runs_one_and_its_links_lead_to_files():
    quick = README.split("## Quick start")[1].split("## ")[0]
    assert re.search(r"```\n(.*?)```", quick, re.DOTALL)[1] == "make lab\nmake test\n"
    assert {"lab", "test"} <= set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    assert "\nexec make test\n" in text(".ci/run") and "run: make test\n" in WORKFLOW
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_readmes_python_example_runs(tmp_path):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    few = example.replace("fashion_mnist()", "(all[:64] for all in fashion_mnist(size=8))")
    assert few.count("[:64]") == 1
    assert python("-c", few, cwd=tmp_path).startswith("Score(loss=")


def test_the_readmes_commands_to_train_are_understood_and_need_no_active_environment():
    parser = argparse.ArgumentParser()
    add_options(parser)
    commands = README.replace("\\\n", "").splitlines()
    commands = [line.split() for line in commands if " -m d2lres train --size" in line]
    tools = [(line[0], "--nnodes=2" in line) for line in commands]
    torchrun = ".venv/bin/torchrun"
    assert tools == [(".venv/bin/python", False), (torchrun, False), (torchrun, True)]
    for line in commands:
        assert parser.parse_args(line[line.index("train") + 1 :]).size == 96


def test_the_citation_names_the_course_as_all_other_files_do():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert f"# {citation['title']}\n" in README
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"][0]["name"] in text("LICENSE")


def test_no_file_names_a_machines_folder_or_a_package_host():
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org"]
    folders = ["/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/"]
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    kinds = {".py", ".md", ".toml", ".yml", ".ipynb", ".txt", ".json", ".cfg", ""}
    for name in listed:
        said = text(name) if Path(name).suffix in kinds and (ROOT / name).exists() else ""
        assert not [word for word in hosts + folders if word in said], name


def test_figures_leave_pyplot_and_the_readers_settings_alone():
    python("-c", "import sys, d2lres.figures; assert 'matplotlib.pyplot' not in sys.modules")


def test_the_helper_module_is_small():
    lines = []
    for path in sorted((ROOT / "d2lres").glob("*.py")):
        lines += text(path).splitlines()
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.FunctionDef):
                long = node.end_lineno - node.lineno + 1
                assert long <= 60, f"{path.name}: {node.name} has {long} lines"
    assert len(lines) <= 4100
