"""The APIs behind ``function_calls`` and the questions people ask of them: ``catalogues/function_calls.jsonl``.

Every API has eight questions; of an API seen in training the last two are held out, one for
validation and one for test. A slot ``{name}`` takes a value of the parameter ``name``; a value
``(words, value)`` appears as words in the question and as the value in the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.data.generators.common import read_catalogue


@dataclass(frozen=True)
class Parameter:
    """One parameter of an API and the values that questions draw on."""

    type: str
    description: str
    values: tuple[Any, ...]  # empty when only fixed arguments use it
    required: bool


@dataclass(frozen=True)
class Question:
    """One way to ask for the API."""

    text: str
    fixed: Mapping[str, Any]  # arguments that the sentence implies without a slot


@dataclass(frozen=True)
class Api:
    """A function that can be called, and how people ask for it."""

    name: str
    description: str
    parameters: Mapping[str, Parameter]
    questions: tuple[Question, ...]


def _api(row: Mapping[str, Any]) -> Api:
    parameters = {
        name: Parameter(each["type"], each["description"], _values(each), each.get("required", False))
        for name, each in row["parameters"].items()
    }
    questions = tuple(Question(each["text"], each.get("fixed", {})) for each in row["questions"])
    return Api(row["api"], row["description"], parameters, questions)


def _values(parameter: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        (value["words"], value["value"]) if isinstance(value, dict) else value for value in parameter.get("values", [])
    )


_ROWS = read_catalogue("function_calls")
#: APIs of the training split, and those that never occur in it.
SEEN, HELD_OUT_TEST, HELD_OUT_VALIDATION = (
    tuple(_api(row) for row in _ROWS if row["part"] == part) for part in ("seen", "test", "validation")
)
