"""What watches a run: its alarms and its gate, built with the checkpointer that keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.config.computing import computing_of
from onpolicy_sdft.eval.evaluate import score_sets
from onpolicy_sdft.eval.first_probe import restore_probe
from onpolicy_sdft.train.alarms import Alarms, signals
from onpolicy_sdft.train.checkpoint import Checkpointer
from onpolicy_sdft.train.gate import Answers, Gate
from onpolicy_sdft.train.guards import Guards

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.data import Data
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.data.eval_sets import EvalSet
    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.panel import TrainProgress
    from onpolicy_sdft.train.step import Trainer
    from onpolicy_sdft.types import Ranks


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
        sets: What the gate asks, see :func:`~onpolicy_sdft.fitting.held_out.gate_sets`.
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
