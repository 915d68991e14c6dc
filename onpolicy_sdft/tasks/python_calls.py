"""Calls in Python syntax: inside code as its syntax tree has them, inside prose as they stand.

Only calls of known names count. Every search is linear in the text: brackets are matched once, each piece of text is
parsed a bounded number of times, and trees that are nested too deep are no calls.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from onpolicy_sdft.tasks.syntax import parse_expression, parse_module

_MAX_BITS = 8000  # of a number
MAX_DEPTH = 40  # of a syntax tree, and of JSON
_MAX_CODE = 8000  # characters that are parsed as a whole; longer texts are searched for calls
_MAX_CALLS, _MAX_AGAIN = 200, 8  # of a text that are looked at; of the result of one
_MAX_SCANS = 4  # how many times a text is read for brackets, and how many times it is parsed

_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?=[ ]?\()")
_CALLED_AGAIN = re.compile(r"(?:\.[A-Za-z_]\w*)*\(")
_BRACKET_OR_STRING = re.compile(
    # A quote behind a backslash opens no string: else each of many would be read to the end of the text.
    r"""(?<!\\)'''(?:\\.|[^\\']|'(?!''))*+(?:'''|\\?\Z)|(?<!\\)\"\"\"(?:\\.|[^\\"]|"(?!""))*+(?:\"\"\"|\\?\Z)"""
    r"""|(?<!\\)'(?:\\.|[^'\\\n])*+'|(?<!\\)"(?:\\.|[^"\\\n])*+"|(?P<open>[(\[{])|(?P<close>[)\]}])""",
    re.DOTALL,
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINING = re.compile(r"\b(?:def|class|function|func|fn|sub)\s+$")
_COMMENT = re.compile(r"(?:^|\s)(?:#|//)[^\n]*$")
#: A call behind one of these in its clause is one that is not made.
_NEGATION = re.compile(
    r"\b(?:never|not|cannot|without|avoid|avoiding|no|neither|nor|instead of|rather than|unlike|unable|impossible"
    r"|refuse|decline|hesitate|wish|lack(?:s|ed)?"
    r"|(?:wrong|incorrect|pointless|useless|unsafe|dangerous|mistake|error|forbidden) to"
    r"|(?:might|could|would|should) have|nicht|kein\w*|niemals|ne|nunca|jamais|mai|не)\b"
    r"|n['’]t\b|不|别|勿",
    re.IGNORECASE,
)
#: What has the words of a negation and does not speak of the call.
_NOT_OF_CALL = re.compile(
    r"\bcan(?:not|['’]t) (?:go wrong|wait to)\b|\bno (?:problem|worries|trouble|doubt|questions?)\b"
    r"|\bwithout (?:further ado|hesitation|(?:a |any )?(?:doubt|delay))\b|\bnot (?:only|just|merely|simply)\b"
    # "Since no unit was given I call f()", "Rather than guessing I call f()"
    r"|\b(?:since|as|because|given|while|although|though|when|rather than|instead of|without)\b.*"
    r"(?<![\w'’])(?:I|we)\b(?!['’]d\b| (?:had|could|were|would)\b)"
    # "The call without the unit is f()", "the function that does not need a unit is f()"
    r"|(?:\b(?:without|with no)\b(?! (?:calling|using|making|running)\b)"
    r"|\b(?:that|which|it) (?:does|did|do|would|will)(?: not|n['’]t) (?:need|require|take|have|include|specify)\b"
    r"(?! (?:to|is|are)\b)).*(?=\b(?:is|are|would be|will be)\W*$)",
    re.IGNORECASE | re.DOTALL,
)
_CLAUSE_END = re.compile(
    r"[.!?;:,\n](?=\s|`|$)|(?<=\s)[-–—](?=\s)|\b(?:but|so|then|therefore|thus|hence)\b", re.IGNORECASE
)
#: Right before a call: "Wrong: f()".
_CALLED_WRONG = re.compile(
    r"(?:\b(?:(?:wrong|incorrect|bad|invalid|mistake|forbidden|not (?:allowed|right|this))(?:[ ]\w+){0,2}"
    r"|(?:don['’]t|do not|avoid|never)(?:[ ](?:do|doing|use|using|call|calling|this|that|it))*+)\b"
    r"[^\w\n:]*(?::|[-–—](?=[ ]))|[❌✗✘✖])"
    r"\s*[`'\"*]*$",
    re.IGNORECASE,
)
#: Of a sentence around a call: it would be made if things were different, or is asked about.
_UNREAL = r"\bif (?:only )?(?:I|we) (?:only )?(?:had|could|were|was able)\b"
_SENTENCE_BEFORE = re.compile(rf"(?:{_UNREAL}|\b(?:should|shall) (?:I|we)\b)[^.!?\n]*$", re.IGNORECASE)
#: Behind a call: "f() does not need a unit" says what it does without.
_NEEDS_NOT = (
    r"(?!,?[ ]?(?:(?:but|which|and|it|that|this)[ ])*(?:is|was|does|did|do|would|will|should)(?:[ ]not|n['’]t)[ ]"
    r"(?:need|require|take|have|include|specify|want|only|just)\b(?! (?:to|calling)\b))"
)
_DENIED_AFTER = re.compile(
    # In the same line, or where the next one goes on with the sentence or is nothing but a cross.
    rf"[`'\"*]*(?:[^\S\n]*|\s*(?=(?-i:[a-z])|[❌✗✘✖]\s*\Z)){_NEEDS_NOT}"
    r"(?:fail(?:s|ed)\b|\?\s*(?:no|nope|never|not)\b|[❌✗✘✖]"
    r"|(?:would|will|might|may|could|can)\s+(?:fail|break|crash|raise|error|go wrong)\b"
    r"|:?[ ]?\(?(?:wrong|incorrect|invalid)\b|,?\s*but\s+(?:I|we)\s+(?:lack|have\s+no)\b"
    r"|,?\s*(?:but|which)\s+(?:(?:I|is|would|will|do|does|it|that)\s*)++(?:cannot\b|not\b|n['’]t\b|can['’]t\b"
    r"|won['’]t\b|don['’]t\b)|(?:is|was|would be|will be|would|does|isn['’]t|wouldn['’]t|won['’]t)\s*"
    r"(?:(?:be\s+)?(?:not|wrong|incorrect|never|a mistake|invalid|impossible|pointless)\b|(?<=n['’]t\s)|(?<=n['’]t))"
    rf"|[^.!?\n]{{0,20}}{_UNREAL})",
    re.IGNORECASE,
)
_DEFINITION_LINE = re.compile(r"([ \t]*)(?:async[ ]+)?def[ ]+(\w+)")
_BODY = 2000  # characters of a definition before a call that are read
_WINDOW = 120  # characters of a clause that are read


def is_flat(tree: ast.AST) -> bool:
    """Whether a tree can be walked by functions that call themselves, and written out: Python writes no huge number."""
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        if any(isinstance(node, ast.Constant) and _is_huge(node.value) for node in level):
            return False
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return True
    return False


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > _MAX_BITS


def repeats_keyword(call: ast.Call) -> bool:
    """Whether a call names an argument twice, which Python refuses."""
    names = [keyword.arg for keyword in call.keywords if keyword.arg]
    return len(names) != len(set(names))


def calls_in_code(text: str, names: Collection[str]) -> list[ast.Call] | None:
    """Return the outermost calls of known names that a piece of code makes; None where it is no code.

    Definitions are left out, with what stands in them, but for functions that the code calls itself. What parses and
    neither defines nor calls anything is prose.

    Args:
        text: Python.
        names: Whose calls are looked for; empty: any.
    """
    tree = parse_module(text) if len(text) <= _MAX_CODE else 1
    if isinstance(tree, int) or not is_flat(tree) or any(map(_is_labelled, tree.body)):
        return None
    found: list[ast.Call] = []
    waiting: list[ast.AST] = [tree]
    bodies = {node.name: node.body for node in tree.body if isinstance(node, _Function)}
    defines = bool(bodies)
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):  # prose that parses: "not get()"
            continue
        if not isinstance(node, ast.Call):
            waiting += reversed(list(ast.iter_child_nodes(node)))
        elif (not names or written(node.func) in names) and not repeats_keyword(node):
            found.append(node)
        elif isinstance(node.func, ast.Name) and node.func.id in bodies:
            waiting += reversed([*node.args, *(keyword.value for keyword in node.keywords), *bodies.pop(node.func.id)])
        else:  # what is passed to print, but not what a method of its result is called on
            waiting += reversed([*node.args, *(keyword.value for keyword in node.keywords)])
    return found if found or defines else None


def _is_labelled(node: ast.stmt) -> bool:
    """Whether a statement is prose with a colon: "Wrong: f()"."""
    return isinstance(node, ast.AnnAssign) and node.value is None


def written(function: ast.expr) -> str:
    """Return what a call calls, as Python writes it."""
    return ast.unparse(function)


def calls_in_prose(text: str, names: Collection[str]) -> Iterator[ast.Call]:
    """Yield the outermost calls of known names in a text, from left to right; those it speaks against are left out.

    Args:
        text: Prose with calls in it.
        names: Whose calls are looked for; empty: any.
    """
    brackets, start, budget, num_tried = _Brackets(text), 0, _MAX_SCANS * (len(text) + 1), 0
    while (found := _NAME.search(text, start)) and budget > 0 and num_tried < _MAX_CALLS:
        start = found.end()
        # Of a name nobody knows, a bracket behind a blank is one of the prose.
        if not _is_of(found.group(), names) if names else text[start] == " ":
            continue
        end = brackets.closing(text.index("(", found.end()))
        if end is None:
            continue
        extent = _extent(text, end, brackets)
        budget, num_tried = budget - (extent - found.start()), num_tried + 1
        call = _call(text[found.start() : extent]) if extent > end else None
        if call is None:
            extent, call = end, _call(text[found.start() : end])
        if call is None:
            continue
        start = extent
        if (not names or written(call.func) in names) and not is_spoken_against(text, found.start(), extent):
            yield call


def _is_of(name: str, names: Collection[str]) -> bool:
    return name in names or any(each.startswith((f"{name}(", f"{name}.")) for each in names)


def _call(text: str) -> ast.Call | None:
    call = parse_expression(text)
    return call if isinstance(call, ast.Call) and is_flat(call) and not repeats_keyword(call) else None


def _extent(text: str, end: int, brackets: _Brackets) -> int:
    """Return where a call ends that is called itself: f(1)(2) and f(1).g(2) are one call each."""
    for _ in range(_MAX_AGAIN):
        again = _CALLED_AGAIN.match(text, end)
        if again is None:
            break
        closing = brackets.closing(again.end() - 1)
        # Prose in brackets behind a call is no further call.
        if closing is None or _call(f"f{text[again.end() - 1 : closing]}") is None:
            break
        end = closing
    return end


def is_spoken_against(text: str, start: int, end: int) -> bool:
    """Whether a call is a definition, a part of one, a comment, or one that is said not to be made."""
    before = text[max(0, start - _WINDOW) : start]
    line = before.rpartition("\n")[2]
    clause = _CLAUSE_END.split(before)[-1]
    return bool(
        _DEFINING.search(before)
        or _COMMENT.search(line)
        or _NEGATION.search(_NOT_OF_CALL.sub("", clause))
        or _CALLED_WRONG.search(before)
        or _SENTENCE_BEFORE.search(before)
        or _DENIED_AFTER.match(text, end, end + _WINDOW)
        or _is_in_definition(text, start)
    )


def _is_in_definition(text: str, start: int) -> bool:
    """Whether a place is in the body of a function that the text does not call."""
    lines = text[max(0, start - _BODY) : start].split("\n")
    indent = len(lines[-1]) - len(lines[-1].lstrip())
    for number, line in enumerate(reversed(lines)):
        if not line.strip() or (number and len(line) - len(line.lstrip()) >= indent):
            continue
        if found := _DEFINITION_LINE.match(line):
            return text.count(f"{found[2]}(") == text.count(f"def {found[2]}(")
        indent = len(line) - len(line.lstrip())
        if not indent:
            return False
    return False


@dataclass
class _Brackets:
    """Finds closing brackets; what one search has passed is not searched again."""

    text: str
    _found: dict[int, int | None] = field(default_factory=dict)  # by opening bracket
    _budget: int = field(init=False)

    def __post_init__(self) -> None:
        self._budget = _MAX_SCANS * (len(self.text) + 1)

    def closing(self, opening: int) -> int | None:
        """Return the position after the bracket that closes the one at ``opening``; None where none does."""
        if opening not in self._found:
            self._search(opening)
        return self._found[opening]

    def _search(self, start: int) -> None:
        opened = list[int]()
        end = start
        if self._budget > 0:
            for token in _BRACKET_OR_STRING.finditer(self.text, start):
                end = token.end()
                if token["open"]:
                    opened.append(token.start())
                elif token["close"]:
                    self._found[opened.pop()] = end
                if not opened:
                    break
        self._budget -= end - start
        self._found.update(dict.fromkeys([*opened, *([] if start in self._found else [start])]))
