"""Experiment trackers by name, written by the tracker classes of ``accelerate``.

The run directory's ``metrics.jsonl`` is written whatever is chosen here. To offer another tracker
of accelerate, add its name to ``NAMES`` and an extra of that name to the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import (
    GeneralTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from onpolicy_sdft.errors import ConfigError


class Tracker(Protocol):
    """Somewhere metrics go, step by step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the metrics of one step.

        Args:
            values: Metric by key (``area/quantity``).
            step: Optimizer step.
        """

    def finish(self) -> None:
        """Write what is still held back, and close."""


class AccelerateTracker:
    """One tracker class of accelerate behind the :class:`Tracker` protocol."""

    def __init__(self, tracker: GeneralTracker, config: Mapping[str, Any]) -> None:
        """Open the tracker and hand it the config.

        Args:
            tracker: The tracker, not started yet.
            config: Nested options of the run.
        """
        self._tracker = tracker
        tracker.start()
        if config:
            tracker.store_init_configuration(flatten(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the metrics of one step, as the protocol says."""
        self._tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Write what is still held back, and close."""
        self._tracker.finish()


def _tensorboard(run_directory: Path) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", logging_dir=run_directory)


def _wandb(run_directory: Path) -> GeneralTracker:
    return WandBTracker("onpolicy_sdft", name=run_directory.name, dir=str(run_directory))


def _trackio(run_directory: Path) -> GeneralTracker:
    return TrackioTracker("onpolicy_sdft", name=run_directory.name)


NAMES: Mapping[str, Callable[[Path], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot work, before any work starts.

    Args:
        names: Value of the option ``train.trackers``.

    Raises:
        ConfigError: A name is unknown, or its package is not installed.
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


def open_trackers(
    names: Sequence[str],
    run_directory: Path,
    config: Mapping[str, Any] | None = None,
    *,
    is_main_process: bool = True,
) -> list[Tracker]:
    """Open the trackers a run asked for.

    Args:
        names: Value of the option ``train.trackers``; a name given twice is opened once.
        run_directory: Path of the run; its last part names the run, and TensorBoard writes to
            ``tensorboard/`` inside it.
        config: Nested options of the run, shown by the tracker.
        is_main_process: False opens none, so that ranks do not write the same figures again.

    Returns:
        Open trackers; call ``finish`` on each at the end.

    Raises:
        ConfigError: As :func:`check_trackers`.
    """
    check_trackers(names)
    if not is_main_process:
        return []
    return [AccelerateTracker(NAMES[n](run_directory), config or {}) for n in dict.fromkeys(names)]


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
