"""The quickstart computes in what the machine is quick in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from onpolicy_sdft.cli.main import main

ROOT = Path(__file__).parents[2]
SDFT = """#!/usr/bin/env bash
if [ "$1" = doctor ]; then cat "$(dirname "$0")/said"; else echo "$@"; fi
"""


@pytest.mark.parametrize("is_slow", [True, False])
def test_it_takes_float32_where_the_cpu_has_no_instructions_for_bfloat16(tmp_path, monkeypatch, capsys, is_slow):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("onpolicy_sdft.models.load.is_slow_in_bfloat16", lambda device: is_slow)
    assert main(["doctor"]) == 0
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "said").write_text(capsys.readouterr().out * 2000)  # longer than what a pipe holds
    (programs / "sdft").write_text(SDFT)
    (programs / "python").write_text("")
    for name in ("sdft", "python"):
        (programs / name).chmod(0o755)
    stamp = tmp_path / ".venv" / ".installed-core"
    stamp.touch()
    later = max(path.stat().st_mtime for path in tmp_path.rglob("*")) + 10
    os.utime(stamp, (later, later))
    command = ["bash", "launch/quickstart.sh", "--train.max_steps", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("train --config configs/online/quickstart.yaml")
    assert last.endswith("--train.max_steps 1")
    assert ("--model.dtype float32 --train.precision fp32" in last) is is_slow
