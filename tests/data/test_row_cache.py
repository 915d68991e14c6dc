"""What is read from the cache is what would be made again, and whatever is read differently has another key."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import chat_toys
import pytest
import test_workers
from test_workers import MANY

from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data import row_cache
from onpolicy_sdft.data.packed_rows import PackedRows, pack, unpack
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.read_rows import ReadRow
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.row_cache import cached_rows, key_of
from onpolicy_sdft.data.teacher_prompts import Fitted, LeftOut, Shown, TeacherPrompts
from onpolicy_sdft.types import Demonstration, Turn

TOY = chat_toys.TOOL_TOYS["hermes"]
ROWS = test_workers.rows()
PARTS = ("pairs", "dropped_ids", "trimmed_ids", "bad_rows", "left_out", "left_out_bare", "digest", "notes")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cache" / "onpolicy_sdft" / "rows"


def prepared(*, uses_cache: bool, asks_teacher: bool = True) -> Prepared:
    config = ContextConfig(max_student_tokens=200, max_teacher_tokens=350, on_too_long="drop")
    renderer = Renderer(chat_toys.make(TOY, "bytes"), config)
    return prepare(ROWS, renderer, config, 0, on_bad_row="skip", uses_cache=uses_cache, asks_teacher=asks_teacher)


@pytest.mark.slow
def test_a_run_reads_from_the_cache_what_it_would_make(home, logged):
    fresh, first = prepared(uses_cache=False), prepared(uses_cache=True)
    assert not [line for line in logged if "are read from" in line]
    assert len(list(home.glob("*/rows.safetensors"))) == 1
    second = prepared(uses_cache=True)
    assert [line for line in logged if f"token ids of {MANY} rows are read from" in line]
    for part in PARTS:
        assert getattr(fresh, part) == getattr(first, part) == getattr(second, part)
    assert fresh.trimmed_ids
    assert fresh.dropped_ids
    assert fresh.bad_rows
    assert prepared(uses_cache=True, asks_teacher=False).pairs[0].teacher_ids == ()


#: Rows as there may be any.
READ: list[ReadRow | str] = [
    ReadRow((1, 2), (), LeftOut("id-0", 3, 9), "called", Shown(Fitted((7,), 1, 2), LeftOut("id-0", 4, 8))),
    "why it is bad",
    ReadRow((3,), (4, 5, 2**20), None, "", Shown(None, None, 77)),
    ReadRow((), (6,), None),
]


def look_up(home: Path, key: str = "key", read=lambda: [pack(READ[:1]), pack(READ[1:])]) -> list[ReadRow | str]:
    return [row for part in cached_rows(key, read, home) for row in unpack(part, tuple)]


def never_read() -> list[PackedRows]:
    pytest.fail("made again")


def test_rows_come_back_as_they_were(home):
    assert look_up(home) == READ
    assert look_up(home, read=never_read) == READ


def test_rows_that_are_refused_on_the_way_are_not_kept(home):
    def read():
        yield pack(READ[:2])
        pytest.fail("read on behind the row that is refused")

    first = next(cached_rows("key", read, home))
    assert list(unpack(first, tuple)) == READ[:2]
    assert not home.exists()


@pytest.mark.parametrize("damage", [lambda file: file[:-3], lambda file: file[:-1] + b"\xff", lambda file: b""])
def test_a_damaged_cache_is_said_and_made_again(home, damage, logged):
    look_up(home)
    path = home / "key" / "rows.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert look_up(home) == READ
    assert "is damaged and made again" in "\n".join(logged)
    assert look_up(home, read=never_read) == READ


def test_a_place_that_cannot_be_written_costs_the_cache_and_no_more(home, logged):
    home.parent.mkdir(parents=True)
    home.write_text("a file where the folder should be")
    assert look_up(home) == READ
    assert "token ids are not kept in" in "\n".join(logged)


def test_without_a_home_the_run_goes_on(monkeypatch, logged):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert [row for part in cached_rows("key", lambda: [pack(READ)]) for row in unpack(part, tuple)] == READ
    assert "token ids are not kept on disk (data.cache): Could not determine home directory." in "\n".join(logged)


def test_the_sets_that_were_read_last_are_kept(home):
    for number in range(row_cache._MOST_KEPT):
        look_up(home, f"{number}")
        os.utime(home / f"{number}" / "rows.safetensors", (number, number))
    look_up(home, "0")  # read once more
    look_up(home, "new")
    there = {path.parent.name for path in home.glob("*/rows.safetensors")}
    assert there == {"0", "new", *map(str, range(2, row_cache._MOST_KEPT))}


def key(
    rows: list[Demonstration] = ROWS,
    toy: chat_toys.Toy = TOY,
    tokenizer: str = "bytes",
    work: str = "",
    taught: bool = True,
    **options,
) -> str | None:
    config = ContextConfig(date="2026-11-30", **options)
    renderer = Renderer(chat_toys.make(toy, tokenizer), config)
    prompts = TeacherPrompts([], renderer, config, 0, lambda demonstration: work) if taught else None
    return key_of(rows, renderer, prompts, config, lambda demonstration: work)


def test_whatever_is_read_otherwise_has_another_key(tmp_path):
    path = tmp_path / "shown.jinja"
    path.write_text("{{ question }} {{ demonstration }}")
    call = ROWS[3].answer
    assert call is not None
    called = replace(call, extra=call.extra.replace('"type"', '"id": "1", "type"'))
    kwargs = {"student_template_kwargs": {"x": 1}, "teacher_template_kwargs": {"x": 1}}
    reading = replace(TOY, template=TOY.template + "{% set y = x %}")
    dated = chat_toys.TOYS["llama-3 with dates"]
    keys = [
        key(), key(toy=replace(TOY, template=TOY.template + " ")), key(tokenizer="byte-level pieces"), key(toy=reading),
        key(toy=reading, **kwargs), key(max_teacher_tokens=99), key(template="reference"), key(template=str(path)),
        key(taught=False), key(work="Write it down."), key([replace(ROWS[0], response="It is two."), *ROWS[1:]]),
        key([replace(ROWS[0], turns=(Turn("user", "What?"),)), *ROWS[1:]]),
        key([replace(ROWS[0], turns=(Turn("system", "Short."), *ROWS[0].turns)), *ROWS[1:]]),
        key([replace(ROWS[0], privileged="A rule."), *ROWS[1:]]), key([*ROWS[1:], ROWS[0]]),
        key([replace(ROWS[0], example_id="another"), *ROWS[1:]]),
        key([*ROWS[:3], replace(ROWS[3], answer=called), *ROWS[4:]]), key(toy=dated),
    ]  # fmt: skip
    path.write_text("{{ question }} : {{ demonstration }}")
    keys.append(key(template=str(path)))
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert key() == keys[0], "the same, read again"
    assert key([replace(each, origin="elsewhere", fields={"x": 1}) for each in ROWS]) == keys[0], "not rendered"


def test_few_rows_are_not_kept():
    assert key(ROWS[:4000]) is None
