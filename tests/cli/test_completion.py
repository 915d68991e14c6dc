"""Completion in a shell: the printed script is valid, and TAB completes verbs, options and values."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onpolicy_sdft.cli.main import main

#: What bash does on TAB at the end of a line.
TAB = r"""
source "$1"
COMP_LINE="$2" COMP_POINT=${#2} COMP_TYPE=9
read -ra COMP_WORDS <<< "$2"
[ "${2: -1}" = " " ] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete sdft "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What ``sdft completion bash`` prints, beside a command ``sdft``."""
    command = tmp_path / "sdft"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onpolicy_sdft "$@"\n')
    command.chmod(0o755)
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "completion.sh"
    path.write_text(capsys.readouterr().out)
    return path


def complete(script: Path, line: str) -> list[str]:
    environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    command = ["bash", "-c", TAB, "bash", str(script), line]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_the_script_is_valid_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_the_script_is_valid_zsh(capsys):
    assert main(["completion", "zsh"]) == 0
    subprocess.run(["zsh", "-n"], input=capsys.readouterr().out, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sdft tr", ["train"]),
        ("sdft train --optim.l", ["--optim.lr"]),
        ("sdft train --config configs/online/quickstart.yaml --gate.act", ["--gate.action"]),
        ("sdft train --train.resume ", ["never", "auto"]),
        ("sdft eval RUN --out", ["--output"]),
        ("sdft models f", ["fetch"]),
    ],
)
@pytest.mark.few(2)
def test_tab_completes_verbs_options_and_values(script, line, found):
    assert complete(script, line) == found


def test_an_unknown_shell_names_those_there_are(capsys):
    assert main(["completion", "fish"]) == 2
    assert "choose from 'bash', 'zsh'" in capsys.readouterr().err
