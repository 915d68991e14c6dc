"""Demonstrations from a file, the hub, a published set or an embedded generator; every bad row is named.

Local JSON Lines are read line by line and CSV as text, so that an error can name its row and nothing is
guessed about types (a loader that infers them turns the answer "007" into 7).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.conversations import read_conversation, refuse_unread_columns, require_unicode, unread_parts
from onpolicy_sdft.data.files import file_rows
from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.published import published_rows
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.types import Demonstration, Turn

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import DataConfig
    from onpolicy_sdft.tasks.protocol import Task


EMBEDDED_PREFIX = "embedded:"
PUBLISHED_PREFIX = "published:"
#: Names that ``datasets`` reads files by, instead of a set of the hub.
_LOADERS = ("json", "csv", "parquet", "text", "arrow")
#: Columns of a prompt, of a response and of whole conversations as others call them, for messages.
_ALSO_CALLED = {
    "prompt": ("question", "instruction", "input", "query", "problem", "text"),
    "response": ("completion", "answer", "output", "chosen", "target", "solution"),
    "messages": ("messages", "conversations", "conversation"),
}


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
            unread.update(unread_parts(row[config.messages_column]))
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
        yield from file_rows(Path(config.path or config.name or "").expanduser())


def _hub_rows(config: DataConfig) -> Iterator[Mapping[str, Any]]:
    import datasets

    try:
        options = {"download_mode": "force_redownload", **config.options} if _is_local(config) else config.options
        rows = datasets.load_dataset(config.name, split=config.split, **options)
    except Exception as error:  # the loader raises many kinds; each means the set cannot be had
        raise DataError(
            f"Cannot load data.name={config.name!r}, split {config.split!r}: {error}. "
            f"Without a hub, use --data.path FILE, or --data.name with {EMBEDDED_PREFIX}NAME or {PUBLISHED_PREFIX}NAME."
        ) from error
    yield from rows


def _demonstration(row: Mapping[str, Any], number: int, config: DataConfig, task: Task) -> Demonstration:
    if config.messages_column is not None:
        refuse_unread_columns(row, config.messages_column)
        turns, response = read_conversation(_column(row, config.messages_column))
        used = {config.messages_column}
    else:
        prompt = _text(row, config.prompt_column)
        response = _response(row, config.response_column, task)
        turns = [Turn("user", prompt)]
        used = {config.prompt_column, config.response_column}
    system = _system(row, config)
    if system is not None and turns[0].role == "system" and system != turns[0].content and config.system_column in row:
        raise DataError(f"column {config.system_column!r} and the messages have different system texts: keep one")
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


def _is_local(config: DataConfig) -> bool:
    """Whether the rows are files of this machine: the loader's cache knows those by name and time alone."""
    files = config.options.get("data_files", [])
    named = files.values() if isinstance(files, Mapping) else [files] if isinstance(files, str) else files
    return Path(config.name or "").expanduser().is_dir() or (
        config.name in _LOADERS and not any("://" in str(each) for each in named)
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _column(row, column)
    if not isinstance(value, str):
        raise DataError(f"column {column!r} is not a string but {type(value).__name__}: {value!r:.60}")
    if not value.strip():
        raise DataError(f"column {column!r} is empty")
    require_unicode(value, f"column {column!r}")
    return value
