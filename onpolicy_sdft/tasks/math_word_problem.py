"""Word problems whose answer is one number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from onpolicy_sdft.tasks.protocol import Task, bad_field, reference_text, short_message
from onpolicy_sdft.types import CheckResult, Demonstration

# A longer run of digits is a model that loops, not an answer; it also bounds the arithmetic.
_MAX_CHARACTERS = 100

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    # A minus is a sign unless it joins two terms, as in 16-3 or x-3; "-$5" is a negative amount.
    r"(?<![0-9.])"
    r"(?P<sign>(?:(?<![\w)\]%])-\s?(?=[$€£])|(?<![\w)\]%])-(?=\.?[0-9]))?[$€£]?\s?(?:(?<=[$€£])-)?)"
    # 1 3/4 is one and three quarters; 3 4 stays two numbers.
    rf"(?:(?P<whole>[0-9]+)\s+(?P<part>[0-9]+)/(?P<parts>[0-9]+)(?![0-9/])"
    rf"|(?P<top>{_PLAIN})(?:\s?/\s?(?P<bottom>{_PLAIN})(?!\s?/))?)"
)
_MARKER = re.compile(r"(?P<boxed>\\boxed\s*\{)|\#{4}|\banswer\b\s*(?:\bis\b|:|=)(?:\s*:)?", re.IGNORECASE)
# After a marker, "3 + 4 = 7" and "7 = 3 + 4" both state 7: the side that is a bare number.
_ARITHMETIC = re.compile(r"[\s$€£0-9.,+*/x\u00d7\u00f7()%-]*=")
_OPERATION = re.compile(r"\s*[+*/x\u00d7\u00f7-]\s*[$€£]?[0-9(]")


def marked_text(text: str) -> str | None:
    r"""Return what stands after the last answer marker, or None where there is no marker.

    Markers are "the answer is", "answer:", ``####`` and ``\boxed{``.
    """
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    last = markers[-1]
    rest = text[last.end() :]
    return rest.split("}", 1)[0] if last["boxed"] else rest


def final_number(text: str) -> Fraction | None:
    r"""Return the number a text ends up with, exactly.

    The number after the last marker counts ("the answer is", "answer:", ``####``, ``\boxed{}``);
    without a marker, the last number of the text does. Thousands separators, currency signs,
    percent signs and units are read over: 50% is 50. Fractions and mixed numbers are values, so 3/4
    equals 0.75.

    Args:
        text: A worked solution or a bare answer.

    Returns:
        The number, or None where there is none.

    Source:
        Takes the place of ``find_last_integer`` in the code of Yang et al. (ACL 2024,
        arXiv:2402.13669), which reads "3 4" as 34 and finds two unparseable answers equal.
    """
    text = _plain_text(text)
    marked = marked_text(text)
    if marked is None:
        return _last_number(text)
    found = _stated_number(marked.strip().partition("\n")[0])
    # "The answer is therefore easy to see: ... 18" states its number further on.
    return _value(found) if found else _last_number(marked)


def _plain_text(text: str) -> str:
    r"""Undo typography: minus signs, LaTeX fractions and spacing, thin spaces, bold marks."""
    text = text.replace("\u2212", "-").replace("{,}", ",").replace(r"\$", "$")
    text = text.replace(r"\%", "%").replace("**", "").replace(r"\,", "").replace(r"\!", "")
    text = re.sub(r"\\[dt]?frac\s*\{\s*([0-9.]+)\s*\}\s*\{\s*([0-9.]+)\s*\}", r"\1/\2", text)
    return re.sub(r"(?<=[0-9])[\u2009\u202f](?=[0-9]{3}(?![0-9]))", ",", text)


def _stated_number(line: str) -> re.Match[str] | None:
    sides = [line]
    while equation := _ARITHMETIC.match(sides[-1]):
        left, right = sides[-1][: equation.end() - 1], sides[-1][equation.end() :]
        sides[-1:] = [left, right]
    for side in reversed(sides):
        found = _NUMBER.search(side)
        if found and not _OPERATION.match(side, found.end()):
            return found
    return _NUMBER.search(line)


def _last_number(text: str) -> Fraction | None:
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found.group()) > _MAX_CHARACTERS:
        return None
    if found["whole"]:
        whole, numerator, denominator = (Fraction(found[n]) for n in ("whole", "part", "parts"))
    else:
        whole, numerator = Fraction(0), _exact(found["top"])
        denominator = _exact(found["bottom"]) if found["bottom"] else Fraction(1)
    if denominator == 0:
        return None
    value = whole + numerator / denominator
    return -value if "-" in found["sign"] else value


def _exact(digits: str) -> Fraction:
    return Fraction(Decimal(digits.replace(",", "")))


def _as_text(value: Fraction) -> str:
    """Write a number plainly: as a decimal where that is exact, else as a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    return f"{decimal:f}" if Fraction(decimal) == value else str(value)


@dataclass(frozen=True)
class MathWordProblem(Task):
    """The final number equals the reference's, as exact values.

    The reference is the field ``answer_field`` if the row has one, else the final number of the
    response.

    Attributes:
        answer_field: Column of the bare answer.
    """

    answer_field: str = "answer"
    name = "math_word_problem"
    work_wording = "Write down every calculation before the number that it leads to."
    check_is_quick = True

    def ask(self, prompt: str) -> str:
        """Ask for the steps and a last sentence the check can read."""
        return f'{prompt}\n\nSolve the problem step by step. End with "The answer is <number>."'

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Compare the final numbers; a completion without a number is never right."""
        expected = self._expected(demonstration)
        stated = final_number(completion)
        right = _as_text(expected)
        if stated is None:
            message = "The answer states no number. End with the number that the question asks for."
            return CheckResult(False, "no_number", message=message, expected=right)
        if stated != expected:
            message = short_message(f"The answer ends up with {_as_text(stated)}, which is not right.")
            return CheckResult(False, "wrong_answer", _as_text(stated), message, right)
        return CheckResult(True, answer=_as_text(stated))

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the response where its final number is right, else a sentence with the number."""
        expected = self._expected(demonstration)
        if final_number(demonstration.response) == expected:
            return demonstration.response
        return f"The answer is {_as_text(expected)}."

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse a reference without a number, or a response that states another one."""
        expected = self._expected(demonstration)
        if marked_text(_plain_text(demonstration.response)) is None:
            return
        stated = final_number(demonstration.response)
        if stated is not None and stated != expected:
            raise bad_field(
                demonstration,
                self.answer_field,
                f"says {_as_text(expected)} but the response states {_as_text(stated)}",
            )

    def _expected(self, demonstration: Demonstration) -> Fraction:
        expected = final_number(reference_text(demonstration, self.answer_field))
        if expected is None:
            raise bad_field(demonstration, self.answer_field, "or the response holds no number")
        return expected
