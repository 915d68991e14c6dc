"""How far the answers of trained models have moved from those of their base model."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.build.base import base_beside
from onpolicy_sdft.build.loaded import config_of, load_model, load_run
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.answers import AnswerRecord, Asking, remove_kept
from onpolicy_sdft.eval.embedders import cosine_similarities, load_embedder
from onpolicy_sdft.eval.evaluate import measure_kl
from onpolicy_sdft.eval.intervals import mean_interval
from onpolicy_sdft.eval.prompts import answer, load_prompts
from onpolicy_sdft.eval.retention import BaseCompletion, BaseKL
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import differences, write_json_atomic, write_jsonl_atomic
from onpolicy_sdft.runs.manifest import collect_manifest

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.eval.embedders import Embedder
    from onpolicy_sdft.types import Demonstration

logger = logging.getLogger(__name__)

_RECORDS, _SUMMARY = "records.jsonl", "shift.json"


@dataclass(frozen=True, slots=True)
class ShiftOptions:
    """What is asked, and how answers are compared."""

    prompts: str | None  # see ``load_prompts``
    prompt_column: str
    num_prompts: int | None
    asking: Asking
    embedder: str  # see ``load_embedder``


def run_shift(runs: Sequence[str], output: str | Path, options: ShiftOptions, command: Sequence[str]) -> dict[str, Any]:
    """Compare the answers of runs with those of their base model, prompt by prompt.

    Every model answers the same prompts under the same noise. Answers are kept as they come, so an interrupted call
    goes on with the same command.

    Args:
        runs: Run directories; all of one base model.
        output: Where ``shift.json`` and ``records.jsonl`` go.
        options: What is asked.
        command: The command line, for the record.

    Returns:
        What ``shift.json`` holds.

    Raises:
        ConfigError: If the runs do not share one base model and its prompts.
        MissingDependencyError: If the embedder needs a package that is not there.
    """
    opened = [RunDirectory.open(path, require=["config.yaml", "model"]) for path in runs]
    configs = [config_of(run) for run in opened]
    _refuse_other_bases(opened, configs)
    names = _names(opened)
    prompts = load_prompts(options.prompts, options.prompt_column, options.num_prompts, configs[0])
    embedder = load_embedder(options.embedder, configs[0].model.cache_dir)
    directory = Path(output)
    with claimed(directory, "output", "shift", (_SUMMARY, _RECORDS)):
        partial = directory / "partial"
        base = _answers_of_base(configs[0], prompts, options.asking, partial / "base.jsonl")
        found = []
        for index, name in enumerate(names):
            path = partial / f"run-{index}.jsonl"
            answers, distance = _answers_of_run(opened[index], name, prompts, options.asking, base, path)
            found.append((name, answers, distance))
            gc.collect()  # a model and the engine over it refer to each other
        logger.info(f"comparing answers with {embedder.name}")
        base_ND = embedder([record["completion"] for record in base])
        compared = [
            cosine_similarities(base_ND, embedder([r["completion"] for r in answers])) for _, answers, _ in found
        ]
        summary = {
            "reference": configs[0].model.name,
            "runs": [
                _entry(run, name, base, answers, similarities, distance)
                for run, (name, answers, distance), similarities in zip(opened, found, compared, strict=True)
            ],
            "num_prompts": len(prompts),
            "embedder": embedder.name,
            "num_cut": _count_cut(embedder, [base, *(answers for _, answers, _ in found)]),
            "prompts": _RECORDS,
            **dataclasses.asdict(options.asking),
            "manifest": collect_manifest(command=command, seeds={"seed": options.asking.seed}),
        }
        write_jsonl_atomic(directory / _RECORDS, _records(base, [(name, a) for name, a, _ in found], compared))
        write_json_atomic(directory / _SUMMARY, summary)
        for path in (partial / "base.jsonl", *(partial / f"run-{index}.jsonl" for index in range(len(opened)))):
            remove_kept(path)
        return summary


def _refuse_other_bases(runs: Sequence[RunDirectory], configs: Sequence[RunConfig]) -> None:
    first = _base_facts(configs[0])
    for run, config in zip(runs[1:], configs[1:], strict=True):
        theirs = _base_facts(config)
        if differing := differences(first, theirs):
            name, (asked, other) = next(iter(differing.items()))
            raise ConfigError(
                f"{run.path} has another {name} than {runs[0].path}: {other!r}, not {asked!r}; answers are compared "
                "with those of one base model. Fix: one call for the runs of each."
            )


def _base_facts(config: RunConfig) -> dict[str, Any]:
    """What decides the base model's answers."""
    model = dataclasses.asdict(config.model)
    named = {f"model.{name}": model[name] for name in ("name", "revision", "dtype", "load_in_4bit")}
    return {**named, "context.student_template_kwargs": config.context.student_template_kwargs}


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Call runs by the last part of their path, or by all of it where that is not enough."""
    short = [run.path.resolve().name for run in runs]
    if len(set(short)) == len(short):
        return short
    whole = [str(run.path) for run in runs]
    if len(set(whole)) < len(whole):
        raise ConfigError(f"A run was given twice: {', '.join(whole)}. Fix: name each once.")
    return whole


def _answers_of_base(
    config: RunConfig, prompts: Sequence[Demonstration], asking: Asking, path: Path
) -> list[AnswerRecord]:
    finished = load_model(config.model.name, config)
    return answer(finished, prompts, asking, path, "base model: answers")


def _answers_of_run(
    run: RunDirectory,
    name: str,
    prompts: Sequence[Demonstration],
    asking: Asking,
    base: Sequence[AnswerRecord],
    path: Path,
) -> tuple[list[AnswerRecord], BaseKL]:
    """Return a run's answers, and how likely it finds those of the base model."""
    finished = load_run(run.path)
    answers = answer(finished, prompts, asking, path, f"{name}: answers")
    completions = [
        BaseCompletion(
            record["example_id"], record["prompt"], record["completion"], tuple(record["prompt_ids"]),
            tuple(record["token_ids"]),
        )
        for record in base
    ]  # fmt: skip
    base_model = base_beside(finished.config, finished.model, run)
    return answers, measure_kl(finished.bundle, finished.model, base_model, completions)


def _entry(
    run: RunDirectory,
    name: str,
    base: Sequence[AnswerRecord],
    answers: Sequence[AnswerRecord],
    similarities: Sequence[float],
    distance: BaseKL,
) -> dict[str, Any]:
    low, high = mean_interval(similarities)
    n = len(similarities)
    same = sum(a["completion"] == s["completion"] for a, s in zip(answers, base, strict=True))
    return {
        "name": name,
        "path": str(run.path),
        "similarities": list(similarities),
        "mean": sum(similarities) / n,
        "low": low,
        "high": high,
        "kl": distance.mean,
        "kl_low": distance.low,
        "kl_high": distance.high,
        "nll": distance.nll_mean,
        "nll_low": distance.nll_low,
        "nll_high": distance.nll_high,
        "identical_rate": same / n,
        "truncated_rate": sum(record["finish_reason"] == "length" for record in answers) / n,
    }


def _count_cut(embedder: Embedder, answers: Sequence[Sequence[AnswerRecord]]) -> int:
    """Count the answers that are longer than what the embedder reads."""
    return embedder.count_cut([record["completion"] for records in answers for record in records])


def _records(
    base: Sequence[AnswerRecord],
    answers: Sequence[tuple[str, Sequence[AnswerRecord]]],
    similarities: Sequence[Sequence[float]],
) -> list[AnswerRecord]:
    def shown(record: AnswerRecord) -> AnswerRecord:
        return {"completion": record["completion"], "finish_reason": record["finish_reason"]}

    return [
        {
            "example_id": reference["example_id"],
            "prompt": reference["prompt"],
            "reference": shown(reference),
            "answers": {
                name: {**shown(records[index]), "similarity": values[index]}
                for (name, records), values in zip(answers, similarities, strict=True)
            },
        }
        for index, reference in enumerate(base)
    ]
