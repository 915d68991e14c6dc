"""The behaviours behind ``list_functions`` and the sentences that ask for them: ``catalogues/list_functions.jsonl``.

A behaviour's first noun and verb phrase are for training; the second ones are held out (one for
validation, one for test). Slots of the phrases: ``{L}`` the list (or two lists), ``{k}`` a
parameter, ``{kth}`` the same as an ordinal. Slots of the code: ``{xs}`` and ``{ys}`` the arguments,
``{k}``, and ``{code}`` where a parameter reads differently in words and in code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onpolicy_sdft.data.generators.common import read_catalogue

Kind = Literal["numbers", "words", "pair", "nested"]


@dataclass(frozen=True)
class Behaviour:
    """One thing a function can do, with the phrases that ask for it and two ways to write it."""

    key: str
    kind: Kind
    names: str  # function names, separated by blanks
    nouns: tuple[str, str]  # complete "returns ..."
    verbs: tuple[str, str]  # complete "should ..."
    expr: str  # the answer as one expression
    body: str = ""  # the answer as one would teach it; empty: return the expression
    params: tuple[Any, ...] = (None,)  # values of k, or (in words, in code)
    inputs: tuple[Any, ...] = ()  # own inputs; empty: the pool of the kind
    empty: bool = True  # whether an empty list is a fair test


def _behaviour(row: Mapping[str, Any]) -> Behaviour:
    fields = {name: value for name, value in row.items() if name not in ("behaviour", "part")}
    fields |= {name: tuple(row[name]) for name in ("nouns", "verbs")}
    if "params" in row:
        pairs = (each if not isinstance(each, dict) else (each["words"], each["code"]) for each in row["params"])
        fields["params"] = tuple(pairs)
    if "inputs" in row:
        fields["inputs"] = _arguments(row)
    return Behaviour(row["behaviour"], **fields)


def _arguments(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(arguments) for arguments in row["inputs"])


_ROWS = read_catalogue("list_functions")
#: Inputs by kind: each a tuple of arguments.
INPUTS: dict[Kind, tuple[Any, ...]] = {row["kind"]: _arguments(row) for row in _ROWS if "behaviour" not in row}
SEEN, HELD_OUT_TEST, HELD_OUT_VALIDATION = (
    tuple(_behaviour(row) for row in _ROWS if row.get("part") == part) for part in ("seen", "test", "validation")
)
