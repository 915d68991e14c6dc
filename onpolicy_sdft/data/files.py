"""Rows of a local file: JSON, JSON Lines, CSV or Parquet. Nothing is guessed, and every bad row has its place."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import DataError

_LONGEST_CELL = 2**31 - 1  # what csv can be told on every platform


def file_rows(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
    """Yield the rows of a file in their order, and an error in the place of each that cannot be read."""
    if not path.is_file():
        raise DataError(f"data.path={str(path)!r} is not a file.")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _json_lines(path)
    elif suffix == ".json":
        yield from _json_array(path)
    elif suffix == ".csv":
        yield from _csv_rows(path)
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise DataError(f"{path}: unknown ending {suffix!r}; give .jsonl, .json, .csv or .parquet.")


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    # Read by content: a loader with a cache of its own keys it by name and time, and gives old rows for a new file.
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow, "column")
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}.") from error


def _refuse_twice(path: Path, fields: Any, kind: str) -> None:
    """Refuse columns, and fields of structures, that stand twice: only one of them would be read."""
    import pyarrow

    if twice := _first_twice(field.name for field in fields):
        raise DataError(f"{path}: {kind} {twice[0]!r} stands twice. Rename one of them.")
    for field in fields:
        nested = field.type
        while pyarrow.types.is_list(nested) or pyarrow.types.is_large_list(nested):
            nested = nested.value_type
        if pyarrow.types.is_struct(nested):
            _refuse_twice(path, [nested.field(index) for index in range(nested.num_fields)], f"field of {field.name!r}")


def _json_lines(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
    with path.open("rb") as lines:
        for line in lines:
            yield _json_row(line) if line.strip() else DataError("an empty line")


def _json_row(line: bytes) -> Mapping[str, Any] | DataError:
    try:
        row = _parse(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 (byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        return DataError(f"not valid JSON ({error.msg} at column {error.colno})")
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:  # a number of too many digits, or too deep
        return DataError(f"not readable as JSON ({error})")
    return row if isinstance(row, dict) else DataError(f"not an object but {type(row).__name__}")


def _parse(text: str) -> Any:
    """Read JSON; a key that stands twice is an error, where the standard library keeps the last."""
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DataError(f"key {_first_twice(key for key, _ in pairs)[0]!r} stands twice in one object")
    return found


def _first_twice(names: Iterable[str]) -> list[str]:
    """Return the first name that stands twice; empty where none does, since a name may be empty itself."""
    return [name for name, number in Counter(names).items() if number > 1][:1]


def _json_array(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
    try:
        rows = _parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        hint = " A file with one object a line must be called .jsonl." if error.msg == "Extra data" else ""
        raise DataError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}).{hint}"
        ) from error
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not readable as JSON ({error}). In a .jsonl file, one object a line, bad rows can be left out."
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected an array of objects, found {type(rows).__name__}.")
    for row in rows:
        yield row if isinstance(row, dict) else DataError(f"not an object but {type(row).__name__}")


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
    csv.field_size_limit(_LONGEST_CELL)  # 131,072 characters otherwise: less than a long document
    # Bytes that are no UTF-8 come as half characters, so that one bad row does not cost the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            header = next(rows, [])
            header = [_utf8(name) for name in header]
        except (csv.Error, DataError) as error:
            raise DataError(f"{path}: its first line is not readable as CSV in UTF-8: {error}.") from error
        if twice := _first_twice(header):
            raise DataError(f"{path}: column {twice[0]!r} stands twice in its first line. Rename one of them.")
        while True:
            try:
                row = next(rows, None)
                if row is None:
                    return
                yield _csv_row([_utf8(cell) for cell in row], header)
            except (csv.Error, DataError) as error:
                yield DataError(f"{error} (line {rows.line_num} of the file)")


def _csv_row(row: list[str], header: list[str]) -> Mapping[str, Any]:
    if len(row) != len(header):
        raise DataError(f"{len(row)} cells under {len(header)} columns" if row else "an empty line")
    return dict(zip(header, row, strict=True))


def _utf8(cell: str) -> str:
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"not UTF-8 (byte {ord(cell[error.start]) - 0xDC00:#04x})") from error
    return cell
