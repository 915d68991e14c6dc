"""Reading what a report is made from. A file that is missing or damaged is named, never fatal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl

T = TypeVar("T")


@dataclass(slots=True)
class RunRecords:
    """What could be read of a run, and what could not."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    gate: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Member:
    """A run, under the name it goes by in the report."""

    name: str
    path: Path
    records: RunRecords


class Reader:
    """Reads files once each, and names them as seen from the report."""

    def __init__(self, base: Path) -> None:
        """Take the directory that the report is written to."""
        self._base = base.resolve()
        self._objects: dict[Path, dict[str, Any]] = {}
        self._runs: dict[Path, RunRecords] = {}

    def name(self, path: Path) -> str:
        """Name a file: from the report's directory where it lies in there, else as it was given."""
        try:
            return path.resolve().relative_to(self._base).as_posix()
        except ValueError:
            return path.as_posix()

    def object(self, path: Path) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            RunDirectoryError: It is missing, damaged or no object.
        """
        if path not in self._objects:
            self._objects[path] = read_mapping(path)
        return self._objects[path]

    def object_or_name(self, path: Path, what: str, missing: list[str]) -> dict[str, Any]:
        """Read a JSON object; where that fails, return an empty one and name it in ``missing``."""
        try:
            return self.object(path)
        except (RunDirectoryError, OSError) as error:
            missing.append(f"{self.name(path)}: {what} ({error})")
            return {}

    def member(self, path: Path, name: str) -> Member:
        """Read a run under a name; its place may be empty."""
        if path not in self._runs:
            self._runs[path] = read_records(RunDirectory(path))
        return Member(name, path, self._runs[path])

    def sources(self, members: Sequence[Member], file: str) -> tuple[str, ...]:
        """Name one file in each of several runs, those that have it."""
        return tuple(self.name(member.path / file) for member in members if (member.path / file).exists())


def read_records(run: RunDirectory) -> RunRecords:
    """Read whatever a run has.

    Args:
        run: The run.

    Returns:
        Its records; a file that is missing or damaged is empty and named in ``missing``.
    """
    records = RunRecords()

    def read(path: Path, reader: Callable[[Path], T], empty: T, what: str) -> T:
        name = path.relative_to(run.path)
        if not path.exists():
            records.missing.append(f"{name}: {what}")
            return empty
        try:
            return reader(path)
        except (RunDirectoryError, OSError) as error:
            records.missing.append(f"{name}: {what} ({error})")
            return empty

    records.config = read(run.config_path, _read_text, "", "the resolved config")
    records.manifest = read(run.manifest_path, read_mapping, {}, "versions, hardware, seeds")
    records.metrics = read(run.metrics_path, _read_steps, [], "figures of the optimizer steps")
    records.rollouts = read(run.rollouts_path, read_jsonl, [], "sampled rollouts")
    records.summary = read(run.eval_summary_path, read_mapping, {}, "scores before and after")
    if run.alarms_path.exists():  # a run without alarms, or without a gate, lacks nothing
        records.alarms = read(run.alarms_path, _read_steps, [], "what was noticed")
    if run.gate_path.exists():
        records.gate = read(run.gate_path, _read_steps, [], "the gate's checks")
    if run.result_path.exists():
        records.result = read(run.result_path, read_mapping, {}, "how the run ended")
    if records.summary and not records.summary.get("eval"):
        for stage in ("before", "after"):
            if not records.summary.get(stage):
                records.missing.append(f"eval/summary.json: scores {stage} training")
    return records


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        RunDirectoryError: It is missing, damaged or something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} is not a JSON object.")
    return value


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name directories by as few of their last parts as tell them apart.

    Args:
        paths: Directories, each another one.

    Returns:
        One name a path, e.g. ``sdft/seed0`` beside ``sft/seed0``.
    """
    parts = [path.resolve().parts for path in paths]
    longest = max((len(each) for each in parts), default=1)
    for length in range(1, longest + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_steps(path: Path) -> list[dict[str, Any]]:
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("step"), int):
            raise RunDirectoryError(f"{path}, record {number} has no step.")
    return records
