"""The recipes for models of 7B: their page names them, its program makes their data, and each runs on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Qwen2Config

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_config, load_plan
from onpolicy_sdft.config.sequence import SequenceConfig
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.experiments.sequence import run_sequence
from onpolicy_sdft.experiments.sequence_plan import plan_sequence
from onpolicy_sdft.fitting.memory_plan import GIB, plan
from onpolicy_sdft.runs.files import read_json
from onpolicy_sdft.tasks import load_task

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "recipes"
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
TABLE, LLAMA, SEQUENCE = (RECIPES / f"{name}.yaml" for name in ("acl2024_table", "acl2024_llama", "tool_use_science"))
RUNS = sorted(path.stem for path in RECIPES.glob("*.yaml") if path not in (TABLE, LLAMA, SEQUENCE))
#: What makes a run short; refused rollouts are replaced, so that a model that knows nothing learns.
SHORT: dict[str, Any] = {
    "model.dtype": "float32", "train.precision": "fp32", "train.max_steps": 1, "train.batch_size": 2,
    "context.max_teacher_tokens": 950, "context.max_student_tokens": 900, "rollout.max_new_tokens": 6,
    "probe.num_examples": 2, "eval.kl_prompts": 1, "eval.kl_max_new_tokens": 3, "optim.warmup_steps": 0,
    **{f"screening.{rule}": "fallback" for rule in ("banned", "empty", "truncated", "control", "looping", "check")},
}  # fmt: skip
GSM8K = {"question": "Ann has 2 apples and buys 3. How many?", "answer": "She has 2 + 3 = 5.\nThe answer is 5."}
CALL = {"instruction": "Question: Find a bar in Oslo.\nFunction to be used: find", "output": "find(city='Oslo')"}
SCIENCE = [
    {"role": "system", "content": "Answer as <answer>\nA\n</answer>."},
    {"role": "user", "content": "Which is a gas?\n\nA: iron\nB: helium\nC: salt\nD: gold"},
]
CALLS = [{"Action": "find", "Action_Input": '{"city": "Oslo"}'}, {"Action": "list", "Action_Input": "{}"}]
SPOKEN = ["Thought: two tools.", *(f"Action: {c['Action']}\nAction Input: {c['Action_Input']}" for c in CALLS)]


def write_data(folder: Path) -> None:
    """Leave what the page downloads, in the columns of the published files, and make what it makes of the rest."""
    data = folder / "data"
    data.mkdir()
    apples = {"instruction": GSM8K["question"], "output": "The answer is 5"}
    code = {"instruction": "Add two numbers in Python.", "output": "def add(a, b):\n    return a + b"}
    rows = {
        "gsm8k_train": GSM8K, "gsm8k_test": GSM8K, "multiarith_test": apples, "openfunction_train": CALL,
        "openfunction_test": CALL, "magicoder_train": code,
    }  # fmt: skip
    for name, row in rows.items():
        (data / f"{name}.json").write_text(json.dumps([row] * 4))
    there = folder / "Self-Distillation" / "data"
    tool_use = {"prompt": "Use find(city) and list().", "golden_answer": CALLS}
    science = {"messages": SCIENCE, "output_text": "<reasoning>\nIt is light.\n</reasoning>\n<answer>\nB\n</answer>"}
    for name, row in {
        "tooluse_data/train_data": {**tool_use, "golden_response": SPOKEN}, "tooluse_data/eval_data": tool_use,
        "science_data/train_data": science, "science_data/eval_data": {"prompt": SCIENCE, "answer": "B"},
    }.items():  # fmt: skip
        Dataset.from_list([row] * 4).save_to_disk(there / name)
    exec(*re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL), {})


def small_sets(sets: list[Any], folder: Path) -> list[dict[str, Any]]:
    """Return evaluation sets with short answers, and rows of this test where they come from the network."""
    rows = folder / "published.jsonl"
    row = {"prompt": "def one():", "response": "def one():\n    return 1", "tests": "assert one() == 1"}
    rows.write_text(json.dumps(row) + "\n")
    found = [dataclasses.asdict(item) if dataclasses.is_dataclass(item) else dict(item) for item in sets]
    for item in found:
        item["max_new_tokens"] = 3
        if item["data"].get("name"):
            item["data"] = {"path": str(rows)}
    return found


def test_the_page_has_every_recipe_and_says_that_none_was_run():
    assert all(f"configs/recipes/{path.name}" in PAGE for path in RECIPES.glob("*.yaml"))
    assert all("Not run at this size" in path.read_text() for path in RECIPES.glob("*.yaml") if path != TABLE)
    assert RUNS == ["code", "gsm8k", "openfunctions"]


def test_the_program_of_the_page_makes_rows_whose_answers_the_checks_accept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    for stage in load_plan(SequenceConfig, "test", "", ["--config", str(SEQUENCE)]).stages:
        task = load_task(stage.task.name, stage.task.options)
        for data in (stage.data, stage.test):
            rows = load_demonstrations(data, task).demonstrations
            assert len(rows) == 4
            assert all(task.check(row.response, row).correct for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, SEQUENCE.stem])
def test_the_memory_of_the_page_is_that_of_the_plan(name, tmp_path):
    """From a config without weights, of the shape of Qwen2.5-7B-Instruct."""
    Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    if name == SEQUENCE.stem:
        config = plan_sequence(load_plan(SequenceConfig, "test", "", ["--config", str(SEQUENCE)]))[-1].config
    else:
        config = load_config(RECIPES / f"{name}.yaml", TABLE)
    config.model.name = str(tmp_path)

    def peaks(num_gpus: int, *backends: str) -> str:
        found = {row.backend: f"{row.peak / GIB:.1f}" for row in plan(config, num_gpus, 80).rows}
        return ", ".join(found[backend] for backend in backends)

    one, adapters = peaks(1, "ddp"), peaks(8, "ddp", "zero3", "fsdp2")
    config.lora.enabled, config.model.dtype, config.model.gradient_checkpointing = False, "float32", True
    every_weight = peaks(8, "ddp", "zero1", "zero2", "zero3", "fsdp2")
    assert f"| {name} | {one} | {adapters} | {every_weight} |" in PAGE
    assert f"{one} GiB of one 80 GB GPU" in (RECIPES / f"{name}.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [str(LLAMA)]], ids=["alone", "llama"])
@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_runs_and_scores_the_row_of_the_table(name, more, tmp_path, model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    sets = small_sets(load_config(TABLE).eval.sets, tmp_path)
    files = [part for file in (RECIPES / f"{name}.yaml", TABLE, *more) for part in ("--config", str(file))]
    options = {**SHORT, "model.name": model_dir, "train.output_dir": "run", "eval.sets": json.dumps(sets)}
    assert main(["train", *files, *(f"--{key}={value}" for key, value in options.items())]) == 0
    summary = read_json(tmp_path / "run" / "eval" / "summary.json")
    assert [item["label"] for item in summary["after"]["sets"]] == [item["label"] for item in sets]
    assert read_json(tmp_path / "run" / "result.json")["reason"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdft", "sdft_kl", "sft"])
def test_the_sequence_runs_through_both_stages(method, tmp_path, model_dir, monkeypatch, in_process):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    config = load_plan(SequenceConfig, "test", "", ["--config", str(SEQUENCE)])
    config.run["eval"]["sets"] = small_sets(config.run["eval"]["sets"], tmp_path)
    config.run["model"]["name"] = str(model_dir)
    config.method = [str(ROOT / "configs" / "methods" / f"{method}.yaml")]
    config.stages = [dataclasses.replace(stage, max_new_tokens=3, options=SHORT) for stage in config.stages]
    assert len(plan_sequence(config)) == 2
    summary = read_json(run_sequence(config, []))
    assert summary["n"] == {"tool_use": 4, "science": 4, "human_eval": 1}
    assert len(summary["matrix"]["value"]) == 3
