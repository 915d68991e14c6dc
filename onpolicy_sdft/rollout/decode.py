"""One forward over slots and what follows from it: draw, verify drafts, write back. Tensors only.

Nothing here reads a value back to the host, and every buffer it reads or writes keeps its address, so that
:func:`grid_step` can be captured as a whole. On a CPU the engine calls the same parts with ragged packings.

Shape letters: B rows (one slot each), Q tokens of a row (the pending one and its drafts), N packed tokens, M of them
and of their partners where texts are blended, V vocabulary, D hidden size, T stop tokens, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.models.policy import body, head_of
from onpolicy_sdft.rollout.blending import Blended
from onpolicy_sdft.rollout.drafts import look_up
from onpolicy_sdft.rollout.sampling import Draw, draw, likeliest, logprobs_at
from onpolicy_sdft.rollout.slots import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.models.policy import Head
    from onpolicy_sdft.rollout.attention import SlotAttention
    from onpolicy_sdft.rollout.sampling import BatchSamplingParams
    from onpolicy_sdft.rollout.slots import SlotTexts
    from onpolicy_sdft.types import TopLogprobs


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a forward and where each drawn token belongs."""

    slots_B: torch.Tensor  # [B] int64
    num_drafts_B: torch.Tensor  # [B] int64, at most Q - 1
    row_N: torch.Tensor  # [N] int64 row of each token that is drawn from
    offset_N: torch.Tensor  # [N] int64 its place within the row, below Q
    width: int  # Q
    pair_N: torch.Tensor | None = None  # [N] int64 which of the M tokens each is blended with; itself: it is not


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """What a forward did to its rows."""

    kept_B: torch.Tensor  # [B] int64 tokens written
    accepted_B: torch.Tensor  # [B] int64 of them, drafted ones
    done_B: torch.Tensor  # [B] bool, ended or at the limit


@dataclass(frozen=True, slots=True)
class Places:
    """Where each token that is drawn belongs, before the lengths of its row move."""

    slots_N: torch.Tensor  # [N] int64
    positions_N: torch.Tensor  # [N] int64 of the token before it within the slot
    places_N: torch.Tensor  # [N] int64 of it within the completion

    @staticmethod
    def of(texts: SlotTexts, rows: Rows) -> Places:
        """Read them off the lengths of the rows."""
        slots_N = rows.slots_B[rows.row_N]
        positions_N = texts.lengths[slots_N] + rows.offset_N
        return Places(slots_N, positions_N, positions_N + 1 - texts.starts[slots_N])


def forward_hidden(
    model: PreTrainedModel, texts: SlotTexts, attention: SlotAttention, packing: Packing
) -> torch.Tensor:
    """Run the layers over packed tokens: -> [N, D] final hidden states; keys and values are stored on the way."""
    attention.begin(packing)
    ids_N = texts.tokens[packing.slots_N, packing.positions_N]
    layers: Any = body(model)
    out = layers(
        input_ids=ids_N[None], position_ids=packing.positions_N[None], past_key_values=attention.cache, use_cache=True,
        slots=attention,
    )  # fmt: skip
    hidden_ND: torch.Tensor = out.last_hidden_state[0]
    return hidden_ND


def sample_and_verify(
    texts: SlotTexts,
    batch_params: BatchSamplingParams,
    stop_token_ids_T: torch.Tensor,
    rows: Rows,
    raw_MV: torch.Tensor,
    head: Head,
    hidden_MD: torch.Tensor,
    num_candidates: int | None,
    kernels: bool = False,
) -> DecodeResult:
    """Draw a token at every position, keep each row's tokens up to the first that differs from its draft, write them.

    Every token is drawn from the model's own distribution (or the blended one) with the noise of its own position,
    whatever the draft was, so the distribution of what is kept does not depend on the drafts. A drafted terminator may
    be drawn and ends its row. The penalty of a blended text looks at the row's own prefix, the teacher's prompt
    included.

    Args:
        texts: What stands in the slots; changed in place.
        batch_params: A row each slot.
        stop_token_ids_T: Tokens that end a text.
        rows: Which slot and place each row of logits is for.
        raw_MV: What the model's output layer gave for them, and then for their partners; may be overwritten.
        head: Turns that into logits.
        hidden_MD: What the output layer was given, for texts that record it.
        num_candidates: See :meth:`BatchSamplingParams.process`; kernels need none.
        kernels: Draw and settle with the kernels of a GPU. They take a full grid of rows, N = B * Q. Torch's
            operations take ragged rows on every device, and are what the kernels are tested against.
    """
    if kernels:
        return _sample_and_verify_with_kernels(texts, batch_params, stop_token_ids_T, rows, raw_MV, head, hidden_MD)
    where = Places.of(texts, rows)
    batch_params = batch_params[where.slots_N]
    blended = _blend(texts, rows, where, raw_MV, head)
    own_NV = head.finish(raw_MV) if blended is None else blended.own_NV
    top = likeliest(own_NV, texts.top_token_ids.shape[-1]) if texts.top_token_ids is not None else None
    own_NV = own_NV.clamp_(min=torch.finfo(own_NV.dtype).min)  # 0 * -inf in the entropy would be nan
    logits_NV = own_NV if blended is None else blended.mixed_NV
    processed_NV = batch_params.process(_penalised(logits_NV, texts, batch_params, where), num_candidates)
    drawn = draw(logits_NV, processed_NV, batch_params.greedy_B, texts.words[where.slots_N], where.places_N)
    if blended is not None:
        drawn = replace(drawn, logprobs=logprobs_at(own_NV, drawn.token_ids))
    settled = _settle(texts, stop_token_ids_T, rows, where, drawn)
    _record(texts, rows, where, settled, hidden_MD, top)
    if blended is not None:
        _record_blend(texts, rows, where, settled, drawn, blended)
    return settled


def _sample_and_verify_with_kernels(
    texts: SlotTexts,
    batch_params: BatchSamplingParams,
    stop_token_ids_T: torch.Tensor,
    rows: Rows,
    raw_MV: torch.Tensor,
    head: Head,
    hidden_MD: torch.Tensor,
) -> DecodeResult:
    from onpolicy_sdft.rollout.gpu.sampling import draw_rows  # Triton: not on a CPU
    from onpolicy_sdft.rollout.gpu.settle import settle_rows

    is_recorded = texts.hidden is not None or texts.top_token_ids is not None
    if not is_recorded and not batch_params.changes_logits and rows.pair_N is None:
        return DecodeResult(
            *settle_rows(texts, stop_token_ids_T, rows, draw_rows(texts, batch_params, rows, raw_MV, head, None))
        )
    where = Places.of(texts, rows)
    blended = _blend(texts, rows, where, raw_MV, head)
    raw_NV, changed_NV, top = raw_MV, None, None
    if texts.top_token_ids is not None:
        own_NV = head.finish(raw_MV) if blended is None else blended.own_NV
        top = likeliest(own_NV, texts.top_token_ids.shape[-1])
    if blended is not None:  # the kernels are shown the blended logits as if the output layer had given them
        raw_NV, head = blended.mixed_NV, replace(head, scale=1.0, softcap=None)
    if batch_params.changes_logits:
        changed_NV = _penalised(head.finish(raw_NV), texts, batch_params[where.slots_N], where)
        changed_NV = batch_params.vocabulary.leave_out_missing(changed_NV)
    drawn = draw_rows(texts, batch_params, rows, raw_NV, head, changed_NV)
    if blended is not None:
        drawn = replace(drawn, logprobs=logprobs_at(blended.own_NV, drawn.token_ids))
    settled = DecodeResult(*settle_rows(texts, stop_token_ids_T, rows, drawn))
    _record(texts, rows, where, settled, hidden_MD, top)
    if blended is not None:
        _record_blend(texts, rows, where, settled, drawn, blended)
    return settled


def _blend(texts: SlotTexts, rows: Rows, where: Places, raw_MV: torch.Tensor, head: Head) -> Blended | None:
    """Mix the logits of each token with its partner's, where a row of the forward has one."""
    if rows.pair_N is None or texts.pairs is None:
        return None
    return Blended.of(texts.pairs, where.slots_N, raw_MV, rows.pair_N, head)


def _penalised(
    logits_NV: torch.Tensor, texts: SlotTexts, batch_params: BatchSamplingParams, where: Places
) -> torch.Tensor:
    """Lower the logits of what stands in each row's own prefix, drafts before it included."""
    if not batch_params.is_penalised:  # before whole prefixes are gathered in every step
        return logits_NV
    return batch_params.penalise(logits_NV, texts.tokens[where.slots_N], where.positions_N + 1)


def _settle(texts: SlotTexts, stop_token_ids_T: torch.Tensor, rows: Rows, where: Places, drawn: Draw) -> DecodeResult:
    """Keep each row's tokens up to the first that ends it or differs from its draft, and write them."""
    next_N = texts.tokens[where.slots_N, where.positions_N + 1]
    is_end_N = (drawn.token_ids[:, None] == stop_token_ids_T).any(-1)
    matches_N = (rows.offset_N < rows.num_drafts_B[rows.row_N]) & (drawn.token_ids == next_N)
    goes_on_BQ = torch.zeros(len(rows.slots_B), rows.width, dtype=torch.int64, device=next_N.device)
    goes_on_BQ[rows.row_N, rows.offset_N] = (matches_N & ~is_end_N).to(torch.int64)
    kept_B = 1 + goes_on_BQ.cumprod(-1).sum(-1)
    kept_N = rows.offset_N < kept_B[rows.row_N]
    accepted_B = torch.zeros_like(kept_B).scatter_add_(0, rows.row_N, (kept_N & matches_N).to(torch.int64))
    ended_B = torch.zeros_like(kept_B).scatter_add_(0, rows.row_N, (kept_N & is_end_N).to(torch.int64)) > 0
    _write(texts, drawn, kept_N, where, rows.offset_N)
    is_real_B = rows.slots_B < len(texts.lengths) - 1
    texts.lengths[rows.slots_B] = torch.where(is_real_B, texts.lengths[rows.slots_B] + kept_B, 0)
    texts.draft_lengths[rows.slots_B] = torch.where(is_real_B, texts.draft_lengths[rows.slots_B] + kept_B, 0)
    written_B = texts.lengths[rows.slots_B] + 1 - texts.starts[rows.slots_B]
    return DecodeResult(kept_B, accepted_B, ended_B | (written_B >= texts.limits[rows.slots_B]))


def grid_step(
    model: PreTrainedModel,
    texts: SlotTexts,
    attention: SlotAttention,
    batch_params: BatchSamplingParams,
    stop_token_ids_T: torch.Tensor,
    slots_B: torch.Tensor,
    max_drafts: int,
) -> tuple[DecodeResult, torch.Tensor]:
    """Advance B slots by one forward of 1 + ``max_drafts`` tokens each: look up, forward, draw, verify, write.

    The whole step as one function of fixed shape, for capture; one (B, ``max_drafts``) bucket a capture.

    Returns:
        What it did to its rows, and how many drafted tokens each of them verified, [B].
    """
    width = max_drafts + 1
    num_rows, device = len(slots_B), slots_B.device
    num_drafts_B = torch.zeros_like(slots_B)
    if max_drafts:
        drafts_BK, counts_B, _ = look_up(texts.draft_source[slots_B], texts.draft_lengths[slots_B], max_drafts)
        left_B = texts.limits[slots_B] - (texts.lengths[slots_B] + 1 - texts.starts[slots_B])
        num_drafts_B = torch.minimum(counts_B, (left_B - 1).clamp(min=0))
        place_drafts(texts, slots_B, drafts_BK)
    row_N = torch.arange(num_rows, device=device).repeat_interleave(width)
    offset_N = torch.arange(width, device=device).repeat(num_rows)
    slots_N, positions_N, pair_N = slots_B[row_N], texts.lengths[slots_B[row_N]] + offset_N, None
    if texts.pairs is not None:  # as many rows again; those without a partner work on the padding slot
        partners_B, firsts_B = texts.pairs.level(texts, slots_B, width)
        itself_N = torch.arange(num_rows * width, device=device)
        pair_N = torch.where((partners_B < len(texts.lengths) - 1)[row_N], itself_N + num_rows * width, itself_N)
        slots_N = torch.cat([slots_N, partners_B[row_N]])
        positions_N = torch.cat([positions_N, firsts_B[row_N] + offset_N])
    rows = Rows(slots_B, num_drafts_B, row_N, offset_N, width, pair_N)
    packing = Packing(slots_N, positions_N, None, len(slots_N) // width)
    hidden_MD = forward_hidden(model, texts, attention, packing)
    raw_MV = model.get_output_embeddings()(hidden_MD)
    settled = sample_and_verify(
        texts,
        batch_params,
        stop_token_ids_T,
        rows,
        raw_MV,
        head_of(model),
        hidden_MD,
        None,
        attention.kernels.name == "triton",
    )
    return settled, num_drafts_B


def place_drafts(texts: SlotTexts, slots_B: torch.Tensor, drafts_BK: torch.Tensor) -> None:
    """Write drafts behind the pending token of each slot."""
    places_BK = texts.lengths[slots_B][:, None] + 1 + torch.arange(drafts_BK.shape[1], device=slots_B.device)
    texts.tokens[slots_B[:, None], places_BK] = drafts_BK.clamp(min=0)


def _write(texts: SlotTexts, drawn: Draw, kept_N: torch.Tensor, where: Places, offset_N: torch.Tensor) -> None:
    slots_N = where.slots_N
    _keep(texts.tokens, (slots_N, where.positions_N + 1), drawn.token_ids, kept_N)
    _keep(texts.draft_source, (slots_N, texts.draft_lengths[slots_N] + offset_N), drawn.token_ids, kept_N)
    for buffer, value in (
        (texts.logprobs, drawn.logprobs),
        (texts.sampling_logprobs, drawn.sampling_logprobs),
        (texts.entropies, drawn.entropies),
    ):
        _keep(buffer, (slots_N, where.places_N), value.to(buffer.dtype), kept_N)


def _record(
    texts: SlotTexts, rows: Rows, where: Places, settled: DecodeResult, hidden_MD: torch.Tensor, top: TopLogprobs | None
) -> None:
    """Write what only some calls record of the tokens that were kept: of the row's own distribution, blended or not."""
    kept_N1 = (rows.offset_N < settled.kept_B[rows.row_N])[:, None]
    if texts.hidden is not None:
        _keep(texts.hidden, (where.slots_N, where.places_N), hidden_MD[: len(where.slots_N)], kept_N1)
    if top is not None and texts.top_token_ids is not None and texts.top_logprobs is not None:
        _keep(texts.top_token_ids, (where.slots_N, where.places_N), top.token_ids, kept_N1)
        logprobs_NK = top.logprobs.to(texts.top_logprobs.dtype)
        _keep(texts.top_logprobs, (where.slots_N, where.places_N), logprobs_NK, kept_N1)


def _record_blend(
    texts: SlotTexts, rows: Rows, where: Places, settled: DecodeResult, drawn: Draw, blended: Blended
) -> None:
    """Write how likely the tokens that were kept are under the bare prompt, and how they were blended."""
    assert texts.pairs is not None
    kept_N = rows.offset_N < settled.kept_B[rows.row_N]
    bare_N = logprobs_at(blended.bare_NV, drawn.token_ids)
    for buffer, value in ((texts.pairs.bare_logprobs, bare_N), (texts.pairs.blends, blended.weights_N)):
        _keep(buffer, (where.slots_N, where.places_N), value.to(buffer.dtype), kept_N)


def _keep(
    buffer: torch.Tensor, where: tuple[torch.Tensor, torch.Tensor], value: torch.Tensor, kept: torch.Tensor
) -> None:
    """Write the kept values and leave the other places as they are, at a fixed shape."""
    buffer[where] = torch.where(kept, value, buffer[where])
