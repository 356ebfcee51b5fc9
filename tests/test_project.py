"""What surrounds the package: version, changelog, citation, workflow, bounds of dependencies."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import medssl

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yaml").read_text(encoding="utf-8"))
PYTHONS = ["3.11", "3.12", "3.13"]
IMPORTED_AS = {"parquet": {"pyarrow"}, "hdf5": {"h5py"}, "lora": {"peft"}, "slides": {"openslide"}}  # by extra


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def lower_bounds():
    spec = importlib.util.spec_from_file_location("lower_bounds", ROOT / ".github/lower_bounds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- version


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    source = text(PYPROJECT["tool"]["hatch"]["version"]["path"])
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [medssl.__version__]


def test_changelog_and_citation_name_the_version():
    sections = re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == medssl.__version__
    citation = yaml.safe_load(text("CITATION.cff"))
    assert str(citation["version"]) == medssl.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": "The medssl developers"}]


def test_the_documentation_names_the_version():
    lines = [node for node in ast.parse(text("docs/conf.py")).body if "release" in ast.unparse(node).split("=")[0]]
    assert lines
    assert medssl.__version__ not in text("docs/conf.py")


def test_news_go_into_the_changelog():
    settings = PYPROJECT["tool"]["towncrier"]
    assert "<!-- towncrier release notes start -->" in text(settings["filename"])
    assert (ROOT / settings["directory"]).is_dir()


# --- dependencies


def test_lower_bounds_become_constraints(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\ndependencies = ["b[x]>=1.2.3", "A>=4", "c==5", "d"]\n'
        '[project.optional-dependencies]\nmore = ["e-e>=6", "a>=7"]\nother = ["f>=8"]\n'
    )
    constraints = lower_bounds().constraints
    assert constraints(file, []) == ["A==4", "b==1.2.3"]
    assert constraints(file, ["more"]) == ["A==4", "b==1.2.3", "e-e==6"]
    with pytest.raises(SystemExit) as stopped:
        constraints(file, ["most"])
    assert stopped.value.code == "no extra most in pyproject.toml; there are more, other"


def test_every_dependency_has_a_lower_bound():
    script = [sys.executable, str(ROOT / ".github/lower_bounds.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    assert len(printed) == len(PROJECT["dependencies"])
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in printed)


def test_every_extra_is_used():
    used = set()
    for path in (ROOT / "medssl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used |= {name.split(".")[0] for name in names}
    extras = PROJECT["optional-dependencies"].keys() - {"docs", "test"}
    assert extras == IMPORTED_AS.keys()
    assert all(packages <= used for packages in IMPORTED_AS.values())


# --- workflow and platform


def test_pythons_are_the_same_everywhere():
    versions = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if " :: Python :: " in line]
    assert versions == PYTHONS == WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_coverage_is_measured_on_every_python_and_has_a_floor():
    """Python 3.11 measures it in the workflow alone: ``make test`` would take a third longer there."""
    commands = [step["run"] for step in WORKFLOW["jobs"]["test"]["steps"] if "run" in step]
    assert any("make test" in command and "COVERAGE=yes" in command for command in commands)
    assert 80 <= PYPROJECT["tool"]["coverage"]["report"]["fail_under"] <= 100
    assert re.search(r"^\t.*-m pytest .*\$\(MEASURE\)$", text("Makefile"), re.MULTILINE)
    assert "--cov " in re.search(r"^MEASURE = (.*)", text("Makefile"), re.MULTILINE)[1]


def test_jobs_run_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):.*## ", text("Makefile"), re.MULTILINE))
    commands = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    made = {command.split()[1] for command in commands if command.startswith("make ")}
    assert made <= targets
    assert {"test", "check", "docs"} <= made


def test_actions_are_pinned_to_a_version():
    used = re.findall(r"uses: (\S+)", text(".github/workflows/test.yaml"))
    assert used
    assert not [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", name)]


def test_the_workflow_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_lines_fit_a_screen(name):
    assert not [line for line in text(name).splitlines() if len(line) > 100 and not line.startswith("|")]
