"""Short answers compared as text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from onpolicy_sdft.tasks.protocol import Task, bad_field, reference_text, require_bool
from onpolicy_sdft.types import CheckResult, Demonstration


@dataclass(frozen=True)
class Exact(Task):
    """The completion is the answer, up to case and white space.

    The reference is the field ``answer_field`` if the row has one, else the whole response.
    Unicode is compared in canonical composition, and blanks at both ends never count.

    Attributes:
        ignore_case: Compare case-folded text.
        ignore_whitespace: Read every run of white space as one blank.
        answer_field: Column of the bare answer.
    """

    ignore_case: bool = True
    ignore_whitespace: bool = True
    answer_field: str = "answer"
    name = "exact"

    def __post_init__(self) -> None:
        require_bool(self.name, ignore_case=self.ignore_case, ignore_whitespace=self.ignore_whitespace)

    def ask(self, prompt: str) -> str:
        """Ask for the bare answer."""
        return f"{prompt}\n\nReply with the answer only."

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Compare the normalised texts; an empty completion is never right."""
        self.check_demonstration(demonstration)
        answer = self._normalise(completion)
        if not answer:
            return CheckResult(False, "empty")
        if answer != self._normalise(reference_text(demonstration, self.answer_field)):
            return CheckResult(False, "wrong_answer", answer)
        return CheckResult(True, answer=answer)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the bare answer."""
        return reference_text(demonstration, self.answer_field)

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse an empty reference."""
        if not self._normalise(reference_text(demonstration, self.answer_field)):
            raise bad_field(demonstration, self.answer_field, "and the response hold no answer")

    def _normalise(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text).strip()
        if self.ignore_whitespace:
            text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text
