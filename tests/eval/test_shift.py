"""The distribution shift through the command a user types, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import questions, write_run

from onpolicy_sdft import fit, load_config, load_run
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.eval import shift as job
from onpolicy_sdft.eval.intervals import mean_interval
from onpolicy_sdft.runs.files import read_json, read_jsonl


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shift")
    shared = {
        "rollout.max_new_tokens": 6, "rollout.deterministic": True, "rollout.num_slots": 3, "optim.lr": 0.05,
        "optim.warmup_steps": 0, "train.max_steps": 2, "eval.before_and_after": False, "eval.kl_prompts": 0,
        "eval.sets": [questions(folder, "words", limit=5)],
    }  # fmt: skip
    config = write_run(folder, model_dir, **shared)
    for name, options in (
        ("sft", {"train.targets": "demonstrations"}),
        ("full", {"train.targets": "demonstrations", "lora.enabled": False, "optim.lr": 1e-3}),
    ):
        output = str(folder / name)
        fit(load_config(config, **options, **{"train.output_dir": output}))
    return {"sft": folder / "sft", "full": folder / "full", "data": folder / "rows.jsonl", "config": config}


class Letters:
    """Embeds a text by how often each byte stands in it."""

    name = "letters"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        found = np.ones((len(texts), 257), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            for byte in text.encode("utf-8", "replace"):
                row[byte] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def count_cut(self, texts: Sequence[str]) -> int:
        return sum(len(text) > 10_000 for text in texts)


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "load_embedder", lambda name, cache_dir: Letters())


def cosine(first: str, second: str) -> float:
    a, b = Letters()([first, second]).astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def shift(runs: Sequence[Path], output: Path, *options: str) -> dict[str, Any]:
    assert main(["shift", *map(str, runs), "--output", str(output), "--max_new_tokens", "5", *options]) == 0
    return read_json(output / "shift.json")


@pytest.mark.slow
def test_answers_of_runs_are_compared_with_those_of_their_seed_prompt_by_prompt(runs, tmp_path, capsys, model_dir):
    found = shift([runs["sft"], runs["full"]], tmp_path / "out", "--num_prompts", "6")
    assert found["reference"] == str(model_dir)
    assert (found["num_prompts"], found["embedder"], found["num_cut"]) == (6, "letters", 0)
    records = read_jsonl(tmp_path / "out" / found["prompts"])
    assert len(records) == 6
    for entry in found["runs"]:
        pairs = [(r["reference"]["completion"], r["answers"][entry["name"]]["completion"]) for r in records]
        assert entry["similarities"] == pytest.approx([cosine(*pair) for pair in pairs], abs=1e-6)
        assert [r["answers"][entry["name"]]["similarity"] for r in records] == entry["similarities"]
        assert entry["mean"] == pytest.approx(np.mean(entry["similarities"]))
        assert (entry["low"], entry["high"]) == mean_interval(entry["similarities"])
        assert entry["identical_rate"] == sum(a == b for a, b in pairs) / 6
        assert entry["kl"] > 0
        assert entry["kl_low"] <= entry["kl"] <= entry["kl_high"]
        assert entry["nll_low"] <= entry["nll"] <= entry["nll_high"]
    assert [(e["name"], e["path"]) for e in found["runs"]] == [(n, str(runs[n])) for n in ("sft", "full")]
    for name in ("sft", "full"):
        prompts = [record["prompt"] for record in records]
        own = load_run(runs[name]).sample(prompts, max_new_tokens=5)
        assert [record["answers"][name]["completion"] for record in records] == own
    assert not (tmp_path / "out" / "partial").exists()
    shown = capsys.readouterr().out
    assert "sft" in shown
    assert "NLL of the base model's answers" in shown


def test_an_interrupted_call_goes_on_and_gives_the_same(runs, tmp_path, monkeypatch):
    options = ["--num_prompts", "4", "--temperature", "1.0"]
    whole = shift([runs["sft"]], tmp_path / "whole", *options)
    original, calls = job.answer, []

    def dies(finished, prompts, *rest):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(finished, prompts, *rest)

    monkeypatch.setattr(job, "answer", dies)
    command = ["shift", str(runs["sft"]), "--output", str(tmp_path / "parts"), "--max_new_tokens", "5", *options]
    assert main(command) == 130
    kept = tmp_path / "parts" / "partial" / "base.jsonl"
    assert len(read_jsonl(kept)[1]["records"]) == 4
    lines = read_jsonl(kept)
    lines[1]["records"][0]["completion"] = "kept as it is"
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(job, "answer", original)
    assert main(command) == 0
    parts, expected = (read_jsonl(tmp_path / name / "records.jsonl") for name in ("parts", "whole"))
    assert parts[0]["reference"]["completion"] == "kept as it is", "the seed's answers are not written again"
    assert [record["answers"]["sft"]["completion"] for record in parts] == [
        record["answers"]["sft"]["completion"] for record in expected
    ]
    assert read_json(tmp_path / "parts" / "shift.json")["runs"][0]["kl"] == pytest.approx(whole["runs"][0]["kl"])


@pytest.mark.slow
def test_prompts_come_from_a_file_or_an_evaluation_set(runs, tmp_path):
    questions = tmp_path / "questions.csv"
    questions.write_text("question,other\nsay a,1\nsay b,2\nsay a,3\n")
    found = shift([runs["sft"]], tmp_path / "f", "--prompts", str(questions), "--prompt_column", "question")
    assert found["num_prompts"] == 3, "the same prompt may stand twice"
    assert [r["prompt"] for r in read_jsonl(tmp_path / "f" / "records.jsonl")] == ["say a", "say b", "say a"]
    shift([runs["sft"]], tmp_path / "s", "--prompts", "set:words")
    asked = [r["prompt"] for r in read_jsonl(tmp_path / "s" / "records.jsonl")]
    assert len(asked) == 5
    assert all("say" in prompt for prompt in asked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompts", "set:none"], "has no such evaluation set (it has: words)"),
        (["--num_prompts", "61"], "num_prompts=61, but the general prompts holds 60"),
        (["--num_prompts", "0"], "asks for no prompt"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--max_new_tokens", "2000"], "positions"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_way_out(runs, tmp_path, capsys, options, said):
    assert main(["shift", str(runs["sft"]), "--output", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "shift.json").exists()


def test_runs_of_other_seed_models_are_refused(runs, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.yaml", "manifest.json"):
        (other / name).write_text((runs["sft"] / name).read_text().replace("dtype: float32", "dtype: bfloat16"))
    (other / "model").symlink_to(runs["sft"] / "model")
    assert main(["shift", str(runs["sft"]), str(other), "--output", str(tmp_path / "out")]) == 2
    assert "has another model.dtype" in capsys.readouterr().err
    assert main(["shift", str(runs["sft"]), str(runs["sft"]), "--output", str(tmp_path / "out")]) == 2
    assert "given twice" in capsys.readouterr().err
