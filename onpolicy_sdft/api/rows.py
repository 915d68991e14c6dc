"""Rows in memory -> a file of the run, which reads them from there like any other data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.runs.files import write_bytes_atomic

Rows = Iterable[Mapping[str, Any]]

#: Folder of a run for the rows it was given, and the file of those to train on.
DATA, TRAIN = "data", "train.jsonl"


def kept(rows: Rows) -> Rows:
    """Return rows that can be read more than once: what a generator gives is kept."""
    return list(rows) if isinstance(rows, Iterator) else rows


def write_rows(rows: Rows, path: Path, *, fixed: bool = False) -> Path:
    """Write rows into a JSON Lines file of the run, which reads them from there like any other data.

    Args:
        rows: A list of dicts, a ``datasets.Dataset``, or anything that gives rows.
        path: Where to. A file with the same rows is left as it is.
        fixed: Whether a file with other rows is kept, and these are refused.

    Raises:
        DataError: If there are no rows, one holds what JSON cannot, or the run has others.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        raise DataError("rows are given as a data frame. Fix: frame.to_dict('records').")
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"rows are given as {type(rows).__name__}. Fix: a list of dicts, or a datasets.Dataset.")
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} is {type(row).__name__}, not a dict of columns. Fix: a list of dicts.")
        lines.append(b", ".join(_json(name, value, number) for name, value in row.items()).join((b"{", b"}\n")))
    if not lines:
        raise DataError("there are no rows.")
    content = b"".join(lines)
    if not (path.is_file() and path.read_bytes() == content):
        if fixed and path.is_file():
            raise DataError(
                f"{path} holds other rows than those that are given, and belongs to a run. Fix: the same rows to "
                "go on with that run, or another train.output_dir."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, content)
    return path


def _json(name: Any, value: Any, number: int) -> bytes:
    """Return a column of a row as JSON, ``"name": value``."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
        return f"{json.dumps(str(name), ensure_ascii=False)}: {text}".encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"row {number}, column {str(name)!r} holds what JSON cannot: {error}. Fix: leave the column out, or "
            "make it text."
        ) from error


def _plain(value: Any) -> Any:
    """Return a number or list of numpy's or torch's as Python's; nothing else is guessed."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r:.60} is {type(value).__name__}")
