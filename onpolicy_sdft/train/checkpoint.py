"""Checkpoints: whole or absent, the newest few kept, and enough in them to repeat the run bit for bit."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.runs.files import (
    differences,
    file_digest,
    list_differences,
    read_json,
    sync_to_disk,
    write_json_atomic,
)

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.source import TargetSource
    from onpolicy_sdft.train.state import TrainState

logger = logging.getLogger(__name__)

_WEIGHTS, _OPTIMIZER, _STATE = "trainable.safetensors", "optimizer.pt", "state.json"
_RANKS, _TEACHER = "ranks.pt", "teacher.pt"
_VERSION = 10


class Stateful(Protocol):
    """Something that changes during training beside the model, and fits in a JSON object."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpointer:
    """Saves and restores everything that changes during training.

    Only trainable weights are kept: a frozen base never changes. The position in the data is the step itself, and noise
    and dropout are keyed by the step, so none needs state of its own. Weights, optimizer state and the teacher's copies
    are written whole and by name: any backend, with any number of ranks, can go on from them.
    """

    run: RunDirectory
    backend: Backend
    schedule: LRScheduler
    source: TargetSource  # its draft store and what its shapes were chosen by
    weights: PolicyWeights  # their average, and those of earlier moments
    identity: Mapping[str, Any]  # what must be the same for a resumed run to mean anything
    computing: Mapping[str, Any]  # what may be another where results need not be the same to the bit
    keep: int
    guards: Mapping[str, Stateful] = field(default_factory=dict)  # what watches the run, by name
    pinned: Callable[[], Collection[int]] = tuple  # steps whose checkpoint stays

    def save(self, state: TrainState, *, replace: bool = False) -> Path:
        """Write the checkpoint of a step; older ones beyond ``keep`` go afterwards. Every rank must call it.

        Args:
            state: Where the run is.
            replace: Write it also where there is one of this step.
        """
        target = self.run.checkpoint_path(state.step)
        if not replace and self.backend.on_first(lambda: _is_kept(target)):
            return target  # saved after this very step already
        source = self.source.state()
        by_rank = self.backend.gather(source["own"])
        optimizer = {"optimizer": self.backend.optimizer_state(), "schedule": self.schedule.state_dict()}
        record = {"version": _VERSION, "state": asdict(state)}
        record |= {"identity": dict(self.identity), "computing": dict(self.computing)}
        record["guards"] = {name: guard.state() for name, guard in self.guards.items()}
        parts = {
            _WEIGHTS: self.backend.weights(),
            _OPTIMIZER: optimizer,
            _RANKS: {"common": source["common"], "by_rank": by_rank},
            _TEACHER: self.weights.state(keeps=self.backend.rank == 0),
            _STATE: record,
        }
        self.backend.on_first(lambda: self._write(state.step, target, parts))
        return target

    def _write(self, step: int, target: Path, parts: Mapping[str, Any]) -> None:
        scratch, old = (target.with_name(f".{kind}-{target.name}") for kind in ("tmp", "old"))
        for left in (scratch, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            _write_files(scratch, parts)
        except (OSError, RuntimeError, SafetensorError) as error:  # two of them have their own for a full disk
            shutil.rmtree(scratch, ignore_errors=True)
            steps = self.run.checkpoint_steps()
            stands = f"that of step {steps[-1]} stands" if steps else "there is no earlier one"
            raise RunDirectoryError(
                f"The checkpoint of step {step} cannot be written to {target.parent}: {error}. Nothing of it was kept; "
                f"{stands}. Fix: make room there, then the same command with --train.resume auto."
            ) from error
        if target.exists():
            target.rename(old)  # not deleted before the new one is there
        os.replace(scratch, target)
        sync_to_disk(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        steps = self.run.checkpoint_steps()
        torn = {earlier for earlier in steps if _what_is_torn(self.run.checkpoint_path(earlier))}
        whole = [earlier for earlier in steps if earlier not in torn]  # only these count as kept
        for earlier in (torn | set(whole[: -self.keep])) - set(self.pinned()):
            shutil.rmtree(self.run.checkpoint_path(earlier))

    def resume(self, state: TrainState) -> Path | None:
        """Load the newest whole checkpoint into the model, optimizer, schedule and ``state``.

        With another number of ranks than it was written by, every rank restores what was the first rank's own: that
        decides shapes, not which examples and noise come next.

        Returns:
            Its path, or None when the run has none.

        Raises:
            RunDirectoryError: If it was made by a run with other data or settings, is of another version, or none is
                whole.
        """
        found = self.backend.on_first(lambda: checkpoint_to_resume(self.run, self.identity, every_byte=True))
        if found is None:
            return None
        source, record = found
        self.backend.load_weights(load_file(source / _WEIGHTS))
        extra = _load(source / _OPTIMIZER)
        self.backend.load_optimizer_state(extra["optimizer"])
        self.schedule.load_state_dict(extra["schedule"])
        saved = _load(source / _RANKS)
        by_rank = saved["by_rank"]
        own = by_rank[self.backend.rank if len(by_rank) == self.backend.num_ranks else 0]
        self.weights.restore(_load(source / _TEACHER))
        for name, value in record["state"].items():
            setattr(state, name, value)
        if differing := differences(record["computing"], self.computing):
            logger.warning(
                "results go on equal up to rounding or noise, not to the bit: the checkpoint was computed otherwise "
                f"({list_differences(differing)})"
            )
            own, state.num_halvings = None, 0  # chosen for what was asked then
        self.source.restore({"own": own, "common": saved["common"]})
        for name, guard in self.guards.items():
            guard.restore(record["guards"][name])
        return source

    def go_back(self, step: int, state: TrainState) -> None:
        """Take weights, optimizer moments, the teacher's copies and what was learned of an earlier checkpoint.

        Data, noise, counts and rates go on from where they are. Every rank must call it.

        Raises:
            RunDirectoryError: If that checkpoint is not whole any more.
        """
        source = self.run.checkpoint_path(step)
        if why := self.backend.on_first(lambda: _what_is_torn(source) or _what_is_changed(source)):
            raise RunDirectoryError(
                f"The best state of the gate, {source}, cannot be loaded: {why}. Fix: another train.output_dir."
            )
        # All is read before anything is changed: a file that cannot be read must not leave weights of two steps.
        earlier, teacher = read_json(source / _STATE)["state"], _load(source / _TEACHER)
        load_weights_and_moments(source, self.backend, self.schedule, with_optimizer=True)
        state.learned, state.bare = earlier["learned"], earlier["bare"]
        self.weights.restore(teacher)


def checkpoint_to_resume(
    run: RunDirectory, identity: Mapping[str, Any], *, every_byte: bool = False
) -> tuple[Path, dict[str, Any]] | None:
    """Refuse to go on from the newest whole checkpoint if another run made it; call it before anything is written.

    Returns:
        The checkpoint and its record; None when there is none.

    Raises:
        RunDirectoryError: If its identity differs, naming what does, it is of another version, or none is whole.
    """
    found = newest_checkpoint(run, every_byte=every_byte)
    if found is None:
        return None
    source, record = found
    if differing := differences(record["identity"], identity):
        raise RunDirectoryError(
            f"{source} belongs to another run: {list_differences(differing)}. Fix: the same settings, or another "
            "train.output_dir."
        )
    return source, record


def newest_checkpoint(run: RunDirectory, *, every_byte: bool = False) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint of a run and its record; None when it has none.

    Args:
        run: The run.
        every_byte: Compare the bytes of its files with what was written, too, not only their sizes: reads them all.

    Raises:
        RunDirectoryError: If none of those it has is whole, or it is of another version.
    """
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        source = run.checkpoint_path(step)
        if why := _what_is_torn(source) or (_what_is_changed(source) if every_byte else ""):
            logger.warning(f"checkpoint {source} is skipped: {why}")
        else:
            record: dict[str, Any] = read_json(source / _STATE)
            break
    else:
        if steps:
            raise RunDirectoryError(
                f"None of the {len(steps)} checkpoints of {run.path} is whole. Fix: another train.output_dir."
            )
        return None
    if record["version"] != _VERSION:
        raise RunDirectoryError(
            f"{source} has checkpoint version {record['version']}, this program writes {_VERSION}. "
            "Resume with the version that made it, or start a new train.output_dir."
        )
    return source, record


def weights_file(checkpoint: Path) -> Path:
    """Return where the trained weights of a checkpoint are."""
    return checkpoint / _WEIGHTS


def start_digest(checkpoint: Path, *, with_optimizer: bool, reads: bool = False) -> str:
    """Return what tells the weights of a checkpoint, and its moments if they are taken too, from others.

    Args:
        checkpoint: Which.
        with_optimizer: Whether its moments are taken.
        reads: Read the files, where nobody has compared them with the record of their digests in this process.
    """
    names = [_WEIGHTS, *([_OPTIMIZER] if with_optimizer else [])]
    if reads:
        files = [checkpoint / name for name in names]
        return " ".join(file_digest(file) if file.is_file() else f"no file {file.absolute()}" for file in files)
    recorded = read_json(checkpoint / _STATE)["files"]
    return " ".join(recorded[name]["sha256"] for name in names)


def load_weights_and_moments(
    checkpoint: Path, backend: Backend, schedule: LRScheduler, *, with_optimizer: bool
) -> None:
    """Load a checkpoint's weights, and its optimizer moments if asked; learning rates stay. Every rank must call it."""
    weights = load_file(weights_file(checkpoint))
    saved = _load(checkpoint / _OPTIMIZER)["optimizer"] if with_optimizer else None
    backend.load_weights(weights)
    if saved is not None:
        own = [{k: v for k, v in group.items() if k != "params"} for group in schedule.optimizer.param_groups]
        backend.load_optimizer_state({"state": saved["state"], "groups": own})


def _is_kept(target: Path) -> bool:
    """Whether there is a whole checkpoint of a whole step."""
    return target.exists() and not _what_is_torn(target) and not read_json(target / _STATE)["state"].get("unfinished")


def _what_is_torn(source: Path) -> str:
    """Return why a checkpoint cannot be loaded: files of another program, cut off or missing; empty if it can."""
    try:
        record = read_json(source / _STATE)
    except RunDirectoryError as error:
        return str(error)
    if not isinstance(record, dict) or "version" not in record or "identity" not in record:
        return f"{_STATE} was not written by this program"
    for name, file in record.get("files", {}).items():
        path = source / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != file["size"]:
            return f"{name} has {path.stat().st_size} bytes of {file['size']}"
    return ""


def _what_is_changed(source: Path) -> str:
    """Return which file of a checkpoint that is not torn has other bytes than were written; empty if none has."""
    for name, file in read_json(source / _STATE).get("files", {}).items():
        if file_digest(source / name) != file["sha256"]:
            return f"{name} has other bytes than were written (a disk or a copy that went wrong)"
    return ""


def _write_files(scratch: Path, parts: Mapping[str, Any]) -> None:
    scratch.mkdir(parents=True)
    save_file(parts[_WEIGHTS], scratch / _WEIGHTS)
    for name in (_OPTIMIZER, _RANKS, _TEACHER):
        torch.save(parts[name], scratch / name)
    files = {file.name: {"size": file.stat().st_size, "sha256": file_digest(file)} for file in scratch.iterdir()}
    write_json_atomic(scratch / _STATE, {**parts[_STATE], "files": files})
    for file in scratch.iterdir():
        sync_to_disk(file)


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
