"""The gate of a run: which rows are held back from training, and how they are answered."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.config.computing import computing_of
from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.data.sources import DemonstrationSet, fingerprint
from onpolicy_sdft.eval.evaluate import score_sets
from onpolicy_sdft.eval.first_probe import restore_probe
from onpolicy_sdft.tasks.protocol import has_check
from onpolicy_sdft.train.alarms import Alarms, signals
from onpolicy_sdft.train.checkpoint import Checkpointer
from onpolicy_sdft.train.gate import Answers, Gate
from onpolicy_sdft.train.guards import Guards

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.data import Data
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.tasks.protocol import Task
    from onpolicy_sdft.train.panel import TrainProgress
    from onpolicy_sdft.train.step import Trainer
    from onpolicy_sdft.types import Demonstration, Ranks

logger = logging.getLogger(__name__)

#: Name of the held-back rows. With a blank, which no label of an evaluation set may have.
HELD_BACK = "held back"

#: Of the data, at most this part is held back: one row in so many.
_ONE_IN = 10
#: Fewer rows than these show nothing.
_FEWEST_ROWS = 8


def hold_back(
    config: RunConfig, task: Task, rows: DemonstrationSet
) -> tuple[DemonstrationSet, tuple[Demonstration, ...]]:
    """Take the gate's rows out of the data, before anything else sees it.

    Rows whose prompt stands in the data twice are never taken: the other one would be trained on. Of a conversation all
    answers are taken, or none.

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
    prompts = Counter(row.prompt for row in rows.demonstrations)
    is_checked = [has_check(task, row) for row in rows.demonstrations]
    groups: dict[str, list[int]] = {}  # answers of one conversation: each is in the prompt of those behind it
    for index, row in enumerate(rows.demonstrations):
        groups.setdefault(row.conversation or row.example_id, []).append(index)
    candidates = [
        group
        for group in groups.values()
        if all(prompts[rows.demonstrations[index].prompt] == 1 and is_checked[index] for index in group)
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


def make_alarms(config: RunConfig) -> Alarms:
    """Return the alarms of a run that has not begun."""
    alarms, train = config.alarms, config.train
    watched = signals(alarms, train.warn_length_ratio, train.warn_truncated_rate)
    num_rollouts = train.batch_size * config.rollout.num_samples
    return Alarms(watched, alarms.patience_steps, alarms.reference_steps, num_rollouts)


def make_gate(config: RunConfig, data: Data, sets: Sequence[EvalSet]) -> Gate | None:
    """Return the gate of a run that has not begun; None without questions."""
    if not sets:
        return None
    pairs = data.prepared.pairs
    length = sum(len(pair.response_ids) for pair in pairs) / len(pairs)
    learned = length * config.train.batch_size
    if config.train.targets == "policy":
        learned *= 2 * config.rollout.num_samples  # each is written first
    return Gate(config.gate, learned)


def make_guards(
    config: RunConfig,
    bundle: ModelBundle,
    data: Data,
    sets: Sequence[EvalSet],
    trainer: Trainer,
    run: RunDirectory,
    identity: Mapping[str, Any],
    progress: TrainProgress,
) -> Guards:
    """Return what watches a run, with the checkpointer that keeps it.

    Args:
        config: Of the run.
        bundle: Its model's prompts.
        data: What it is trained on.
        sets: What the gate asks, see :func:`gate_sets`.
        trainer: What is watched.
        run: Where alarms, checks and checkpoints go.
        identity: What must be the same for a checkpoint to mean anything.
        progress: Shows what is noticed.
    """
    backend, weights = trainer.backend, trainer.weights
    alarms, gate = make_alarms(config), make_gate(config, data, sets)
    checkpointer = Checkpointer(
        run, backend, trainer.schedule, trainer.source, weights, identity, computing_of(asdict(config)),
        config.train.keep_checkpoints,
        guards={"alarms": alarms} if gate is None else {"alarms": alarms, "gate": gate},
        pinned=tuple if gate is None else lambda: gate.pinned,
    )  # fmt: skip
    answer = partial(answer_greedily, config, bundle, weights, sets, backend)
    return Guards(
        alarms, gate, answer, checkpointer, run, progress, is_first=backend.rank == 0,
        on_going_back=partial(restore_probe, trainer),
    )  # fmt: skip


def answer_greedily(
    config: RunConfig, bundle: ModelBundle, weights: PolicyWeights, sets: Sequence[EvalSet], ranks: Ranks
) -> Answers:
    """Answer the gate's questions greedily: one answer each, whatever ``eval`` asks for."""
    greedy = replace(config, eval=replace(config.eval, temperature=0.0, num_samples=1))
    with weights.showing("live"):
        scores = score_sets(greedy, bundle, weights.model, sets, "gate", ranks)
    correct = {score.label: tuple(bool(record["correct"]) for record in score.records) for score in scores}
    return Answers(correct, round(sum(score.mean_length * score.n for score in scores)))
