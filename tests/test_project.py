"""The project's files agree with each other: dependencies, README, environment, Makefile, sizes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


def test_every_file_the_readme_links_to_exists():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_readmes_python_example_runs(tmp_path):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    few = example.replace("fashion_mnist()", "(all[:64] for all in fashion_mnist(size=8))")
    assert few.count("[:64]") == 1
    assert run(sys.executable, "-c", few, cwd=tmp_path).startswith("Score(loss=")


def test_no_file_names_a_machines_folder_or_a_package_host():
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org"]
    folders = ["/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/"]
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    kinds = {".py", ".md", ".toml", ".yml", ".ipynb", ".txt", ".json", ".cfg", ""}
    for path in {ROOT / name for name in listed if Path(name).suffix in kinds}:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert not [word for word in hosts + folders if word in text], path


def test_the_core_imports_torch_and_nothing_else_heavy():
    heavy = {"torchvision", "matplotlib", "d2l", "IPython", "tqdm", "pandas"}
    code = f"import torch, sys; a = set(sys.modules); import d2lres; b = {heavy} & set(sys.modules) - a"
    assert run(sys.executable, "-c", f"{code}; print(*b)") == "\n"


def test_the_helper_module_is_small():
    lines, long = 0, []
    for path in sorted((ROOT / "d2lres").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(
                    f"{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
                )
    assert long == []
    assert lines <= 2000
