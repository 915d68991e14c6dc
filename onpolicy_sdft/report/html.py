"""One self-contained HTML page for a run, whole or only partly there."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.report.curves import CURVES, draw_curves
from onpolicy_sdft.report.drawing import series
from onpolicy_sdft.report.page import PAGE
from onpolicy_sdft.report.tables import before_after_table, kl_sentence
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import (
    dumps_strict,
    read_json,
    read_jsonl,
    write_bytes_atomic,
    write_text_atomic,
)

_NUM_ROLLOUTS_SHOWN = 12
T = TypeVar("T")


@dataclass(slots=True)
class RunRecords:
    """What could be read of a run, and what could not."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    missing: list[str] = field(default_factory=list)


def build_report(run_directory: RunDirectory | Path | str) -> list[Path]:
    """Write ``report.html`` and ``plots/*.png`` of a run.

    The run may be unfinished: what is missing or damaged is named in the report.

    Args:
        run_directory: The run.

    Returns:
        Paths written, the page first.

    Raises:
        RunDirectoryError: There is no run at that place.
    """
    path = run_directory.path if isinstance(run_directory, RunDirectory) else run_directory
    run = RunDirectory.open(path)
    records = read_records(run)
    pictures, undrawn = draw_curves(records.metrics, records.summary)
    if undrawn:
        records.missing.append(f"curves without data: {', '.join(undrawn).lower()}")
    written = [run.report_path]
    for name, png in pictures.items():
        written.append(run.plots_path / f"{name}.png")
        write_bytes_atomic(written[-1], png)
    for name in CURVES.keys() - pictures.keys():  # an earlier report's, of data now gone
        (run.plots_path / f"{name}.png").unlink(missing_ok=True)
    write_text_atomic(run.report_path, render_page(run.path.resolve().name, records, pictures))
    return written


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
        except RunDirectoryError as error:
            records.missing.append(f"{name}: {what} ({error})")
            return empty

    records.config = read(run.config_path, _read_text, "", "the resolved config")
    records.manifest = read(run.manifest_path, _read_mapping, {}, "versions, hardware, seeds")
    records.metrics = read(run.metrics_path, _read_steps, [], "figures of the optimizer steps")
    records.rollouts = read(run.rollouts_path, read_jsonl, [], "sampled rollouts")
    records.summary = read(run.eval_summary_path, _read_mapping, {}, "scores before and after")
    for stage in ("before", "after"):
        if records.summary and not records.summary.get(stage):
            records.missing.append(f"eval/summary.json: scores {stage} training")
    return records


def render_page(title: str, records: RunRecords, pictures: Mapping[str, bytes]) -> str:
    """Render the page; every text of the run is escaped.

    Args:
        title: Name of the run.
        records: What was read of it.
        pictures: PNG files by name, keys of ``CURVES``.

    Returns:
        The whole HTML document, with the pictures inside.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    sample = sample_rollouts(records.rollouts, _NUM_ROLLOUTS_SHOWN)
    manifest = records.manifest
    return environment.from_string(PAGE).render(
        title=title,
        subtitle=_subtitle(manifest),
        missing=records.missing,
        tiles=_tiles(records.metrics),
        table=before_after_table(records.summary),
        kl=kl_sentence(records.summary),
        pictures=[
            {
                "title": CURVES[name].title,
                "caption": CURVES[name].caption,
                "base64": base64.b64encode(png).decode("ascii"),
            }
            for name, png in pictures.items()
        ],
        rollouts=[_rollout_view(record) for record in sample],
        num_rollouts=len(records.rollouts),
        config=records.config,
        manifest=dumps_strict(manifest, indent=2) if manifest else "",
    )


def sample_rollouts(rollouts: Sequence[Mapping[str, Any]], num_shown: int) -> list[Mapping[str, Any]]:
    """Choose rollouts to show: the last of each verdict and reason, then others over the run.

    Args:
        rollouts: Lines of ``rollouts.jsonl``, in the order they were written.
        num_shown: How many to choose at most.

    Returns:
        The chosen ones, in their order.
    """
    last_of = {(r.get("verdict"), r.get("reason")): i for i, r in enumerate(rollouts)}
    chosen = set(sorted(last_of.values(), reverse=True)[:num_shown])
    others = [i for i in range(len(rollouts)) if i not in chosen]
    wanted = min(len(others), num_shown - len(chosen))
    chosen |= {others[k * len(others) // wanted] for k in range(wanted)}
    return [rollouts[i] for i in sorted(chosen)]


def _rollout_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one record out for the page; a target that repeats another text is not shown twice."""
    texts = [(n, _text(record.get(n))) for n in ("prompt", "demonstration", "rollout")]
    target = _text(record.get("target"))
    same = next((n for n, text in texts[:0:-1] if text.strip() == target.strip() and target), None)
    texts.append(("target", f"(the {same})" if same else target))
    view: dict[str, Any] = {key: record.get(key) for key in ("step", "example_id", "verdict", "reason", "attempt")}
    view["num_tokens"] = record.get("num_tokens")
    view["logprob_mean"] = record.get("logprob_mean")
    view["texts"] = texts
    return view


def _tiles(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Sum the run up in a few figures."""
    if not metrics:
        return []
    skipped = sum(bool(record.get("skipped")) for record in metrics)
    tiles = [("steps", f"{metrics[-1]['step']}" + (f" ({skipped} skipped)" if skipped else ""))]
    seconds = _finite(metrics, "time/step_seconds")
    if seconds:
        tiles.append(("seconds per step", f"{sum(seconds) / len(seconds):.1f}"))
    learned = _finite(metrics, "train/total_loss_tokens")
    if learned:
        tiles.append(("loss tokens learned", f"{learned[-1]:,.0f}"))
    speed = _finite(metrics, "rollout/tokens_per_second")
    if speed:
        tiles.append(("rollout tokens/s", f"{sum(speed) / len(speed):,.0f}"))
    for name, key, form in (
        ("loss", "loss/total", ".3f"),
        ("fallbacks", "screen/fallback_rate", ".0%"),
    ):
        values = _finite(metrics, key)
        if values:
            tiles.append((f"{name}, first to last", f"{values[0]:{form}} -> {values[-1]:{form}}"))
    return tiles


def _finite(metrics: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [value for value in series(metrics, key)[1] if value == value]  # NaN differs from itself


def _subtitle(manifest: Mapping[str, Any]) -> str:
    parts = [f"started {manifest['started']}"] if manifest.get("started") else []
    git = manifest.get("git") or {}
    if git.get("commit"):
        parts.append(f"commit {git['commit'][:12]}" + (" (modified)" if git.get("dirty") else ""))
    machine = manifest.get("hardware") or {}
    parts += [str(name) for name in machine.get("gpus") or [machine.get("cpu")] if name]
    return ", ".join(parts)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_steps(path: Path) -> list[dict[str, Any]]:
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("step"), int):
            raise RunDirectoryError(f"{path}, record {number} has no step.")
    return records


def _read_mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} is not a JSON object.")
    return value
