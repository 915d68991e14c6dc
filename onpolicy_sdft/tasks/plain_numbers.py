"""Text with numbers in one typography: without LaTeX, bold marks and tags, with one kind of dash and digit."""

from __future__ import annotations

import re
from decimal import Decimal

from onpolicy_sdft.tasks.numerals import numeral
from onpolicy_sdft.tasks.plain_text import plain_characters, without_struck, without_wrappers

#: Stands for a bold mark; white space to patterns, and in no text that a model writes.
BOLD = "\x1f"
#: LaTeX commands glued to a digit ("\times4") would be words with a digit in them.
_GLUED_COMMAND = re.compile(r"(\\[A-Za-z]+)(?=\d)")
#: "5!" ends a sentence, but not inside a formula, a box, or before a full stop.
_FACTORIAL = re.compile(r"(?<=[\d)])!+(?=\s*[}$=]|\.(?:\s|$))")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([-+]?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([-+]?[\d.,]+)\s*\}|(\d))")
_EMPHASIS = re.compile(r"(?<![\w*)])(?<!\d )\*(-?[$\d][^*\n]{0,30})\*(?![\d*])")
_LONGEST_PART = 20  # of such a fraction: decimals are exact to 28 digits
_DEGREES = re.compile(r"\^[ ]{0,3}\{?[ ]{0,3}\\circ(?![a-z])[ ]{0,3}\}?")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")  # of GSM8K: <<48/2=24>>24
#: Lines of aligned formulas, as in "2x &= 14" and what stands below it.
_ALIGNED = re.compile(r"&\s{0,3}(?==)")
_LINE_BREAK = re.compile(r"\\\\(?=\s)")
_ANSWER_TAG = re.compile(r"<(/?)(?:(?i:final_answer|answer)|SOLUTION)>")
#: Tags around an answer say nothing, but for those of the answer itself, of raised and of struck text.
_TAG = re.compile(
    r"(?:(?<!\w)<|<(?=/|[a-z]{2}))(?!/?answer\b|su[bp]\b|(?:s|del|strike)>)/?[a-z][a-z_]{0,20}\s?/?>|<\|[\w ]{1,30}\|>"
)
_SOURCE = re.compile(r"(?<=[\d%])[ ]?\[\d{1,2}\](?=[.,;]?\s*(?:\Z|\n|[A-Z]))")  # "The answer is 6 [1]."
_BOLD_OR_POWER = re.compile(r"(?<![\d*.,])(\d+(?:\.\d+)?)(?:\*\*| \*\* )(-?\d+)(?![\d*])")

#: "12 dollars and 0 cents"; with cents there are two numbers, of which one is asked for.
_MONEY = re.compile(
    r"(?<![\d.,/^-])(\d{1,3}(?:,\d{3}){1,3}|\d{1,9}) (dollars?|euros?|pounds?),?(?: and)? 0{1,2} (?:cents?|pence)\b",
    re.IGNORECASE,
)
_CROSS = re.compile(r"(?<=[\d)])(?<!\b0)x(?=[\d(])")  # 4x3, but not 0x3


def plain_numbers(text: str) -> str:
    r"""Undo typography around numbers: LaTeX, bold marks, tags, dashes, full-width digits."""
    return with_bold(text).replace(BOLD, " ")


def with_bold(text: str) -> str:
    """Return what :func:`plain_numbers` does, with :data:`BOLD` where it has the blanks of bold marks."""
    text = _ANSWER_TAG.sub(r"<\1answer>", without_struck(text.replace(BOLD, " ")))
    text = _LINE_BREAK.sub("\n", _ALIGNED.sub("", _SOURCE.sub("", _TAG.sub(" ", text))))
    text = without_wrappers(text.replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%"))
    text = _ANNOTATION.sub("", _DEGREES.sub("°", text.replace(r"\pm", "±")))
    text = _GLUED_COMMAND.sub(r"\1 ", _FACTORIAL.sub(r"\\factorial{}", _CROSS.sub("×", text)))
    text = _BOLD_OR_POWER.sub(r"\1^\2", plain_characters(text))
    text = _MONEY.sub(r"\1 \2", text)
    return _LATEX_FRACTION.sub(_written_out, _EMPHASIS.sub(r" \1 ", text.replace("**", BOLD)))


def _written_out(found: re.Match[str]) -> str:
    r"""Write ``\frac{-1}{2}`` as ``-1/2``, apart from a whole number before it."""
    top, bottom = (found[1] or found[2]), (found[3] or found[4])
    values = [_part(part.lstrip("+-")) for part in (top, bottom)]
    if None in values or max(len(top), len(bottom)) > _LONGEST_PART or (bottom.startswith("-") and top.startswith("-")):
        return found.group()
    sign = "-" if "-" in (top[0], bottom[0]) else ""
    digits = f"{values[0]}/{values[1]}"
    is_mixed = found.string[found.start() - 1 : found.start()].isdigit() and found.start() > 0
    return f"{' ' if is_mixed else ''}{sign}{digits}"


def _part(digits: str) -> str | None:
    """Return a part of a fraction without separators; None where it is no number."""
    if digits.isdigit():
        return digits
    value = numeral(digits)
    return None if value is None else f"{Decimal(value.numerator) / value.denominator:f}"
