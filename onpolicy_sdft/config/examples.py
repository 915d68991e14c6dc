"""What can be typed for options that take a list, a tuple or a mapping, made from their types and defaults."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from onpolicy_sdft.config.schema import RunConfig

_NUMBERS = {1: "one number", 2: "two numbers", 3: "three numbers"}
_OF_WORD = {"list": "a list, such as [a, b]", "dict": "names with values, such as {name: value}"}
#: What stands for a record, by the class of its options.
_RECORD = {"label": "mine", "data": {"path": "rows.jsonl"}}
#: Options whose names have to be known ones.
_KNOWN = {"train.trackers": ["tensorboard"], "lora.target_parameters": ["mlp.experts.gate_up_proj"]}


def collection_options() -> dict[str, Any]:
    """Return the type of every option that takes a list, a tuple or a mapping, by dotted name."""
    found = {
        f"{section}.{name}": kind
        for section, options in get_type_hints(RunConfig).items()
        for name, kind in get_type_hints(options).items()
    }
    return {name: kind for name, kind in found.items() if _collection(kind) is not None}


def expected_of(name: str, words: tuple[str, ...]) -> str:
    """Return what an option takes, with an example that can be typed; empty where it takes no collection.

    Args:
        name: Of the option, dotted.
        words: What the parser says that it expects: ``list``, ``dict``; for options inside a record.
    """
    kind = collection_options().get(name)
    if kind is None:
        return next((_OF_WORD[word] for word in words if word in _OF_WORD), "")
    section, _, option = name.partition(".")
    default = getattr(getattr(RunConfig(), section), option)
    form = _collection(kind)
    value = _KNOWN.get(name) or (default if isinstance(default, list | tuple | dict) and default else _made(form))
    value = list(value)[:2] if isinstance(value, list | tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()
    return f"{_said(form)}, such as {text}"


def _collection(kind: Any) -> Any:
    """Return the first form of a type that is a list, a tuple or a mapping; None: it has none, or takes any text."""
    if str in get_args(kind) and get_origin(kind) not in (list, tuple, dict):
        return None
    return next((form for form in (kind, *get_args(kind)) if get_origin(form) in (list, tuple, dict)), None)


def _item(form: Any) -> Any:
    """Return the type of what is in a list: the first of several."""
    kind = get_args(form)[0]
    several = get_origin(kind) not in (None, Literal) and get_args(kind)
    return several[0] if several else kind


def _made(form: Any) -> Any:
    if get_origin(form) is dict:
        return {"name": "value"}
    kind = _item(form)
    if dataclasses.is_dataclass(kind):
        return [_RECORD]
    return {float: [0.5, 1.0], int: [0, 1]}.get(kind, ["a", "b"])


def _said(form: Any) -> str:
    if get_origin(form) is dict:
        return "names with values"
    if get_origin(form) is tuple:
        return _NUMBERS[len(get_args(form))]
    kind = _item(form)
    if dataclasses.is_dataclass(kind):
        return "a list of records"
    return "a list of numbers" if kind in (int, float) else "a list of names or texts"
