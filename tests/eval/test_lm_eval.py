"""The bridge to lm-eval: files and resuming with a stand-in of the harness, and the real one on local JSON tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onpolicy_sdft import fit, load_config, load_run
from onpolicy_sdft.build.loaded import load_model
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.schema import ContextConfig, RunConfig
from onpolicy_sdft.eval import lm_eval as job
from onpolicy_sdft.eval.lm_eval_bridge import TaskResult
from onpolicy_sdft.runs.files import read_json, read_jsonl


class FakeHarness:
    """Knows tasks by their sizes, and counts what is run."""

    sizes: ClassVar[dict[str, int]] = {
        "arc_easy": 30,
        "arc_challenge": 10,
        "truthfulqa_mc1": 5,
        "truthfulqa_mc2": 5,
        "hellaswag": 7,
    }
    models: ClassVar[list[Any]] = []
    runs: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, model: Any, *arguments: Any) -> None:
        self.models.append(model)

    def check(self, names: Any) -> None:
        """Know every task."""

    def run(self, name: str, num_fewshot: int | None, *arguments: Any) -> list[TaskResult]:
        self.runs.append((name, num_fewshot, *arguments))
        n = self.sizes.get(name, 4)
        metrics = {"acc,none": n / 40, "acc_stderr,none": 0.01, "acc_norm,none": 0.5}
        return [TaskResult(name, metrics, n, {"task": name}, 1.0, num_fewshot or 0, [{"doc_id": i} for i in range(n)])]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    FakeHarness.runs, FakeHarness.models = [], []
    monkeypatch.setattr(job, "Harness", FakeHarness)
    monkeypatch.setattr(job, "require_lm_eval", lambda: None)
    return FakeHarness.runs


def test_each_task_leaves_results_versions_and_samples(fake, model_dir, tmp_path, capsys):
    command = ["lm_eval", str(model_dir), "--tasks", "hellaswag, arc_easy", "--limit", "3", "--output", str(tmp_path)]
    assert main(command) == 0
    found = read_json(tmp_path / "hellaswag.json")
    assert (found["task"], found["n"], found["version"], found["num_fewshot"]) == ("hellaswag", 7, 1.0, 0)
    assert found["metrics"]["acc,none"] == 7 / 40
    assert len(found["config_hash"]) == 64
    assert {"lm_eval", "torch", "transformers"} <= set(found["versions"])
    assert len(read_jsonl(tmp_path / "arc_easy.samples.jsonl")) == 30
    shown = capsys.readouterr().out
    assert "the first 3 questions" in shown
    assert "0.7500" in shown
    assert "0.0100" in shown
    assert [name for name, *_ in fake] == ["hellaswag", "arc_easy"]


def test_the_harness_renders_with_the_date_of_the_run(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}: " + template.read_text())
    finished = load_model(str(folder), RunConfig(context=ContextConfig(date="2026-11-01")))
    dated = job._dated_tokenizer(finished.bundle)
    assert dated.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("01 Nov 2026: ")
    plain = load_model(str(model_dir), RunConfig()).bundle
    assert job._dated_tokenizer(plain) is plain.loaded.tokenizer


def test_the_adapter_of_a_run_is_merged_and_its_results_stand_in_the_run(fake, model_dir, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "say one", "response": "one"}\n')
    options = {
        "model.name": str(model_dir), "data.path": str(tmp_path / "rows.jsonl"), "train.max_steps": 1,
        "train.batch_size": 1, "train.targets": "demonstrations", "optim.lr": 0.1, "optim.warmup_steps": 0,
        "eval.before_and_after": False, "train.output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    run = fit(load_config(**options)).run
    assert main(["lm_eval", str(run.path), "--tasks", "hellaswag"]) == 0
    assert read_json(run.eval_path / "lm_eval" / "hellaswag.json")["n"] == 7
    (merged,), tuned = FakeHarness.models, load_run(run.path).model
    assert not any("lora" in name for name, _ in merged.named_parameters())
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(merged(ids).logits, AutoModelForCausalLM.from_pretrained(model_dir)(ids).logits)


def test_finished_tasks_are_not_run_again_unless_something_changed(fake, model_dir, tmp_path, monkeypatch):
    command = ["lm_eval", str(model_dir), "--tasks", "arc_easy,hellaswag,winogrande", "--output", str(tmp_path)]
    original = FakeHarness.run

    def dies(self: FakeHarness, name: str, *arguments: Any) -> list[TaskResult]:
        if name == "winogrande":
            raise KeyboardInterrupt
        return original(self, name, *arguments)

    monkeypatch.setattr(FakeHarness, "run", dies)
    assert main(command) == 130
    monkeypatch.setattr(FakeHarness, "run", original)
    assert main(command) == 0
    assert [name for name, *_ in fake] == ["arc_easy", "hellaswag", "winogrande"]
    assert main([*command, "--num_fewshot", "2"]) == 0
    assert [(name, shots) for name, shots, *_ in fake[3:]] == [
        ("arc_easy", 2),
        ("hellaswag", 2),
        ("winogrande", 2),
    ]


def test_the_papers_preset_pools_tasks_by_their_questions(fake, model_dir, tmp_path, capsys):
    assert main(["lm_eval", str(model_dir), "--preset", "acl2024", "--output", str(tmp_path)]) == 0
    assert {shots for _, shots, *_ in fake} == {0}
    pooled = read_json(tmp_path / "pooled.json")
    assert pooled["ai2_arc"]["value"] == pytest.approx((30 * 30 / 40 + 10 * 10 / 40) / 40)
    assert pooled["ai2_arc"]["n"] == 40
    assert pooled["truthfulqa"]["stderr"] is None
    assert "ai2_arc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "There is no task to run"), (["--preset", "acl"], "There is no preset 'acl'. There are: acl2024.")],
)
def test_nothing_to_run_is_refused(fake, model_dir, capsys, options, said):
    assert main(["lm_eval", str(model_dir), *options]) == 2
    assert said in capsys.readouterr().err


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""


@pytest.mark.slow
def test_the_real_harness_runs_local_tasks_without_a_hub(model_dir, tmp_path, capsys, monkeypatch):
    """Its log-likelihoods are those of the model: the choice it takes is the likelier one by a plain forward."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    tasks, data = tmp_path / "tasks", tmp_path / "rows.jsonl"
    tasks.mkdir()
    rows = [{"question": f"Pick {i}:", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = TASK.format(
        name="my_choice", data=data, kind="multiple_choice", metric="acc", more='doc_to_choice: "{{choices}}"'
    )
    write = TASK.format(
        name="my_words", data=data, kind="generate_until", metric="exact_match",
        more='generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}',
    )  # fmt: skip
    (tasks / "my_choice.yaml").write_text(choice)
    (tasks / "my_words.yaml").write_text(write)
    other = choice.replace("task: my_choice", "task: my_other").replace("{{question}}", "Again, {{question}}")
    (tasks / "my_other.yaml").write_text(other)
    group = "group: my_group\ntask: [my_choice, my_other]\n"
    group += "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    (tasks / "_my_group.yaml").write_text(group)
    command = ["lm_eval", str(model_dir), "--include_path", str(tasks), "--output", str(tmp_path / "out")]
    assert main([*command, "--tasks", "my_choice,my_words,my_group"]) == 0
    grouped = read_json(tmp_path / "out" / "my_group.json")
    parts = [read_json(tmp_path / "out" / f"{name}.json")["metrics"]["acc,none"] for name in ("my_choice", "my_other")]
    assert (grouped["n"], grouped["metrics"]["acc,none"]) == (10, pytest.approx(sum(parts) / 2))
    found = read_json(tmp_path / "out" / "my_choice.json")
    assert (found["n"], found["version"]) == (5, 3.0)
    samples = read_jsonl(tmp_path / "out" / "my_choice.samples.jsonl")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    num_right = 0
    for row in rows:
        context = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        scores = []
        for text in row["choices"]:
            ids = torch.tensor([context + tokenizer(f" {text}", add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logprobs = model(ids).logits.log_softmax(-1)[0]
            scores.append(sum(float(logprobs[p - 1, ids[0, p]]) for p in range(len(context), ids.shape[1])))
        num_right += max(range(3), key=scores.__getitem__) == row["answer"]
    assert found["metrics"]["acc,none"] == num_right / 5
    assert [sample["acc"] for sample in samples].count(1.0) == num_right
    assert read_json(tmp_path / "out" / "my_words.json")["n"] == 5
    assert "my_choice" in capsys.readouterr().out
    assert main([*command, "--tasks", "my_chioce"]) == 2
    assert "Did you mean 'my_choice'?" in capsys.readouterr().err


@pytest.mark.slow
def test_data_that_cannot_be_had_is_told_with_the_way_out(model_dir, tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "tasks").mkdir()
    task = TASK.format(name="gone", data=tmp_path / "none.jsonl", kind="multiple_choice", metric="acc", more="")
    (Path(tmp_path) / "tasks" / "gone.yaml").write_text(task)
    command = ["lm_eval", str(model_dir), "--include_path", str(tmp_path / "tasks"), "--output", str(tmp_path / "out")]
    assert main([*command, "--tasks", "gone"]) == 2
    assert "--include_path DIR" in capsys.readouterr().err
