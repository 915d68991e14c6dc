"""Errors of a disk and of memory are told from a program's own, and say what to do."""

from __future__ import annotations

import errno
import os

import pytest

from onpolicy_sdft.cli import main as cli
from onpolicy_sdft.runs.files import append_jsonl, write_json_atomic
from onpolicy_sdft.system_errors import way_on


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE])
def test_an_error_of_the_system_has_a_way_on(number):
    assert way_on(OSError(number, os.strerror(number)))
    assert way_on(RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})"))  # as safetensors has it


@pytest.mark.parametrize(
    "error", [OSError("something"), FileNotFoundError(2, "no"), ValueError("3"), RuntimeError("no")]
)
def test_other_errors_are_left_alone(error):
    assert way_on(error) is None


@pytest.mark.parametrize("write", [lambda path: append_jsonl(path, {"a": 1}), lambda path: write_json_atomic(path, {})])
def test_a_write_that_fails_names_its_file(write, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "log.jsonl"
    monkeypatch.setattr("onpolicy_sdft.runs.files._mend_tail", full)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*log\.jsonl"):
        write(path)


@pytest.mark.parametrize(("error", "code"), [(OSError(errno.ENOSPC, "No space left on device", "a/b"), 2)])
def test_the_command_says_what_to_do_in_one_line(error, code, monkeypatch, capsys):
    def fails(_):
        raise error

    monkeypatch.setattr("onpolicy_sdft.cli.doctor.run", fails)
    assert cli.main(["doctor"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a/b" in said
    assert "Fix: make room on that disk" in said


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT])
def test_a_path_that_cannot_be_used_has_a_way_on_where_the_system_names_it(number):
    assert way_on(OSError(number, os.strerror(number), "rows.jsonl/x"))
    assert way_on(RuntimeError(os.strerror(number))) is None
