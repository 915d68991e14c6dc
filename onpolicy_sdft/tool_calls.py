"""Tools and calls of tools in conversations: read from rows, and handed to the chat template as it takes them.

The tools of a conversation stand before its turns as a turn of the role ``tools``, so whatever carries turns carries
them. A chat template writes calls in its model's own form; the text of an answer that calls is read off from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.types import Turn

TOOLS = "tools"
#: Keys under which an answer's reasoning stands beside it: rows have one, a chat template reads another.
REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
#: What else a message may hold for the chat template, by its role.
EXTRA = {"assistant": (*_CALLS, *REASONING), "tool": ("name", "tool_call_id")}


def read_tools(value: Any) -> Turn:
    """Return the tools of a conversation as the turn that stands before the others.

    Args:
        value: A list of JSON schemas, or that list as JSON text. Nulls are left out: columns of one type fill every
            schema's gaps with them.

    Raises:
        DataError: If it is no such list.
    """
    tools = [parsed(tool) for tool in _listed(value)]
    names = [_function_of(tool).get("name") for tool in tools]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(
            "the tools are not a list of JSON schemas, each with the name of a function, as in "
            f'[{{"type": "function", "function": {{"name": "f", "parameters": {{}}}}}}]: {value!r:.80}'
        )
    for function in map(_function_of, tools):
        if "input_schema" in function and "parameters" not in function:
            raise DataError(
                f"the schema of the tool {function['name']!r} stands under input_schema, which chat templates do not "
                "read: name it parameters"
            )
    whole = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return Turn(TOOLS, _json(_without_nulls(whole)))


def is_empty(value: Any) -> bool:
    """Whether a column of tools says that a row has none: it is empty, or JSON text that is."""
    return not parsed(value)


def spell_out(turns: Sequence[Turn], tools: Turn) -> bool:
    """Whether the system message has the schemas of the tools itself, as in rows that were rendered for one family."""
    said = "".join(turn.content for turn in turns if turn.role == "system")
    names = [re.escape(_function_of(tool)["name"]) for tool in json.loads(tools.content)]
    return all(re.search(rf"""(["'])name\1\s*:\s*(["']){name}\2""", said) for name in names)


def read_extra(message: Mapping[str, Any], role: str) -> str:
    """Return what a message holds for the chat template besides its text, as JSON; empty: nothing.

    Raises:
        DataError: If a call has no name, or arguments that are no object.
    """
    found = {key: message[key] for key in extra_keys(role) if message.get(key)}
    given = [[_call(each) for each in _listed(found.pop(key))] for key in _CALLS if key in found]
    thoughts = [found.pop(key) for key in REASONING if key in found]
    if any(not calls for calls in given):
        raise DataError(f"calls of no function: {message!r:.80}")
    if given:
        found["tool_calls"] = given[0]
    if any(thought != thoughts[0] or not isinstance(thought, str) for thought in thoughts):
        raise DataError(f"the reasoning of a message is no text, or two different ones: {message!r:.80}")
    if thoughts and thoughts[0].strip():
        found |= json.loads(reasoning_of(thoughts[0]))
    if len(given) == 2 and [call["function"] for call in given[0]] != [call["function"] for call in given[1]]:
        raise DataError("a message has other calls in tool_calls than in function_call: keep one")
    return _json(found) if found else ""


def extra_keys(role: Any) -> tuple[str, ...]:
    """Return the keys that a message of a role may have for the chat template."""
    return EXTRA.get(role, ()) if isinstance(role, str) else ()


def has_nulls(message: Mapping[str, Any]) -> bool:
    """Whether nulls among the arguments of a message's calls are left out."""
    calls = [call for key in _CALLS for call in _listed(message.get(key) or [])]
    given = [_function_of(call).get("arguments") for call in calls]
    return any(not isinstance(each, str) and _without_nulls(each) != each for each in given)


def reasoning_of(text: str) -> str:
    """Return an answer's reasoning as what a message holds for the chat template besides its text."""
    return _json(dict.fromkeys(REASONING, text))


def reasoning_in(answer: Turn) -> str:
    """Return the reasoning that stands beside an answer, without blanks around it; empty: none."""
    return str(json.loads(answer.extra).get(REASONING[0], "")).strip() if answer.extra else ""


def calls_in(answer: Turn) -> list[dict[str, Any]]:
    """Return the calls that stand beside an answer."""
    return list(json.loads(answer.extra).get("tool_calls", ())) if answer.extra else []


def text_of(answer: Turn) -> str:
    """Return an answer with its calls as text, before there is a chat template to write them."""
    blocks = [f"<tool_call>\n{_json(call['function'])}\n</tool_call>" for call in calls_in(answer)]
    return "\n".join([answer.content] * bool(answer.content.strip()) + blocks)


def messages_of(turns: Sequence[Turn]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Return turns as messages of a chat template, and the tools that it is given; None: none."""
    tools = None
    messages = []
    for turn in turns:
        if turn.role == TOOLS:
            tools = json.loads(turn.content)
        else:
            extra = json.loads(turn.extra) if turn.extra else {}
            messages.append({"role": turn.role, "content": turn.content, **extra})
    return messages, tools


def with_arguments_as_text(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose calls have their arguments as JSON text."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        return {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}

    return [
        {**each, "tool_calls": [as_text(call) for call in each["tool_calls"]]} if "tool_calls" in each else each
        for each in messages
    ]


def has_tools(turns: Sequence[Turn]) -> bool:
    """Whether a conversation has tools, calls or what tools return: more for a chat template than texts."""
    return any(turn.extra or turn.role == TOOLS for turn in turns)


def renamed(turns: Sequence[Turn]) -> tuple[list[Turn], dict[str, str]]:
    """Return a conversation with a name of its own for each tool and each call, and what each was called."""
    names: dict[str, str] = {}

    def rename(part: dict[str, Any]) -> None:
        function = part["function"]
        name = f"onpolicy_sdft_{len(names)}_"
        names[name], function["name"] = function["name"], name

    found = []
    for turn in turns:
        tools = json.loads(turn.content) if turn.role == TOOLS else []
        extra = json.loads(turn.extra) if turn.extra else {}
        for part in (*tools, *extra.get("tool_calls", ())):
            rename(part)
        found.append(Turn(turn.role, _json(tools) if tools else turn.content, _json(extra) if turn.extra else ""))
    return found, names


def _call(call: Any) -> dict[str, Any]:
    """Return a call as chat templates take it: with its arguments as an object."""
    function = _function_of(call)
    name, given = function.get("name"), function.get("arguments", function.get("parameters"))
    arguments = {} if given in (None, "") else parsed(given)
    unread = given is None and set(function) - {"name", "arguments", "parameters", "id", "type"}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict) or unread:
        raise DataError(
            'a call needs the name of a function, and arguments that are an object, as in {"type": "function", '
            f'"function": {{"name": "f", "arguments": {{"x": 1}}}}}}: {call!r:.80}'
        )
    # Of arguments as JSON text every null was written; in a column of one type they fill the gaps.
    kept = arguments if isinstance(given, str) else _without_nulls(arguments)
    known = {key: call[key] for key in ("id",) if call.get(key)}
    return {**known, "type": "function", "function": {"name": name, "arguments": kept}}


def _function_of(value: Any) -> Mapping[str, Any]:
    """Return what describes or calls a function: under the key ``function``, or the value itself."""
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    value = parsed(value)
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def parsed(value: Any) -> Any:
    """Return what JSON text stands for; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(each) for each in value]
    return value


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"tools or calls that are no JSON ({error}): {value!r:.80}") from error
