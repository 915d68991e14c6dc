"""Tasks of lm-eval on a run or a model, with results and samples kept task by task."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from onpolicy_sdft.build.identity import answering_identity
from onpolicy_sdft.build.loaded import load_target
from onpolicy_sdft.data.template_source import at_moment
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.lm_eval_bridge import (
    PRESETS,
    Harness,
    Preset,
    TaskResult,
    pool_accuracy,
    require_lm_eval,
    tasks_digest,
)
from onpolicy_sdft.models.export import merge_adapter
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.files import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from onpolicy_sdft.versions import package_versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.loaded import ReadyModel

logger = logging.getLogger(__name__)

_SUMMARY, _POOLED = "summary.json", "pooled.json"
_PACKAGES = ("lm_eval", "onpolicy_sdft", "torch", "transformers", "peft", "datasets")


@dataclass(frozen=True, slots=True)
class LmEvalOptions:
    """What is run."""

    tasks: tuple[str, ...]
    preset: str | None  # adds its tasks, its number of examples and its pooled figures
    num_fewshot: int | None  # None: the preset's, or each task's own
    limit: int | None
    include_path: str | None
    batch_size: int
    chat_template: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    num_fewshot: int | None


def run_lm_eval(target: str, options: LmEvalOptions, output: Path | None) -> tuple[Path, list[Row]]:
    """Run tasks of the harness.

    Every task leaves ``TASK.json`` and ``TASK.samples.jsonl``; what an interrupted call had finished with the same
    weights and settings is not run again.

    Args:
        target: Run directory, local model, hub id or embedded name.
        options: What is run.
        output: Directory; None: ``eval/lm_eval`` of the run, or ``runs/lm_eval-NAME``.

    Returns:
        The directory, and the lines of the table.

    Raises:
        ConfigError: If a task or the preset is unknown, or none is given.
        DataError: If a task's data cannot be had.
        MissingDependencyError: If the library is not installed.
    """
    preset = _preset(options)
    names = tuple(dict.fromkeys((*options.tasks, *(preset.tasks if preset else ()))))
    if not names:
        raise ConfigError("There is no task to run. Fix: --tasks NAME,... or --preset acl2024.")
    require_lm_eval()
    finished = load_target(target)
    directory = output or _default_directory(finished, target)
    identity = _identity(finished, options, preset)
    bundle = finished.bundle
    control = bundle.renderer.markup.control.values()
    harness = Harness(_whole(finished), _dated_tokenizer(bundle), options.include_path, options.batch_size, control)
    harness.check(names)
    results: dict[str, TaskResult] = {}
    writes = (_SUMMARY, _POOLED, *(f"{_stem(name)}.json" for name in names))
    with claimed(directory, "output", "lm_eval", writes):
        for name in names:
            found = _read(directory, name, identity)
            if found is None:
                logger.info(f"lm-eval: {name}")
                found = harness.run(name, identity["num_fewshot"], options.limit, options.chat_template, options.seed)
                _write(directory, name, found, identity)
            else:
                logger.info(f"lm-eval: {name} is there already")
            results |= {result.name: result for result in found}
    rows = [
        Row(result.name, metric, value, stderr, result.num_samples, result.num_fewshot)
        for result in results.values()
        for metric, value, stderr in result.rows()
    ]
    if preset is not None:
        pooled = _pool(results, preset)
        write_json_atomic(directory / _POOLED, {row.task: _entry(row) for row in pooled})
        rows += pooled
    return directory, rows


def _preset(options: LmEvalOptions) -> Preset | None:
    if options.preset is None:
        return None
    if options.preset not in PRESETS:
        raise ConfigError(f"There is no preset {options.preset!r}. There are: {', '.join(PRESETS)}.")
    return PRESETS[options.preset]


def _default_directory(finished: ReadyModel, target: str) -> Path:
    if finished.run is not None:
        return finished.run.eval_path / "lm_eval"
    return Path("runs") / ("lm_eval-" + "".join(c if c.isalnum() else "-" for c in target))


def _identity(finished: ReadyModel, options: LmEvalOptions, preset: Preset | None) -> dict[str, Any]:
    """What decides a task's results."""
    num_fewshot = options.num_fewshot
    if num_fewshot is None and preset is not None:
        num_fewshot = preset.num_fewshot
    return {
        "weights": answering_identity(finished.bundle, finished.model),
        "num_fewshot": num_fewshot,
        "limit": options.limit,
        "chat_template": options.chat_template,
        "date": finished.bundle.renderer.writer.date,
        "seed": options.seed,
        "include_path": tasks_digest(options.include_path),
        "lm_eval": package_versions(["lm_eval"])["lm_eval"],
    }


def _whole(finished: ReadyModel) -> Any:
    """Return the model with its adapter folded in, where that can be done."""
    model = finished.model
    return merge_adapter(model) if isinstance(model, PeftModel) and not finished.config.model.load_in_4bit else model


def _dated_tokenizer(bundle: ModelBundle) -> PreTrainedTokenizerBase:
    """Return the tokenizer; a chat template that reads the clock sees the date of the run, not the harness's."""
    tokenizer, writer = bundle.loaded.tokenizer, bundle.renderer.writer
    if not writer.date:
        return tokenizer
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = at_moment(tokenizer.get_chat_template(), datetime.fromisoformat(writer.date))
    return dated


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _write(directory: Path, name: str, results: Sequence[TaskResult], identity: Mapping[str, Any]) -> None:
    for result in results:
        if result.samples:
            write_jsonl_atomic(directory / f"{_stem(result.name)}.samples.jsonl", result.samples)
        write_json_atomic(
            directory / f"{_stem(result.name)}.json",
            {
                "task": result.name,
                "metrics": result.metrics,
                "n": result.num_samples,
                "num_fewshot": result.num_fewshot,
                "version": result.version,
                "config": result.config,
                "config_hash": result.config_hash,
                "versions": package_versions(_PACKAGES),
                "identity": identity,
            },
        )
    path = directory / _SUMMARY  # last: what it names is whole
    summary = read_json(path) if path.is_file() else {}
    summary[name] = {"identity": dict(identity), "tasks": [result.name for result in results]}
    write_json_atomic(path, summary)


def _read(directory: Path, name: str, identity: Mapping[str, Any]) -> list[TaskResult] | None:
    """Return the results of an earlier call with the same weights and settings; None where there are none."""
    path = directory / _SUMMARY
    done = read_json(path).get(name, {}) if path.is_file() else {}
    if done.get("identity") != dict(identity):
        return None
    found = []
    for task in done["tasks"]:
        entry = read_json(directory / f"{_stem(task)}.json")
        if entry["identity"] != dict(identity):  # another group with the same part was run since, with other settings
            return None
        samples = directory / f"{_stem(task)}.samples.jsonl"
        found.append(
            TaskResult(
                task, entry["metrics"], entry["n"], entry["config"], entry["version"], entry["num_fewshot"],
                read_jsonl(samples) if samples.is_file() else (),
            )
        )  # fmt: skip
    return found


def _pool(results: Mapping[str, TaskResult], preset: Preset) -> list[Row]:
    rows = []
    for name, pool in preset.pools.items():
        value, stderr, n = pool_accuracy(results, pool, preset.metric)
        rows.append(Row(name, preset.metric.partition(",")[0], value, stderr, n, preset.num_fewshot))
    return rows


def _entry(row: Row) -> dict[str, Any]:
    return {"metric": row.metric, "value": row.value, "stderr": row.stderr, "n": row.n}
