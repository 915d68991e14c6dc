"""No verb overwrites a file that sdft did not write: it is refused by name, and stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny import questions, write_run

from onpolicy_sdft.cli.main import VERBS, main

THEIRS = "This is mine.\n"
#: Verb -> where it writes, as typed, and a file of that place that it would overwrite.
OUTPUTS: dict[str, tuple[list[str], str]] = {
    "init": (["--data.path", "{rows}", "--output", "{out}/sdft.yaml"], "sdft.yaml"),
    "configs": (["copy", "configs/online/gsm8k.yaml", "--output", "{out}"], "configs/online/gsm8k.yaml"),
    "train": (["--config", "{config}", "--train.output_dir", "{out}"], "config.yaml"),
    "distill": (["--config", "{config}", "--distill.output_dir", "{out}"], "summary.json"),
    "continual": (["--config", "{sequence}", "--output_dir", "{out}"], "sequence.yaml"),
    "compare": (["--config", "{compare}", "--output_dir", "{out}"], "compare.yaml"),
    "sweep": (["--config", "{sweep}", "--output_dir", "{out}"], "table.csv"),
    "export": (["{run}", "--output", "{out}"], "notes.txt"),
    "report": (["{run}", "--output", "{out}/page.html"], "page.html"),
    "shift": (["{run}", "--output", "{out}", "--num_prompts", "2"], "records.jsonl"),
    "helpfulness export": (["{model}", "--output", "{out}/answers.json", "--num_prompts", "1"], "answers.json"),
    "helpfulness judge": (["{answers}", "{answers}", "--judge", "local:{model}", "--output", "{out}"], "judge.json"),
    "eval": (["{run}", "--config", "{sets}", "--output", "{out}"], "eval/summary.json"),
    "lm_eval": (["{model}", "--tasks", "arc_easy", "--output", "{out}"], "summary.json"),
}
WRITE_NOTHING = {"probe", "plan", "chat", "models", "doctor", "completion"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("outputs")
    given = {
        "rollout.max_new_tokens": 4, "train.max_steps": 1, "eval.kl_prompts": 0, "train.output_dir": folder / "run",
        "train.targets": "demonstrations",
    }  # fmt: skip
    config = write_run(folder, model_dir, **given)
    assert main(["train", "--config", str(config)]) == 0
    rows = {"path": str(folder / "rows.jsonl")}
    stages = [
        {"label": name, "data": rows, "task": {"name": "exact"}, "test": rows, "validation": rows} for name in "ab"
    ]
    files = {
        "sets": {"eval": {"sets": [questions(folder)]}},
        "sequence": {"base": [str(config)], "stages": stages},
        "compare": {"sequence": [str(folder / "sequence.yaml")], "methods": {"m": {}}, "lrs": [0.1], "max_steps": 1},
        "sweep": {"base": [str(config)], "axes": {"optim.lr": [0.1]}},
    }
    for name, value in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value))
    answers = folder / "answers.json"
    answers.write_text(json.dumps([{"instruction": "q", "output": "a", "generator": "g", "dataset": "d"}]))
    named = {name: str(folder / f"{name}.yaml") for name in (*files, "config")}
    return {**named, "rows": rows["path"], "run": str(folder / "run"), "model": str(model_dir), "answers": str(answers)}


@pytest.mark.parametrize("verb", OUTPUTS)
@pytest.mark.few(6)
def test_a_file_that_sdft_did_not_write_is_refused_and_stays(verb, places, tmp_path, capsys, monkeypatch):
    if verb == "lm_eval":
        pytest.importorskip("lm_eval")
    monkeypatch.setattr("onpolicy_sdft.eval.shift.load_embedder", lambda *_: None)  # its library may not be here
    arguments, name = OUTPUTS[verb]
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text(THEIRS)
    typed = [argument.format(out=tmp_path / "out", **places) for argument in arguments]
    assert main([*verb.split(), *typed]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert name.rpartition("/")[2] in said or str(theirs.parent) in said
    assert theirs.read_text() == THEIRS


def test_every_verb_is_tried_or_writes_nothing():
    assert {verb.split()[0] for verb in OUTPUTS} | WRITE_NOTHING == set(VERBS)
