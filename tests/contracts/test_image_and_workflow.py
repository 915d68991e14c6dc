"""The container and the hosted workflow do what their files say, as far as that shows without running them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from onpolicy_sdft.cli.main import VERBS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, list[str]]]:
    """Return each instruction of the Dockerfile with its words; continued lines are one."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(words[0], words[1:]) for line in text.splitlines() if (words := line.split())]


def test_what_the_image_copies_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sources = [source for name, words in instructions() if name == "COPY" for source in words[:-1]]
    assert "onpolicy_sdft" in sources
    assert all((ROOT / source).exists() and source not in ignored for source in sources)


def test_the_image_has_what_the_package_is_built_from_before_it_is_built():
    names = [" ".join([name, *words]) for name, words in instructions()]
    built = next(index for index, text in enumerate(names) if "pip install" in text)
    copied = {word for text in names[:built] if text.startswith("COPY") for word in text.split()[1:-1]}
    links = {(ROOT / "onpolicy_sdft" / "shipped" / name).resolve().name for name in ("configs", "launch")}
    assert {"pyproject.toml", "README.md", "LICENSE", "onpolicy_sdft", *links} <= copied


def test_the_command_of_the_image_is_one_that_there_is():
    verb, config = re.search(r"onpolicy_sdft (\w+) --config (\S+)", DOCKERFILE).groups()
    assert verb in VERBS
    assert (ROOT / config).is_file()
    assert '"sdft"' in DOCKERFILE.splitlines()[-1]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="there is no hadolint")
def test_a_linter_has_nothing_against_the_dockerfile():
    subprocess.run(["hadolint", str(ROOT / "Dockerfile")], check=True)


def test_the_workflow_runs_what_ci_runs_on_the_lowest_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] == 90
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key "on" as true
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    (python,) = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    lowest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert python == lowest
    assert f"python{lowest}" in (ROOT / "launch" / "common.sh").read_text()
    assert "launch/test.sh" in (ROOT / ".ci" / "run").read_text()
