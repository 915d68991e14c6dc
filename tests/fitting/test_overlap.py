"""Questions that are trained on are said."""

from __future__ import annotations

import json

import yaml
from tiny import questions, write_run

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.fitting.held_out import note_overlap
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Demonstration, Turn


def asked(*texts: str) -> list[Demonstration]:
    return [Demonstration(str(number), (Turn("user", text),), "x") for number, text in enumerate(texts)]


def test_questions_that_are_training_prompts_up_to_blanks_and_case_are_counted(logged):
    sets = [EvalSet(label, asked(*texts), FreeForm(), 4, False) for label, texts in
            {"test": ["say  One ", "say two", "other"], "apart": ["else"]}.items()]  # fmt: skip
    found = note_overlap(asked("Say one", "say two\n"), sets)
    assert [each.note for each in found] == ["2 of 3 questions are training prompts", ""]
    (line,) = [line for line in logged if "training prompts" in line]
    assert "2 of 3 questions are training prompts in 'test'" in line


def test_it_stands_beside_the_scores_in_summary_and_report(tmp_path, model_dir):
    run = tmp_path / "run"
    options = {
        "train.output_dir": run, "train.max_steps": 1, "rollout.max_new_tokens": 4, "eval.kl_prompts": 0,
        "train.targets": "demonstrations",
    }  # fmt: skip
    config = write_run(tmp_path, model_dir, **options)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"eval": {"sets": [questions(tmp_path)]}}))
    assert main(["train", "--config", str(config), "--config", str(tmp_path / "other.yaml")]) == 0
    summary = json.loads((run / "eval" / "summary.json").read_text())
    note = "7 of 7 questions are training prompts"
    assert [summary[stage]["sets"][0]["note"] for stage in ("before", "after")] == [note, note]
    assert f"task: {note}" in (run / "report.html").read_text()
