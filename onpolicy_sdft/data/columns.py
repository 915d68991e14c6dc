"""Which columns of a row hold the question and the answer: as told, or as the common formats name them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.conversations import SPEAKERS
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tool_calls import is_empty

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import DataConfig

logger = logging.getLogger(__name__)

#: Other common names of these columns, for the texts of errors.
_ALSO_CALLED = {
    "prompt": ("question", "instruction", "input", "query", "problem"),
    "response": ("completion", "answer", "output", "chosen", "target", "solution"),
    "messages": ("messages", "conversations", "conversation"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row's texts stand: in prompt and response, or in one column of messages."""

    prompt: str = "prompt"
    response: str = "response"
    input: str | None = None  # what the prompt is about, where it has a column of its own
    messages: str | None = None
    privileged: str | None = None  # what only the teacher is shown
    calls: bool = False  # the response is a list of calls of tools

    @property
    def used(self) -> set[str]:
        """Columns that are read here; the others are a row's fields."""
        if self.messages is not None:
            return {self.messages}
        return {self.prompt, self.response} | ({self.input} if self.input is not None else set())


#: Formats that are told by their columns, with the options that name the same.
_FORMATS: Mapping[str, tuple[Columns, tuple[str, ...], str]] = {
    "prompt and response": (Columns(), ("prompt", "response"), "--data.prompt_column prompt"),
    "prompt and completion": (
        Columns("prompt", "completion"), ("prompt", "completion"), "--data.response_column completion",
    ),
    "instruction, input and output (Alpaca)": (
        Columns("instruction", "output", "input"), ("instruction", "output"),
        "--data.prompt_column instruction --data.input_column input --data.response_column output",
    ),
    "query, tools and answers (xLAM)": (
        Columns("query", "answers", calls=True), ("query", "tools", "answers"),
        "--data.prompt_column query --data.response_column answers",
    ),
    "prompt and privileged_context (TRL)": (
        Columns(privileged="privileged_context"), ("prompt", "privileged_context"),
        "--data.privileged_column privileged_context",
    ),
    "messages": (Columns(messages="messages"), ("messages",), "--data.messages_column messages"),
    "conversations (ShareGPT)": (
        Columns(messages="conversations"), ("conversations",), "--data.messages_column conversations",
    ),
}  # fmt: skip


#: What else a row may show, which a model of texts does not see.
_SEEN = ("image", "images", "video", "videos", "audio", "audios")
#: Columns with which other trainers say that an answer is not wanted.
_UNWANTED = ("label", "kto_tag")
#: Columns that may belong to the prompt, and are said where they are not read.
_OF_A_PROMPT = ("system", "system_prompt", "history", "tools", "functions", "context", "input")
#: Columns of common formats that change the prompt, and what to do about them.
_BESIDE = {
    "system": "name it, --data.system_column system",
    "system_prompt": "name it, --data.system_column system_prompt",
    "history": "write earlier turns as messages",
    "functions": "name it, --data.tools_column functions",
    "chat_template_kwargs": "give them to all rows, as context.student_template_kwargs and "
    "context.teacher_template_kwargs, and leave the column out",
}


def find_columns(row: Mapping[str, Any], config: DataConfig, where: str) -> Columns | None:
    """Return the columns of a source: those that options name, else those of the format that a row has.

    Args:
        row: One that can be read.
        config: Its options.
        where: The source, for messages.

    Returns:
        The columns; None where the row is of no format: the next one may tell.

    Raises:
        DataError: If the row has the columns of several formats.
    """
    asked = {"prompt": config.prompt_column, "response": config.response_column, "input": config.input_column}
    if config.messages_column is not None:
        return Columns(messages=config.messages_column, privileged=config.privileged_column)
    if any(value is not None for value in asked.values()):
        named: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        columns = Columns(**named, privileged=config.privileged_column)
        is_xlam = (columns.prompt, columns.response) == ("query", "answers") and row.get("tools") is not None
        return replace(columns, calls=is_xlam)
    found = {name: each for name, each in _FORMATS.items() if all(row.get(column) is not None for column in each[1])}
    if config.privileged_column is not None:
        found = {name: each for name, each in found.items() if each[0].privileged is None}
        if not found and row.get("prompt") is not None:
            return Columns(privileged=config.privileged_column)
    if len(found) > 1:
        raise DataError(
            f"{where} has the columns of several formats: {'; '.join(found)}. Fix: say which is meant: "
            f"{', or '.join(option for _, _, option in found.values())}."
        )
    for name, (columns, _, _) in found.items():
        if columns != Columns():
            logger.info(f"{where}: rows are read as {name}")
        return replace(columns, privileged=columns.privileged or config.privileged_column)
    return None


def likely_columns(row: Mapping[str, Any], config: DataConfig) -> Columns:
    """Return the columns by which an error names what is empty in a row that is of no format.

    They are those of the only format whose columns the row all has, else the usual ones.
    """
    found = [columns for columns, names, _ in _FORMATS.values() if all(name in row for name in names)]
    return (
        replace(found[0], privileged=found[0].privileged or config.privileged_column) if len(found) == 1 else Columns()
    )


def left_unread(row: Mapping[str, Any], columns: Columns, config: DataConfig) -> set[str]:
    """Refuse filled columns that would change the prompt; return the harmless ones that are not read, for the log.

    Rows of a plain prompt and response, or whose prompt or response column is named, may have columns of any name
    for their check.

    Raises:
        DataError: Naming the column and what to do about it.
    """
    named = (*columns.used, config.system_column, config.tools_column, config.privileged_column)
    if seen := [name for name in _SEEN if row.get(name) and name not in named]:
        raise DataError(
            f"column {seen[0]!r} holds what a text does not show: it would be answered unseen. Fix: leave the row out, "
            "or the column where the texts stand without it"
        )
    if columns.privileged is not None:
        for name in ("response", "completion"):
            if row.get(name) and columns.messages is None and name not in columns.used:
                raise DataError(
                    f"column {name!r} beside {columns.privileged!r} is not read: name it, "
                    f"--data.response_column {name} --data.privileged_column {columns.privileged}"
                )
    if _is_of_format(row, columns, config):
        _refuse_beside(row, columns, named)
    if columns.messages is not None or not (config.prompt_column or config.response_column):
        return set()
    read = {*named, find_tools(row, columns, config)}
    hints = {name: f" (--data.input_column {name} reads it)" for name in ("input", "context")}
    return {f"the column {name!r}{hints.get(name, '')}" for name in _OF_A_PROMPT if row.get(name) and name not in read}


def _refuse_beside(row: Mapping[str, Any], columns: Columns, named: Sequence[str | None]) -> None:
    """Refuse columns beside those of a common format that change what the row means."""
    for name in sorted(_BESIDE):
        if row.get(name) and name not in named:
            raise DataError(f"column {name!r} beside {' and '.join(sorted(columns.used))} is not read: {_BESIDE[name]}")
    if unwanted := [name for name in _UNWANTED if row.get(name) is False]:
        raise DataError(
            f"column {unwanted[0]!r} is false, as of an answer that is not wanted. Fix: leave the row out, or rename "
            "the column where it means something else"
        )


def find_tools(row: Mapping[str, Any], columns: Columns, config: DataConfig) -> str | None:
    """Return the column that holds a row's tools: the named one, or ``tools`` of a common format; None: it has none.

    Raises:
        DataError: If the named column is not there.
    """
    name = config.tools_column
    if name is not None and name not in row:
        raise DataError(f"no column {name!r} (data.tools_column); the row has {sorted(map(str, row))}")
    if name is None and row.get("tools") is not None and _is_of_format(row, columns, config):
        name = "tools"
    return None if name is None or is_empty(row.get(name)) else name


def _is_of_format(row: Mapping[str, Any], columns: Columns, config: DataConfig) -> bool:
    """Whether a row has the columns of a common format, so that those beside them have a known meaning."""
    of_format = columns != Columns() and (columns.calls or not (config.prompt_column or config.response_column))
    return of_format or any(isinstance(row.get(name), list) for name in (columns.prompt, columns.response))


def column_hint(row: Mapping[str, Any], columns: Columns, missing: str) -> str:
    """Name the options that read the columns which this row seems to have instead of a missing one."""
    if missing not in (columns.prompt, columns.response):
        return ""
    talks = [name for name in (*_ALSO_CALLED["messages"], "chosen") if is_conversation(row.get(name))]
    if talks:
        return f". To read {talks[0]!r}: --data.messages_column {talks[0]}"
    spelled = [name for name in row if isinstance(name, str) and name.strip().casefold() == missing and name != missing]
    if spelled:
        kind = "prompt" if missing == columns.prompt else "response"
        option = f", or --data.{kind}_column {spelled[0]}" if spelled[0] == spelled[0].strip() else ""
        return f". It has {spelled[0]!r}. Fix: name it {missing!r}{option}"
    options = []
    for kind, column in (("prompt", columns.prompt), ("response", columns.response)):
        others = [name for name in _ALSO_CALLED[kind] if name in row and column not in row]
        options += [(f"--data.{kind}_column {name}", name) for name in others[:1]]
    if not options and isinstance(row.get("text"), str):
        is_alone = not any(isinstance(value, str) for name, value in row.items() if name not in ("text", "id"))
        alone = ". A text as a whole has no answer of its own: write it as messages"
        return alone if is_alone else ". To read 'text': --data.prompt_column text"
    if "context" in row and "instruction" in row and columns.input is None:
        options.append(("--data.input_column context", "context"))
    if empty := [name for _, name in options if row[name] is None]:
        return f"; {empty[0]!r} is empty (null)"
    names, given = (" and ".join(map(repr, (name for _, name in options))), " ".join(option for option, _ in options))
    return f". To read {names}: {given}" if options else ""


def is_conversation(value: Any) -> bool:
    """Whether a column holds a whole conversation: messages that begin before an answer."""
    first = value[0] if isinstance(value, list) and value else None
    speaker = first.get("role", first.get("from")) if isinstance(first, Mapping) else None
    return isinstance(speaker, str) and SPEAKERS.get(speaker) in ("user", "system")
