"""Offline SDFT through the commands a user types, on a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import write_run

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.files import read_json, read_jsonl


@pytest.fixture
def options(tmp_path, model_dir):
    given = {
        "rollout.max_new_tokens": 10, "rollout.deterministic": True, "rollout.num_slots": 3, "train.max_steps": 2,
        "train.output_dir": tmp_path / "run", "distill.output_dir": tmp_path / "distilled", "distill.batch_size": 3,
        "eval.kl_prompts": 0,
    }  # fmt: skip
    return ["--config", str(write_run(tmp_path, model_dir, **given))]


@pytest.mark.draws
def test_a_data_set_is_distilled_and_trained_on(options, tmp_path, capsys):
    assert main(["distill", *options]) == 0
    folder = tmp_path / "distilled"
    rows = read_jsonl(folder / "distilled.jsonl")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in rows if row["original"] in row["prompt"]]
    assert len(rows) == 7
    assert read_json(folder / "summary.json")["num_rows"] == 7
    assert (folder / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "manifest.json").is_file()
    shown = capsys.readouterr().out
    assert "verdict: keep" in shown
    learn = ["--train.targets", "distilled", "--train.distilled", str(folder)]
    assert main(["train", *options, *learn]) == 0
    learned = {row["prompt"]: row for row in read_jsonl(tmp_path / "run" / "rollouts.jsonl")}
    for row in rows:
        if row["prompt"] in learned:
            assert learned[row["prompt"]]["target"] == row["response"]
            assert learned[row["prompt"]]["num_tokens"] == len(row["token_ids"])


def test_a_killed_distiller_goes_on_and_writes_the_same_file(options, tmp_path, monkeypatch, model_dir, capsys):
    model = shutil.copytree(model_dir, tmp_path / "model")
    options = [*options, "--model.name", str(model)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["distill", *options, "--distill.output_dir", str(whole)]) == 0
    from onpolicy_sdft.offline import distill

    append = distill.distill.__globals__["append_jsonl"]
    written = []

    def dies(path, *records):
        append(path, *records)
        written.append(len(records))
        raise KeyboardInterrupt

    monkeypatch.setitem(distill.distill.__globals__, "append_jsonl", dies)
    assert main(["distill", *options, "--distill.output_dir", str(parts)]) == 130
    assert written == [3]
    monkeypatch.setitem(distill.distill.__globals__, "append_jsonl", append)
    assert main(["distill", *options, "--distill.output_dir", str(parts)]) == 2, "not without being asked to"
    again = [*options, "--distill.output_dir", str(parts), "--distill.resume", "auto"]
    assert main([*("distill",), *again, "--rollout.temperature", "0.5"]) == 2, "not with another distribution"
    weights = model / "model.safetensors"
    held = weights.read_bytes()
    save_file({name: weight * 2 for name, weight in load_file(weights).items()}, weights, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["distill", *again]) == 2, "not with other weights of the same name"
    assert "distilled with other settings: base weights was" in capsys.readouterr().err
    weights.write_bytes(held)
    assert main(["distill", *again]) == 0
    assert (parts / "distilled.jsonl").read_text() == (whole / "distilled.jsonl").read_text()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--rollout.num_samples", "2"], "rollout.num_samples is an option of training"),
        (["--teacher.weights", "ema"], "teacher.weights is an option of training"),
    ],
)
def test_options_of_live_rollouts_are_refused(options, capsys, extra, said):
    assert main(["distill", *options, *extra]) == 2
    assert said in capsys.readouterr().err


def test_legacy_rows_that_cannot_be_judged_are_found_before_anything_is_written(options, tmp_path, capsys):
    assert main(["distill", *options, "--distill.rules", "legacy", "--task.name", "function_call"]) == 2
    assert "example" in capsys.readouterr().err
    assert not (tmp_path / "distilled").exists()


@pytest.mark.slow
def test_rows_of_unknown_settings_are_not_gone_on_with(options, tmp_path, capsys):
    assert main(["distill", *options, "--data.limit", "3"]) == 0
    (tmp_path / "distilled" / "identity.json").unlink()
    assert main(["distill", *options, "--distill.resume", "auto"]) == 2
    assert "nothing says which settings wrote its rows" in capsys.readouterr().err


def test_a_file_of_other_data_is_refused_before_training(options, tmp_path, capsys):
    assert main(["distill", *options, "--data.limit", "5"]) == 0
    learn = ["--train.targets", "distilled", "--train.distilled", str(tmp_path / "distilled")]
    assert main(["train", *options, *learn]) == 2
    assert "2 of 7 rows" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_control_tokens_in_a_distilled_row_are_refused_by_line(options, tmp_path, capsys, tokenizer):
    assert main(["distill", *options]) == 0
    path = tmp_path / "distilled" / "distilled.jsonl"
    rows = read_jsonl(path)
    start, (end,) = tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.encode("<|im_end|>")
    ids = [*tokenizer.encode("Par"), start, *tokenizer.encode("is"), end]
    rows[2] |= {"verdict": "keep", "response": "Par<|im_start|>is", "token_ids": ids}
    rows = [row if row is rows[2] else row | {"verdict": "fallback"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn = ["train", *options, "--train.targets", "distilled", "--train.distilled", str(path)]
    assert main(learn) == 2
    said = capsys.readouterr().err
    assert f"{path}, line 3: the answer of example" in said
    assert "has the control token '<|im_start|>' inside" in said
    assert not (tmp_path / "run").exists()
    assert main([*learn, "--screening.control", "keep"]) == 0, "asked for"


def test_two_distillers_in_one_directory_are_refused(options, tmp_path, capsys):
    with claimed(tmp_path / "distilled", "distill.output_dir", "distillation"):
        assert main(["distill", *options, "--distill.resume", "auto"]) == 2
    assert "Another distillation is at work in distill.output_dir=" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "distilled").iterdir()] == [".lock"]


def test_rewrites_are_measured_as_rollouts_are_and_the_teacher_is_looked_at_first(options, tmp_path, capsys):
    rules = ["--screening.surprise", "drop", "--screening.max_surprise", "1e-6", "--probe.num_examples", "16"]
    assert main(["distill", *options, *rules]) == 0
    rows = read_jsonl(tmp_path / "distilled" / "distilled.jsonl")
    assert {(row["verdict"], row["reason"]) for row in rows} == {("drop", "surprise")}
    said = capsys.readouterr().err
    assert "probe: 7 bare answers" in said
    assert "rollouts of the teacher" in said
