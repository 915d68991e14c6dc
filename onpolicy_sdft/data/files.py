"""Rows of local files: JSON, JSON Lines, CSV or Parquet, also compressed. Every bad row has its place."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from onpolicy_sdft.errors import DataError

logger = logging.getLogger(__name__)

_FIRST_LINES = 50  # that tell what stands between cells
_LONGEST_CELL = 2**31 - 1  # what csv can be told on every platform


ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
#: What ``datasets`` writes beside rows.
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
#: Parts of a set as files are named for them: rows of two are never read as one.
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "valid": "validation", "validation": "validation", "val": "validation", "dev": "validation", "holdout": "test",
}  # fmt: skip


def find_files(place: str) -> list[Path]:
    """Return the files that ``data.path`` names, in the order of their names.

    Args:
        place: A file, a folder, or a pattern such as ``rows/part-*.jsonl``.

    Raises:
        DataError: If there is none, or a folder holds several parts of a set.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        there = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        found = [each for each in there if _has_rows(each)]
        if left := [each.name for each in there if each not in found]:
            logger.info(f"not read in {path}: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}")
    else:
        found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_file())
    if not found:
        raise DataError(
            f"data.path={place!r} is not a file, a folder with files that end in {', '.join(ENDINGS)}, or a pattern "
            f"that some file has.{_below(path)}"
        )
    _refuse_mixed(found, place)
    return found


def _below(path: Path) -> str:
    """Say which folders below one have files that can be read."""
    files = path.rglob("*") if path.is_dir() else ()
    folders = sorted({str(each.parent) for each in files if _has_rows(each)})
    return f" Files that can be read stand in {', '.join(folders[:3])}." if folders else ""


def _refuse_mixed(files: Sequence[Path], place: str) -> None:
    """Refuse files of which some are for tests and others are not, and the same file twice, compressed and not."""
    above = Path(place if Path(place).expanduser().is_dir() else re.split(r"[*?[]", place)[0].rpartition("/")[0])
    parts = {_part(each, above.expanduser()) for each in files}
    if len(parts) > 1 and parts != {"train", "other rows"}:
        raise DataError(
            f"data.path={place!r} stands for files of {' and '.join(sorted(parts))}. Fix: name those that are meant, "
            f"by a pattern such as '{files[0].parent / 'train*'}'."
        )
    plain = Counter(each.with_name(_uncompressed(each.name)) for each in files)
    if twice := [str(each) for each, number in plain.items() if number > 1]:
        raise DataError(
            f"data.path={place!r} stands for {twice[0]} twice, compressed and not. Fix: name one by a pattern."
        )


def _part(path: Path, above: Path) -> str:
    """Return which part of a set a file's name says it is, with the names of its folders below one."""
    name = path.relative_to(above) if path.is_relative_to(above) else path.name
    words = {re.sub(r"(set|data)$", "", word) for word in re.split(r"[^a-z]+", str(name).lower())}
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else "other rows"


def file_rows(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
    """Yield the rows of a file in their order, and an error in the place of each that cannot be read.

    Raises:
        DataError: If it is no file of rows, or another program wrote to it meanwhile.
    """
    before = path.stat()
    yield from _rows(path)
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(
            f"{path} was changed while it was read (it had {before.st_size} bytes, now {after.st_size}), so some rows "
            "may be old and some new. Fix: start again when it is written, or name a copy."
        )


def _rows(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
    ending = _ending(path)
    try:
        if ending == ".jsonl":
            yield from _without_empty_end(_json_lines(path))
        elif ending == ".json":
            yield from _json_array(path)
        elif ending in (".csv", ".tsv"):
            yield from _without_empty_end(_csv_rows(path, "\t" if ending == ".tsv" else None))
        elif ending == ".parquet":
            yield from _parquet_rows(path)
        elif ending == ".arrow":
            yield from _arrow_rows(path)
        else:
            raise DataError(
                f"{path}: unknown ending {path.suffix!r}; give {', '.join(ENDINGS)}, or (but for Parquet and Arrow) "
                f"one of them with {' or '.join(COMPRESSED)} behind it."
            )
    except (EOFError, OSError) as error:
        if path.suffix.lower() not in COMPRESSED:
            raise
        raise DataError(
            f"{path}: not readable as {COMPRESSED[path.suffix.lower()]}: {error}. Fix: a whole file."
        ) from error


def _has_rows(path: Path) -> bool:
    """Whether a file of a folder is read: not one that describes the others."""
    return bool(_ending(path)) and path.name not in _NO_ROWS


def _ending(path: Path) -> str:
    """Return the ending that says how rows are written; empty for another. Parquet compresses by itself."""
    name = _uncompressed(path.name.lower())
    ending = Path(name).suffix
    is_known = ending in ENDINGS and not (ending in (".parquet", ".arrow") and name != path.name.lower())
    return ending if is_known else ""


def _uncompressed(name: str) -> str:
    return name[: name.rindex(".")] if Path(name.lower()).suffix in COMPRESSED else name


def _open(path: Path) -> IO[bytes]:
    """Open a file of text, compressed or not."""
    compression = COMPRESSED.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression))


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    # Read by content: a loader with a cache of its own keys it by name and time, and gives old rows for a new file.
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow, "column")
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}. Fix: a whole file.") from error


def _arrow_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read a file of ``Dataset.save_to_disk``."""
    import pyarrow

    try:
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
            _refuse_twice(path, batches.schema, "column")
            for batch in batches:
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as an Arrow stream: {error}. Fix: a whole file.") from error


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


def _without_empty_end(
    rows: Iterable[Mapping[str, Any] | DataError | None],
) -> Iterator[Mapping[str, Any] | DataError]:
    """Put an error in the place of each empty line (None) but those at the end of a file, which are no rows."""
    num_empty = 0
    for row in rows:
        if row is None:
            num_empty += 1
            continue
        yield from (DataError("an empty line") for _ in range(num_empty))
        num_empty = 0
        yield row


def _refuse_utf16(path: Path) -> None:
    """Refuse a file of JSON in UTF-16 or UTF-32, as some editors and PowerShell write it, by its first bytes.

    Raises:
        DataError: With the encoding.
    """
    with _open(path) as file:
        first = file.read(4)
    wide = 4 if b"\0\0" in first else 2
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in first:
        raise DataError(f"{path} is UTF-{8 * wide}, not UTF-8. Fix: save it as UTF-8.")


def _json_lines(path: Path) -> Iterator[Mapping[str, Any] | DataError | None]:
    _refuse_utf16(path)
    with _open(path) as lines:
        for line in lines:
            yield _json_row(line) if line.strip() else None


def _json_row(line: bytes) -> Mapping[str, Any] | DataError:
    try:
        row = _parse(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 (byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        hint = ". A file that holds one array must be called .json" if line.strip() == b"[" else ""
        return DataError(f"not valid JSON ({error.msg} at column {error.colno}){hint}")
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:  # a number of too many digits, or too deep
        return DataError(f"not readable as JSON ({error})")
    hint = " (a file that holds one array must be called .json)" if isinstance(row, list) else ""
    return row if isinstance(row, dict) else DataError(f"not an object but {type(row).__name__}{hint}")


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
    _refuse_utf16(path)
    try:
        with _open(path) as file:
            rows = _parse(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        is_lines = error.msg == "Extra data"
        hint = "a file with one object a line must be called .jsonl" if is_lines else "mend the file"
        raise DataError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}). Fix: {hint}."
        ) from error
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not readable as JSON ({error}). In a .jsonl file, one object a line, bad rows can be left out."
        ) from error
    if not isinstance(rows, list):
        keys = f" with the keys {', '.join(map(repr, list(rows)[:5]))}" if isinstance(rows, dict) else ""
        raise DataError(
            f"{path}: expected an array of objects, found {type(rows).__name__}{keys}. Fix: objects of one line each "
            "in a file called .jsonl, or the array of rows alone, without what stands around it."
        )
    for row in rows:
        yield row if isinstance(row, dict) else DataError(f"not an object but {type(row).__name__}")


def _csv_rows(path: Path, delimiter: str | None) -> Iterator[Mapping[str, Any] | DataError | None]:
    csv.field_size_limit(_LONGEST_CELL)  # 131,072 characters otherwise: less than a long document
    delimiter = _delimiter(path) if delimiter is None else delimiter
    # Bytes that are no UTF-8 come as half characters, so that one bad row does not cost the file.
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, strict=True, delimiter=delimiter)
        try:
            header = next(rows, [])
            header = [_utf8(name) for name in header]
        except (csv.Error, DataError) as error:
            raise DataError(
                f"{path}: its first line is not readable as CSV in UTF-8: {error}. Fix: save it as CSV UTF-8."
            ) from error
        if twice := _first_twice(header):
            raise DataError(f"{path}: column {twice[0]!r} stands twice in its first line. Rename one of them.")
        while True:
            try:
                row = next(rows, None)
                if row is None:
                    return
                yield _csv_row([_utf8(cell) for cell in row], header) if row else None
            except (csv.Error, DataError) as error:
                yield DataError(f"{error} (line {rows.line_num} of the file)")


def _delimiter(path: Path) -> str:
    """Return what stands between the cells: a comma, or the semicolon or tab that spreadsheets write.

    Raises:
        DataError: If the first lines can be read in two ways.
    """
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        first = "".join(islice(lines, _FIRST_LINES))
    if first.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise DataError(f"{path} is UTF-16, as spreadsheets write 'Unicode text'. Fix: save it as CSV UTF-8.")
    named = {",": "commas", ";": "semicolons", "\t": "tabs"}
    try:
        counts = {sign: [len(row) for row in csv.reader(io.StringIO(first, ""), delimiter=sign)] for sign in named}
    except csv.Error as error:
        raise DataError(f"{path}: its first lines are not readable as CSV: {error}.") from error
    several = [sign for sign, cells in counts.items() if cells and cells[0] > 1]
    if len(several) > 1:  # then it is the one that gives every row as many cells; the last row may be cut
        several = [sign for sign in several if set(counts[sign][:-1]) == {counts[sign][0]}] or several
    if len(several) > 1:
        raise DataError(
            f"{path}: its first line has {' and '.join(named[sign] for sign in several)}, so it is not clear what "
            "stands between cells. Fix: put column names in quotes, or rename the columns."
        )
    if several and several != [","]:
        logger.info(f"{path}: {named[several[0]]} stand between the cells")
    return several[0] if several else ","


def _csv_row(row: list[str], header: list[str]) -> Mapping[str, Any]:
    if len(row) != len(header):
        raise DataError(f"{len(row)} cells under {len(header)} columns")
    return dict(zip(header, row, strict=True))


def _utf8(cell: str) -> str:
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"not UTF-8 (byte {ord(cell[error.start]) - 0xDC00:#04x})") from error
    return cell
