"""Score a model on its evaluation sets and measure its distance from the base model; keep every record.

What was answered outlives an interruption: chunks of answers stand in ``eval/partial/`` until the records and the
summary of the whole stage are written.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.build.base import Beside, base_beside
from onpolicy_sdft.build.bundle import ModelBundle, context_window
from onpolicy_sdft.build.data import refuse_unaskable
from onpolicy_sdft.build.identity import answering_identity, asked_identity, digest_of, prompts_digest
from onpolicy_sdft.build.loaded import is_run, load_model, load_run
from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.data.eval_sets import EvalSet, load_eval_sets
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.answers import Kept, remove_kept
from onpolicy_sdft.eval.retention import (
    BaseCompletion,
    BaseKL,
    general_prompts,
    kl_to_base,
    refuse_unanswerable,
    write_base_completions,
)
from onpolicy_sdft.eval.runner import SetScore, score_set
from onpolicy_sdft.machine import give_memory_back
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from onpolicy_sdft.runs.progress import Progress, tick
from onpolicy_sdft.types import ONE_RANK, Ranks, Turn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import EvalConfig, RunConfig

logger = logging.getLogger(__name__)


def evaluate(
    target: str | Path,
    config: RunConfig | None = None,
    output: str | Path | None = None,
) -> tuple[RunDirectory, dict[str, Any]]:
    """Score a run or a model on the evaluation sets of a config (of the run's own when none is given).

    Args:
        target: Run directory, local model, hub id or embedded name.
        config: Where the sets come from; needed for a model that is not a run.
        output: Directory for the records; unset means the run itself, or ``runs/eval-NAME``.

    Returns:
        Where the records are, and the summary of stage ``eval``.

    Raises:
        ConfigError: If there is no set to score on.
    """
    if config is None and not is_run(target):
        raise ConfigError(f"{target} is not a run directory, so say what to score it on: --config FILE.")
    if config is None:
        config = load_config(RunDirectory.open(target, require=["config.yaml"]).config_path)
    if not evaluation_sets(config):
        raise ConfigError("There is no set to score on. Fix: --eval.path FILE, or --config FILE with eval.sets.")
    sets = load_eval_sets(evaluation_sets(config))
    general_prompts(config.eval.kl_prompts)  # asking for more than there are is refused before any work
    if is_run(target):
        finished = load_run(target)
        assert finished.run is not None
        # Whatever the sets: its own base model, and what it started from.
        config = dataclasses.replace(config, model=finished.config.model, train=finished.config.train)
    else:
        finished = load_model(str(target), config)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, name=str(target)), eval=_without_kl(config)
        )
    refuse_unaskable(finished.bundle, sets)
    refuse_unanswerable(finished.bundle, config.eval.kl_prompts)
    if output is None and finished.run is not None:
        run = finished.run
    else:
        default = "runs/eval-" + "".join(c if c.isalnum() else "-" for c in str(target))
        run = RunDirectory.create(output or default, resume=True)
    weights = answering_identity(finished.bundle, finished.model)
    summary = evaluate_stage(
        config, finished.bundle, finished.model, sets, run, "eval", weights=weights, trained_in=finished.run
    )
    return run, summary


def _without_kl(config: RunConfig) -> EvalConfig:
    if config.eval.kl_prompts:
        logger.info("KL to a base model is measured for runs only: a model alone does not say what it was tuned from")
    return dataclasses.replace(config.eval, kl_prompts=0)


#: Answers of a chunk on each rank, by device: about eight times the engine's slots, because slots stand empty while
#: the last answers of a chunk are written. An interruption loses as many answers.
CHUNK_SIZES = {"cpu": 384, "cuda": 2048}


def score_sets(
    config: RunConfig,
    bundle: ModelBundle,
    model: PreTrainedModel | PeftModel,
    sets: Sequence[EvalSet],
    stage: str,
    ranks: Ranks = ONE_RANK,
    keep: Callable[[EvalSet], Kept | None] = lambda questions: None,
) -> list[SetScore]:
    """Score a model on each set, with a progress bar a set (of the first rank's share).

    Args:
        config: Says how questions are asked.
        bundle: The model's prompts.
        model: What answers.
        sets: The questions.
        stage: Shown with the bar.
        ranks: The processes that share the questions.
        keep: Where finished chunks of a set's answers go; unset: nowhere.
    """
    backend = bundle.backend(model, config.rollout, config.eval.batch_size)
    scores = []
    for questions in sets:
        total = math.ceil(len(questions.demonstrations) * config.eval.num_samples / ranks.num_ranks)
        with Progress(f"{stage}: {questions.label}", total, "answers", enabled=ranks.rank == 0) as progress:
            score = score_set(questions, backend, bundle.renderer, config.eval, tick(progress), ranks, keep(questions))
            progress.update(0, score=score.score)
        scores.append(score)
    del backend
    give_memory_back()
    return scores


def evaluate_stage(
    config: RunConfig,
    bundle: ModelBundle,
    model: PreTrainedModel | PeftModel,
    sets: Sequence[EvalSet],
    run: RunDirectory,
    stage: str,
    ranks: Ranks = ONE_RANK,
    weights: str | None = None,
    trained_in: RunDirectory | None = None,
) -> dict[str, Any]:
    """Score one stage of a run (``before``, ``after`` or ``eval``) and write records and summary.

    The base model's completions of the general prompts are written in stage ``before`` and reused. Ranks share the
    questions; the distance from the base model is the first one's work.

    Args:
        config: Says how questions are asked.
        bundle: The model's prompts.
        model: What answers.
        sets: The questions.
        run: Where records and summary go.
        stage: Part of the records' names.
        ranks: The processes that share the questions.
        weights: Tells the model from others, see ``build/identity.py``: answers of an interrupted call are kept where
            it is the same. None: an interrupted stage starts over.
        trained_in: The run that trained the model; None: ``run``.

    Returns:
        The stage's part of ``eval/summary.json``.
    """

    def keep(questions: EvalSet) -> Kept | None:
        if weights is None:
            return None
        owner = f"{config.rollout.decode_copy} copy, {weights}"
        return Kept(_partial_path(run, stage, questions.label), owner, chunk_size(bundle))

    scores = score_sets(config, bundle, model, sets, stage, ranks, keep)
    entry = {"identity": eval_identity(config, bundle, sets), "weights": weights}
    return ranks.on_first(partial(_write_stage, config, bundle, model, run, stage, scores, entry, trained_in or run))


def chunk_size(bundle: ModelBundle) -> int:
    """Return how many answers a chunk has on each rank, for the device a model is on."""
    return CHUNK_SIZES.get(bundle.loaded.model.device.type, CHUNK_SIZES["cpu"])


def _partial_path(run: RunDirectory, stage: str, label: str) -> Path:
    return run.eval_path / "partial" / run.eval_records_path(stage, label).name


def _write_stage(
    config: RunConfig,
    bundle: ModelBundle,
    model: PreTrainedModel | PeftModel,
    run: RunDirectory,
    stage: str,
    scores: Sequence[SetScore],
    entry: Mapping[str, Any],
    trained_in: RunDirectory,
) -> dict[str, Any]:
    summary = read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
    run.eval_path.mkdir(exist_ok=True)
    for score in scores:
        write_jsonl_atomic(run.eval_records_path(stage, score.label), score.records)
    kl = None
    if config.eval.kl_prompts:
        beside = base_beside(config, model, trained_in, untrained=stage == "before")
        completions = base_completions(config, bundle, model, beside, run.eval_path)
        if stage != "before":
            kl = measure_kl(bundle, model, beside, completions)
    scored = [_without_records(score) for score in scores]
    summary[stage] = {**entry, "sets": scored, "kl": _kl_entry(kl)}
    write_json_atomic(run.eval_summary_path, summary)
    for score in scores:
        remove_kept(_partial_path(run, stage, score.label))
    return dict(summary[stage])


def eval_identity(config: RunConfig, bundle: ModelBundle, sets: Sequence[EvalSet]) -> str:
    """Digest what is asked and how, so that scores of other questions are never taken for these."""
    evaluation = config.eval
    asked = [(each.label, each.retention, asked_identity(bundle, each)) for each in sets]
    sampling = evaluation.temperature, evaluation.num_samples, evaluation.seed
    return digest_of(asked, sampling, evaluation.kl_prompts, evaluation.kl_max_new_tokens)


def has_stage(
    run: RunDirectory, stage: str, config: RunConfig, bundle: ModelBundle, sets: Sequence[EvalSet], weights: str
) -> bool:
    """Whether a stage was scored already: these weights on these very questions."""
    if not run.eval_summary_path.is_file():
        return False
    entry = read_json(run.eval_summary_path).get(stage, {})
    return bool(entry.get("weights") == weights and entry.get("identity") == eval_identity(config, bundle, sets))


def base_completions(
    config: RunConfig,
    bundle: ModelBundle,
    model: PreTrainedModel | PeftModel,
    beside: Beside,
    directory: Path,
) -> list[BaseCompletion]:
    """Read the base model's completions, or let it write them now; the file's name tells what it belongs to."""
    prompts = [[Turn("user", prompt)] for _, prompt in general_prompts(config.eval.kl_prompts)]
    written_with = prompts_digest(bundle, prompts), bundle.stop_token_ids, config.eval.kl_max_new_tokens
    path = directory / f"base_completions-{digest_of(beside.identity, written_with)[:16]}.jsonl"
    if path.is_file():
        return [
            BaseCompletion(
                row["example_id"], row["prompt"], row["text"], tuple(row["prompt_ids"]), tuple(row["token_ids"])
            )
            for row in read_jsonl(path)
        ]
    with (
        Progress("base model: general prompts", config.eval.kl_prompts, "completions") as progress,
        beside.opened() as base,
    ):
        # The model itself with its adapter off keeps its engine; another copy, and its engine, live this long only.
        same = inner_model(base) is inner_model(model)
        backend = (bundle.backend if same else bundle.new_backend)(base, config.rollout, config.eval.batch_size)
        completions = write_base_completions(
            backend,
            bundle.renderer,
            config.eval.kl_prompts,
            config.eval.kl_max_new_tokens,
            tick(progress),
            context_window(bundle),
        )
    write_jsonl_atomic(path, [dataclasses.asdict(completion) for completion in completions])
    return completions


def measure_kl(
    bundle: ModelBundle, model: PreTrainedModel | PeftModel, beside: Beside, completions: Sequence[BaseCompletion]
) -> BaseKL:
    """Measure KL(base || model) on the base model's completions, with a progress bar."""
    with Progress("KL to the base model", len(completions), "completions") as progress:
        return kl_to_base(inner_model(model), beside.opened, completions, bundle.pad_token_id, tick(progress))


def _without_records(score: SetScore) -> dict[str, Any]:
    entry = {item.name: getattr(score, item.name) for item in dataclasses.fields(score) if item.name != "records"}
    return {**entry, "pass_at": {str(k): value for k, value in score.pass_at.items()}}  # as JSON gives it back


def _kl_entry(kl: BaseKL | None) -> dict[str, Any] | None:
    return None if kl is None else dataclasses.asdict(kl)
