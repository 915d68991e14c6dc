r"""Calls as chat templates have models write them: JSON objects, and tags around them.

All forms are of three kinds. A JSON object that holds name and arguments, by itself, in a list or in a wrapper
(ChatML, Llama, Phi, Mistral, Granite, OpenAI). A name with a JSON object of arguments behind it (gpt-oss
``to=functions.get``, DeepSeek, Mistral ``get[ARGS]{}``, ``<function=get>{}``). A name with tagged arguments (Qwen-Coder
``<parameter=a>``, GLM ``<arg_key>``). Special tokens are left out of a decoded text, so no form depends on them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from onpolicy_sdft.tasks.python_calls import MAX_DEPTH, is_flat, is_spoken_against
from onpolicy_sdft.tasks.syntax import parse_expression

_NAMES = (
    *("name", "function", "tool_name", "function_name", "tool", "action", "recipient_name", "method", "func", "call"),
)
_ARGUMENTS = (
    "arguments",
    "parameters",
    "args",
    "input",
    "kwargs",
    "action_input",
    "tool_input",
    "tool_args",
    "tool_arguments",
    "params",
)
#: Name spaces that templates put before the names of functions.
NAME_SPACES = ("functions", "tools", "default_api")
#: Keys of objects that hold calls.
_WRAPPERS = (
    *("function", "tool_call", "function_call", "tool_calls", "calls", "function_calls", "functionCall", "toolCalls"),
    *("action", "actions", "tool", "tools", "tool_use", "call"),
    *("content", "output", "message"),
)
#: What is no JSON and yet written: bare keys and single quotes (JavaScript), a comma behind the last item,
#: arguments in single quotes (Glaive).
_BARE_KEY = re.compile(r'("(?:\\.|[^"\\])*+(?:"|\\?\Z))|(?<=[{,])(\s*+)([A-Za-z_]\w*+)(?=\s*+:)', re.DOTALL)
_SINGLE_STRING = re.compile(
    r'("(?:\\.|[^"\\])*+(?:"|\\?\Z))|(?<=[{\[,:\s])\'((?:[^\'\\\n]|\\.)*+)\'(?=\s*+[,:}\]])', re.DOTALL
)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*+(?:"|\\?\Z))|,(?=\s*[}\]])', re.DOTALL)
#: Python's names of constants, where JSON has its own.
_PYTHON_NAME = re.compile(r'("(?:\\.|[^"\\])*+(?:"|\\?\Z))|(?<=[\[,:\s])(True|False|None)(?=\s*+[,}\]])', re.DOTALL)
_JSON_NAMES = {"True": "true", "False": "false", "None": "null"}
_QUOTE_TOKEN = re.compile(r"<(escape|\|\"\|)>([^<]*+)<\1>")
_SINGLE_QUOTED = re.compile(r":\s*'(\{(?:[^'\\]|\\.)*+)'", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_MAX_OBJECTS = 200  # JSON objects, or tags, of a text that are looked at
_BEFORE_ARGUMENTS = re.compile(
    r"(?:to=|<function=|name=|call:)?[\"'`]?(?P<name>[A-Za-z_][\w.]*)[\"'`]?(?::\d+)?[>:*\s]*+"
    r"(?:(?>code|json|tool_sep|\[ARGS\]|\[CALL_ID\]\w*|<[^<>\n]{1,40}>|commentary|```(?:json)?"
    r"|(?:(?:Action|Tool) )?(?:Input|Arguments|Parameters|Args):)[\s>*]*+)*+$"
)
_TAGGED_NAME = re.compile(
    r"<function=([\w.]+)>|<tool_call>\s*([A-Za-z_][\w.]*)\s*(?=<arg_key>|</tool_call>|\n)"
    r"|<invoke name=\"([\w.]+)\">"
)
#: Gemma: ``call:get{city:<escape>Paris<escape>,days:3}``, with its quotes as a token of their own.
_UNQUOTED = re.compile(r"call:([A-Za-z_][\w.]*)\{((?:[^{}<]++|<(?:escape|\|\"\|)>[^<]*+<(?:escape|\|\"\|)>){0,100}+)\}")
_UNQUOTED_ARGUMENT = re.compile(r"\s*(\w+):(?:<(?:escape|\|\"\|)>([^<]*)<(?:escape|\|\"\|)>|([^,<]*))\s*(?:,|$)")
_IN_TAGS = re.compile(r"<tool_call>([^<]*)</tool_call>")
_TEXT = r"[^<]*+(?:<(?!/?(?:parameter|arg_))[^<]*+)*+"
_TAGGED_ARGUMENT = re.compile(
    rf"<parameter=([\w.]+)>({_TEXT})</parameter>|<arg_key>([^<]*)</arg_key>\s*<arg_value>({_TEXT})</arg_value>"
    rf"|<parameter name=\"([\w.]+)\"[^<>]*>({_TEXT})</parameter>"
)
_END_OF_TAGGED = re.compile(r"</function>|</tool_call>|</invoke>")
_WINDOW = 160


class _Repeated(ValueError):
    """A key stands twice in an object: nobody can tell which value is meant."""


def json_calls(text: str, names: Collection[str]) -> list[ast.Call]:
    """Return the calls that a text makes as JSON.

    Args:
        text: A completion.
        names: Known names; one that stands before an object of arguments has to be among them.
    """
    return _json_calls(text, names) or _json_calls(_mended(text), names)


def _mended(text: str) -> str:
    text = _QUOTE_TOKEN.sub(lambda found: json.dumps(found[2]), text)
    text = _SINGLE_QUOTED.sub(lambda found: f": {found[1]}", text)
    text = _SINGLE_STRING.sub(lambda found: found[1] or json.dumps(found[2].replace("\\'", "'")), text)
    text = _BARE_KEY.sub(lambda found: found[1] or f'{found[2]}"{found[3]}"', text)
    text = _PYTHON_NAME.sub(lambda found: found[1] or _JSON_NAMES[found[2]], text)
    return _LAST_COMMA.sub(lambda found: found[1] or "", text)


def _json_calls(text: str, names: Collection[str]) -> list[ast.Call]:
    found: list[ast.Call] = []
    for value, start, end in [*_values(text), *_literals(text)]:
        calls = list(_calls_of(value))
        while isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _WRAPPERS:
            (value,) = value.values()
        if not calls and isinstance(value, dict) and len(value) == 1:  # {"get": {"a": 1}}
            calls = [(name, inside) for name, inside in value.items() if name in names and isinstance(inside, dict)]
        before = _BEFORE_ARGUMENTS.search(text[max(0, start - _WINDOW) : start])
        if not calls and isinstance(value, dict) and before:
            name = without_name_space(before["name"])
            ahead = {name, name.removesuffix("json"), before["name"].removeprefix("function")} & set(names)
            calls = [(name, value) for name in ahead]
        if calls and not is_spoken_against(text, start, end):
            found += [_call(name, arguments) for name, arguments in calls if _is_name(name)]
    return found


def tagged_calls(text: str, strings: Collection[str]) -> list[ast.Call]:
    """Return the calls that a text makes with a tag for each argument.

    Args:
        text: A completion.
        strings: Arguments whose right values are text: tags do not tell ``1`` from ``"1"``.
    """
    found = []
    tags = list(islice(_TAGGED_NAME.finditer(text), _MAX_OBJECTS))
    ends = [*(tag.start() for tag in tags[1:]), len(text)]
    for tag, last in zip(tags, ends, strict=False):  # without tags there is no last one
        end = _END_OF_TAGGED.search(text, tag.end(), last)
        inside = text[tag.end() : end.start() if end else last]
        arguments = {}
        for each in _TAGGED_ARGUMENT.finditer(inside):
            name, value = next((each[i], each[i + 1]) for i in (1, 3, 5) if each[i] is not None)
            arguments[name.strip()] = value.strip("\n") if name.strip() in strings else _untyped(value)
        rest = _TAGGED_ARGUMENT.sub("", inside).strip()
        if not rest:
            found.append(_call(tag[1] or tag[2] or tag[3], arguments))
    return found


def unquoted_calls(text: str) -> list[ast.Call]:
    """Return the calls that a text makes with names that have no quotes; of other arguments than these, none."""
    found = []
    for call in islice(_UNQUOTED.finditer(text), _MAX_OBJECTS):
        arguments, end = dict[str, object](), 0
        while (each := _UNQUOTED_ARGUMENT.match(call[2], end)) and each.end() > end and each[1] not in arguments:
            arguments[each[1]] = each[2] if each[2] is not None else _untyped(each[3].strip())
            end = each.end()
        if end == len(call[2]):
            found.append(_call(call[1], arguments))
    return found


def _values(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield the outermost JSON objects and lists of a text, and where each begins and ends."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_repetition)
    position, unread = 0, 2 * len(text) + 1000
    for _ in range(_MAX_OBJECTS):
        found = _OPENING.search(text, position)
        if found is None or unread < 0:
            return
        position = found.end()
        try:
            value, end = decoder.raw_decode(text, found.start())
        except json.JSONDecodeError as error:
            unread -= max(1, error.pos - found.start())
            continue
        except (ValueError, RecursionError):
            unread -= len(text) - found.start()
            continue
        position = end
        if _is_flat(value):
            yield value, found.start(), end


def _literals(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield the dict that a text, or what stands in its tags, is in Python's spelling."""
    tagged = _IN_TAGS.search(text)
    inside = (tagged[1] if tagged else text).strip()
    value = _literal(inside) if "'" in inside else None
    if value is not None:
        yield value, 0, 0


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    return (
        all(map(_is_json, value)) if isinstance(value, list) else value is None or isinstance(value, str | int | float)
    )


def without_name_space(name: str) -> str:
    """Return the name of a function without what templates put before it."""
    first, _, rest = name.partition(".")
    return rest if rest and first in NAME_SPACES else name


def _calls_of(value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and arguments of the calls in a JSON value."""
    if isinstance(value, list):
        for each in value:
            yield from _calls_of(each)
    if not isinstance(value, dict):
        return
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    key = next((key for key in _ARGUMENTS if key in value), None)
    if name is not None and key is not None:
        arguments = value[key]
        if name == "tools/call":  # of MCP
            yield from _calls_of(arguments)
            return
        if isinstance(arguments, str):  # JSON inside JSON, as in the messages of OpenAI
            arguments = _loaded(arguments)
        if isinstance(arguments, dict):
            yield name, arguments
        return
    for wrapper in _WRAPPERS:
        yield from _calls_of(value.get(wrapper))


def _loaded(text: str) -> object:
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        return None
    return value if _is_flat(value) else None


def _untyped(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        found = _literal(text.strip())
        return text.strip("\n") if found is None and text.strip() != "None" else found
    return value if _is_flat(value) else text


def _literal(text: str) -> object:
    """Return the list, dict or constant that a text writes as Python does; None where it is none of them."""
    if text in ("True", "False"):
        return text == "True"
    node = parse_expression(text) if text[:1] in ("{", "[") else None
    try:
        value = ast.literal_eval(node) if node is not None and is_flat(node) else None
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None
    return value if _is_flat(value) and _is_json(value) else None


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated
    return found


def _is_flat(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH // 2):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False


def _is_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _call(name: str, arguments: Mapping[str, Any]) -> ast.Call:
    first, *rest = without_name_space(name).split(".")
    function: ast.expr = ast.Name(first, ast.Load())
    for part in rest:
        function = ast.Attribute(function, part, ast.Load())
    keywords = [ast.keyword(key, _node(value)) for key, value in arguments.items()]
    return ast.Call(function, [], keywords)


def _node(value: object) -> ast.expr:
    match value:
        case dict():
            return ast.Dict([ast.Constant(key) for key in value], [_node(each) for each in value.values()])
        case list():
            return ast.List([_node(each) for each in value], ast.Load())
        case int() | float() if not isinstance(value, bool) and value < 0:
            return ast.UnaryOp(ast.USub(), ast.Constant(-value))
        case str() | int() | float() | None:
            return ast.Constant(value)
        case _:
            raise AssertionError(f"{value!r} is no JSON")
