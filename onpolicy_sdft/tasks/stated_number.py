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
from onpolicy_sdft.tasks.denials import denies_number, is_number_denied_after
from onpolicy_sdft.tasks.plain_text import CHANGED_MIND, braced, without_next_question, without_thoughts
from onpolicy_sdft.tasks.quantities import Quantity, plain_numbers, quantities

#: How two numbers beside each other belong together.
_Link = Literal["equals", "operation", "alternative", "verb", "apart"]

_MARKER = re.compile(
    r"(?P<boxed>\\boxed\s*\{)|\#{4}|(?P<tag><answer>)"
    r"|(?:(?<!/)(?<!\b(?:per|one) )(?<!\bfirst )(?<!\bsecond )(?<!\bthird )(?<!\bnext )(?<!\ban )"
    r"\banswer\b|\bAntwort\b|\brespuesta\b|\brépons?e\b|\bresposta\b|\brisposta\b|\bответ\b|答案|答え)"
    r"(?:[^\n.\d=:：]{0,40}?(?:\b(?:is|are|was|be|equals|ist|es|est|é|è)\b|[:：=是为は])(?:\s*[:：=])?|[\s*#]*\n|\s+(?=[-$\d]))",
    re.IGNORECASE,
)
#: What a marker begins with, in lower case.
_MARKER_STARTS = (
    "\\boxed", "####", "<answer>", "answer", "antwort", "respuesta", "répon", "resposta", "risposta", "ответ", "答案",
    "答え",
)  # fmt: skip
_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\\[a-z]+|[<>]=|=>|->|\S")
#: Between two answers that follow each other: nothing but the first number, and what leads on to the second.
_BETWEEN_ANSWERS = re.compile(
    r"[\s*:=]*+(-?\d[\d,]*)[*]*+\.?\s++(?:[^\w\n]|(?:so|and|the|my|final)\b)*+", re.IGNORECASE
)
#: Whole numbers alone: of 16.67 and 17, or of $5 and 500 cents, one may be the other in another form.
_WHOLE_NUMBER = re.compile(r"[\s*:=]*+-?\d[\d,]*[\s*]*+(?:\.[\s*]*+)?(?:$|\n)")
_BETWEEN_BOXES = re.compile(r"[^.!?\n]{0,60}")
_SENTENCE_END = re.compile(r"[.!?;:\n](?=\s|$)")
#: The end of a sentence whose next one says something new: not "6 sq. ft." nor "6. That is 2 more".
_FULL_STOP = re.compile(r"[.!?](?=\s+[^a-z\s])(?!\s+(?:That|This) (?:is|was)\b)|;(?!\s+(?:this|that|which|it)\b)|\n")
_CLAUSE = re.compile(r"[,;:()]")
_RESULT = re.compile(r"(?:\s+[^\W\d_]+){0,2}\s+(?:left|remaining|remain|remains|in total|altogether|in all|total)\b")
_UNKNOWN = re.compile(r"[^\W\d_]\Z|^\\[dtc]?frac.*(?<![\\a-z])[a-z]\b", re.IGNORECASE)  # 3x, \frac{x}{2}
_ASIDE = re.compile(r"\s\($")  # "5 (3 + 2)"
#: What numbers a line. "18. That is all" is none where nothing has the numbers up to 17, nor is "Step 7" alone.
_LABEL = re.compile(
    r"[ \t>*#_-]{0,8}(?:[(\[]?(\d{1,2})(?:[.)]\)?|\])[*_]{0,2}[ ]+(?=\S)"
    r"|(?:Step|Note|Part|Case|Point|Item|Remark|Method|Check|Stage|Phase|Rule|Example|Hint|Option|Footnote|Figure"
    r"|Table|Section|Equation|Chapter|Source)[ ]\(?(\d{1,3})\)?[*_]{0,3}\s?(?:[.:)-][*_]{0,3}(?=\s+\S)|$))",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"\b(?:see|from|in|by|using) (?:step|note|part|figure|table|equation|section|line|page|example)s? \(?\d{1,3}\b",
    re.IGNORECASE,
)
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
    text = without_next_question(plain_numbers(without_thoughts(text)), lambda before: _stated(before) is not None)
    return _stated(text)


def _stated(text: str) -> Fraction | None:
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
    stated = next((each for each in statements if not (each.is_denied or (each.is_remark and each.start))), None)
    value = None if stated is None else stated.value
    if doubt := CHANGED_MIND.search(first + rest, statements[0].end):
        later = _last_stated((first + rest)[doubt.end() :])
        return value if later is None or later == value else None
    return value


class _Several(str):
    """What stands behind the last of several answers that contradict one another: no single answer."""


def marked_text(text: str) -> str | None:
    """Return what stands after the last answer marker, or None where there is no marker.

    A marker behind which there is no digit at all says nothing about the one before: "I hope this answer is helpful!"
    """
    markers = list(_MARKER.finditer(text, max(_first_marker(text), len(text) - _READ_FOR_MARKERS)))
    if not markers:
        return None
    last_digit = max((found.start() for found in _DIGIT.finditer(text)), default=-1)
    while len(markers) > 1 and markers[-1].end() > last_digit:
        markers.pop()
    last, behind = markers[-1], text[markers[-1].end() :]
    if last["tag"]:
        return behind.partition("</answer>")[0]
    if not last["boxed"]:
        first = _BETWEEN_ANSWERS.fullmatch(text, markers[-2].end(), last.start()) if len(markers) > 1 else None
        if first is not None and _WHOLE_NUMBER.match(behind):
            said, said_last = (_statements(line[:_MAX_LINE])[:1] for line in (first[1], behind.split("\n")[0]))
            if said and said_last and None not in (values := {said[0].value, said_last[0].value}) and len(values) > 1:
                return _Several(behind)
        return f" not {behind}" if denies_number(text[: last.start()], last.group()) else behind
    inside = braced(text, last.end())
    if len(markers) > 1 and markers[-2]["boxed"]:
        other = markers[-2].end() + len(braced(text, markers[-2].end())) + 1
        if braced(text, markers[-2].end()) != inside and _BETWEEN_BOXES.fullmatch(text, other, last.start()):
            return _Several(inside)
    return inside


def _first_marker(text: str) -> int:
    """Return a place that no marker stands before: trying the pattern at every character takes most of a check."""
    lowered = text.lower()
    places = [place for start in _MARKER_STARTS if (place := lowered.find(start)) >= 0]
    return min(places, default=len(text)) if len(lowered) == len(text) else 0


def states_number(text: str) -> bool:
    """Whether a text marks its answer as one."""
    return marked_text(plain_numbers(without_thoughts(text))) is not None


@dataclass(frozen=True, slots=True)
class _Statement:
    """Numbers that belong together."""

    start: int
    end: int
    value: Fraction | None
    is_denied: bool  # "not 5", "rather than 5"
    is_remark: bool  # "(3 red)" behind another number
    is_equation: bool
    is_result: bool  # "5 left", "a total of 5"


def _last_stated(text: str) -> Fraction | None:
    """Return the number the last line with one ends with."""
    lines = [line for line in text.split("\n") if line.strip()]
    stated = _last_of(_without_labels(lines))
    return _last_of(lines) if stated is None else stated


def _without_labels(lines: Sequence[str]) -> list[str]:
    """Leave out the numerals of lists and steps, which are no results: "2. Get 7", "Step 2: check"."""
    found, last = list[str](), 0
    for line in lines:
        label = _LABEL.match(line)
        number = int(label[1] or label[2]) if label else 0
        if label and (label[2] or number in (1, last + 1) or label[0].lstrip().startswith("#")):
            line, last = line[label.end() :], number
        found.append(_REFERENCE.sub("", line))
    return found


def _last_of(lines: Sequence[str]) -> Fraction | None:
    with_numbers = [number for number, line in enumerate(lines) if _DIGIT.search(line)]
    for number in reversed(with_numbers[-_MAX_LINES:]):
        line = ("\n" if number else "") + lines[number][-_MAX_LINE:]  # "- 3" is an item of a list, unless it is alone
        if stated := _statements(line):
            return _result(line, stated)
    return None


def _result(line: str, stated: Sequence[_Statement]) -> Fraction | None:
    """Return what the last sentence with numbers states.

    That is the equation in "120/24 = 5 hours to read 120 pages", and what is left where a condition or a reason is put
    aside: "After 3 days, she has 18 because 9 + 9 = 18". None where two numbers may be meant: "6 for 3 days".
    """
    gaps = [line[start : each.start] for start, each in zip([0, *(each.end for each in stated)], stated, strict=False)]
    first = max((place for place, gap in enumerate(gaps) if place and _FULL_STOP.search(gap)), default=0)
    kept: list[tuple[_Statement, str]] = []
    for each, gap in zip(stated[first:], gaps[first:], strict=True):
        words = _tokens(gap)
        if kept and known.REASON & set(words):
            break
        is_said_of = words and words[-1] in known.VERBS and not known.REMARK & set(words)
        if known.CONCLUSION & set(words) or (is_said_of and kept and not known.VERBS & set(_tokens(kept[0][1]))):
            kept.clear()  # "so she has 5", "twice 7 is 14", but not "Ann is 7 and Tim is 14"
        if not each.is_denied and not (each.is_remark and kept):
            kept.append((each, gap))
    equations = [place for place, (each, _) in enumerate(kept) if each.is_equation]
    if equations:
        kept = [kept[equations[-1]], *(pair for pair in kept[equations[-1] + 1 :] if not _is_beside(*pair))]
    else:
        kept = [pair for pair in kept if not _is_condition(*pair)] or kept
    results = [pair for pair in kept if pair[0].is_result]
    values = {each.value for each, _ in results or kept}
    return values.pop() if len(values) == 1 else None


def _is_condition(stated: _Statement, gap: str) -> bool:
    """Whether a number is told of a condition, not of the result: "After 3 days, ..." or "... after 3 days"."""
    words = _tokens(_CLAUSE.split(gap)[-1])
    return bool(words) and (words[0] in known.CONDITION_AHEAD or bool(known.CONDITION & set(words)))


def _is_beside(stated: _Statement, gap: str) -> bool:
    """Whether a number behind an equation belongs to it: "= 5 hours to read 120 pages", not "= 5, which is 2 more"."""
    return not stated.is_equation and not (known.BREAKS | known.VERBS) & set(_tokens(gap))


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
        elif link == "alternative" and before == "equals" and after == "apart":
            links[place] = "apart" if _tokens(text[found[place].end : found[place + 1].start]) == ["in"] else link
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
    behind_it = text[numbers[-1].end : numbers[-1].end + _MAX_GAP]
    behind = [] if behind_it.lstrip().startswith("(") else _tokens(behind_it[:20])[:1]
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
        or (len(numbers) == 1 and _is_bound(ahead))
    )
    # 7x = 14 says nothing of x yet.
    has_unknown = any(each.value is None and _UNKNOWN.search(text[each.start : each.end]) for each in numbers)
    value = None if is_open or has_unknown else _value(numbers, links)
    is_equation = "equals" in links or (bool(ahead) and ahead[-1] in known.EQUALS)
    is_result = ahead[-2:] in (["total", "of"], ["sum", "of"]) or _RESULT.match(behind_it) is not None
    return _Statement(numbers[0].start, numbers[-1].end, value, is_denied, is_aside, is_equation, is_result)


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
    if not gap:  # "3 4", but not "5 (3 + 2)"
        if between == "(":
            return "operation"
        return "apart" if "\n" in between or re.search(r"\s\(", between) else "alternative"
    if gap[-1] in known.RATES:
        return "operation"
    if gap[-1] in known.SIGNS or (gap[0] in known.SIGNS and len(gap) <= 1 + _UNIT_WORDS and _is_unit(gap[1:])):
        return "operation"  # "8 + Riley's 5"
    if gap[-1] == "=" and not (known.BREAKS & words) and not (gap[-2:-1] and len(gap[-2]) == 1):
        return "equals"  # "42 red and blue balls = 32", but not "x = 3 and y = 4"
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


def _is_unit(words: Sequence[str]) -> bool:
    return all(word[0].isalpha() for word in words) and not set(words) & (known.NEW | known.AND | known.OR)


def _tokens(text: str) -> list[str]:
    return [token for token in _TOKEN.findall(text.lower()) if token not in known.TRANSPARENT]
