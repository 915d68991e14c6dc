"""A sequence of tiny tasks: its matrix is that of its runs, and it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import TaskConfig
from onpolicy_sdft.errors import ConfigError, RunDirectoryError, TrainingError
from onpolicy_sdft.experiments.sequence import Interrupted, Stopped, run_sequence
from onpolicy_sdft.experiments.sequence_plan import plan_sequence
from onpolicy_sdft.experiments.sequence_results import collect
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.commands import REFUSED_CODE, Finish
from onpolicy_sdft.runs.files import read_json, read_jsonl, write_json_atomic


def last_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted(output.glob("stage-2-*/checkpoints/step-*"))[-1] / "trainable.safetensors")


@pytest.mark.slow
def test_the_matrix_of_a_sequence_is_the_share_of_right_answers_in_the_runs_records(whole):
    output, summary = whole.output, read_json(whole.output / "sequence.json")
    assert [stage["run"] for stage in summary["stages"]] == ["stage-1-red", "stage-2-blue"]
    assert summary["n"] == {"red": 6, "blue": 5, "held": 2}
    for part, labels in ((summary["matrix"], summary["labels"]), (summary["retention"], summary["retention_labels"])):
        for column, label in enumerate(labels):
            for row, path in enumerate(summary["records"][label]):
                records = read_jsonl(output / path)
                assert part["value"][row][column] == pytest.approx(np.mean([r["correct"] for r in records]))
    assert set(summary["metrics"]) >= {"average_accuracy", "forgetting", "backward_transfer", "forward_transfer"}
    assert set(summary["forgetting_by_task"]) == {"red"}
    # Row 0 is the base model; the second stage starts from the first one's weights and takes its scores over.
    assert summary["records"]["red"][0] == "stage-1-red/eval/before-red.jsonl"
    assert summary["kl"][0] is None
    assert summary["kl"][1]["mean"] > 0
    assert read_json(output / "stage-2-blue/eval/summary.json")["before"]["taken_from"] == str(output / "stage-1-red")
    assert [command[0] for command in whole.commands] == ["train", "train"]


def test_a_sequence_that_was_stopped_goes_on_and_ends_as_if_it_never_was(whole, in_process, tmp_path):
    parts = whole.make(output_dir=str(tmp_path / "parts"))
    in_process.before = lambda command: Finish(143, "stopped", 0.0) if "blue" in command[-1] else None
    with pytest.raises(Interrupted) as stop:
        run_sequence(parts, [])
    assert stop.value.exit_code == 143
    partial = read_json(tmp_path / "parts" / "sequence.json")
    assert len(partial["matrix"]["value"]) == 2  # the base model and the one stage that is done
    assert partial["metrics"] == {}
    in_process.before, in_process.commands = lambda command: None, []
    run_sequence(parts, [])
    assert len(in_process.commands) == 1  # the first stage is not run again
    outputs = whole.output, tmp_path / "parts"
    first, second = (read_json(output / "sequence.json") for output in outputs)
    assert first["matrix"] == second["matrix"]
    weights = [last_weights(output) for output in outputs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    in_process.commands = []
    run_sequence(parts, [])
    assert in_process.commands == []


def test_finished_stages_of_other_options_are_refused_by_name(whole, in_process):
    with pytest.raises(RunDirectoryError, match=r"optim\.lr was 0\.02 and is 0\.5 now"):
        run_sequence(whole.make(options={"optim.lr": 0.5}), [])
    assert in_process.commands == []


def test_a_stage_that_fails_names_its_log_and_one_that_made_no_update_is_told_apart(tiny, in_process):
    in_process.before = lambda command: Finish(1, "ValueError: no", 0.0)
    with pytest.raises(TrainingError, match=r"ValueError: no .*stage-1-red\.log"):
        run_sequence(tiny(), [])
    in_process.before = in_process.end_without_update
    with pytest.raises(Stopped):
        run_sequence(tiny(), [])


@pytest.mark.slow
def test_stages_train_to_their_end_whatever_the_gate_sees_unless_told_otherwise(tiny):
    assert {stage.config.gate.action for stage in plan_sequence(tiny())} == {"continue"}
    stopping = tiny(run={**tiny().run, "gate": {"action": "stop"}})
    assert {stage.config.gate.action for stage in plan_sequence(stopping)} == {"stop"}


@pytest.mark.slow
def test_a_stage_that_the_gate_gave_back_as_its_start_counts_as_done(tiny, in_process, tmp_path):
    def given_back(command: list[str]) -> Finish:
        assert main(command) == 0
        result = load_config(command[command.index("--config") + 1]).train.output_dir + "/result.json"
        write_json_atomic(Path(result), {**read_json(Path(result)), "verdict": {"is_start": True}})
        return Finish(REFUSED_CODE, "", 0.0)

    in_process.before = given_back
    assert [stage["label"] for stage in read_json(run_sequence(tiny(), []))["stages"]] == ["red", "blue"]


@pytest.mark.parametrize("handoff", ["continue", "merge"])
def test_each_stage_starts_from_the_one_before_as_asked(tiny, handoff):
    first, second = plan_sequence(tiny(adapter_handoff=handoff, seed=3))
    assert first.config.train.init_from is None
    assert second.config.train.init_from == str(first.path)
    assert second.config.train.adapter_handoff == handoff
    assert first.config.train.seed == second.config.train.seed == 3
    assert [item.label for item in second.config.eval.sets] == ["red", "blue", "held"]
    assert [item.retention for item in second.config.eval.sets] == [False, False, True]


def test_rehearsal_shows_each_stage_all_earlier_ones(tiny):
    first, second = plan_sequence(tiny(replay_rate=0.25))
    assert first.config.replay.sources == []
    assert [source.label for source in second.config.replay.sources] == ["red"]
    assert second.config.replay.rate == 0.25


def test_joint_training_is_one_run_on_all_tasks_for_all_their_steps(tiny, in_process, tmp_path):
    config = tiny(joint=True, output_dir=str(tmp_path / "joint"))
    (stage,) = plan_sequence(config)
    assert stage.config.train.max_steps == 4
    assert [source.label for source in stage.config.replay.sources] == ["blue"]
    summary = read_json(run_sequence(config, []))
    assert len(summary["matrix"]["value"]) == 2
    assert set(summary["metrics"]) == {"average_accuracy", "retention_change"}
    ids = {row["example_id"] for row in read_jsonl(tmp_path / "joint" / "stage-1-joint" / "rollouts.jsonl")}
    assert any(example.startswith("blue/") for example in ids)


@pytest.mark.slow
def test_the_offline_method_learns_one_set_of_the_base_model_for_all_seeds(tiny, in_process, tmp_path):
    method = tmp_path / "offline.yaml"
    method.write_text("train: {targets: distilled, distilled: somewhere}\n")
    asked = {"method": [str(method)], "distilled_dir": str(tmp_path / "distilled")}
    run_sequence(tiny(seed=0, output_dir=str(tmp_path / "s0"), **asked), [])
    # Of the second seed the last stage is only begun: what counts is what came before it.
    in_process.before = lambda command: Finish(143, "", 0.0) if "s1/stage-2" in command[-1] else None
    with pytest.raises(Interrupted):
        run_sequence(tiny(seed=1, output_dir=str(tmp_path / "s1"), **asked), [])
    assert [command[0] for command in in_process.commands] == ["distill", "train"] * 2 + ["train"] * 2
    for label in ("red", "blue"):
        written = load_config(tmp_path / "s0" / f"distill-{label}.yaml")
        assert written.train.targets == "policy"
        assert written.train.init_from is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stages": []}, "at least one task"),
        ({"replay_rate": 1.0}, r"in \[0, 1\)"),
        ({"joint": True, "replay_rate": 0.5}, "nothing is rehearsed"),
        ({"options": {"train.output_dir": "x"}}, "set by the sequence"),
        ({"options": {"optim.lrr": 1}}, r"stage 1 \(red\).*nearest option is 'optim.lr'"),
        ({"options": {"eval.before_and_after": False}}, "nothing to compare"),
    ],
)
@pytest.mark.few(3)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_written(tiny, options, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        run_sequence(tiny(**options), [])
    assert not (tmp_path / "sequence").exists()


def test_two_stages_of_one_name_are_refused(tiny):
    stages = tiny().stages
    with pytest.raises(ConfigError, match="give each stage its own"):
        plan_sequence(tiny(stages=[stages[0], stages[0]]))


@pytest.mark.slow
def test_a_sequence_killed_in_the_middle_of_a_step_ends_as_if_it_never_was(tiny, tmp_path):
    """The real commands: the program gets SIGKILL, the run it started ends by itself, and the next start goes on."""
    command = [sys.executable, "-m", "onpolicy_sdft", "continual", "--config", str(tiny.path), "--output_dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    parts = tmp_path / "parts"
    process = subprocess.Popen([*command, str(parts)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(parts.glob("stage-2-*/checkpoints/step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)  # the orphan saves and goes
    subprocess.run([*command, str(parts)], check=True, capture_output=True)
    weights = [last_weights(tmp_path / name) for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_second_sequence_in_a_directory_is_refused_and_writes_nothing(tiny, in_process, tmp_path):
    with (
        claimed(tmp_path / "sequence", "output_dir", "sequence"),
        pytest.raises(RunDirectoryError, match="Another sequence is at work in output_dir="),
    ):
        run_sequence(tiny(), [])
    assert [path.name for path in (tmp_path / "sequence").iterdir()] == [".lock"]


def test_stages_whose_files_have_changed_since_are_refused_by_name(whole, in_process):
    rows = Path(whole.make().stages[1].data.path)
    before = rows.read_text()
    rows.write_text(before.replace("seven", "SEVEN"))
    try:
        with pytest.raises(
            RunDirectoryError, match=r"stage-1-red is there .*eval\.sets blue: data\.path .*blue\.jsonl"
        ):
            run_sequence(whole.make(), [])
    finally:
        rows.write_text(before)
    assert in_process.commands == []
    run_sequence(whole.make(), [])
    assert in_process.commands == []  # a file that was only written again is the same


def test_a_file_of_a_later_stage_that_is_missing_is_found_before_the_first(tiny, in_process, tmp_path):
    (tmp_path / "blue.jsonl").unlink()
    stages = tiny().stages
    stages[1].test = stages[0].test
    with pytest.raises(ConfigError, match=r"stage 2 \(blue\): data\.path='.*blue\.jsonl' is not a file"):
        run_sequence(tiny(stages=stages), [])
    assert in_process.commands == []
    assert not (tmp_path / "sequence").exists()


def test_what_the_sequence_sets_itself_is_refused_among_the_shared_options_too(tiny):
    shared = tiny().run
    with pytest.raises(ConfigError, match=r"run: train\.output_dir is set by the sequence itself"):
        plan_sequence(tiny(run={**shared, "train": {**shared["train"], "output_dir": "elsewhere"}}))


def test_a_task_without_a_check_has_no_column_in_the_matrix_and_is_refused(whole):
    red, blue = whole.make().stages
    unchecked = dataclasses.replace(blue, task=TaskConfig())
    with pytest.raises(ConfigError, match=r"'blue' has task\.name=free_form.*Fix: a task\.name"):
        plan_sequence(whole.make(stages=[red, unchecked]))
    made = whole.make()
    sets = [{"label": "held", "task": {"name": "free_form"}, "data": made.run["eval"]["sets"][0]["data"]}]
    with pytest.raises(ConfigError, match=r"'held' has task\.name=free_form"):
        plan_sequence(whole.make(run={**made.run, "eval": {**made.run["eval"], "sets": sets}}))


def test_a_score_of_no_check_is_said_and_not_counted(whole, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(whole.output, output)
    path = output / "stage-1-red" / "eval" / "summary.json"
    summary = read_json(path)
    for entry in summary["before"]["sets"]:
        entry["score"] = None
    write_json_atomic(path, summary)
    stages = [(label, output / f"stage-{number}-{label}") for number, label in ((1, "red"), (2, "blue"))]
    with pytest.raises(RunDirectoryError, match="'red' has no score: its task has no check"):
        collect(output, labels=["red", "blue"], retention_labels=[], stages=stages, joint=False, is_whole=True)
