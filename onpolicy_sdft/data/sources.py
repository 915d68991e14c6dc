"""Demonstrations from a file, the hub, a published set or an embedded generator; every bad row is named.

Local JSON Lines are read line by line and CSV as text, so that an error can name its row and nothing is
guessed about types (a loader that infers them turns the answer "007" into 7).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.published import published_rows
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.types import Demonstration, Turn

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import DataConfig
    from onpolicy_sdft.tasks.protocol import Task

EMBEDDED_PREFIX = "embedded:"
PUBLISHED_PREFIX = "published:"
ROLES = ("system", "user", "assistant", "tool")
#: What changes the meaning of a message and is not read; a row that has it is bad.
UNREAD_KEYS = {
    "tool_calls": "write the call as its content",
    "function_call": "write the call as its content",
    "tool_call_id": "leave it out; tool turns are read in their order",
    "name": "write the speaker into the content",
    "reasoning_content": "write the reasoning into the content, as the model writes it",
    "reasoning": "write the reasoning into the content, as the model writes it",
    "thinking": "write the reasoning into the content, as the model writes it",
}
#: Columns of a prompt, of a response and of whole conversations as others call them, for messages.
_ALSO_CALLED = {
    "prompt": ("question", "instruction", "input", "query", "problem", "text"),
    "response": ("completion", "answer", "output", "chosen", "target", "solution"),
    "messages": ("messages", "conversations", "conversation"),
}
_LONGEST_CELL = 2**31 - 1  # what csv can be told on every platform


@dataclass(frozen=True, slots=True)
class DemonstrationSet:
    """Checked demonstrations and where they came from."""

    demonstrations: tuple[Demonstration, ...]
    where: str  # file or set, for messages
    skipped: tuple[str, ...]  # one line per row left out on request
    fingerprint: str  # sha256 over ids, prompts and responses
    unread: Mapping[str, int] = field(default_factory=dict)  # rows by what of theirs was not read


def load_demonstrations(config: DataConfig, task: Task, *, section: str = "data") -> DemonstrationSet:
    """Load, map and check the rows of a data source.

    Args:
        config: Source and column names.
        task: Gives the wording of the prompt and says whether a row's answer can be checked.
        section: Config section, for messages.

    Raises:
        ConfigError: If the source is not exactly one of ``name`` and ``path``.
        DataError: If a row is bad (with file, row number and the way out) or none is left.
    """
    if (config.name is None) == (config.path is None):
        raise ConfigError(
            f"Set exactly one of {section}.name and {section}.path "
            f"(they are {config.name!r} and {config.path!r}). For example --{section}.path rows.jsonl."
        )
    where = config.path or config.name or ""
    found: list[Demonstration] = []
    skipped: list[str] = []
    seen: dict[str, int] = {}
    unread = Counter[str]()
    for number, row in enumerate(_rows(config), start=1):
        if config.limit is not None and len(found) + len(skipped) >= config.limit:
            break
        try:
            if isinstance(row, DataError):
                raise row
            demonstration = _demonstration(row, number, config, task)
            if demonstration.example_id in seen:
                raise DataError(
                    f"id {demonstration.example_id!r} also stands in row {seen[demonstration.example_id]}; "
                    "ids must be unique"
                )
        except DataError as error:
            message = f"{where}, row {number}: {error}"
            if config.on_bad_row == "error":
                raise DataError(
                    f"{message}. Mend the row, or leave bad rows out and count them: --{section}.on_bad_row skip."
                ) from error
            skipped.append(message)
            continue
        seen[demonstration.example_id] = number
        found.append(demonstration)
        if config.messages_column is not None:
            unread.update(_unread(row[config.messages_column]))
    if not found:
        tail = f" ({len(skipped)} rows were skipped; the first: {skipped[0]})" if skipped else ""
        raise DataError(f"{where}: no rows to learn from{tail}.")
    return DemonstrationSet(tuple(found), where, tuple(skipped), fingerprint(found), unread)


def fingerprint(demonstrations: list[Demonstration]) -> str:
    """Digest ids, conversations, responses and the fields their check reads, in order."""
    digest = hashlib.sha256()
    for demonstration in demonstrations:
        turns = [(turn.role, turn.content) for turn in demonstration.turns]
        fields = sorted((str(key), repr(value)) for key, value in demonstration.fields.items())
        digest.update(json.dumps([demonstration.example_id, turns, demonstration.response, fields]).encode())
    return digest.hexdigest()


def _rows(config: DataConfig) -> Iterator[Mapping[str, Any] | DataError]:
    if config.name is not None and config.name.startswith(EMBEDDED_PREFIX):
        generator = config.name.removeprefix(EMBEDDED_PREFIX)
        yield from generate_rows(
            generator, split=config.split, limit=config.limit, seed=config.seed, options=config.options
        )
    elif config.name is not None and config.name.startswith(PUBLISHED_PREFIX):
        yield from published_rows(
            config.name.removeprefix(PUBLISHED_PREFIX), split=config.split, options=config.options
        )
    elif config.name is not None and not Path(config.name).expanduser().is_file():
        yield from _hub_rows(config)
    else:
        yield from _file_rows(Path(config.path or config.name or "").expanduser())


def _hub_rows(config: DataConfig) -> Iterator[Mapping[str, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(config.name, split=config.split, **config.options)
    except Exception as error:  # the loader raises many kinds; each means the set cannot be had
        raise DataError(
            f"Cannot load data.name={config.name!r}, split {config.split!r}: {error}. "
            f"Without a hub, use --data.path FILE, or --data.name with {EMBEDDED_PREFIX}NAME or {PUBLISHED_PREFIX}NAME."
        ) from error
    yield from rows


def _file_rows(path: Path) -> Iterator[Mapping[str, Any] | DataError]:
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
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}.") from error


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
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise DataError(f"key {twice!r} stands twice in one object")
    return found


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
        twice = [name for name, number in Counter(header).items() if number > 1]
        if twice:
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


def _demonstration(row: Mapping[str, Any], number: int, config: DataConfig, task: Task) -> Demonstration:
    if config.messages_column is not None:
        turns, response = _conversation(_column(row, config.messages_column))
        used = {config.messages_column}
    else:
        prompt = _text(row, config.prompt_column)
        response = _response(row, config.response_column, task)
        turns = [Turn("user", prompt)]
        used = {config.prompt_column, config.response_column}
    system = _system(row, config)
    if system is not None and turns[0].role != "system":
        turns = [Turn("system", system), *turns]
    question = turns[-1].content
    fields = {key: value for key, value in row.items() if key not in used}
    if config.wording and turns[-1].role == "user":
        turns = [*turns[:-1], Turn("user", _worded(task, question, fields))]
    demonstration = Demonstration(
        example_id=_example_id(row, number, _id_column(config), question, response),
        turns=tuple(turns),
        response=response,
        fields=fields,
        origin=f"{config.path or config.name}, row {number}",
    )
    task.check_demonstration(demonstration)
    return demonstration


def _response(row: Mapping[str, Any], column: str, task: Task) -> str:
    """The expert's answer; a task that needs none takes a row without that column."""
    # A task that is not derived from the protocol need not have what the protocol would supply.
    if column not in row and not getattr(task, "needs_response", True):
        return ""
    return _text(row, column)


def _worded(task: Task, question: str, fields: Mapping[str, Any]) -> str:
    return task.ask_row(question, fields) if hasattr(task, "ask_row") else task.ask(question)


def _system(row: Mapping[str, Any], config: DataConfig) -> str | None:
    """The row's own system message; ``data.system`` where the row leaves it blank or there is no column."""
    if config.system_column is None:
        return config.system
    if config.system_column in row and row[config.system_column] in (None, ""):
        return config.system
    return _text(row, config.system_column)


def _id_column(config: DataConfig) -> str | None:
    has_ids = config.name is not None and config.name.startswith((EMBEDDED_PREFIX, PUBLISHED_PREFIX))
    return config.id_column or ("id" if has_ids else None)


def _example_id(row: Mapping[str, Any], number: int, id_column: str | None, question: str, response: str) -> str:
    if id_column is not None:
        return str(_column(row, id_column))
    digest = hashlib.sha256(json.dumps([number, question, response]).encode()).hexdigest()
    return f"{number:06d}-{digest[:8]}"


def _column(row: Mapping[str, Any], column: str) -> Any:
    if column in row and row[column] is None:
        raise DataError(f"column {column!r} is empty (null)")
    if column not in row:
        raise DataError(f"no column {column!r}; the row has {sorted(map(str, row))}{_column_hint(row, column)}")
    return row[column]


def _column_hint(row: Mapping[str, Any], column: str) -> str:
    """Name the option that reads the column which this row seems to have instead."""
    named = {"prompt": "prompt_column", "response": "response_column"}
    for kind in ("messages", column):
        for other in _ALSO_CALLED.get(kind, ()):
            if other in row and column in named:
                return f". To read {other!r}: --data.{named.get(kind, 'messages_column')} {other}"
    return ""


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _column(row, column)
    if not isinstance(value, str):
        raise DataError(f"column {column!r} is not a string but {type(value).__name__}: {value!r:.60}")
    if not value.strip():
        raise DataError(f"column {column!r} is empty")
    _require_unicode(value, f"column {column!r}")
    return value


def _require_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can spell it, no tokenizer takes it
        raise DataError(f"{what} holds half a character at position {error.start}") from error


def _conversation(messages: Any) -> tuple[list[Turn], str]:
    if not isinstance(messages, list) or not messages:
        raise DataError("the messages column is not a list of messages")
    turns = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(message, Mapping):
            _refuse_unread(message, index)
        if role not in ROLES or not isinstance(content, str):
            raise DataError(f"message {index} needs a role out of {ROLES} and a string content")
        _require_unicode(content, f"message {index}")
        turns.append(Turn(role, content))
    if messages[len(turns) - 1].get("weight") == 0 and turns[-1].role == "assistant":
        raise DataError("the last answer has weight 0: it is not to be learned")
    while turns and turns[-1].role != "assistant":
        turns.pop()  # what follows the last answer is no part of the demonstration
    if len(turns) < 2 or turns[-2].role not in ("user", "tool"):
        raise DataError("the messages hold no assistant turn that answers a user turn")
    if not turns[-2].content.strip():
        raise DataError("the last user turn is empty")
    if not turns[-1].content.strip():
        raise DataError("the last assistant turn is empty")
    return turns[:-1], turns[-1].content


def _refuse_unread(message: Mapping[str, Any], index: int) -> None:
    for key, fix in UNREAD_KEYS.items():
        if message.get(key):
            raise DataError(f"message {index} has {key}, which is not read: {fix}")


def _unread(messages: list[Mapping[str, Any]]) -> set[str]:
    """Return what of a conversation is not read and changes nothing of what is."""
    found = {f"the key {key!r} of messages" for message in messages for key in message if message[key] is not None}
    found -= {f"the key {key!r} of messages" for key in ("role", "content", *UNREAD_KEYS)}
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        found.add("turns after the last answer")
    return found
