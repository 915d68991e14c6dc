"""Experiment trackers by name, written by the tracker classes of ``accelerate``.

The run directory's ``metrics.jsonl`` is written whatever is chosen here. To offer another tracker
of accelerate, add its name to ``NAMES`` and an extra of that name to the package.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    SwanLabTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from onpolicy_sdft.errors import ConfigError, did_you_mean
from onpolicy_sdft.runs.files import flatten, read_json, write_json_atomic
from onpolicy_sdft.train.callbacks import Callback

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import TrackingConfig
    from onpolicy_sdft.types import Target

logger = logging.getLogger(__name__)

_IDS = "trackers.json"  # in the run directory: the run's id with each tracker
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


class _MLflow(MLflowTracker):  # type: ignore[misc]  # accelerate has no types
    """MLflow gives its runs their ids: the first one is kept."""

    def __init__(self, run_directory: Path, config: TrackingConfig) -> None:
        self.run_directory = run_directory
        tags = dict.fromkeys(config.tags, "") | ({} if config.group is None else {"group": config.group})
        known, name = _known_ids(run_directory).get("mlflow"), config.name or run_directory.name
        super().__init__(config.project, run_id=known, run_name=None if known else name, tags=tags)

    def start(self) -> None:
        super().start()
        _keep_id(self.run_directory, "mlflow", self.active_run.info.run_id)


def _swanlab(run_directory: Path, config: TrackingConfig) -> GeneralTracker:
    goes_on = {"id": _kept_id(run_directory, "swanlab"), "resume": "allow"} if _is_online("SWANLAB_MODE") else {}
    return SwanLabTracker(
        config.project, name=config.name or run_directory.name, group=config.group, tags=config.tags or None,
        log_dir=str(run_directory / "swanlab"), **goes_on,
    )  # fmt: skip


NAMES: Mapping[str, Callable[[Path, TrackingConfig], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _MLflow,
    "swanlab": _swanlab,
}


def _kept_id(run_directory: Path, name: str) -> str:
    """Return the id that a run has with a tracker: a resumed run goes on in the same place there."""
    known = _known_ids(run_directory)
    if name not in known:
        _keep_id(run_directory, name, secrets.token_hex(4))
    return str(_known_ids(run_directory)[name])


def _known_ids(run_directory: Path) -> dict[str, str]:
    path = run_directory / _IDS
    return read_json(path) if path.is_file() else {}


def _keep_id(run_directory: Path, name: str, run_id: str) -> None:
    write_json_atomic(run_directory / _IDS, {**_known_ids(run_directory), name: run_id})


def _is_online(variable: str) -> bool:
    """Whether a tracker sends over the network, by the variable of the environment that it reads."""
    return os.environ.get(variable, "online") in ("online", "cloud")


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
            raise ConfigError(
                f"train.trackers: {name!r} is not a tracker.{did_you_mean(name, NAMES, cutoff=0.0)} "
                f"Choose from {', '.join(NAMES)}."
            )
        if name not in available:
            raise ConfigError(
                f"train.trackers: {name!r} is not installed. Install the extra "
                f"(pip install 'onpolicy_sdft[{name}]') or take {name!r} out of train.trackers; "
                "metrics.jsonl is written in any case."
            )
    # Without a key these would ask for one, or fail, after the first evaluation.
    for name, key in (("wandb", _wandb_key), ("swanlab", _swanlab_key)):
        variable = name.upper()
        if name in names and _is_online(f"{variable}_MODE") and not key():
            raise ConfigError(
                f"train.trackers: {name} has no key. Fix: {name} login, or {variable}_API_KEY=..., or "
                f"{variable}_MODE=offline."
            )


def _wandb_key() -> str | None:
    import wandb

    key: str | None = wandb.api.api_key
    return key


def _swanlab_key() -> str | None:
    import swanlab

    key: str | None = swanlab.Settings().api_key
    return key


class Tracking(Callback):
    """Sends what a run comes to, to its trackers.

    They work in a thread of their own: one whose server does not answer holds nobody up.

    Args:
        trackers: Not started yet.
        config: How often rollouts are shown.
        options: Nested options of the run, which the trackers show.
        patience: Seconds that each tracker has to start, and all have, when the run ends, for what they still hold.

    Raises:
        ConfigError: If a tracker does not start in that time.
    """

    def __init__(
        self,
        trackers: Sequence[GeneralTracker],
        config: TrackingConfig,
        options: Mapping[str, Any] | None = None,
        patience: float = 60.0,
    ) -> None:
        self.trackers, self.config, self.patience = trackers, config, patience
        self._waiting: Queue[_Sent | None] = Queue()
        Thread(target=_work, args=[self._waiting], daemon=True, name="trackers").start()
        for tracker in trackers:
            self._begin(tracker.start, tracker)
            if options:
                self._begin(partial(tracker.store_init_configuration, hyperparameters(options)), tracker)

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
            self._try(partial(_show_rollouts, tracker, rows, step), step)

    def finish(self) -> None:
        """Write what is still held back, and close."""
        ended = [self._try(tracker.finish, None) for tracker in self.trackers]
        self._waiting.put(None)
        if wait(ended, self.patience).not_done:
            logger.warning(
                f"at the end: trackers did not take everything within {self.patience:g} s; metrics.jsonl has it all"
            )

    def _begin(self, act: Callable[[], object], tracker: GeneralTracker) -> None:
        """Wait for what a tracker does first: what is wrong with it ends the run before anything is lost."""
        sent = self._send(act)
        if wait([sent], self.patience).not_done:
            raise ConfigError(
                f"train.trackers: {tracker.name} did not start within {self.patience:g} s. Fix: see whether its server "
                f"answers, or take {tracker.name!r} out of train.trackers; metrics.jsonl is written in any case."
            )
        sent.result()

    def _send(self, act: Callable[[], object]) -> _Sent:
        sent = _Sent(act)
        self._waiting.put(sent)
        return sent

    def _try(self, act: Callable[[], object], step: int | None) -> _Sent:
        def tried() -> None:
            try:
                act()
            except Exception as error:  # a tracker's network is no reason to lose a run; metrics.jsonl has it all
                logger.warning(f"{'at the end' if step is None else f'step {step}'}: a tracker failed: {error}")

        return self._send(tried)


class _Sent(Future[None]):
    """Something to be done by the thread of the trackers."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act


def _work(waiting: Queue[_Sent | None]) -> None:
    """Do what comes in its order. All in one thread: MLflow knows its run by the thread that began it."""
    while (sent := waiting.get()) is not None:
        try:
            sent.act()
        except BaseException as error:
            sent.set_exception(error)
        else:
            sent.set_result(None)


def _show_rollouts(tracker: GeneralTracker, rows: Sequence[Sequence[str]], step: int) -> None:
    """Show rollouts as a table, or as text where a tracker has none."""
    text = "\n\n".join("\n".join(f"    {line}" for line in _lines(row)) for row in rows)
    if hasattr(tracker, "log_table"):
        tracker.log_table("rollouts", columns=_COLUMNS, data=rows, step=step)
    elif isinstance(tracker, TensorBoardTracker):
        tracker.tracker.add_text("rollouts", text, step)
    elif isinstance(tracker, MLflowTracker):
        import mlflow

        mlflow.log_text(text, f"rollouts/step-{step:06d}.txt")
    elif isinstance(tracker, SwanLabTracker):
        import swanlab

        tracker.log({"rollouts": swanlab.Text(text)}, step=step)


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


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return nested options by dotted name, as trackers take them: lists and None as text."""
    flat = flatten(config).items()
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in flat}
