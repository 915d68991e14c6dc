r"""Where a text marks its answer: behind "the answer is", "Answer:", ``####``, ``\boxed{}`` or ``<answer>``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onpolicy_sdft.tasks.denials import denies_number
from onpolicy_sdft.tasks.number_statements import statements_of
from onpolicy_sdft.tasks.plain_text import braced

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
#: Between two answers that follow each other: nothing but the first number, and what leads on to the second.
_BETWEEN_ANSWERS = re.compile(
    r"[\s*:=]*+(-?\d[\d,]*)[*]*+\.?\s++(?:[^\w\n]|(?:so|and|the|my|final)\b)*+", re.IGNORECASE
)
#: Whole numbers alone: of 16.67 and 17, or of $5 and 500 cents, one may be the other in another form.
_WHOLE_NUMBER = re.compile(r"[\s*:=]*+-?\d[\d,]*[\s*]*+(?:\.[\s*]*+)?(?:$|\n)")
_SAYS = re.compile(r"\b(?:is|are|was|be|equals|ist|es|est|é|è)\b|[=是为は]", re.IGNORECASE)
_HEADING = re.compile(r"\w+[\s*#]*(?:[:：]|\n)[\s*#]*")
#: Before a heading that announces the way to an answer: "To find the answer:".
_WAY_TO = re.compile(
    r"(?:\b(?:(?:to|can|let['’]s|let us) (?:get|answer)|find|finding|determine|calculate|compute|express|write|round"
    r"|convert|check|verify|confirm|figure out|work out|work through|reach|arrive at)"
    r"(?: (?:the|our|your|an|a|final|correct|right|this))*|\bto|step[- ]by[- ]step) $",
    re.IGNORECASE,
)
_WINDOW = 60
_BETWEEN_BOXES = re.compile(r"[^.!?\n]{0,60}")
MAX_LINE = 1000  # characters of a line that are read
_READ_FOR_MARKERS = 16_000  # characters at the end of a text
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Marked:
    """What stands behind the last marker of an answer."""

    text: str
    is_heading: bool = False  # "Answer:", behind which a whole solution may stand
    is_one: bool = True  # not the last of several answers that contradict one another


def marked_text(text: str) -> Marked | None:
    """Return what stands after the last answer marker, or None where there is no marker.

    A marker behind which there is no digit at all says nothing about the one before: "I hope this answer is helpful!"
    """
    found = _MARKER.finditer(text, max(_first_marker(text), len(text) - _READ_FOR_MARKERS))
    markers = [each for each in found if not _is_yet_to_find(text, each)]
    if not markers:
        return None
    last_digit = max((found.start() for found in _DIGIT.finditer(text)), default=-1)
    while len(markers) > 1 and markers[-1].end() > last_digit:
        markers.pop()
    last, behind = markers[-1], text[markers[-1].end() :].partition("</answer>")[0]
    if last["tag"]:
        return Marked(behind)
    if not last["boxed"]:
        first = _BETWEEN_ANSWERS.fullmatch(text, markers[-2].end(), last.start()) if len(markers) > 1 else None
        is_one = True
        if first is not None and _WHOLE_NUMBER.match(behind):
            said, said_last = (statements_of(line[:MAX_LINE])[:1] for line in (first[1], behind.split("\n")[0]))
            values = {each.value for each in (*said, *said_last)}
            is_one = not (said and said_last and None not in values and len(values) > 1)
        is_denied = denies_number(text[: last.start()], last.group())
        return Marked(f" not {behind}" if is_denied else behind, _HEADING.fullmatch(last.group()) is not None, is_one)
    inside = braced(text, last.end())
    if len(markers) > 1 and markers[-2]["boxed"]:
        other = markers[-2].end() + len(braced(text, markers[-2].end())) + 1
        if braced(text, markers[-2].end()) != inside and _BETWEEN_BOXES.fullmatch(text, other, last.start()):
            return Marked(inside, is_one=False)
    return Marked(inside)


def _is_yet_to_find(text: str, marker: re.Match[str]) -> bool:
    """Whether a heading speaks of the way to an answer: "To find the answer:", "Step-by-step answer:"."""
    if _SAYS.search(marker.group()) or marker["boxed"] or marker["tag"] or marker.group() == "####":
        return False
    return _WAY_TO.search(text[max(0, marker.start() - _WINDOW) : marker.start()]) is not None


def _first_marker(text: str) -> int:
    """Return a place that no marker stands before: trying the pattern at every character takes most of a check."""
    lowered = text.lower()
    places = [place for start in _MARKER_STARTS if (place := lowered.find(start)) >= 0]
    return min(places, default=len(text)) if len(lowered) == len(text) else 0
