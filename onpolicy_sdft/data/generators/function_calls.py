"""Questions to answer with one call of a described API.

Train, validation and test share no wording of a question; nine APIs of test and seven of validation
never occur in training (``novel``), neither as the answer nor as a function to choose from.
"""

from __future__ import annotations

import itertools
import json
import string
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.data.generators.common import (
    SPLITS,
    check_choice,
    check_options,
    keyed_random,
    select_indices,
)
from onpolicy_sdft.data.generators.function_calls_catalogue import (
    HELD_OUT_TEST,
    HELD_OUT_VALIDATION,
    SEEN,
    Api,
    Question,
)
from onpolicy_sdft.errors import DataError

NAME = "function_calls"
MAX_FUNCTIONS = 3
# How often a wording is used, with other values each time (fewer where values run out).
REPEATS_SEEN = {"train": 5, "validation": 4, "test": 4}
REPEATS_NOVEL = 3

ONE = {
    "train": (
        "Answer the question with a function call that uses keyword arguments.",
        "Write the function call that the question below asks for. Use keyword arguments.",
        "Construct a call of the given function, with keyword arguments, to answer the question.",
    ),
    "validation": ("Which call of this function answers the question? Use keyword arguments.",),
    "test": ("Turn the question into a call of the function below, with keyword arguments.",),
}
SEVERAL = {
    "train": (
        "Pick the function that answers the question and call it with keyword arguments.",
        "Answer the question with a call of one of the functions below. Use keyword arguments.",
    ),
    "validation": ("Which one of these functions helps? Call it with keyword arguments.",),
    "test": ("Turn the question into a call of the right function, with keyword arguments.",),
}
CLOSING = {
    "train": (
        "Give your answer as a single line with nothing but the call.",
        "Format your response as a single string, the call itself.",
    ),
    "validation": ("Your whole answer must be that one call.",),
    "test": ("Write only the call, in one line.",),
}


@dataclass(frozen=True)
class Request:
    """One question with its values filled in."""

    api: Api
    question: str
    arguments: tuple[tuple[str, Any], ...]
    novel: bool  # the API never occurs in training


def generate(*, split: str, limit: int | None, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Rows that ask for a function call.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: Number of rows; None for all.
        seed: Chooses which rows come first; an id names the same row whatever the seed.
        options: ``num_functions``: functions a prompt offers, 1 to 3; None (default) mixes.

    Returns:
        Rows with ``id``, ``prompt``, ``response``, ``function`` (name of the right one),
        ``num_functions`` and ``novel`` (the API never occurs in training).

    Raises:
        DataError: A bad split, limit, seed or option.
    """
    check_choice(NAME, "split", split, SPLITS)
    check_options(NAME, options, ("num_functions",))
    num_functions = options.get("num_functions")
    valid = (None, *range(1, MAX_FUNCTIONS + 1))
    if num_functions not in valid or isinstance(num_functions, bool | float):
        raise DataError(
            f"embedded:{NAME}: num_functions={num_functions!r} is not available; "
            f"valid: a whole number from 1 to {MAX_FUNCTIONS}, or unset for a mix"
        )
    requests = _requests(split)
    order = select_indices(NAME, split=split, available=len(requests), limit=limit, seed=seed)
    return [_row(requests[index], split, index, num_functions) for index in order]


def _requests(split: str) -> list[Request]:
    """Every request of a split in a fixed order."""
    requests = []
    for api in SEEN:
        wordings = {
            "train": api.questions[:-2],
            "validation": api.questions[-2:-1],
            "test": api.questions[-1:],
        }[split]
        for question in wordings:
            requests += _fill(api, question, split, REPEATS_SEEN[split], novel=False)
    for api in _unseen(split):
        for question in api.questions:
            requests += _fill(api, question, split, REPEATS_NOVEL, novel=True)
    return requests


def _unseen(split: str) -> tuple[Api, ...]:
    return {"train": (), "validation": HELD_OUT_VALIDATION, "test": HELD_OUT_TEST}[split]


def _fill(api: Api, question: Question, split: str, repeats: int, *, novel: bool) -> list[Request]:
    """The question with up to ``repeats`` different sets of values."""
    slots = list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(question.text) if name))
    combinations = list(itertools.product(*(api.parameters[slot].values for slot in slots)))
    keyed_random(NAME, split, api.name, question.text).shuffle(combinations)
    requests = []
    for combination in combinations[:repeats]:
        pairs = [v if isinstance(v, tuple) else (str(v), v) for v in combination]
        text = question.text.format(**dict(zip(slots, (words for words, _ in pairs), strict=True)))
        given = dict(zip(slots, (value for _, value in pairs), strict=True)) | dict(question.fixed)
        # Arguments stand in the order of the description, whatever the order of the sentence.
        arguments = tuple((name, given[name]) for name in api.parameters if name in given)
        requests.append(Request(api, text, arguments, novel))
    return requests


def _row(request: Request, split: str, index: int, num_functions: int | None) -> dict[str, Any]:
    """The row of one request; all but the number of functions follows from split and index."""
    rng = keyed_random(NAME, split, index)
    count = num_functions or rng.choice((1, 1, 2, 3))
    others = [api for api in (*SEEN, *_unseen(split)) if api is not request.api]
    functions = [request.api, *rng.sample(others, MAX_FUNCTIONS - 1)][:count]
    rng.shuffle(functions)
    opening = rng.choice((ONE if count == 1 else SEVERAL)[split])
    label = "Function to be used" if count == 1 else "Function"
    described = "\n\n".join(_describe(api, label) for api in functions)
    closing = rng.choice(CLOSING[split])
    return {
        "id": f"{NAME}-{split}-{index:04d}",
        "prompt": f"{opening}\n\nQuestion: {request.question}\n\n{described}\n\n{closing}",
        "response": _call(request),
        "function": request.api.name,
        "num_functions": count,
        "novel": request.novel,
    }


def _describe(api: Api, label: str) -> str:
    lines = [f"{label}: {api.name}", f"Description: {api.description}", "Parameters:"]
    for number, (name, parameter) in enumerate(api.parameters.items(), start=1):
        lines.append(f"{number}. {name} ({parameter.type}) - {parameter.description}")
    required = ", ".join(name for name, p in api.parameters.items() if p.required)
    return "\n".join([*lines, f"Required: [{required}]"])


def _call(request: Request) -> str:
    arguments = ", ".join(f"{name}={_literal(value)}" for name, value in request.arguments)
    return f"{request.api.name}({arguments})"


def _literal(value: Any) -> str:
    """A Python literal with double quotes, as the descriptions of APIs tend to write strings."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)
