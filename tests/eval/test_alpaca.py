from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.eval.alpaca import generator_of, pair_up, read_outputs, to_outputs


def write(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries))
    return path


def entries(*instructions: str, output: str = "yes") -> list[dict[str, str]]:
    return [{"instruction": text, "output": f"{output} {text}", "generator": "mine"} for text in instructions]


def test_the_format_is_alpaca_evals():
    records = [{"prompt": "Say hi.", "completion": "hi", "example_id": "a"}]
    assert to_outputs(records, "my-model", ["koala"]) == [
        {"instruction": "Say hi.", "output": "hi", "generator": "my-model", "dataset": "koala"}
    ]


def test_answers_to_the_same_instructions_are_paired_in_order(tmp_path):
    first, second = (
        write(tmp_path / "a.json", entries("p", "q")),
        write(tmp_path / "b.json", entries("p", "q", output="no")),
    )
    pairs = pair_up(first, second)
    assert [(p.index, p.instruction, p.first, p.second) for p in pairs] == [
        (0, "p", "yes p", "no p"),
        (1, "q", "yes q", "no q"),
    ]
    assert generator_of(read_outputs(first), first) == "mine"


def test_the_first_instruction_that_differs_is_named(tmp_path):
    first, second = (
        write(tmp_path / "a.json", entries("p", "q", "r")),
        write(tmp_path / "b.json", entries("p", "x", "y")),
    )
    with pytest.raises(DataError, match=r"Entry 2 of .*a\.json answers 'q', that of .*b\.json 'x'"):
        pair_up(first, second)


def test_a_file_that_goes_on_longer_is_refused(tmp_path):
    first, second = write(tmp_path / "a.json", entries("p")), write(tmp_path / "b.json", entries("p", "q"))
    with pytest.raises(DataError, match=r"b\.json has 2 answers, .*a\.json 1: entry 2 stands in the first alone"):
        pair_up(first, second)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a list of answers"),
        ('{"instruction": "a"}', "not a list of answers"),
        ('[{"instruction": "a"}]', "entry 1: 'output' is missing or no text"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": 3, "output": "b"}]', "entry 2: 'instruction'"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_entry(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_outputs(path)


def test_a_file_that_is_not_there_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(DataError, match="sdft helpfulness export"):
        read_outputs(tmp_path / "none.json")
