"""Where training starts when that is not the base model: the last weights of another run, such as the task before."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onpolicy_sdft.build.base import Start, is_merged
from onpolicy_sdft.config.computing import without_computing
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.eval.evaluate import eval_identity
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import differences, list_differences, read_json, write_json_atomic
from onpolicy_sdft.train.checkpoint import load_weights_and_moments, newest_checkpoint, start_digest

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.data.eval_sets import EvalSet
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.step import Trainer

logger = logging.getLogger(__name__)


def find_start(config: RunConfig) -> Start | None:
    """Return the run that a config starts from, checked to fit; None for the base model.

    Raises:
        ConfigError: If it trained another model, or other weights of it.
        RunDirectoryError: If there is no such run, or it has no whole checkpoint.
    """
    train = config.train
    if train.init_from is None:
        return None
    if Path(train.init_from).resolve() == Path(train.output_dir).resolve():
        raise ConfigError(f"train.init_from={train.init_from} is train.output_dir itself. Fix: name another.")
    run = RunDirectory.open(train.init_from, require=["config.yaml"])
    earlier = load_config(run.config_path)
    if train.adapter_handoff == "continue" and is_merged(earlier):
        raise ConfigError(
            f"The adapter of train.init_from={train.init_from} stands on a base that earlier tasks were merged into "
            "(its train.adapter_handoff=merge), so it cannot go on over the base model. Fix: "
            "--train.adapter_handoff merge."
        )
    mine, theirs = (_weights_of(each, train.adapter_handoff) for each in (config, earlier))
    if differing := differences(theirs, mine):
        raise ConfigError(
            f"train.init_from={train.init_from} is a run of another model: {list_differences(differing)}. Fix: "
            "the same model and adapters" + (", or --train.adapter_handoff merge." if config.lora.enabled else ".")
        )
    if train.keep_optimizer and earlier.optim.name != config.optim.name:
        raise ConfigError(
            f"train.keep_optimizer=true, but train.init_from={train.init_from} has the state of optim.name="
            f"{earlier.optim.name}, and this run is of {config.optim.name}. Fix: the same, or "
            "--train.keep_optimizer false."
        )
    found = newest_checkpoint(run, every_byte=True)
    if found is None:
        raise RunDirectoryError(
            f"train.init_from={train.init_from} has no checkpoint to start from. Fix: finish that run first "
            "(--train.resume auto)."
        )
    return Start(run, found[0], start_digest(found[0], with_optimizer=train.keep_optimizer))


def start_of_rank(config: RunConfig, backend: Backend) -> Start | None:
    """Return the start that the first rank found, with a digest of what this rank would load under its name.

    Every rank must call it; ranks whose digests differ are refused with the run's identity.
    """
    start = backend.on_first(lambda: find_start(config))
    if start is None or backend.rank == 0 or config.train.adapter_handoff == "merge":  # all load the base it is in
        return start
    own = start_digest(start.checkpoint, with_optimizer=config.train.keep_optimizer, reads=True)
    return dataclasses.replace(start, digest=own)


def _weights_of(config: RunConfig, handoff: str) -> dict[str, object]:
    """What must be the same so that one run's weights mean anything in another."""
    model = without_computing("model", dataclasses.asdict(config.model))
    del model["dtype"]  # how they are held, not what they are
    if handoff == "merge":
        return {"model": model, "lora.enabled": config.lora.enabled}
    lora = {name: value for name, value in dataclasses.asdict(config.lora).items() if name != "dropout"}
    return {"model": model, "lora": lora if config.lora.enabled else None}


def start_mark(start: Start | None, base: str) -> str:
    """Say which weights a run starts from: the mark of their scores.

    Args:
        start: The run that it goes on from.
        base: What tells the base model that was loaded.
    """
    return f"start {start.digest if start else 'base model'} on {base}"


def trained_mark(step: int, num_loss_tokens: int, base: str) -> str:
    """Say how far weights were trained, and on which base: the mark of their scores."""
    return f"step {step}, {num_loss_tokens} loss tokens on {base}"


def load_start_weights(config: RunConfig, start: Start, trainer: Trainer) -> None:
    """Put the weights of the run before into a policy that has not been trained yet; a task starts here.

    Every rank must call it. With ``train.adapter_handoff=merge`` they are in the base already.
    """
    if config.train.adapter_handoff == "continue":
        load_weights_and_moments(
            start.checkpoint, trainer.backend, trainer.schedule, with_optimizer=config.train.keep_optimizer
        )
        logger.info(f"starting from {start.checkpoint}")
    trainer.weights.start_stage()


def inherit_scores(
    config: RunConfig,
    bundle: ModelBundle,
    sets: Sequence[EvalSet],
    run: RunDirectory,
    start: Start | None,
    base: str,
) -> bool:
    """Take scores of the weights this run starts from that another run measured already, on the very same questions.

    Args:
        config: Of this run.
        bundle: Its model, as it was loaded.
        sets: Its questions.
        run: Where the scores go.
        start: The run that this one goes on from.
        base: What tells the base model that was loaded.

    Returns:
        Whether there were any; then they are this run's scores ``before``.
    """
    mark = start_mark(start, base)
    if start is not None:
        # A base that the run before is merged into is another; it was made of the base which that run's record tells.
        end = "" if config.train.adapter_handoff == "merge" else f" on {base}"
        source, stage, begin = start.run, "after", f"step {start.step},"
    elif config.eval.base_scores is not None:
        source, stage, begin, end = RunDirectory.open(config.eval.base_scores), "before", mark, ""
    else:
        return False
    found = read_json(source.eval_summary_path) if source.eval_summary_path.is_file() else {}
    entry, scored = found.get(stage, {}), str(found.get(stage, {}).get("weights"))
    is_of_these = scored.startswith(begin) and scored.endswith(end)
    if not is_of_these or entry.get("identity") != eval_identity(config, bundle, sets):
        logger.info(f"{source.path} has no scores of these weights on these very questions: they are measured")
        return False
    run.eval_path.mkdir(exist_ok=True)
    for scores in entry["sets"]:
        label = scores["label"]
        shutil.copyfile(source.eval_records_path(stage, label), run.eval_records_path("before", label))
    for completions in source.eval_path.glob("base_completions-*.jsonl"):
        shutil.copyfile(completions, run.eval_path / completions.name)
    summary = read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
    write_json_atomic(
        run.eval_summary_path, {**summary, "before": {**entry, "weights": mark, "taken_from": str(source.path)}}
    )
    logger.info(f"scores before training are those of {source.path}")
    return True
