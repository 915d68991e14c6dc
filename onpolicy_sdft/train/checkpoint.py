"""Checkpoints: whole or absent, the newest few kept, and enough in them to repeat the run bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.runs.files import differences, read_json, write_json_atomic

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from onpolicy_sdft.models.teacher import Teacher
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.source import TargetSource
    from onpolicy_sdft.train.step import TrainState

_WEIGHTS, _OPTIMIZER, _STATE = "trainable.safetensors", "optimizer.pt", "state.json"
_RANKS, _TEACHER = "ranks.pt", "teacher.pt"
_VERSION = 4


@dataclass(frozen=True, slots=True)
class Checkpointer:
    """Saves and restores everything that changes during training.

    Only trainable weights are kept: a frozen base never changes. The position in the data is the step itself,
    and noise keys hold the step, so neither needs state of its own. Weights, optimizer state and the teacher's copies
    are written whole and by name: any backend, with any number of ranks, can go on from them.
    """

    run: RunDirectory
    backend: Backend
    schedule: LRScheduler
    source: TargetSource  # its draft store and what its shapes were chosen by
    teacher: Teacher  # its average and the weights it started from
    identity: Mapping[str, Any]  # what must be the same for a resumed run to mean anything
    keep: int

    def save(self, state: TrainState) -> Path:
        """Write the checkpoint of a step; older ones beyond ``keep`` go afterwards. Every rank must call it."""
        source = self.source.state()
        by_rank = self.backend.gather({"source": source["own"], **_random_state()})
        optimizer = {"optimizer": self.backend.optimizer_state(), "schedule": self.schedule.state_dict()}
        record = {"version": _VERSION, "state": asdict(state), "identity": dict(self.identity)}
        parts = {
            _WEIGHTS: self.backend.weights(),
            _OPTIMIZER: optimizer,
            _RANKS: {"common": source["common"], "by_rank": by_rank},
            _TEACHER: self.teacher.state(),
            _STATE: record,
        }
        return self.backend.on_first(lambda: self._write(state.step, parts))

    def _write(self, step: int, parts: Mapping[str, Any]) -> Path:
        target = self.run.checkpoint_path(step)
        scratch = target.with_name(f".tmp-{target.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save_file(parts[_WEIGHTS], scratch / _WEIGHTS)
        for name in (_OPTIMIZER, _RANKS, _TEACHER):
            torch.save(parts[name], scratch / name)
        write_json_atomic(scratch / _STATE, parts[_STATE])
        for file in scratch.iterdir():
            _sync(file)
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
        _sync(target.parent)
        for old in self.run.checkpoint_steps()[: -self.keep]:
            shutil.rmtree(self.run.checkpoint_path(old))
        return target

    def resume(self, state: TrainState) -> Path | None:
        """Load the newest checkpoint into the model, optimizer, schedule, random state and ``state``.

        With another number of ranks than it was written by, every rank takes up what was the first rank's own: that
        decides shapes and dropout, not which examples and noise come next.

        Returns:
            Its path, or None when the run has none.

        Raises:
            RunDirectoryError: If it was made by a run with other data or settings, or is of another version.
        """
        steps = self.run.checkpoint_steps()
        if not steps:
            return None
        source = self.run.checkpoint_path(steps[-1])
        record = refuse_other_run(self.run, self.identity)
        self.backend.load_weights(load_file(source / _WEIGHTS))
        extra = torch.load(source / _OPTIMIZER, weights_only=True, map_location="cpu")
        self.backend.load_optimizer_state(extra["optimizer"])
        self.schedule.load_state_dict(extra["schedule"])
        saved = torch.load(source / _RANKS, weights_only=True, map_location="cpu")
        by_rank = saved["by_rank"]
        own = by_rank[self.backend.rank if len(by_rank) == self.backend.num_ranks else 0]
        self.source.restore({"own": own["source"], "common": saved["common"]})
        self.teacher.restore(torch.load(source / _TEACHER, weights_only=True, map_location="cpu"))
        torch.set_rng_state(own["rng_cpu"])
        if torch.cuda.is_available() and own["rng_cuda"] is not None:
            torch.cuda.set_rng_state(own["rng_cuda"])
        for name, value in record["state"].items():
            setattr(state, name, value)
        return source


def refuse_other_run(run: RunDirectory, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse to go on from the newest checkpoint if another run made it; call it before anything is written.

    Returns:
        The checkpoint's record; empty when there is none.

    Raises:
        RunDirectoryError: If its identity differs, naming what does, or it is of another version.
    """
    steps = run.checkpoint_steps()
    if not steps:
        return {}
    source = run.checkpoint_path(steps[-1])
    record: dict[str, Any] = read_json(source / _STATE)
    if record.get("version") != _VERSION:
        raise RunDirectoryError(
            f"{source} has checkpoint version {record.get('version')}, this program writes {_VERSION}. "
            "Resume with the version that made it, or start a new train.output_dir."
        )
    saved, now = record["identity"], identity
    if differing := differences(saved, now):
        key = differing[0]
        raise RunDirectoryError(
            f"{source} belongs to a run with another {key}: it has {saved.get(key)!r}, this run {now.get(key)!r} "
            f"({len(differing)} differences: {', '.join(differing)}). Use the same settings, or another "
            "train.output_dir."
        )
    return record


def _random_state() -> dict[str, Any]:
    return {
        "rng_cpu": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
