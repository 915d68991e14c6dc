"""Digits with separators, as people write them."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

# A longer run of digits is a model that loops, not an answer; it also bounds the arithmetic.
MAX_CHARACTERS = 100

NUMERAL = re.compile(r"\d+(?:[.,'’_]\d+|[ ]\d{3}(?!\d))*|\.\d+")
_GROUPED = re.compile(  # 1,234,567.8  1 234 567,8  1'234.5  1_000  12,34,567
    r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d{0,2}(?:([ '’_])\d{3})(?:\1\d{3})*(?:[.,]\d+)?"
    r"|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?"
)
_GROUPED_BY_POINTS = re.compile(r"[1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d+)?|[1-9]\d{0,2}(?:\.\d{3})+,\d+")
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+")
DECIMAL_COMMA = re.compile(r"0,\d+|[1-9]\d*,\d{1,2}")


def numeral(digits: str) -> Fraction | None:
    """Return the value of digits with separators; None where they are none of the forms of a number."""
    if len(digits) > MAX_CHARACTERS:
        return None
    if _GROUPED.fullmatch(digits):
        is_space = any(mark in digits for mark in " '’_")
        digits = re.sub(r"[ '’_]", "", digits).replace(",", "." if is_space else "")
    elif _GROUPED_BY_POINTS.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif DECIMAL_COMMA.fullmatch(digits):
        digits = digits.replace(",", ".")
    elif not _PLAIN.fullmatch(digits):
        return None
    return Fraction(Decimal(digits))
