"""What watches a run: alarms after every step, the gate now and then, and what follows from both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.runs.files import write_jsonl_atomic
from onpolicy_sdft.train.gate import list_drops, worse_of
from onpolicy_sdft.train.optim import scale_rates

if TYPE_CHECKING:
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.alarms import Alarms
    from onpolicy_sdft.train.checkpoint import Checkpointer
    from onpolicy_sdft.train.gate import Answers, Drop, Gate, GateCheck
    from onpolicy_sdft.train.panel import TrainProgress
    from onpolicy_sdft.train.state import TrainState

logger = logging.getLogger(__name__)

#: Why training ended where the gate stopped it.
GATE = "gate"


@dataclass
class Guards:
    """Watches a run; every rank has its own, fed with the same figures, so all decide the same."""

    alarms: Alarms
    gate: Gate | None
    answer: Callable[[], Answers]  # the gate's questions, by the policy as it is
    checkpointer: Checkpointer
    run: RunDirectory
    progress: TrainProgress
    is_first: bool = True  # the rank that writes
    on_going_back: Callable[[], None] = lambda: None  # puts back what the state of the run holds now

    def begin(self, state: TrainState) -> None:
        """Let the gate see the start, unless it has."""
        if self.gate is not None and not self.gate.history:
            with self.progress.paused():
                self.gate.begin(self.answer())
            logger.info(f"gate: {_scores(self.gate.history[0])} right at the start; {_plan(self.gate)}")
            self.checkpointer.save(state, replace=True)
        for check in self.gate.history if self.gate is not None else ():  # those of a resumed run as well
            self._show(check)
        self.write()

    def watch(self, step: int, values: Mapping[str, float]) -> None:
        """Say what the metrics of a step show."""
        if found := self.alarms.watch(step, values):
            for alarm in found:
                logger.warning(alarm.text)
            self.write()

    def judge(self, state: TrainState, reason: str) -> str:
        """Let the gate look where it is due; return why training ends now, or nothing.

        Args:
            state: Where the run is.
            reason: Why it would end without the gate; empty while it goes on.
        """
        if self.gate is None:
            return reason
        if self.gate.stopped:  # before the run was resumed
            return GATE
        alarmed = any(alarm.step == state.step for alarm in self.alarms.history)
        why = self.gate.due(state.step, alarmed=alarmed, ended=bool(reason))
        if not why:
            return reason
        with self.progress.paused():
            answers = self.answer()
        state.is_half = True  # a checkpoint of the verdict without what follows from it would keep what was refused
        check, drops = self.gate.judge(state.step, why, answers)
        self._show(check)
        logger.info(f"gate at step {state.step} ({why}): {self._outcome(check, drops)}")
        if check.action in ("stop", "rollback"):
            self.checkpointer.go_back(self.gate.best_step, state)
            self.on_going_back()
            self.alarms.rearm()
        if check.action == "rollback":
            scale_rates(self.checkpointer.schedule, self.gate.config.rollback_lr_factor)
        state.is_half = False
        self.checkpointer.save(state, replace=True)  # what was answered is never asked again
        self.write()
        return GATE if self.gate.stopped else reason

    def write(self) -> None:
        """Write alarms and checks as they are known now; a resumed run has no line twice."""
        if not self.is_first:
            return
        if self.alarms.history or self.run.alarms_path.is_file():
            write_jsonl_atomic(self.run.alarms_path, map(asdict, self.alarms.history))
        if self.gate is not None:
            lines = ({**asdict(check), "scores": check.scores} for check in self.gate.history)
            write_jsonl_atomic(self.run.gate_path, lines)

    def _show(self, check: GateCheck) -> None:
        self.progress.show_scores(check.step, {f"{label} (gate)": score for label, score in check.scores.items()})

    def _outcome(self, check: GateCheck, drops: Mapping[str, Drop]) -> str:
        assert self.gate is not None
        found = list_drops(drops)
        if check.passed:
            return f"{found}: passed"
        options, worse = self.gate.config, worse_of(drops, self.gate.config)
        best = "the start" if self.gate.best_step == 0 else f"step {self.gate.best_step}"
        follows = {
            "continue": "training goes on (gate.action=continue)",
            "stop": f"training stops, and the weights are those of {best}",
            "rollback": f"weights, optimizer and teacher are those of {best} again, and optim.lr is multiplied by "
            f"{options.rollback_lr_factor:g} (rollback {self.gate.num_rollbacks} of {options.max_rollbacks})",
        }[check.action]
        return (
            f"{found}: worse than the start on {', '.join(worse)}, by more than gate.max_drop={options.max_drop:g}; "
            f"{follows}. "
            "Fix: a lower optim.lr, fewer steps, or another context.template."
        )


def _scores(check: GateCheck) -> str:
    return ", ".join(f"{label} {sum(rows)}/{len(rows)}" for label, rows in check.correct.items())


def _plan(gate: Gate) -> str:
    why = "gate.every_steps" if gate.config.every_steps else f"gate.max_cost={gate.config.max_cost:.0%} of the tokens"
    return f"asked again every {gate.every} steps ({why}), on an alarm and at the end"
