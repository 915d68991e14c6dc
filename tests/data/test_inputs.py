"""What a run reads, and how a changed file is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import questions, say, write_run

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.data.inputs import changed_inputs, input_digests, input_files
from onpolicy_sdft.errors import SdftError


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(66 << 20))
    (tmp_path / "held.jsonl").write_text("{}")
    (tmp_path / "checks.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "own.jinja").write_text("{{ question }}{{ demonstration }}")
    task = {"name": f"{tmp_path / 'checks.py'}:check"}
    sets = [questions(tmp_path, data={"path": str(tmp_path / "held.jsonl")}, task=task)]
    return write_run(
        tmp_path, tmp_path / "model", say("one"),
        **{"eval.sets": sets, "task.name": task["name"], "context.template": tmp_path / "own.jinja"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "option"),
    [
        ("rows.jsonl", "data.path"),
        ("held.jsonl", "eval.sets task: data.path"),
        ("helper.py", "task.name"),
        ("own.jinja", "context.template"),
        ("model/model.safetensors", "model.name"),
    ],
)
def test_every_file_that_a_run_reads_tells_when_it_has_changed(asked, tmp_path, file, option):
    config = load_config(asked)
    before, path = input_digests(input_files(config)), tmp_path / file
    os.utime(path)
    assert changed_inputs(before, input_digests(input_files(config))) == []
    if path.suffix == ".safetensors":
        path.write_bytes(bytes(33 << 20) + b"\1" * (33 << 20))
    else:
        path.write_text(path.read_text() + "\n")
    assert f"{option} ({path})" in changed_inputs(before, input_digests(input_files(config)))


@pytest.mark.parametrize("file", ["rows.jsonl", "model/model.safetensors"])
def test_a_file_of_the_same_size_and_time_is_read_again(asked, tmp_path, file):
    config, path = load_config(asked), tmp_path / file
    before, facts = input_digests(input_files(config)), path.stat()
    with path.open("r+b") as stream:
        stream.write(b"\2")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (changed,) = changed_inputs(before, input_digests(input_files(config)))
    assert str(path) in changed


@pytest.mark.parametrize("file", ["rows.jsonl", "held.jsonl", "checks.py", "own.jinja"])
def test_a_file_that_is_not_there_is_named(asked, tmp_path, file):
    config = load_config(asked)
    (tmp_path / file).unlink()
    with pytest.raises(SdftError, match=file):
        input_files(config)
