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
from onpolicy_sdft.tasks.worded_numbers import number_in_words
from onpolicy_sdft.types import CheckResult, Demonstration

_MATCHES = ("whole", "contains")
_ALIASES = "aliases"
_FEW_WORDS = 2  # that is a bare answer
_AROUND = " .,;:!?*_`\"'()"
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
#: Before an answer that is weighed, and behind it where another one is given: "I thought Paris, but it is Lyon".
_WEIGHED = re.compile(
    r"\b(?:thought|used to (?:be|think|say|believe)|believed|assumed|guessed|expected|supposed|imagined"
    r"|considered|hoped|formerly|previously|originally|initially|once|at first|would have (?:said|guessed)"
    r"|tempt(?:ed|ing)"
    r"|(?:one|you|people|many|some|most|they|everyone|everybody|students|locals) (?:may |might |would |often |people )?"
    r"(?:says?|thinks?|believes?|assumes?|claims?|guess|expect)|looks? like|seems?|appears?)\b[^.!?;\n]{0,30}$",
    re.IGNORECASE,
)
_GIVEN_UP = re.compile(
    r"[^.!?\n]{0,60}?(?:[,;)\s]|\s-)\s?(?:but|however|yet|now|today|until|though|instead|whereas|turns out)\b"
    r"|[)\]\"'*]{0,4}[.;!]\s(?:but|however|yet|in fact|actually|now it)\b",
    re.IGNORECASE,
)
#: A judgement that is a sentence or a clause of its own: "Paris; wrong!", "Paris. That is false."
_JUDGED = re.compile(
    r"[)\]\"'*]{0,4}(?:\s?[;,.:!\u2014\u2013]|\s-)\s{0,2}(?:but\s|and\s)?"
    r"(?:(?:that|this|it|which|they)(?:'s|\sis|\swas|\sare)\s)?(?:all\s|so\s|simply\s|totally\s|completely\s|just\s|quite\s)?"
    r"(?:wrong|incorrect|false|untrue|mistaken|nonsense|a\s(?:mistake|myth|lie)|not\s(?:so|true|right|correct))\s?"
    r"(?:[.!;,)]|$)",
    re.IGNORECASE,
)
#: "Paris it is not", "Paris, I used to think".
_TURNED_AFTER = re.compile(
    r"\s(?:it|that|this|he|she)\s(?:(?:is|was|can|could|will|must)\s?(?:not|n't|never)"
    r"|isn't|wasn't|ain't|cannot|never was)\b"
    r"|,?\s(?:or\sso\s)?(?:I|we|they|people|many)\s(?:(?:used\sto|once|first|initially|always)\s)"
    r"(?:thought|think|believed?|assumed?|said|say)\b"
    r"|\s(?:I|we)\s(?:doubt|reject|rule\sout)\b",
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
        self._require_answers(demonstration)
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
        """Refuse an empty reference, aliases that are no list of text, and a response that is another bare answer."""
        self._require_answers(demonstration)
        if self._says_another(demonstration):
            raise bad_field(
                demonstration,
                self.answer_field,
                f"says {reference_text(demonstration, self.answer_field)!r:.80} but the response is "
                f"{demonstration.response.strip()!r:.80}",
            )

    def _require_answers(self, demonstration: Demonstration) -> None:
        if not self._normalise(reference_text(demonstration, self.answer_field)):
            raise bad_field(demonstration, self.answer_field, "and the response hold no answer")
        if self.match == "contains" and not all(self._accepted(demonstration)):
            raise bad_field(demonstration, _ALIASES, "has an empty text")

    def _says_another(self, demonstration: Demonstration) -> bool:
        """Whether a response is a bare answer, and another one than the answer's column has."""
        said = self._normalise(without_thoughts(demonstration.response)).casefold().strip(_AROUND)
        known = [each.casefold().strip(_AROUND) for each in self._accepted(demonstration)]
        if not said or "\n" in demonstration.response.strip() or any(each in said or said in each for each in known):
            return False
        values = [_number(each) for each in known]
        is_same = _number(said) is not None and _number(said) in [
            *values,
            number_in_field(demonstration, self.answer_field),
        ]
        return not is_same and len(said.split()) <= max(_FEW_WORDS, *(len(each.split()) for each in known))

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


def _number(words: str) -> Fraction | None:
    return number_alone(words) if any(map(str.isdigit, words)) else number_in_words(words)


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
    if is_denied_before(text, start) or _is_given_up(text, start, end, ends):
        return False
    place = bisect_left(ends, end)
    behind = text[end : min([end + _WINDOW_AFTER, *ends[place : place + 1]])]
    return _SAYS_MORE.match(behind) is not None or not is_denied_after(behind, 0)


def _is_given_up(text: str, start: int, end: int, ends: Sequence[int]) -> bool:
    """Whether a text weighs what it has and gives another answer, or judges it wrong."""
    place = bisect_left(ends, end)
    behind = text[end : min([end + _WINDOW_AFTER, *ends[place : place + 1]])]
    if _JUDGED.match(behind) or _TURNED_AFTER.match(behind):
        return True
    return _GIVEN_UP.match(behind) is not None and _WEIGHED.search(text[max(0, start - _WINDOW) : start]) is not None


def _is_of_more(text: str, start: int, end: int) -> bool:
    """Whether a number is an end of a range, a bound or an operand: "10-12", "more than 12", "12 x 3"."""
    return _MORE_BEFORE.search(text[max(0, start - _WINDOW) : start]) is not None or bool(_MORE_AFTER.match(text, end))


def _is_spaced(character: str) -> bool:
    """Whether words of a letter's script stand apart."""
    return character < "\u2e80" or "\uac00" <= character <= "\ud7a3"
