"""Starting from another run: its weights, its scores, and what the teacher's kinds of weights mean then."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import questions, write_run

from onpolicy_sdft import fit, load_config, load_run
from onpolicy_sdft.build.base import make_base
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.fitting.start import find_start
from onpolicy_sdft.models.load import load
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.train.step import Trainer

IDS = torch.tensor([[1, 2, 3, 40, 50, 60, 70]])


@pytest.fixture
def config(tmp_path: Path, model_dir: Path) -> Path:
    options = {
        "lora.alpha": 8, "rollout.max_new_tokens": 8, "optim.lr": 0.02, "optim.warmup_steps": 0, "train.max_steps": 3,
        "eval.kl_prompts": 3, "eval.kl_max_new_tokens": 6, "eval.sets": [questions(tmp_path, "words", limit=4)],
    }  # fmt: skip
    return write_run(tmp_path, model_dir, **options)


@pytest.fixture
def own_model(tmp_path: Path, model_dir: Path) -> Path:
    return shutil.copytree(model_dir, tmp_path / "own-model")


def train(config: Path, name: str, **options) -> Path:
    run = config.parent / name
    options = {key.replace("__", "."): value for key, value in options.items()}
    fit(load_config(config, **{"train.output_dir": str(run), **options}), ["sdft", "train"])
    return run


@torch.no_grad()
def logits(run: Path) -> torch.Tensor:
    return load_run(run).model(input_ids=IDS).logits


def newest(run: Path, file: str) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1] / file


STILL = {"optim__lr": 1e-12, "train__max_steps": 1}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.few(1)
def test_training_goes_on_from_the_weights_the_run_before_left(config, lora):
    first = train(config, "first", lora__enabled=lora)
    seed = logits_of_seed(config)
    second = train(config, "second", lora__enabled=lora, train__init_from=str(first), **STILL)
    assert not torch.allclose(logits(first), seed, atol=1e-2)
    torch.testing.assert_close(logits(second), logits(first), atol=1e-5, rtol=0)


def logits_of_seed(config: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(load_config(config).model).model(input_ids=IDS).logits


@pytest.mark.slow
def test_a_merged_adapter_is_the_base_of_a_new_one_and_a_third_task_stands_on_both(config):
    first = train(config, "first")
    merge = {"train__adapter_handoff": "merge"}
    second = train(config, "second", train__init_from=str(first), **merge, **STILL)
    torch.testing.assert_close(logits(second), logits(first), atol=1e-4, rtol=0)
    moved = train(config, "moved", train__init_from=str(first), **merge)
    third = train(config, "third", train__init_from=str(moved), **merge, **STILL)
    assert not torch.allclose(logits(moved), logits(first), atol=1e-2)
    torch.testing.assert_close(logits(third), logits(moved), atol=1e-4, rtol=0)
    adapter = json.loads((third / "model" / "adapter_config.json").read_text())
    assert Path(adapter["base_model_name_or_path"]) == third / "base"


@pytest.mark.parametrize("handoff", ["continue", "merge"])
@pytest.mark.few(1)
def test_the_seed_model_stays_the_seed_whatever_a_run_starts_from(config, handoff):
    """Distances are from ``model.name``, and the scores of the run before are taken over."""
    first = train(config, "first")
    second = train(config, "second", train__init_from=str(first), train__adapter_handoff=handoff, **STILL)
    before, after = (read_json(second / "eval" / "summary.json")[stage] for stage in ("before", "after"))
    earlier = read_json(first / "eval" / "summary.json")["after"]
    assert before["sets"] == earlier["sets"]
    assert before["taken_from"] == str(first)
    assert read_jsonl(second / "eval" / "before-words.jsonl") == read_jsonl(first / "eval" / "after-words.jsonl")
    assert earlier["kl"]["mean"] > 0.01
    assert after["kl"]["mean"] == pytest.approx(earlier["kl"]["mean"], rel=2e-2)


@pytest.mark.slow
def test_scores_are_measured_where_the_run_before_was_asked_other_questions(config):
    first = train(config, "first", eval__kl_prompts=0)
    second = train(config, "second", train__init_from=str(first), **STILL)
    assert "taken_from" not in read_json(second / "eval" / "summary.json")["before"]


def test_scores_of_the_seed_model_are_taken_over_from_another_run(config):
    first = train(config, "first")
    second = train(config, "second", eval__base_scores=str(first), optim__lr=1e-3)
    before = [read_json(run / "eval" / "summary.json")["before"] for run in (first, second)]
    assert before[1]["taken_from"] == str(first)
    assert before[0]["sets"] == before[1]["sets"]


def change_a_weight(folder: Path) -> None:
    """Change one weight of a model in place; its file keeps its size and its time."""
    path = folder / "model.safetensors"
    facts, weights = path.stat(), load_file(path)
    next(weight for weight in weights.values() if weight.ndim == 2)[0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert path.stat().st_size == facts.st_size
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_scores_of_another_base_model_of_the_same_name_are_not_taken_over(config, own_model):
    first = train(config, "first", model__name=str(own_model))
    change_a_weight(own_model)
    second = train(config, "second", model__name=str(own_model), eval__base_scores=str(first))
    assert "taken_from" not in read_json(second / "eval" / "summary.json")["before"]
    (mine,), (theirs,) = ((run / "eval").glob("base_completions-*.jsonl") for run in (second, first))
    assert mine.name != theirs.name
    moved = {"train__init_from": str(first), "train__adapter_handoff": "merge"}
    with pytest.raises(RunDirectoryError, match="is not what .*first was trained on: another base weights"):
        train(config, "third", model__name=str(own_model), **moved)


def edit_base_weights(folder: Path) -> None:
    change_a_weight(folder / "own-model")


def edit_check(folder: Path) -> None:
    (folder / "mine.py").write_text("def mine(prompt, completion, row):\n    return False\n")


def edit_chat_template(folder: Path) -> None:
    path = folder / "own-model" / "chat_template.jinja"
    facts, text = path.stat(), path.read_text()
    path.write_text(text.replace("\n", " "))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("edit", [None, edit_base_weights, edit_check, edit_chat_template])
@pytest.mark.few(2)
def test_a_run_that_stopped_before_its_first_step_scores_its_start_anew(config, own_model, monkeypatch, edit):
    """No checkpoint refuses what was changed: what was scored is not taken for it."""
    folder = config.parent
    (folder / "mine.py").write_text("def mine(prompt, completion, row):\n    return True\n")
    sets = [questions(folder, "words", limit=4, task={"name": f"{folder / 'mine.py'}:mine"})]
    options = {"model__name": str(own_model), "eval__sets": sets, "train__max_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, "run", **options)
    summary = folder / "run" / "eval" / "summary.json"
    scored = read_json(summary)["before"]
    summary.write_text(json.dumps({"before": {**scored, "mark": "scored before"}}))
    if edit is not None:
        edit(folder)
    run = train(config, "run", train__resume="auto", **options)
    found = read_json(summary)["before"]
    assert ("mark" in found) == (edit is None)
    assert found["sets"][0]["score"] == (0.0 if edit is edit_check else 1.0)
    load_run(run)  # the record is of the base that it was trained on


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_optimizers_moments_are_kept_if_asked_and_new_otherwise(config):
    first = train(config, "first")
    kept = train(config, "kept", train__init_from=str(first), train__keep_optimizer=True, **STILL)
    new = train(config, "new", train__init_from=str(first), **STILL)
    steps = []
    for run in (first, kept, new):
        state = torch.load(newest(run, "optimizer.pt"), weights_only=True)["optimizer"]
        steps.append(float(next(iter(state["state"].values()))["step"]))
        assert state["groups"][0]["lr"] == pytest.approx(0.02 if run == first else 1e-12)
    assert steps == [3.0, 4.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("handoff", ["continue", "merge"])
def test_a_run_that_started_from_another_resumes_bit_for_bit(config, handoff):
    first = train(config, "first", train__max_steps=2)
    options = {
        "train__init_from": str(first), "train__adapter_handoff": handoff, "eval__before_and_after": False,
        "teacher__weights": "stage",
    }  # fmt: skip
    whole = train(config, "whole", train__max_steps=4, **options)
    train(config, "parts", train__max_steps=2, **options)
    parts = train(config, "parts", train__max_steps=4, train__resume="auto", **options)
    weights = [load_file(newest(run, "trainable.safetensors")) for run in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_stage_teacher_writes_with_what_the_run_before_left(config):
    """With one more step of any size, what the teacher writes at step 1 is what the last weights write."""
    first = train(config, "first")
    options = {
        "train__init_from": str(first),
        "train__max_steps": 2,
        "eval__before_and_after": False,
        "optim__lr": 0.5,
    }
    staged = train(config, "staged", teacher__weights="stage", **options)
    still = train(config, "still", **{**options, "optim__lr": 1e-12})
    written = [[row["rollout"] for row in read_jsonl(run / "rollouts.jsonl")] for run in (staged, still)]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora.r": 8}, "another model: lora"),
        ({"train.init_from": "nowhere"}, "no such directory"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(config, options, named):
    first = train(config, "first", train__max_steps=1, eval__before_and_after=False)
    second = config.parent / "second"
    asked = {"train.init_from": str(first), "train.output_dir": str(second), **options}
    with pytest.raises(Exception, match=named):
        fit(load_config(config, **asked), [])
    assert not second.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train.adapter_handoff": "merge"}, "init_from is unset"),
        ({"train.keep_optimizer": True}, "init_from is unset"),
        ({"train.init_from": "x", "train.adapter_handoff": "merge", "lora.enabled": False}, "continue"),
        ({"train.init_from": "x", "train.adapter_handoff": "merge", "train.keep_optimizer": True}, "moments"),
        ({"train.init_from": "x", "train.adapter_handoff": "merge", "teacher.weights": "base"}, "stage"),
    ],
)
def test_options_of_a_start_that_contradict_one_another_are_refused(config, options, named):
    with pytest.raises(ConfigError, match=named):
        load_config(config, **options)


def test_rehearsed_demonstrations_are_learned_along_each_checked_by_its_own_task(config):
    rows = [{"prompt": f"letter {n}?\n\nA. x\nB. y", "response": "B", "choices": ["x", "y"]} for n in range(6)]
    letters = config.parent / "letters.jsonl"
    letters.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"label": "letters", "data": {"path": str(letters)}, "task": {"name": "multiple_choice"}}
    run = train(
        config, "run", replay__sources=[source], replay__rate=0.4, eval__before_and_after=False,
        train__rollout_samples=8, train__max_steps=6, screening__check="fallback",
    )  # fmt: skip
    ids = {row["example_id"] for row in read_jsonl(run / "rollouts.jsonl")}
    assert sum(example.startswith("letters/") for example in ids) >= 3
    assert any(not example.startswith("letters/") for example in ids)
    assert read_json(run / "manifest.json")["num_demonstrations"] == 12


@pytest.mark.slow
def test_training_ends_at_the_score_that_is_enough_and_says_so(config):
    words = {"label": "words", "data": {"path": str(config.parent / "rows.jsonl")}, "task": {"name": "exact"}}
    asked = {
        "eval__validation": [words], "eval__every_steps": 1, "eval__best_metric": "eval/words/score",
        "eval__before_and_after": False,
    }  # fmt: skip
    enough = train(config, "enough", eval__stop_score=0.0, **asked)
    assert [row["step"] for row in read_jsonl(enough / "metrics.jsonl")] == [1]
    result = read_json(enough / "result.json")
    assert (result["reason"], result["best_score"]) == ("stop_score", 0.0)
    never = train(config, "never", eval__stop_score=1.0, **asked)
    assert len(read_jsonl(never / "metrics.jsonl")) == 3
    assert read_json(never / "result.json")["reason"] == "finished"


@pytest.mark.slow
def test_an_adapter_on_a_merged_base_means_nothing_without_that_base(config):
    first = train(config, "first", train__max_steps=1)
    second = train(config, "second", train__init_from=str(first), train__adapter_handoff="merge", **STILL)
    with pytest.raises(ConfigError, match="handoff merge"):
        train(config, "third", train__init_from=str(second))
    (second / "base").rename(second / "gone")
    with pytest.raises(RunDirectoryError, match="means nothing without it"):
        load_run(second)


@pytest.mark.slow
def test_a_merged_base_is_made_anew_for_other_weights(config):
    first = train(config, "first", train__max_steps=1)
    asked = load_config(
        config,
        **{
            "train.init_from": str(first),
            "train.adapter_handoff": "merge",
            "train.output_dir": str(config.parent / "x"),
        },
    )
    start = find_start(asked)
    assert start is not None
    make_base(asked, start)
    card = config.parent / "x" / "base" / "README.md"
    made = card.stat().st_mtime_ns
    make_base(asked, start)
    assert card.stat().st_mtime_ns == made
    train(config, "first", train__max_steps=2, train__resume="auto")
    later = find_start(asked)
    assert later is not None
    make_base(asked, later)
    assert later.digest in card.read_text()
