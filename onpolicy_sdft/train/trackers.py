"""Experiment trackers by name, written by the tracker classes of ``accelerate``.

The run directory's ``metrics.jsonl`` is written whatever is chosen here. To offer another tracker
of accelerate, add its name to ``NAMES`` and an extra of that name to the package.
"""

from __future__ import annotations

import difflib
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import (
    GeneralTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.runs.files import read_json, write_json_atomic
from onpolicy_sdft.train.callbacks import Callback

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import TrackingConfig
    from onpolicy_sdft.types import Target

logger = logging.getLogger(__name__)

_COLUMNS = ["example_id", "prompt", "demonstration", "target", "verdict", "reason"]


def _tensorboard(run_directory: Path, config: TrackingConfig) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", logging_dir=run_directory)


def _wandb(run_directory: Path, config: TrackingConfig) -> GeneralTracker:
    return WandBTracker(
        config.project, name=config.name or run_directory.name, group=config.group, tags=config.tags or None,
        dir=str(run_directory), id=_kept_id(run_directory, "wandb"), resume="allow",
    )  # fmt: skip


def _trackio(run_directory: Path, config: TrackingConfig) -> GeneralTracker:
    group = {} if config.group is None else {"group": config.group}
    return TrackioTracker(config.project, name=config.name or run_directory.name, resume="allow", **group)


NAMES: Mapping[str, Callable[[Path, TrackingConfig], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _kept_id(run_directory: Path, name: str) -> str:
    """Return the id that a run has with a tracker: a resumed run goes on in the same place there."""
    path = run_directory / "trackers.json"
    known = read_json(path) if path.is_file() else {}
    if name not in known:
        known[name] = secrets.token_hex(4)
        write_json_atomic(path, known)
    return str(known[name])


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot work, before any work starts.

    Args:
        names: Value of the option ``train.trackers``.

    Raises:
        ConfigError: A name is unknown, its package is not installed, or a key that it needs is not there.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"train.trackers: {name!r} is not a tracker. The nearest is {nearest!r}; "
                f"choose from {', '.join(NAMES)}."
            )
        if name not in available:
            raise ConfigError(
                f"train.trackers: {name!r} is not installed. Install the extra "
                f"(pip install 'onpolicy_sdft[{name}]') or take {name!r} out of train.trackers; "
                "metrics.jsonl is written in any case."
            )
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.api.api_key:  # wandb would ask for it, or fail, after the first evaluation
            raise ConfigError(
                "train.trackers: wandb has no key. Fix: wandb login, or WANDB_API_KEY=..., or WANDB_MODE=offline."
            )


class Tracking(Callback):
    """Sends what a run comes to, to its trackers.

    Args:
        trackers: Not started yet.
        config: How often rollouts are shown.
        options: Nested options of the run, which the trackers show.
    """

    def __init__(
        self, trackers: Sequence[GeneralTracker], config: TrackingConfig, options: Mapping[str, Any] | None = None
    ) -> None:
        self.trackers, self.config = trackers, config
        for tracker in trackers:
            tracker.start()
            if options:
                tracker.store_init_configuration(flatten(options))

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        for tracker in self.trackers:
            self._try(partial(tracker.log, dict(metrics), step=step), step)

    def on_evaluate(self, step: int, stage: str, scores: Mapping[str, float]) -> None:
        """Write the scores before and after training; those of a validation are among the metrics of their step."""
        if stage != "validation":
            self.on_step_end(step, scores)

    def on_rollouts(self, step: int, targets: Sequence[Target]) -> None:
        """Show some rollouts as a table, now and then."""
        every = self.config.rollouts_every
        if every is None or step % every:
            return
        rows = [_row(target) for target in targets[: self.config.num_rollouts]]
        for tracker in self.trackers:
            if isinstance(tracker, TensorBoardTracker):
                text = "\n\n".join("\n".join(f"    {line}" for line in _lines(row)) for row in rows)
                self._try(partial(tracker.tracker.add_text, "rollouts", text, step), step)
            elif hasattr(tracker, "log_table"):
                self._try(partial(tracker.log_table, "rollouts", columns=_COLUMNS, data=rows, step=step), step)

    def finish(self) -> None:
        """Write what is still held back, and close."""
        for tracker in self.trackers:
            self._try(tracker.finish, None)

    @staticmethod
    def _try(send: Callable[[], object], step: int | None) -> None:
        try:
            send()
        except Exception as error:  # a tracker's network is no reason to lose a run; metrics.jsonl has it all
            logger.warning(f"{'at the end' if step is None else f'step {step}'}: a tracker failed: {error}")


def _row(target: Target) -> list[str]:
    demonstration = target.pair.demonstration
    return [
        demonstration.example_id, demonstration.prompt, demonstration.shown, target.text, target.verdict,
        target.reason,
    ]  # fmt: skip


def _lines(row: Sequence[str]) -> list[str]:
    return [line for name, text in zip(_COLUMNS, row, strict=True) for line in f"{name}: {text}".splitlines()]


def open_trackers(
    names: Sequence[str],
    run_directory: Path,
    config: TrackingConfig,
    options: Mapping[str, Any] | None = None,
) -> Tracking:
    """Open the trackers a run asked for, on the rank that writes.

    Args:
        names: Value of the option ``train.trackers``; a name given twice is opened once.
        run_directory: Path of the run; its last part names the run, and TensorBoard writes to
            ``tensorboard/`` inside it.
        config: Project, name and what is shown.
        options: Nested options of the run, shown by the tracker.

    Returns:
        What sends to them; call ``finish`` at the end.

    Raises:
        ConfigError: As :func:`check_trackers`.
    """
    check_trackers(names)
    return Tracking([NAMES[name](run_directory, config) for name in dict.fromkeys(names)], config, options)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Write nested options with dotted names, as trackers take them.

    Args:
        config: Nested options.
        prefix: Name of the section, with its dot.

    Returns:
        Option by dotted name; lists and None as text.
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            known = isinstance(value, (bool, int, float, str))
            flat[f"{prefix}{key}"] = value if known else str(value)
    return flat
