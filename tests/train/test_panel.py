"""The panel of a training run: the figures of metrics.jsonl and all scores on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tiny import questions, write_run

from onpolicy_sdft import log
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.runs.progress import format_figure
from onpolicy_sdft.train.panel import TrainProgress

METRICS = {
    "loss/total": 1.23456, "screen/fallback_rate": 0.25, "train/tokens_per_second": 1234.5,
    "rollout/tokens_per_second": 432.1, "memory/learn_mib": 2048, "memory/rollout_mib": 1890, "train/lr": 0.001,
    "eval/facts/score": 0.5,
}  # fmt: skip


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True

    def panels(self) -> list[str]:
        """Return what the panel looked like each time it was drawn."""
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue()).replace("\r", "\n")
        return re.findall(r"╭.*?╰─*╯", text, re.DOTALL)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error is a terminal of 100 columns."""
    found = Terminal()
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    console = Console(file=found, force_terminal=True, soft_wrap=True)
    monkeypatch.setattr(log, "console", console)
    for handler in log.logging.getLogger("onpolicy_sdft").handlers:
        monkeypatch.setattr(handler, "console", console, raising=False)
    return found


def test_the_panel_has_step_figures_scores_and_the_time_left(terminal):
    with TrainProgress("train", 8, "steps", title="runs/a") as progress:
        progress.show_scores(0, {"task": 0.125})
        progress.update(0, writing=12, slots=7)
        progress.show_step(1, METRICS)
        progress.show_scores(1, {"task": 0.375})
    panel = terminal.panels()[-1]
    assert "─ runs/a ─" in panel
    for text in (
        "1/8 steps", "eta ", "writing 7 rollouts", "step 1", "loss 1.235 nats a token", "fallback rate 25%",
        "learned 1,234 tokens/s", "written 432.1 tokens/s", "memory, learning 2048 MiB", "memory, rollouts 1890 MiB",
    ):  # fmt: skip
        assert text in panel
    assert re.search(r"task +0\.125 +0\.375 +1 ", panel)
    assert re.search(r"facts +- +0\.500 +1 ", panel)


def test_the_loss_that_is_shown_is_the_last_that_was_learned(terminal):
    skipped = {name: value for name, value in METRICS.items() if name != "loss/total"}
    with TrainProgress("train", 3, "steps") as progress:
        progress.show_step(1, skipped)
        assert "loss" not in terminal.panels()[-1]
        progress.show_step(2, METRICS)
        progress.show_step(3, skipped | {"screen/fallback_rate": 0.5})
    panel = terminal.panels()[-1]
    assert all(text in panel for text in ("step 3", "loss 1.235 nats a token", "fallback rate 50%"))


def test_a_narrow_terminal_loses_no_figure(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    with TrainProgress("train", 8, "steps") as progress:
        progress.show_step(1, METRICS)
    panel = terminal.panels()[-1]
    assert all(figure in panel for figure in ("1.235", "25%", "1,234", "432.1", "2048", "1890", "0.500"))


def test_what_is_logged_stands_above_the_panel(terminal):
    with TrainProgress("train", 2, "steps") as progress:
        progress.show_step(1, METRICS)
        log.console.print("rollouts are long")
        progress.show_step(2, METRICS)
    after = terminal.getvalue().partition("rollouts are long")[2]
    assert "2/2 steps" in after
    assert "rollouts are long" not in "".join(terminal.panels())


def test_elsewhere_the_lines_are_those_of_any_job():
    stream = io.StringIO()
    with TrainProgress(
        "train", 2, "steps", title="runs/a", stream=stream, every_seconds=0, clock=lambda: 0.0
    ) as progress:
        progress.show_scores(0, {"task": 0.125})
        progress.show_step(1, METRICS)
    line = "train 1/2 steps, loss 1.235, tokens/s 1,234, fallback rate 25%, facts/score 0.5, eta 0:00, elapsed 0:00"
    assert stream.getvalue() == f"train 0/2 steps, elapsed 0:00\n{line}\n"


@pytest.mark.slow
def test_a_run_shows_its_own_metrics_and_a_resumed_one_what_was_before(tmp_path, model_dir, terminal):
    options = {
        "rollout.max_new_tokens": 6, "train.max_steps": 2, "train.output_dir": tmp_path / "run", "eval.kl_prompts": 0,
        "eval.every_steps": 2, "gate.rows": 10,
    }  # fmt: skip
    sets = {"eval.sets": [questions(tmp_path, retention=True)], "eval.validation": [questions(tmp_path, "checked")]}
    config = write_run(tmp_path, model_dir, **options, **sets)
    train = ["train", "--config", str(config)]
    assert main(train) in (0, 3)
    run = tmp_path / "run"
    expect_in(terminal.panels()[-1], run)
    assert main([*train, "--train.resume", "auto"]) in (0, 3)  # nothing is left to train
    expect_in(terminal.panels()[-1], run)


def expect_in(panel: str, run: Path) -> None:
    """Hold a panel against the files of its run."""
    values = read_jsonl(run / "metrics.jsonl")[-1]["values"]
    for name in ("loss/total", "screen/fallback_rate", "train/tokens_per_second", "memory/learn_mib"):
        assert f" {format_figure(name, values[name])}" in panel, name
    start = read_json(run / "eval" / "summary.json")["before"]["sets"][0]["score"]
    assert re.search(rf"task +{start:.3f} +- ", panel)
    assert re.search(rf"checked +- +{values['eval/checked/score']:.3f} +2 ", panel)
    first, *_, last = read_jsonl(run / "gate.jsonl")
    assert re.search(rf"task \(gate\) +{first['scores']['task']:.3f} +{last['scores']['task']:.3f} +2 ", panel)
