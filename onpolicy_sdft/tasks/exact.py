"""Short answers compared as text."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, islice
from typing import Literal

from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.tasks.denials import is_denied_after, is_denied_before
from onpolicy_sdft.tasks.plain_numbers import plain_numbers
from onpolicy_sdft.tasks.plain_text import without_struck, without_thoughts
from onpolicy_sdft.tasks.protocol import (
    Task,
    bad_field,
    number_in_field,
    reference_text,
    require_bool,
    short_message,
)
from onpolicy_sdft.tasks.quantities import number_alone, quantities
from onpolicy_sdft.types import CheckResult, Demonstration

_MATCHES = ("whole", "contains")
_ALIASES = "aliases"
_MAX_PLACES = 1500  # of a number or of words in a text
_WINDOW, _WINDOW_AFTER = 40, 100
#: What has the words of a denial and is none.
_AFFIRMED = re.compile(
    r"\b(?:(?:can't|cannot|can not|won't) go wrong with|(?:if|unless) I(?:'m| am) (?:not )?(?:mistaken|wrong))\b"
    r"|(?:(?<=is )not|(?<=was )not|(?<=is)n't|(?<=was)n't) (?:only|just|merely|simply)\b",
    re.IGNORECASE,
)
#: A sentence of its own behind an answer: "Paris. Isn't Lyon bigger?", "Paris. Can't be London."
_SAYS_MORE = re.compile(
    r"[)\]\"'*]{0,4}[.!][)\]\"'*]{0,4}\s(?:\w+n't|cannot)\s(?!(?:be\s)?(?:the\s)?(?:right|correct|true|it|that|possible)\b)",
    re.IGNORECASE,
)
_ARROW = re.compile(r"(?<![<>=-])[-=]>")
_MORE_BEFORE = re.compile(
    r"(?:\d\s?[-+*/×÷·]|\b(?:than|least|most|over|under|above|below|between|up to|twice|thrice|double|triple"
    r"|(?:half|third|quarter|percent|square|root|multiple|factor) of|times|plus|minus|divided by|multiplied by)"
    r"|\d\s(?:to|or|x)|%\sof|between\s\S{1,12}(?:\s[^\W\d_]{1,12})?\sand|[<>≤≥])\s*$|\d[x×]$",
    re.IGNORECASE,
)
_MORE_AFTER = re.compile(
    r"\s?[-+*/×÷·x<>≤≥]\s?[\dx]|(?:,\s\d+){1,20},?\sor\s\d"
    r"|\s(?:[^\W\d_]+\s)?(?:to|or|till|until|through|times|plus|minus|divided by|multiplied by|over|x)\s(?:about\s)?\d"
    r"|\s(?:[^\W\d_]+\s)?or\s(?:more|less|fewer)\b|\s(?:more|less|fewer)\sthan\b|\s?(?:\+(?!\w)|squared\b|cubed\b)",
    re.IGNORECASE,
)
#: What makes another unit of the one before it: 5 km/h and 5 km² are no 5 km.
_NO_UNIT_AFTER = r"(?!/|\s?(?:\^|[²³]|per\b|(?:squared|cubed)\b))"
_STRAIGHT = str.maketrans({**dict.fromkeys("‘’ʼ", "'"), **dict.fromkeys("“”", '"')})
#: What does not stand before and behind words, by whether their script has blanks between words. An underscore is
#: markup here (_Paris_), so it does not make a word longer; "C++" is not C.
_FUNCTION_WORDS = "是为為在叫于於和或的了"
_NO_WORD_BEFORE = {True: r"(?<![^\W_\u2e80-\ua4ff])", False: rf"(?<!(?=[\u4e00-\u9fff])[^{_FUNCTION_WORDS}])"}
_NO_WORD_AFTER = {True: r"(?![^\W_\u2e80-\ua4ff]|\+\+|#)", False: rf"(?!(?=[\u4e00-\u9fff])[^{_FUNCTION_WORDS}])"}


@dataclass(frozen=True)
class Exact(Task):
    """The completion is the answer, or contains it, up to case and white space.

    The reference is the field ``answer_field`` if the row has one, else the whole response. A number in that field is
    compared by value: 12 is "12", "12.0" and "1.2e1". Unicode is compared in canonical composition, and blanks at both
    ends never count.

    Attributes:
        match: ``whole``: the completion is the reference and nothing else. ``contains``: the
            reference, or one of the row's ``aliases`` (a list of text, optional), stands in the
            completion as whole words; a number is found where the completion has that number, not inside another
            (12 in 12.5, -12, 12/5, 12 000 or 12:30).
        ignore_case: Compare case-folded text.
        ignore_whitespace: Read every run of white space as one blank.
        answer_field: Column of the bare answer.
    """

    match: Literal["whole", "contains"] = "whole"
    ignore_case: bool = True
    ignore_whitespace: bool = True
    answer_field: str = "answer"
    name = "exact"
    check_is_quick = True

    def __post_init__(self) -> None:
        if self.match not in _MATCHES:
            raise TaskError(f"task {self.name}: option 'match' is {self.match!r}; give one of {', '.join(_MATCHES)}")
        require_bool(self.name, ignore_case=self.ignore_case, ignore_whitespace=self.ignore_whitespace)

    def ask(self, prompt: str) -> str:
        """Ask for the bare answer where it must stand alone, else leave the prompt as it is."""
        return f"{prompt}\n\nReply with the answer only." if self.match == "whole" else prompt

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Compare the normalised texts; an empty completion is never right."""
        self.check_demonstration(demonstration)
        completion = without_thoughts(completion)
        answer = self._normalise(completion)
        expected = reference_text(demonstration, self.answer_field)
        if not answer:
            return CheckResult(False, "empty", message="The answer is empty.", expected=expected)
        accepted = self._accepted(demonstration)
        number = number_in_field(demonstration, self.answer_field)
        is_number = number is not None and number_alone(completion) == number
        if is_number or (self._holds_any(completion, accepted) if self.match == "contains" else answer in accepted):
            return CheckResult(True, answer=answer)
        lines = (
            ["What the question asks for does not stand in the answer."]
            if self.match == "contains"
            else [f"This is not right: {completion.strip()}", "The right answer and nothing else is asked for."]
        )
        return CheckResult(False, "wrong_answer", answer, short_message(*lines), expected)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the bare answer, or the response where that is accepted as well."""
        if self.match == "contains" and self.check(demonstration.response, demonstration).correct:
            return demonstration.response
        return reference_text(demonstration, self.answer_field)

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse an empty reference, and aliases that are no list of text."""
        if not self._normalise(reference_text(demonstration, self.answer_field)):
            raise bad_field(demonstration, self.answer_field, "and the response hold no answer")
        if self.match == "contains" and not all(self._accepted(demonstration)):
            raise bad_field(demonstration, _ALIASES, "has an empty text")

    def _accepted(self, demonstration: Demonstration) -> list[str]:
        """Return the normalised texts that are right, the reference first."""
        texts = [reference_text(demonstration, self.answer_field)]
        aliases = demonstration.fields.get(_ALIASES)
        if self.match == "contains" and aliases is not None:
            listed = isinstance(aliases, Sequence) and not isinstance(aliases, str)
            if not listed or not all(isinstance(alias, str) for alias in aliases):
                raise bad_field(demonstration, _ALIASES, f"is {aliases!r}, not a list of text")
            texts += aliases
        return [self._normalise(text) for text in texts]

    def _holds_any(self, text: str, accepted: Sequence[str]) -> bool:
        """Say whether a text has one of several answers; numbers are looked for all at once."""
        numbers = {words: _value(words) for words in accepted}
        names = [words for words, value in numbers.items() if value is None]
        wanted = {value for value in numbers.values() if value is not None}
        text = without_struck(text)
        plain = _AFFIRMED.sub(" ", text.translate(_STRAIGHT)).replace("**", "")
        for each in dict.fromkeys([text, plain]) if names else []:
            line, ends = self._in_one_line(each)
            if any(_holds_words(line, words, ends) for words in names):
                return True
        return bool(wanted) and _holds_number(plain_numbers(_ARROW.sub("→", self._normalise(text))), wanted)

    def _in_one_line(self, text: str) -> tuple[str, list[int]]:
        """Return a normalised text with the places where its lines end."""
        text = self._in_one_spelling(text)
        if not self.ignore_whitespace:
            return text, [found.start() for found in re.finditer("\n", text)]
        lines = [" ".join(line.split()) for line in text.split("\n")]
        lines = [line for line in lines if line]
        return " ".join(lines), list(accumulate((len(line) + 1 for line in lines), initial=-1))[1:]

    def _normalise(self, text: str) -> str:
        text = self._in_one_spelling(text)
        return " ".join(text.split()) if self.ignore_whitespace else text

    def _in_one_spelling(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text).translate(_STRAIGHT).strip()
        return text.casefold() if self.ignore_case else text


def _value(words: str) -> Fraction | None:
    """Return the number that an answer is; 007 is a name."""
    return None if re.match(r"0\d", words) else number_alone(words)


def _holds_number(text: str, wanted: Collection[Fraction]) -> bool:
    return any(
        _stands(text, each.start, each.end, True)
        for each in islice(quantities(text), _MAX_PLACES)
        if each.value in wanted
    )


def _holds_words(text: str, words: str, ends: Sequence[int]) -> bool:
    """Say whether a text has ``words``, not as a part of a longer word or number.

    Args:
        text: A text in one line.
        words: An answer.
        ends: Where the lines of the text ended: the next one says nothing of an answer at the end of one.
    """
    before, after = _NO_WORD_BEFORE[_is_spaced(words[0])], _NO_WORD_AFTER[_is_spaced(words[-1])]
    is_measure = words[0].isdigit()
    if is_measure:
        before += r"(?<!\d[.,/:'])(?<![-\u2212\u2013])(?<![-\u2212\u2013]\s)(?<!\d\s)"
        after += _NO_UNIT_AFTER
    if words[-1].isdigit():
        after += r"(?![.,/:'^]\d)(?!\s?/\s?\d)(?!\s\d{3}(?!\d))"
    found = islice(re.finditer(before + re.escape(words) + after, text), _MAX_PLACES)
    return any(_stands(text, *each.span(), is_measure, ends) for each in found)


def _stands(text: str, start: int, end: int, is_number: bool, ends: Sequence[int] = ()) -> bool:
    """Whether a text does not take back what it has, nor make more of a number."""
    if is_number and _is_of_more(text, start, end):
        return False
    if is_denied_before(text, start):
        return False
    place = bisect_left(ends, end)
    behind = text[end : min([end + _WINDOW_AFTER, *ends[place : place + 1]])]
    return _SAYS_MORE.match(behind) is not None or not is_denied_after(behind, 0)


def _is_of_more(text: str, start: int, end: int) -> bool:
    """Whether a number is an end of a range, a bound or an operand: "10-12", "more than 12", "12 x 3"."""
    return _MORE_BEFORE.search(text[max(0, start - _WINDOW) : start]) is not None or bool(_MORE_AFTER.match(text, end))


def _is_spaced(character: str) -> bool:
    """Whether words of a letter's script stand apart."""
    return character < "\u2e80" or "\uac00" <= character <= "\ud7a3"
