"""Config -> the trainer: policy, teacher, source, screen and optimizer put together over a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from onpolicy_sdft.build.bundle import ModelBundle
from onpolicy_sdft.build.data import Data
from onpolicy_sdft.build.method import (
    keeps_gathered,
    learns_packed,
    make_attempt_options,
    make_objective,
    make_pairing,
    make_policy_source,
    make_review,
    make_scorer,
    make_screen,
    make_weights,
)
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.compiled import compile_layers
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.models.reading import GatheredCopy, LiveWeights, WeightProvider
from onpolicy_sdft.models.sizes import sizes_of
from onpolicy_sdft.rollout.drafts import DraftStore
from onpolicy_sdft.runs.progress import Progress, show_writing
from onpolicy_sdft.screening.screen import num_free_cores
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.feedback import AttemptOptions
from onpolicy_sdft.train.loop import Plan
from onpolicy_sdft.train.memory import memory_to_come
from onpolicy_sdft.train.optim import make_optimizer, make_schedule
from onpolicy_sdft.train.source import PolicySource, TargetSource
from onpolicy_sdft.train.state import TrainState
from onpolicy_sdft.train.step import Trainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.weights import PolicyWeights

logger = logging.getLogger(__name__)


def _compile(model: PreTrainedModel | PeftModel, backend: str) -> int:
    if backend != "ddp":
        raise ConfigError(
            f"train.compile=true does not go with {backend}, which changes layers while they run. "
            "Fix: --train.compile false, or the backend ddp."
        )
    return compile_layers(model)


def make_trainer(
    config: RunConfig,
    bundle: ModelBundle,
    data: Data,
    model: PreTrainedModel | PeftModel,
    backend: Backend,
    plan: Plan,
    progress: Progress,
) -> Trainer:
    """Put the parts of a step together over a model that has not been trained yet."""
    reader, sizes = _make_reader(config, model, backend), sizes_of(model)  # before parameters are divided
    packed = learns_packed(config, model, backend.device, backend.autocast)
    if config.train.compile:
        logger.info(f"{_compile(model, backend.name)} layers are compiled when they first learn")
    policy, optimizer = backend.prepare(Policy(model), make_optimizer(model, config.optim))
    weights = make_weights(config, model, backend.autocast, backend.shards, reader)
    if weights.num_bytes:
        logger.info(f"copies of earlier weights take {weights.num_bytes / 2**20:.1f} MiB ({config.teacher.device})")
    objective, num_workers = make_objective(config), num_free_cores(backend.num_local_ranks)
    to_come = memory_to_come(config, sizes, backend.name, backend.num_ranks)
    attempts = make_attempt_options(config, bundle, data, weights, num_workers)
    source = _make_source(config, bundle, plan, weights, progress, to_come, attempts)
    pairing = make_pairing(config, bundle.pad_token_id, packed=packed)
    state, reviewer = TrainState(), None
    if isinstance(source, PolicySource) and config.rollout.weights != "sharded":  # nothing scores divided weights
        reviewer = make_review(
            config,
            bundle,
            data.task,
            pairing,
            weights,
            source.answers,
            backend,
            num_workers,
            lambda: state.num_halvings,
        )
    return Trainer(
        policy=policy,
        source=source,
        screen=make_screen(config, bundle, data, num_workers),
        pairing=pairing,
        teacher_scorer=make_scorer(config, weights, objective, bundle.pad_token_id),
        objective=objective,
        weights=weights,
        backend=backend,
        schedule=make_schedule(optimizer, config.optim, plan.num_steps),
        max_grad_norm=config.optim.max_grad_norm,
        state=state,
        num_samples=config.rollout.num_samples,
        reviewer=reviewer,
        picks_best=config.screening.pick == "best",
    )


def _make_reader(config: RunConfig, model: PreTrainedModel | PeftModel, backend: Backend) -> WeightProvider:
    if backend.shards.in_place or config.rollout.weights == "sharded":
        return LiveWeights(model, backend.shards)
    keeps = keeps_gathered(config)
    reader = GatheredCopy(model, backend.device, backend.shards, keeps)
    logger.info(
        f"weights are gathered into {reader.num_bytes / 2**20:.1f} MiB to be read, which "
        + ("stay" if keeps else "are given back before learning")
    )
    return reader


def _make_source(
    config: RunConfig,
    bundle: ModelBundle,
    plan: Plan,
    weights: PolicyWeights,
    progress: Progress,
    learning_bytes: int,
    attempts: AttemptOptions | None,
) -> TargetSource:
    if config.train.targets != "policy":
        return TargetSource()
    rollout = config.rollout
    with weights.showing("live"):
        backend = bundle.backend(weights.model, rollout, rollout.batch_size, learning_bytes)
    store = DraftStore(rollout.draft_store_tokens)
    return make_policy_source(config, backend, plan.num_steps, weights, show_writing(progress), attempts, store)
