r"""Numbers as people write them, read as values: one at a time, each as a whole.

A number is read with all that belongs to it (sign, separators, power, fraction, "million") or not at all: a time, a
date, a version or ``3x`` is a quantity without a value, never one of its digits.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from onpolicy_sdft.tasks.numerals import DECIMAL_COMMA, MAX_CHARACTERS, NUMERAL, numeral
from onpolicy_sdft.tasks.plain_numbers import plain_numbers
from onpolicy_sdft.tasks.plain_text import braced

_MAX_EXPONENT = 400

#: What a word behind a number multiplies it by; those of one letter stand right behind it.
_SCALES = MappingProxyType(
    {
        **dict.fromkeys(["hundred", "hundreds", "百"], 100),
        **dict.fromkeys(["thousand", "thousands", "k", "K", "tausend", "mille", "千"], 10**3),
        **dict.fromkeys(["万", "萬", "만"], 10**4),
        **dict.fromkeys(["lakh", "lakhs", "lac"], 10**5),
        **dict.fromkeys(["million", "millions", "mio", "mn", "M", "millionen", "millón", "millones"], 10**6),
        **dict.fromkeys(["milhão", "milhões", "milione", "milioni"], 10**6),
        **dict.fromkeys(["crore", "crores"], 10**7),
        **dict.fromkeys(["亿", "億", "억"], 10**8),
        **dict.fromkeys(["billion", "billions", "bn", "B", "mrd", "milliarde", "milliarden", "milliard"], 10**9),
        **dict.fromkeys(["trillion", "trillions", "tn"], 10**12),
        **dict.fromkeys(["dozen", "dozens"], 12),
    }
)
_GRAND = re.compile(r"[ ]grand\b([ ]?\w)?")  # "5 grand", but not "5 grand pianos"
_ONE_LETTER = frozenset("kKMB")
#: Words of which nobody can tell what they multiply by: a thousand in Spanish, a million in English.
_UNSURE = frozenset({"mil", *_ONE_LETTER})
_PARTS = MappingProxyType({"half": 2, "halve": 2, "third": 3, "quarter": 4})
#: "3 tenths"; "3 tenth graders" are three of them.
_NTHS = MappingProxyType(
    {
        **{"fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11},
        **{"twelfth": 12, "sixteenth": 16, "twentieth": 20, "hundredth": 100, "thousandth": 10**3, "millionth": 10**6},
    }
)
_NTH = re.compile(rf"[ -]({'|'.join(_NTHS)})(s)?\b", re.IGNORECASE)
#: Letters right behind a number that make it a term (3x), an hour or a place in a row.
_NO_UNITS = frozenset({"x", "y", "z", "n", "i", "q", "r", "u", "π", "am", "pm", "a.m", "p.m"})
_VARIABLES = frozenset("ab")  # "A" is a unit
_HOURS = re.compile(r"[ ]?(?:[ap]\.?m\b|o'?clock\b|Uhr\b)", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b|(?<=\d{3}0)['’]?s\b", re.IGNORECASE)  # 5th, 1990s
_MONTHS = frozenset(name.lower() for name in (*calendar.month_name, *calendar.month_abbr) if name)

_DATE = re.compile(r"\d{1,4}-\d{1,2}-\d{1,4}(?!\d)")
_POWER = re.compile(r"[ ]?\^[ ]?(?:\{\s*(-?\d{1,4})\s*\}|\(\s*(-?\d{1,4})\s*\)|(-?\d{1,4}))(?!\d|\.\d)")
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,4})(?!\w)")
_TIMES_TEN = re.compile(r"[ ]?(?:[×x*·⋅]|\\times\b|\\cdot\b)[ ]?10(?=[ ]?\^)")
_NAMED_POWER = re.compile(r"[ ](?:(squared)|cubed)\b")
_OVER = re.compile(r"[ ]?/[ ]?")
_MIXED = re.compile(r"(?:[ ]|[ ]and[ ])(\d+)[ ]?/[ ]?(\d+)(?![\d/.,]*\d)(?![ ]?/)")
_HOW_MANY = MappingProxyType({"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7})
_PART_NAMES = "|".join(["half", "halve", "third", "quarter", *_NTHS])
_AND_A_PART = re.compile(rf"[ ]and[ ]({'|'.join(_HOW_MANY)})[ -]({_PART_NAMES})s?\b")
#: "3 halves"; "3 quarters" may be coins, and "8 half-dollars" or "8 third graders" are eight.
_PARTS_OF_ONE = re.compile(
    r"[ ](?:(?P<halves>halves)|(?P<quarters>quarters)|(?P<counted>(?:half|third)-(?=[a-z])|third[ ](?=grade))"
    r"|half|thirds?|quarter)(?:(?<=[- ])|\b)"
)
_FEW_QUARTERS = 4
_SCALE = re.compile(r"[ ]?(?:([^\W\d_]+)|([百千万萬만亿億억]))")
_GOES_ON = re.compile(
    r"(?:[:'^]\d+|\.\d+)+|[ ]?/[ ]?\d+|[ ]?\^|[ ]?√|[ ]?‰|[ ]?[)}][ ]?\^[ ]?\{?-?\d*\}?"
    r"|[ ](?:factorial|to the \w+ power)\b"
    r"|[ ]?\\(?!approx|times|cdot|div|implies|[Rr]ightarrow|end\b)[a-z]+|\.(?:\(\d|\\)"
)
#: Of these commands, and of any that stands right behind a number, the arguments are no numbers of their own.
_COMMAND = r"\\(?:[dtc]?(?:frac|binom)|over(?:line|set|brace)|under(?:set|brace)|bar|dot|stackrel)(?![a-z])"
_ARGUMENT = re.compile(r"\s*(?:\{|[\w.])")
_MAX_ARGUMENTS = 2
#: 0.\overline{6} and 0.(6): digits, and those that go on for ever.
_REPEATING = re.compile(
    r"(\d{1,20})\.(\d{0,20})(?:\\(?:overline|bar|dot)[ ]?(?:\{[ ]?(\d{1,20})[ ]?\}|(\d))|\((\d{1,20})\))"
)
_BEHIND = re.compile(r"[^\W\d_]+(?:\.[a-z])?|π|√")
_LONGEST_ARGUMENT = 200  # of a command, in characters

#: Where numbers begin; words are read over with the digits in them (H2O, x_1, COVID-19), and so are powers of units.
_SCANNER = re.compile(
    r"(?P<code>(?:USD|EUR|GBP|JPY|CNY|INR|RMB|CHF|CAD|AUD|Rs)\.?(?=[ ]?-?\d))"
    r"|(?P<word>[^\W\d_\u2e80-\uffff]{2,}-\d[\w.]*|[^\W\d_\u2e80-\uffff](?:[^\W\u2e80-\uffff])*(?:(?<=_)\{\s?\d+\s?\})?)"
    rf"|(?P<command>{_COMMAND})"
    r"|(?P<unit>\^\s{0,3}\{?\s{0,3}-?\d+|(?<=[^\W\d_])_\{?\d+)"
    r"|(?P<number>\.?\d)",
)
_BEFORE = re.compile(
    r"(?P<left>[^\s$€£¥₹({\[]?)(?P<gap>[\s$€£¥₹({\[]*)(?P<sign>[-+±]|\b(?:negative|minus)\s)(?P<inner>[\s$€£¥₹({\[]*)$",
    re.IGNORECASE,
)
_ROOT_OF = re.compile(r"(?:√|\^|\\?(?:sqrt|log|ln|sin|cos|tan|frac))\s*(?:_\{?\w+\}?\s*)?(?:\[\d+\])?[{(\s]*-?$")
_LAST_WORD = re.compile(r"([^\W\d_]+)\W*$")
_IN_BRACKETS_BEFORE = re.compile(r"(?:[(\[]|(?<![A-Za-z}^_])\{)[\s+-]*$")
_IN_BRACKETS_AFTER = re.compile(r"\s*\\?[)\]}]")
#: What has several numbers, before them.
_SEVERAL = re.compile(
    r"(?:\b(?:roots|solutions|answers|values|zeros|zeroes|factors|points?|pairs?|coordinates|numbers|integers|primes"
    r"|sets?|lists?|tuple|vector|interval)\b|\b[xyz]\s?,\s?[xyz]\b)[^.\d]{0,20}$"
    r"|(?<!there )\b(?:are|sind|sont|son):?\s*$",
    re.IGNORECASE,
)
#: Words after which a minus that stands by itself is a sign: what follows is a value.
_STATING = frozenset({"is", "are", "be", "was", "equals", "to", "of", "get", "gives", "answer"})
#: What rounds a number, and is none of its own: "rounded to 2 decimal places".
_PLACES = re.compile(
    r"[ ](?:decimal (?:places?|digits?|points?)|significant (?:figures?|digits?)|d\.?p\b|s\.?f\b|sig figs?)"
)
_ROUNDED_TO = re.compile(r"\bto(?: the)?\s$")
#: |6|, but not a cell of a table.
_BAR = re.compile(r"\A\|$|(?:^|\n)[^|\n]*[\s$(=]\|$")
_WINDOW = 40
#: Of a text that may be a number alone, with LaTeX and tags around it, in characters.
_LONGEST_ALONE = 10 * MAX_CHARACTERS
#: Behind a sum of money, and of nothing else, "m" is a million; what "mm" and " m" are nobody can tell.
_MILLIONS = re.compile(r"(?:m|[ ]?mm?)(?![\w^])")
_MONEY_BEFORE = re.compile(r"([$€£¥₹]|\b(?:USD|EUR|GBP|JPY|CNY|INR|RMB|CHF|CAD|AUD|Rs)\b\.?)[ ]?-?$")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in a text."""

    start: int
    end: int
    value: Fraction | None  # None: not a number that can be read


_DAY = re.compile(r"\d{1,2}(?!\d)")


def quantities(text: str) -> Iterator[Quantity]:
    """Yield the numbers of a text from left to right.

    Args:
        text: As :func:`plain_numbers` returns it.
    """
    position = 0
    while found := _SCANNER.search(text, position):
        position = found.end()
        if found["command"]:
            position = _past_arguments(text, position)
            yield Quantity(found.start(), position, None)
        if found["number"] is None:
            continue
        value, end = _read(text, found.start())
        if value is not None and (money := _MILLIONS.match(text, end)) and _is_money(text, found.start()):
            value, end = (_times(value, Fraction(10**6)) if money.group() == "m" else None), money.end()
        position = end
        if _ORDINAL.match(text, end):
            continue
        if _PLACES.match(text, end) and _ROUNDED_TO.search(text[max(0, found.start() - _WINDOW) : found.start()]):
            continue
        start, sign = _signed(text, found.start())
        if text[end : end + 1] == "|" and _BAR.search(text[max(0, start - _WINDOW) : start]):
            sign = 0
        yield Quantity(start, end, None if value is None or sign == 0 else sign * value)


def _is_money(text: str, start: int) -> bool:
    """Whether a sign of money stands before a number, which is not that of a formula."""
    found = _MONEY_BEFORE.search(text[max(0, start - _WINDOW) : start])
    is_formula = (
        found is not None
        and found[1] == "$"
        and "$" in text[start : start + _WINDOW].partition("\n")[0].partition(" ")[0]
    )
    return found is not None and not is_formula


def number_alone(text: str) -> Fraction | None:
    """Return the value of a text that is one number and nothing else, else None."""
    text = plain_numbers(text).strip() if len(text) <= _LONGEST_ALONE else text
    found = list(quantities(text)) if len(text) <= MAX_CHARACTERS else []
    is_whole = len(found) == 1 and found[0].start == 0 and found[0].end == len(text)
    return found[0].value if is_whole else None


def _read(text: str, start: int) -> tuple[Fraction | None, int]:
    """Return the value of the number that begins at a digit or a point, and where it ends."""
    if date := _DATE.match(text, start):
        return None, date.end()
    if repeating := _REPEATING.match(text, start):
        return _behind(text, _repeating(repeating), repeating.end())
    found = NUMERAL.match(text, start)
    if found is None:
        return None, start + 1
    listed = DECIMAL_COMMA.fullmatch(found.group()) and _is_list(text, start, found.end())
    value, end = _powered(text, None if listed else numeral(found.group()), found.end())
    if over := _OVER.match(text, end):
        bottom = NUMERAL.match(text, over.end())
        if bottom is not None:
            under, end = _powered(text, numeral(bottom.group()), bottom.end())
            value = value / under if value is not None and under and " " not in found.group() else None
    elif value is not None and value.denominator == 1:
        value, end = _mixed(text, value, end)
    return _behind(text, value, end)


def _powered(text: str, value: Fraction | None, end: int) -> tuple[Fraction | None, int]:
    """Read ``^3``, ``e3`` and ``× 10^3`` behind a number."""
    if power := _POWER.match(text, end):
        return _raised(value, int(power[1] or power[2] or power[3])), power.end()
    if exponent := _EXPONENT.match(text, end):
        return _times(value, _raised(Fraction(10), int(exponent[1]))), exponent.end()
    if named := _NAMED_POWER.match(text, end):
        return _raised(value, 2 if named[1] else 3), named.end()
    if ten := _TIMES_TEN.match(text, end):
        factor, end = _powered(text, Fraction(10), ten.end())
        return _times(value, factor), end
    return value, end


def _mixed(text: str, value: Fraction, end: int) -> tuple[Fraction | None, int]:
    """Read ``3/4`` and "and a half" behind a whole number."""
    if part := _MIXED.match(text, end):
        top, bottom = int(part[1]), int(part[2])
        return (value + Fraction(top, bottom) if bottom else None), part.end()
    if named := _AND_A_PART.match(text, end):
        return value + Fraction(_HOW_MANY[named[1]], _PARTS.get(named[2]) or _NTHS[named[2]]), named.end()
    if named := _PARTS_OF_ONE.match(text, end):
        if named["halves"]:
            return value / 2, named.end()
        is_count = named["counted"] or (named["quarters"] and value > _FEW_QUARTERS)
        return (value, end) if is_count else (None, named.end())
    return value, end


def _behind(text: str, value: Fraction | None, end: int) -> tuple[Fraction | None, int]:
    """Read "million" behind a number, and refuse what makes it no number: ``3x``, ``5pm``, ``10:30``, ``1.2.3``."""
    while (scale := _SCALE.match(text, end)) and (factor := _factor(scale)):
        value, end = _times(value, Fraction(factor)), scale.end()
    if scale and scale.group()[0] == " " and scale[1] in _UNSURE:
        return None, scale.end()
    if grand := _GRAND.match(text, end):
        return (None if grand[1] else _times(value, Fraction(1000))), grand.end()
    if part := _NTH.match(text, end):
        return (_times(value, Fraction(1, _NTHS[part[1].lower()])) if part[2] else None), part.end()
    glued = _BEHIND.match(text, end)
    if (glued and (glued.group() in _VARIABLES or glued.group().lower() in _NO_UNITS)) or _HOURS.match(text, end):
        return None, glued.end() if glued else end
    if glued and (text[glued.end() : glued.end() + 1].isdigit() or glued.group().startswith("x")):
        return None, glued.end()  # 0xFF, 5e: letters with digits behind them
    if more := _GOES_ON.match(text, end):
        return None, _past_arguments(text, more.end()) if "\\" in more.group() else more.end()
    return value, end


def _past_arguments(text: str, end: int) -> int:
    """Return where the arguments of a LaTeX command end."""
    for _ in range(_MAX_ARGUMENTS):
        found = _ARGUMENT.match(text, end)
        if found is None or (found.group()[-1] != "{" and end != found.start()):
            break
        end = found.end()
        if found.group()[-1] == "{":
            end = min(len(text), end + len(braced(text[: end + _LONGEST_ARGUMENT], end)) + 1)
    return end


def _repeating(found: re.Match[str]) -> Fraction:
    whole, places, period = found[1], found[2], found[3] or found[4] or found[5]
    once = 10 ** len(places)
    return Fraction(int(whole + places + period) - int(whole + places), once * (10 ** len(period) - 1))


def _is_list(text: str, start: int, end: int) -> bool:
    """Whether a comma stands between two numbers: in brackets of their own, or behind the name of several."""
    before = text[max(0, start - _WINDOW) : start]
    if _IN_BRACKETS_BEFORE.search(before) and _IN_BRACKETS_AFTER.match(text, end):
        return True
    return _SEVERAL.search(before) is not None


def _factor(scale: re.Match[str]) -> int | None:
    word = scale[1] or scale[2]
    if len(word) == 1 and word.isascii():
        return _SCALES[word] if scale.group() == word and word in _ONE_LETTER else None
    return _SCALES.get(word) or _SCALES.get(word.lower())


def _signed(text: str, start: int) -> tuple[int, int]:
    """Return where a number begins with its sign, and the sign; 0 where nobody can tell what the dash means."""
    before = text[max(0, start - _WINDOW) : start]
    if _ROOT_OF.search(before):
        return start, 0
    found = _BEFORE.search(before)
    if found is None:
        word = _LAST_WORD.search(before)
        is_day = _DAY.match(text, start) is not None  # "May 12", but "May 1999" is that year
        is_date = is_day and word is not None and word[1].lower() in _MONTHS and before.endswith(" ")
        return start, 0 if is_date else 1
    left, sign = found["left"], found["sign"].strip().lower()
    begins = start - len(before) + found.start("sign")
    if left and (left.isdigit() or left in ")]}%°"):
        return start, 1  # an operator
    if sign == "±" or left in ("-", "+", "±") or (left == "|" and not found["gap"]):
        return begins, 0
    value = 1 if sign == "+" else -1
    is_apart, is_alone = bool(found["gap"]), found["inner"][:1].isspace()
    if is_alone and "\n" in found["gap"]:
        return begins, 0  # an item of a list
    if left.isalpha() and len(sign) == 1:
        word = _LAST_WORD.search(before[: found.start("sign")])
        name = word[1] if word else left
        if not is_apart or (len(name) == 1 and name != "a"):
            return begins, 0  # x-3, x - 3
        return begins, 0 if is_alone and name.lower() not in _STATING else value
    return begins, value


def _raised(value: Fraction | None, exponent: int) -> Fraction | None:
    if value is None or (value == 0 and exponent < 0):
        return None
    size = max(len(str(value.numerator)), len(str(value.denominator)))
    return value**exponent if size * abs(exponent) <= _MAX_EXPONENT * 2 else None


def _times(value: Fraction | None, factor: Fraction | None) -> Fraction | None:
    return None if value is None or factor is None else value * factor
