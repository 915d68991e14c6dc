r"""Which number a text states: the one behind its answer marker, else the last one.

Numbers that stand side by side are one statement (:mod:`~onpolicy_sdft.tasks.number_statements`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import dropwhile, islice, pairwise, takewhile

from onpolicy_sdft.tasks import number_words as known
from onpolicy_sdft.tasks.answer_marker import MAX_LINE, Marked, marked_text
from onpolicy_sdft.tasks.number_statements import Statement, statements_of, tokens
from onpolicy_sdft.tasks.plain_numbers import BOLD, with_bold
from onpolicy_sdft.tasks.plain_text import CHANGED_MIND, without_next_question, without_thoughts
from onpolicy_sdft.tasks.worded_numbers import number_in_words

#: The end of a sentence whose next one says something new: not "6 sq. ft." nor "6. That is 2 more".
_FULL_STOP = re.compile(r"[.!?](?=\s+[^a-z\s])(?!\s+(?:That|This) (?:is|was)\b)|;(?!\s+(?:this|that|which|it)\b)|\n")
#: From an operation to its result.
_LEADS_ON = re.compile(r",\s?(?:which (?:is|equals|gives|makes)|so|giving|making|that is)[\s$]{0,3}$")
_BOLD_LABEL_END = re.compile(r"[^.,;\d\n]{0,30}:\x1f")
_OF_WHOM = re.compile(r"\s(?:of|between) (?:them|us|you)\b")
_OF_MORE = re.compile(r"\s(?:[^\W\d_]+\s)?(?:more|less|fewer)\b")
_CLAUSE = re.compile(r"[,;:()]")
#: What numbers a line. "18. That is all" is none where nothing has the numbers up to 17, nor is "Step 7" alone.
_LABEL = re.compile(
    r"[ \t\x1f>*#_-]{0,8}(?:[(\[]?(\d{1,2})(?:[.)]\)?|\])[*_\x1f]{0,2}[ ]+(?=[\S\x1f])"
    r"|(?:Step|Note|Part|Case|Point|Item|Remark|Method|Check|Stage|Phase|Rule|Example|Hint|Option|Footnote|Figure"
    r"|Table|Section|Equation|Chapter|Source)[ ]\(?(\d{1,3})\)?[*_]{0,3}\s?(?:[.:)-][*_\x1f]{0,3}(?=\s+\S)|$))",
    re.IGNORECASE,
)
#: Where a text goes on to say why its answer is right.
_EXPLAINED = re.compile(
    r"(?:\n|[.!?]\s)[\s*#>-]{0,8}(?:(?:let['’]?s|let us|let me|we can|to|quick|double)[ -]){0,2}"
    r"(?:(?:double[- ])?check|verif|explanation|proof|note|reason)",
    re.IGNORECASE,
)
#: A model offers more: "Would you like to see 2 other ways?"
_OFFER = re.compile(
    r"^\W*(?:Would you|Do you|Shall I|Should I|Can I|May I|Want me|Let me know|If you['’]?d? )[^?]*\?\W*$", re.I
)
_SECOND = re.compile(r"(?:\n[ \t\x1f>*#_-]{0,8}|[.!?]\s)[(\[]?2[.)\]]\D")
_REFERENCE = re.compile(
    r"\b(?:see|from|in|by|using) (?:step|note|part|figure|table|equation|section|line|page|example)s? \(?\d{1,3}\b",
    re.IGNORECASE,
)
_MAX_LINES = 100  # lines with numbers that are read
_MAX_STEPS = 30  # lines of a solution that are read
_DIGIT = re.compile(r"\d")
_CORRECTED = re.compile(
    r"\b(?:(?:it|that|this|the (?:correct |right |final )?(?:answer|result|number|value|total)) "
    r"(?:should (?:be|have been)|must be|has to be)|the (?:correct|right) (?:answer|result|number|value|total|one) is)"
    r"[\s$*\x1f]{1,4}(-?\d[\d,.]{0,20})[*\x1f]{0,2}(?:[ ][a-z]{1,20})?\W*\Z",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d+")


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
    text = without_next_question(with_bold(without_thoughts(text)), lambda before: _stated(before) is not None)
    return _stated(text)


def _stated(text: str) -> Fraction | None:
    if not _DIGIT.search(text):
        return number_in_words(text.replace(BOLD, " "))
    marked = marked_text(text)
    if marked is None:
        return _last_stated(text)
    return _behind_marker(marked) if marked.is_one else None


def _behind_marker(marked: Marked) -> Fraction | None:
    first, _, rest = marked.text.lstrip().partition("\n")
    is_below = "\n" in marked.text[: len(marked.text) - len(marked.text.lstrip())]
    if (marked.is_heading or is_below) and _is_listed(first, rest, is_below):
        return _worked_out(first + "\n" + rest, None, is_work=False, is_told=True)
    line = ("\n" if is_below else "") + first[:MAX_LINE]
    statements = statements_of(line)
    if not statements:
        # "The answer is therefore easy to see: ... 18" states its number further on.
        return _last_stated(rest)
    value, is_told = _in_first_sentence(line, statements)
    is_work = marked.is_heading and _is_work(line, statements)
    if marked.is_heading and (is_told or is_work):
        value = _worked_out(first + "\n" + rest, value, is_work, is_told)
    if doubt := CHANGED_MIND.search(first + rest, statements[0].end):
        later = _last_stated((first + rest)[doubt.end() :])
        if later is not None and _is_corrected((first + "\n" + rest)[doubt.end() :]):
            return later
        is_silent = later is None and not _DIGIT.search(first + rest, doubt.end())
        return value if is_silent or later == value else None
    return value


def _is_corrected(text: str) -> bool:
    """Whether what stands behind a doubt says one number, and that it is the right one: "It should be 12."."""
    found = _CORRECTED.search(text[-MAX_LINE:])
    return found is not None and _DIGIT.search(text[-MAX_LINE:], 0, found.start(1)) is None


def _is_listed(first: str, rest: str, is_below: bool) -> bool:
    """Whether a line is the first of a list or of steps; "1. That is all" is none where no second one follows."""
    label = _LABEL.match(first)
    if label is None or label[2]:
        return label is not None
    return int(label[1]) == 1 and (is_below or _SECOND.search(f"{first}\n{rest}") is not None)


def _in_first_sentence(line: str, statements: Sequence[Statement]) -> tuple[Fraction | None, bool]:
    """Return the number that a sentence behind a marker gives, and whether it does so with words before it.

    "5 apples in 3 bags" begins with its number; "After 3 weeks, she has 60" is read as a sentence without a marker.
    """
    stated = next((each for each in statements if not (each.is_denied or (each.is_remark and each.start))), None)
    value = None if stated is None else stated.value
    if stated is not None and stated.is_work:
        place = statements.index(stated) + 1
        behind = statements[place : place + 1]
        if behind and _LEADS_ON.search(line[stated.end : behind[0].start]) and not _OF_MORE.match(line, behind[0].end):
            return behind[0].value, False
    ends = [
        place
        for place, (left, right) in enumerate(pairwise(statements))
        if _FULL_STOP.search(line, left.end, right.start)
    ]
    sentence = statements[: ends[0] + 1] if ends else statements
    words = set(filter(str.isalpha, tokens(line[: statements[0].start])))
    if _is_subject(line, sentence):
        return _result(line, sentence), True
    if not words - known.LEADING or statements[0].is_denied:
        return value, statements[0].is_equation or statements[0].is_denied
    told = _result(line, sentence)
    if told is None and len(sentence) > 1 and _is_predicate(line, sentence):
        return value, True
    return told, True


def _is_subject(line: str, sentence: Sequence[Statement]) -> bool:
    """Whether a sentence says a bold number of its first one: "4 tickets cost **48**"."""
    bold = [each for each in sentence if each.is_bold]
    if len(bold) != 1 or bold[0] in sentence[:1] or bold[0].is_remark:
        return False
    between = tokens(line[sentence[0].end : bold[0].start])
    return len(between) > 1 and between[-1] not in known.CONDITION_AHEAD


def _is_predicate(line: str, statements: Sequence[Statement]) -> bool:
    """Whether the first number is what a sentence says: "It takes 12 hours for 3 workers", not "the 3 workers take".

    That is so where nothing is said of the numbers behind it, or where they are all told of conditions and purposes.
    """
    first, *others = statements
    ahead = tokens(line[: first.start])
    behind = list(takewhile(lambda word: word not in ("who", "whose"), tokens(line[first.end : statements[-1].start])))
    if behind[:1] == ["times"] or any(each.is_equation for each in others):
        return False
    if set(ahead[-1:]) <= known.PREDICATES and not known.PREDICATES & set(behind):
        return True
    gaps = [tokens(line[left.end : right.start]) for left, right in pairwise(statements)]
    is_said = not set(ahead[-1:]) & known.OF_SUBJECT and not _is_condition(first, line[: first.start])
    return is_said and bool(others) and all(gap[-1:] and (gap[-1] in known.AROUND or "to" in gap[-2:]) for gap in gaps)


def _is_work(line: str, statements: Sequence[Statement]) -> bool:
    """Whether a line works something out in its first sentence: "First, 5 + 3 = 8. ..."."""
    for left, right in zip(statements, [*statements[1:], None], strict=True):
        if _is_worked(line, left):
            return True
        if right is not None and _FULL_STOP.search(line, left.end, right.start):
            break
    return False


def _is_worked(line: str, stated: Statement) -> bool:
    """Whether an equation leads to a number: "5 + 3 = 8", not "x = 8"."""
    return stated.is_equation and len(list(islice(_DIGITS.finditer(line, stated.start, stated.end), 2))) > 1


def _worked_out(text: str, first: Fraction | None, is_work: bool, is_told: bool) -> Fraction | None:
    """Return the result of a solution that stands behind a heading ("Answer:").

    The last number is the result where equations lead to it; where nothing tells first and last apart, there is none.

    Args:
        text: What stands behind the heading.
        first: The number that its first sentence says.
        is_work: Whether that sentence works something out.
        is_told: Whether that sentence has words before its number.
    """
    text = _EXPLAINED.split(text, maxsplit=1)[0]
    last = _last_stated(text)
    if last == first or (last is None and not is_work):
        return first
    lines = [line for line in text.split("\n") if line.strip()]
    with_numbers = [line[:MAX_LINE] for line in _without_labels(lines) if _DIGIT.search(line)][-_MAX_STEPS:]
    said = [(line, each) for line in with_numbers for each in statements_of(line) if each.is_equation]
    worked = {each.value for line, each in said if _is_worked(line, each)} - {None}
    if last is None:
        return first if first in worked and "\n" not in text.strip() else None
    if last in {each.value for _, each in said} and (first not in worked or (is_work and is_told)):
        return last
    return first if worked == {first} else None


def states_number(text: str) -> bool:
    """Whether a text marks its answer as one."""
    return marked_text(with_bold(without_thoughts(text))) is not None


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
        line = ("\n" if number else "") + lines[number][-MAX_LINE:]  # "- 3" is an item of a list, unless it is alone
        if not _OFFER.search(line) and (stated := statements_of(line)):
            return _result(line, [each for each in stated if not _is_of_whom(line, each)] or stated)
    return None


def _result(line: str, stated: Sequence[Statement]) -> Fraction | None:
    """Return what the last sentence with numbers states.

    That is the equation in "120/24 = 5 hours to read 120 pages", and what is left where a condition or a reason is put
    aside: "After 3 days, she has 18 because 9 + 9 = 18". None where two numbers may be meant: "6 for 3 days".
    """
    gaps = [line[start : each.start] for start, each in zip([0, *(each.end for each in stated)], stated, strict=False)]
    first = max((place for place, gap in enumerate(gaps) if place and _FULL_STOP.search(gap)), default=0)
    bold = [each for each in stated[first:] if each.is_bold and not each.is_denied]
    if len(bold) == 1:
        return bold[0].value
    kept: list[tuple[Statement, str]] = []
    for each, gap in zip(stated[first:], gaps[first:], strict=True):
        words = tokens(gap)
        if kept and known.REASON & set(words):
            break
        is_said_of = words and words[-1] in known.VERBS and not known.REMARK & set(words)
        starts_anew = words[-2:] == ["to", "get"] or known.CONCLUSION & set(words)
        if starts_anew or (is_said_of and kept and not known.VERBS & set(tokens(kept[0][1]))):
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


def _is_condition(stated: Statement, gap: str) -> bool:
    """Whether a number is told of a condition, not of the result: "After 3 days, ..." or "... after 3 days"."""
    words = list(dropwhile(lambda word: word in known.OPENING, tokens(_CLAUSE.split(gap)[-1])))
    if words[:1] == ["each"] and not set(words) <= {"each", "of", "the"}:
        words = words[1:]  # "each pays 20", but "each of the 5"
    return bool(words) and (words[0] in known.CONDITION_AHEAD or bool(known.CONDITION & set(words)))


def _is_of_whom(line: str, stated: Statement) -> bool:
    """Whether a number says of whom or what something is told: "the 2 of them have 8", "**Total of 3 days:** 8"."""
    if _BOLD_LABEL_END.match(line, stated.end):
        return True
    return _OF_WHOM.match(line, stated.end) is not None and tokens(line[: stated.start])[-1:] == ["the"]


def _is_beside(stated: Statement, gap: str) -> bool:
    """Whether a number behind an equation belongs to it: "= 5 hours to read 120 pages", not "= 5, which is 2 more"."""
    return not stated.is_equation and not (known.BREAKS | known.VERBS) & set(tokens(gap))
