r"""What the numbers of a text state: those that stand side by side are one statement.

A statement (``5 + 3 = 8``, "3 or 4", "2 hours 30 minutes") has a value where it is one number, or where all sides of
its equation that are one number are the same; else it has none.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from onpolicy_sdft.tasks import number_words as known
from onpolicy_sdft.tasks.denials import denies_number, is_number_denied_after
from onpolicy_sdft.tasks.plain_numbers import BOLD
from onpolicy_sdft.tasks.quantities import Quantity, quantities
from onpolicy_sdft.tasks.unit_conversions import converted

#: How two numbers beside each other belong together.
_Link = Literal["equals", "operation", "alternative", "verb", "apart"]
_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\\[a-z]+|[<>]=|=>|->|\S")
_SENTENCE_END = re.compile(r"[.!?;:\n](?=\s|$)")
_RESULT = re.compile(r"(?:\s+[^\W\d_]+){0,2}\s+(?:left|remaining|remain|remains|in total|altogether|in all|total)\b")
_UNKNOWN = re.compile(r"[^\W\d_]\Z|^\\[dtc]?frac.*(?<![\\a-z])[a-z]\b", re.IGNORECASE)  # 3x, \frac{x}{2}
_ASIDE = re.compile(r"\s\($")  # "5 (3 + 2)"
#: What is bold and no result: "**Day 3** - she runs 5 miles".
_BOLD_LABEL = re.compile(
    r"\W*(?:Day|Week|Month|Year|Step|Part|Case|Option|Method|Round|Level|Test)\s\d+\W*", re.IGNORECASE
)
#: "1 hour 30 minutes (90 minutes)"
_IN_BRACKETS = re.compile(r"^[^()]{0,20}\([^()\d]{0,20}$")
#: "f(3) = 9"
_FUNCTION = re.compile(r"(?<![A-Za-z\\])[fghpqFGHPCTSVANRL]\(\s?$")
_FUNCTION_END = re.compile(r"\s?\)\s?=")
#: Between an equation and its solution: "3x = 15, so x = 5".
_NEXT_UNKNOWN = re.compile(
    r"(?:[\s,;.$&]|→|⇒|⟹|->|=>|\\(?:implies|Rightarrow|rightarrow|to)\b|and\b|so\b|thus\b|then\b|therefore\b|hence\b)++"
    r"([a-zA-Z])\s?=[\s$]{0,3}"
)
#: "4s = 4 × 5 = 20", and "2 tickets at $3 each = $6"
_COEFFICIENT = re.compile(r"(\d{1,4})[ ]?[a-zA-Zπ]{1,3}(?:\^\d)?\s?=")
_EACH = re.compile(r"\s(?:each|apiece)\s?=")
_CLAUSE = re.compile(r"[,;:()]")
_MAX_GAP = 60
_UNIT_WORDS = 2  # words of a unit between two numbers, as in "5 square feet"


@dataclass(frozen=True, slots=True)
class Statement:
    """Numbers that belong together."""

    start: int
    end: int
    value: Fraction | None
    is_denied: bool  # "not 5", "rather than 5"
    is_remark: bool  # "(3 red)" behind another number
    is_equation: bool
    is_result: bool  # "5 left", "a total of 5"
    is_bold: bool
    is_work: bool  # "20 + 40", "half of 40": what is worked out next


def statements_of(text: str) -> list[Statement]:
    """Return what a text states, from left to right.

    Args:
        text: A line, as :func:`~onpolicy_sdft.tasks.plain_numbers.with_bold` returns it.
    """
    bold = _bold_places(text)
    text = text.replace(BOLD, " ")
    found = [each for each in quantities(text) if not _is_argument(text, each)]
    links = [_link(text, left, right) for left, right in pairwise(found)]
    _settle(text, found, links, bold)
    statements, start = [], 0
    for place, link in enumerate([*links, "apart"][: len(found)]):
        if link == "apart":
            last = found[start - 1].end if start else 0
            statements.append(_statement(text, last, found[start : place + 1], links[start:place], bold))
            start = place + 1
    return statements


def _settle(text: str, found: Sequence[Quantity], links: list[_Link], bold: Sequence[tuple[int, int]]) -> None:
    """Decide, in place, about links that what stands around them tells more of."""
    start = 0
    for place, link in enumerate(links):
        before, after = links[place - 1] if place else "apart", links[place + 1] if place + 1 < len(links) else "apart"
        between = text[found[place].end : found[place + 1].start]
        if link in ("equals", "alternative") and _solves(text, found[start : place + 1], between):
            links[place] = "apart"
        elif link == "verb":  # "5 + 3 is 8", but not "the price of 3 is 8"
            links[place] = "equals" if before == "operation" else "apart"
        elif link == "alternative" and after in ("operation", "equals"):
            # "8, and 8 * 2 = 16" goes on with something new, "8 and 9" does not.
            gap = set(tokens(between))
            links[place] = "apart" if gap and not known.OR & gap else "alternative"
        elif link == "alternative" and before == "equals" and after == "apart":
            links[place] = "apart" if tokens(between) == ["in"] else link
        elif link == "alternative" and not (known.OR | {"and"}) & set(tokens(between)):
            are_bold = [_is_bold(bold, each.start, each.end) for each in found[place : place + 2]]
            links[place] = (
                "apart" if are_bold[0] != are_bold[1] or _ends_condition(text, found[place], between) else link
            )
        elif link == "apart" and place > start and _IN_BRACKETS.search(between):
            inside = [*links[start:place], "equals"]
            links[place] = "equals" if converted(text, found[start : place + 2], inside) is not None else link
        if links[place] == "apart":
            start = place + 1


def _is_argument(text: str, number: Quantity) -> bool:
    """Whether a number is what a function is taken of: "f(3) = 9"."""
    return _FUNCTION.search(text[max(0, number.start - 4) : number.start]) is not None and bool(
        _FUNCTION_END.match(text, number.end)
    )


def _solves(text: str, before: Sequence[Quantity], between: str) -> bool:
    """Whether what follows says what the unknown of an equation is: "3x = 15, so x = 5"."""
    found = _NEXT_UNKNOWN.fullmatch(between)
    return found is not None and any(
        each.value is None and text[each.start : each.end][-1:] == found[1] for each in before
    )


def _ends_condition(text: str, number: Quantity, between: str) -> bool:
    """Whether a comma ends a condition: "With 4 people, each pays 20"."""
    words = tokens(_CLAUSE.split(text[max(0, number.start - _MAX_GAP) : number.start])[-1])
    return "," in between and words[:1] != [] and words[0] in known.CONDITION_AHEAD


def _bold_places(text: str) -> list[tuple[int, int]]:
    """Return where what is bold begins and ends, but for the labels among it ("**Step 2:**")."""
    marks = [found.start() for found in re.finditer(BOLD, text)]
    if len(marks) % 2:
        return []
    places = list(zip(marks[::2], marks[1::2], strict=True))
    return [
        (start, end)
        for start, end in places
        if text[end - 1] != ":" and text[end + 1 : end + 2] != ":" and not _BOLD_LABEL.fullmatch(text, start + 1, end)
    ]


def _is_bold(bold: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    place = bisect_right(bold, (start, 0)) - 1
    return place >= 0 and end <= bold[place][1]


def _statement(
    text: str,
    before: int,
    numbers: Sequence[Quantity],
    links: Sequence[_Link],
    bold: Sequence[tuple[int, int]],
) -> Statement:
    """Read numbers that belong together, with the words around them."""
    ahead = tokens(_SENTENCE_END.split(text[max(before, numbers[0].start - _MAX_GAP) : numbers[0].start])[-1])[-4:]
    behind_it = text[numbers[-1].end : numbers[-1].end + _MAX_GAP]
    behind = [] if behind_it.lstrip().startswith("(") else tokens(behind_it[:20])[:1]
    rather = tuple(ahead[-2:]) in known.NOT_IN_TWO
    is_aside = before > 0 and _ASIDE.search(text[before : numbers[0].start]) is not None
    is_denied = (
        (_is_denied(ahead, "equals" in links) or rather)
        or denies_number(text[before : numbers[0].start], "")
        or is_number_denied_after(text, numbers[-1].end)
    )
    is_counted = bool(ahead) and ahead[-1] in known.COUNTS and text[numbers[0].start - 1] == " "  # "three 6-packs"
    is_open = (
        is_counted
        or (behind and behind[0] in known.MORE)
        or "between" in ahead
        or (len(numbers) == 1 and _is_bound(ahead) and not _is_half_again(text, numbers[0], ahead))
    )
    # 7x = 14 says nothing of x yet.
    has_unknown = any(each.value is None and _UNKNOWN.search(text[each.start : each.end]) for each in numbers)
    if _worked_coefficient(text, numbers, links):
        value = _value(numbers[1:], links[1:])
    elif is_open or has_unknown:
        value = None
    else:
        value = _value(numbers, links)
        if value is None and len(numbers) > 1:
            value = converted(text, numbers, links)
    is_work = value is None and not has_unknown and (set(links) == {"operation"} or _is_part(ahead, numbers))
    is_equation = "equals" in links or (bool(ahead) and ahead[-1] in known.EQUALS)
    is_result = ahead[-2:] in (["total", "of"], ["sum", "of"]) or _RESULT.match(behind_it) is not None
    is_bold = _is_bold(bold, numbers[0].start, numbers[-1].end)
    return Statement(
        numbers[0].start, numbers[-1].end, value, is_denied, is_aside, is_equation, is_result, is_bold, is_work
    )


def _is_half_again(text: str, number: Quantity, ahead: Sequence[str]) -> bool:
    """Whether brackets say in digits what stands before them in words: "six and a half (6.5)"."""
    return text[number.start - 1] == "(" and text[number.end : number.end + 1] == ")" and ahead[-1] in known.PARTS


def _is_denied(ahead: Sequence[str], is_equation: bool) -> bool:
    """Whether the words before a number say that it is not the one: "not 5", but "without it, 5" does not."""
    for word in reversed(ahead[-1:] if is_equation else ahead[-3:]):
        if word in known.NOT or word.endswith(("n't", "n’t")):
            return True
        if word in known.VERBS | known.EQUALS:
            return False
    return False


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


def _worked_coefficient(text: str, numbers: Sequence[Quantity], links: Sequence[_Link]) -> bool:
    """Whether an equation puts a number in the place of an unknown: "4s = 4 × 5 = 20"."""
    found = _COEFFICIENT.match(text, numbers[0].start)
    return (
        found is not None
        and list(links[:2]) == ["equals", "operation"]
        and links[-1] == "equals"
        and numbers[1].value == int(found[1])
    )


def _is_part(ahead: Sequence[str], numbers: Sequence[Quantity]) -> bool:
    """Whether a number is told of by a part or a multiple of it: "half of 40"."""
    return len(numbers) == 1 and numbers[0].value is not None and bool(known.PARTS & set(ahead[-2:]))


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
    gap = tokens(text[left.end : right.start])
    words = set(gap)
    between = text[left.end : right.start]
    if not gap:  # "3 4", but not "5 (3 + 2)"
        if between == "(" or re.fullmatch(r"\s?\)\s?\(\s?", between):
            return "operation"
        return "apart" if "\n" in between or re.search(r"\s\(", between) else "alternative"
    if words & {"leaving", "leaves"} or gap[-1] == "so":
        return "apart"
    if gap[-1] == "at" and _EACH.match(text, right.end) and len(gap) <= 1 + _UNIT_WORDS:
        return "operation"  # "2 tickets at $3 each"
    if gap[-1] in known.RATES:
        return "operation"
    if gap[-1] in known.SIGNS or (gap[0] in known.SIGNS and len(gap) <= 1 + _UNIT_WORDS and _is_unit(gap[1:])):
        return "operation"  # "8 + Riley's 5"
    if gap[-1] == "=" and not (known.BREAKS & words) and not (gap[-2:-1] and len(gap[-2]) == 1):
        return "equals"  # "42 red and blue balls = 32", but not "x = 3 and y = 4"
    if gap in ([":"], ["in"]) or words & known.COMPARED:  # a ratio, "1 in 7", a range
        return "alternative"
    if words & {"rather", "instead"}:
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


def _is_unit(words: Sequence[str]) -> bool:
    return all(word[0].isalpha() for word in words) and not set(words) & (known.NEW | known.AND | known.OR)


def tokens(text: str) -> list[str]:
    """Return the words and signs of a text in lower case, without those that are read over."""
    return [token for token in _TOKEN.findall(text.lower()) if token not in known.TRANSPARENT]
