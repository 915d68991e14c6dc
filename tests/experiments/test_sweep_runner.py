"""The runner with pretended runs: what is started, what is kept, and what is refused."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import pytest
from filelock import FileLock

from onpolicy_sdft.config.sweep import SweepConfig
from onpolicy_sdft.data.inputs import input_digests
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.experiments.sweep import SweepOutcome, run_sweep
from onpolicy_sdft.experiments.sweep_plan import Plan, make_plan
from onpolicy_sdft.runs.commands import Finish
from onpolicy_sdft.runs.files import read_json, write_json_atomic
from onpolicy_sdft.runs.signals import Signals


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one plan serves all tests that ask for the same runs

    def make(**options) -> SweepConfig:
        return SweepConfig(**{"axes": {"optim.lr": [0.1, 0.2]}, "output_dir": "sweep", **options})

    return make


PLANS: dict[str, Plan] = {}


def plan_of(config: SweepConfig) -> Plan:
    asked = repr((config.axes, config.options, config.seeds, config.output_dir))
    if asked not in PLANS:
        PLANS[asked] = make_plan(config)
    return PLANS[asked]


def go(config: SweepConfig, machine, signals: Signals | None = None) -> SweepOutcome:
    return run_sweep(config, plan_of(config), machine, Signals() if signals is None else signals)


def states(outcome: SweepOutcome) -> dict[str, str]:
    return {row.name: row.state for row in outcome.rows}


def test_every_run_is_a_command_on_its_own_file_and_the_table_has_all_of_them(sweep, machine, tmp_path):
    runs = machine()
    outcome = go(sweep(seeds=[1, 2]), runs)
    assert runs.names == ["lr-0.1_seed-1", "lr-0.2_seed-1", "lr-0.1_seed-2", "lr-0.2_seed-2"]
    assert runs.verbs == ["train"] * 4
    options = Path("sweep") / "options" / "lr-0.1_seed-1.yaml"
    assert runs.commands[0][-4:] == ["onpolicy_sdft", "train", "--config", str(options)]
    assert set(states(outcome).values()) == {"done"}
    assert outcome.signal is None
    first = outcome.table[0]
    assert first["scores"]["eval/task/score"]["values"] == [0.1, 0.2]
    assert read_json(tmp_path / "sweep" / "sweep.json")["table"] == outcome.table
    (row, _) = csv.DictReader((tmp_path / "sweep" / "table.csv").open())
    assert float(row["eval/task/score mean"]) == pytest.approx(0.15)


def test_what_is_done_is_not_done_again_and_points_and_seeds_may_be_added(sweep, machine, logged):
    go(sweep(), machine())
    again = machine()
    logged.clear()
    go(sweep(), again)
    assert (again.names, [line for line in logged if " runs are new" in line]) == ([], [])
    outcome = go(sweep(axes={"optim.lr": [0.3, 0.2, 0.1]}, seeds=[0, 1]), again)
    assert again.names == ["lr-0.3_seed-0", "lr-0.3_seed-1", "lr-0.2_seed-1", "lr-0.1_seed-1"]
    assert any(line.startswith("4 runs are new in ") for line in logged)
    assert len(outcome.rows) == 6
    assert [entry["point"]["optim.lr"] for entry in outcome.table] == [0.3, 0.2, 0.1]


def test_a_failed_run_keeps_its_reason_and_is_tried_again_when_asked(sweep, machine, logged):
    reason = "sdft train: 5 steps in a row made no update"
    outcome = go(sweep(), machine({"lr-0.1": (2, reason)}))
    assert states(outcome) == {"lr-0.1_seed-0": "failed", "lr-0.2_seed-0": "done"}
    assert (outcome.rows[0].reason, outcome.rows[0].seconds) == (reason, 1.0)
    assert [entry["num_failed"] for entry in outcome.table] == [1, 0]
    again = machine()
    outcome = go(sweep(), again)
    assert again.names == []
    assert outcome.rows[0].reason == reason
    assert "1 runs failed before and are kept so; --retry_failed true tries them again" in logged
    outcome = go(sweep(retry_failed=True), again)
    assert again.names == ["lr-0.1_seed-0"]
    assert states(outcome) == {"lr-0.1_seed-0": "done", "lr-0.2_seed-0": "done"}
    assert (outcome.rows[0].reason, outcome.rows[0].seconds) == ("", 2.0)


def test_a_command_that_leaves_no_model_has_failed_although_it_ended_well(sweep, machine, tmp_path):
    outcome = go(sweep(), lambda command, log: Finish(0, "", 1.0))
    assert set(states(outcome).values()) == {"failed"}
    assert outcome.rows[0].reason == f"it left no model: {Path('sweep/logs/lr-0.1_seed-0.log')}"


def test_at_most_so_many_run_at_once(sweep, machine):
    for most in (1, 3):
        runs = machine(seconds=0.05)
        go(sweep(seeds=list(range(4)), max_parallel=most, output_dir=sweep().output_dir + str(most)), runs)
        assert runs.most_at_work == most


def test_a_signal_ends_the_runs_at_work_begins_no_other_and_the_same_command_goes_on(sweep, machine):
    signals = Signals()

    class Interrupted(machine):
        def end(self, verb, options, name):
            if len(self.names) < 2:
                return super().end(verb, options, name)
            if len(self.names) == 2:
                signals.numbers.append(15)
                Path(options["train"]["output_dir"]).mkdir(parents=True)
                return Finish(143, "stopped by SIGTERM", 2.0)
            return Finish(143, "not started: SIGTERM", 0.0)  # as the real one answers

    outcome = go(sweep(seeds=[0, 1]), Interrupted(), signals)
    assert outcome.signal == 15
    assert [row.state for row in outcome.rows] == ["done", "stopped", "pending", "pending"]
    assert [row.reason for row in outcome.rows] == ["", "stopped by SIGTERM", "", ""]
    again = machine()
    outcome = go(sweep(seeds=[0, 1]), again)
    assert again.names == ["lr-0.2_seed-0", "lr-0.1_seed-1", "lr-0.2_seed-1"]
    assert [row.seconds for row in outcome.rows] == [1.0, 3.0, 1.0, 1.0]


def test_a_sweep_that_was_killed_goes_on_from_what_its_runs_have(sweep, machine, finished_run, tmp_path):
    go(sweep(), machine())
    (tmp_path / "sweep" / "sweep.json").unlink()
    again = machine()
    outcome = go(sweep(), again)
    assert again.names == []
    assert outcome.rows[0].scores["eval/task/score"] == 0.0


def test_other_options_are_refused_and_named(sweep, machine, tmp_path):
    go(sweep(options={"train.max_steps": 5}), machine())
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*") if path.is_file())
    with pytest.raises(RunDirectoryError, match=r"lr-0\.\d_seed-0 are others now: train\.max_steps was 5, now 6\."):
        go(sweep(options={"train.max_steps": 6}), machine())
    with pytest.raises(RunDirectoryError, match=r"runs that this sweep has not: lr-0\.2_seed-0\. Fix"):
        go(sweep(options={"train.max_steps": 5}, axes={"optim.lr": [0.1, 0.3]}), machine())
    after = sorted(path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*") if path.is_file())
    assert before == after
    go(sweep(options={"train.max_steps": 5}, max_parallel=2, metrics=["train/steps"]), machine())


def test_a_directory_that_was_moved_is_gone_on_with(sweep, machine, tmp_path):
    go(sweep(), machine())
    (tmp_path / "sweep").rename(tmp_path / "moved")
    again = machine()
    go(sweep(output_dir="moved"), again)
    assert again.names == []


def test_two_sweeps_do_not_work_in_one_directory(sweep, machine, tmp_path):
    (tmp_path / "sweep").mkdir()
    with (
        FileLock(tmp_path / "sweep" / ".lock"),
        pytest.raises(RunDirectoryError, match="Another sweep is at work"),
    ):
        go(sweep(), machine())


def test_a_launcher_that_is_not_there_is_found_before_anything_is_written(sweep, machine, tmp_path):
    with pytest.raises(ConfigError, match="no program 'acelerate'"):
        go(sweep(launch=["acelerate", "launch"]), machine())
    assert not (tmp_path / "sweep").exists()


def test_a_launcher_starts_training_and_not_distilling(sweep, machine):
    runs = machine()
    go(sweep(axes={"method": ["offline_sdft"]}, launch=["env", "A=b"]), runs)
    assert runs.verbs == ["distill", "train"]
    assert runs.commands[0][0] != "env"
    assert runs.commands[1][:4] == ["env", "A=b", "-m", "onpolicy_sdft"]


@pytest.mark.slow
def test_a_distilled_set_is_written_once_before_all_who_learn_from_it(sweep, machine, tmp_path):
    axes = {"method": ["offline_sdft", "sft"], "optim.lr": [0.1, 0.2]}
    runs = machine(seconds=0.02)
    go(sweep(axes=axes, seeds=[0, 1], max_parallel=3), runs)
    assert runs.verbs == ["distill"] + ["train"] * 8
    assert (tmp_path / "sweep" / runs.names[0] / "summary.json").is_file()
    more = machine()
    go(sweep(axes=axes, seeds=[0, 1, 2]), more)
    assert more.verbs == ["train"] * 4


def test_where_distilling_fails_only_the_runs_that_need_it_fail(sweep, machine):
    axes = {"method": ["offline_sdft", "sft"]}
    runs = machine({"distilled-": (2, "sdft distill: no rows")})
    outcome = go(sweep(axes=axes), runs)
    assert runs.verbs == ["distill", "train"]
    assert states(outcome) == {"method-offline_sdft_seed-0": "failed", "method-sft_seed-0": "done"}
    assert (outcome.rows[0].reason, outcome.rows[0].seconds) == ("sdft distill: no rows", 0.0)
    again = machine()
    go(sweep(axes=axes, retry_failed=True), again)
    assert again.verbs == ["distill", "train"]


def test_the_seed_model_is_scored_once_for_all_runs_that_ask_it_the_same(sweep, machine, tmp_path):
    axes = {"optim.lr": [0.1, 0.2], "eval.kl_prompts": [3, 4]}
    runs = machine()
    go(sweep(axes=axes), runs)
    donors = [dict(pairwise(command)).get("--eval.base_scores") for command in runs.commands]
    place = Path("sweep") / "runs"
    assert donors == [None, None, str(place / "lr-0.1_kl_prompts-3_seed-0"), str(place / "lr-0.1_kl_prompts-4_seed-0")]
    mine = machine()
    go(sweep(options={"eval.base_scores": "mine"}, output_dir="other"), mine)
    assert not any("--eval.base_scores" in command for command in mine.commands)


def test_a_failure_of_the_machine_itself_lets_no_other_run_begin(sweep, machine):
    class Broken(machine):
        def end(self, verb, options, name):
            raise OSError("no processes left")

    runs = Broken()
    with pytest.raises(OSError, match="no processes left"):
        go(sweep(seeds=list(range(20))), runs)
    assert len(runs.names) < 20


def test_a_run_whose_data_changed_since_is_refused_and_not_averaged_with_new_ones(sweep, machine, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("old")

    class Reading(machine):
        def end(self, verb, options, name):
            finish = super().end(verb, options, name)
            files = input_digests({"data.path": [rows]})
            write_json_atomic(Path(options["train"]["output_dir"]) / "manifest.json", {"files": files})
            return finish

    asked = {"options": {"data.path": "rows.jsonl"}}
    go(sweep(**asked), Reading())
    again = Reading()
    go(sweep(**asked), again)
    rows.write_text("new")
    with pytest.raises(RunDirectoryError, match=r"lr-0\.1_seed-0 is there already, .*data\.path \(rows\.jsonl, "):
        go(sweep(**asked, seeds=[0, 1]), again)
    rows.unlink()
    with pytest.raises(ConfigError, match=r"lr-0\.1_seed-0: data\.path='rows\.jsonl' is not a file"):
        go(sweep(**asked, output_dir="other"), again)
    assert again.names == []
