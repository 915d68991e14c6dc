"""One function call, compared as syntax."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from textwrap import dedent
from typing import Any, Literal

from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.tasks.json_calls import NAME_SPACES, json_calls, tagged_calls, unquoted_calls, without_name_space
from onpolicy_sdft.tasks.plain_text import without_thoughts
from onpolicy_sdft.tasks.possible_answers import argument_faults, faults_of_names, possible_calls, reference_call
from onpolicy_sdft.tasks.protocol import Task, reference_text, short_message
from onpolicy_sdft.tasks.python_calls import calls_in_code, calls_in_prose
from onpolicy_sdft.tasks.syntax import parse_expression
from onpolicy_sdft.tool_calls import TOOLS, calls_in, text_of
from onpolicy_sdft.types import CheckResult, Demonstration

_MATCHES = ("ast", "legacy")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
#: Forms in which a call may be written: ``get(a=1)``; ``{"name": "get", "arguments": {"a": 1}}``, by itself or in the
#: tags of a chat template, and ``get`` with a JSON object behind it; ``<function=get><parameter=a>1</parameter>``.
FORMS = ("python", "json", "tags")
# Names that a prompt introduces: before a bracket, quoted, or written as no word of a language is.
_INTRODUCED = re.compile(r"(?<![\w.])(?:([A-Za-z_][\w.]*)(?=\()|[\"'`]([A-Za-z_][\w.]*)[\"'`]|([A-Za-z]+_\w+))")
#: What a text does not show: comments of HTML, and what is struck out.
_STRUCK = re.compile(r"<!--.*?(?:-->|\Z)|(?<!~)~~(?!~)[^~\n]+~~(?!~)|<(del|s|strike)>[^<]*</\1>", re.DOTALL)
#: A name with marks of Markdown in it: get\_weather(, **get_weather**(.
_MARKED_NAME = re.compile(r"(?<![\w\\*])(?:\w++(?:\\_\w*+)++(?=[ ]?\()|\*\*([A-Za-z_](?:\w|\\_)*+)\*\*(?=\())")
_CURLY = frozenset("“”‘’")
_STRAIGHT = str.maketrans(dict.fromkeys("“”", '"'))
#: A string between curly single quotes; the closing one is an apostrophe, too, where a letter follows: ‘O’Brien’.
_CURLY_SINGLE = re.compile(r"(?<=[(\[{=,:\s])‘([^‘’\n]*+(?:’(?=\w)[^‘’\n]*+)*+)’(?=\s*[,)\]}:])")
_MAX_FENCES = 50
_SEEN = 4000  # characters of an answer in which a call of another function is looked for: it is wrong in any case
_LEGACY_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\((.*)\)", re.ASCII)
# JSON spellings of Python constants: API descriptions use both.
_JSON_NAMES = {"true": True, "false": False, "null": None}


def find_calls(
    text: str, names: Collection[str] = (), forms: Sequence[str] = FORMS, strings: Collection[str] = ()
) -> list[ast.Call]:
    """Return the outermost function calls of a text.

    Calls in Python are looked for inside ``` fences, and, where those hold none, in the whole text. A text that is
    code as a whole is read as code; else the prose around calls is read over, with the calls it speaks against.

    Args:
        text: A completion or a reference.
        names: Whose calls are looked for; empty: any.
        forms: Of :data:`FORMS`.
        strings: Arguments whose right values are text, for forms that do not tell.

    Returns:
        The calls as syntax trees.
    """
    # Text in an argument may look so as well; only what holds a call is left out.
    text = _STRUCK.sub(lambda struck: "" if re.search(r"[({]", struck[0]) else struck[0], without_thoughts(text))
    text = _MARKED_NAME.sub(lambda name: (name[1] or name[0]).replace("\\", ""), text)
    found = [*json_calls(text, names), *unquoted_calls(text)] if "json" in forms else []
    found += tagged_calls(text, strings) if "tags" in forms else []
    found = [call for call in found if not names or ast.unparse(call.func) in names]
    if "python" in forms:
        fenced = [call for block in _FENCE.findall(text)[:_MAX_FENCES] for call in _python_calls(dedent(block), names)]
        found += fenced or _python_calls(text.strip().strip("`").strip(), names)
    straight = _straight(text) if not found and _CURLY & set(text) else text
    return found if straight == text else find_calls(straight, names, forms, strings)


def _straight(text: str) -> str:
    """Return a text with straight double quotes where curly ones stand around strings."""
    return _CURLY_SINGLE.sub(lambda found: json.dumps(found[1].replace("’", "'")), text.translate(_STRAIGHT))


def _python_calls(text: str, names: Collection[str]) -> list[ast.Call]:
    # Llama calls its own tools as get.call(a=1).
    spaced = {each for name in names for each in (f"{name}.call", *(f"{space}.{name}" for space in NAME_SPACES))}
    found = calls_in_code(text, {*names, *spaced})
    if found is None:
        found = list(calls_in_prose(text, {*names, *spaced}))
    for call in found:
        if spaced and ast.unparse(call.func) in spaced - set(names) and isinstance(call.func, ast.Attribute):
            name = without_name_space(ast.unparse(call.func))
            call.func = parse_expression(name if name in names else name.removesuffix(".call")) or call.func
    return found


def known_names(demonstration: Demonstration) -> set[str]:
    """Return the names that the prompt of a demonstration introduces; others in an answer are no calls of its."""
    text = "\n".join(turn.content for turn in demonstration.turns)
    return {name for found in _INTRODUCED.findall(text) for name in found if name}


def canonical(node: ast.AST) -> object:
    """Return a value that is equal for equal calls and literals.

    The order of keyword arguments, of dict keys and of set members does not matter, nor does the
    way strings are quoted, or their letters composed. Numbers compare by value (1 equals 1.0 but not True); ``true``,
    ``false`` and ``null`` are the Python constants; other names and expressions compare as written.

    Args:
        node: A syntax tree.

    Returns:
        Nested tuples and frozen sets.
    """
    match node:
        case ast.Constant(value=bool() | None as value):
            return ("constant", value)
        case ast.Constant(value=int() | float() | complex() as value):
            return ("number", value)
        case ast.Constant(value=str() as value):
            return ("constant", unicodedata.normalize("NFC", value))
        case ast.Constant(value=value):
            return ("constant", value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return ("number", -value if isinstance(sign, ast.USub) else value)
        case ast.Name(id=name) if name in _JSON_NAMES:
            return ("constant", _JSON_NAMES[name])
        case ast.List(elts=elements):
            return ("list", tuple(map(canonical, elements)))
        case ast.Tuple(elts=elements):
            return ("tuple", tuple(map(canonical, elements)))
        case ast.Set(elts=elements):
            return ("set", frozenset(map(canonical, elements)))
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return ("dict", frozenset({canonical(k): canonical(v) for k, v in pairs if k}.items()))
        case ast.Call(func=function, args=arguments, keywords=keywords):
            named = frozenset((keyword.arg, canonical(keyword.value)) for keyword in keywords)
            return ("call", canonical(function), tuple(map(canonical, arguments)), named)
        case _:
            return ("expression", ast.dump(node))


def legacy_standard(text: str) -> str:
    """Return a text as the ACL-2024 check compares it.

    Runs of white space become one blank, single quotes double ones, and the blank after a comma
    goes.

    Args:
        text: A completion or a reference.

    Returns:
        The standardised text.

    Source:
        Yang et al. (ACL 2024, arXiv:2402.13669), ``eval/eval_openfunction.py`` of their code.
    """
    return re.sub(r"\s+", " ", text.strip()).replace("'", '"').replace(", ", ",")


@dataclass(frozen=True)
class FunctionCall(Task):
    """The completion makes the reference's call, and no other; where it is a turn or a list with several, all of them.

    With ``match="ast"`` calls compare as syntax (see :func:`canonical`); a completion with two
    different calls is wrong. Only functions that the prompt or the reference names are called; what a text mentions,
    defines or says not to call is no call. Rows may have a field ``possible_field`` of right values by argument,
    by function (see :mod:`~onpolicy_sdft.tasks.possible_answers`); it then takes the place of the
    reference. With ``match="legacy"`` the reference has to stand in the completion as text, up to
    white space and quotes, whatever else is there.

    Attributes:
        match: ``ast``, or ``legacy`` for scores comparable with the ACL-2024 paper.
        forms: How a call may be written (see :data:`FORMS`); by default in each of the ways in which chat templates
            have models write calls. ``["python"]`` accepts what the question's wording asks for alone.
        answer_field: Column of the bare call; rows without it have the call in the response.
        possible_field: Column of all calls that are right, for rows that have it.

    Source:
        Legacy rule: Yang et al. (ACL 2024, arXiv:2402.13669), ``eval/eval_openfunction.py`` of
        their code.
    """

    match: Literal["ast", "legacy"] = "ast"
    forms: Sequence[str] = FORMS
    answer_field: str = "answer"
    possible_field: str = "possible_answers"
    name = "function_call"
    work_wording = "Read every argument off the question; write the call and nothing else."
    check_is_quick = True

    def __post_init__(self) -> None:
        if self.match not in _MATCHES:
            near = get_close_matches(str(self.match), _MATCHES, n=1, cutoff=0.0)[0]
            raise TaskError(
                f"task {self.name}: option 'match' is {self.match!r}; give one of "
                f"{', '.join(_MATCHES)} (nearest: {near})"
            )
        if isinstance(self.forms, str) or not self.forms or not set(self.forms) <= set(FORMS):
            raise TaskError(
                f"task {self.name}: option 'forms' is {self.forms!r}; give a list of some of {', '.join(FORMS)}"
            )

    def ask(self, prompt: str) -> str:
        """Ask for the bare call."""
        return f"{prompt}\n\nAnswer with one function call using keyword arguments and nothing else."

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Compare the completion's call with the reference's."""
        if self.match == "legacy":
            return self._check_legacy(completion, demonstration)
        possible = self._possible(demonstration)
        expected = [] if possible else self._expected(demonstration)
        if not possible and not expected:
            return self._check_no_call(completion, demonstration)
        names = set(possible) | {ast.unparse(call.func) for call in expected}
        calls = self._made(completion, names, demonstration, expected)
        right = self._right(demonstration)
        if not calls:
            message = "The answer holds no function call in Python syntax."
            return CheckResult(False, "no_call", message=message, expected=right)
        answer = "; ".join(ast.unparse(call) for call in calls.values())
        if len(expected) > 1:
            missing = {canonical(call) for call in expected} - set(calls)
            num_more = len(calls) - (len(expected) - len(missing))
            if not missing and not num_more:
                return CheckResult(True, answer=answer)
            message = f"{len(missing)} of the calls that are asked for are missing, {num_more} calls are not asked for."
            return CheckResult(False, "wrong_calls", answer, message, right)
        if len(calls) > 1:
            message = "The answer makes several different calls. Make one."
            return CheckResult(False, "several_calls", answer, message, right)
        (call,) = calls.values()
        function = ast.unparse(call.func)
        if function not in names:
            message = short_message(f"{function} is not the function that the question asks for.")
            return CheckResult(False, "wrong_function", answer, message, right)
        faults = _faults(call, expected[0]) if expected else argument_faults(call, possible[function])
        if faults:
            message = short_message("The function is right, its arguments are not.", *faults)
            return CheckResult(False, "wrong_arguments", answer, message, right)
        return CheckResult(True, answer=answer)

    def _check_no_call(self, completion: str, demonstration: Demonstration) -> CheckResult:
        calls = [ast.unparse(call) for call in find_calls(completion, known_names(demonstration), self.forms)]
        if not calls:
            return CheckResult(True)
        message = "The answer makes a call where none is asked for."
        return CheckResult(False, "several_calls", "; ".join(calls), message, self._right(demonstration))

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the reference call as the row has it."""
        return reference_text(demonstration, self.answer_field)

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse a reference that is not one call (or those of a turn), and possible answers of another form."""
        if self.match == "legacy":
            self._expected_legacy(demonstration)
        elif not self._possible(demonstration):
            self._expected(demonstration)

    def _made(
        self, completion: str, names: set[str], demonstration: Demonstration, expected: Sequence[ast.Call]
    ) -> dict[object, ast.Call]:
        """Return the different calls a completion makes: of known functions, or of others where there are none."""
        strings = _text_arguments(self._possible(demonstration), expected)
        known = names | known_names(demonstration)
        all_asked = set(map(canonical, expected)) if len(expected) > 1 else set()
        for text, of in ((completion, known), (completion[:_SEEN], set[str]())):
            found = find_calls(text, of, self.forms, strings)
            calls = {canonical(call): call for call in found if ast.unparse(call.func) in names or not _is_plural(call)}
            if len(calls) > 1:  # "Use `get()`: get(a=1)" mentions it first
                calls = {key: call for key, call in calls.items() if key in all_asked or not _is_mention(call)} or calls
            if calls:
                return calls
        return {}

    def _possible(self, demonstration: Demonstration) -> dict[str, dict[str, list[Any]]]:
        """Return the right values by argument, by function; nothing for a row with a reference alone."""
        if demonstration.fields.get(self.possible_field) is None:
            return {}
        return possible_calls(demonstration, self.possible_field)

    def _right(self, demonstration: Demonstration) -> str:
        possible = self._possible(demonstration)
        if possible:
            return reference_call(*next(iter(possible.items())))
        return self.reference_answer(demonstration)

    def _expected(self, demonstration: Demonstration) -> list[ast.Call]:
        """Return the reference's call; of a list or a turn with calls, each different one; of a turn without, none."""
        text, answer = reference_text(demonstration, self.answer_field), demonstration.answer
        if answer and text == demonstration.response:
            text = text_of(answer)  # what a chat template makes of it may be in a form that is not read
        has_calls = answer is not None and bool(calls_in(answer))
        calls = {canonical(call): call for call in find_calls(text) if not _is_plural(call)}
        calls = calls or {canonical(call): call for call in find_calls(text)}
        if not calls and not has_calls and demonstration.turns[0].role == TOOLS:
            return []  # it has tools and asks for none of them
        if len(calls) != 1 and not (calls and (has_calls or text.lstrip().startswith("["))):
            raise DataError(
                f"example {demonstration.example_id!r}: the reference holds {len(calls)} different "
                f"function calls in Python syntax, not one: {text[:200]!r}; mend the row (several that are all asked "
                "for are a list), leave it out, or compare as text with --task.options '{match: legacy}'"
            )
        return list(calls.values())

    def _check_legacy(self, completion: str, demonstration: Demonstration) -> CheckResult:
        function, parameters = self._expected_legacy(demonstration)
        literal = rf"\b{re.escape(function)}\({re.escape(parameters)}\)"
        found = re.search(literal, legacy_standard(completion))
        if found is None:
            message = "The call that the question asks for does not stand in the answer."
            return CheckResult(False, "wrong_answer", message=message, expected=self.reference_answer(demonstration))
        return CheckResult(True, answer=found.group())

    def _expected_legacy(self, demonstration: Demonstration) -> tuple[str, str]:
        text = legacy_standard(reference_text(demonstration, self.answer_field))
        found = _LEGACY_REFERENCE.match(text)
        if found is None:
            raise DataError(
                f"example {demonstration.example_id!r}: the reference does not start with a "
                f"function call: {text[:200]!r}; mend the row or leave it out"
            )
        return found[1], found[2]


def _faults(call: ast.Call, expected: ast.Call) -> list[str]:
    """Return what is wrong with the arguments of a call of the right function; nothing where it is the same call."""
    if canonical(call) == canonical(expected):
        return []
    given, asked = ({word.arg or "**": canonical(word.value) for word in each.keywords} for each in (call, expected))
    wrong = [name for name in given if name in asked and given[name] != asked[name]]
    faults = faults_of_names([n for n in asked if n not in given], [n for n in given if n not in asked], wrong)
    if list(map(canonical, call.args)) != list(map(canonical, expected.args)):
        faults.insert(0, "The arguments that are given without a name are not those asked for.")
    return faults or ["They are not those asked for."]


def _text_arguments(possible: Mapping[str, Mapping[str, list[Any]]], expected: Sequence[ast.Call]) -> set[str]:
    """Return the arguments whose right values are text."""
    if expected:
        words = [word for call in expected for word in call.keywords if isinstance(word.value, ast.Constant)]
        return {word.arg for word in words if word.arg and isinstance(word.value.value, str)}  # type: ignore[attr-defined]
    of_all = [item for arguments in possible.values() for item in arguments.items()]
    return {name for name, values in of_all if any(isinstance(value, str) and value for value in values)}


def _is_mention(call: ast.Call) -> bool:
    """Whether a call has no value in it: ``get()``, ``get(city)``, ``get(...)``, ``get(city=...)``."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return all(
        isinstance(value, ast.Name) or (isinstance(value, ast.Constant) and value.value is ...) for value in values
    )


def _is_plural(call: ast.Call) -> bool:
    """Say whether a "call" is the English ``parameter(s)``."""
    return not call.keywords and [ast.unparse(node) for node in call.args] in (["s"], ["es"])
