"""Evaluation of a run through its public functions: what was answered outlives an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import questions, write_run

from onpolicy_sdft import evaluate, fit, load_config
from onpolicy_sdft.eval import evaluate as job
from onpolicy_sdft.rollout.engine import RolloutEngine
from onpolicy_sdft.runs.files import read_json, read_jsonl


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


def test_other_sampling_options_answer_anew(run, tmp_path, asked):
    asked["dies_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, output=tmp_path)
    asked.update(answers=[], dies_at=None)
    config = load_config(run / "config.yaml", **{"eval.seed": 7})
    evaluate(run, config, output=tmp_path)
    assert sum(asked["answers"]) == 8 + 14 + 3


def test_other_weights_answer_anew(run, tmp_path, asked):
    asked["dies_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, output=tmp_path)
    asked.update(answers=[], dies_at=None)
    weights = run / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes())  # trained again: another time of writing, if nothing else
    evaluate(run, output=tmp_path)
    assert sum(asked["answers"]) == 8 + 14 + 3


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
