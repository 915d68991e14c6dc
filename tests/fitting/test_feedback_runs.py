"""Whole runs with a teacher that sees the student's attempt: they learn, count, and resume bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import final_weights, losses, stop_after
from tiny import write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.offline.distill import run_distill
from onpolicy_sdft.runs.files import read_jsonl

#: The tiny model writes bytes at random: what ends by itself is right.
TASK = """
from onpolicy_sdft.tasks import Task
from onpolicy_sdft.types import CheckResult


class Ends(Task):
    name = "ends"

    def ask(self, prompt):
        return prompt

    def check(self, completion, demonstration):
        right = len(completion) < 70
        return CheckResult(right, "" if right else "long", completion, "" if right else "It is too long.")

    def reference_answer(self, demonstration):
        return demonstration.response
"""

METHODS: dict[str, dict[str, Any]] = {
    "its text": {"feedback.num_attempts": 2},
    "its distribution": {
        "rollout.prompt": "student", "objective.name": "reverse_kl", "teacher.weights": "ema", "teacher.half_life": 2.0,
        "context.show": "none", "feedback.show_attempt": False,
    },
}  # fmt: skip


@pytest.fixture
def config_file(tmp_path: Path, model_dir: Path) -> Path:
    task = tmp_path / "tasks.py"
    task.write_text(TASK)
    options = {
        "lora.alpha": 8, "task.name": f"{task}:Ends", "feedback.enabled": True, "rollout.max_new_tokens": 70,
        "rollout.num_samples": 2, "rollout.num_slots": 8, "rollout.deterministic": True, "rollout.max_draft_tokens": 2,
        **{f"screening.{rule}": "keep" for rule in ("banned", "empty", "answer_only", "control")},
        "optim.lr": 0.003, "optim.warmup_steps": 1, "train.max_steps": 4, "train.micro_batch_tokens": 4000,
        "train.rollout_samples": 8, "eval.kl_prompts": 0,
    }  # fmt: skip
    return write_run(tmp_path, model_dir, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_a_run_with_feedback_counts_what_is_solved_and_resumes_bit_for_bit(config_file, method):
    whole, parts = (str(config_file.parent / name) for name in ("whole", "parts"))
    common = METHODS[method]
    fit(load_config(config_file, **common, **{"train.output_dir": whole}))
    stop_after(load_config(config_file, **common, **{"train.output_dir": parts}), 2)
    fit(load_config(config_file, **common, **{"train.output_dir": parts, "train.resume": "auto"}))
    assert losses(Path(whole)) == losses(Path(parts))
    first, second = final_weights(Path(whole)), final_weights(Path(parts))
    assert all(torch.equal(first[name], second[name]) for name in first)

    steps = [row["values"] for row in read_jsonl(Path(whole) / "metrics.jsonl")]
    assert all(0 < step["time/attempt_seconds"] < step["time/rollout_seconds"] for step in steps)
    rollouts = read_jsonl(Path(whole) / "rollouts.jsonl")
    solved = [row for row in rollouts if row["reason"] == "solved"]
    assert solved
    assert len(solved) == sum(round(8 * step["feedback/solved_rate"]) for step in steps)
    assert [step["screen/drop_rate"] for step in steps] == [step["feedback/solved_rate"] for step in steps]
    for row in rollouts:
        is_solved = row["reason"] == "solved"
        assert row["verdict"] == ("drop" if is_solved else "keep")
        assert (row["message"] == "") is is_solved
        stands = is_solved or common.get("rollout.prompt") == "student"
        assert (row["rollout"] == row["first_attempt"]) is stands


def test_without_feedback_records_say_nothing_of_an_attempt(config_file):
    out = str(config_file.parent / "run")
    options = {"feedback.enabled": False, "train.max_steps": 1, "train.output_dir": out}
    fit(load_config(config_file, **options))
    assert all("first_attempt" not in row for row in read_jsonl(Path(out) / "rollouts.jsonl"))


def test_distilling_with_feedback_is_refused(config_file):
    with pytest.raises(ConfigError, match="feedback.enabled is an option of training on live rollouts"):
        run_distill(load_config(config_file, **{"rollout.num_samples": 1}), [])
