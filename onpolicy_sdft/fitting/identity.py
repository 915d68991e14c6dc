"""What makes a run the run it is, and the record of it: claimed before anything is written."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.build.cuda import gpu_names
from onpolicy_sdft.build.identity import asked_identity, recorded_date
from onpolicy_sdft.config.computing import without_computing
from onpolicy_sdft.config.load import dump_config
from onpolicy_sdft.data.inputs import task_digests
from onpolicy_sdft.data.tokenising import tokenizer_digest
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import collect_manifest
from onpolicy_sdft.train.checkpoint import checkpoint_to_resume

if TYPE_CHECKING:
    from onpolicy_sdft.build.base import Start
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.data import Data
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.data.eval_sets import EvalSet
    from onpolicy_sdft.train.backend import Backend

logger = logging.getLogger(__name__)

_DATE = "date in the chat template (context.date)"
_MARK_SECONDS = 10

#: Sections that a resumed run must have as the run it goes on with.
_FROZEN_SECTIONS = ("lora", "context", "feedback", "screening", "probe", "objective", "teacher", "optim", "gate")


def claim_run(
    config: RunConfig,
    data: Data,
    identity: Mapping[str, Any],
    command: Sequence[str],
    backend: Backend,
    held: ExitStack,
    files: Mapping[str, Mapping[str, str]],
) -> RunDirectory:
    """Make the run directory ours, on the first rank: refuse another run's, write what this run is."""
    run = RunDirectory.create(config.train.output_dir, resume=config.train.resume == "auto")
    held.enter_context(run.claimed())
    checkpoint_to_resume(run, identity)
    _write_identity(config, data, identity, run, command, backend, files)
    return run


def earlier_date(config: RunConfig) -> str | None:
    """Return ``context.date``; of a run that goes on and gives none, the date that its chat template saw before."""
    if config.context.date is not None or config.train.resume != "auto":
        return config.context.date
    date = recorded_date(RunDirectory(Path(config.train.output_dir)).manifest_path)
    if date:
        logger.info(f"the chat template goes on with the date of the run's start: context.date={date}")
    return date


def see_one_directory(run: RunDirectory, backend: Backend) -> None:
    """Refuse ranks that would read another output directory than the first one writes to; every rank must call it.

    Raises:
        ConfigError: With each rank's working directory.
    """
    if backend.num_ranks == 1:
        return
    mark = run.path / ".seen"
    token = backend.on_first(lambda: _leave_mark(mark))
    seen = backend.gather((_finds(mark, token), str(Path.cwd())))
    backend.on_first(lambda: mark.unlink(missing_ok=True))
    if blind := [rank for rank, (sees, _) in enumerate(seen) if not sees]:
        raise ConfigError(
            f"Rank {blind[0]}, in {seen[blind[0]][1]}, does not see what rank 0, in {seen[0][1]}, writes to "
            f"train.output_dir={str(run.path)!r}. Fix: an absolute path on a file system that all ranks share."
        )


def _leave_mark(mark: Path) -> str:
    token = secrets.token_hex(8)
    write_text_atomic(mark, token)
    return token


def _finds(mark: Path, token: str) -> bool:
    for _ in range(_MARK_SECONDS):  # a network file system shows a new file late
        if mark.is_file() and mark.read_text(encoding="utf-8") == token:
            return True
        time.sleep(1)
    return False


def identity_of(
    config: RunConfig,
    data: Data,
    bundle: ModelBundle,
    start: Start | None,
    validation: Sequence[EvalSet],
    gated: Sequence[EvalSet],
    base: Mapping[str, Any],
) -> dict[str, Any]:
    """What must not change between a checkpoint and the run that goes on from it: what was read, not its name alone.

    Ranks that learn together must have it in common too. What is scored before and after training may change: its
    scores are then measured anew.

    Args:
        config: The run's options.
        data: Its rows and their prompts.
        bundle: Its tokenizer and chat template.
        start: The weights it began with, where those are another run's.
        validation: What chooses the best checkpoint, and ends the run.
        gated: What the gate asks.
        base: :func:`~onpolicy_sdft.build.identity.base_identity` of the model before adapters.
    """
    frozen = dataclasses.asdict(config)
    same = ("targets", "seed", "batch_size", "precision")
    train = {key: frozen["train"][key] for key in same}
    if config.train.max_steps is None:
        train["num_epochs"] = config.train.num_epochs
    moving = config.rollout.temperature_end is not None or config.rollout.min_p_end is not None
    if config.optim.schedule != "constant" or moving:
        train["max_steps"] = config.train.max_steps
    return {
        "data": data.loaded.fingerprint,
        _DATE: bundle.renderer.writer.date,
        "prompts and targets": data.prepared.digest,  # as tokens: chat template, context template, dates, tokenizer
        "tokenizer": tokenizer_digest(bundle.loaded.tokenizer),  # of texts that no prompt has: rollouts
        **base,
        "task": frozen["task"],
        "task files": task_digests(config),
        "model": without_computing("model", frozen["model"]),
        **{section: frozen[section] for section in _FROZEN_SECTIONS},
        "context": {**frozen["context"], "date": None},  # said above, for templates that have one
        "rollout": without_computing("rollout", frozen["rollout"]),
        "replay": [source["task"] for source in frozen["replay"]["sources"]],  # the rest is in the data's fingerprint
        "start": None if start is None else [start.digest, config.train.adapter_handoff, config.train.keep_optimizer],
        "train": train,
        "questions of the validation": [[each.label, asked_identity(bundle, each)] for each in validation],
        "questions of the gate": [[each.label, asked_identity(bundle, each)] for each in gated],
    }


def _write_identity(
    config: RunConfig,
    data: Data,
    identity: Mapping[str, Any],
    run: RunDirectory,
    command: Sequence[str],
    backend: Backend,
    files: Mapping[str, Mapping[str, str]],
) -> None:
    read = {
        "data_fingerprint": {"train": data.loaded.fingerprint},
        "files": files,
        "base": {name: value for name, value in identity.items() if name.startswith("base ")},
        "date": identity[_DATE],  # empty: no chat template reads the clock
        "num_demonstrations": len(data.prepared.pairs),
        "skipped_rows": len(data.loaded.skipped),
        "dropped_ids": list(data.prepared.dropped_ids),
        "trimmed_ids": list(data.prepared.trimmed_ids),
        "bad_rows": len(data.prepared.bad_rows),
    }
    manifest = collect_manifest(
        command=list(command),
        seeds={"train.seed": config.train.seed, "eval.seed": config.eval.seed, "data.seed": config.data.seed},
        gpu_names=gpu_names(),
        extra={"num_ranks": backend.num_ranks, **read},
    )
    if run.manifest_path.is_file():
        # A resumed run keeps the record of its start, but what it read is what it reads now: without a checkpoint
        # nothing held it to what it read then.
        manifest = {**read_json(run.manifest_path), **read, "resumed": [*_resumptions(run), manifest]}
    write_text_atomic(run.config_path, dump_config(config))
    write_json_atomic(run.manifest_path, manifest)


def _resumptions(run: RunDirectory) -> list[Any]:
    return list(read_json(run.manifest_path).get("resumed", []))
