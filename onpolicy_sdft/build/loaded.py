"""A finished run, or any model, ready to be scored, sampled or exported."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from onpolicy_sdft.build.base import base_of, refuse_other_base
from onpolicy_sdft.build.bundle import ModelBundle, context_window, load_bundle, room_to_answer
from onpolicy_sdft.build.identity import base_identity, with_recorded_date
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.data.refusals import require_unicode
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.models.complete import load_adapter
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model with its prompts, and the run it came from if it came from one."""

    config: RunConfig  # of the run; ``model.name`` is the base model
    bundle: ModelBundle
    model: PreTrainedModel | PeftModel
    run: RunDirectory | None

    def sample(
        self,
        prompts: Sequence[str],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        system: str | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Answer prompts; greedy at temperature 0.

        Where the model's context window has less room than ``max_new_tokens``, answers are as long as it has.

        Args:
            prompts: User turns.
            temperature: Of the samples.
            max_new_tokens: Longest answer, in tokens.
            system: A system message for all of them.
            seed: Of the samples; the same seed gives the same answers.

        Raises:
            ConfigError: If a number is out of bounds, or a prompt is no text.
            DataError: If a text holds half a character, or a prompt leaves no room for an answer.
        """
        require_sampling(temperature, max_new_tokens)
        _require_texts(prompts, system)
        before = [Turn("system", system)] if system else []
        asked = [self.bundle.renderer.student_ids([*before, Turn("user", prompt)]) for prompt in prompts]
        window, fix = context_window(self.bundle), "a shorter prompt, or a model with a longer window"
        rooms = [
            room_to_answer(window, len(ids), max_new_tokens, f"Prompt {place}", fix)
            for place, ids in enumerate(asked, start=1)
        ]
        if shortened := sum(room < max_new_tokens for room in rooms):
            logger.info(
                f"the model's context window has {window} positions: {shortened} answers have room for {min(rooms)} or "
                f"more tokens, not for max_new_tokens={max_new_tokens}"
            )
        requests = [
            RolloutRequest(ids, NoiseKey(seed, 0, f"sample-{index}"), room)
            for index, (ids, room) in enumerate(zip(asked, rooms, strict=True))
        ]
        rollout = self.config.rollout
        backend = self.bundle.backend(self.model, rollout, rollout.batch_size)
        rollouts = backend.generate(requests, SamplingParams(temperature=temperature))
        return [self.bundle.renderer.decode(rollout.token_ids) for rollout in rollouts]


def require_sampling(temperature: float, max_new_tokens: int) -> None:
    """Refuse numbers with which nothing can be sampled.

    Raises:
        ConfigError: Naming the one, with its bounds.
    """
    numbers = (
        ("temperature", temperature, Real, "0 or more"),
        ("max_new_tokens", max_new_tokens, Integral, "at least 1, a whole number"),
    )
    for name, value, kind, bounds in numbers:
        is_one = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if not is_one or value < (0 if kind is Real else 1):
            raise ConfigError(f"{name}={value!r} is not usable: it must be {bounds}.")


def _require_texts(prompts: Sequence[str], system: str | None) -> None:
    if isinstance(prompts, str):
        raise ConfigError(f"prompts is one text. Fix: a list of them, as in sample([{prompts[:40]!r}]).")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ConfigError(
                f"prompts[{index}] is {type(prompt).__name__}: {prompt!r:.80}. Fix: the text of a user's turn; system= "
                "takes a system message."
            )
        require_unicode(prompt, f"prompts[{index}]")
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"system is {type(system).__name__}: {system!r:.80}. Fix: the text of a system message.")
    require_unicode(system or "", "system")


def is_run(target: str | Path) -> bool:
    """Whether a path is a run directory."""
    return (Path(target) / "manifest.json").is_file()


def load_run(path: str | Path) -> ReadyModel:
    """Load the trained model of a run directory.

    Raises:
        RunDirectoryError: If the run has no model yet.
    """
    run = RunDirectory.open(path, require=["config.yaml"])
    if not run.model_path.is_dir():
        raise RunDirectoryError(
            f"{run.path} has no model/ yet: its training was not finished. Go on with sdft train --config "
            f"{run.config_path} --train.resume auto."
        )
    config = config_of(run)
    if (run.model_path / "adapter_config.json").is_file():
        on_base = dataclasses.replace(config, model=base_of(run, config))
        bundle = load_bundle(on_base, tokenizer_from=run.model_path)
        refuse_other_base(run, bundle.loaded.source, base_identity(bundle))
        model: PreTrainedModel | PeftModel = load_adapter(bundle.loaded.model, run.model_path)
    else:
        tuned = dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(run.model_path)))
        bundle = load_bundle(tuned)
        model = bundle.loaded.model
    if config.context.date is None and (date := bundle.renderer.writer.date):
        logger.warning(
            f"{run.path} does not say which date its chat template saw, and sees {date} now. Fix: context.date in its "
            "config.yaml, if the date matters"
        )
    return ReadyModel(config, bundle, model, run)


def config_of(run: RunDirectory) -> RunConfig:
    """Return the options of a run, with the date that its chat template saw, whatever day it is now."""
    return with_recorded_date(load_config(run.config_path), run.manifest_path)


def load_target(target: str) -> ReadyModel:
    """Load what a command was given: a run directory, or else the name of a model."""
    return load_run(target) if is_run(target) else load_model(target, RunConfig())


def load_model(name: str, config: RunConfig) -> ReadyModel:
    """Load any model by hub id, path or embedded name, with the prompts of a config."""
    named = dataclasses.replace(config, model=dataclasses.replace(config.model, name=name))
    bundle = load_bundle(named)
    return ReadyModel(config, bundle, bundle.loaded.model, None)
