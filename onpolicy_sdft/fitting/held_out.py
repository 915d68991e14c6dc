"""Which rows are held back from training for the gate, and what it asks."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.data.sources import DemonstrationSet, fingerprint
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.tasks.protocol import has_check

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.tasks.protocol import Task
    from onpolicy_sdft.types import Demonstration

logger = logging.getLogger(__name__)

#: Name of the held-back rows. With a blank, which no label of an evaluation set may have.
HELD_BACK = "held back"

#: Of the data, at most this part is held back: one row in so many.
_ONE_IN = 10
#: Fewer rows than these show nothing.
_FEWEST_ROWS = 8


def note_overlap(rows: Sequence[Demonstration], sets: Sequence[EvalSet], *, says: bool = True) -> list[EvalSet]:
    """Return evaluation sets with a note where they ask what is trained on: it stands beside their scores.

    Prompts are compared up to blanks and case.

    Args:
        rows: That are trained on.
        sets: The questions.
        says: Whether this process logs it, too.
    """
    trained = {_as_asked(row) for row in rows}
    found = []
    for each in sets:
        shared = sum(_as_asked(question) in trained for question in each.demonstrations)
        note = f"{shared} of {len(each.demonstrations)} questions are training prompts" if shared else ""
        found.append(replace(each, note=note))
        if shared and says:
            logger.warning(
                f"{note} in {each.label!r}: their score does not tell what is learned from what is remembered"
            )
    return found


def _as_asked(row: Demonstration) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, " ".join(turn.content.split()).casefold()) for turn in row.turns)


def hold_back(
    config: RunConfig, task: Task, rows: DemonstrationSet
) -> tuple[DemonstrationSet, tuple[Demonstration, ...]]:
    """Take the gate's rows out of the data, before anything else sees it.

    Rows whose question stands in the data twice, up to blanks and case, are never taken: the other one would be trained
    on. Of a conversation all answers are taken, or none.

    Args:
        config: Of the run; ``train.seed`` chooses the rows.
        task: Their check.
        rows: All rows.

    Returns:
        What is left to train on, and the rows held back. The fingerprint is that of both.
    """
    number, asked = min(config.gate.rows, len(rows.demonstrations) // _ONE_IN), config.gate.rows
    if not asked:
        return rows, ()
    questions = [_as_asked(row) for row in rows.demonstrations]
    num_asked = Counter(questions)
    is_checked = [has_check(task, row) for row in rows.demonstrations]
    groups: dict[str, list[int]] = {}  # answers of one conversation: each is in the prompt of those behind it
    for index, row in enumerate(rows.demonstrations):
        groups.setdefault(row.conversation or row.example_id, []).append(index)
    candidates = [
        group
        for group in groups.values()
        if all(num_asked[questions[index]] == 1 and is_checked[index] for index in group)
    ]
    why = ""
    if not any(is_checked):
        why = "the task has no check that could tell"
    drawn = random.Random(f"held back {config.train.seed}").sample(candidates, min(number, len(candidates)))
    chosen = set[int]()
    for group in drawn:
        if len(chosen) + len(group) <= number:
            chosen.update(group)
    if not why and len(chosen) < _FEWEST_ROWS:
        why = (
            f"a tenth of the {len(rows.demonstrations)} rows, each with its own prompt, is fewer than {_FEWEST_ROWS}"
            + (" (of a conversation all answers are taken, or none)" if len(groups) < len(rows.demonstrations) else "")
        )
    if why:
        logger.info(f"no rows are held back for the gate (gate.rows={asked}): {why}")
        return rows, ()
    held = tuple(row for index, row in enumerate(rows.demonstrations) if index in chosen)
    left = tuple(row for index, row in enumerate(rows.demonstrations) if index not in chosen)
    logger.info(
        f"{len(held)} of {len(rows.demonstrations)} rows are held back from training for the gate (gate.rows={asked})"
    )
    mark = f"{fingerprint(list(left))}, held back {fingerprint(list(held))}"
    return replace(rows, demonstrations=left, fingerprint=mark), held


def gate_sets(
    config: RunConfig, task: Task, held: Sequence[Demonstration], sets: Sequence[EvalSet]
) -> tuple[EvalSet, ...]:
    """Return what the gate asks: the rows held back, and the first of each retention set."""
    if not config.gate.rows:
        return ()
    found = [EvalSet(HELD_BACK, held, task, config.rollout.max_new_tokens, False)] if held else []
    found += [
        replace(questions, demonstrations=questions.demonstrations[: config.gate.rows])
        for questions in sets
        if questions.retention and all(has_check(questions.task, row) for row in questions.demonstrations)
    ]
    return tuple(found)


def refuse_unchecked(validation: Sequence[EvalSet]) -> None:
    """Refuse validation sets whose task accepts any text: they have no score to stop by or to keep the best by.

    Raises:
        ConfigError: Naming the set and its task.
    """
    for questions in validation:
        if not any(has_check(questions.task, row) for row in questions.demonstrations):
            raise ConfigError(
                f"eval.validation {questions.label!r}: its task {questions.task.name} has no check, so it has no "
                "score. Fix: a task.name of the set that tells right from wrong answers, or leave the set out."
            )
