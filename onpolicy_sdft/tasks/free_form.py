"""Answers nobody checks: instruction following, chat, writing."""

from __future__ import annotations

from dataclasses import dataclass

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks.plain_text import is_blank, is_unseen
from onpolicy_sdft.tasks.protocol import Task
from onpolicy_sdft.types import CheckResult, Demonstration


@dataclass(frozen=True)
class FreeForm(Task):
    """Any text will do: correct unless empty."""

    name = "free_form"
    has_check = False
    check_is_quick = True

    def ask(self, prompt: str) -> str:
        """Return the prompt as it stands."""
        return prompt

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Accept every completion that says something behind its thoughts."""
        if is_blank(completion):
            return CheckResult(False, "empty", message="The answer is empty.")
        return CheckResult(True)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the response."""
        return demonstration.response

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse a blank response, unless the teacher is shown another text."""
        if is_unseen(demonstration.shown):
            raise DataError(
                f"example {demonstration.example_id!r}: the response is empty; mend the row or leave it out"
            )
