"""One function call, compared as syntax."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.tasks.possible_answers import argument_faults, faults_of_names, possible_calls, reference_call
from onpolicy_sdft.tasks.protocol import Task, reference_text, short_message
from onpolicy_sdft.types import CheckResult, Demonstration

_MATCHES = ("ast", "legacy")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NAME = re.compile(r"(?<!\w)[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\(")
_CALLED_AGAIN = re.compile(r"(?:\.[A-Za-z_]\w*)*\(")
_BRACKET_OR_STRING = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?P<open>[(\[{])|(?P<close>[)\]}])""", re.DOTALL
)
_LEGACY_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\((.*)\)", re.ASCII)
# JSON spellings of Python constants: API descriptions use both.
_JSON_NAMES = {"true": True, "false": False, "null": None}


def find_calls(text: str) -> list[ast.Call]:
    """Return the outermost function calls of a text, in order.

    Calls are looked for inside ``` fences, and, where those hold none, in the whole text. A text
    that is one call as a whole is that call; else the prose around calls is read over.

    Args:
        text: A completion or a reference.

    Returns:
        The calls as syntax trees.
    """
    fenced = [call for block in _FENCE.findall(text) for call in _calls(block)]
    return fenced or _calls(text)


def canonical(node: ast.AST) -> object:
    """Return a value that is equal for equal calls and literals.

    The order of keyword arguments, of dict keys and of set members does not matter, nor does the
    way strings are quoted. Numbers compare by value (1 equals 1.0 but not True); ``true``,
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
    """The completion makes the reference's call, and no other.

    With ``match="ast"`` calls compare as syntax (see :func:`canonical`); a completion with two
    different calls is wrong. Rows may have a field ``possible_field`` of right values by argument,
    by function (see :mod:`~onpolicy_sdft.tasks.possible_answers`); it then takes the place of the
    reference. With ``match="legacy"`` the reference has to stand in the completion as text, up to
    white space and quotes, whatever else is there.

    Attributes:
        match: ``ast``, or ``legacy`` for scores comparable with the ACL-2024 paper.
        answer_field: Column of the bare call; rows without it have the call in the response.
        possible_field: Column of all calls that are right, for rows that have it.

    Source:
        Legacy rule: Yang et al. (ACL 2024, arXiv:2402.13669), ``eval/eval_openfunction.py`` of
        their code.
    """

    match: Literal["ast", "legacy"] = "ast"
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

    def ask(self, prompt: str) -> str:
        """Ask for the bare call."""
        return f"{prompt}\n\nAnswer with one function call using keyword arguments and nothing else."

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Compare the completion's call with the reference's."""
        if self.match == "legacy":
            return self._check_legacy(completion, demonstration)
        possible = self._possible(demonstration)
        expected = None if possible else self._expected(demonstration)
        names = set(possible) if expected is None else {ast.unparse(expected.func)}
        calls = {
            canonical(call): call
            for call in find_calls(completion)
            if ast.unparse(call.func) in names or not _is_plural(call)
        }
        right = self._right(demonstration)
        if not calls:
            message = "The answer holds no function call in Python syntax."
            return CheckResult(False, "no_call", message=message, expected=right)
        answer = "; ".join(ast.unparse(call) for call in calls.values())
        if len(calls) > 1:
            message = "The answer makes several different calls. Make one."
            return CheckResult(False, "several_calls", answer, message, right)
        (call,) = calls.values()
        function = ast.unparse(call.func)
        if function not in names:
            message = short_message(f"{function} is not the function that the question asks for.")
            return CheckResult(False, "wrong_function", answer, message, right)
        faults = argument_faults(call, possible[function]) if expected is None else _faults(call, expected)
        if faults:
            message = short_message("The function is right, its arguments are not.", *faults)
            return CheckResult(False, "wrong_arguments", answer, message, right)
        return CheckResult(True, answer=answer)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the reference call as the row has it."""
        return reference_text(demonstration, self.answer_field)

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse a reference that is not one call, and possible answers of another form."""
        if self.match == "legacy":
            self._expected_legacy(demonstration)
        elif not self._possible(demonstration):
            self._expected(demonstration)

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

    def _expected(self, demonstration: Demonstration) -> ast.Call:
        text = reference_text(demonstration, self.answer_field)
        calls = {canonical(call): call for call in find_calls(text) if not _is_plural(call)}
        calls = calls or {canonical(call): call for call in find_calls(text)}
        if len(calls) != 1:
            raise DataError(
                f"example {demonstration.example_id!r}: the reference holds {len(calls)} different "
                f"function calls in Python syntax, not one: {text[:200]!r}; mend the row, leave "
                "it out, or compare as text with --task.options '{match: legacy}'"
            )
        return next(iter(calls.values()))

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


def _parse(text: str) -> ast.Call | None:
    """Return the one call a text is, if it is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a model's string is no news
            node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return node if isinstance(node, ast.Call) and not _repeats_keyword(node) else None


def _calls(text: str) -> list[ast.Call]:
    whole = _parse(text.strip().strip("`").strip())
    return list(_scan(text)) if whole is None else [whole]


def _scan(text: str) -> Iterator[ast.Call]:
    """Yield the outermost calls of a text from left to right."""
    start = 0
    while found := _NAME.search(text, start):
        start = found.end()
        end = _closing(text, found.end() - 1)
        call = None
        while end and (longer := _parse(text[found.start() : end])) is not None:
            # f(1)(2) and f(1).g(2) are one call each: go on while the call itself is called.
            call, start = longer, end
            again = _CALLED_AGAIN.match(text, end)
            end = _closing(text, again.end() - 1) if again else None
        if call is not None:
            yield call


def _closing(text: str, opening: int) -> int | None:
    """Return the position after the bracket that closes the one at ``opening``."""
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(text, opening):
        depth += bool(token["open"]) - bool(token["close"])
        if depth == 0:
            return token.end()
    return None


def _repeats_keyword(call: ast.Call) -> bool:
    names = [keyword.arg for keyword in call.keywords if keyword.arg]
    return len(names) != len(set(names))


def _is_plural(call: ast.Call) -> bool:
    """Say whether a "call" is the English ``parameter(s)``."""
    return not call.keywords and [ast.unparse(node) for node in call.args] in (["s"], ["es"])
