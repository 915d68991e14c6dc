"""Strict JSON, atomic files and append-only JSONL.

JSON written here is strict: a float that is not finite becomes ``null``, and a file that holds the
literals ``NaN`` or ``Infinity`` is refused on reading. A JSONL file may end in one torn line (the
process was killed while writing it); a broken line anywhere else is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from onpolicy_sdft.errors import RunDirectoryError


def dumps_strict(value: Any, *, indent: int | None = None) -> str:
    """Serialise to strict JSON, with ``null`` for floats that are not finite.

    Args:
        value: Mappings, lists, tuples, strings, numbers, booleans and None, nested at will.
        indent: Spaces per level; None keeps everything on one line.

    Returns:
        JSON text; readable as it stands where UTF-8 can hold it, escaped where it cannot.

    Raises:
        TypeError: A value of another type (a tensor, a path).
    """
    finite = _without_non_finite(value)
    text = json.dumps(finite, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        text = json.dumps(finite, ensure_ascii=True, allow_nan=False, indent=indent)
    return text


def loads_strict(text: str | bytes) -> Any:
    """Parse strict JSON.

    Args:
        text: JSON text, or its UTF-8 bytes.

    Returns:
        The value.

    Raises:
        ValueError: Not JSON, not UTF-8, or one of the literals NaN and Infinity.
    """
    return json.loads(text, parse_constant=_refuse_constant)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees either the old content or the new.

    Args:
        path: Target; its directory is made where needed.
        data: Whole new content.

    Raises:
        OSError: The disk is full or the directory cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: os.replace is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path), temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text as :func:`write_bytes_atomic` does.

    Args:
        path: Target; its directory is made where needed.
        text: Whole new content; a lone surrogate becomes a question mark.
    """
    write_bytes_atomic(path, text.encode("utf-8", "replace"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write strict, indented JSON as :func:`write_bytes_atomic` does.

    Args:
        path: Target; its directory is made where needed.
        value: As :func:`dumps_strict` takes it.
    """
    write_bytes_atomic(path, (dumps_strict(value, indent=2) + "\n").encode())


def write_jsonl_atomic(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole JSONL file as :func:`write_bytes_atomic` does.

    Args:
        path: Target; its directory is made where needed.
        records: One mapping a line.
    """
    write_bytes_atomic(path, _lines(records))


def read_json(path: Path) -> Any:
    """Read a strict JSON file.

    Args:
        path: The file.

    Returns:
        The value.

    Raises:
        RunDirectoryError: The file is missing or is not strict JSON.
    """
    try:
        return loads_strict(path.read_bytes())
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path} does not exist.") from error
    except ValueError as error:
        raise RunDirectoryError(
            f"{path} is not valid JSON: {error}. Delete it and write it again with the command that makes it."
        ) from error


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted name."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between a record that was read from JSON and one in memory.

    Args:
        saved: As read.
        now: As it would be written.

    Returns:
        Both values by dotted name, in the order of the names; None where a record has none.
    """
    before, after = flatten(saved), flatten(json.loads(json.dumps(dict(now))))
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return {name: (before.get(name), after.get(name)) for name in names}


def list_differences(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the first few differences as text, and the names of some more."""
    shown = [f"{name} was {before!r} and is {after!r} now" for name, (before, after) in differing.items()]
    more = list(differing)[3:]
    rest = f"; and {len(more)} more ({', '.join(more[:8])}{', ...' if len(more) > 8 else ''})" if more else ""
    return "; ".join(shown[:3]) + rest


def append_jsonl(path: Path, *records: Mapping[str, Any]) -> None:
    """Add lines to a JSONL file, in one write, visible to readers at once.

    A torn last line that an earlier process left is cut off first, so that it cannot swallow the
    first new one.

    Args:
        path: The file; made, with its directory, where needed.
        *records: One mapping a line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _lines(records)
    with _named(path), path.open("a+b") as stream:
        data = _mend_tail(stream) + data
        stream.write(data)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file, leaving out one torn last line.

    Args:
        path: The file.

    Returns:
        One mapping a line.

    Raises:
        RunDirectoryError: The file is missing, or a line other than a torn last one is not a
            strict JSON object.
    """
    return [record for _, record in read_jsonl_lines(path)]


def read_jsonl_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Read a JSONL file as :func:`read_jsonl` does, with each record's own bytes.

    Args:
        path: The file.

    Returns:
        (line without its newline, record) pairs.

    Raises:
        RunDirectoryError: As for :func:`read_jsonl`.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path} does not exist.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = loads_strict(line)
            if not isinstance(record, dict):
                raise ValueError("expected a JSON object")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut short
                break
            raise RunDirectoryError(
                f"{path}, line {number} is damaged: {error}. Only the last line of a run's log may "
                "be cut short; remove this line to go on without it."
            ) from error
        records.append((line, record))
    return records


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of a write name the file: the system names it only where a file is opened."""
    try:
        yield
    except OSError as error:
        if error.errno:  # the system's
            error.filename = error.filename or str(path)
        raise


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(dumps_strict(record) + "\n" for record in records).encode()


def _mend_tail(stream: Any) -> bytes:
    """Cut a torn last line off; return what must be written before the next line."""
    end = stream.seek(0, os.SEEK_END)
    if end == 0:
        return b""
    stream.seek(end - 1)
    if stream.read(1) == b"\n":
        return b""
    stream.seek(0)
    content = stream.read()
    start_of_tail = content.rfind(b"\n") + 1
    try:
        loads_strict(content[start_of_tail:])
    except ValueError:
        stream.truncate(start_of_tail)
        return b""
    return b"\n"  # a whole record that lacks only its newline


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(item) for item in value]
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")


def sync_to_disk(path: Path) -> None:
    """Make a file that was written, or a directory in which one was renamed, durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, which may be larger than the memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
