"""How far a tuned model has moved from its base model on general prompts.

The base model writes one completion per general prompt, once. KL(base || tuned) over the full vocabulary, and the
tuned model's negative log-likelihood, are then measured at every token of those completions, so every method is
measured on the same tokens.

Shape letters: N tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.build.bundle import context_window, room_to_answer
from onpolicy_sdft.data.collate import collate, split_by_budget
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.answers import Asking
from onpolicy_sdft.eval.intervals import ratio_interval
from onpolicy_sdft.models.policy import head_of, hidden_at_loss_tokens
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.types import RolloutProgress, TrainingRow, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.data.renderer import Renderer
    from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend

_CHUNK_TOKENS = 256
_MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class BaseCompletion:
    """What the base model said to one general prompt."""

    example_id: str
    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BaseKL:
    """Mean per-token KL(base || tuned) and NLL in nats, with 95 % bootstrap intervals over completions."""

    mean: float
    low: float
    high: float
    num_completions: int
    num_tokens: int
    sums: tuple[float, ...]  # per completion, in the order of the completions
    nll_mean: float  # -log of the tuned model's probability of the base model's tokens
    nll_low: float
    nll_high: float
    nll_sums: tuple[float, ...]  # as ``sums``


def general_prompts(limit: int | None = None) -> list[tuple[str, str]]:
    """Return (id, prompt) of the general prompts that ship with the project.

    Raises:
        ConfigError: If ``limit`` asks for more than there are.
    """
    text = (files("onpolicy_sdft.eval") / "general_prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if limit is not None and limit > len(rows):
        raise ConfigError(f"eval.kl_prompts={limit}, but there are {len(rows)} general prompts. Fix: ask for fewer.")
    return [(row["id"], row["prompt"]) for row in rows][:limit]


def rooms_to_answer(
    names: Sequence[str], asked: Sequence[Sequence[int]], max_new_tokens: int, window: int | None
) -> list[int]:
    """Return how long the base model's completion of each general prompt may be.

    Raises:
        DataError: If a prompt leaves no room in the context window.
    """
    fix = "--eval.kl_prompts 0, or a model with a longer window"
    return [
        room_to_answer(window, len(ids), max_new_tokens, f"General prompt {name} (eval.kl_prompts)", fix)
        for name, ids in zip(names, asked, strict=True)
    ]


def refuse_unanswerable(bundle: ModelBundle, num_prompts: int) -> None:
    """Refuse general prompts that leave no room for a completion, before any work is done.

    Raises:
        ConfigError: If more are asked for than there are.
        DataError: If one does not fit.
    """
    prompts = general_prompts(num_prompts)
    asked = [bundle.renderer.student_ids([Turn("user", prompt)]) for _, prompt in prompts]
    rooms_to_answer([name for name, _ in prompts], asked, 1, context_window(bundle))


def write_base_completions(
    backend: RolloutBackend,
    renderer: Renderer,
    num_prompts: int,
    max_new_tokens: int,
    on_progress: OnProgress,
    window: int | None = None,
) -> list[BaseCompletion]:
    """Let the base model answer general prompts, sampled from its own distribution with fixed noise keys.

    Args:
        backend: Writes with the base model.
        renderer: Of its prompts.
        num_prompts: Of the general prompts.
        max_new_tokens: Longest completion; shorter where the context window has less room.
        on_progress: Told of finished completions and tokens.
        window: Positions the model has; None when it does not say.
    """
    prompts = general_prompts(num_prompts)
    asking = Asking(max_new_tokens, temperature=1.0, seed=0)
    asked = [renderer.student_ids([Turn("user", prompt)]) for _, prompt in prompts]
    rooms = rooms_to_answer([name for name, _ in prompts], asked, max_new_tokens, window)
    requests = [
        replace(asking, max_new_tokens=room).request(ids, name)
        for (name, _), ids, room in zip(prompts, asked, rooms, strict=True)
    ]
    rollouts = backend.generate(requests, asking.params, on_progress)
    return [
        BaseCompletion(name, prompt, renderer.decode(r.token_ids), r.prompt_token_ids, r.token_ids)
        for (name, prompt), r in zip(prompts, rollouts, strict=True)
    ]


def kl_to_base(
    tuned: PreTrainedModel,
    as_base: Callable[[], AbstractContextManager[PreTrainedModel]],
    completions: Sequence[BaseCompletion],
    pad_token_id: int,
    on_progress: OnProgress,
) -> BaseKL:
    """Measure mean per-token KL(base || tuned), and the tuned model's NLL, over the base model's completions.

    Args:
        tuned: The tuned model.
        as_base: Context that gives the base model (the same weights with the adapter off, or another copy).
        completions: What the base model wrote.
        pad_token_id: Any valid id.
        on_progress: Told of finished completions and tokens.
    """
    sums, nll_sums = [0.0] * len(completions), [0.0] * len(completions)
    asked = [TrainingRow(c.prompt_ids, c.token_ids) for c in completions]
    order = {id(row): index for index, row in enumerate(asked)}  # two completions may be alike
    device = head_of(tuned).weight_VD.device
    for group in split_by_budget(asked, _MICRO_BATCH_TOKENS):
        batch = collate(group, pad_token_id, device, max_tokens=_MICRO_BATCH_TOKENS)
        with no_trace(tuned):
            tuned_ND = hidden_at_loss_tokens(tuned, batch)
            tuned_head = head_of(tuned)
            with as_base() as base, no_trace(base):
                base_ND = hidden_at_loss_tokens(base, batch)
                base_head = head_of(base)
            parts = [
                _kl_and_nll(base_head.logits(p_CD), tuned_head.logits(q_CD), labels_C)
                for p_CD, q_CD, labels_C in zip(
                    base_ND.split(_CHUNK_TOKENS), tuned_ND.split(_CHUNK_TOKENS), batch.labels.split(_CHUNK_TOKENS),
                    strict=True,
                )
            ]  # fmt: skip
            kl_N, nll_N = (torch.cat(part).tolist() for part in zip(*parts, strict=True))
        for place, kl, nll in zip(batch.loss_rows.tolist(), kl_N, nll_N, strict=True):
            index = order[id(group[place])]
            sums[index] += kl
            nll_sums[index] += nll
        on_progress(RolloutProgress(len(group), batch.num_loss_tokens))
    counts = [len(c.token_ids) for c in completions]
    total = sum(counts)
    low, high = ratio_interval(sums, counts)
    nll_low, nll_high = ratio_interval(nll_sums, counts)
    return BaseKL(
        sum(sums) / total, low, high, len(completions), total, tuple(sums),
        sum(nll_sums) / total, nll_low, nll_high, tuple(nll_sums),
    )  # fmt: skip


def _kl_and_nll(
    logits_p_CV: torch.Tensor, logits_q_CV: torch.Tensor, labels_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p || q) of each row, and -log q of its label, in nats: [C, V], [C, V], [C] -> [C], [C]."""
    log_p, log_q = torch.log_softmax(logits_p_CV, -1), torch.log_softmax(logits_q_CV, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), -log_q.gather(-1, labels_C[:, None])[:, 0]
