"""The distribution a token is drawn from, and the draw.

A token is drawn in two moves, each an argmax of log-probability plus keyed Gumbel noise: first a block of
neighbouring vocabulary ids by its total probability, then a token of that block. That is exactly the distribution,
P(block) P(token | block), and asks for noise a thousand times instead of once per id of the vocabulary.

Shape letters: B rows, V vocabulary, M blocks, W ids of a block, K kept candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from onpolicy_sdft.rollout.noise import gumbel_noise
from onpolicy_sdft.types import SamplingParams, TopLogprobs

BLOCK = 64  # ids of a block; V / 64 + 64 draws of noise a token
BLOCK_IDS = 1 << 30  # blocks are numbered from here in the noise, above every vocabulary id
CANDIDATES = 512  # likeliest tokens looked at before all of them are sorted
CHUNK = 256  # tokens of given texts whose logits are alive at once


def warpers(params: SamplingParams) -> LogitsProcessorList:
    """Return transformers' own warpers, in its order, for what differs from the model's distribution."""
    found = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if not params.greedy and params.temperature != 1.0:
        found.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k > 0:
        found.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        found.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        found.append(MinPLogitsWarper(params.min_p))
    return found


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids that have a token. No other is ever drawn, whatever a model says of it."""

    num_tokens: int  # ids from here on have none: embeddings are often padded to a round size
    missing: tuple[int, ...] = ()  # ids below that have none either

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, others: Iterable[int] = ()) -> Vocabulary:
        """Return a tokenizer's ids, and ``others`` that have a token as well."""
        known = {*tokenizer.get_vocab().values(), *others}
        num_tokens = max(known) + 1
        unknown = [each for each in range(num_tokens) if each not in known]
        # Pieces that stand twice in a vocabulary share an entry in ``get_vocab``.
        return Vocabulary(num_tokens, tuple(t for t in unknown if tokenizer.convert_ids_to_tokens(t) is None))

    def without_token(self, size: int) -> list[int]:
        """Return the ids below ``size`` that have no token."""
        return [*(each for each in self.missing if each < size), *range(self.num_tokens, size)]

    def restrict(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Return logits of the first ids alone, those without a token left out; the same tensor where all have one."""
        is_padded = self.num_tokens < logits_BV.shape[-1]
        return self.leave_out_missing(logits_BV[:, : self.num_tokens] if is_padded else logits_BV)

    def leave_out_missing(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Give the ids that have no token inside the vocabulary no probability."""
        if not self.missing:
            return logits_BV
        return logits_BV.index_fill(-1, _on_device(self.missing, logits_BV.device), -torch.inf)

    def within(self, size: int) -> Vocabulary:
        """Return the part of it that a model with ``size`` ids can write."""
        return Vocabulary(min(self.num_tokens, size), tuple(each for each in self.missing if each < size))


@cache  # captured steps read this very tensor
def _on_device(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, device=device)


@dataclass(frozen=True, slots=True)
class BatchSamplingParams:
    """The sampling parameters of a batch, a row each."""

    temperature_B: torch.Tensor  # 1 where greedy
    top_k_B: torch.Tensor  # ``num_tokens`` where all are kept
    top_p_B: torch.Tensor
    min_p_B: torch.Tensor
    greedy_B: torch.Tensor
    penalty_B: torch.Tensor  # 1 where tokens may repeat
    is_raw: bool  # every row is the model's own distribution over the first ids, or greedy
    is_filtered: bool  # some row leaves tokens out
    is_penalised: bool  # some row looks at its prefix
    vocabulary: Vocabulary

    @staticmethod
    def of(each_params: Sequence[SamplingParams], vocabulary: Vocabulary, device: torch.device) -> BatchSamplingParams:
        """Lay out distributions over the ids that have a token as tensors."""
        num_tokens = vocabulary.num_tokens

        def column(values: list[float] | list[int] | list[bool]) -> torch.Tensor:
            return torch.tensor(values, device=device)

        drawn = [params for params in each_params if not params.greedy]
        return BatchSamplingParams(
            temperature_B=column([1.0 if params.greedy else float(params.temperature) for params in each_params]),
            top_k_B=column([min(params.top_k, num_tokens) or num_tokens for params in each_params]),
            top_p_B=column([float(params.top_p) for params in each_params]),
            min_p_B=column([float(params.min_p) for params in each_params]),
            greedy_B=column([params.greedy for params in each_params]),
            penalty_B=column([float(params.repetition_penalty) for params in each_params]),
            is_raw=not vocabulary.missing
            and all(params in (SamplingParams(), SamplingParams(temperature=0.0)) for params in each_params),
            is_penalised=any(params.repetition_penalty != 1.0 for params in each_params),
            is_filtered=any(params.leaves_out for params in drawn),
            vocabulary=vocabulary,
        )

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are drawn from other logits than the model's, before temperature and filters."""
        return self.is_penalised or bool(self.vocabulary.missing)

    def __getitem__(self, rows: torch.Tensor) -> BatchSamplingParams:
        """Pick rows."""
        return BatchSamplingParams(
            self.temperature_B[rows], self.top_k_B[rows], self.top_p_B[rows], self.min_p_B[rows],
            self.greedy_B[rows], self.penalty_B[rows], self.is_raw, self.is_filtered, self.is_penalised,
            self.vocabulary,
        )  # fmt: skip

    def put(self, rows: torch.Tensor, others: BatchSamplingParams, other_rows: torch.Tensor) -> None:
        """Overwrite rows in place."""
        for name in ("temperature_B", "top_k_B", "top_p_B", "min_p_B", "greedy_B", "penalty_B"):
            getattr(self, name)[rows] = getattr(others, name)[other_rows]

    def process(self, logits_BV: torch.Tensor, num_candidates: int | None = CANDIDATES) -> torch.Tensor:
        """Scale and filter each row by its own parameters; equal to transformers' warpers but for ties, which are kept.

        Ids without a token are left out first, as every filter leaves tokens out: what a token was drawn from is over
        the others, what the model says of it is over all.

        Args:
            logits_BV: float32 or wider.
            num_candidates: Sort this many likeliest tokens first, and all of them only if they do not settle every
                row; None sorts all at once and reads nothing back from the device.
        """
        logits_BV = self.vocabulary.restrict(logits_BV)
        if self.is_raw:
            return logits_BV
        scaled_BV = logits_BV / self.temperature_B[:, None].to(logits_BV.dtype)
        if not self.is_filtered:
            return scaled_BV
        size = scaled_BV.shape[-1]
        width = size if num_candidates is None else min(size, num_candidates)
        floor_B, settled_B = self._floor(scaled_BV, width)
        if width < size and not bool(settled_B.all()):
            floor_B, _ = self._floor(scaled_BV, size)
        return scaled_BV.masked_fill(scaled_BV < floor_B[:, None], -torch.inf)

    def penalise(self, logits_BV: torch.Tensor, prefixes_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Lower the logits of tokens that stand in a row's own prefix.

        Args:
            logits_BV: float32 or wider.
            prefixes_BL: Token ids, prompt first.
            lengths_B: Used part of each prefix.

        Source: Keskar et al. (2019), arXiv:1909.05858, equation 1, with the sign of the logit as in transformers.
        """
        if not self.is_penalised:
            return logits_BV
        # A place beyond the prefix repeats the first token's, so that its update changes nothing more.
        there_BL = torch.arange(prefixes_BL.shape[1], device=logits_BV.device) < lengths_B[:, None]
        ids_BL = torch.where(there_BL, prefixes_BL, prefixes_BL[:, :1])
        found_BL = logits_BV.gather(1, ids_BL)
        penalty_B1 = self.penalty_B[:, None].to(logits_BV.dtype)
        return logits_BV.scatter(1, ids_BL, torch.where(found_BL < 0, found_BL * penalty_B1, found_BL / penalty_B1))

    def _floor(self, scaled_BV: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the score of the least likely token each row keeps, and whether ``width`` tokens told."""
        top_BK = scaled_BV.topk(width, dim=-1).values
        rank_K = torch.arange(width, device=scaled_BV.device)
        within_BK = rank_K < self.top_k_B[:, None]
        no_top_k_B = self.top_k_B >= scaled_BV.shape[-1]
        # Mass is relative to what top-k left: the total of the candidates then, of the whole row otherwise.
        log_total_B = torch.where(
            no_top_k_B,
            torch.logsumexp(scaled_BV, -1),
            torch.logsumexp(top_BK.masked_fill(~within_BK, -torch.inf), -1),
        )
        mass_BK = (top_BK - log_total_B[:, None]).exp()
        before_BK = mass_BK.cumsum(-1) - mass_BK
        kept_BK = within_BK & ((before_BK < self.top_p_B[:, None]) | (self.top_p_B[:, None] >= 1.0))
        kept_BK &= top_BK >= top_BK[:, :1] + self.min_p_B[:, None].to(top_BK.dtype).log()
        num_kept_B = kept_BK.sum(-1)
        floor_B = top_BK.gather(-1, (num_kept_B - 1).clamp(min=0)[:, None])[:, 0]
        nothing_left_out_B = no_top_k_B & (self.top_p_B >= 1.0) & (self.min_p_B <= 0.0)
        floor_B = torch.where(nothing_left_out_B, torch.full_like(floor_B, -torch.inf), floor_B)
        settled_B = torch.where(no_top_k_B, num_kept_B < width, self.top_k_B <= width)
        return floor_B, settled_B | nothing_left_out_B


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn token per row."""

    token_ids: torch.Tensor  # [B] int64
    logprobs: torch.Tensor  # [B] at temperature 1, unprocessed, nats
    sampling_logprobs: torch.Tensor  # [B] under the distribution it was drawn from, nats; 0 when greedy
    entropies: torch.Tensor  # [B] of the temperature-1 distribution, nats


def draw(
    logits_BV: torch.Tensor,
    processed_BV: torch.Tensor,
    greedy_B: torch.Tensor,
    words_B2: torch.Tensor,
    positions_B: torch.Tensor,
) -> Draw:
    """Draw the next token of each row from its processed distribution with its own keyed noise.

    Args:
        logits_BV: The model's logits, float32 or wider, finite.
        processed_BV: Logits of the distribution to draw from, of all ids or the first ones; ``logits_BV`` itself where
            that is the model's own.
        greedy_B: Rows that take the likeliest token instead.
        words_B2: Noise key words of the rows.
        positions_B: Index of the token within each completion.
    """
    p_BV = torch.softmax(logits_BV, dim=-1)
    largest_B, likeliest_B = logits_BV.max(-1)
    log_total_B = largest_B - p_BV.gather(-1, likeliest_B[:, None])[:, 0].log()
    entropies_B = (log_total_B - torch.linalg.vecdot(p_BV, logits_BV)).clamp(min=0.0)
    is_raw = processed_BV is logits_BV
    q_BV = p_BV if is_raw else torch.softmax(processed_BV, dim=-1)
    drawn_B = _draw_in_blocks(q_BV, processed_BV, words_B2, positions_B)
    greedy_choice_B = likeliest_B if is_raw else processed_BV.argmax(-1)
    token_ids_B = torch.where(greedy_B, greedy_choice_B, drawn_B)
    chosen_B1 = token_ids_B[:, None]
    logprobs_B = logits_BV.gather(-1, chosen_B1)[:, 0] - log_total_B
    sampling_B = logprobs_B if is_raw else q_BV.gather(-1, chosen_B1)[:, 0].log()
    return Draw(token_ids_B, logprobs_B, torch.where(greedy_B, torch.zeros_like(sampling_B), sampling_B), entropies_B)


def likeliest(logits_BV: torch.Tensor, num_kept: int) -> TopLogprobs:
    """Return the likeliest tokens of each row with their log-probabilities at temperature 1."""
    top = logits_BV.topk(min(num_kept, logits_BV.shape[-1]), dim=-1)
    return TopLogprobs(top.indices, top.values - torch.logsumexp(logits_BV, -1, keepdim=True))


def logprobs_at(logits_NV: torch.Tensor, token_ids_N: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of tokens at temperature 1, [N]."""
    return logits_NV.gather(-1, token_ids_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def _draw_in_blocks(
    q_BV: torch.Tensor, scores_BV: torch.Tensor, words_B2: torch.Tensor, positions_B: torch.Tensor
) -> torch.Tensor:
    """Draw a block by its probability, then a token of it: q [B, V] and its log up to a constant -> [B]."""
    size = q_BV.shape[-1]
    whole = size // BLOCK * BLOCK
    mass_BM = q_BV[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < size:
        mass_BM = torch.cat([mass_BM, q_BV[:, whole:].sum(-1, keepdim=True)], dim=-1)
    blocks_M = torch.arange(BLOCK_IDS, BLOCK_IDS + mass_BM.shape[-1], dtype=torch.int32, device=q_BV.device)
    block_B = (mass_BM.log() + gumbel_noise(words_B2, positions_B, blocks_M[None])).argmax(-1)
    ids_BW = block_B[:, None] * BLOCK + torch.arange(BLOCK, device=q_BV.device)
    inside_BW = scores_BV.gather(-1, ids_BW.clamp(max=size - 1))
    inside_BW = inside_BW.masked_fill(ids_BW >= size, -torch.inf)
    within_B = (inside_BW + gumbel_noise(words_B2, positions_B, ids_BW.to(torch.int32))).argmax(-1)
    token_ids_B: torch.Tensor = block_B * BLOCK + within_B
    return token_ids_B


def cut_at_terminator(token_ids: Sequence[int], stop_token_ids: frozenset[int], limit: int) -> tuple[int, bool]:
    """Return how many tokens to keep and whether the text ended by itself.

    The first terminator is kept and nothing after it; without one within ``limit`` the text is truncated.
    """
    for index, token in enumerate(token_ids[:limit]):
        if token in stop_token_ids:
            return index + 1, True
    return min(len(token_ids), limit), False
