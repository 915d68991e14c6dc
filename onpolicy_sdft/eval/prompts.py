"""Prompts that nobody checks the answers to, and a model's answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onpolicy_sdft.build.data import refuse_unaskable
from onpolicy_sdft.build.identity import answering_identity
from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.schema import DataConfig
from onpolicy_sdft.data.eval_sets import EvalSet, load_eval_sets
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.answers import AnswerRecord, Asking, Kept, answer_prompts
from onpolicy_sdft.eval.evaluate import chunk_size
from onpolicy_sdft.eval.retention import general_prompts
from onpolicy_sdft.runs.progress import Progress, tick
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Demonstration, Turn

if TYPE_CHECKING:
    from onpolicy_sdft.build.loaded import ReadyModel
    from onpolicy_sdft.config.schema import RunConfig

SET_PREFIX = "set:"


def load_prompts(
    source: str | None, column: str, limit: int | None, config: RunConfig | None = None
) -> list[Demonstration]:
    """Load prompts; the responses of what is returned mean nothing.

    Args:
        source: A file of rows, ``set:LABEL`` for an evaluation set of ``config``; None: the general prompts that ship.
        column: Column of the prompt, of a file.
        limit: Take the first so many; None takes all.
        config: Where evaluation sets are looked up.

    Raises:
        ConfigError: If there is no such set, or there are fewer prompts than asked for.
        DataError: If a row is bad.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"num_prompts={limit} asks for no prompt. Fix: 1 or more.")
    if source is None:
        found = [Demonstration(name, (Turn("user", text),), text) for name, text in general_prompts()]
    elif source.startswith(SET_PREFIX):
        found = _prompts_of_set(source.removeprefix(SET_PREFIX), config)
    else:
        rows = DataConfig(path=source, prompt_column=column, response_column=column)
        found = list(load_demonstrations(rows, FreeForm(), section="prompts").demonstrations)
    if limit is not None and limit > len(found):
        where = source or "the general prompts"
        raise ConfigError(f"num_prompts={limit}, but {where} holds {len(found)}. Fix: ask for fewer.")
    return found[:limit]


def _prompts_of_set(label: str, config: RunConfig | None) -> list[Demonstration]:
    sets = evaluation_sets(config) if config is not None else []
    chosen = [item for item in sets if item.label == label]
    if not chosen:
        there = ", ".join(item.label for item in sets) or "none"
        raise ConfigError(f"prompts={SET_PREFIX}{label}: the run has no such evaluation set (it has: {there}).")
    return list(load_eval_sets(chosen)[0].demonstrations)


def answer(
    finished: ReadyModel,
    prompts: Sequence[Demonstration],
    asking: Asking,
    path: Path,
    description: str,
) -> list[AnswerRecord]:
    """Let a model answer prompts, in chunks that stand in a file until the caller removes it.

    Args:
        finished: The model.
        prompts: What it is asked.
        asking: How.
        path: Where finished chunks go; those of an interrupted call are kept.
        description: Shown with the bar.

    Raises:
        DataError: If a prompt and its longest answer are more than the model's context window.
    """
    refuse_unaskable(finished.bundle, [EvalSet("prompts", prompts, FreeForm(), asking.max_new_tokens, False)])
    rollout = finished.config.rollout
    backend = finished.bundle.backend(finished.model, rollout, finished.config.eval.batch_size)
    answering = answering_identity(finished.bundle, finished.model)
    kept = Kept(path, f"{answering}, {rollout.decode_copy} copy", chunk_size(finished.bundle))
    with Progress(description, len(prompts), "answers") as progress:
        return answer_prompts(prompts, backend, finished.bundle.renderer, asking, tick(progress), kept)
