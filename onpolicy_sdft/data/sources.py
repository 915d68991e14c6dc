"""Demonstrations from a file, the hub, a published set or an embedded generator; every bad row is named.

Local JSON Lines are read line by line and CSV as text, so that an error can name its row and nothing is
guessed about types (a loader that infers them turns the answer "007" into 7).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.columns import (
    Columns,
    column_hint,
    find_columns,
    find_tools,
    is_conversation,
    left_unread,
    likely_columns,
)
from onpolicy_sdft.data.conversations import NO_ANSWER, demonstrations_of, prompt_of, read_messages, unread_parts
from onpolicy_sdft.data.files import file_rows, find_files
from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.published import published_rows
from onpolicy_sdft.data.refusals import require_unicode
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.hub import give_up_early
from onpolicy_sdft.tasks.plain_text import is_unseen
from onpolicy_sdft.tool_calls import TOOLS, calls_in, parsed, read_extra, read_tools, spell_out, text_of
from onpolicy_sdft.types import Demonstration, Turn

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import DataConfig
    from onpolicy_sdft.tasks.protocol import Task


EMBEDDED_PREFIX = "embedded:"
PUBLISHED_PREFIX = "published:"
#: Names that ``datasets`` reads files by, instead of a set of the hub.
_LOADERS = ("json", "csv", "parquet", "text", "arrow")


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
    seen: dict[str, str] = {}
    unread = Counter[str]()
    columns: Columns | None = None
    for number, (place, row) in enumerate(_rows(config), start=1):
        if config.limit is not None and number > config.limit:
            break
        if columns is None and not isinstance(row, DataError):
            columns = Columns() if _is_made(config) else find_columns(row, config, where)
        try:
            if isinstance(row, DataError):
                raise row
            known = columns or likely_columns(row, config)
            talk = known.messages
            if talk is not None and isinstance(row.get(talk), str):  # a table has them as JSON text
                row = {**row, talk: parsed(row[talk])}
            ignored = set() if _is_made(config) else left_unread(row, known, config)
            read = _demonstrations(row, number, place, known, config, task)
            if read[0].example_id in seen:
                raise DataError(
                    f"id {read[0].example_id!r} also stands in {seen[read[0].example_id]}; ids must be unique"
                )
        except DataError as error:
            message = f"{place}: {error}"
            if config.on_bad_row == "error":
                raise DataError(
                    f"{message}. Mend the row, or leave bad rows out and count them: --{section}.on_bad_row skip."
                ) from error
            skipped.append(message)
            continue
        seen[read[0].example_id] = place.rpartition(", ")[2]
        found += read
        if find_tools(row, known, config) and read[0].turns[0].role != TOOLS:
            ignored |= {"the column of tools, which the system message spells out"}
        unread.update(ignored | _unread_of_messages(row, known))
    if not found:
        raise _no_rows(where, skipped, section)
    return DemonstrationSet(tuple(found), where, tuple(skipped), fingerprint(found), unread)


def _no_rows(where: str, skipped: Sequence[str], section: str) -> DataError:
    if not skipped:
        return DataError(f"{where}: no rows to learn from. Fix: a file that has some.")
    return DataError(
        f"{where}: no rows to learn from ({len(skipped)} rows were skipped; the first: {skipped[0]}). Fix: mend "
        f"the rows, or say how they are to be read ({section}.prompt_column, {section}.messages_column and others)."
    )


def _unread_of_messages(row: Mapping[str, Any], columns: Columns) -> set[str]:
    """Return the harmless parts of a row's messages that are not read, for the log."""
    if columns.messages is not None:
        return unread_parts(row[columns.messages], ends_in_answer=columns.privileged is not None)
    if columns.calls:
        return set()
    lists = [row[name] for name in (columns.prompt, columns.response) if isinstance(row.get(name), list)]
    after = row.get(columns.response)
    messages = [message for each in lists for message in each]
    return unread_parts(messages, ends_in_answer=not isinstance(after, list)) if messages else set()


def fingerprint(demonstrations: list[Demonstration]) -> str:
    """Digest ids, conversations, responses and the fields their check reads, in order."""
    digest = hashlib.sha256()
    for demonstration in demonstrations:
        turns = [(turn.role, turn.content, turn.extra) for turn in demonstration.turns]
        said = [demonstration.response] + [demonstration.privileged] * bool(demonstration.privileged)
        fields = sorted((str(key), repr(value)) for key, value in demonstration.fields.items())
        digest.update(json.dumps([demonstration.example_id, turns, *said, fields]).encode())
    return digest.hexdigest()


def _is_made(config: DataConfig) -> bool:
    """Whether the rows are the package's own, whose columns are known."""
    return config.name is not None and config.name.startswith((EMBEDDED_PREFIX, PUBLISHED_PREFIX))


def _rows(config: DataConfig) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """Yield each row behind its place, for messages: of several files, the file and the number there."""
    if config.path is not None or Path(config.name or "").expanduser().is_file():
        for path in find_files(config.path or config.name or ""):
            named = config.path if config.path is not None and Path(config.path).expanduser() == path else str(path)
            for number, row in enumerate(file_rows(path), start=1):
                yield f"{named}, row {number}", row
        return
    name = config.name or ""
    rows: Iterable[Mapping[str, Any]]
    if name.startswith(EMBEDDED_PREFIX):
        generator = name.removeprefix(EMBEDDED_PREFIX)
        rows = generate_rows(
            generator, split=config.split, limit=config.limit, seed=config.seed, options=config.options
        )
    elif name.startswith(PUBLISHED_PREFIX):
        rows = published_rows(name.removeprefix(PUBLISHED_PREFIX), split=config.split, options=config.options)
    else:
        rows = _hub_rows(config)
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _hub_rows(config: DataConfig) -> Iterator[Mapping[str, Any]]:
    import datasets

    give_up_early()
    try:
        options = {"download_mode": "force_redownload", **config.options} if _is_local(config) else config.options
        rows = datasets.load_dataset(config.name, split=config.split, **options)
    except Exception as error:  # the loader raises many kinds; each means the set cannot be had
        raise DataError(
            f"Cannot load data.name={config.name!r}, split {config.split!r}: {error}. "
            f"Without a hub, use --data.path FILE, or --data.name with {EMBEDDED_PREFIX}NAME or {PUBLISHED_PREFIX}NAME."
        ) from error
    yield from rows


def _demonstrations(
    row: Mapping[str, Any], number: int, place: str, columns: Columns, config: DataConfig, task: Task
) -> list[Demonstration]:
    """Return what a row has to teach: one demonstration, or each answer of a conversation."""
    answers = _answers(row, columns, config, task)
    tools_column = find_tools(row, columns, config)
    fields = {key: value for key, value in row.items() if key not in {*columns.used, tools_column}}
    tools = [] if tools_column is None else [read_tools(row[tools_column])]
    require_unicode("".join(turn.content for turn in tools), "a tool")
    if tools and spell_out(answers[0][0], tools[0]):
        tools = []
    privileged = "" if columns.privileged is None else _text(row, columns.privileged, columns)
    system, found = _system(row, config), list[Demonstration]()
    last_turns, last_answer = answers[-1]
    row_id = _example_id(row, number, _id_column(config), last_turns[-1].content, text_of(last_answer))
    for turns, answer in answers:
        if system is not None and turns[0].role == "system" and turns[0].content.strip():
            if system != turns[0].content and config.system_column in row:
                raise DataError(
                    f"column {config.system_column!r} and the messages have different system texts: keep one"
                )
        elif system is not None:  # an empty system message is none
            turns = [Turn("system", system), *turns[turns[0].role == "system" :]]
        if config.wording and not (tools or calls_in(answer)) and turns[-1].role == "user":
            turns = [*turns[:-1], Turn("user", _worded(task, turns[-1].content, fields))]
        demonstration = Demonstration(
            example_id=row_id if config.turns == "last" else f"{row_id}.{len(found) + 1}",
            turns=(*tools, *turns),
            response=text_of(answer),
            fields=fields,
            origin=place,
            conversation=row_id if config.turns == "all" else "",
            answer=answer if answer.extra else None,
            privileged=privileged,
        )
        task.check_demonstration(demonstration)
        found.append(demonstration)
    return found


def _answers(row: Mapping[str, Any], columns: Columns, config: DataConfig, task: Task) -> list[tuple[list[Turn], Turn]]:
    """Return the answers of a row, each with the turns before it; the task's wording is not there yet."""
    if columns.messages is not None:
        messages = _column(row, columns.messages, columns)
        if columns.privileged is not None and read_messages(messages)[-1].role != "assistant":
            return [(prompt_of(messages), NO_ANSWER)]
        return demonstrations_of(messages, config.turns)
    if columns.calls:
        calls = read_extra({"tool_calls": _column(row, columns.response, columns)}, "assistant")
        if not calls:
            raise DataError(f"column {columns.response!r} holds no call of a tool")
        return [([Turn("user", _text(row, columns.prompt, columns))], Turn("assistant", "", calls))]
    prompt, response = row.get(columns.prompt), row.get(columns.response)
    # A task that is not derived from the protocol need not have what the protocol would supply.
    needs_none = columns.response not in row and not getattr(task, "needs_response", True)
    is_blank = response is None or is_unseen(str(response)) or response == []
    is_bare = needs_none or (columns.privileged is not None and is_blank)
    if isinstance(prompt, list) and is_bare:
        return [(prompt_of(prompt), NO_ANSWER)]
    if isinstance(prompt, list) or isinstance(response, list):  # messages each, or one of them text
        if is_conversation(response):
            raise DataError(
                f"column {columns.response!r} is a whole conversation, with its prompt. Fix: read it alone, "
                f"--data.messages_column {columns.response}"
            )
        before = (
            prompt if isinstance(prompt, list) else [{"role": "user", "content": _text(row, columns.prompt, columns)}]
        )
        after = (
            response
            if isinstance(response, list)
            else [{"role": "assistant", "content": _text(row, columns.response, columns)}]
        )
        return demonstrations_of([*before, *after], config.turns, len(before))
    question = _text(row, columns.prompt, columns)
    about = None if columns.input is None else row.get(columns.input)
    if config.input_column is not None and config.input_column not in row:
        raise DataError(f"no column {config.input_column!r} (data.input_column); the row has {sorted(map(str, row))}")
    if columns.input is not None and about is not None and str(about).strip():
        question = f"{question}\n\n{_text(row, columns.input, columns)}"
    if is_bare:
        return [([Turn("user", question)], NO_ANSWER)]
    return [([Turn("user", question)], Turn("assistant", _text(row, columns.response, columns)))]


def _worded(task: Task, question: str, fields: Mapping[str, Any]) -> str:
    return task.ask_row(question, fields) if hasattr(task, "ask_row") else task.ask(question)


def _system(row: Mapping[str, Any], config: DataConfig) -> str | None:
    """The row's own system message; ``data.system`` where the row leaves it blank or there is no column."""
    if config.system_column is None:
        return config.system
    if config.system_column in row and not str(row[config.system_column] or "").strip():
        return config.system
    return _text(row, config.system_column, Columns())


def _id_column(config: DataConfig) -> str | None:
    return config.id_column or ("id" if _is_made(config) else None)


def _example_id(row: Mapping[str, Any], number: int, id_column: str | None, question: str, response: str) -> str:
    if id_column is not None:
        return str(_column(row, id_column, Columns()))
    digest = hashlib.sha256(json.dumps([number, question, response]).encode()).hexdigest()
    return f"{number:06d}-{digest[:8]}"


def _column(row: Mapping[str, Any], column: str, columns: Columns) -> Any:
    if column in row and row[column] is None:
        raise DataError(f"column {column!r} is empty (null)")
    if column not in row:
        raise DataError(f"no column {column!r}; the row has {sorted(map(str, row))}{column_hint(row, columns, column)}")
    return row[column]


def is_on_hub(config: DataConfig) -> bool:
    """Whether the rows are a data set of the hub: not the package's own, and not files of this machine."""
    name = config.name
    return name is not None and not (_is_made(config) or name in _LOADERS or Path(name).expanduser().exists())


def _is_local(config: DataConfig) -> bool:
    """Whether the rows are files of this machine: the loader's cache knows those by name and time alone."""
    files = config.options.get("data_files", [])
    named = files.values() if isinstance(files, Mapping) else [files] if isinstance(files, str) else files
    return Path(config.name or "").expanduser().is_dir() or (
        config.name in _LOADERS and not any("://" in str(each) for each in named)
    )


def _text(row: Mapping[str, Any], column: str, columns: Columns) -> str:
    value = _column(row, column, columns)
    if not isinstance(value, str):
        raise DataError(f"column {column!r} is not a string but {type(value).__name__}: {value!r:.60}")
    if is_unseen(value):
        shows = f": {value!r:.40} shows nothing" if value.strip() else ""
        raise DataError(f"column {column!r} is empty{shows}")
    require_unicode(value, f"column {column!r}")
    return value
