"""Where every file of a run stands, and the rules for making, opening and resuming a run."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.files import (
    append_jsonl,
    read_jsonl,
    read_jsonl_lines,
    write_bytes_atomic,
)

ENTRIES = (
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    "rollouts.jsonl",
    "eval",
    "checkpoints",
    "best",
    "model",
    "report.html",
    "plots",
)
_CHECKPOINT_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run on disk.

    Make one with :meth:`create` (before a run) or :meth:`open` (afterwards).
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunDirectory:
        """Make the directory of a run that is about to start.

        Args:
            path: Where to; parents are made.
            resume: True when the run may go on from what is there.

        Returns:
            The run directory, which exists.

        Raises:
            RunDirectoryError: The path is a file, cannot be made, or holds another run while
                ``resume`` is false.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunDirectoryError(
                f"train.output_dir={path}: a file of that name is in the way. Choose another train.output_dir."
            ) from error
        except OSError as error:
            raise RunDirectoryError(
                f"train.output_dir={path} cannot be made ({error.strerror}). "
                "Choose a train.output_dir that can be written."
            ) from error
        found = _entries(path)
        if found and not resume:
            raise RunDirectoryError(
                f"train.output_dir={path} already holds a run ({', '.join(found)}). Choose another "
                "train.output_dir, go on with that run (--train.resume auto), or delete it."
            )
        return cls(path)

    @classmethod
    def open(cls, path: str | Path, *, require: Sequence[str] = ()) -> RunDirectory:
        """Open the directory of a run that was made before.

        Args:
            path: The run directory.
            require: Entries that must be there, e.g. ``("config.yaml", "model")``.

        Returns:
            The run directory.

        Raises:
            RunDirectoryError: There is no such directory, nothing in it belongs to a run, or a
                required entry is missing.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunDirectoryError(
                f"{path} is not a run directory: there is no such directory. Give the train.output_dir of a run."
            )
        found = _entries(path)
        if not found:
            raise RunDirectoryError(
                f"{path} is not a run directory: it holds none of {', '.join(ENTRIES)}. "
                "Give the train.output_dir of a run."
            )
        missing = [name for name in require if not (path / name).exists()]
        if missing:
            raise RunDirectoryError(
                f"{path} lacks {', '.join(missing)} (it holds {', '.join(found)}). "
                "The run may have stopped early: finish it with --train.resume auto."
            )
        return cls(path)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the directory for as long as this one works in it; a killed run keeps none out.

        Raises:
            RunDirectoryError: Another run works in it.
        """
        with claimed(self.path, "train.output_dir", "run"):
            for folder in (self.path, self.checkpoints_path):
                _settle(folder)
            yield

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """Versions, commit, hardware, seeds and data fingerprint."""
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        """A sample of rollouts with prompt, demonstration, target and verdict."""
        return self.path / "rollouts.jsonl"

    @property
    def alarms_path(self) -> Path:
        """What was noticed during training, one JSON object an alarm; absent where there was none."""
        return self.path / "alarms.jsonl"

    @property
    def gate_path(self) -> Path:
        """The gate's checks, one JSON object each."""
        return self.path / "gate.jsonl"

    @property
    def eval_path(self) -> Path:
        """Per-example records and the summary of evaluations."""
        return self.path / "eval"

    @property
    def eval_summary_path(self) -> Path:
        """Scores before and after."""
        return self.eval_path / "summary.json"

    @property
    def checkpoints_path(self) -> Path:
        """Checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def best_path(self) -> Path:
        """The weights with the best validation score."""
        return self.path / "best"

    @property
    def model_path(self) -> Path:
        """The exported model or adapter."""
        return self.path / "model"

    @property
    def base_path(self) -> Path:
        """The base of this run's adapter, where it is in no other place: adapters merged in, or a model of memory."""
        return self.path / "base"

    @property
    def result_path(self) -> Path:
        """Why training ended, the best validation score, and how the model compares with the start."""
        return self.path / "result.json"

    @property
    def report_path(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"

    @property
    def plots_path(self) -> Path:
        """The report's curves."""
        return self.path / "plots"

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint taken after a step stands.

        Args:
            step: Optimizer steps done.

        Returns:
            E.g. ``checkpoints/step-000050``; it need not exist.
        """
        return self.checkpoints_path / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """List the steps that have a checkpoint.

        Returns:
            Steps in rising order. Directories of another name (half-written ones) are left out.
        """
        if not self.checkpoints_path.is_dir():
            return []
        names = (_CHECKPOINT_NAME.fullmatch(p.name) for p in self.checkpoints_path.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def eval_records_path(self, stage: str, label: str) -> Path:
        """Where the per-example records of one evaluated set stand.

        Args:
            stage: When it was scored, e.g. ``before``, ``after`` or ``step-000050``.
            label: The set's label.

        Returns:
            ``eval/<stage>-<label>.jsonl``.

        Raises:
            ConfigError: The label cannot be part of a file name.
        """
        if not label or any(c in '/\\:*?"<>|' or not c.isprintable() for c in label):
            raise ConfigError(
                f"eval.sets label {label!r} names a file of the run directory, so it must not be "
                'empty or hold any of / \\ : * ? " < > |. Rename it, e.g. to '
                f"{re.sub(r'[^A-Za-z0-9._-]+', '_', label) or 'task'!r}."
            )
        return self.eval_path / f"{stage}-{label}.jsonl"

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add the line of one optimizer step to ``metrics.jsonl``.

        Args:
            record: ``{"step", "skipped", "time", "values"}``.
        """
        append_jsonl(self.metrics_path, record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of ``metrics.jsonl``, none where no step was taken."""
        return read_jsonl(self.metrics_path) if self.metrics_path.is_file() else []

    def append_rollouts(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add sampled rollouts of one step to ``rollouts.jsonl``.

        Args:
            records: One mapping a rollout, each with its ``step``.
        """
        append_jsonl(self.rollouts_path, *records)

    def truncate_after_step(self, step: int) -> int:
        """Drop what was logged after a step, so that resuming from it doubles nothing.

        A torn last line goes as well. Files are replaced atomically, and only where something is
        dropped.

        Args:
            step: The step that the resumed run goes on from.

        Returns:
            Number of whole lines dropped from ``metrics.jsonl`` and ``rollouts.jsonl``.

        Raises:
            RunDirectoryError: A line other than a torn last one is damaged or has no step.
        """
        return sum(_truncate(p, step) for p in (self.metrics_path, self.rollouts_path))


def _settle(folder: Path) -> None:
    """End what a run that was killed had begun to save here: a directory that was moved aside for a new one is back."""
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    for old in folder.glob(".old-*"):
        target = old.with_name(old.name.removeprefix(".old-"))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def _entries(path: Path) -> list[str]:
    return [name for name in ENTRIES if (path / name).exists()]


def _truncate(path: Path, step: int) -> int:
    if not path.exists():
        return 0
    lines = read_jsonl_lines(path)
    kept = []
    for number, (line, record) in enumerate(lines, start=1):
        if not isinstance(record.get("step"), int):
            raise RunDirectoryError(
                f"{path}, record {number} has no step, so the run cannot be resumed from step "
                f"{step} without doubling lines. Remove that line."
            )
        if record["step"] <= step:
            kept.append(line + b"\n")
    content = b"".join(kept)
    if content != path.read_bytes():
        write_bytes_atomic(path, content)
    return len(lines) - len(kept)
