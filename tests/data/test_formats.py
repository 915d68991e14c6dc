"""Rows as people have them: the common formats, told by their columns; several files, compressed; all turns."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import DataConfig
from onpolicy_sdft.data.files import file_rows
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.fitting.held_out import hold_back
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.tasks.free_form import FreeForm

ASKED, SAID = "What is 2 + 2?", "It is 4."
USER, ANSWER = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
SYSTEM = {"role": "system", "content": "Be brief."}
PLAIN = {"prompt": ASKED, "response": SAID}
TALK = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER, ANSWER]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **options: Any) -> list[tuple[list[tuple[str, str]], str]]:
    found = load_demonstrations(DataConfig(path=str(path), **options), FreeForm()).demonstrations
    return [([(turn.role, turn.content) for turn in row.turns], row.response) for row in found]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PLAIN, ""),
        ({"prompt": ASKED, "completion": SAID}, "prompt and completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt and completion"),
        ({"prompt": [USER], "completion": SAID}, "prompt and completion"),
        ({"prompt": ASKED, "completion": [ANSWER]}, "prompt and completion"),
        ({"prompt": [USER], "response": SAID}, ""),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"prompt": ASKED, "prompt_id": "7", "messages": [USER, ANSWER]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, ANSWER]}, "messages"),
        ({"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]}, "ShareGPT"),
        ({"conversations": [USER, ANSWER]}, "ShareGPT"),
        ({"instruction": ASKED, "input": "", "output": SAID}, "Alpaca"),
        ({"instruction": ASKED, "output": SAID}, "Alpaca"),
        ({"instruction": "What is", "input": "2 + 2?", "output": SAID}, "Alpaca"),
    ],
)
def test_a_format_is_told_by_its_columns_and_said(tmp_path, logged, row, said):
    asked = "What is\n\n2 + 2?" if row.get("input") else ASKED
    assert read(write(tmp_path / "rows.jsonl", [row])) == [([("user", asked)], SAID)]
    assert any(f"rows are read as {said}" in line or said in line for line in logged) == bool(said)


def test_what_is_no_part_of_the_format_stays_a_field(tmp_path):
    row = {"instruction": "q", "input": "i", "output": "a", "level": 3}
    path = write(tmp_path / "rows.jsonl", [row])
    assert load_demonstrations(DataConfig(path=str(path)), FreeForm()).demonstrations[0].fields == {"level": 3}


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ({**PLAIN, "completion": "5"}, "--data.response_column completion"),
        ({**PLAIN, "messages": [USER, ANSWER]}, "--data.messages_column messages"),
        ({"instruction": "q", "output": "a", "conversations": [USER, ANSWER]}, "--data.input_column input"),
    ],
)
def test_columns_of_two_formats_are_refused_until_one_is_named(tmp_path, row, option):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=f"several formats.*{option}"):
        read(path)
    name, _, value = option.removeprefix("--data.").partition(" ")
    if name != "input_column":
        assert read(path, **{name: value})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "narrator", "value": "x"}, {"from": "gpt", "value": "y"}]}, "'from' and 'value'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER]},
            "message 0 has a content part of type 'image'",
        ),
        ({"prompt": [USER], "completion": [USER]}, "--data.messages_column completion"),
        ({"messages": [USER, ANSWER, ANSWER]}, "follows a turn of the assistant"),
        ({"messages": [USER, {**ANSWER, "train": False}]}, "train false"),
        ({"messages": [USER, {**ANSWER, "loss": False}]}, "loss false"),
        ({"messages": [USER, ANSWER], "label": False}, "'label' is false"),
        ({"prompt": ASKED, "completion": SAID, "kto_tag": False}, "'kto_tag' is false"),
        ({**PLAIN, "image": "1.png"}, "'image' holds what a text does not show"),
        ({"conversations": [USER, ANSWER], "images": ["1.png"]}, "'images' holds"),
        ({"messages": [USER, ANSWER], "system_prompt": "Be brief."}, "--data.system_column system_prompt"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "--data.messages_column chosen"),
        ({"question": "q", "answer": "a"}, "--data.prompt_column question --data.response_column answer"),
        ({"instruction": "q", "context": "c", "response": "a"}, "instruction --data.input_column context"),
        ({"text": "User: q"}, "write it as messages"),
        ({"prompt": "q", "completion": None}, "'completion' is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "4"}]}]}, "of the role tool"),
        ({"messages": [USER, ANSWER], "tools": [{"name": "f", "input_schema": {}}]}, "name it parameters"),
        ({"prompt": [USER], "completion": [{**ANSWER, "tool_calls": [1]}]}, "a call needs the name"),
        ({"prompt": [USER], "completion": [ANSWER], "tools": [1]}, "not a list of JSON schemas"),
        ({"instruction": "q", "input": 5, "output": "a"}, "'input' is not a string"),
    ],
)
def test_a_row_that_its_format_does_not_allow_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        read(write(tmp_path / "rows.jsonl", [row]))


def test_every_answer_of_a_conversation_is_a_demonstration(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": TALK}])
    first, second = [("system", "Be brief."), ("user", "Hi")], [("assistant", "Hello"), ("user", ASKED)]
    assert read(path) == [([*first, *second], SAID)]
    assert read(path, turns="all") == [(first, "Hello"), ([*first, *second], SAID)]
    found = load_demonstrations(DataConfig(path=str(path), turns="all"), FreeForm()).demonstrations
    alone = load_demonstrations(DataConfig(path=str(path)), FreeForm()).demonstrations[0]
    assert [row.example_id for row in found] == [f"{alone.example_id}.1", f"{alone.example_id}.2"]


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        ([USER, {**ANSWER, "weight": 0}, USER, ANSWER], [SAID]),
        ([USER, ANSWER, USER, {**ANSWER, "weight": 0}], [SAID]),
        ([{"role": "assistant", "content": "Welcome"}, USER, ANSWER], [SAID]),  # a greeting answers nobody
        (
            [USER, {"role": "assistant", "content": "Let me see"}, {"role": "tool", "content": "4"}, ANSWER],
            ["Let me see", SAID],
        ),
    ],
)
def test_answers_of_weight_0_and_greetings_are_not_learned(tmp_path, messages, answers):
    path = write(tmp_path / "rows.jsonl", [{"messages": messages}])
    assert [answer for _, answer in read(path, turns="all")] == answers


def test_a_completion_of_several_turns_is_learned_behind_its_prompt_only(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": TALK[:4], "completion": [ANSWER, USER, ANSWER]}])
    assert [len(turns) for turns, _ in read(path, turns="all")] == [4, 6]


def test_an_empty_turn_is_named_whichever_it_is(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [USER, {**ANSWER, "content": " "}, USER, ANSWER]}])
    assert read(path)
    with pytest.raises(DataError, match="message 1, an answer, is empty"):
        read(path, turns="all")


def test_a_conversation_is_held_back_whole(tmp_path):
    talks = [
        {
            "messages": [
                message
                for turn in range(4)
                for message in (
                    {"role": "user", "content": f"{talk} {turn}?"},
                    {"role": "assistant", "content": f"{turn}"},
                )
            ]
        }
        for talk in range(60)
    ]
    path = write(tmp_path / "rows.jsonl", talks)
    config = load_config(**{"data.path": str(path), "data.turns": "all", "task.name": "exact", "gate.rows": 10})
    rows = load_demonstrations(config.data, Exact())
    left, held = hold_back(config, Exact(), rows)
    assert len(held) == 8  # whole conversations of four, and no more than ten rows
    assert not {row.conversation for row in held} & {row.conversation for row in left.demonstrations}


def test_files_of_a_folder_and_of_a_pattern_are_read_in_order_of_their_names(tmp_path, logged):
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in (2, 1, 10):
        table = pyarrow.Table.from_pylist([{"prompt": f"q{number}", "response": "a"}])
        pyarrow.parquet.write_table(table, folder / f"part-{number:02d}.parquet")
    write(folder / "more.jsonl", [{"prompt": "last", "response": "a"}])
    (folder / "README.md").write_text("about")
    (folder / ".hidden.jsonl").write_text("no json")
    assert [turns[-1][1] for turns, _ in read(folder)] == ["last", "q1", "q2", "q10"]
    assert any("not read in" in line and "README.md" in line for line in logged)
    assert [turns[-1][1] for turns, _ in read(folder / "part-*.parquet")] == ["q1", "q2", "q10"]
    assert len(read(tmp_path / "**" / "part-*.parquet")) == 3
    write(folder / "zz.jsonl", [PLAIN, {"prompt": "", "response": "a"}])
    with pytest.raises(DataError, match=r"zz.jsonl, row 2: column 'prompt' is empty"):
        read(folder)
    assert load_demonstrations(DataConfig(path=str(folder), limit=2), FreeForm()).demonstrations[1].prompt == "q1"


def test_a_folder_with_parts_for_training_and_for_tests_is_refused(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        write(tmp_path / name, [PLAIN])
    with pytest.raises(DataError, match=r"files of test and train.*train\*"):
        read(tmp_path)
    assert len(read(tmp_path / "train*")) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("data.jsonl", "test.jsonl"), "other rows and test"),
        (("trainset.jsonl", "testset.jsonl"), "test and train"),
        (("dev.jsonl", "test.jsonl"), "test and validation"),
        (("rows.jsonl", "rows.jsonl.gz"), "twice, compressed and not"),
        (("train.jsonl", "more.jsonl"), ""),
        (("train_test_split.jsonl", "more.jsonl"), ""),
    ],
)
def test_files_that_do_not_belong_together_are_not_read_as_one(tmp_path, names, message):
    for name in names:
        path = tmp_path / name
        line = f"{json.dumps(PLAIN)}\n".encode()
        path.write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    if message:
        for place in (tmp_path, tmp_path / "*.jsonl*"):
            with pytest.raises(DataError, match=message):
                read(place)
    else:
        assert len(read(tmp_path)) == 2


def test_line_ends_of_old_spreadsheets_are_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,response\rq1,a1\rq2,a2\r")
    assert [answer for _, answer in read(path)] == ["a1", "a2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q", "input": "", "output": "a", "system": "Be brief."}, "'system' beside"),
        ({"instruction": "q", "output": "a", "history": [["x", "y"]]}, "'history' beside"),
        ({"conversations": [USER, ANSWER], "system": "Be brief."}, "--data.system_column system"),
    ],
)
def test_what_would_change_the_prompt_is_not_dropped(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=message):
        read(path)
    if "system" in row:
        assert read(path, system_column="system")[0][0][0] == ("system", "Be brief.")


def test_an_input_that_no_option_reads_is_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"instruction": "q", "input": "i", "output": "a"}])
    found = load_demonstrations(
        DataConfig(path=str(path), prompt_column="instruction", response_column="output"), FreeForm()
    )
    assert found.unread == {"the column 'input' (--data.input_column input reads it)": 1}


def test_columns_of_a_prompt_that_named_columns_leave_out_are_said(tmp_path):
    row = {"question": "q", "answer": "a", "system_prompt": "s", "history": [1], "tools": [{"name": "f"}], "level": 1}
    path = write(tmp_path / "rows.jsonl", [row])
    found = load_demonstrations(
        DataConfig(path=str(path), prompt_column="question", response_column="answer"), FreeForm()
    )
    assert set(found.unread) == {f"the column {name!r}" for name in ("system_prompt", "history", "tools")}


def test_an_input_column_that_is_not_there_is_an_error_and_a_blank_one_none(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"instruction": "q", "context": " ", "output": "a"}])
    named = {"prompt_column": "instruction", "response_column": "output"}
    with pytest.raises(DataError, match=r"row 1: no column 'contex' \(data\.input_column\)"):
        read(path, **named, input_column="contex")
    assert read(path, **named, input_column="context") == [([("user", "q")], "a")]


def test_the_roles_of_other_interfaces_are_read(tmp_path):
    messages = [
        {"role": "developer", "content": "Be brief."}, {"role": "human", "content": ASKED},
        {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}},
        {"role": "function", "name": "add", "content": "4"}, {"role": "model", "content": SAID},
    ]  # fmt: skip
    ((turns, response),) = read(write(tmp_path / "rows.jsonl", [{"messages": messages}]))
    assert ([role for role, _ in turns], response) == (["system", "user", "assistant", "tool"], SAID)


def test_messages_may_be_json_text_as_in_tables(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": json.dumps([USER, ANSWER])}])
    assert read(path) == [([("user", ASKED)], SAID)]


def test_an_empty_system_message_is_none(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": "system", "content": ""}, USER, ANSWER]}])
    assert read(path, system="Be brief.") == [([("system", "Be brief."), ("user", ASKED)], SAID)]


def test_tools_that_a_system_message_only_mentions_are_written(tmp_path):
    tools = [{"name": "add", "parameters": {}}]
    for said, roles in (('Use "add".', ["tools", "system", "user"]), ('{"name": "add"}', ["system", "user"])):
        messages = [{"role": "system", "content": said}, USER, ANSWER]
        ((turns, _),) = read(write(tmp_path / "rows.jsonl", [{"messages": messages, "tools": tools}]))
        assert [role for role, _ in turns] == roles


def test_named_columns_of_calls_are_read_as_calls(tmp_path):
    row = {
        "query": ASKED, "tools": '[{"name": "add", "parameters": {}}]', "answers": '[{"name": "add", "arguments": {}}]',
        "messages": [USER, ANSWER],
    }  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [row])
    found = load_demonstrations(
        DataConfig(path=str(path), prompt_column="query", response_column="answers"), FreeForm()
    )
    (demonstration,) = found.demonstrations
    assert demonstration.answer is not None
    assert [turn.role for turn in demonstration.turns] == ["tools", "user"]


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    line = json.dumps(PLAIN)
    (tmp_path / "a.jsonl").write_text(f"{line}\r\n\r\n \n")
    (tmp_path / "b.csv").write_text(f"prompt,response\n{ASKED},{SAID}\n\n\n")
    for name in ("a.jsonl", "b.csv"):
        assert read(tmp_path / name) == [([("user", ASKED)], SAID)]
    (tmp_path / "c.csv").write_text("prompt,response\n\nq,a\n")
    with pytest.raises(DataError, match="row 1: an empty line"):
        read(tmp_path / "c.csv")


def test_a_data_set_that_was_saved_to_disk_is_read(tmp_path):
    rows = datasets.Dataset.from_list([PLAIN, PLAIN])
    rows.save_to_disk(tmp_path / "rows", num_shards=2)
    assert read(tmp_path / "rows") == [([("user", ASKED)], SAID)] * 2
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "parts")
    with pytest.raises(DataError, match=r"Files that can be read stand in .*parts/test, .*parts/train"):
        read(tmp_path / "parts")


@pytest.mark.parametrize("pattern", ["data/*/part*", "data/**/*.jsonl"])
def test_folders_of_parts_for_training_and_tests_are_refused(tmp_path, pattern):
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        write(tmp_path / "data" / part / "part-0.jsonl", [PLAIN])
    with pytest.raises(DataError, match="files of test and train"):
        read(tmp_path / pattern)


def test_one_object_in_place_of_an_array_is_named_with_its_keys(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"train": [PLAIN], "test": []}))
    with pytest.raises(DataError, match=r"found dict with the keys 'train', 'test'\. Fix: "):
        read(tmp_path / "rows.json")


def test_a_bad_first_row_does_not_settle_the_format(tmp_path):
    rows = [{"prompt": "q1", "completion": None}, {"prompt": "q2", "completion": "a2"}]
    path = write(tmp_path / "rows.jsonl", rows)
    assert read(path, on_bad_row="skip") == [([("user", "q2")], "a2")]
    with pytest.raises(DataError, match="row 1"):
        read(path)


@pytest.mark.parametrize(("sizes", "held"), [((100,), 0), ((200, 200), 0), ((3,) * 3 + (1,) * 100, 10)])
def test_no_more_is_held_back_than_was_asked_for(tmp_path, sizes, held):
    talks = [
        {"messages": [m for turn in range(size) for m in (
            {"role": "user", "content": f"{talk} {turn}?"}, {"role": "assistant", "content": f"{turn}"},
        )]}
        for talk, size in enumerate(sizes)
    ]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", talks)
    config = load_config(**{"data.path": str(path), "data.turns": "all", "task.name": "exact", "gate.rows": 32})
    left, found = hold_back(config, Exact(), load_demonstrations(config.data, Exact()))
    assert len(found) == held or (held and held - 2 <= len(found) <= held)
    assert len(left.demonstrations) + len(found) == sum(sizes)


@pytest.mark.parametrize("name", ["none.jsonl", "none-*.jsonl", "empty"])
def test_a_path_without_files_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not a file, a folder with files"):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_compressed_files_are_read_as_others_are(tmp_path, ending, compression):
    plain = tmp_path / f"rows{ending}"
    if ending == ".csv":
        plain.write_text('prompt,response\n"a, b",c\n', encoding="utf-8-sig")
    else:
        plain.write_text(json.dumps({"prompt": "a, b", "response": "c"}) if ending == ".jsonl" else json.dumps([PLAIN]))
    packed = tmp_path / f"packed{ending}.{compression}"
    with pyarrow.CompressedOutputStream(str(packed), {"gz": "gzip", "zst": "zstd"}[compression]) as file:
        file.write(plain.read_bytes())
    assert read(packed) == read(plain)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"not readable as (gzip|zstd)"):
        read(packed)
    packed.write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"not readable as (gzip|zstd)"):
        read(packed)


def test_gzip_of_another_program_is_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps({"prompt": f"q{number}", "response": "a"}) + "\n" for number in range(5000)))
    assert len(read(path)) == 5000


@pytest.mark.parametrize(("delimiter", "said"), [(";", "semicolons"), ("\t", "tabs"), (",", "")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_spreadsheet_says_what_stands_between_its_cells(tmp_path, logged, delimiter, said, encoding):
    path = tmp_path / "rows.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(
            [["prompt", "response", "note, and more"], ["a; b, c\td", "é\n2", "x"], ["q", "007", ""]]
        )
    assert read(path, prompt_column="prompt") == [([("user", "a; b, c\td")], "é\n2"), ([("user", "q")], "007")]
    assert any("stand between the cells" in line for line in logged) == bool(said)
    if delimiter == "\t":
        assert read(path.rename(tmp_path / "rows.tsv"))


def test_a_first_line_that_can_be_read_in_two_ways_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt;response,note\na;b,c\nd;e,f\n")
    with pytest.raises(DataError, match="has commas and semicolons"):
        read(path)
    path.write_text("prompt\tresponse\na\tb\n", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16.*CSV UTF-8"):
        read(path)


def test_a_hub_set_is_streamed_where_its_options_say_so(tmp_path):
    write(tmp_path / "rows.jsonl", [PLAIN, PLAIN])
    files = {"data_files": str(tmp_path / "rows.jsonl"), "streaming": True}
    found = load_demonstrations(DataConfig(name="json", options=files, limit=1), FreeForm())
    assert [row.response for row in found.demonstrations] == [SAID]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json", ".parquet"])
def test_a_file_that_another_program_writes_to_meanwhile_is_refused(ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PLAIN] * 3), path)
    elif ending == ".csv":
        path.write_text("prompt,response\n" + f"{ASKED},{SAID}\n" * 3)
    elif ending == ".json":
        path.write_text(json.dumps([PLAIN] * 3))
    else:
        write(path, [PLAIN] * 3)
    rows = file_rows(path)
    next(rows)
    with path.open("ab") as more:
        more.write(b"\n")
    with pytest.raises(DataError, match=r"was changed while it was read .* Fix: "):
        list(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"Prompt": ASKED, "response": SAID},
            r"no column 'prompt'.*It has 'Prompt'. Fix: name it 'prompt', or --data.pro",
        ),
        ({"prompt": ASKED, " response": SAID}, r"no column 'response'.*It has ' response'. Fix: name it 'response'"),
        ({"prompt": ASKED, "RESPONSE ": SAID}, r"It has 'RESPONSE '. Fix: name it 'response'"),
        ({"messages": [{"role": "User", "content": ASKED}, ANSWER]}, r"Fix: write 'user' for 'User'"),
        ({"messages": [USER, {"role": " assistant", "content": SAID}]}, r"Fix: write 'assistant' for ' assistant'"),
        ({"conversations": [{"from": "Human", "value": ASKED}, ANSWER]}, r"Fix: write 'human' for 'Human'"),
        ({"prompt": ASKED, "response": "\u200b"}, r"column 'response' is empty: '\\u200b' shows nothing"),
        ({"prompt": "\u2060\ufeff", "response": SAID}, r"column 'prompt' is empty"),
        ({"prompt": ASKED, "response": " \u3164\u2800 "}, r"column 'response' is empty"),
        ({"messages": [USER, {"role": "assistant", "content": "\u200b"}]}, r"the last assistant turn is empty"),
        ({"messages": [{"role": "user", "content": "\u200b"}, ANSWER]}, r"the last user turn is empty"),
    ],
)
def test_a_row_that_is_nearly_right_is_refused_with_what_it_lacks(row, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize("text", ["\u200bfour", "\U0001f468\u200d\U0001f469", "\u00ad4"])
def test_a_text_that_shows_something_is_taken(text, tmp_path):
    assert read(write(tmp_path / "rows.jsonl", [{"prompt": ASKED, "response": text}]))[0][1] == text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_json_in_another_unicode_is_named(encoding, ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    path.write_text(json.dumps(PLAIN if ending == ".jsonl" else [PLAIN]), encoding=encoding)
    for options in ({}, {"on_bad_row": "skip"}):
        with pytest.raises(
            DataError, match=rf"rows{ending} is {encoding[:6].upper()}, not UTF-8. Fix: save it as UTF-8"
        ):
            read(path, **options)
