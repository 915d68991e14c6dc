"""Word problems whose answer is one number."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from onpolicy_sdft.tasks.protocol import Task, bad_field, number_in_field, reference_text, short_message
from onpolicy_sdft.tasks.stated_number import final_number, states_number
from onpolicy_sdft.types import CheckResult, Demonstration


def _as_text(value: Fraction) -> str:
    """Write a number plainly: as a decimal where that is exact, else as a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    return f"{decimal:f}" if Fraction(decimal) == value else str(value)


@dataclass(frozen=True)
class MathWordProblem(Task):
    """The final number equals the reference's, as exact values.

    The reference is the field ``answer_field`` if the row has one (a number there is that number), else the final
    number of the response. How a text is read is told in :mod:`~onpolicy_sdft.tasks.stated_number`: every form in
    which a number is written is read as its value, and what has no single value is no number.

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
        if not states_number(demonstration.response):
            return
        stated = final_number(demonstration.response)
        if stated is not None and stated != expected:
            raise bad_field(
                demonstration,
                self.answer_field,
                f"says {_as_text(expected)} but the response states {_as_text(stated)}",
            )

    def _expected(self, demonstration: Demonstration) -> Fraction:
        expected = number_in_field(demonstration, self.answer_field)
        if expected is None:
            expected = final_number(reference_text(demonstration, self.answer_field))
        if expected is None:
            raise bad_field(demonstration, self.answer_field, "or the response holds no number")
        return expected
