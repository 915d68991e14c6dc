"""Evaluation sets: questions with their check."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from onpolicy_sdft.data.inputs import task_digest
from onpolicy_sdft.data.sources import fingerprint, load_demonstrations
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Demonstration

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import EvalSetConfig
    from onpolicy_sdft.tasks.protocol import Task


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Questions with their check, loaded."""

    label: str
    demonstrations: Sequence[Demonstration]
    task: Task
    max_new_tokens: int
    retention: bool
    check: str = ""  # the task's name, options and files: what tells its verdicts from those of another
    note: str = ""  # what is to be said beside its score

    @property
    def identity(self) -> str:
        """Digest of what decides answers and verdicts besides prompts and model: rows, lengths, and what checks."""
        said = fingerprint(list(self.demonstrations)), self.max_new_tokens, self.check or self.task.name
        return hashlib.sha256(repr(said).encode()).hexdigest()


def load_eval_sets(
    configs: Sequence[EvalSetConfig],
    section: str = "eval.sets",
    tasks: Mapping[str, Task] = MappingProxyType({}),
) -> list[EvalSet]:
    """Load and check the questions of evaluation sets.

    Args:
        configs: The sets.
        section: Of the config, for messages.
        tasks: Those that are there already, by name.
    """
    found = []
    for index, item in enumerate(configs):
        task = load_task(item.task.name, item.task.options, tasks)
        rows = load_demonstrations(item.data, task, section=f"{section}[{index}].data")
        check = repr((item.task.name, sorted(item.task.options.items()), task_digest(item.task.name)))
        found.append(EvalSet(item.label, rows.demonstrations, task, item.max_new_tokens, item.retention, check=check))
    return found
