"""The command itself: what it prints, how it ends, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from onpolicy_sdft.cli import sweep as verb
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.runs.files import read_json, read_jsonl

#: The command without the package's table of verbs.
SWEEP = [sys.executable, "-c", "import sys; from onpolicy_sdft.cli.sweep import run; sys.exit(run(sys.argv[1:]))"]


@pytest.fixture
def flags(tmp_path: Path, model_dir: Path) -> list[str]:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {word}", "response": word}) + "\n" for word in "abcde"))
    task = {"label": "task", "data": {"path": str(data), "limit": 2}, "task": {"name": "exact"}, "max_new_tokens": 3}
    base = {
        "model": {"name": str(model_dir)},
        "lora": {"r": 4},
        "data": {"path": str(data)},
        "task": {"name": "exact"},
        "rollout": {"max_new_tokens": 6, "num_slots": 2, "deterministic": True, "max_draft_tokens": 0},
        "screening": dict.fromkeys(("truncated", "looping", "length", "check", "empty"), "keep"),
        "train": {"batch_size": 2, "max_steps": 1},
        "eval": {"kl_prompts": 2, "kl_max_new_tokens": 3, "sets": [task]},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {"base": [str(tmp_path / "base.yaml")], "output_dir": str(tmp_path / "sweep")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return ["--config", str(tmp_path / "sweep.yaml")]


@pytest.mark.slow
def test_two_runs_in_processes_of_their_own_one_of_which_fails(flags, tmp_path, capsys):
    """A template that is no Jinja passes the check of options: only the run itself reads it."""
    (tmp_path / "bad.jinja").write_text("{{ question")
    axes = f"{{by: [{{label: good, optim.lr: 0.01}}, {{label: bad, context.template: {tmp_path / 'bad.jinja'}}}]}}"
    code = verb.run([*flags, "--axes", axes, "--max_parallel", "2"])
    shown = capsys.readouterr()
    assert code == 1
    directory = tmp_path / "sweep"
    good, bad = read_json(directory / "sweep.json")["runs"]
    assert (good["state"], good["reason"], bad["state"], bad["scores"]) == ("done", "", "failed", {})
    assert re.match(r"sdft train: context.template='.*bad.jinja' does not compile: ", bad["reason"])
    run = directory / good["run"]
    assert good["scores"]["eval/kl"] == read_json(run / "eval" / "summary.json")["after"]["kl"]["mean"]
    assert good["scores"]["train/steps"] == len(read_jsonl(run / "metrics.jsonl")) == 1
    assert load_config(run / "config.yaml").optim.lr == 0.01
    assert (run / "report.html").is_file()
    assert "by" in shown.out.splitlines()[1]
    assert re.search(r"\nby-bad_seed-0 +failed +sdft train: context.template=", shown.out)
    for name in ("table.csv", "sweep.json", "logs", "report.html"):
        assert str(directory / name) in shown.out
        assert (directory / name).exists()
    assert f"run directory  {run}" in (directory / "logs" / "by-good_seed-0.log").read_text()
    assert "sweep 2/2 runs, failed 1" in shown.err


def test_a_dry_run_lists_the_runs_and_leaves_nothing_behind(flags, tmp_path, capsys):
    axes = "{method: [sft, offline_sdft], optim.lr: [0.1, 0.2]}"
    exclude = "[{method: sft, optim.lr: 0.2, why: known}]"
    arguments = [*flags, "--axes", axes, "--exclude", exclude, "--seeds", "[0, 1]", "--dry_run"]
    assert verb.run(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"6 runs, at most 1 at once, in {tmp_path / 'sweep'}\n")
    rows = [line.split() for line in shown.splitlines() if line.startswith("method-")]
    assert rows[0] == ["method-sft_lr-0.1_seed-0", "sft", "0.1", "0", "pending"]
    assert len(rows) == 6
    assert f"written first by the base model: {tmp_path / 'sweep' / 'distilled-'}" in shown
    assert "left out: method sft, optim.lr 0.2 (known)" in shown
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_refuses_what_a_real_one_would(flags, tmp_path, finished_run):
    with pytest.raises(ConfigError, match="1 of 2 points cannot run"):
        verb.run([*flags, "--axes", "{lora.r: [4, 0]}", "--dry_run"])
    with pytest.raises(ConfigError, match="no program 'acelerate'"):
        verb.run([*flags, "--axes", "{lora.r: [4]}", "--launch", "[acelerate]", "--dry_run"])
    (tmp_path / "sweep" / "options").mkdir(parents=True)
    (tmp_path / "sweep" / "options" / "r-8_seed-0.yaml").write_text("{}")
    with pytest.raises(RunDirectoryError, match="runs that this sweep has not: r-8_seed-0"):
        verb.run([*flags, "--axes", "{lora.r: [4]}", "--dry_run"])


def test_ctrl_c_stops_the_runs_and_the_same_command_goes_on(flags, tmp_path):
    """A launcher that is no run but behaves as one: it works until it is asked to stop."""
    stub = tmp_path / "stub.py"
    stub.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *a: (print('saved', flush=True), sys.exit(130)))\n"
        "options = pathlib.Path(sys.argv[sys.argv.index('--config') + 1])\n"
        "pathlib.Path(options.parents[1] / 'runs' / options.stem).mkdir(parents=True)\n"
        "print('working', flush=True); time.sleep(60)\n"
    )
    launch = json.dumps([sys.executable, str(stub)])
    arguments = [*flags, "--axes", "{lora.r: [4, 8, 16]}", "--max_parallel", "2", "--launch", launch]
    process = subprocess.Popen([*SWEEP, *arguments], stderr=subprocess.PIPE, text=True)
    logs = [tmp_path / "sweep" / "logs" / f"r-{r}_seed-0.log" for r in (4, 8)]
    began = time.monotonic()
    while not all(log.is_file() and "\nworking" in log.read_text() for log in logs):
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped by SIGINT: 0 of 3 runs are done" in said
    assert "Go on with the same command." in said
    assert all(log.read_text().endswith("saved\n") for log in logs)
    states = [row["state"] for row in read_json(tmp_path / "sweep" / "sweep.json")["runs"]]
    assert states == ["stopped", "stopped", "pending"]


def test_cores_are_shared_among_runs_that_are_at_work_at_once(monkeypatch):
    from onpolicy_sdft.config.sweep import SweepConfig
    from onpolicy_sdft.runs import manifest

    monkeypatch.setattr(manifest, "hardware", lambda: {"num_usable_cores": 8})
    monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert verb._threads(SweepConfig(max_parallel=3)) == {"OMP_NUM_THREADS": "2"}
    assert verb._threads(SweepConfig(max_parallel=20)) == {"OMP_NUM_THREADS": "1"}
    assert verb._threads(SweepConfig()) == {}
    assert verb._threads(SweepConfig(max_parallel=2, launch=["accelerate", "launch"])) == {}
