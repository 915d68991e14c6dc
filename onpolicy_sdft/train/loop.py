"""The loop around the step: order, logs, warnings, validation, checkpoints, and a clean stop."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onpolicy_sdft.data.order import batch_indices
from onpolicy_sdft.errors import ConfigError, NoUpdateError
from onpolicy_sdft.runs.signals import Signals, caught_signals
from onpolicy_sdft.train.batch import StepBatch, make_batch

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig, TrainConfig
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.callbacks import Callback
    from onpolicy_sdft.train.checkpoint import Checkpointer
    from onpolicy_sdft.train.guards import Guards
    from onpolicy_sdft.train.panel import TrainProgress
    from onpolicy_sdft.train.step import Trainer
    from onpolicy_sdft.types import PromptPair, Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long the run is."""

    num_steps: int
    num_presentations: int | None  # stop the data stream here; None where the steps decide


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions the caller passes in: validate, save best, refresh, callbacks."""

    validate: Callable[[], Mapping[str, float]] | None = None  # metrics of the validation sets
    save_best: Callable[[], None] | None = None  # keep the current weights as the best
    refresh: Callable[[], object] | None = None  # sample the bare answers that rollouts are compared with anew
    callbacks: Sequence[Callback] = ()  # of the program that called


@dataclass(frozen=True, slots=True)
class FitResult:
    """How the loop ended."""

    reason: str  # finished | loss_token_budget | early_stop | stop_score | gate | callback | SIGTERM | SIGINT
    exit_code: int


def make_plan(config: TrainConfig, num_examples: int, num_ranks: int = 1) -> Plan:
    """Turn steps or epochs into a plan.

    Raises:
        ConfigError: If a batch is larger than the data set, or smaller than the number of ranks.
    """
    refuse_idle_ranks(config, num_ranks)
    if config.batch_size > num_examples:
        raise ConfigError(
            f"train.batch_size={config.batch_size} is more than the {num_examples} examples there are: one step "
            f"would learn some of them twice. Fix: --train.batch_size {num_examples} or less."
        )
    if config.max_steps is not None:
        return Plan(config.max_steps, None)
    num_presentations = num_examples * config.num_epochs
    return Plan(math.ceil(num_presentations / config.batch_size), num_presentations)


def refuse_idle_ranks(config: TrainConfig, num_ranks: int) -> None:
    """Refuse a batch that leaves some ranks without a demonstration.

    Raises:
        ConfigError: With the smallest that does not.
    """
    if config.batch_size < num_ranks:
        raise ConfigError(
            f"train.batch_size={config.batch_size} demonstrations a step, over all {num_ranks} ranks, leave some ranks "
            f"without any. Fix: --train.batch_size {num_ranks} or more, or fewer ranks."
        )


@dataclass
class Loop:
    """Runs a trainer over a plan."""

    trainer: Trainer
    pairs: Sequence[PromptPair]
    plan: Plan
    config: RunConfig
    run: RunDirectory
    checkpointer: Checkpointer
    progress: TrainProgress
    hooks: Hooks
    guards: Guards
    wall_clock: Callable[[], float] = time.time
    _skipped: str = ""  # why the last step made no update
    _asked_to_stop: bool = False  # by a callback

    def fit(self) -> FitResult:
        """Train until the plan, a budget, an early stop or a signal ends it.

        Leaves a checkpoint of the last step, with what is left to do of it; of several ranks an error leaves the last
        one that was due.

        Raises:
            TrainingError: After ``train.max_bad_steps`` steps in a row without an update.
        """
        state = self.trainer.state
        with self.progress, caught_signals(once=True) as stop:
            self.guards.begin(state)
            reason = "" if state.unfinished else self._agree_to_end(stop)
            while not reason:
                try:
                    self._step()
                    self._check_bad_steps()
                    reason = self._agree_to_end(stop)
                except Exception:
                    # Whatever it is (a check, a full disk): no update before it is lost. Of several ranks one may be
                    # alone with it, and saving takes all of them. Half an update is no state to go on from.
                    if self.trainer.backend.num_ranks == 1 and not state.is_half:
                        self.checkpointer.save(state)
                    raise
                every = self.config.train.checkpoint_steps
                if reason or (every and state.step % every == 0):
                    self._save()
            asked = self._share_requests(stop)  # one may have come while the last checkpoint was written
        return FitResult(asked.name, 128 + asked) if asked else FitResult(reason, 0)

    def _save(self) -> None:
        path = self.checkpointer.save(self.trainer.state)
        for callback in self.hooks.callbacks:
            callback.on_save(self.trainer.state.step, path)

    def _step(self) -> None:
        """Learn, validate and log a step; of one that broke when it had learned, do the rest."""
        state = self.trainer.state
        if state.unfinished is None:
            self._learn()
        assert state.unfinished is not None
        record, rollouts = state.unfinished["metrics"], state.unfinished["rollouts"]
        logged = {name: math.nan if value is None else value for name, value in record["values"].items()}  # from a file
        validation = self._validate() if self._validation_is_due() else {}
        values = {**logged, **validation}
        if self.trainer.backend.rank == 0:
            self.run.append_metrics({**record, "time": self.wall_clock(), "values": values})
            self.run.append_rollouts(rollouts)
        for callback in self.hooks.callbacks:
            self._asked_to_stop |= bool(callback.on_step_end(state.step, values))
        # All that can fail can be done again up to here. What counts is done once, and cannot fail.
        state.finish(self._score(validation))
        self._skipped = record["skipped"]
        self._notice(values)

    def _learn(self) -> None:
        """Take the update, and note in the state what is to be logged of it once the step is whole."""
        state = self.trainer.state
        self._seed_dropout()
        metrics = self.trainer.train_step(self._batch(state.step))
        samples = metrics.targets[: self.config.train.rollout_samples]
        state.unfinished = {
            "metrics": {"step": metrics.step, "skipped": metrics.skipped, "values": dict(metrics.values)},
            "rollouts": [self._rollout_record(metrics.step, target) for target in samples],
        }
        state.is_half = False
        for callback in self.hooks.callbacks:
            callback.on_rollouts(metrics.step, metrics.targets)

    def _seed_dropout(self) -> None:
        """Let a step's dropout depend on the step and the rank alone, so that one broken off can be done again."""
        seeds = (self.config.train.seed, self.trainer.state.step, self.trainer.backend.rank)
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))

    def _batch(self, step: int) -> StepBatch:
        indices = batch_indices(
            step,
            batch_size=self.config.train.batch_size,
            num_examples=len(self.pairs),
            seed=self.config.train.seed,
            num_presentations=self.plan.num_presentations,
        )
        pairs = [self.pairs[index] for index in indices]
        return make_batch(pairs, self.trainer.num_samples, self.trainer.backend)

    def _agree_to_end(self, stop: Signals) -> str:
        """Return why training ends here on all ranks, empty to go on; without a signal the gate has the last word."""
        if asked := self._share_requests(stop):
            return asked.name
        return self.guards.judge(self.trainer.state, self._reason_to_end())

    def _share_requests(self, stop: Signals) -> signal.Signals | None:
        """Let all ranks know of a signal or a callback that asks one of them to stop; return the signal.

        One that comes while ranks talk is not among what they were told: it waits for the next time.
        """
        signals, asked = zip(*self.trainer.backend.gather((stop.first, self._asked_to_stop)), strict=True)
        self._asked_to_stop = any(asked)
        return max(filter(None, signals), default=None)

    def _reason_to_end(self) -> str:
        state, config = self.trainer.state, self.config
        if state.step >= self.plan.num_steps:
            return "finished"
        if self._asked_to_stop:
            return "callback"
        budget = config.train.max_loss_tokens
        if budget is not None and state.total_loss_tokens >= budget:
            return "loss_token_budget"
        enough, best = config.eval.stop_score, state.best_score
        if enough is not None and best is not None and best >= enough:
            return "stop_score"
        patience = config.eval.early_stop
        if patience is not None and state.validations_without_gain >= patience:
            return "early_stop"
        return ""

    def _validation_is_due(self) -> bool:
        every = self.config.eval.every_steps
        return self.hooks.validate is not None and every is not None and self.trainer.state.step % every == 0

    def _validate(self) -> dict[str, float]:
        assert self.hooks.validate is not None
        with self.progress.paused():
            metrics = dict(self.hooks.validate())
        for callback in self.hooks.callbacks:
            self._asked_to_stop |= bool(callback.on_evaluate(self.trainer.state.step, "validation", metrics))
        if self.hooks.refresh is not None:
            self.hooks.refresh()
        if self.trainer.state.is_better(self._score(metrics)) and self.hooks.save_best is not None:
            self.hooks.save_best()
        return metrics

    def _score(self, validation: Mapping[str, float]) -> float | None:
        """Return what the best weights are chosen by; None without it."""
        name = self.config.eval.best_metric
        return validation[name] if validation and name is not None else None

    def _notice(self, values: Mapping[str, float]) -> None:
        step = self.trainer.state.step
        if self._skipped:
            logger.warning(f"step {step} was skipped ({self._skipped})")
        self.guards.watch(step, values)
        self.progress.show_step(step, values)

    def _rollout_record(self, step: int, target: Target) -> dict[str, Any]:
        demonstration, rollout = target.pair.demonstration, target.rollout
        logprobs, feedback = rollout.logprobs if rollout else (), target.pair.feedback
        return {
            "step": step,
            "example_id": demonstration.example_id,
            "attempt": target.attempt,
            "prompt": demonstration.prompt,
            "demonstration": demonstration.shown,
            "rollout": self.trainer.screen.decode(rollout.token_ids) if rollout else None,
            "target": target.text,
            "verdict": target.verdict,
            "correct": target.correct,
            "surprise": target.measures.surprise if target.measures else None,
            "leak": target.measures.leak if target.measures else None,
            "measures": asdict(target.measures) if target.measures else None,
            "reason": target.reason,
            "num_tokens": len(rollout.token_ids) if rollout else len(target.token_ids),
            "logprob_mean": sum(logprobs) / len(logprobs) if logprobs else None,
            **({"first_attempt": feedback.attempt, "message": feedback.message} if feedback else {}),
        }

    def _check_bad_steps(self) -> None:
        state, limit = self.trainer.state, self.config.train.max_bad_steps
        if state.bad_steps_in_a_row < limit or not self._skipped:
            return
        self._save()  # every rank comes here
        ways_out = {
            "all_dropped": "look at rollouts.jsonl and loosen screening.* (fallback instead of drop)",
            "not_finite": "lower optim.lr, or use train.precision fp32",
        }
        raise NoUpdateError(
            f"{state.bad_steps_in_a_row} steps in a row made no update (train.max_bad_steps={limit}; the last one: "
            f"{self._skipped}). The state is saved. Fix: {ways_out[self._skipped]}."
        )
