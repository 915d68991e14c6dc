"""The main job: score the base model, train, score again, export."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.build.base import Start, base_of, has_base, make_base
from onpolicy_sdft.build.bundle import ModelBundle, load_bundle, require_writer
from onpolicy_sdft.build.data import Data, load_rows, make_prompt_pairs, refuse_unaskable
from onpolicy_sdft.build.given import NOTHING, Given
from onpolicy_sdft.build.identity import asked_identity, base_identity, start_identity
from onpolicy_sdft.build.loaded import ReadyModel
from onpolicy_sdft.build.preflight import print_preflight
from onpolicy_sdft.build.trainer import make_trainer
from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.scores import score_metric, scores_by_label
from onpolicy_sdft.data.eval_sets import EvalSet, load_eval_sets
from onpolicy_sdft.data.inputs import input_digests, input_files
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.evaluate import evaluate_stage, has_stage, score_sets
from onpolicy_sdft.eval.first_probe import keep_probe, probe_first, probe_of, refresh_run, restore_probe
from onpolicy_sdft.eval.retention import general_prompts, refuse_unanswerable
from onpolicy_sdft.eval.turn_end import report_turn_end
from onpolicy_sdft.fitting.distilled import use_distilled, warn_of_other_writer
from onpolicy_sdft.fitting.export import model_facts
from onpolicy_sdft.fitting.guards import make_guards
from onpolicy_sdft.fitting.held_out import gate_sets, hold_back, note_overlap, refuse_unchecked
from onpolicy_sdft.fitting.identity import claim_run, earlier_date, identity_of, see_one_directory
from onpolicy_sdft.fitting.start import inherit_scores, load_start_weights, start_mark, start_of_rank, trained_mark
from onpolicy_sdft.fitting.verdict import RunVerdict, reach_verdict
from onpolicy_sdft.models.export import export_model
from onpolicy_sdft.models.language import other_parts
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.ready import make_ready
from onpolicy_sdft.models.sizes import count_parameters
from onpolicy_sdft.rollout.hf import CollectiveDecoding
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, write_json_atomic
from onpolicy_sdft.runs.manifest import git_state
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.callbacks import Callback, scores_of
from onpolicy_sdft.train.checkpoint import Checkpointer
from onpolicy_sdft.train.launch import make_backend
from onpolicy_sdft.train.loop import FitResult, Hooks, Loop, Plan, make_plan
from onpolicy_sdft.train.panel import TrainProgress
from onpolicy_sdft.train.step import Trainer
from onpolicy_sdft.train.trackers import check_trackers, open_trackers
from onpolicy_sdft.types import Ranks

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.train.probe import Probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What a training job left behind."""

    run: RunDirectory
    result: FitResult
    summary: Mapping[str, Any]  # eval/summary.json; empty when nothing was scored
    is_first: bool = True  # of several ranks: the one that writes the report
    verdict: RunVerdict | None = None  # how the model compares with the start; None where none was left
    trained: ReadyModel | None = None  # the model as it is in memory; None with several ranks


def fit(config: RunConfig, command: Sequence[str] = (), given: Given = NOTHING) -> TrainOutcome:
    """Run the main job of a config.

    Everything that can be wrong with options, data and model is found before the first step; an interrupted run
    leaves a checkpoint and is resumed with ``train.resume=auto``.

    Args:
        config: Checked options.
        command: The command line, for the manifest.
        given: Objects in the place of what the config names.

    Raises:
        SdftError: On anything the user can mend.
    """
    with ExitStack() as held:
        return _fit(config, command, given, held)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a run is made of, loaded and checked."""

    config: RunConfig  # with what was settled while it was loaded
    backend: Backend
    start: Start | None
    bundle: ModelBundle
    data: Data
    sets: Sequence[EvalSet]
    validation: Sequence[EvalSet]
    gated: Sequence[EvalSet]
    plan: Plan
    files: Mapping[str, Mapping[str, str]]  # digests of what was read, by option and path
    base: Mapping[str, Any]  # :func:`base_identity` of the model before adapters

    @property
    def base_mark(self) -> str:
        """What tells the base model in marks of scores."""
        return start_identity(self.bundle, self.base)

    @property
    def is_scored(self) -> bool:
        """Whether the model is scored before training and after it."""
        return self.config.eval.before_and_after and bool(self.sets or self.config.eval.kl_prompts)


def _load(config: RunConfig, backend: Backend, given: Given) -> _Loaded:
    """Load rows, model and questions, and say what was found; whatever does not fit is refused here."""
    require_writer(config, backend)
    files = backend.on_first(lambda: input_digests(input_files(config)))  # before they are read
    task, rows = load_rows(config, given.tasks)
    rows, held_back = hold_back(config, task, rows)
    sets = load_eval_sets(evaluation_sets(config), tasks=given.tasks)
    validation = load_eval_sets(config.eval.validation, "eval.validation", given.tasks)
    refuse_unchecked(validation)
    general_prompts(config.eval.kl_prompts)  # asking for more than there are is refused here, not after training
    date = backend.on_first(lambda: earlier_date(config))
    config = dataclasses.replace(config, context=dataclasses.replace(config.context, date=date))
    with warnings.catch_warnings(action="always", category=UserWarning):
        # Weights that will be divided go to the device part by part.
        device = backend.device if backend.shards.in_place else torch.device("cpu")
        together = CollectiveDecoding(backend, backend.inside) if config.rollout.weights == "sharded" else None
        start = start_of_rank(config, backend)
        based = _with_base(config, start, backend)
        bundle = load_bundle(based, backend, device, together, given=given.model if based is config else None)
    pairs = make_prompt_pairs(
        config, bundle, task, rows,
        asks_teacher=config.train.targets == "policy", num_local_ranks=backend.num_local_ranks,
    )  # fmt: skip
    sets, validation = (note_overlap(rows.demonstrations, each, says=backend.rank == 0) for each in (sets, validation))
    data = use_distilled(config, bundle, pairs)
    gated = gate_sets(config, task, held_back, sets)
    refuse_unaskable(bundle, [*sets, *validation, *gated])
    refuse_unanswerable(bundle, config.eval.kl_prompts if config.eval.before_and_after else 0)
    plan = make_plan(config.train, len(data.prepared.pairs), backend.num_ranks)
    if backend.rank == 0:
        print_preflight(data, config, bundle, screens=config.train.targets == "policy")
        report_turn_end(config, bundle, data.prepared.pairs, backend.device)
    return _Loaded(config, backend, start, bundle, data, sets, validation, gated, plan, files, base_identity(bundle))


def _claim(found: _Loaded, command: Sequence[str], held: ExitStack) -> tuple[RunDirectory, dict[str, Any]]:
    """Make the run directory ours, where all ranks read the same; return it with the run's identity."""
    config, backend, data, bundle = found.config, found.backend, found.data, found.bundle
    identity = identity_of(config, data, bundle, found.start, found.validation, found.gated, found.base)
    if backend.num_ranks > 1:
        facts = dataclasses.asdict(config)
        facts["model"] = {**facts["model"], "cache_dir": None}
        facts |= {name: value for name, value in identity.items() if name not in facts}
        facts["data fingerprint"] = identity["data"]
        facts["questions of eval.sets"] = [[each.label, asked_identity(bundle, each)] for each in found.sets]
        backend.refuse_disagreement({**facts, "code": git_state(Path(__file__).parents[2])})
    run = backend.on_first(partial(claim_run, config, data, identity, command, backend, held, found.files))
    if backend.rank == 0:
        held.push(partial(_write_error, run))
    see_one_directory(run, backend)
    return run, identity


def _prepare(found: _Loaded) -> PreTrainedModel | PeftModel:
    """Return the model as it is trained: adapters in place, tried once before anything depends on it."""
    config, backend = found.config, found.backend
    loaded = found.bundle.loaded
    model = prepare_trainable(loaded.model, config.lora, config.model, config.train.seed, loaded.tokenizer)
    if other_parts(loaded.model) and not backend.shards.in_place:
        raise ConfigError(
            f"{config.model.name} sees pictures too, and its weights would be divided among ranks with parts that are "
            "never read. Fix: launch/accelerate/ddp.yaml, zero1.yaml or zero2.yaml."
        )
    with backend.autocast():  # as it learns: some attention kernels take no float32
        make_ready(model, loaded)
    trainable, total = count_parameters(model)
    logger.info(f"{trainable / 1e6:.2f} M of {total / 1e6:.1f} M parameters are trained on {backend.num_ranks} ranks")
    return model


def _set_determinism(config: RunConfig) -> None:
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=True)
    # A debugging aid of torch's that would cost a pass over every new buffer.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _fit(config: RunConfig, command: Sequence[str], given: Given, held: ExitStack) -> TrainOutcome:
    check_trackers(config.train.trackers)
    _set_determinism(config)
    backend = make_backend(config.train.precision, config.train.rank_timeout_seconds)
    backend.check(config)
    found = _load(config, backend, given)
    config, bundle, data, plan = found.config, found.bundle, found.data, found.plan
    if backend.rank == 0:
        warn_of_other_writer(config, found.base)
    model = _prepare(found)
    run, identity = _claim(found, command, held)

    title = str(config.train.output_dir)
    progress = TrainProgress("train", plan.num_steps, "steps", title=title, enabled=backend.rank == 0)
    trainer = make_trainer(config, bundle, data, model, backend, plan, progress)
    weights = trainer.weights
    model = weights.model  # from here on weights are read only
    if found.start is not None:
        load_start_weights(config, found.start, trainer)
    probe = _probe(found, trainer, run)  # before anything that takes long: it may refuse the settings
    callbacks = [*given.callbacks, *_open_trackers(config, run, backend, held)]
    _score_start(found, run, weights, callbacks)
    guards = make_guards(config, bundle, data, found.gated, trainer, run, identity, progress)
    if _resume(config, run, guards.checkpointer, trainer, progress):
        restore_probe(trainer)
    if backend.rank == 0:
        _recall(found, run, progress)

    def export(path: Path, summary: Mapping[str, Any], verdict: RunVerdict | None = None) -> None:
        gathered = backend.weights() if bundle.together is not None else None  # nothing whole is there to be read
        with weights.showing("live"):
            backend.on_first(partial(_export, config, bundle, model, data, run, path, summary, gathered, verdict))

    validate = partial(_validate, config, bundle, weights, found.validation, backend) if found.validation else None
    loop = Loop(
        trainer, data.prepared.pairs, plan, config, run, guards.checkpointer, progress,
        hooks=Hooks(
            validate=validate,
            save_best=lambda: export(run.best_path, {}),
            refresh=partial(refresh_run, trainer, probe) if probe is not None else None,
            callbacks=callbacks,
        ),
        guards=guards,
    )  # fmt: skip
    result = loop.fit()
    is_first = backend.rank == 0
    record = {"reason": result.reason, "best_score": trainer.state.best_score}
    backend.on_first(lambda: write_json_atomic(run.result_path, record))
    if result.exit_code:
        return TrainOutcome(run, result, {}, is_first)
    summary = _score_end(found, run, trainer, callbacks)
    verdict = backend.on_first(lambda: reach_verdict(run, guards.gate, config.gate, summary))
    export(run.model_path, summary, verdict)
    backend.on_first(lambda: write_json_atomic(run.result_path, {**record, "verdict": dataclasses.asdict(verdict)}))
    for callback in callbacks:
        callback.on_save(trainer.state.step, run.model_path)
    # Of several ranks none keeps it: what holds their process group has to be gone before the group is.
    trained = ReadyModel(config, bundle, model, run) if backend.num_ranks == 1 else None
    return TrainOutcome(run, result, summary, is_first, verdict, trained)


def _probe(found: _Loaded, trainer: Trainer, run: RunDirectory) -> Probe | None:
    """Probe a run that has not begun yet; return its probe, if it has one."""
    config, backend = found.config, found.backend
    probe = probe_of(config, trainer, found.data.prepared.pairs)
    goes_on = config.train.resume == "auto" and backend.on_first(lambda: bool(run.checkpoint_steps()))
    if probe is not None and not goes_on:
        probe_first(config, probe)
        keep_probe(trainer)
    return probe


def _open_trackers(config: RunConfig, run: RunDirectory, backend: Backend, held: ExitStack) -> list[Callback]:
    """Open the trackers on the first rank, so that ranks do not write the same figures; they close with the run."""
    if backend.rank or not config.train.trackers:
        return []
    tracking = open_trackers(config.train.trackers, run.path, config.tracking, dataclasses.asdict(config))
    held.callback(tracking.finish)
    return [tracking]


def _score_start(found: _Loaded, run: RunDirectory, weights: PolicyWeights, callbacks: Sequence[Callback]) -> None:
    """Score the model before training, unless this run or the one it starts from has the scores."""
    config, bundle, sets, start, backend = found.config, found.bundle, found.sets, found.start, found.backend
    if not found.is_scored:
        return
    mark = start_mark(start, found.base_mark)
    if backend.on_first(
        lambda: (
            has_stage(run, "before", config, bundle, sets, mark)
            or inherit_scores(config, bundle, sets, run, start, found.base_mark)
        )
    ):
        return
    with weights.showing("live"):
        scores = evaluate_stage(config, bundle, weights.model, sets, run, "before", backend, weights=mark)
    for callback in callbacks:
        callback.on_evaluate(0, "before", scores_of(scores))


def _score_end(found: _Loaded, run: RunDirectory, trainer: Trainer, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Score the trained model; return ``eval/summary.json`` with that stage, or nothing."""
    if not found.is_scored:
        return {}
    config, state, weights = found.config, trainer.state, trainer.weights
    taught = trained_mark(state.step, state.total_loss_tokens, found.base_mark)
    with weights.showing("live"):
        scores = evaluate_stage(
            config, found.bundle, weights.model, found.sets, run, "after", found.backend, weights=taught
        )
    for callback in callbacks:
        callback.on_evaluate(state.step, "after", scores_of(scores))
    return {"after": scores}


def _write_error(
    run: RunDirectory, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> None:
    """Write down which error ends a run, for whoever started it as one of several."""
    if kind is not None:
        write_json_atomic(run.result_path, {"reason": str(error), "error": kind.__name__})


def _with_base(config: RunConfig, start: Start | None, backend: Backend) -> RunConfig:
    """Return the config with the model that is loaded: the base model, or a base that adapters were merged into."""
    if not backend.on_first(lambda: has_base(config)):
        return config
    backend.on_first(lambda: make_base(config, start))
    return dataclasses.replace(config, model=base_of(RunDirectory(Path(config.train.output_dir)), config))


def _validate(
    config: RunConfig, bundle: ModelBundle, weights: PolicyWeights, sets: Sequence[EvalSet], ranks: Ranks
) -> dict[str, float]:
    with weights.showing("live"):
        scores = score_sets(config, bundle, weights.model, sets, "validation", ranks)
    return {score_metric(score.label): score.score for score in scores if score.score is not None}


def _export(
    config: RunConfig,
    bundle: ModelBundle,
    model: PreTrainedModel | PeftModel,
    data: Data,
    run: RunDirectory,
    directory: Path,
    summary: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None,
    verdict: RunVerdict | None,
) -> None:
    facts = model_facts(config, data.loaded.where, data.loaded.fingerprint)
    facts["rows"] = str(len(data.prepared.pairs))
    if verdict is not None:
        facts["compared with the start"] = verdict.text
    base = base_of(run, config).name
    export_model(model, bundle.loaded.tokenizer, directory, base, facts, summary, weights)


def _recall(found: _Loaded, run: RunDirectory, progress: TrainProgress) -> None:
    """Show what the run directory has already: the scores of the start, and the steps of a resumed run."""
    if found.is_scored:
        progress.show_scores(0, scores_by_label(scores_of(read_json(run.eval_summary_path)["before"])))
    for record in run.read_metrics():
        progress.recall_step(record["step"], record["values"])


def _resume(
    config: RunConfig, run: RunDirectory, checkpointer: Checkpointer, trainer: Trainer, progress: TrainProgress
) -> bool:
    """Restore the newest checkpoint if there is one and it is asked for; return whether it was."""
    if config.train.resume != "auto":
        return False
    source = checkpointer.resume(trainer.state)
    dropped = trainer.backend.on_first(lambda: run.truncate_after_step(trainer.state.num_logged))
    if source is not None:
        progress.begin_at(trainer.state.num_logged)
        logger.info(f"resuming from {source} (step {trainer.state.step}; {dropped} later log lines dropped)")
    return source is not None
