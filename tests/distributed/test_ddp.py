"""DDP with two ranks of this machine gives what one process gives: tokens, losses, gradients, checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import AVERAGED, figures, run, succeed, tokens, weights
from safetensors.torch import load_file, save_file
from tiny import write_rows, write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.build.loaded import load_model
from onpolicy_sdft.runs.files import read_json, read_jsonl

METHODS: dict[str, dict[str, Any]] = {  # beside those of test_backends.py
    "sdft, lora, distributions that were recorded": {"objective.name": "forward_kl", "rollout.num_samples": 2},
    "sft": {"train.targets": "demonstrations"},
    "adafactor, full": {"optim.name": "adafactor", "lora.enabled": False},
    **{
        f"{backend}, dora and token rows": {
            "backend": backend,
            "lora.use_dora": True,
            "lora.trainable_token_indices": [5, 70],
        }
        for backend in ("ddp", "zero1", "zero2")
    },
    "feedback": {"feedback.enabled": True, "feedback.num_attempts": 2, "rollout.num_samples": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_write_the_tokens_and_take_the_steps_of_one_process(config, tmp_path, method):
    for ranks in (1, 2):
        options = {name: value for name, value in METHODS[method].items() if ranks == 2 or name != "backend"}
        succeed(ranks, config, tmp_path / str(ranks), **options)
    one, two = tmp_path / "1", tmp_path / "2"
    assert tokens(one) == tokens(two)
    names = ("loss/total", "train/grad_norm", "train/num_loss_tokens")
    torch.testing.assert_close(figures(one, *names), figures(two, *names), rtol=1e-5, atol=1e-6)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-5)
    scores = [read_json(each / "eval" / "summary.json") for each in (one, two)]
    for stage in ("before", "after"):
        assert scores[0][stage]["sets"][0]["score"] == scores[1][stage]["sets"][0]["score"]
        assert scores[0][stage]["sets"][0]["n"] == scores[1][stage]["sets"][0]["n"] == 7
    assert (two / "model" / "README.md").is_file()


@pytest.mark.slow
def test_a_resumed_run_of_two_ranks_repeats_the_uninterrupted_one_bit_for_bit(config, tmp_path):
    options = {**AVERAGED, "eval.before_and_after": False, "lora.dropout": 0.2}
    succeed(2, config, tmp_path / "whole", **options)
    succeed(2, config, tmp_path / "parts", **{**options, "train.max_steps": 3})
    succeed(2, config, tmp_path / "parts", **options, **{"train.resume": "auto"})
    names = ("loss/total", "train/grad_norm")
    assert torch.equal(figures(tmp_path / "whole", *names), figures(tmp_path / "parts", *names))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_with_other_settings_are_refused_by_name(config, tmp_path):
    done = run(2, config, tmp_path / "run", {"by_rank": {"1": {"optim.lr": 0.02}}})
    assert done.returncode == 2
    assert "Rank 1 has another optim than rank 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_ranks_that_read_other_things_by_the_same_names_are_refused_by_name(tmp_path, model_dir, monkeypatch):
    """Relative paths, and a working directory for each rank: what stands there is the same by name, size and time."""
    first = tmp_path / "a"
    first.mkdir()
    shutil.copytree(model_dir, first / "model")
    (first / "check.py").write_text("def mine(prompt, completion, row):\n    return True\n")
    write_rows(first / "held.jsonl", [("one", "one"), ("two", "two")])
    own = {"data": {"path": "held.jsonl"}, "task": {"name": "check.py:mine"}, "max_new_tokens": 4}
    config = write_run(
        first, Path("model"),
        **{
            "data.path": "rows.jsonl", "task.name": "check.py:mine", "train.max_steps": 1, "train.output_dir": "start",
            "eval.sets": [{**own, "label": "own"}], "eval.validation": [{**own, "label": "held"}],
            "eval.every_steps": 1, "eval.before_and_after": False, "rollout.max_new_tokens": 4,
        },
    )  # fmt: skip
    monkeypatch.chdir(first)
    fit(load_config(config))
    other = shutil.copytree(first, tmp_path / "b")
    for file in ("rows.jsonl", "held.jsonl"):
        (other / file).write_text((first / file).read_text().replace("two", "owt"))
    (other / "check.py").write_text((first / "check.py").read_text().replace("True", "None"))
    (other / "model" / "chat_template.jinja").write_text("Rules: " + (first / "model/chat_template.jinja").read_text())
    started = sorted((other / "start" / "checkpoints").glob("step-*"))[-1] / "trainable.safetensors"
    for file in (other / "model" / "model.safetensors", started):
        content = {name: tensor.neg() for name, tensor in load_file(file).items()}
        save_file(content, file, metadata={"format": "pt"})
    more = {"directories": {"0": str(first), "1": str(other)}}
    done = run(2, config, tmp_path / "out", more, **{"train.init_from": "start", "train.max_steps": 2})
    assert done.returncode == 2
    (named,) = set(re.findall(r"Rank 1 has another (.*?) than rank 0", done.stderr))
    assert {
        "data fingerprint", "task files", "prompts and targets", "base weights", "start", "questions of eval.sets",
        "questions of the validation",
    } == set(named.split(", "))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_ranks_that_see_different_directories_are_refused_at_the_start(config, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    more = {"directories": {"0": str(tmp_path / "a"), "1": str(tmp_path / "b")}}
    done = run(2, config, "run", more=more)
    assert done.returncode == 2
    assert f"Rank 1, in {tmp_path / 'b'}, does not see what rank 0, in {tmp_path / 'a'}, writes" in done.stderr
    assert not list((tmp_path / "a").rglob("metrics.jsonl"))


def test_an_error_of_the_first_rank_ends_all(config, tmp_path):
    succeed(1, config, tmp_path / "run", **{"train.max_steps": 1, "eval.before_and_after": False})
    done = run(2, config, tmp_path / "run")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr


def test_more_ranks_than_demonstrations_a_step_are_refused(config, tmp_path):
    done = run(2, config, tmp_path / "run", **{"train.batch_size": 1})
    assert done.returncode == 2
    assert "train.batch_size 2 or more" in done.stderr


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_the_state_saved(config, tmp_path):
    options = {"eval.before_and_after": False}
    done = run(2, config, tmp_path / "run", {"die_at": {"1": [1, int(signal.SIGTERM)]}}, **options)
    assert done.returncode == 143, done.stderr[-2000:]
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    succeed(2, config, tmp_path / "run", **options, **{"train.resume": "auto"})
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_others_and_the_run_goes_on_from_the_last_checkpoint(config, tmp_path, rank):
    options = {"eval.before_and_after": False, "train.checkpoint_steps": 1}
    done = run(2, config, tmp_path / "run", {"die_at": {str(rank): [3, int(signal.SIGKILL)]}}, **options)
    assert done.returncode == 1
    assert f"rank {rank} ended with -9" in done.stderr
    succeed(2, config, tmp_path / "run", **options, **{"train.resume": "auto"})
    succeed(2, config, tmp_path / "whole", **options)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("late_bytes", [0, 1 << 28], ids=["within the last backward", "after it"])
@pytest.mark.slow
def test_gradients_travel_once_a_step_however_many_micro_batches_it_has(config, tmp_path, late_bytes):
    found = []
    for size in (10_000, 1):
        options = {"eval.before_and_after": False, "train.max_steps": 2, "train.micro_batch_tokens": size}
        more = {"count_reductions": True, "late_bytes": late_bytes}
        done = run(2, config, tmp_path / str(size), more, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(sorted(line for line in done.stdout.splitlines() if "reduced" in line))
    assert len(found[0]) == 2
    assert found[0] == found[1]
    assert "reduced 0 " not in found[0][0]


def test_out_of_memory_on_one_rank_halves_the_micro_batches_of_all(config, tmp_path):
    options = {"eval.before_and_after": False, "train.max_steps": 2, "train.micro_batch_tokens": 10_000}
    succeed(2, config, tmp_path / "plain", **options)
    succeed(2, config, tmp_path / "short", {"short_of_memory": [1]}, **options)
    names = ("loss/total", "train/grad_norm", "train/num_loss_tokens")
    plain, short = (tmp_path / name for name in ("plain", "short"))
    assert tokens(plain) == tokens(short)
    torch.testing.assert_close(figures(plain, *names), figures(short, *names), rtol=1e-5, atol=1e-6)
    assert figures(plain, "train/num_halvings").max() == 0
    assert figures(short, "train/num_halvings").min() > 0


def test_out_of_memory_within_a_collective_ends_the_run_with_the_fix(config, tmp_path):
    more = {"short_of_memory": [1], "late_bytes": 0}
    options = {"eval.before_and_after": False, "train.micro_batch_tokens": 10_000}
    done = run(2, config, tmp_path / "run", more, **options)
    assert done.returncode == 2
    assert "lower train.micro_batch_tokens" in done.stderr


@pytest.mark.slow
def test_the_gate_stops_two_ranks_together_and_they_leave_what_one_leaves(config, tmp_path, model_dir):
    prompts = [f"tell {number}" for number in range(24)]
    found = load_model(str(model_dir), load_config(config)).sample(prompts, max_new_tokens=5)
    rows = [{"prompt": p, "response": text} for p, text in zip(prompts, found, strict=True) if len(text.strip()) > 1]
    known = tmp_path / "known.jsonl"
    known.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(known), "wording": False}
    sets = [{"label": "known", "data": data, "task": {"name": "exact"}, "max_new_tokens": 5, "retention": True}]
    options = {"eval.sets": sets, "eval.before_and_after": False, "eval.kl_prompts": 0, "optim.lr": 0.3}
    for ranks in (1, 2):
        succeed(ranks, config, tmp_path / str(ranks), **options, **{"gate.every_steps": 2})
    one, two = (read_jsonl(tmp_path / str(ranks) / "gate.jsonl") for ranks in (1, 2))
    assert [(row["step"], row["action"]) for row in one] == [(row["step"], row["action"]) for row in two]
    assert two[-1]["action"] == "stop"
    assert read_json(tmp_path / "2" / "result.json")["verdict"]["is_start"]
    for name, value in weights(tmp_path / "1").items():
        assert torch.equal(weights(tmp_path / "2")[name], value)
