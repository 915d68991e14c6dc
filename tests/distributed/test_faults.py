"""The campaign of kills, in short."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from harness import ROOT

from onpolicy_sdft.runs.files import read_json


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_loses_nothing(config, tmp_path, ranks):
    flags = {"kills": 2, "ranks": ranks, "steps": 8, "longest": 1.0, "config": config, "results": tmp_path}
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--folder", str(tmp_path / "runs")]
        + [part for name, value in flags.items() for part in (f"--{name}", str(value))],
        cwd=ROOT, capture_output=True, text=True, timeout=580, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = read_json(tmp_path / "faults.json")
    assert found["lost"] == []
    assert len(found["kills"]) == 2
    assert any(kill["inside_checkpoint"] for kill in found["kills"])
