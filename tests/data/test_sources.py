from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.config.schema import DataConfig
from onpolicy_sdft.data.sources import DemonstrationSet, load_demonstrations
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Turn

ROWS = [
    {"prompt": "2 + 2?", "response": "4", "level": 1},
    {"prompt": "Capital of France?", "response": "Paris", "level": 2},
]


class Worded(FreeForm):
    def ask(self, prompt: str) -> str:
        return f"Q: {prompt}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> DemonstrationSet:
    return load_demonstrations(DataConfig(path=str(path), **options), FreeForm())


def load_rows(tmp_path: Path, rows: Iterable[Mapping[str, Any]], **options: Any) -> DemonstrationSet:
    return load(write_jsonl(tmp_path / "rows.jsonl", rows), **options)


def test_json_lines_become_demonstrations_with_their_other_columns_as_fields(tmp_path):
    found = load_rows(tmp_path, ROWS)
    first = found.demonstrations[0]
    assert first.turns == (Turn("user", "2 + 2?"),)
    assert first.response == "4"
    assert first.fields == {"level": 1}
    assert found.skipped == ()
    assert len({d.example_id for d in found.demonstrations}) == 2


def test_a_json_array_gives_the_same_demonstrations_as_json_lines(tmp_path):
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(ROWS))
    assert load(array).demonstrations == load_rows(tmp_path, ROWS).demonstrations


def test_csv_cells_stay_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,response,note\n"agent, please",007,NA\n"two\nlines",1e3,\n')
    first, second = load(path).demonstrations
    assert (first.prompt, first.response, first.fields) == ("agent, please", "007", {"note": "NA"})
    assert (second.prompt, second.response, second.fields) == ("two\nlines", "1e3", {"note": ""})


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response\nq,a\n", encoding="utf-8-sig")
    assert load(path).demonstrations[0].prompt == "q"
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "response": "a"}\n', encoding="utf-8-sig")
    assert load(path).demonstrations[0].prompt == "q"


@pytest.mark.parametrize("line", ["q,a,more", "q"])
def test_a_csv_row_with_another_number_of_cells_is_named_and_never_shifted(tmp_path, line):
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,response\nq,a\n{line}\n")
    with pytest.raises(DataError, match=r"rows\.csv, row 2: \d cells under 2 columns \(line 3 of the file\)"):
        load(path)


def test_a_broken_csv_quote_names_the_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,response\n"q,a\n')
    with pytest.raises(DataError, match=r"rows\.csv, row 1: .*line 2 of the file"):
        load(path)


@pytest.mark.parametrize("bad", [b'"a" b,c\n', b"caf\xe9,c\n", b"one cell\n"])
def test_a_bad_csv_row_costs_that_row_only(tmp_path, bad):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,response\nq,a\n" + bad + b"p,b\n")
    found = load(path, on_bad_row="skip")
    assert [d.response for d in found.demonstrations] == ["a", "b"]
    assert len(found.skipped) == 1
    assert "row 2" in found.skipped[0]


def test_a_csv_cell_may_be_as_long_as_a_document(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,response\n{'q' * 300_000},a\n")
    assert len(load(path).demonstrations[0].prompt) == 300_000


def test_a_csv_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,response\nq,a,b\n")
    with pytest.raises(DataError, match=r"rows\.csv: column 'response' stands twice"):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q", "response": "a", "response": "b"}', "key 'response' stands twice"),
        ('{"prompt": "q", "response": "a", "n": ' + "1" * 5000 + "}", "not readable as JSON"),
        ('{"prompt": "q", "response": "a", "n": ' + "[" * 200_000 + "}", "not readable as JSON"),
    ],
    ids=["twice", "digits", "depth"],
)
def test_what_json_would_lose_or_die_of_is_a_bad_row(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "response": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=f"row 2: {message}"):
        load(path)


MESSAGES = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("index", "extra"),
    [
        (0, {"reasoning_content": "two and two"}),
        (0, {"thinking": "two and two"}),
        (0, {"name": "Ann"}),
        (0, {"tool_call_id": "1"}),
        (0, {"function_call": {"name": "f"}}),
        (1, {"weight": 0}),
    ],
)
def test_a_message_key_that_would_be_lost_makes_the_row_bad(tmp_path, index, extra):
    messages = [{**message, **(extra if number == index else {})} for number, message in enumerate(MESSAGES)]
    (key,) = extra
    with pytest.raises(DataError, match=f"row 1: .*{key}"):
        load_rows(tmp_path, [{"messages": messages}], messages_column="messages")


def test_what_is_not_read_of_conversations_is_counted(tmp_path):
    spoken = [{**message, "language": "en", "name": None} for message in MESSAGES]
    rows = [{"messages": spoken}, {"messages": [*MESSAGES, {"role": "user", "content": "Thanks."}]}]
    found = load_rows(tmp_path, rows, messages_column="messages")
    assert found.unread == {"the key 'language' of messages": 1, "turns after the last answer": 1}


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ({"conversation": MESSAGES}, "--data.messages_column conversation"),
        ({"question": "q", "response": "a"}, "--data.prompt_column question"),
        ({"prompt": "q", "answer": "a"}, "--data.response_column answer"),
    ],
)
def test_a_missing_column_names_the_option_that_reads_the_one_there(tmp_path, row, option):
    with pytest.raises(DataError, match=option):
        load_rows(tmp_path, [row])


def test_a_file_given_as_the_name_of_a_set_is_read(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert load_demonstrations(DataConfig(name=str(path)), FreeForm()).demonstrations == load(path).demonstrations


def test_a_parquet_file_replaced_under_its_name_and_time_is_read_anew(tmp_path):
    import os

    import datasets

    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"prompt": "q", "response": "old"}]).to_parquet(str(path))
    stat = path.stat()
    assert load(path).demonstrations[0].response == "old"
    datasets.Dataset.from_list([{"prompt": "q", "response": "new"}]).to_parquet(str(path))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(path).demonstrations[0].response == "new"


def test_a_file_read_by_a_loader_of_datasets_is_read_anew_too(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "response": "old"}])
    before = path.stat()

    def responses(**source: Any) -> list[str]:
        found = load_demonstrations(DataConfig(**source), FreeForm())
        return [each.response for each in found.demonstrations]

    sources = [{"name": "json", "options": {"data_files": str(path)}}, {"name": str(tmp_path)}]
    assert [responses(**source) for source in sources] == [["old"]] * 2
    write_jsonl(path, [{"prompt": "q", "response": "new"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [responses(**source) for source in sources] == [["new"]] * 2


def test_a_column_or_field_that_stands_twice_in_parquet_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    text = pyarrow.array(["a"])
    for names in (["prompt", "response", "response"], ["prompt", "response", "messages"]):
        twice = pyarrow.StructArray.from_arrays([text, text], names=["role", "role"])
        columns = [text, text, text if names[-1] == "response" else twice]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), path)
        with pytest.raises(DataError, match=r"rows\.parquet: .*'(response|role)' stands twice"):
            load(path)


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": [*TALK, {"role": "user", "content": "more"}]}, "weight 0"),
        ({"messages": [TALK[0], {**TALK[1], "weight": "0"}]}, "weight 0"),
        ({"messages": [TALK[0], {**TALK[1], "weight": "none"}]}, "no number"),
        ({"messages": [TALK[0], {**TALK[1], "weight": 1}], "chat_template_kwargs": {"a": 1}}, "template_kwargs"),
    ],
)
def test_what_changes_a_conversation_and_is_not_read_is_refused(tmp_path, row, what):
    with pytest.raises(DataError, match=what):
        load_rows(tmp_path, [row], messages_column="messages")


def test_a_system_column_beside_another_system_message_is_refused(tmp_path):
    row = {"messages": [{"role": "system", "content": "S"}, TALK[0], {**TALK[1], "weight": 1}], "rules": "R"}
    with pytest.raises(DataError, match="different system texts"):
        load_rows(tmp_path, [row], messages_column="messages", system_column="rules")
    found = load_rows(tmp_path, [{**row, "rules": "S"}], messages_column="messages", system_column="rules")
    assert [turn.content for turn in found.demonstrations[0].turns] == ["S", "q"]


def test_parquet_is_read_with_its_lists_of_messages(tmp_path):
    import datasets

    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"messages": messages, "level": 3}]).to_parquet(str(path))
    (found,) = load(path, messages_column="messages").demonstrations
    assert (found.prompt, found.response, dict(found.fields)) == ("hi", "hello", {"level": 3})


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"rows\.parquet: not readable as Parquet"):
        load(path)


def test_an_embedded_set_is_the_same_twice_and_uses_its_own_ids():
    config = DataConfig(name="embedded:list_functions", split="test", limit=3)
    task = load_task("python_code", {"allow_execution": True})
    first, second = load_demonstrations(config, task), load_demonstrations(config, task)
    assert first == second
    assert [d.example_id for d in first.demonstrations] == [d.fields["id"] for d in first.demonstrations]
    assert first.where == "embedded:list_functions"


def test_a_hub_set_gets_its_split_and_loader_options(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(name="someone/set", split="validation", options={"name": "main"})
    assert len(load_demonstrations(config, FreeForm()).demonstrations) == 2
    assert asked == {"path": "someone/set", "split": "validation", "name": "main"}


def test_a_hub_set_that_cannot_be_had_names_the_way_without_a_hub(monkeypatch):
    import datasets

    def load_dataset(path, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"someone/set.*no route.*--data\.path FILE"):
        load_demonstrations(DataConfig(name="someone/set"), FreeForm())


@pytest.mark.parametrize("both", [{}, {"name": "a", "path": "b"}])
def test_exactly_one_source_must_be_named(both):
    with pytest.raises(ConfigError, match=r"exactly one of eval\.sets\[0\]\.data\.name and"):
        load_demonstrations(DataConfig(**both), FreeForm(), section="eval.sets[0].data")


BAD_ROWS = {
    "missing column": ({"prompt": "q"}, r"no column 'response'; the row has \['prompt'\]"),
    "null": ({"prompt": "q", "response": None}, r"column 'response' is empty \(null\)"),
    "empty prompt": ({"prompt": "  ", "response": "a"}, "column 'prompt' is empty"),
    "empty response": ({"prompt": "q", "response": ""}, "column 'response' is empty"),
    "not a string": ({"prompt": "q", "response": 4}, "column 'response' is not a string but int: 4"),
    "half a character": ({"prompt": "q", "response": "a\ud83d"}, "column 'response' holds half a character"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_names_file_row_and_way_out(tmp_path, kind):
    row, problem = BAD_ROWS[kind]
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: {problem}.*--data\.on_bad_row skip"):
        load_rows(tmp_path, [ROWS[0], row])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "q", \n', r"not valid JSON \(.* at column \d+\)"),
        (b"[1, 2]\n", "not an object but list"),
        (b"\n{}\n", "an empty line"),
        (b"[\n", r".*must be called \.json"),
        (b'{"prompt": "\xff", "response": "a"}\n', "not UTF-8"),
    ],
)
def test_a_broken_json_line_names_file_and_row(tmp_path, line, problem):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 3: {problem}"):
        load(path)


def test_json_lines_under_the_name_of_an_array_say_so(tmp_path):
    path = write_jsonl(tmp_path / "rows.json", ROWS)
    with pytest.raises(DataError, match=r"at line 2, column 1.*must be called \.jsonl"):
        load(path)


def test_duplicate_ids_name_both_rows(tmp_path):
    rows = [{**row, "key": key} for row, key in zip(ROWS, [1, "1"], strict=True)]
    with pytest.raises(DataError, match="row 2: id '1' also stands in row 1; ids must be unique"):
        load_rows(tmp_path, rows, id_column="key")


def test_ids_come_from_the_id_column_or_differ_for_equal_rows(tmp_path):
    rows = [{**ROWS[0], "key": key} for key in ("a", "b")]
    assert [d.example_id for d in load_rows(tmp_path, rows, id_column="key").demonstrations] == ["a", "b"]
    assert len({d.example_id for d in load_rows(tmp_path, rows).demonstrations}) == 2


def test_zero_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows to learn from\."):
        load_rows(tmp_path, [])


def test_a_file_whose_rows_are_all_bad_is_refused_with_the_first_of_them(tmp_path):
    with pytest.raises(DataError, match=r"1 rows were skipped; the first: .*row 1: column 'response' is empty"):
        load_rows(tmp_path, [{"prompt": "q", "response": ""}], on_bad_row="skip")


def test_skipped_rows_are_counted_and_named(tmp_path):
    found = load_rows(tmp_path, [ROWS[0], {"prompt": "q"}, ROWS[1]], on_bad_row="skip")
    assert [d.response for d in found.demonstrations] == ["4", "Paris"]
    (line,) = found.skipped
    assert "rows.jsonl, row 2: no column 'response'" in line


def test_a_limit_takes_the_first_rows_and_does_not_read_on(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with path.open("a") as lines:
        lines.write("broken\n")
    assert [d.response for d in load(path, limit=2).demonstrations] == ["4", "Paris"]


@pytest.mark.parametrize(("name", "problem"), [("none.jsonl", "is not a file"), ("rows.txt", "unknown ending '.txt'")])
def test_a_path_that_cannot_be_read_is_named(tmp_path, name, problem):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=problem):
        load(tmp_path / name)


def test_the_last_assistant_turn_of_a_conversation_is_the_demonstration(tmp_path):
    turns = [("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    row = {"chat": [{"role": role, "content": content} for role, content in turns]}
    (found,) = load_rows(tmp_path, [row], messages_column="chat").demonstrations
    assert found.turns == tuple(Turn(*turn) for turn in turns[:4])
    assert found.response == "d"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "not a list of messages"),
        ("hello", "not a list of messages"),
        ([{"role": "user", "content": "q"}], "no assistant turn that answers a user turn"),
        ([{"role": "assistant", "content": "a"}], "no assistant turn that answers a user turn"),
        ([{"role": "bot", "content": "a"}], "message 0 needs a role out of"),
        ([{"role": "user", "content": 4}], "message 0 needs a role out of"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}], "last user turn is empty"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}], "last assistant turn is empty"),
    ],
)
def test_a_conversation_that_holds_no_demonstration_is_refused(tmp_path, messages, problem):
    with pytest.raises(DataError, match=rf"row 1: .*{problem}"):
        load_rows(tmp_path, [{"chat": messages}], messages_column="chat")


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
EMPTY_FIELDS = {
    "a content": ([{**ASKED, "content": None}, SAID], "message 0: content"),
    "an answer's content": ([ASKED, {**SAID, "content": None}], "message 1: content"),
    "a role": ([{**ASKED, "role": None}, SAID], "message 0: role"),
    "a speaker": ([{"from": None, "value": "q"}, {"from": "gpt", "value": "a"}], "message 0: from"),
    "a value": ([{"from": "human", "value": "q"}, {"from": "gpt", "value": None}], "message 1: value"),
    "a message": ([None, SAID], "message 0"),
    "a part": ([{**ASKED, "content": [{"type": "text", "text": None}]}, SAID], "message 0: text"),
}


@pytest.mark.parametrize("kind", EMPTY_FIELDS)
def test_an_empty_field_of_a_message_is_said_to_be_empty(tmp_path, kind):
    messages, field = EMPTY_FIELDS[kind]
    with pytest.raises(DataError, match=rf"row 1: {field} is empty \(null\)\. Mend the row"):
        load_rows(tmp_path, [{"messages": messages}])


def test_a_call_needs_no_content(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert '"name": "f"' in load_rows(tmp_path, [row]).demonstrations[0].response


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("good", "options"),
    [
        ({"prompt": "q", "response": "a"}, {}),
        ({"prompt": "q", "completion": "a"}, {}),
        ({"instruction": "q", "input": "", "output": "a"}, {}),
        ({"prompt": "q", "privileged_context": "a"}, {}),
        ({"messages": [ASKED, SAID]}, {}),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {}),
        ({"a": "q", "b": "a"}, {"prompt_column": "a", "response_column": "b"}),
        ({"chat": [ASKED, SAID]}, {"messages_column": "chat"}),
        ({"prompt": "q", "response": "a", "key": "1"}, {"id_column": "key"}),
    ],
    ids=lambda value: "-".join(value),
)
def test_an_empty_column_is_said_to_be_empty_in_any_row(tmp_path, good, options, place):
    import pyarrow
    import pyarrow.parquet

    for column in [name for name in good if name != "input"]:
        bad = {**good, column: None}
        table = pyarrow.Table.from_pylist([bad, good] if place == 0 else [good, bad])
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        with pytest.raises(DataError, match=rf"row {place + 1}: column '{column}' is empty \(null\)\. Mend the row"):
            load(tmp_path / "rows.parquet", **options)


def test_a_row_with_a_system_message_of_its_own_keeps_it(tmp_path):
    rows = [{**ROWS[0], "sys": "mine"}, {**ROWS[1], "sys": ""}, {**ROWS[1], "sys": None}]
    found = load_rows(tmp_path, rows, system_column="sys", system="everybody's").demonstrations
    assert [d.turns[0] for d in found] == [Turn("system", t) for t in ("mine", "everybody's", "everybody's")]


def test_a_system_column_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no column 'sys'"):
        load_rows(tmp_path, ROWS, system_column="sys")


def test_a_conversation_with_a_system_turn_is_not_given_a_second_one(tmp_path):
    turns = [("system", "first"), ("user", "a"), ("assistant", "b")]
    row = {"chat": [{"role": role, "content": content} for role, content in turns]}
    (found,) = load_rows(tmp_path, [row], messages_column="chat", system="second").demonstrations
    assert [turn.content for turn in found.turns if turn.role == "system"] == ["first"]


def test_the_task_words_the_question_unless_told_not_to(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    config = DataConfig(path=str(path))
    worded = load_demonstrations(config, Worded()).demonstrations
    plain = load_demonstrations(dataclasses.replace(config, wording=False), Worded()).demonstrations
    assert worded[0].prompt == "Q: 2 + 2?"
    assert plain[0].prompt == "2 + 2?"
    assert worded[0].example_id == plain[0].example_id


def test_a_tool_result_that_is_answered_stays_a_tool_turn(tmp_path):
    turns = [("user", "weather?"), ("assistant", "look()"), ("tool", "rain"), ("assistant", "It rains.")]
    row = {"chat": [{"role": role, "content": content} for role, content in turns]}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    config = DataConfig(path=str(path), messages_column="chat")
    (found,) = load_demonstrations(config, Worded()).demonstrations
    assert found.turns[-1] == Turn("tool", "rain")


def test_a_row_the_task_cannot_check_is_a_bad_row(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "response": "no number here"}])
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: .*on_bad_row skip"):
        load_demonstrations(DataConfig(path=str(path)), load_task("math_word_problem", {}))


def test_the_fingerprint_changes_with_prompt_response_order_and_number_of_rows(tmp_path):
    changed = [
        ROWS,
        [{**ROWS[0], "prompt": "2+2?"}, ROWS[1]],
        [{**ROWS[0], "response": "four"}, ROWS[1]],
        ROWS[::-1],
        ROWS[:1],
    ]
    digests = [load_rows(tmp_path, rows).fingerprint for rows in changed]
    assert len(set(digests)) == len(changed)
    assert load_rows(tmp_path, ROWS).fingerprint == digests[0]
