from __future__ import annotations

from pathlib import Path

import pytest
from changed import config_with

from onpolicy_sdft.config.check import check
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError

METHODS = Path(__file__).parents[2] / "configs" / "methods"
KEEP = {
    f"screening.{name}": "keep"
    for name in ("banned", "empty", "truncated", "looping", "length", "answer_only", "control", "check")
}
FEEDBACK = {"feedback.enabled": True, "task.name": "exact"}
AT_ATTEMPT = {"rollout.prompt": "student", "objective.name": "reverse_kl", **KEEP}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective.beta": 1.0, "objective.name": "jsd"}, "in (0, 1)"),
        ({"objective.beta": 0.3}, "--objective.name jsd"),
        ({"objective.support": "teacher"}, "an objective that compares distributions"),
        ({"objective.num_kept": 8}, "--objective.support teacher or student"),
        ({"objective.num_kept": 0, "objective.support": "teacher", "objective.name": "jsd"}, "at least 1"),
        ({"objective.anchor": "stage"}, "--objective.anchor_kl above 0"),
        ({"objective.importance_cap": 3.0}, "--objective.importance token"),
        ({"objective.clip": 0.0}, "above 0, or null"),
        ({"objective.skip_tokens": -1}, "0 or more"),
        ({"objective.position_weights": [0.0, 0.0]}, "one of them above 0"),
        ({"objective.position_weights": [1.0, -1.0]}, "0 or more each"),
        ({"teacher.half_life": 7.0}, "--teacher.weights ema"),
        ({"teacher.device": "cpu"}, "that is copied"),
        ({"rollout.demonstration_dropout": 0.2, "teacher.weights": "ema"}, "it is the teacher that writes"),
        ({"teacher.half_life": -1.0, "teacher.weights": "ema"}, "0 or more"),
        ({"rollout.prompt": "student"}, "nothing in it knows the demonstration"),
        ({"rollout.num_samples": 0}, "at least 1"),
        ({"rollout.num_samples": 2, "rollout.temperature": 0.0}, "would all be the same"),
        ({"rollout.demonstration_dropout": 1.5}, "in [0, 1]"),
        (
            {"rollout.prompt": "student", "objective.name": "jsd", "rollout.demonstration_dropout": 0.1},
            "rollout.prompt=student shows none",
        ),
        ({"rollout.blend": 1.5}, "in [0, 1]"),
        ({"rollout.blend_budget": -0.1}, "0 or more, or null"),
        ({"rollout.blend": 1.0}, "nothing in it knows the demonstration"),
        (
            {"rollout.blend": 0.5, "rollout.prompt": "student", "objective.name": "jsd"},
            "writes under the bare prompt alone",
        ),
        (
            {"rollout.blend_budget": 0.5, "rollout.prompt": "student", "objective.name": "jsd"},
            "rollout.blend_budget=0.5",
        ),
        ({"rollout.blend": 0.5, "train.targets": "demonstrations"}, "learns none"),
        ({"rollout.blend": 0.5, "rollout.num_slots": 1}, "takes two"),
        ({"rollout.min_p_end": 1.0}, "in [0, 1), or null"),
        ({"rollout.min_p_end": 0.1, "train.max_loss_tokens": 9}, "rollout.min_p_end needs"),
        ({"rollout.min_p_end": 0.1, "rollout.temperature": 0.0}, "is greedy"),
        ({"objective.blend": 0.5}, "an objective that compares distributions"),
        ({"objective.blend": 1.0, "objective.name": "jsd"}, "in [0, 1)"),
        ({"objective.disagreement": 0.5}, "an objective that compares distributions"),
        ({"objective.disagreement": 0.0, "objective.name": "jsd"}, "above 0, or null"),
        ({"rollout.temperature_end": 0.0}, "above 0"),
        ({"rollout.temperature_end": 0.5, "train.max_loss_tokens": 9}, "drop one of them"),
        ({"objective.name": "sampled_reverse_kl", **KEEP}, "--rollout.prompt student"),
        ({"objective.name": "sampled_reverse_kl", "rollout.prompt": "student"}, "screening.empty=fallback"),
        (
            {"objective.name": "sampled_reverse_kl", "rollout.prompt": "student", "rollout.temperature": 0.6, **KEEP},
            "the student's own samples",
        ),
        ({"screening.surprise": "resample"}, "--screening.surprise fallback (or drop)"),
        ({"screening.pick": "best"}, "--rollout.num_samples 4"),
        ({"screening.weigh_by_failure": True}, "--screening.bare_samples 4"),
        ({"screening.bare_samples": 2}, "no rule reads them"),
        ({"screening.max_leak": 0.0}, "above 0, or null"),
        ({"screening.surprise": "drop", "probe.num_examples": 0}, "--screening.max_surprise 0.6"),
        ({"screening.agreement": "drop"}, "--rollout.num_samples 4"),
        ({"screening.agreement": "drop", "rollout.num_samples": 2, "screening.check": "keep"}, "asks for none"),
        ({"train.targets": "demonstrations", "screening.fallback_clip": 3.0}, "--objective.clip"),
        (
            {
                "objective.name": "sampled_reverse_kl",
                "rollout.prompt": "student",
                **KEEP,
                "screening.pick": "best",
                "rollout.num_samples": 2,
            },
            "an expectation over all of them",
        ),
        ({"screening.bare_samples": 2, "screening.solved": "drop", "rollout.temperature": 0.0}, "greedy samples"),
        ({"task.name": "free_form", "data.path": "x.jsonl", "screening.steps": "drop"}, "accepts every text"),
        ({"rollout.blend_budget": 0.0}, "rollout.blend_budget=0 with objective.name=nll"),
        ({"screening.min_step_rate": 1.5}, "in [0, 1]"),
        ({"probe.max_surprise_ratio": 1.0}, "above 1"),
        ({"rollout.weights": "sharded", "rollout.backend": "hf", "screening.surprise": "drop"}, "--eval.kl_prompts 0"),
        ({"rollout.weights": "sharded"}, "--rollout.backend hf"),
        (
            {"rollout.weights": "sharded", "rollout.backend": "hf", "objective.name": "forward_kl"},
            "--objective.name nll",
        ),
        ({"rollout.weights": "sharded", "rollout.backend": "hf"}, "--eval.kl_prompts 0"),
        ({"train.targets": "distilled"}, "--train.distilled DIRECTORY"),
        ({"train.distilled": "x"}, "--train.targets distilled"),
        ({"train.targets": "demonstrations", "objective.name": "forward_kl"}, "samples none"),
        ({"train.targets": "demonstrations", "objective.importance": "token"}, "samples none"),
        ({"train.targets": "demonstrations", "objective.demonstration_weight": 0.1}, "learns none"),
        ({"context.num_demonstrations": 3}, "--context.show both (its own and others) or others"),
        ({"context.show": "both"}, "--context.num_demonstrations 2 or more"),
        ({"context.show": "others", "train.targets": "demonstrations"}, "--context.show own"),
        ({"context.neighbours": "nearest"}, "--context.show others or both"),
        ({"context.show": "none"}, "--feedback.enabled true, or --context.show own"),
        ({"context.show": "none", "context.num_demonstrations": 2, **FEEDBACK}, "--context.num_demonstrations 1"),
        ({"feedback.num_attempts": 2}, "--feedback.enabled true, or leave it at 1"),
        ({"feedback.reveal": True}, "--feedback.enabled true, or leave it at False"),
        ({"feedback.num_attempts": 0, **FEEDBACK}, "at least 1"),
        ({"train.targets": "demonstrations", **FEEDBACK}, "--train.targets policy"),
        ({"rollout.demonstration_dropout": 0.5, **FEEDBACK}, "--rollout.demonstration_dropout 0"),
        ({"rollout.weights": "sharded", **FEEDBACK}, "--rollout.weights gather"),
        ({"feedback.enabled": True, "data.path": "x.jsonl"}, "a task with a check"),
        ({"feedback.num_attempts": 2, "rollout.temperature": 0.0, **FEEDBACK}, "would all be the same"),
        ({"feedback.num_attempts": 2, **FEEDBACK, **AT_ATTEMPT}, "--rollout.num_samples"),
        ({**FEEDBACK, **AT_ATTEMPT, "screening.check": "fallback"}, "--screening.check keep"),
        ({**FEEDBACK, **AT_ATTEMPT, "screening.empty": "resample"}, "the teacher was told of the first one"),
        (
            {**FEEDBACK, **AT_ATTEMPT, "objective.name": "sampled_reverse_kl"},
            "--feedback.solved learn, or --objective.name reverse_kl",
        ),
        ({"train.targets": "demonstrations", "teacher.weights": "ema"}, "needs none"),
        ({"train.targets": "demonstrations", "rollout.num_samples": 2}, "rollout.num_samples=2"),
        (
            {"train.targets": "distilled", "train.distilled": "x", "rollout.prompt": "student"},
            "rollout.prompt='student'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(values, said):
    with pytest.raises(ConfigError) as caught:
        check(config_with(**values))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"objective.name": "jsd", "objective.beta": 0.3, "objective.support": "student", "objective.num_kept": 8},
        {"objective.name": "sampled_reverse_kl", "rollout.prompt": "student", **KEEP},
        {"objective.anchor_kl": 0.1, "objective.anchor": "stage"},
        {"context.show": "both", "context.num_demonstrations": 2, "context.neighbours": "nearest"},
        {"context.show": "others", "context.num_demonstrations": 1},
        {"context.show": "none", "feedback.num_attempts": 4, "feedback.solved": "learn", **FEEDBACK},
        {**FEEDBACK, **AT_ATTEMPT, "rollout.num_samples": 4, "feedback.show_attempt": False},
        {**FEEDBACK, **AT_ATTEMPT, "objective.name": "sampled_reverse_kl", "feedback.solved": "learn"},
        {"teacher.weights": "ema", "teacher.half_life": float("inf")},
        {
            "rollout.num_samples": 4,
            "screening.pick": "best",
            "screening.surprise": "drop",
            "screening.leak": "fallback",
        },
        {"screening.bare_samples": 4, "screening.solved": "drop", "screening.steps": "drop"},
        {"rollout.blend": 0.5, "rollout.blend_budget": 0.3, "rollout.demonstration_dropout": 0.2},
        {"rollout.blend": 1.0, "objective.name": "forward_kl", "objective.blend": 0.3, "objective.disagreement": 2.0},
        {"rollout.min_p": 0.1, "rollout.min_p_end": 0.0},
        {"rollout.num_samples": 4, "rollout.temperature_end": 0.5, "rollout.demonstration_dropout": 0.2},
        {"train.targets": "demonstrations", "objective.anchor_kl": 0.1, "objective.clip": 4.0},
    ],
)
def test_what_can_be_meant_passes(values):
    check(config_with(**values))


@pytest.mark.parametrize("method", ["sft", "offline_sdft", "sdft", "sdft_kl", "sdft_forward_kl", "feedback"])
@pytest.mark.few(3)
def test_every_method_is_one_file_after_any_config(method):
    for config in ("quickstart", "gsm8k", "openfunctions", "methods"):
        check(load_config(METHODS.parent / "online" / f"{config}.yaml", METHODS / f"{method}.yaml"))


def test_the_half_life_may_be_infinite_in_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("teacher: {weights: ema, half_life: .inf}\n")
    assert load_config(path).teacher.half_life == float("inf")
