"""Conversations in rows of messages: which turns are prompts, which are answers, and what is not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onpolicy_sdft.data.refusals import require_unicode
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks.plain_text import is_unseen
from onpolicy_sdft.tool_calls import REASONING, calls_in, extra_keys, has_nulls, read_extra
from onpolicy_sdft.types import Turn

ROLES = ("system", "user", "assistant", "tool")
#: Who speaks in ShareGPT's messages, as a role.
SPEAKERS = {
    "developer": "system", "function": "tool", "ipython": "tool",
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
#: What stands in place of parts of a message that other interfaces have.
_PARTS = {
    "tool_use": "write calls as tool_calls", "tool_result": "write it as a message of the role tool",
    "thinking": "write it as reasoning_content", "input_text": "name its type text",
    "output_text": "name its type text",
}  # fmt: skip
#: Keys with which other trainers say whether an answer is learned.
_TRAINED = ("train", "loss")
#: The answer of a row that has none.
NO_ANSWER = Turn("assistant", "")
#: What changes the meaning of a message and is not read; a row that has it is bad.
UNREAD_KEYS = {
    "tool_calls": "only the assistant calls tools",
    "function_call": "only the assistant calls functions",
    "tool_call_id": "only a tool answers a call",
    "name": "write the speaker into the content",
    **dict.fromkeys(REASONING, "only the assistant reasons"),
}


def read_messages(messages: Any) -> list[Turn]:
    """Return messages as turns: those of ``role`` and ``content``, or of ``from`` and ``value`` (ShareGPT).

    Raises:
        DataError: If they are no messages, or one has what is not read.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"the messages column is not a list of messages: {messages!r:.60}")
    turns = []
    for index, message in enumerate(messages):
        role, content = _role_and_content(message)
        _refuse_parts(message, index)
        extra = ""
        if isinstance(message, Mapping):
            _refuse_unread(message, index, role)
            extra = read_extra(message, role)
            if message.get("from") == "function_call" and isinstance(content, str):
                content, extra = "", read_extra({"tool_calls": content}, role)
        content = "" if content in (None, []) and extra else content  # a call needs no text beside it
        if content is None or role is None:
            _refuse_null(message, index)
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                f"message {index} needs a role out of {ROLES} and a string content (or 'from' and 'value', with "
                f"{', '.join(SPEAKERS)}); it is {message!r:.80}{_role_hint(message)}"
            )
        require_unicode(content + extra, f"message {index}")
        turns.append(Turn(role, content, extra))
    return turns


def _refuse_null(message: Any, index: int) -> None:
    """Say which field of a message is null, where one is."""
    if message is None:
        raise DataError(f"message {index} is empty (null)")
    fields = message if isinstance(message, Mapping) else {}
    speaks = "from" if "role" not in fields and "from" in fields else "role"
    for name in (speaks, "value" if speaks == "from" else "content"):
        if name in fields and fields[name] is None:
            raise DataError(f"message {index}: {name} is empty (null)")


def _role_hint(message: Any) -> str:
    """Name the role that a message seems to mean, which is written otherwise."""
    said = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    meant = said.strip().casefold() if isinstance(said, str) else ""
    return f". Fix: write {meant!r} for {said!r}" if meant in SPEAKERS and meant != said else ""


def _role_and_content(message: Any) -> tuple[Any, Any]:
    if not isinstance(message, Mapping):
        return None, None
    if "role" not in message and "from" in message:
        return SPEAKERS.get(str(message["from"])), message.get("value")
    role = message.get("role")
    role = SPEAKERS.get(role, role) if isinstance(role, str) else role
    content = message.get("content")
    if isinstance(content, list) and content and all(isinstance(each, Mapping) for each in content):
        texts = [each.get("text") for each in content if each.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):  # else: a picture, or a sound
            content = "".join(text for text in texts if text is not None)
    return role, content


def _refuse_parts(message: Any, index: int) -> None:
    """Refuse parts of a message that are no text, by their type."""
    content = message.get("content") if isinstance(message, Mapping) else None
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and "text" in part and part["text"] is None:
            raise DataError(f"message {index}: text is empty (null)")
        if isinstance(kind, str) and kind != "text":
            fix = _PARTS.get(kind, "rows are texts: leave it out, or write it as text")
            raise DataError(f"message {index} has a content part of type {kind!r}, which is not read: {fix}")


def prompt_of(messages: Any) -> list[Turn]:
    """Return a conversation that has no answer yet.

    Raises:
        DataError: If it does not end in a turn that can be answered.
    """
    turns = read_messages(messages)
    if turns[-1].role not in ("user", "tool"):
        raise DataError(f"the prompt ends in a turn of the {turns[-1].role}, not of a user or a tool")
    if turns[-1].role == "user" and is_unseen(turns[-1].content):
        raise DataError("the last user turn is empty")
    return turns


def demonstrations_of(messages: Any, which: str, first: int = 0) -> list[tuple[list[Turn], Turn]]:
    """Return the answers of a conversation that are to be learned, each with the turns before it.

    Args:
        messages: As rows have them.
        which: ``last`` or ``all`` (those that answer a user's or a tool's turn, and have no weight of 0).
        first: Messages before this one are prompt.

    Raises:
        DataError: If there is no answer to learn, or a message has what is not read.
    """
    turns = read_messages(messages)
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant" and index >= first]
    if which == "last":
        answers = answers[-1:]
        if answers and (why := _why_not_learned(messages[answers[0]])):
            raise DataError(f"the last answer has {why}: it is not to be learned")
    else:
        answers = [index for index in answers if not _why_not_learned(messages[index])]
    last = answers[-1] if answers else 0
    answers = [index for index in answers if index and turns[index - 1].role in ("user", "tool")]
    if not answers:
        behind = f": the last one follows a turn of the {turns[last - 1].role}" if last else ""
        raise DataError(f"the messages hold no assistant turn that answers a user turn{behind}")
    for index in answers:
        named = "the last" if which == "last" else f"message {index}, an"
        if turns[index - 1].role == "user" and is_unseen(turns[index - 1].content):
            raise DataError("the last user turn is empty" if which == "last" else f"message {index - 1} is empty")
        if is_unseen(turns[index].content) and not calls_in(turns[index]):
            raise DataError(f"{named} assistant turn is empty" if which == "last" else f"{named} answer, is empty")
    return [(turns[:index], turns[index]) for index in answers]


def _why_not_learned(message: Mapping[str, Any]) -> str:
    """Return what says that an answer is not to be learned: a weight of 0, or ``train`` or ``loss`` false."""
    weight = message.get("weight")
    try:
        if weight is not None and float(weight) == 0:
            return "weight 0"
    except (TypeError, ValueError):
        raise DataError(f"an answer has weight {weight!r}, which is no number") from None
    return next((f"{name} false" for name in _TRAINED if message.get(name) is False), "")


def _refuse_unread(message: Mapping[str, Any], index: int, role: Any) -> None:
    for key, fix in UNREAD_KEYS.items():
        if message.get(key) and key not in extra_keys(role):
            raise DataError(f"message {index} has {key}, which is not read: {fix}")


def unread_parts(messages: list[Mapping[str, Any]], *, ends_in_answer: bool = False) -> set[str]:
    """Return the harmless parts of a conversation that are not read, for the log.

    Args:
        messages: As rows have them.
        ends_in_answer: Whether the answer stands behind them, in a column of its own.
    """
    found = {f"the key {key!r} of messages" for message in messages for key in message if message[key] is not None}
    known = ("role", "content", "from", "value", *UNREAD_KEYS, *_TRAINED)
    found -= {f"the key {key!r} of messages" for key in known}
    if all(message.get("weight") in (None, 0, 1) for message in messages):
        found.discard("the key 'weight' of messages")
    found |= {"nulls among the arguments of calls" for message in messages if has_nulls(message)}
    if not ends_in_answer and read_messages(messages)[-1].role != "assistant":
        found.add("turns after the last answer")
    return found
