"""Evaluation of a run through its public functions: what was answered outlives an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft import evaluate, fit, load_config
from onpolicy_sdft.eval import evaluate as job
from onpolicy_sdft.rollout.engine import RolloutEngine
from onpolicy_sdft.runs.files import read_json, read_jsonl

YAML = """
model: {{name: {model}}}
lora: {{r: 4}}
data: {{path: {data}}}
task: {{name: exact}}
rollout: {{max_new_tokens: 6, deterministic: true, num_slots: 3}}
screening: {{truncated: keep, looping: keep, length: keep, check: keep}}
train: {{batch_size: 4, max_steps: 1, output_dir: {output}, micro_batch_tokens: 400}}
eval:
  before_and_after: false
  temperature: 1.0
  num_samples: 2
  kl_prompts: 3
  kl_max_new_tokens: 5
  sets:
    - {{label: first, data: {{path: {data}, limit: 4}}, task: {{name: exact}}, max_new_tokens: 5}}
    - {{label: second, data: {{path: {data}}}, task: {{name: exact}}, max_new_tokens: 5, retention: true}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    words = ("one", "two", "three", "four", "five", "six", "seven")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {word}", "response": word}) + "\n" for word in words))
    config = folder / "config.yaml"
    config.write_text(YAML.format(model=model_dir, data=data, output=folder / "run"))
    return fit(load_config(config)).run.path


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
