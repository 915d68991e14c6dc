"""What the model itself says of texts that another program wrote: a forward over each, without gradient.

The other program's log-probabilities are those it drew with; the model's own come from here. How far the two are
apart says how far its numbers are off the trainer's.

Shape letters: B texts, T positions, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.models.lora import embedding_weight
from onpolicy_sdft.models.policy import Head, body, head_of
from onpolicy_sdft.rollout.sampling import CHUNK, BatchSamplingParams, Vocabulary, likeliest
from onpolicy_sdft.shapes import round_rows, round_tokens
from onpolicy_sdft.types import RecordOptions, Rollout, RolloutRequest, SamplingParams, TopLogprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Written:
    """A completion as another program wrote it."""

    request: RolloutRequest
    params: SamplingParams
    token_ids: tuple[int, ...]  # the terminator included
    logprobs: tuple[float, ...]  # under the distribution that it drew them from (greedy: chose by), in nats
    stopped: bool  # by a terminator


@dataclass(frozen=True, slots=True)
class Rescorer:
    """Makes rollouts of texts that another program wrote.

    Args:
        model: With the weights that wrote; read as they are held.
        vocabulary: The ids that have a token: no other is drawn. None: all have one.
        batch_tokens: Positions of one forward, unless one text alone has more.
    """

    model: PreTrainedModel
    vocabulary: Vocabulary | None
    batch_tokens: int

    def __call__(
        self, written: Sequence[Written], record: RecordOptions
    ) -> Iterator[tuple[int, Rollout, tuple[float, ...]]]:
        """Yield each text's place, its rollout, and the writer's log-probability less the model's, a token each."""
        order = sorted(range(len(written)), key=lambda place: (_length(written[place]), place))
        while order:
            num_texts = max(1, self.batch_tokens // round_tokens(_length(written[order[-1]])))
            places, order = order[-num_texts:], order[:-num_texts]
            hidden_BTD = self._hidden([written[place] for place in places])
            for place, hidden_TD in zip(places, hidden_BTD, strict=True):
                yield place, *self._rollout(written[place], hidden_TD, record)

    def _hidden(self, texts: Sequence[Written]) -> torch.Tensor:
        """Return the final hidden states of a batch, padded on the right."""
        ids = [text.request.prompt_token_ids + text.token_ids for text in texts]
        longest = max(map(len, ids))
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        size = round_tokens(longest) if window is None else max(longest, min(round_tokens(longest), window))
        ids_BT = torch.zeros((round_rows(len(ids)), size), dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        mask_BT[:, 0] = 1  # rows of padding, too: a row that attends nothing is not a number
        for row, each in enumerate(ids):
            ids_BT[row, : len(each)] = torch.tensor(each)
            mask_BT[row, : len(each)] = 1
        device = embedding_weight(self.model).device
        asked: dict[str, Any] = {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
        hidden_BTD: torch.Tensor = body(self.model)(**asked, use_cache=False).last_hidden_state
        return hidden_BTD[: len(ids)]

    def _rollout(
        self, text: Written, hidden_TD: torch.Tensor, record: RecordOptions
    ) -> tuple[Rollout, tuple[float, ...]]:
        first, count = len(text.request.prompt_token_ids) - 1, len(text.token_ids)
        head = head_of(self.model)
        hidden_ND = hidden_TD[first : first + count].to(head.weight_VD.dtype)
        chunks = [self._score(text, hidden_ND, head, start, record) for start in range(0, count, CHUNK)]
        logprobs, entropies, drawn = (
            tuple(torch.cat(column).tolist()) for column in zip(*(numbers for numbers, _ in chunks), strict=True)
        )
        tops = [top for _, top in chunks if top is not None]
        rollout = Rollout(
            key=text.request.key,
            prompt_token_ids=text.request.prompt_token_ids,
            token_ids=text.token_ids,
            logprobs=logprobs,
            sampling_logprobs=(0.0,) * count if text.params.greedy else text.logprobs,
            entropies=entropies,
            finish_reason="stop" if text.stopped else "length",
            hidden=hidden_ND.clone() if record.hidden else None,
            top=TopLogprobs(torch.cat([t.token_ids for t in tops]), torch.cat([t.logprobs for t in tops]))
            if tops
            else None,
        )
        return rollout, tuple(theirs - own for theirs, own in zip(text.logprobs, drawn, strict=True))

    def _score(
        self, text: Written, hidden_ND: torch.Tensor, head: Head, start: int, record: RecordOptions
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], TopLogprobs | None]:
        """Return log-probabilities at temperature 1, entropies, and log-probabilities as drawn, [C] each."""
        hidden_CD = hidden_ND[start : start + CHUNK]
        logits_CV = head.logits(hidden_CD)
        logits_CV = logits_CV.clamp(min=torch.finfo(logits_CV.dtype).min)  # as the engine does
        token_ids = text.token_ids[start : start + CHUNK]
        drawn_C1 = torch.tensor(token_ids, device=logits_CV.device)[:, None]
        logp_CV = torch.log_softmax(logits_CV, dim=-1)
        logprobs_C = logp_CV.gather(1, drawn_C1)[:, 0]
        entropies_C = -torch.linalg.vecdot(logp_CV.exp(), logp_CV)
        as_drawn_C = self._as_drawn(text, logits_CV, drawn_C1, start)
        top = likeliest(logits_CV, record.top_k) if record.top_k else None
        return (logprobs_C, entropies_C.clamp(min=0.0), as_drawn_C), top

    def _as_drawn(self, text: Written, logits_CV: torch.Tensor, drawn_C1: torch.Tensor, start: int) -> torch.Tensor:
        """Return the model's log-probabilities under the distribution that the writer was asked to draw from, [C].

        A token that rounding puts on the other side of a filter's edge counts as kept.
        """
        vocabulary = self.vocabulary or Vocabulary(logits_CV.shape[-1])
        params = replace(SamplingParams(), repetition_penalty=text.params.repetition_penalty)
        each = BatchSamplingParams.of(
            [params if text.params.greedy else text.params] * len(logits_CV), vocabulary, logits_CV.device
        )
        ids_L = torch.tensor(text.request.prompt_token_ids + text.token_ids, device=logits_CV.device)
        lengths_C = len(text.request.prompt_token_ids) + start + torch.arange(len(logits_CV), device=ids_L.device)
        logits_CV = each.penalise(logits_CV, ids_L.expand(len(logits_CV), -1), lengths_C)
        scores_CV = each.process(logits_CV)
        if each.is_filtered:
            own_C1 = logits_CV.gather(1, drawn_C1) / each.temperature_B[:, None].to(logits_CV.dtype)
            scores_CV = scores_CV.scatter(1, drawn_C1, own_C1)
        return torch.log_softmax(scores_CV, dim=-1).gather(1, drawn_C1)[:, 0]


def _length(text: Written) -> int:
    return len(text.request.prompt_token_ids) + len(text.token_ids)
