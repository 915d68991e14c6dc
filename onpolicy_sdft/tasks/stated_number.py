r"""Which number a text states: the one behind its answer marker, else the last one.

Numbers that stand side by side are one statement (``5 + 3 = 8``, "3 or 4", "2 hours 30 minutes"). A statement has a
value where it is one number, or where all sides of its equation that are one number are the same; else it has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from onpolicy_sdft.tasks import number_words as known
from onpolicy_sdft.tasks.plain_text import CHANGED_MIND, braced, without_thoughts
from onpolicy_sdft.tasks.quantities import Quantity, plain_numbers, quantities

#: How two numbers beside each other belong together.
_Link = Literal["equals", "operation", "alternative", "verb", "apart"]

_MARKER = re.compile(
    r"(?P<boxed>\\boxed\s*\{)|\#{4}|(?P<tag><answer>)"
    r"|(?:\banswer\b|\bAntwort\b|\brespuesta\b|\brépons?e\b|\bresposta\b|\brisposta\b|\bответ\b|答案|答え)"
    r"(?:[^\n.\d=:：]{0,40}?(?:\b(?:is|are|was|be|equals|ist|es|est|é|è)\b|[:：=是为は])(?:\s*[:：=])?|[\s*#]*\n|\s+(?=[-$\d]))",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\\[a-z]+|[<>]=|=>|->|\S")
_BETWEEN_BOXES = re.compile(r"[^.!?\n]{0,60}")
_SENTENCE_END = re.compile(r"[.!?;:\n](?=\s|$)")
_ASIDE = re.compile(r"\s\($")  # "5 (3 + 2)"
_READ_FOR_MARKERS = 16_000  # characters at the end of a text
_MAX_GAP = 60
_MAX_LINE, _MAX_LINES = 1000, 100  # characters of a line, and lines with numbers, that are read
_DIGIT = re.compile(r"\d")
_UNIT_WORDS = 2  # words of a unit between two numbers, as in "5 square feet"


def final_number(text: str) -> Fraction | None:
    r"""Return the number a text ends up with, exactly.

    The number after the last marker counts ("the answer is", "answer:", ``####``, ``\boxed{}``, ``<answer>``); without
    a marker, the last number of the text does. What stands before the end of a model's thoughts is not read. Thousands
    separators, currency signs, percent signs and units are read over: 50% is 50. Fractions, mixed numbers, powers and
    "million" are values, so 3/4 equals 0.75. What has no single value (a range, "3 or 4", a time, an expression that
    is not worked out) is no number.

    Args:
        text: A worked solution or a bare answer.

    Returns:
        The number, or None where there is none.

    Source:
        Takes the place of ``find_last_integer`` in the code of Yang et al. (ACL 2024,
        arXiv:2402.13669), which reads "3 4" as 34 and finds two unparseable answers equal.
    """
    text = plain_numbers(without_thoughts(text))
    marked = marked_text(text)
    if marked is None:
        return _last_stated(text)
    if isinstance(marked, _Several):
        return None
    return _behind_marker(marked)


def _behind_marker(marked: str) -> Fraction | None:
    first, _, rest = marked.lstrip().partition("\n")
    is_below = "\n" in marked[: len(marked) - len(marked.lstrip())]
    line = ("\n" if is_below else "") + first[:_MAX_LINE]
    statements = _statements(line)
    if not statements:
        # "The answer is therefore easy to see: ... 18" states its number further on.
        return _last_stated(rest)
    value = next((each.value for each in statements if not each.is_denied), None)
    if doubt := CHANGED_MIND.search(first + rest, statements[0].end):
        later = _last_stated((first + rest)[doubt.end() :])
        return value if later is None or later == value else None
    return value


class _Several(str):
    """What stands in answer boxes beside each other: no single answer."""


def marked_text(text: str) -> str | None:
    """Return what stands after the last answer marker, or None where there is no marker.

    A marker behind which there is no digit at all says nothing about the one before: "I hope this answer is helpful!"
    """
    markers = list(_MARKER.finditer(text, max(0, len(text) - _READ_FOR_MARKERS)))
    if not markers:
        return None
    last_digit = max((found.start() for found in _DIGIT.finditer(text)), default=-1)
    while len(markers) > 1 and markers[-1].end() > last_digit:
        markers.pop()
    last, behind = markers[-1], text[markers[-1].end() :]
    if last["tag"]:
        return behind.partition("</answer>")[0]
    if not last["boxed"]:
        return behind
    inside = braced(text, last.end())
    if len(markers) > 1 and markers[-2]["boxed"]:
        other = markers[-2].end() + len(braced(text, markers[-2].end())) + 1
        if braced(text, markers[-2].end()) != inside and _BETWEEN_BOXES.fullmatch(text, other, last.start()):
            return _Several(inside)
    return inside


def states_number(text: str) -> bool:
    """Whether a text marks its answer as one."""
    return marked_text(plain_numbers(without_thoughts(text))) is not None


@dataclass(frozen=True, slots=True)
class _Statement:
    """Numbers that belong together."""

    start: int
    end: int
    value: Fraction | None
    is_denied: bool
    is_equation: bool


def _last_stated(text: str) -> Fraction | None:
    """Return the last number that is stated; what a line states ends with it."""
    lines = [line for line in text.split("\n") if line.strip()]
    with_numbers = [number for number, line in enumerate(lines) if _DIGIT.search(line)]
    for number in reversed(with_numbers[-_MAX_LINES:]):
        line = ("\n" if number else "") + lines[number][-_MAX_LINE:]  # "- 3" is an item of a list, unless it is alone
        stated = [each for each in _statements(line) if not each.is_denied]
        if stated:
            return _result(line, stated).value
    return None


def _result(line: str, stated: Sequence[_Statement]) -> _Statement:
    """Return the statement a line ends with: in "120/24 = 5 hours to read 120 pages" that is the equation."""
    if stated[-1].is_equation:
        return stated[-1]
    for before, after in zip(reversed(stated[:-1]), reversed(stated[1:]), strict=True):
        if set(_tokens(line[before.end : after.start])) & (known.BREAKS | known.VERBS):
            break
        if before.is_equation:
            return before
    return stated[-1]


def _statements(text: str) -> list[_Statement]:
    found = list(quantities(text))
    links = [_link(text, left, right) for left, right in pairwise(found)]
    for place, link in enumerate(links):
        before, after = links[place - 1] if place else "apart", links[place + 1] if place + 1 < len(links) else "apart"
        if link == "verb":  # "5 + 3 is 8", but not "the price of 3 is 8"
            links[place] = "equals" if before == "operation" else "apart"
        elif link == "alternative" and after in ("operation", "equals"):
            # "8, and 8 * 2 = 16" goes on with something new, "8 and 9" does not.
            gap = set(_tokens(text[found[place].end : found[place + 1].start]))
            links[place] = "apart" if gap and not known.OR & gap else "alternative"
    statements, start = [], 0
    for place, link in enumerate([*links, "apart"][: len(found)]):
        if link == "apart":
            last = found[start - 1].end if start else 0
            statements.append(_statement(text, last, found[start : place + 1], links[start:place]))
            start = place + 1
    return statements


def _statement(text: str, before: int, numbers: Sequence[Quantity], links: Sequence[_Link]) -> _Statement:
    """Read numbers that belong together, with the words around them."""
    ahead = _tokens(_SENTENCE_END.split(text[max(before, numbers[0].start - _MAX_GAP) : numbers[0].start])[-1])[-4:]
    behind = _tokens(text[numbers[-1].end : numbers[-1].end + 20])[:1]
    rather = ahead[-2:] in (["rather", "than"], ["instead", "of"], ["other", "than"])
    is_aside = before > 0 and _ASIDE.search(text[before : numbers[0].start]) is not None
    is_denied = bool(known.NOT & set(ahead[-3:])) or rather or is_aside
    is_open = (behind and behind[0] in known.MORE) or "between" in ahead or (len(numbers) == 1 and _is_bound(ahead))
    # 7x = 14 says nothing of x yet.
    has_unknown = any(each.value is None and text[each.end - 1].isalpha() for each in numbers)
    value = None if is_open or has_unknown else _value(numbers, links)
    return _Statement(numbers[0].start, numbers[-1].end, value, is_denied, "equals" in links)


def _value(numbers: Sequence[Quantity], links: Sequence[_Link]) -> Fraction | None:
    """Return the value of numbers that belong together: that of the sides of an equation that are one number."""
    values = {number.value for number in numbers}
    if "alternative" in links:  # "1/2 or 0.5" is one number all the same
        return values.pop() if len(values) == 1 and set(links) == {"alternative"} else None
    sides: list[list[Quantity]] = [[numbers[0]]]
    for number, link in zip(numbers[1:], links, strict=True):
        if link == "equals":
            sides.append([])
        sides[-1].append(number)
    single = {side[0].value for side in sides if len(side) == 1} - {None}
    return single.pop() if len(single) == 1 else None


def _is_bound(ahead: Sequence[str]) -> bool:
    """Whether the words before a number make another one of it: "less than 5", "half of 10", "x + 5"."""
    if list(ahead[-2:]) == ["up", "to"]:
        return True
    last = [word for word in ahead if word not in ("the", "a", "of")]
    return bool(last) and last[-1] in known.CHANGING


def _link(text: str, left: Quantity, right: Quantity) -> _Link:
    """Say how two numbers beside each other belong together."""
    if right.start - left.end > _MAX_GAP:
        return "apart"
    gap = _tokens(text[left.end : right.start])
    words = set(gap)
    between = text[left.end : right.start]
    if not gap:  # "2(3)" and "3 4", but not "5 (3 + 2)"
        return "apart" if "\n" in between or re.search(r"\s\(", between) else "alternative"
    if gap in ([":"], ["in"]) or words & known.COMPARED:  # a ratio, "1 in 7", a range
        return "alternative"
    if "rather" in words:
        return "apart"
    if "(" in between and all(map(str.isalpha, words)):
        return "apart"
    if gap[-1] in known.OPERATIONS:
        return "operation"
    if words & (known.ENDS | known.NEW | known.NOT):
        return "apart"
    if words & known.VERBS:
        return "verb" if len(gap) == 1 else "apart"
    if words & known.EQUALS:
        return "alternative" if words & (known.OR | known.AND) - {"-", "/"} else "equals"
    while gap[0] not in known.OR | known.AND and len(gap) > 1:
        gap = gap[1:]  # the unit
    if len(words) > 2 * _UNIT_WORDS or (gap[0] == "to" and len(gap) > 1):  # "5 hours to read 120 pages"
        return "apart"
    if gap[0] in known.OR | known.AND and len(gap) <= 1 + _UNIT_WORDS:
        return "alternative"
    # "2 hours 30 minutes", but not "18 because 5 + 6"
    is_counted = re.match(r"\s*[^\W\d_]", text[right.end : right.end + 2]) is not None
    return "alternative" if (is_counted or len(gap) == 1) and "\n" not in between else "apart"


def _tokens(text: str) -> list[str]:
    return [token for token in _TOKEN.findall(text.lower()) if token not in known.TRANSPARENT]
