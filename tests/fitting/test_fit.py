"""The main job through its public functions, on a tiny model: it runs, resumes bit for bit, and stops cleanly."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import questions, write_run

from onpolicy_sdft import evaluate, fit, load_config, load_run
from onpolicy_sdft.build.given import Given
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.errors import RunDirectoryError, TrainingError
from onpolicy_sdft.models.sizes import model_sizes
from onpolicy_sdft.rollout.memory import kv_budget
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.callbacks import Callback
from onpolicy_sdft.train.memory import memory_to_come


@pytest.fixture
def files(tmp_path: Path, model_dir: Path) -> dict[str, Path]:
    options = {
        "lora.alpha": 8, "lora.dropout": 0.2, "rollout.max_new_tokens": 10, "rollout.batch_size": 4, "optim.lr": 0.01,
        "optim.warmup_steps": 1, "train.max_steps": 6, "train.checkpoint_steps": 2,
        "train.output_dir": tmp_path / "run", "eval.kl_prompts": 3, "eval.kl_max_new_tokens": 6,
        "eval.sets": [questions(tmp_path, limit=3)],
    }  # fmt: skip
    config = write_run(tmp_path, model_dir, **options)
    return {"config": config, "data": tmp_path / "rows.jsonl", "output": tmp_path / "run", "tmp": tmp_path}


def losses(run: Path) -> list[tuple[Any, ...]]:
    keys = ("loss/total", "train/grad_norm", "rollout/mean_length", "train/lr")
    return [(r["step"], *(r["values"].get(k) for k in keys)) for r in read_jsonl(run / "metrics.jsonl")]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "trainable.safetensors")


@pytest.mark.draws
def test_a_run_leaves_everything_a_person_needs(files, logged):
    outcome = fit(load_config(files["config"]), ["sdft", "train"])
    run = outcome.run.path
    assert [line for line in logged if "the rules of screening would refuse" in line] == [
        "the rules of screening would refuse 0 of 7 demonstrations"
    ]
    assert outcome.result.reason == "finished"
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-000004", "step-000006"}
    assert (run / "model" / "adapter_model.safetensors").is_file()
    card = (run / "model" / "README.md").read_text()
    assert "targets: rollouts under the teacher's prompt" in card
    assert "95 % Wilson" in card
    summary = read_json(run / "eval" / "summary.json")
    assert summary["before"]["sets"][0]["n"] == 3
    assert summary["after"]["kl"]["mean"] > 0
    manifest = read_json(run / "manifest.json")
    assert manifest["seeds"]["train.seed"] == 0
    assert len(read_jsonl(run / "rollouts.jsonl")) == 24
    assert load_config(run / "config.yaml") == load_config(files["config"])
    finished = load_run(run)
    assert finished.sample(["say one"], max_new_tokens=4) == finished.sample(["say one"], max_new_tokens=4)
    _, scores = evaluate(run)
    assert scores["sets"][0]["score"] == summary["after"]["sets"][0]["score"]
    assert scores["kl"]["mean"] == pytest.approx(summary["after"]["kl"]["mean"], rel=1e-4)


AVERAGED = {
    "rollout.prompt": "student", "objective.name": "reverse_kl", "teacher.weights": "ema", "teacher.half_life": 2.0,
    "rollout.temperature_end": 0.5, "rollout.num_samples": 2, "objective.anchor_kl": 0.1,
}  # fmt: skip


BLENDED = {"rollout.blend": 0.5, "rollout.min_p_end": 0.05, "rollout.num_samples": 2}


METHODS = {
    "sdft": {"train.targets": "policy"}, "sft": {"train.targets": "demonstrations"}, "averaged teacher": AVERAGED,
    "blended": BLENDED,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        pytest.param(method, lora, marks=() if lora == (method != "sft") else pytest.mark.slow)
        for method in METHODS
        for lora in (True, False)
    ],
)
@pytest.mark.few(1)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(files, method, lora):
    common = {
        "lora.enabled": lora,
        **METHODS[method],
        "eval.before_and_after": False,
        "optim.schedule": "cosine",
    }
    whole, parts = str(files["tmp"] / "whole"), str(files["tmp"] / "parts")
    fit(load_config(files["config"], **common, **{"train.output_dir": whole}))

    interrupted = load_config(files["config"], **common, **{"train.output_dir": parts})
    stop_after(interrupted, 4)
    torch.manual_seed(12345)  # another process, another state of every generator
    torch.rand(7)
    fit(load_config(files["config"], **common, **{"train.output_dir": parts, "train.resume": "auto"}))

    assert losses(Path(whole)) == losses(Path(parts))
    first, second = final_weights(Path(whole)), final_weights(Path(parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", ["engine", "hf"])
@pytest.mark.few(1)
def test_a_blended_run_logs_the_blend_that_a_budget_chose(files, backend):
    options = {
        "rollout.blend": 0.2, "rollout.blend_budget": 0.01, "rollout.backend": backend, "objective.name": "forward_kl",
        "objective.support": "teacher", "objective.blend": 0.3, "objective.disagreement": 1.0,
        "eval.before_and_after": False, "train.max_steps": 3,
    }  # fmt: skip
    run = fit(load_config(files["config"], **options)).run.path
    rows = [row["values"] for row in read_jsonl(run / "metrics.jsonl")]
    assert len(rows) == 3
    assert all(0.2 <= row["rollout/blend"] <= 1 and row["loss/total"] >= 0 for row in rows)
    assert any(row["rollout/blend"] > 0.2 for row in rows)


DRAFT_FIGURES = ("rollout/tokens_per_forward", "rollout/accept_rate", "rollout/drafted_rate", "rollout/slot_occupancy")


@pytest.mark.parametrize("forgets", [False, True], ids=["as it is", "with the store lost"])
@pytest.mark.slow
def test_a_resumed_run_drafts_from_the_same_texts_in_the_same_shapes(files, monkeypatch, forgets):
    """Rule 13 with the draft store, and that a store lost on the way would show."""
    common = {
        "eval.before_and_after": False, "train.max_steps": 8, "rollout.deterministic": True, "rollout.num_slots": 2,
        "rollout.temperature": 0.3, "rollout.drafts": ["history"], "optim.lr": 1e-4,
    }  # fmt: skip
    whole, parts = str(files["tmp"] / "whole"), str(files["tmp"] / "parts")
    fit(load_config(files["config"], **common, **{"train.output_dir": whole}))
    stop_after(load_config(files["config"], **common, **{"train.output_dir": parts}), 4)
    if forgets:
        from onpolicy_sdft.rollout.drafts import DraftStore

        monkeypatch.setattr(DraftStore, "restore", lambda self, state: None)
    fit(load_config(files["config"], **common, **{"train.output_dir": parts, "train.resume": "auto"}))

    def figures(run: str) -> list[tuple[Any, ...]]:
        return [
            tuple(row["values"].get(key, 0.0) for key in DRAFT_FIGURES)
            for row in read_jsonl(Path(run) / "metrics.jsonl")
        ]

    assert any(row[2] > 0 for row in figures(whole)[4:])
    assert (figures(whole) == figures(parts)) is not forgets
    if not forgets:
        assert losses(Path(whole)) == losses(Path(parts))
        first, second = final_weights(Path(whole)), final_weights(Path(parts))
        assert all(torch.equal(first[name], second[name]) for name in first)


def stop_after(config: Any, step: int) -> None:
    """Run a job and ask it to stop, as SIGTERM does, once it logged a step."""
    from onpolicy_sdft.runs.directory import RunDirectory

    original = RunDirectory.append_metrics

    def spy(self: RunDirectory, record: Any) -> None:
        original(self, record)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    RunDirectory.append_metrics = spy  # type: ignore[method-assign]
    try:
        outcome = fit(config)
    finally:
        RunDirectory.append_metrics = original  # type: ignore[method-assign]
    assert outcome.result.reason == "SIGTERM"
    assert outcome.result.exit_code == 143


def test_a_signal_that_comes_while_the_last_checkpoint_is_written_ends_the_run_there(files):
    class Interrupted(Callback):
        def on_save(self, step: int, path: Path) -> None:
            if step == 2 and path.parent.name == "checkpoints":
                os.kill(os.getpid(), signal.SIGINT)

    options = {"train.max_steps": 2, "train.resume": "auto"}
    outcome = fit(load_config(files["config"], **options), given=Given(callbacks=[Interrupted()]))
    assert (outcome.result.reason, outcome.result.exit_code) == ("SIGINT", 130)
    assert not outcome.run.model_path.exists()
    outcome = fit(load_config(files["config"], **options))
    assert (outcome.result.reason, outcome.result.exit_code) == ("finished", 0)
    assert outcome.run.model_path.is_dir()


def test_a_signal_that_comes_while_ranks_talk_is_not_lost(files, monkeypatch):
    gather, talks = Backend.gather, []

    def interrupted(self: Backend, value: Any) -> Any:
        found = gather(self, value)
        if value == (None, False):  # what ranks tell each other of signals and callbacks
            talks.append(value)
            if len(talks) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(Backend, "gather", interrupted)
    outcome = fit(load_config(files["config"], **{"eval.before_and_after": False}))
    assert (outcome.result.reason, outcome.result.exit_code) == ("SIGTERM", 143)
    assert [row["step"] for row in read_jsonl(outcome.run.path / "metrics.jsonl")] == [1, 2]


def test_a_run_goes_on_with_what_memory_asks_for_and_says_so(files, logged):
    config = {"eval.before_and_after": False, "train.max_steps": 2}
    fit(load_config(files["config"], **config))
    less = {"train.micro_batch_tokens": 64, "model.gradient_checkpointing": True, "rollout.kv_gib": 0.01}
    less |= {"rollout.num_slots": 2, "rollout.backend": "hf"}
    fit(load_config(files["config"], **{**config, **less, "train.max_steps": 4, "train.resume": "auto"}))
    assert [row["step"] for row in read_jsonl(files["output"] / "metrics.jsonl")] == [1, 2, 3, 4]
    (said,) = (line for line in logged if "not to the bit" in line)
    assert "model.gradient_checkpointing was False and is True now" in said
    assert "and 2 more" in said


@pytest.mark.slow
def test_log_lines_behind_the_checkpoint_are_dropped_on_resume(files):
    config = load_config(files["config"], **{"eval.before_and_after": False})
    stop_after(config, 3)
    run = files["output"]
    (run / "checkpoints" / "step-000003").rename(run / "gone")  # killed before it could save: step 2 is the newest
    fit(load_config(files["config"], **{"eval.before_and_after": False, "train.resume": "auto"}))
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_second_run_in_the_same_directory_is_refused_with_the_way_out(files):
    config = load_config(files["config"], **{"eval.before_and_after": False, "train.max_steps": 1})
    fit(config)
    with pytest.raises(RunDirectoryError, match="resume"):
        fit(config)


def test_resuming_with_other_settings_is_refused_and_names_them(files):
    base = {"eval.before_and_after": False, "train.max_steps": 2}
    fit(load_config(files["config"], **base))
    other = load_config(files["config"], **base, **{"train.resume": "auto", "optim.lr": 0.5})
    with pytest.raises(RunDirectoryError, match="optim"):
        fit(other)


def test_bad_steps_in_a_row_stop_the_run_with_its_state_saved(files):
    config = load_config(
        files["config"],
        **{
            "eval.before_and_after": False, "screening.check": "drop", "screening.truncated": "drop",
            "screening.empty": "drop", "screening.length": "drop", "screening.looping": "drop",
            "train.max_bad_steps": 2,
        },
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"max_bad_steps=2.*loosen screening"):
        fit(config)
    assert (files["output"] / "checkpoints" / "step-000002").is_dir()


def test_a_budget_of_loss_tokens_ends_the_run(files):
    config = load_config(files["config"], **{"eval.before_and_after": False, "train.max_loss_tokens": 50})
    outcome = fit(config)
    assert outcome.result.reason == "loss_token_budget"
    totals = [r["values"]["train/total_loss_tokens"] for r in read_jsonl(outcome.run.path / "metrics.jsonl")]
    assert totals[-1] >= 50
    assert all(total < 50 for total in totals[:-1])


def test_validation_keeps_the_best_weights_and_stops_early(files):
    extra = files["tmp"] / "validation.yaml"
    extra.write_text(
        "eval:\n  every_steps: 1\n  early_stop: 2\n  best_metric: eval/held_out/score\n  before_and_after: false\n"
        f"  validation:\n    - {{label: held_out, data: {{path: {files['data']}, limit: 2}}, task: {{name: exact}},"
        " max_new_tokens: 4}\n"
    )
    outcome = fit(load_config(files["config"], extra))
    assert outcome.result.reason == "early_stop"
    assert (outcome.run.path / "best" / "adapter_model.safetensors").is_file()
    metrics = read_jsonl(outcome.run.path / "metrics.jsonl")
    assert all("eval/held_out/score" in row["values"] for row in metrics)


def test_epochs_present_every_example_equally_often(files):
    config = load_config(
        files["config"],
        **{"eval.before_and_after": False, "train.max_steps": None, "train.num_epochs": 2, "train.rollout_samples": 4},
    )
    outcome = fit(config)
    seen = [row["example_id"] for row in read_jsonl(outcome.run.path / "rollouts.jsonl")]
    assert len(seen) == 14
    assert {seen.count(name) for name in seen} == {2}


@pytest.mark.slow
def test_exporting_merged_gives_a_plain_model_with_the_adapters_logits(files):
    outcome = fit(load_config(files["config"], **{"eval.before_and_after": False}))
    merged = files["tmp"] / "merged"
    assert main(["export", str(outcome.run.path), "--output", str(merged), "--merged"]) == 0
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(merged)
    tuned = load_run(outcome.run.path).model
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, tuned(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(files):
    """The same through the command line: SIGTERM, exit code 143, --train.resume auto."""
    command = [sys.executable, "-m", "onpolicy_sdft", "train", "--config", str(files["config"])]
    command += ["--eval.before_and_after", "false", "--train.max_steps", "200"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train ") and not line.startswith("train 0/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 143, rest
    assert "--train.resume auto" in rest
    steps = [row["step"] for row in read_jsonl(files["output"] / "metrics.jsonl")]
    done = subprocess.run([*command[:-1], str(steps[-1] + 1), "--train.resume", "auto"], check=False, timeout=120)
    assert done.returncode == 0
    assert [row["step"] for row in read_jsonl(files["output"] / "metrics.jsonl")] == [*steps, steps[-1] + 1]
    assert (files["output"] / "report.html").is_file()


@pytest.mark.slow
def test_an_export_never_replaces_what_is_not_an_export(files):
    outcome = fit(load_config(files["config"], **{"eval.before_and_after": False, "train.max_steps": 1}))
    precious = files["tmp"] / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    run = str(outcome.run.path)
    assert main(["export", run, "--output", str(precious)]) == 2
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert main(["export", run, "--output", str(outcome.run.model_path)]) == 2
    assert (outcome.run.model_path / "adapter_model.safetensors").is_file()
    for _ in range(2):  # an earlier export may be replaced
        assert main(["export", run, "--output", str(files["tmp"] / "exported")]) == 0
    assert "targets: rollouts under the teacher's prompt" in (files["tmp"] / "exported" / "README.md").read_text()


def test_an_exception_in_the_middle_of_a_run_loses_no_whole_step(files, monkeypatch):
    config = load_config(
        files["config"], **{"eval.before_and_after": False, "train.checkpoint_steps": 100, "probe.num_examples": 0}
    )
    metrics = files["output"] / "metrics.jsonl"

    def explode(self, pairs, rollout, text, result):
        if metrics.exists() and len(read_jsonl(metrics)) == 2:
            raise ZeroDivisionError("in a user's own check")
        return ""

    monkeypatch.setattr("onpolicy_sdft.screening.screen.Screen.reason", explode)
    with pytest.raises(ZeroDivisionError):
        fit(config)
    assert [p.name for p in (files["output"] / "checkpoints").iterdir()] == ["step-000002"]


def test_a_refused_resume_leaves_the_record_of_the_run_as_it_was(files):
    base = {"eval.before_and_after": False, "train.max_steps": 1}
    outcome = fit(load_config(files["config"], **base))
    before = outcome.run.manifest_path.read_text(), outcome.run.config_path.read_text()
    with pytest.raises(RunDirectoryError):
        fit(load_config(files["config"], **base, **{"train.resume": "auto", "train.seed": 9}))
    assert (outcome.run.manifest_path.read_text(), outcome.run.config_path.read_text()) == before


@pytest.mark.slow
def test_scores_of_the_seed_model_are_not_reused_for_other_questions(files):
    base = {"train.max_steps": 1, "eval.kl_prompts": 0}
    fit(load_config(files["config"], **base))
    longer = load_config(files["config"], **base, **{"train.resume": "auto", "eval.seed": 5})
    fit(longer)
    summary = read_json(files["output"] / "eval" / "summary.json")
    assert summary["before"]["identity"] == summary["after"]["identity"]


def test_a_model_that_is_no_run_is_scored_without_a_kl(files, model_dir, logged):
    config = load_config(files["config"])
    _, summary = evaluate(str(model_dir), config, files["tmp"] / "scores")
    assert summary["kl"] is None
    assert any("runs only" in text for text in logged)


def test_the_probe_and_the_chat_work_through_the_command_line(files, capsys, monkeypatch):
    arguments = ["probe", "--config", str(files["config"]), "--num_examples", "3", "--templates", "[prior_turn]"]
    assert main(arguments) == 0
    assert "expected seconds per step" in capsys.readouterr().out
    outcome = fit(load_config(files["config"], **{"eval.before_and_after": False, "train.max_steps": 1}))
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("say one\n\nsay two\n"))
    assert main(["chat", str(outcome.run.path), "--max_new_tokens", "3"]) == 0


@pytest.mark.slow
def test_bfloat16_compute_on_float32_weights_trains_and_resumes_bit_for_bit(files):
    common = {"lora.enabled": False, "eval.before_and_after": False, "train.precision": "bf16"}
    whole, parts = str(files["tmp"] / "whole"), str(files["tmp"] / "parts")
    runs = [
        {"train.output_dir": whole, "train.max_steps": 4},
        {"train.output_dir": parts, "train.max_steps": 2},
        {"train.output_dir": parts, "train.max_steps": 4, "train.resume": "auto"},
    ]
    script = (
        "import json, sys\n"
        "from onpolicy_sdft import fit, load_config\n"
        "for options in json.loads(sys.argv[2]): fit(load_config(sys.argv[1], **options))\n"
    )
    options = json.dumps([{**common, **each} for each in runs])
    # A process of its own: accelerate keeps one precision a process.
    subprocess.run([sys.executable, "-c", script, str(files["config"]), options], check=True, timeout=280)
    first, second = final_weights(Path(whole)), final_weights(Path(parts))
    assert all(value.dtype == torch.float32 for value in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_engine_of_a_run_leaves_what_learning_takes_that_of_an_evaluation_not(files, monkeypatch):
    told = []

    def budget(kv_gib, kv_fraction, device, learning_bytes):
        told.append(learning_bytes)
        return kv_budget(kv_gib, kv_fraction, device, learning_bytes)

    monkeypatch.setattr("onpolicy_sdft.rollout.engine.kv_budget", budget)
    config = load_config(files["config"], **{"train.max_steps": 1, "lora.enabled": "false"})
    run = fit(config).run.path
    assert told == [memory_to_come(config, model_sizes(config.model, config.lora), "ddp", 1)]
    told.clear()
    load_run(run).sample(["say one"], max_new_tokens=4)
    assert told == [0]


#: Metadata of the package is hidden: as from a checkout on the path that was never installed.
UNINSTALLED = """
import importlib.metadata, sys
found = importlib.metadata.Distribution.from_name.__func__

def hidden(cls, name):
    if name == "onpolicy_sdft":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)

importlib.metadata.Distribution.from_name = classmethod(hidden)
from onpolicy_sdft import fit, load_config
options = {"eval.before_and_after": False, "train.max_steps": 1}
fit(load_config(sys.argv[1], **options))
before = set(sys.modules)
fit(load_config(sys.argv[1], **options, **{"train.output_dir": sys.argv[2]}))
print("imported:", *sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
def test_a_checkout_that_was_never_installed_trains_and_exports(files):
    second = files["tmp"] / "second"
    command = [sys.executable, "-c", UNINSTALLED, str(files["config"]), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "imported:"
    for run in (files["output"], second):
        assert "onpolicy_sdft 0.1.0 (source checkout)" in (run / "model" / "README.md").read_text()
        assert read_json(run / "manifest.json")["versions"]["onpolicy_sdft"] == "0.1.0 (source checkout)"
