"""Several tasks behind one: each demonstration is checked by its own."""

from __future__ import annotations

from collections.abc import Mapping

from onpolicy_sdft.tasks.protocol import Task, work_of
from onpolicy_sdft.types import CheckResult, Demonstration


class MixedTask(Task):
    """Checks each demonstration as the task it came from does.

    Args:
        own: The task of every demonstration that is not named.
        others: Tasks of the others, by example id.
    """

    name = "mixed"

    def __init__(self, own: Task, others: Mapping[str, Task]) -> None:
        self.own = own
        self.others = others
        self.check_is_quick = all(getattr(task, "check_is_quick", False) for task in (own, *others.values()))

    def task_of(self, demonstration: Demonstration) -> Task:
        """Return the task of a demonstration."""
        return self.others.get(demonstration.example_id, self.own)

    def ask(self, prompt: str) -> str:
        """Word a question as the first task does; the others' are worded when they are loaded."""
        return self.own.ask(prompt)

    def work(self, demonstration: Demonstration) -> str:
        """Say what the demonstration's own task calls the work."""
        return work_of(self.task_of(demonstration))(demonstration)

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Check a completion as the demonstration's own task does."""
        return self.task_of(demonstration).check(completion, demonstration)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the answer of the demonstration's own task."""
        return self.task_of(demonstration).reference_answer(demonstration)

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse what the demonstration's own task refuses."""
        self.task_of(demonstration).check_demonstration(demonstration)
