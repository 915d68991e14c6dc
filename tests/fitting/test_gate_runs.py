"""The gate in whole runs of a tiny model whose learning rate destroys it, and in runs that it has nothing against."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import questions, say, write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.build.loaded import load_model
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.fitting.held_out import hold_back
from onpolicy_sdft.runs.commands import REFUSED_CODE
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl

QUIETLY = {"optim.lr": 1e-6}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """Questions whose right answer is what the model says before training."""
    path = tmp_path_factory.mktemp("known") / "known.jsonl"
    prompts = [f"tell {number}" for number in range(40)]
    config = load_config(**{"model.name": str(model_dir)})
    texts = load_model(str(model_dir), config).sample(prompts, max_new_tokens=6)
    rows = [{"prompt": p, "response": t} for p, t in zip(prompts, texts, strict=True) if len(t.strip()) > 1]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path, model_dir: Path, known: Path) -> dict[str, Path]:
    kept = {"path": str(known), "wording": False}
    options = {
        "lora.alpha": 8, "rollout.max_new_tokens": 6, "rollout.deterministic": True, "rollout.num_slots": 8,
        "optim.lr": 0.3, "optim.warmup_steps": 0, "train.max_steps": 6, "train.checkpoint_steps": 1,
        "train.keep_checkpoints": 1, "train.output_dir": tmp_path / "run", "gate.rows": 16, "gate.every_steps": 2,
        "eval.kl_prompts": 0, "eval.before_and_after": False,
        "eval.sets": [questions(tmp_path, "known", retention=True, max_new_tokens=6) | {"data": kept}],
    }  # fmt: skip
    config = write_run(tmp_path, model_dir, say(*range(100)), **options)
    return {"config": config, "run": tmp_path / "run", "tmp": tmp_path, "known": known}


def run(files: dict[str, Path], **options: Any) -> Any:
    return fit(load_config(files["config"], **options))


def checks(run: Path) -> list[tuple[Any, ...]]:
    return [(row["step"], row["why"], row["passed"], row["action"]) for row in read_jsonl(run / "gate.jsonl")]


def test_rows_are_held_back_and_not_learned(files, logged):
    options = {**QUIETLY, "train.num_epochs": 1, "train.max_steps": None}
    options |= {"train.batch_size": 30, "train.rollout_samples": 30}
    outcome = run(files, **options)
    assert "10 of 100 rows are held back from training for the gate (gate.rows=16)" in "\n".join(logged)
    held = read_jsonl(outcome.run.gate_path)[0]["correct"]["held back"]
    assert len(held) == 10
    seen = {row["prompt"] for row in read_jsonl(outcome.run.rollouts_path)}
    assert len(seen) == 90


@pytest.mark.parametrize("seed", [0, 1])
def test_no_teacher_is_shown_what_is_held_back(files, seed):
    config = load_config(
        files["config"], **{"context.show": "both", "context.num_demonstrations": 4, "train.seed": seed}
    )
    bundle = load_bundle(config)
    task, rows = load_rows(config)
    left, held = hold_back(config, task, rows)
    assert hold_back(config, task, rows)[1] == held, "the same seed, the same rows"
    pairs = make_prompt_pairs(config, bundle, task, left).prepared.pairs
    shown = {number for pair in pairs for number in re.findall(r"say (\d+)", bundle.renderer.decode(pair.teacher_ids))}
    assert shown == {row.response for row in left.demonstrations}
    assert shown.isdisjoint(row.response for row in held)
    assert {row.example_id for row in (*left.demonstrations, *held)} == {row.example_id for row in rows.demonstrations}


def test_a_row_whose_prompt_stands_there_twice_is_not_held_back(files):
    config = load_config(files["config"])
    task, rows = load_rows(config)
    twice = replace(rows, demonstrations=(*rows.demonstrations, *rows.demonstrations[:90]))
    left, held = hold_back(config, task, twice)
    assert {row.prompt for row in held} == {row.prompt for row in rows.demonstrations[90:]}
    assert len(left.demonstrations) == 180


@pytest.mark.slow
def test_a_run_that_harms_nothing_is_asked_at_the_start_now_and_then_and_at_the_end(files):
    outcome = run(files, **QUIETLY)
    assert outcome.result.reason == "finished"
    assert checks(files["run"]) == [
        (0, "start", True, ""), (2, "planned", True, ""), (4, "planned", True, ""), (6, "end", True, ""),
    ]  # fmt: skip
    assert outcome.verdict.text.startswith("not worse than the start on held back (gate)")
    assert not outcome.verdict.is_worse


@pytest.mark.parametrize("targets", ["policy", "demonstrations"])
@pytest.mark.few(1)
def test_a_run_that_destroys_its_model_is_stopped_and_leaves_the_start(files, targets, capsys):
    options = {"train.targets": targets, "eval.before_and_after": True}
    command = ["train", "--config", str(files["config"]), *(f"--{k}={v}" for k, v in options.items())]
    assert main(command) == REFUSED_CODE
    assert checks(files["run"])[-1] == (2, "planned", False, "stop")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "the model IS THE START" in last
    assert "IS THE START" in (files["run"] / "model" / "README.md").read_text()
    result = read_json(files["run"] / "result.json")
    assert (result["reason"], result["verdict"]["is_start"]) == ("gate", True)
    left = load_file(files["run"] / "model" / "adapter_model.safetensors")
    assert all(not value.any() for name, value in left.items() if "lora_B" in name)
    scores = read_json(files["run"] / "eval" / "summary.json")
    assert scores["after"]["sets"][0]["score"] == scores["before"]["sets"][0]["score"] == 1.0
    assert main([*command, "--train.resume=auto"]) == REFUSED_CODE, "it does not go on"
    assert checks(files["run"])[-1] == (2, "planned", False, "stop")


@pytest.mark.slow
def test_a_gate_that_broke_before_it_had_gone_back_goes_back_when_resumed(files, monkeypatch):
    def breaks_at(path: str, number: int, *, late: bool) -> None:
        owner, _, name = path.rpartition(".")
        owner = pkgutil.resolve_name(owner)
        real, calls = getattr(owner, name), []

        def breaks(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if late or len(calls) != number:
                found = real(*arguments, **options)
            if len(calls) == number:
                raise RuntimeError("broken")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, breaks)
            with pytest.raises(RuntimeError, match="broken"):
                run(files, **{"train.resume": "auto"})

    breaks_at("onpolicy_sdft.train.checkpoint.Checkpointer.go_back", 1, late=False)
    breaks_at("onpolicy_sdft.train.alarms.Alarms.rearm", 1, late=True)
    breaks_at("onpolicy_sdft.fitting.guards.answer_greedily", 1, late=False)  # the start is not asked again
    breaks_at("onpolicy_sdft.train.guards.Guards.write", 2, late=True)  # the first call is of the resumed run's start
    assert run(files, **{"train.resume": "auto"}).result.reason == "gate"
    assert checks(files["run"]) == [(0, "start", True, ""), (2, "planned", False, "stop")]
    left = load_file(files["run"] / "model" / "adapter_model.safetensors")
    assert all(not value.any() for name, value in left.items() if "lora_B" in name)


def test_the_best_state_is_kept_and_exported(files, monkeypatch):
    answers_by_step(monkeypatch, {0: 8, 2: 9, 4: 0})
    outcome = run(files)
    assert checks(files["run"])[-1] == (4, "planned", False, "stop")
    assert "the model is that of step 2" in outcome.verdict.text
    assert not outcome.verdict.is_start
    assert {path.name for path in (files["run"] / "checkpoints").iterdir()} == {"step-000002", "step-000004"}
    best, newest = (load_file(files["run"] / f"checkpoints/step-00000{n}/trainable.safetensors") for n in (2, 4))
    left = load_file(files["run"] / "model" / "adapter_model.safetensors")
    for name, value in best.items():
        assert torch.equal(value, newest[name])
        assert torch.equal(value, left[name.replace(".default.", ".")])


def test_going_back_takes_the_best_state_with_its_moments_and_halves_the_rate(files, monkeypatch):
    answers_by_step(monkeypatch, {0: 8, 2: 9, 4: 0, 6: 9})
    outcome = run(files, **{"gate.action": "rollback"})
    assert outcome.result.reason == "finished"
    assert checks(files["run"])[2:] == [(4, "planned", False, "rollback"), (6, "end", True, "")]
    rates = [row["values"]["train/lr"] for row in read_jsonl(files["run"] / "metrics.jsonl")]
    assert rates == pytest.approx([0.3] * 4 + [0.15] * 2)
    assert [row["step"] for row in read_jsonl(files["run"] / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_what_is_gone_back_to_is_the_checkpoint_of_the_best_state(files, monkeypatch):
    answers_by_step(monkeypatch, {0: 8, 2: 0, 3: 8})
    options = {"gate.action": "rollback", "train.max_steps": 3, "train.keep_checkpoints": 9}
    run(files, **options, **{"teacher.weights": "ema"})
    start, back = (files["run"] / "checkpoints" / name for name in ("step-000000", "step-000002"))
    weights = [load_file(folder / "trainable.safetensors") for folder in (start, back)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    moments = [torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"] for folder in (start, back)]
    assert moments[0] == moments[1]
    copies = [torch.load(folder / "teacher.pt", weights_only=True)["ema"] for folder in (start, back)]
    assert all(torch.equal(value, copies[1][name]) for name, value in copies[0].items())


def test_after_so_many_times_of_going_back_it_stops(files, monkeypatch):
    answers_by_step(monkeypatch, {0: 8, 2: 0, 4: 0})
    outcome = run(files, **{"gate.action": "rollback", "gate.max_rollbacks": 1})
    assert [row[3] for row in checks(files["run"])] == ["", "rollback", "stop"]
    assert outcome.result.reason == "gate"


@pytest.mark.slow
def test_to_go_on_regardless_is_said_in_the_last_line_and_in_the_card(files):
    outcome = run(files, **{"gate.action": "continue"})
    assert outcome.result.reason == "finished"
    assert [row[3] for row in checks(files["run"])] == ["", "continue", "continue", "continue"]
    assert outcome.verdict.is_worse
    assert outcome.verdict.text.startswith("WORSE THAN THE START on known (gate) 1.000 -> ")
    assert "WORSE THAN THE START" in (files["run"] / "model" / "README.md").read_text()
    assert not (files["run"] / "checkpoints" / "step-000000").exists()


@pytest.mark.parametrize("action", ["rollback", pytest.param("continue", marks=pytest.mark.slow)])
def test_a_resumed_run_is_asked_the_rest_and_repeats_the_uninterrupted_one(files, action):
    options = {
        "gate.action": action, "gate.rollback_lr_factor": 1e-6, "lora.dropout": 0.2, "train.max_steps": 9,
    }  # fmt: skip
    whole, parts = files["tmp"] / "whole", files["tmp"] / "parts"
    run(files, **options, **{"train.output_dir": str(whole)})
    for step in (3, 4):  # a check is due at 4, and the signal comes first
        stop_after(step, files, **options, **{"train.output_dir": str(parts), "train.resume": "auto"})
    run(files, **options, **{"train.output_dir": str(parts), "train.resume": "auto"})
    assert read_jsonl(parts / "gate.jsonl") == read_jsonl(whole / "gate.jsonl")
    assert read_jsonl(parts / "alarms.jsonl") == read_jsonl(whole / "alarms.jsonl")
    last = max((whole / "checkpoints").glob("step-*")).name
    first, second = (load_file(each / "checkpoints" / last / "trainable.safetensors") for each in (whole, parts))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_what_was_answered_is_not_asked_again(files, logged):
    stop_after(3, files, **QUIETLY)
    run(files, **QUIETLY, **{"train.resume": "auto"})
    assert "resuming from" in "\n".join(logged)
    assert [row[:2] for row in checks(files["run"])] == [(0, "start"), (2, "planned"), (4, "planned"), (6, "end")]


def stop_after(step: int, files: dict[str, Path], **options: Any) -> None:
    """Run, and ask to stop as SIGTERM does once a step is logged."""
    original = RunDirectory.append_metrics

    def append(self: RunDirectory, record: Any) -> None:
        original(self, record)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", append)
        outcome = run(files, **options)
    assert outcome.result.reason == "SIGTERM"


@pytest.mark.slow
def test_other_limits_or_rows_are_another_run(files):
    run(files, **QUIETLY, **{"train.max_steps": 1})
    for other in ({"gate.max_drop": 0.5}, {"gate.rows": 8}):
        with pytest.raises(RunDirectoryError, match="gate"):
            run(files, **QUIETLY, **other, **{"train.resume": "auto", "train.max_steps": 2})


def test_without_rows_there_is_no_gate(files, logged):
    outcome = run(files, **QUIETLY, **{"gate.rows": 0, "train.max_steps": 1})
    assert not outcome.run.gate_path.exists()
    assert "held back" not in "\n".join(logged)
    assert outcome.verdict.text.startswith("not compared with the start")


def test_few_rows_are_all_learned_and_that_is_said(files, logged):
    outcome = run(files, **QUIETLY, **{"data.limit": 79, "train.max_steps": 1})
    assert "no rows are held back for the gate (gate.rows=16): a tenth of the 79 rows" in "\n".join(logged)
    assert set(read_jsonl(outcome.run.gate_path)[0]["correct"]) == {"known"}


def answers_by_step(monkeypatch: pytest.MonkeyPatch, right: dict[int, int]) -> None:
    """Let the gate see so many right answers of ten by step, whatever the model says."""
    from onpolicy_sdft.train.gate import Answers
    from onpolicy_sdft.train.guards import Guards

    original = Guards.judge
    steps = [0]

    def judge(self: Guards, state: Any, reason: str) -> str:
        steps.append(state.step)
        return original(self, state, reason)

    def answer(*_: Any) -> Answers:
        number = right[steps[-1]]
        return Answers({"known": (True,) * number + (False,) * (10 - number)}, 60)

    monkeypatch.setattr(Guards, "judge", judge)
    monkeypatch.setattr("onpolicy_sdft.fitting.guards.answer_greedily", answer)
