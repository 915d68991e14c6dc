"""A check written as one function of (prompt, completion, row): right or wrong, a score, or either with a reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.tasks.protocol import Task, require_bool
from onpolicy_sdft.tool_calls import messages_of
from onpolicy_sdft.types import CheckResult, Demonstration

#: What such a function is given, and what it says: right or wrong, a score from 0 to 1, or either with a short reason.
CheckFunction = Callable[[str, str, Mapping[str, Any]], bool | float | tuple[bool | float, str]]
_ARGUMENTS = ("prompt", "completion", "row")


class FunctionTask(Task):
    """A task of the user's own that is a check and nothing else: questions are asked as they stand.

    Args:
        function: ``function(prompt, completion, row)``: the question, the text to judge, and the row: its other
            columns, with ``prompt``, ``response`` and ``messages`` (all turns up to the question), whatever the
            format.
        threshold: A score of at least so much is right.
        quick: Whether the check is a little pure Python; others run in threads, beside what is written.

    Raises:
        TaskError: If the function does not take three arguments.
    """

    def __init__(self, function: CheckFunction, *, threshold: float = 0.5, quick: bool = False) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        require_bool(self.name, quick=quick)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise TaskError(f"task {self.name}: option 'threshold' is {threshold!r}; give a number from 0 to 1")
        self.threshold = float(threshold)
        self.check_is_quick = quick
        try:
            inspect.signature(function).bind(*_ARGUMENTS)
        except TypeError as error:
            raise TaskError(
                f"task {self.name}: the function must take three arguments, (prompt, completion, row): {error}"
            ) from error

    def ask(self, prompt: str) -> str:
        """Ask the question as it stands."""
        return prompt

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Call the function, and read what it says."""
        messages, tools = messages_of(demonstration.turns)
        row = {
            **demonstration.fields,
            "prompt": demonstration.prompt,
            "response": demonstration.response,
            "messages": messages,
            **({} if tools is None else {"tools": tools}),
        }
        said: Any = self.function(demonstration.prompt, completion, row)
        score, reason = said if isinstance(said, tuple) and len(said) == 2 else (said, "")
        if hasattr(score, "item"):  # a number of numpy's or torch's
            score = score.item()
        if not isinstance(score, int | float) or not isinstance(reason, str) or not 0 <= score <= 1:
            raise TaskError(
                f"task {self.name} said {said!r} of example {demonstration.example_id!r}. Fix: return True or False, a "
                "score from 0 to 1, or either with a short reason, as in (False, 'too long')"
            )
        if score >= (1 if isinstance(score, bool) else self.threshold):
            return CheckResult(True, answer=None if isinstance(score, bool) else f"{score:g}")
        return CheckResult(False, reason or "wrong_answer", None if isinstance(score, bool) else f"{score:g}", reason)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the row's response."""
        return demonstration.response
