"""Distil a training set: let the base model rewrite every demonstration once, screen, keep the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.build.bundle import load_bundle, require_writer
from onpolicy_sdft.build.cuda import gpu_names
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.build.identity import base_identity, with_recorded_date
from onpolicy_sdft.build.method import make_pairing, make_review, make_sampling, make_screen, make_weights
from onpolicy_sdft.build.preflight import print_preflight
from onpolicy_sdft.config.check_method import live_options_set
from onpolicy_sdft.config.load import dump_config
from onpolicy_sdft.data.inputs import DISTILLED_NAME, input_digests, input_files, task_digests
from onpolicy_sdft.data.tokenising import tokenizer_digest
from onpolicy_sdft.errors import ConfigError, DataError, RunDirectoryError
from onpolicy_sdft.eval.first_probe import choose_rows, probe_first
from onpolicy_sdft.offline.legacy import legacy_agrees
from onpolicy_sdft.offline.rewrite import Judge, LegacyJudge, ScreenJudge, count_rows, distill
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.files import differences, list_differences, read_json, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import collect_manifest
from onpolicy_sdft.runs.progress import Progress, show_writing
from onpolicy_sdft.train.probe import Probe
from onpolicy_sdft.train.source import PolicySource
from onpolicy_sdft.types import SamplingParams

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.data import Data
    from onpolicy_sdft.config.schema import RunConfig


_IDENTITY, _SUMMARY = "identity.json", "summary.json"


@dataclass(frozen=True, slots=True)
class DistillOutcome:
    """What a distilling job left behind."""

    path: Path  # the distilled file
    summary: Mapping[str, Any]


def run_distill(config: RunConfig, command: Sequence[str]) -> DistillOutcome:
    """Rewrite the demonstrations of a config with its model.

    Everything that can be wrong with options, data and model is found before the first row is written. An interrupted
    job goes on with ``distill.resume=auto``: no row is lost or written twice.

    Raises:
        ConfigError: If an option of live rollouts is set.
        RunDirectoryError: If the directory holds rows and may not be gone on with, they are of other settings, or
            another process is at work in it.
    """
    _refuse_live_options(config)
    directory = Path(config.distill.output_dir)
    files = input_digests(input_files(config, is_scored=False))
    task, loaded = load_rows(config)
    if any(not row.response for row in loaded.demonstrations):
        raise DataError(f"{loaded.where}: rows have no response to rewrite. Fix: --data.response_column COLUMN.")
    require_writer(config)
    if config.distill.resume == "auto":
        config = with_recorded_date(config, directory / "manifest.json")
    bundle = load_bundle(config)
    data = make_prompt_pairs(config, bundle, task, loaded)
    print_preflight(data, config, bundle, screens=config.distill.rules == "default")
    if config.distill.rules == "legacy":
        for pair in data.prepared.pairs:  # a row that its rules cannot judge is found before anything is written
            legacy_agrees(pair.demonstration.response, pair.demonstration, config.task.name)
    written = ("config.yaml", "manifest.json", "acceptance.png", _IDENTITY, _SUMMARY)
    with claimed(directory, "distill.output_dir", "distillation", written):
        _claim(directory, config, data, command, files, bundle)
        backend = bundle.backend(bundle.loaded.model, config.rollout, config.rollout.batch_size)
        pairs = data.prepared.pairs
        with Progress("distill", len(pairs), "rows") as progress:
            source = PolicySource(backend, make_sampling(config, num_steps=1), show_writing(progress))
            judge = _judge(config, bundle, data, source)
            rows = distill(
                pairs,
                directory / DISTILLED_NAME,
                lambda asked, attempt: source.rollouts(asked, step=0, attempt=attempt),
                judge,
                config.distill.batch_size,
                lambda count: progress.update(count, writing=None),
            )
        summary = dict(count_rows(rows))
        write_json_atomic(directory / _SUMMARY, summary)
    return DistillOutcome(directory / DISTILLED_NAME, summary)


def _refuse_live_options(config: RunConfig) -> None:
    set_ones = [f"rollout.{name}" for name in live_options_set(config.rollout)]
    if config.teacher.weights != "live":
        set_ones.append("teacher.weights")
    if config.feedback.enabled:
        set_ones.append("feedback.enabled")
    if config.screening.weigh_by_failure:
        set_ones.append("screening.weigh_by_failure")
    if set_ones:
        raise ConfigError(
            f"{set_ones[0]} is an option of training on live rollouts; sdft distill asks the base model once per row, "
            "under the teacher's prompt. Fix: leave it at its default."
        )


def _judge(config: RunConfig, bundle: ModelBundle, data: Data, source: PolicySource) -> Judge:
    """Return what judges rewrites, after a probe of what the base model writes with these settings."""
    if config.distill.rules == "legacy":
        return LegacyJudge(config.task.name, bundle.renderer.decode, bundle.renderer.response_ids)
    screen = make_screen(config, bundle, data)
    weights = make_weights(config, bundle.loaded.model, nullcontext)
    pairing = make_pairing(config, bundle.pad_token_id)
    reviewer = make_review(config, bundle, data.task, pairing, weights, source.answers)
    if config.probe.num_examples:
        rows = choose_rows(data.prepared.pairs, config.probe.num_examples, config.train.seed)
        probe_first(config, Probe(rows, source, screen, reviewer))
    return ScreenJudge(screen, reviewer)


def _claim(
    directory: Path,
    config: RunConfig,
    data: Data,
    command: Sequence[str],
    files: Mapping[str, Mapping[str, str]],
    bundle: ModelBundle,
) -> None:
    """Write what the rows will be of, or make sure that those there are of these very settings."""
    base = base_identity(bundle)
    identity = {**_identity(config, data), **base, "tokenizer": tokenizer_digest(bundle.loaded.tokenizer)}
    path = directory / _IDENTITY
    if (directory / DISTILLED_NAME).exists() and config.distill.resume != "auto":
        raise RunDirectoryError(
            f"distill.output_dir={directory} already holds {DISTILLED_NAME}. Choose another, go on with it "
            "(--distill.resume auto), or delete it."
        )
    if (directory / DISTILLED_NAME).exists() and not path.exists():
        raise RunDirectoryError(
            f"{directory} holds {DISTILLED_NAME} but no {_IDENTITY}: nothing says which settings wrote its rows. "
            "Choose another distill.output_dir, or delete it."
        )
    if path.exists() and config.distill.resume == "auto":
        saved = read_json(path)
        if differing := differences(saved, identity):
            raise RunDirectoryError(
                f"{directory} was distilled with other settings: {list_differences(differing)}. Fix: the same "
                "settings, or another distill.output_dir."
            )
        return
    manifest = collect_manifest(
        command=list(command), seeds={"train.seed": config.train.seed, "data.seed": config.data.seed},
        data_fingerprint={"train": data.loaded.fingerprint}, gpu_names=gpu_names(),
        extra={"files": files, "base": base, "date": bundle.renderer.writer.date},
    )  # fmt: skip
    write_text_atomic(directory / "config.yaml", dump_config(config))
    write_json_atomic(directory / "manifest.json", manifest)
    write_json_atomic(path, identity)


def _identity(config: RunConfig, data: Data) -> dict[str, Any]:
    """What decides which rows are written."""
    whole = dataclasses.asdict(config)
    return {
        "data": data.loaded.fingerprint,
        "prompts and targets": data.prepared.digest,
        "task files": task_digests(config),
        "model": {**whole["model"], "cache_dir": None},
        "rollout": {
            **dataclasses.asdict(SamplingParams.of(config.rollout)),
            **{name: whole["rollout"][name] for name in ("max_new_tokens", "decode_copy")},
        },
        "rules": config.distill.rules,
        "seed": config.train.seed,
        **{section: whole[section] for section in ("task", "screening", "probe")},
        "context": {**whole["context"], "date": None},  # prompts tell it, of templates that have one
    }
