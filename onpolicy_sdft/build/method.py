"""Config -> the parts that make a method: objective, teacher, sampling, pairing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from onpolicy_sdft.build.bundle import ModelBundle, context_window
from onpolicy_sdft.build.data import Data
from onpolicy_sdft.data.templates import TeacherContext, template_wording
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.packing import examine
from onpolicy_sdft.models.shards import WHOLE, Shards
from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.rollout.backend import NO_RECORD
from onpolicy_sdft.screening.mentions import Mentions
from onpolicy_sdft.screening.review import BarePromptReview, Prompts
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.protocol import Checker
from onpolicy_sdft.train.feedback import AttemptOptions, FeedbackSource
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.scoring import Scorer
from onpolicy_sdft.train.source import PolicySource, Sampling
from onpolicy_sdft.train.teacher_scorer import TeacherScorer
from onpolicy_sdft.types import (
    ONE_RANK,
    PromptPair,
    Ranks,
    RecordOptions,
    Rollout,
    RolloutRequest,
    SamplingParams,
    T,
    Turn,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.reading import WeightProvider
    from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend
    from onpolicy_sdft.rollout.drafts import DraftStore
    from onpolicy_sdft.tasks.protocol import Task

logger = logging.getLogger(__name__)

#: What a chat template and the wording of a prompt add to its texts, at most.
_TEMPLATE_TOKENS = 128

Autocast = Callable[[], AbstractContextManager[Any]]


def make_objective(config: RunConfig) -> Objective:
    """Return the objective of a config."""
    objective = config.objective
    return _by_name(Objective, objective, anchor_weight=objective.anchor_kl, importance=objective.importance == "token")


def _by_name(kind: type[T], options: object, **others: Any) -> T:
    """Make an object of options that are called as its fields, but for ``others``."""
    names = [each.name for each in fields(kind) if each.name not in others]  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names}, **others)


def anchor_of(config: RunConfig) -> Literal["stage", "base"] | None:
    """Return which weights the objective is anchored to, if it is."""
    return config.objective.anchor if config.objective.anchor_kl else None


def make_scorer(config: RunConfig, weights: PolicyWeights, objective: Objective, pad_token_id: int) -> TeacherScorer:
    """Return what gives the objective the teacher's distributions and the anchor's."""
    return TeacherScorer(weights, config.teacher.weights, anchor_of(config), objective, pad_token_id)


def make_weights(
    config: RunConfig,
    model: PreTrainedModel | PeftModel,
    autocast: Autocast,
    shards: Shards = WHOLE,
    reader: WeightProvider | None = None,
) -> PolicyWeights:
    """Return the weights of a policy that has not been trained yet, with the kinds that the method reads."""
    anchor = anchor_of(config)
    return PolicyWeights(
        model,
        {config.teacher.weights} | ({anchor} if anchor else set()),
        config.teacher.half_life,
        device="cpu" if config.teacher.device == "cpu" else None,
        autocast=autocast,
        shards=shards,
        reader=reader,
        refresh_steps=config.teacher.refresh_steps,
    )


def keeps_gathered(config: RunConfig) -> bool:
    """Whether weights that were gathered to be read stay while the model learns.

    Frozen weights are the most of a LoRA run's: gathering them in every step would buy no memory worth it.
    """
    weights = config.rollout.weights
    return weights == "replica" or (weights == "auto" and config.lora.enabled)


def learns_packed(
    config: RunConfig, model: PreTrainedModel | PeftModel, device: torch.device, autocast: Autocast
) -> bool:
    """Decide how rows are laid out, before the model is divided among ranks; see ``train.layout``.

    Args:
        config: Of the run.
        model: What learns.
        device: Where it learns.
        autocast: Gives the context it learns in.

    Raises:
        ConfigError: If packed rows are asked for, and the model cannot learn them.
    """
    asked, name = config.train.layout, type(inner_model(model)).__name__
    if asked == "padded":
        return False
    half = "bfloat16" in (config.model.dtype, config.train.precision.replace("bf16", "bfloat16"))
    found = examine(model, autocast, device, torch.bfloat16 if half else torch.float32)
    if asked == "packed" and found.refusal:
        raise ConfigError(
            f"train.layout=packed, but {name} cannot learn packed rows: {found.refusal}. "
            "Fix: --train.layout auto, or padded."
        )
    reason = found.refusal or (found.drawback if asked == "auto" else "")
    if reason:
        logger.info(f"rows are padded to learn them: {name}: {reason}")
    return not reason


def make_pairing(config: RunConfig, pad_token_id: int, *, packed: bool = False) -> Pairing:
    """Return how a config's targets become micro-batches."""
    return Pairing(
        micro_batch_tokens=config.train.micro_batch_tokens,
        pad_token_id=pad_token_id,
        has_distributions=config.objective.name != "nll",
        num_skipped=config.objective.skip_tokens,
        position_weights=tuple(config.objective.position_weights),
        demonstration_weight=config.objective.demonstration_weight,
        packed=packed,
        fallback_clip=config.screening.fallback_clip,
    )


def make_screen(config: RunConfig, bundle: ModelBundle, data: Data, num_workers: int | None = None) -> Screen:
    """Return what judges rollouts by their own text.

    Args:
        config: Verdicts, and the template whose wording is not to be talked of.
        bundle: Decodes rollouts.
        data: Its task checks them.
        num_workers: Checks run at once; None: as many as there are cores, less one.
    """
    template = config.context.template
    mentions = Mentions(config.screening.banned_phrases, template, template_wording(template))
    renderer = bundle.renderer
    end_ids = renderer.end_ids
    if config.objective.name != "nll":  # recorded token by token: none is added
        end_ids = end_ids[-1:]
    if config.objective.name == "sampled_reverse_kl":  # what was recorded of a sampled token holds for that one alone
        end_ids = ()
    marks = {token: renderer.markup.control[token] for token in renderer.markup.calls}
    return Screen(
        config.screening, data.task, renderer.decode, num_workers, mentions, renderer.controls, end_ids, marks
    )


def make_review(
    config: RunConfig,
    bundle: ModelBundle,
    task: Task,
    pairing: Pairing,
    weights: PolicyWeights,
    sample: Callable[[Sequence[RolloutRequest], int], Sequence[Rollout]],
    ranks: Ranks = ONE_RANK,
    num_workers: int = 0,
    num_halvings: Callable[[], int] = lambda: 0,
) -> BarePromptReview:
    """Return what measures rollouts under the bare prompt.

    Args:
        config: Of the run.
        bundle: The model's prompts.
        task: Its check.
        pairing: How rows are laid out for a forward.
        weights: Shows those that measure.
        sample: Completes requests at the sampling parameters of a step.
        ranks: The processes that share a step.
        num_workers: Checks run at once.
        num_halvings: Tells how often memory ran out.
    """
    screening = config.screening
    if config.rollout.prompt == "student":  # its texts are no rewrites
        screening = replace(screening, support="keep")
    scorer = Scorer(
        weights, replace(pairing, num_skipped=0, position_weights=()), bundle.loaded.model.device, num_halvings
    )
    return BarePromptReview(
        screening, task, bundle.renderer.decode, scorer, sample, _measuring_prompts(config, bundle),
        config.rollout.max_new_tokens, config.train.seed,
        trusts_records=config.rollout.prompt == "student" or config.teacher.weights == "live",
        gather=ranks.gather, num_workers=num_workers,
    )  # fmt: skip


def _measuring_prompts(config: RunConfig, bundle: ModelBundle) -> Prompts:
    """Return the prompts that only measures use, cut so that prompt and target fit the model's context window."""
    renderer, shown = bundle.renderer, TeacherContext("reference")
    window = context_window(bundle)

    def cut(text: str, taken: int) -> str:
        """Return as much of a text as leaves so many tokens, and the template's own, free."""
        limit = config.context.max_teacher_tokens
        limit = limit if window is None else min(limit, max(1, window - taken - _TEMPLATE_TOKENS))
        return text if len(renderer.text_ids(text)) <= limit else renderer.start_of(text, limit)

    def alone(pair: PromptPair) -> Sequence[int]:
        text = cut(pair.demonstration.shown, config.rollout.max_new_tokens)
        return renderer.teacher_ids([Turn("user", text)])

    def with_text(pair: PromptPair, text: str) -> Sequence[int]:
        text = cut(text, len(pair.student_ids) + len(pair.response_ids))
        return renderer.teacher_ids(shown.turns(pair.demonstration, text, []))

    return Prompts(alone, with_text)


def make_sampling(config: RunConfig, num_steps: int) -> Sampling:
    """Return how a config's rollouts are written."""
    rollout = config.rollout
    return _by_name(
        Sampling, rollout, params=SamplingParams.of(rollout), seed=config.train.seed, num_steps=num_steps,
        record=_record(config), drafts=tuple(rollout.drafts),
    )  # fmt: skip


def make_policy_source(
    config: RunConfig,
    backend: RolloutBackend,
    num_steps: int,
    weights: PolicyWeights,
    on_progress: OnProgress,
    attempts: AttemptOptions | None,
    store: DraftStore | None = None,
) -> PolicySource:
    """Return what samples rollouts as a config says.

    Args:
        config: Of the run.
        backend: Writes them.
        num_steps: Of the run, for what moves over it.
        weights: Those that write.
        on_progress: Told how far they have come.
        attempts: How the student tries first, where the teacher is told of it.
        store: Last rollouts, to draft from; None: none.
    """
    source = partial(FeedbackSource, options=attempts) if attempts is not None else PolicySource
    # The student writes its own samples; what the teacher writes, its weights write.
    kind = config.teacher.weights if config.rollout.prompt == "teacher" else "live"
    return source(backend, make_sampling(config, num_steps), on_progress, store, writing=partial(weights.showing, kind))


def make_attempt_options(
    config: RunConfig, bundle: ModelBundle, data: Data, weights: PolicyWeights, num_workers: int
) -> AttemptOptions | None:
    """Return how the student tries before the teacher writes; None where it does not.

    Args:
        config: Of the run.
        bundle: Decodes attempts.
        data: Their check, and what makes the teacher's prompts.
        weights: Shows the live ones, with which the student tries.
        num_workers: Checks run at once, where they take long.
    """
    feedback, rollout = config.feedback, config.rollout
    if not feedback.enabled:
        return None
    return AttemptOptions(
        num_samples=rollout.num_samples,
        num_attempts=rollout.num_samples if rollout.prompt == "student" else feedback.num_attempts,
        check=partial(Checker(data.task, config.screening.max_check_errors).all, num_workers=num_workers),
        decode=bundle.renderer.decode,
        prompt=partial(data.prepared.prompts.fit, shows_attempt=feedback.show_attempt),
        writing=partial(weights.showing, "live"),
        solved=feedback.solved,
        reveal=feedback.reveal,
    )


def _record(config: RunConfig) -> RecordOptions:
    """What rollouts must keep so that the teacher needs no forward of its own.

    Only rollouts under the teacher's prompt are written by the teacher's weights; what a blended one records is the
    teacher's own distribution at its tokens, not the one they were drawn from. A bfloat16 decode copy, and adapters
    merged into a bfloat16 base, write under rounded weights: close enough to sample from, not to learn a distribution
    from.
    """
    objective, rollout = config.objective, config.rollout
    if objective.name == "nll" or rollout.prompt != "teacher":
        return NO_RECORD
    merged = config.lora.enabled and rollout.merge_adapter
    if rollout.decode_copy == "bfloat16" or (merged and config.model.dtype == "bfloat16"):
        return NO_RECORD
    return RecordOptions(top_k=objective.num_kept) if objective.support == "teacher" else RecordOptions(hidden=True)
