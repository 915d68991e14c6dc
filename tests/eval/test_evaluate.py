"""Evaluation of a run through its public functions: what was answered outlives an interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import questions, write_run

from onpolicy_sdft import evaluate, fit, load_config
from onpolicy_sdft.eval import evaluate as job
from onpolicy_sdft.rollout.engine import RolloutEngine
from onpolicy_sdft.runs.files import read_json, read_jsonl

CHECK = """
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.types import CheckResult

class Mine(Exact):
    def check(self, completion, demonstration):
        return CheckResult(True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    options = {
        "rollout.max_new_tokens": 6, "rollout.deterministic": True, "rollout.num_slots": 3, "train.max_steps": 1,
        "train.output_dir": folder / "run", "eval.before_and_after": False, "eval.temperature": 1.0,
        "eval.num_samples": 2, "eval.kl_prompts": 3, "eval.kl_max_new_tokens": 5,
        "eval.sets": [questions(folder, "first", limit=4), questions(folder, "second", retention=True)],
    }  # fmt: skip
    return fit(load_config(write_run(folder, model_dir, **options))).run.path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Chunks of 3 answers, counted; dies at the call that is asked for."""
    state: dict[str, Any] = {"answers": [], "dies_at": None}
    original = RolloutEngine.generate

    def generate(self: RolloutEngine, requests: Any, *arguments: Any) -> Any:
        if len(state["answers"]) == state["dies_at"]:
            raise KeyboardInterrupt
        state["answers"].append(len(requests))
        return original(self, requests, *arguments)

    monkeypatch.setattr(RolloutEngine, "generate", generate)
    monkeypatch.setattr(job, "CHUNK_SIZES", {"cpu": 3})
    return state


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing interrupts."""
    return evaluate(run, output=tmp_path_factory.mktemp("whole"))[0].path


@pytest.mark.parametrize("dies_at", [1, 5, 8])
@pytest.mark.few(1)
def test_an_interrupted_evaluation_gives_the_records_of_an_uninterrupted_one(run, whole, tmp_path, asked, dies_at):
    """Of two sets of 8 and 14 answers and 3 general prompts: in the first set, in the second, and after both."""
    parts, expected = tmp_path / "parts", read_json(whole / "eval" / "summary.json")["eval"]
    asked["dies_at"] = dies_at
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, output=parts)
    assert not (parts / "eval" / "summary.json").exists()
    assert (parts / "eval" / "partial" / "eval-first.jsonl").is_file()
    done = sum(asked["answers"])
    assert asked["answers"] == [3, 3, 2, 3, 3, 3, 3, 2, 3][:dies_at]
    asked.update(answers=[], dies_at=None)
    _, found = evaluate(run, output=parts)
    assert sum(asked["answers"]) == 8 + 14 + 3 - done, "nothing is answered twice"
    for label in ("first", "second"):
        name = f"eval/eval-{label}.jsonl"
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
        assert len(read_jsonl(parts / name)) == {"first": 8, "second": 14}[label]
    assert without_speed(found) == without_speed(expected)
    assert without_speed(read_json(parts / "eval" / "summary.json")["eval"]) == without_speed(found)
    assert not (parts / "eval" / "partial").exists()


def without_speed(summary: dict[str, Any]) -> dict[str, Any]:
    sets = [{name: value for name, value in entry.items() if name != "tokens_per_second"} for entry in summary["sets"]]
    return json.loads(json.dumps({**summary, "sets": sets}))


@pytest.mark.slow
def test_other_sampling_options_answer_anew(run, tmp_path, asked):
    asked["dies_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, output=tmp_path)
    asked.update(answers=[], dies_at=None)
    config = load_config(run / "config.yaml", **{"eval.seed": 7})
    evaluate(run, config, output=tmp_path)
    assert sum(asked["answers"]) == 8 + 14 + 3


@pytest.mark.parametrize("moved", [0.0, 1.0], ids=["the same weights", "another weight"])
@pytest.mark.few(1)
def test_answers_are_kept_for_the_very_weights_whatever_their_file_looks_like(run, tmp_path, asked, moved):
    asked["dies_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, output=tmp_path)
    done = sum(asked.pop("answers"))
    asked.update(answers=[], dies_at=None)
    path = run / "model" / "adapter_model.safetensors"
    before, facts = path.read_bytes(), path.stat()
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] += moved
    try:
        save_file(weights, path, metadata={"format": "pt"})
        if moved:  # another text of the very size and time
            assert path.stat().st_size == facts.st_size
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        evaluate(run, output=tmp_path)
    finally:
        path.write_bytes(before)
    assert sum(asked["answers"]) == 8 + 14 + 3 - (0 if moved else done)


def test_other_scaling_of_the_adapter_answers_anew(run, tmp_path, asked):
    asked["dies_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, output=tmp_path)
    asked.update(answers=[], dies_at=None)
    path = run / "model" / "adapter_config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), "lora_alpha": 1}))
        evaluate(run, output=tmp_path)
    finally:
        path.write_text(before)
    assert sum(asked["answers"]) == 8 + 14 + 3


def test_an_edited_check_of_ones_own_answers_anew(run, tmp_path, asked):
    """No verdict of the old check stands beside those of the new one."""
    (tmp_path / "mine.py").write_text(CHECK)
    sets = [questions(run.parent, "own", task={"name": f"{tmp_path / 'mine.py'}:Mine"})]
    config = load_config(run / "config.yaml", **{"eval.sets": sets, "eval.kl_prompts": 0})
    for _ in range(2):  # what the same check judged is kept
        asked.update(answers=[], dies_at=1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, config, output=tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out" / "eval" / "partial" / "eval-own.jsonl")) == 1 + 2
    asked.update(answers=[], dies_at=None)
    (tmp_path / "mine.py").write_text(CHECK.replace("True", "False"))
    _, found = evaluate(run, config, output=tmp_path / "out")
    assert sum(asked["answers"]) == 14
    assert found["sets"][0]["score"] == 0.0


def test_the_summary_has_what_reports_read(whole):
    found = read_json(whole / "eval" / "summary.json")["eval"]
    assert {entry["label"]: entry["retention"] for entry in found["sets"]} == {"first": False, "second": True}
    for entry in found["sets"]:
        assert entry["note"] == ""
        assert list(entry["pass_at"]) == ["1", "2"]
        assert entry["pass_at"]["2"] == entry["pass_at_k"]
        assert entry["pass_at"]["1"] == pytest.approx(entry["score"])
    kl = found["kl"]
    assert kl["nll_low"] <= kl["nll_mean"] <= kl["nll_high"]
    assert kl["nll_mean"] == pytest.approx(sum(kl["nll_sums"]) / kl["num_tokens"])
