from __future__ import annotations

from typing import Any

import pytest
from changed import config_with

from onpolicy_sdft.config.check import check, evaluation_sets
from onpolicy_sdft.config.schema import DataConfig, EvalSetConfig, RunConfig, SourceConfig
from onpolicy_sdft.errors import ConfigError


def refuse(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(config_with(**values))
    return str(caught.value)


def test_the_defaults_pass():
    check(RunConfig())


@pytest.mark.parametrize(
    "name",
    [
        "lora.r", "lora.alpha", "context.num_demonstrations", "context.max_teacher_tokens",
        "context.max_student_tokens", "rollout.max_new_tokens", "rollout.batch_size", "screening.max_attempts",
        "screening.loop_ngram", "screening.loop_repeats", "train.batch_size",
        "train.num_epochs", "train.micro_batch_tokens", "train.max_bad_steps", "train.keep_checkpoints",
        "eval.num_samples", "eval.batch_size", "eval.kl_max_new_tokens",
    ],
)  # fmt: skip
def test_counts_must_be_at_least_one(name):
    assert refuse(**{name: 0}) == f"{name}=0 is not usable: it must be at least 1."


@pytest.mark.parametrize(
    "name",
    ["data.limit", "objective.chunk_tokens", "train.max_steps", "train.max_loss_tokens", "train.checkpoint_steps",
     "eval.limit", "eval.every_steps", "eval.early_stop"],
)  # fmt: skip
def test_optional_counts_must_be_at_least_one_or_null(name):
    assert refuse(**{name: 0}) == f"{name}=0 is not usable: it must be at least 1, or null."


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("lora.dropout", 1.0, r"in [0, 1)"),
        ("lora.dropout", -0.1, r"in [0, 1)"),
        ("optim.lr", 0.0, "above 0"),
        ("optim.lr", float("nan"), "above 0"),
        ("optim.eps", 0.0, "above 0"),
        ("optim.betas", (0.9, 1.0), r"in [0, 1)"),
        ("optim.weight_decay", -1.0, "0 or more"),
        ("optim.warmup_steps", -1, "0 or more"),
        ("optim.max_grad_norm", -1.0, "0 or more"),
        ("train.rollout_samples", -1, "0 or more"),
        ("eval.kl_prompts", -1, "0 or more"),
        ("screening.min_length_ratio", -0.1, "0 or more"),
        ("screening.max_length_ratio", 0.1, "above min_length_ratio=0.2"),
        ("rollout.temperature", -1.0, "0 or more"),
        ("rollout.top_k", -1, "0 or more"),
        ("rollout.top_p", 0.0, "in (0, 1]"),
        ("rollout.top_p", 1.1, "in (0, 1]"),
        ("rollout.min_p", 1.0, "in [0, 1)"),
        ("eval.temperature", -0.5, "0 or more"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(name, value, wanted):
    assert refuse(**{name: value}) == f"{name}={value!r} is not usable: it must be {wanted}."


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        ({"lora.enabled": False, "model.dtype": "bfloat16"}, "--model.dtype float32 --train.precision bf16"),
        ({"lora.enabled": False, "model.load_in_4bit": True}, "--lora.enabled true"),
        ({"train.targets": "demonstrations", "context.num_demonstrations": 2}, "--context.num_demonstrations 1"),
        ({"optim.schedule": "cosine", "train.max_loss_tokens": 100}, "--optim.schedule constant"),
        ({"optim.schedule": "linear", "train.max_loss_tokens": 100}, "--optim.schedule constant"),
        ({"optim.schedule": "cosine", "optim.decay_steps": 3}, "optim.decay_steps=3 belongs to"),
        ({"rollout.temperature": 0.0, "rollout.top_k": 5}, "a temperature above 0"),
        ({"rollout.temperature": 0.0, "rollout.top_p": 0.9}, "a temperature above 0"),
        ({"rollout.temperature": 0.0, "rollout.min_p": 0.1}, "a temperature above 0"),
        ({"eval.num_samples": 4}, "--eval.temperature 1"),
        ({"eval.limit": 5}, "set eval.path"),
        ({"eval.every_steps": 5}, "add one"),
        ({"eval.best_metric": "eval/a/score"}, "add one"),
        ({"eval.early_stop": 2}, "add one"),
        ({"eval.validation": [EvalSetConfig()]}, "set it"),
        ({"eval.validation": [EvalSetConfig()], "eval.every_steps": 5, "eval.early_stop": 1}, "set eval.best_metric"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_way_out(values, way_out):
    message = refuse(**values)
    assert "Fix: " in message
    assert way_out in message
    assert any(name in message for name in values)


@pytest.mark.parametrize("reason", ["banned", "empty", "truncated", "looping", "length", "check"])
def test_a_greedy_rollout_is_not_drawn_again(reason):
    message = refuse(**{"rollout.temperature": 0.0, f"screening.{reason}": "resample"})
    assert "drawn again is the same rollout" in message
    assert "Fix: a temperature above 0, or the verdict fallback." in message


def test_a_metric_of_no_validation_set_is_refused_with_those_there_are():
    message = refuse(
        **{
            "eval.validation": [EvalSetConfig(label="a"), EvalSetConfig(label="b")],
            "eval.every_steps": 5,
            "eval.best_metric": "eval/c/score",
        }
    )
    assert message == "eval.best_metric='eval/c/score' is none of: eval/a/score, eval/b/score."


@pytest.mark.parametrize("where", ["eval.sets", "replay.sources"])
@pytest.mark.parametrize("options", [{"num_workers": 2}, {"cache": False}])
def test_how_rows_are_prepared_is_an_option_of_the_run(where, options):
    item = EvalSetConfig if where == "eval.sets" else SourceConfig
    message = refuse(**{where: [item(label="a", data=DataConfig(**options))]})
    assert "'a' would have no effect" in message
    fine = {f"data.{name}": value for name, value in options.items()}
    check(config_with(**{"data.path": "d.jsonl", "eval.path": "t.jsonl", **fine}))


@pytest.mark.parametrize("where", ["eval.sets", "eval.validation"])
def test_two_sets_of_one_label_are_refused(where):
    every = 1 if where == "eval.validation" else None
    message = refuse(**{where: [EvalSetConfig(), EvalSetConfig()], "eval.every_steps": every})
    assert message == "Two evaluation sets are called 'task'. Give each its own label."


def test_a_file_of_test_rows_is_one_more_set_with_columns_and_task_of_the_data():
    config = config_with(
        **{"data.name": "embedded:x", "data.prompt_column": "question", "eval.path": "t.jsonl", "eval.limit": 9,
           "task.name": "exact", "rollout.max_new_tokens": 77, "eval.sets": [EvalSetConfig(label="other")]}
    )  # fmt: skip
    own, other = evaluation_sets(config)
    assert other.label == "other"
    assert (own.label, own.retention, own.task, own.max_new_tokens) == ("test", False, config.task, 77)
    data = own.data
    assert (data.name, data.path, data.limit, data.prompt_column) == (None, "t.jsonl", 9, "question")


def test_the_label_of_the_test_rows_is_taken():
    message = refuse(**{"eval.path": "t.jsonl", "eval.sets": [EvalSetConfig(label="test")]})
    assert message == "Two evaluation sets are called 'test'. Give each its own label."


@pytest.mark.parametrize(
    "values",
    [
        {"rollout.temperature": 0.0},
        {"lora.enabled": False},
        {"model.dtype": "bfloat16"},
        {"train.targets": "demonstrations"},
        {"train.max_steps": None, "train.max_loss_tokens": 10},
        {"eval.temperature": 1.0, "eval.num_samples": 4},
        {"eval.validation": [EvalSetConfig()], "eval.every_steps": 1, "eval.best_metric": "eval/task/score"},
        {"eval.sets": [EvalSetConfig()], "eval.validation": [EvalSetConfig()], "eval.every_steps": 1},
    ],
)
def test_what_goes_together_passes(values):
    check(config_with(**values))


@pytest.mark.parametrize("name", ["train.output_dir", "distill.output_dir"])
def test_an_empty_output_directory_is_refused(name):
    assert f"{name}='' names no directory" in refuse(**{name: ""})


@pytest.mark.parametrize("option", ["model.name", "data.path"])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_run_is_not_written_among_what_it_reads(tmp_path, option, below):
    message = refuse(**{option: str(tmp_path), "train.output_dir": str(tmp_path / below)})
    assert f"stands in {option}={str(tmp_path)!r}, which is read" in message


def test_one_column_cannot_be_question_and_answer_and_a_folder_has_no_revision(tmp_path):
    assert "are both 'prompt'" in refuse(**{"data.prompt_column": "prompt", "data.response_column": "prompt"})
    assert "is a folder of this machine" in refuse(**{"model.name": str(tmp_path), "model.revision": "v9"})


def test_a_seed_of_embedded_rows_is_refused_with_a_file():
    assert "data.seed=7 is read by embedded sets alone" in refuse(**{"data.path": "rows.jsonl", "data.seed": 7})
