"""Answers in AlpacaEval's format: a JSON list of ``{"instruction", "output", "generator", "dataset"}``.

Source: https://github.com/tatsu-lab/alpaca_eval, whose ``--model_outputs`` takes such a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.eval.answers import AnswerRecord
from onpolicy_sdft.runs.files import loads_strict


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one instruction."""

    index: int  # place in both files
    instruction: str
    first: str  # the answer of the first file
    second: str


def to_outputs(records: Sequence[AnswerRecord], generator: str, datasets: Sequence[str]) -> list[dict[str, str]]:
    """Put answers into AlpacaEval's format.

    Args:
        records: Answers, with ``prompt`` and ``completion``.
        generator: Name of what wrote them.
        datasets: Name of the set each instruction is from.
    """
    return [
        {"instruction": r["prompt"], "output": r["completion"], "generator": generator, "dataset": dataset}
        for r, dataset in zip(records, datasets, strict=True)
    ]


def read_outputs(path: Path) -> list[dict[str, Any]]:
    """Read a file in AlpacaEval's format.

    Raises:
        DataError: If it is not one, with the entry.
    """
    try:
        entries = loads_strict(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Write one with sdft helpfulness export.") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}. Write one with sdft helpfulness export.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} is not a list of answers. Write one with sdft helpfulness export.")
    for number, entry in enumerate(entries, start=1):
        for field in ("instruction", "output"):
            if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
                raise DataError(f"{path}, entry {number}: {field!r} is missing or no text. Mend the entry.")
    return entries


def generator_of(entries: Sequence[dict[str, Any]], path: Path) -> str:
    """Return the name of what wrote a file's answers; the file's own where it does not say."""
    return str(entries[0].get("generator") or path.stem)


def pair_up(first: Path, second: Path) -> list[Pair]:
    """Pair the answers of two files, which must be to the same instructions in the same order.

    Raises:
        DataError: Naming the first entry that differs.
    """
    mine, theirs = read_outputs(first), read_outputs(second)
    for number, (one, other) in enumerate(zip(mine, theirs, strict=False), start=1):
        if one["instruction"] != other["instruction"]:
            raise DataError(
                f"Entry {number} of {first} answers {_short(one['instruction'])}, that of {second} "
                f"{_short(other['instruction'])}. Only answers to the same instructions in the same order can be "
                "compared: export both with the same --prompts."
            )
    if len(mine) != len(theirs):
        shorter, longer = sorted(((len(mine), first), (len(theirs), second)))
        raise DataError(
            f"{longer[1]} has {longer[0]} answers, {shorter[1]} {shorter[0]}: entry {shorter[0] + 1} stands in the "
            "first alone. Export both with the same --prompts."
        )
    return [
        Pair(index, one["instruction"], one["output"], other["output"])
        for index, (one, other) in enumerate(zip(mine, theirs, strict=True))
    ]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
