"""Strict JSON, atomic files and append-only JSONL."""

import json
import math
import os

import pytest

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.runs.files import (
    append_jsonl,
    dumps_strict,
    loads_strict,
    read_json,
    read_jsonl,
    write_bytes_atomic,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def test_floats_that_are_not_finite_are_written_as_null_at_any_depth():
    value = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}]}
    assert loads_strict(dumps_strict(value)) == {"a": None, "b": [None, {"c": [None, 1.5]}]}


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_literals_that_are_not_json_are_refused_on_reading(literal, log):
    log.write_text(f'{{"a": {literal}}}\n{{"a": 1}}\n')
    with pytest.raises(RunDirectoryError, match="line 1"):
        read_jsonl(log)


def test_a_value_of_another_type_is_refused_rather_than_turned_into_text():
    with pytest.raises(TypeError):
        dumps_strict({"a": object()})


def test_text_stays_readable_and_a_lone_surrogate_survives():
    assert "naïve" in dumps_strict({"a": "naïve"})
    assert json.loads(dumps_strict({"a": "\ud800"}).encode()) == {"a": "\ud800"}


def test_line_separators_inside_a_text_do_not_split_a_record(log):
    record = {"text": "a\nb\u2028c\x85d\r\ne"}
    append_jsonl(log, record)
    assert read_jsonl(log) == [record]


def test_appended_lines_are_read_back_in_order(log):
    append_jsonl(log, {"step": 1}, {"step": 2})
    append_jsonl(log, {"step": 3})
    assert [r["step"] for r in read_jsonl(log)] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"step": 2, "te', b'{"a": "caf\xc3', b"{", b'{"a": 1}, '])
def test_one_torn_last_line_is_left_out(torn, log):
    log.write_bytes(b'{"step": 1}\n' + torn)
    assert read_jsonl(log) == [{"step": 1}]


def test_a_broken_line_before_the_last_one_is_an_error_that_names_it(log):
    log.write_bytes(b'{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(RunDirectoryError, match=r"log\.jsonl, line 2"):
        read_jsonl(log)


def test_a_broken_last_line_that_was_written_whole_is_an_error(log):
    log.write_bytes(b'{"step": 1}\n{"step": \n')
    with pytest.raises(RunDirectoryError, match="line 2"):
        read_jsonl(log)


def test_a_line_that_is_not_an_object_is_an_error(log):
    log.write_bytes(b"[1]\n{}\n")
    with pytest.raises(RunDirectoryError, match="JSON object"):
        read_jsonl(log)


def test_appending_after_a_torn_line_does_not_glue_the_new_one_to_it(log):
    log.write_bytes(b'{"step": 1}\n{"step": 2, "te')
    append_jsonl(log, {"step": 2})
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_appending_after_a_whole_line_without_newline_keeps_it(log):
    log.write_bytes(b'{"step": 1}')
    append_jsonl(log, {"step": 2})
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_appending_to_a_file_that_is_one_torn_line_starts_afresh(log):
    log.write_bytes(b'{"step"')
    append_jsonl(log, {"step": 1})
    assert log.read_bytes() == b'{"step": 1}\n'


def test_a_record_that_cannot_be_written_leaves_the_log_as_it_was(log):
    append_jsonl(log, {"step": 1})
    with pytest.raises(TypeError):
        append_jsonl(log, {"step": 2}, {"step": object()})
    assert log.read_bytes() == b'{"step": 1}\n'


def test_missing_and_empty_logs_differ(log):
    with pytest.raises(RunDirectoryError, match="does not exist"):
        read_jsonl(log)
    log.touch()
    assert read_jsonl(log) == []


@pytest.mark.parametrize("broken_call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(broken_call, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json_atomic(path, {"old": 1})

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken_call, fail)
        with pytest.raises(OSError, match="No space left"):
            write_json_atomic(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text_atomic(path, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_value_that_is_not_json_never_reaches_the_disk(tmp_path):
    path = tmp_path / "file.jsonl"
    write_jsonl_atomic(path, [{"old": 1}])
    with pytest.raises(TypeError):
        write_jsonl_atomic(path, [{"new": 1}, {"new": {1, 2}}])
    assert read_jsonl(path) == [{"old": 1}]


def test_atomic_files_are_as_readable_as_others_and_make_their_directory(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = tmp_path / "a" / "b"
    write_bytes_atomic(path, b"x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_damaged_json_is_named_with_the_way_out(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"a": ')
    with pytest.raises(RunDirectoryError, match=r"summary\.json is not valid JSON.*write it again"):
        read_json(path)
