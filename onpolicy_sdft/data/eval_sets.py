"""Evaluation sets: questions with their check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from onpolicy_sdft.data.sources import load_demonstrations
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
    note: str = ""  # what is to be said beside its score


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
        found.append(EvalSet(item.label, rows.demonstrations, task, item.max_new_tokens, item.retention))
    return found
