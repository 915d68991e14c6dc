"""Conversations in rows of messages: which turns are the prompt, which is the answer, and what is not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.types import Turn

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
#: Columns beside messages that change the prompt; a row that fills one is bad.
UNREAD_COLUMNS = {
    "tools": "write what the prompt needs of it into a message, and leave the column out",
    "chat_template_kwargs": "give them to all rows, as context.student_template_kwargs and "
    "context.teacher_template_kwargs, and leave the column out",
}


def read_conversation(messages: Any) -> tuple[list[Turn], str]:
    """Return the turns of the prompt, and the last answer.

    Raises:
        DataError: If there is no answer to learn, or a message has what is not read.
    """
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
        require_unicode(content, f"message {index}")
        turns.append(Turn(role, content))
    while turns and turns[-1].role != "assistant":
        turns.pop()  # what follows the last answer is no part of the demonstration
    if turns and _is_zero(messages[len(turns) - 1].get("weight")):
        raise DataError("the last answer has weight 0: it is not to be learned")
    if len(turns) < 2 or turns[-2].role not in ("user", "tool"):
        raise DataError("the messages hold no assistant turn that answers a user turn")
    if not turns[-2].content.strip():
        raise DataError("the last user turn is empty")
    if not turns[-1].content.strip():
        raise DataError("the last assistant turn is empty")
    return turns[:-1], turns[-1].content


def _is_zero(weight: Any) -> bool:
    try:
        return weight is not None and float(weight) == 0
    except (TypeError, ValueError):
        raise DataError(f"the last answer has weight {weight!r}, which is no number") from None


def refuse_unread_columns(row: Mapping[str, Any], messages_column: str) -> None:
    """Refuse what a row says beside its messages that would change its prompt and is not read.

    Raises:
        DataError: With the column and the way out.
    """
    for column, fix in UNREAD_COLUMNS.items():
        if row.get(column) and column != messages_column:
            raise DataError(f"column {column!r} beside messages is not read: {fix}")


def _refuse_unread(message: Mapping[str, Any], index: int) -> None:
    for key, fix in UNREAD_KEYS.items():
        if message.get(key):
            raise DataError(f"message {index} has {key}, which is not read: {fix}")


def unread_parts(messages: list[Mapping[str, Any]]) -> set[str]:
    """Return what of a conversation is not read and changes nothing of what is."""
    found = {f"the key {key!r} of messages" for message in messages for key in message if message[key] is not None}
    found -= {f"the key {key!r} of messages" for key in ("role", "content", *UNREAD_KEYS)}
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        found.add("turns after the last answer")
    return found


def require_unicode(text: str, what: str) -> None:
    """Refuse text that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can spell it, no tokenizer takes it
        raise DataError(f"{what} holds half a character at position {error.start}") from error
