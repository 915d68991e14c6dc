"""Calls with more than one right spelling: several values per argument, and arguments that may be left out.

The rules are those of the Berkeley Function Calling Leaderboard, so that its rows can be scored. An argument has a list
of values that are right; the empty string among them says that it may be left out. Where a value is a dict, each of its
keys has such a list again.
"""

from __future__ import annotations

import ast
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from onpolicy_sdft.tasks.protocol import bad_field
from onpolicy_sdft.types import Demonstration

#: Beside the values of an argument: it may be left out.
LEFT_OUT = ""
# "April 1, 2024" is "april 1 2024": case, blanks and these marks do not count.
_WITHOUT_MARKS = str.maketrans({**dict.fromkeys(" ,./-_*^"), "'": '"'})
# JSON spellings of Python constants: descriptions of functions use both.
_JSON_NAMES = {"true": True, "false": False, "null": None}


def possible_calls(demonstration: Demonstration, field: str) -> dict[str, dict[str, list[Any]]]:
    """Return the field of possible answers, checked: values by argument, by function.

    Args:
        demonstration: The question with its fields.
        field: Name of the column.

    Raises:
        DataError: The field is not of that form.
    """
    value = demonstration.fields[field]
    if not isinstance(value, Mapping) or not value:
        raise bad_field(demonstration, field, f"is {value!r:.100}, not arguments by function")
    for function, arguments in value.items():
        if not isinstance(arguments, Mapping):
            raise bad_field(demonstration, field, f"has no arguments for {function!r} but {arguments!r:.100}")
        for name, values in arguments.items():
            if not _is_list(values) or not values:
                raise bad_field(demonstration, field, f"has no list of values for {name!r} but {values!r:.100}")
    return {function: {name: list(values) for name, values in items.items()} for function, items in value.items()}


def argument_faults(call: ast.Call, arguments: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return what is wrong with a call's arguments, without the right values; nothing where all of them are right.

    Args:
        call: The call, of the right function.
        arguments: Right values by argument.

    Source:
        ``simple_function_checker`` of ``bfcl_eval`` (Apache-2.0). Different here: arithmetic is not worked out, a
        tuple stands for a list, and inside lists and dicts numbers compare by value and strings as leniently as
        elsewhere.
    """
    given = {keyword.arg: literal(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    if call.args or len(given) < len(call.keywords):
        return ["Every argument is to be given by its name."]
    missing = [name for name in arguments if name not in given and LEFT_OUT not in arguments[name]]
    unknown = [name for name in given if name not in arguments]
    wrong = [
        name
        for name, value in given.items()
        if name in arguments and (not _is_any(value, arguments[name]) or _is_float_for_whole(value, arguments[name]))
    ]
    return faults_of_names(missing, unknown, wrong)


def faults_of_names(missing: Sequence[str], unknown: Sequence[str], wrong: Sequence[str]) -> list[str]:
    """Word which arguments are wrong, and in which way; nothing where none is."""
    found = {"Missing arguments": missing, "Arguments that do not belong there": unknown, "Wrong values of": wrong}
    return [f"{what}: {', '.join(names)}." for what, names in found.items() if names]


def literal(node: ast.AST) -> Any:
    """Return the value a syntax tree spells; a name or an expression is the text it is written as."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return -value if isinstance(sign, ast.USub) else value
        case ast.Name(id=name):
            return _JSON_NAMES.get(name, name)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {literal(key): literal(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case _:
            return ast.unparse(node)


def reference_call(function: str, arguments: Mapping[str, Sequence[Any]]) -> str:
    """Write the shortest call that is right: the first value of each argument that may not be left out.

    Args:
        function: Its name.
        arguments: Right values by argument.

    Returns:
        The call as Python writes it.
    """
    needed = {name: _first(values) for name, values in arguments.items() if LEFT_OUT not in values}
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in needed.items())})"


def _first(values: Sequence[Any]) -> Any:
    return _plain(values[0])


def _plain(value: Any) -> Any:
    """Choose among the alternatives of a dict's keys."""
    if isinstance(value, Mapping):
        lists = {key: each for key, each in value.items() if _is_list(each) and each}
        if len(lists) < len(value):
            return dict(value)  # its values are plain ones
        return {key: _first(each) for key, each in lists.items() if LEFT_OUT not in each}
    return [_plain(each) for each in value] if _is_list(value) else value


def _is_any(value: Any, values: Sequence[Any]) -> bool:
    return any(_is(value, each) for each in values)


def _is_float_for_whole(value: Any, values: Sequence[Any]) -> bool:
    """A whole number asked for is not to be written as a float (the other way round is fine)."""
    return isinstance(value, float) and not any(isinstance(each, float) for each in values)


def _is(value: Any, right: Any) -> bool:
    if isinstance(value, str) and isinstance(right, str):
        return _standard(value) == _standard(right)
    if _is_list(value) and _is_list(right):
        return len(value) == len(right) and all(map(_is, value, right))
    if isinstance(value, Mapping) and isinstance(right, Mapping):
        return _is_dict(value, right)
    # 1 equals 1.0 but not True.
    return isinstance(value, bool) == isinstance(right, bool) and bool(value == right)


def _is_dict(value: Mapping[Any, Any], right: Mapping[Any, Any]) -> bool:
    if value.keys() == right.keys() and all(_is(value[key], right[key]) for key in right):
        return True
    alternatives = {key: each for key, each in right.items() if _is_list(each)}
    left_out = right.keys() - value.keys()
    return all(LEFT_OUT in alternatives.get(key, ()) for key in left_out) and all(
        key in alternatives and _is_any(each, alternatives[key]) for key, each in value.items()
    )


def _standard(text: str) -> str:
    return unicodedata.normalize("NFC", text).translate(_WITHOUT_MARKS).lower()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
