"""What a program may do beside a run: look at it after every step, and end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onpolicy_sdft.config.scores import score_metric

if TYPE_CHECKING:
    from onpolicy_sdft.types import Target


class Callback:
    """Derive from it and write the methods that you need; the others do nothing.

    A callback looks on. What it is given is not to be changed; the one thing it may do to a run is to end it, by
    returning true. An error in a callback ends the run like any other: its last step is saved (with several ranks the
    last checkpoint stands), and a resumed run calls ``on_evaluate`` and ``on_step_end`` of that step again. With
    several ranks each one calls its own callbacks, and the run ends on all of them where it ends on one.
    """

    def on_rollouts(self, step: int, targets: Sequence[Target]) -> None:
        """Look at what a step has written and learned, before it is validated.

        Args:
            step: Optimizer step, from 1.
            targets: One a rollout, of all ranks: its text, its verdict and why, the row it belongs to.
        """

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Look at the metrics of a step; return true to end the run after it.

        Args:
            step: Optimizer step, from 1.
            metrics: As in ``metrics.jsonl`` (docs/metrics.md), those of a validation among them.
        """

    def on_evaluate(self, step: int, stage: str, scores: Mapping[str, float]) -> bool | None:
        """Look at scores; return true to end the run after this step.

        Args:
            step: Optimizer steps taken.
            stage: ``before``, ``validation`` or ``after``. The answer counts for ``validation`` only.
            scores: ``eval/LABEL/score`` of each set whose task has a check, and ``eval/kl`` where it was measured.
        """

    def on_save(self, step: int, path: Path) -> None:
        """Hear of a checkpoint that the loop wrote (``train.checkpoint_steps``, the end), or of the exported model.

        Args:
            step: Optimizer steps taken.
            path: Folder of the checkpoint, or ``model/`` of the run.
        """


def scores_of(stage: Mapping[str, object]) -> dict[str, float]:
    """Return the scores of a stage of ``eval/summary.json`` under their names as metrics."""
    sets, kl = stage.get("sets"), stage.get("kl")
    scored = [entry for entry in sets if entry["score"] is not None] if isinstance(sets, list) else []
    found = {score_metric(entry["label"]): float(entry["score"]) for entry in scored}
    return {**found, **({"eval/kl": float(kl["mean"])} if isinstance(kl, dict) else {})}
