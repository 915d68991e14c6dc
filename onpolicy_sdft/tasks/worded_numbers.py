"""A number in words that is all a text says: "twelve", "negative three", "two thirds"."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "hundredth": 100,
}  # fmt: skip
_AROUND = re.compile(
    r"\W*(?:(?:so|thus|therefore|hence),?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer(?:\s*[:=]|\s+is:?)\s*|it\s+is\s+|it['’]s\s+|that\s+is\s+)?\W*(?P<said>[a-z][a-z\s-]*?)\W*\Z",
    re.IGNORECASE,
)
_LONGEST = 120


def number_in_words(text: str) -> Fraction | None:
    """Return the value of a text that is a number in words, or says "the answer is" and one; None: it is neither."""
    text = text.strip()
    found = _AROUND.match(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    words = found["said"].lower().replace("-", " ").split()
    sign = -1 if words[:1] in (["negative"], ["minus"]) else 1
    value = _value(words[1:] if sign < 0 else words)
    return None if value is None else sign * value


def _value(words: list[str]) -> Fraction | None:
    if not words:
        return None
    last = words[-1]
    part = "half" if last in ("halves", "half") else last.removesuffix("s")
    if part in _PARTS:
        return _part(words[:-1], _PARTS[part], is_plural=last.endswith("s"))
    if words in (["dozen"], ["a", "dozen"]):
        return Fraction(12)
    whole = _whole(["one", *words[1:]] if words[0] == "a" and len(words) > 1 else words)
    return None if whole is None else Fraction(whole)


def _part(words: list[str], of: int, *, is_plural: bool) -> Fraction | None:
    """Read what stands before "thirds": how many, or a whole number and how many ("two and a half")."""
    if not words:
        return Fraction(1, 2) if of == 2 and not is_plural else None
    *before, many = words
    num = 1 if many in ("a", "one") else _SMALL.get(many, 0)
    if not 0 < num < of or (num > 1) != is_plural:
        return None
    if not before:
        return Fraction(num, of)
    whole = _whole(before[:-1]) if before[-1] == "and" and len(before) > 1 else None
    return None if whole is None else whole + Fraction(num, of)


def _whole(words: list[str]) -> int | None:
    """Read a whole number; None where the words are not one as people say it ("two three", "three four hundred")."""
    total, group, lowest, scale = 0, 0, 1000, 10**15
    is_after_and = False
    for place, word in enumerate(words):
        if word == "and":
            if place == 0 or place == len(words) - 1 or is_after_and or words[place - 1] not in {"hundred", *_LARGE}:
                return None
            is_after_and = True
            continue
        is_after_and = False
        if word in _SMALL:
            value = _SMALL[word]
            if (value == 0 and len(words) > 1) or value >= lowest or (lowest == 10 and value >= 10):
                return None
            group, lowest = group + value, (10 if value >= 20 else 0)
        elif word == "hundred":
            if not 0 < group < 100 or group % 10 == 0:
                return None
            group, lowest = group * 100, 100
        elif word in _LARGE:
            if group == 0 or _LARGE[word] >= scale:
                return None
            scale = _LARGE[word]
            total, group, lowest = total + group * scale, 0, 1000
        else:
            return None
    return total + group
