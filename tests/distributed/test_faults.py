"""The campaigns of kills and of full disks, in short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

from benchmarks.faults.runs import differences
from onpolicy_sdft.runs.files import read_json


@pytest.fixture
def campaign(model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return what runs a campaign with flags and gives back its record."""

    def run(name: str, *flags: str) -> Any:
        always = ["--model", str(model_dir), "--results", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.faults.{name}", *always, *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=580, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return read_json(tmp_path / ("faults.json" if name == "kills" else f"{name}.json"))

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("job", "ranks"), [("training", 1), ("training", 2), ("sequence", 1), ("sweep", 1), ("distillation", 1)]
)
def test_a_job_that_is_killed_again_and_again_loses_nothing(campaign, tmp_path, job, ranks):
    flags = {"kills": 2, "jobs": job, "ranks": ranks, "longest": 1.0, "folder": tmp_path / "runs"}
    found = campaign("kills", *(part for name, value in flags.items() for part in (f"--{name}", str(value))))
    outcome = found["jobs"][job]
    assert outcome["lost"] == []
    assert len(outcome["kills"]) == 2
    assert outcome["kills"][1]["phase"] in outcome["kills"][1]["inside"]

    if job == "training":
        whole, other = tmp_path / "runs" / "training-whole", tmp_path / "runs" / "training-0"
        assert differences(whole, other) == []
        assert see_every_change(whole, other)


def see_every_change(whole: Path, other: Path) -> bool:
    """Whether a digit that is another one, in any of the files, is a difference: a comparison may compare nothing."""
    for name in ("rollouts.jsonl", "eval/after-test.jsonl", "eval/summary.json", "result.json"):
        path = other / name
        content = path.read_text()
        path.write_text(re.sub(r": \d", ": 7", content, count=1) if name != "result.json" else "{}")
        assert path.read_text() != content
        if not differences(whole, other):
            return False
        path.write_text(content)
    return True


def _has_mounts_of_its_own() -> bool:
    try:
        return not subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not _has_mounts_of_its_own(), reason="the system permits no file systems of one's own")
def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(campaign):
    found = campaign("disk", "--cases", "4")
    assert {each["ended"] for each in found["cases"]} == {2}
    assert [each["problems"] for each in found["cases"]] == [[]] * 5
