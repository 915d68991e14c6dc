"""What drawn tokens do to their row, in one kernel: compare with drafts, keep, write, count.

Shape letters: B rows (one slot each), Q tokens a row, N = B * Q, T stop tokens, S slots, L positions of a slot, X
positions of a draft source, C places of a completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.decode import Rows
    from onpolicy_sdft.rollout.sampling import Draw
    from onpolicy_sdft.rollout.slots import SlotTexts


@triton.jit(do_not_specialize=["width", "padding_slot", "num_stops"])
def settle(
    drawn_ptr, logprobs_ptr, sampling_ptr, entropies_ptr, slots_ptr, num_drafts_ptr,
    stops_ptr, tokens_ptr, tokens_stride, source_ptr, source_stride, lengths_ptr,
    starts_ptr, limits_ptr, source_lengths_ptr, recorded_logprobs_ptr, recorded_sampling_ptr, recorded_entropies_ptr,
    recorded_stride, kept_ptr, accepted_ptr, done_ptr, padding_slot, width, num_stops,
    WIDTH: tl.constexpr, STOPS: tl.constexpr,
):  # fmt: skip
    """Settle one row of drawn tokens: grid [B]. The padding slot stays as it is."""
    b = tl.program_id(0)
    slot = tl.load(slots_ptr + b)
    length, start = tl.load(lengths_ptr + slot), tl.load(starts_ptr + slot)
    source_length = tl.load(source_lengths_ptr + slot)
    q = tl.arange(0, WIDTH)
    inside = q < width
    drawn = tl.load(drawn_ptr + b * width + q, mask=inside, other=-1)
    next_token = tokens_ptr + slot * tokens_stride + length + 1 + q
    matches = inside & (q < tl.load(num_drafts_ptr + b)) & (drawn == tl.load(next_token, mask=inside, other=-2))
    stop = tl.arange(0, STOPS)
    stops = tl.load(stops_ptr + stop, mask=stop < num_stops, other=-3)
    is_end = tl.max((drawn[:, None] == stops[None]).to(tl.int32), 1) > 0
    # Up to and including the first that ends the row or is not its draft; nobody drafts the last.
    kept = tl.min(tl.where(matches & (is_end == 0), WIDTH, q), 0) + 1
    is_kept = q < kept
    writes = is_kept & (slot != padding_slot)
    tl.store(next_token, drawn, mask=writes)
    tl.store(source_ptr + slot * source_stride + source_length + q, drawn, mask=writes)
    place = slot * recorded_stride + length + 1 - start + q
    kind = recorded_logprobs_ptr.dtype.element_ty
    tl.store(recorded_logprobs_ptr + place, tl.load(logprobs_ptr + b * width + q, mask=inside).to(kind), mask=writes)
    tl.store(recorded_sampling_ptr + place, tl.load(sampling_ptr + b * width + q, mask=inside).to(kind), mask=writes)
    tl.store(recorded_entropies_ptr + place, tl.load(entropies_ptr + b * width + q, mask=inside).to(kind), mask=writes)
    is_real = slot != padding_slot
    length = tl.where(is_real, length + kept, 0)
    tl.store(lengths_ptr + slot, length)
    tl.store(source_lengths_ptr + slot, tl.where(is_real, source_length + kept, 0))
    tl.store(kept_ptr + b, kept.to(tl.int64))
    tl.store(accepted_ptr + b, tl.sum((is_kept & matches).to(tl.int64), 0))
    ended = tl.max((is_kept & is_end).to(tl.int32), 0) > 0
    tl.store(done_ptr + b, ended | (length + 1 - start >= tl.load(limits_ptr + slot)))


def settle_rows(
    texts: SlotTexts, stop_token_ids_T: torch.Tensor, rows: Rows, drawn: Draw
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write the drawn tokens that a [B, Q] grid keeps; return kept, accepted [B] int64 and done [B] bool."""
    kept_B, accepted_B = torch.empty_like(rows.slots_B), torch.empty_like(rows.slots_B)
    done_B = torch.empty_like(rows.slots_B, dtype=torch.bool)
    settle[(len(rows.slots_B),)](
        drawn.token_ids, drawn.logprobs, drawn.sampling_logprobs, drawn.entropies, rows.slots_B, rows.num_drafts_B,
        stop_token_ids_T, texts.tokens, texts.tokens.stride(0), texts.draft_source, texts.draft_source.stride(0),
        texts.lengths, texts.starts, texts.limits, texts.draft_lengths, texts.logprobs, texts.sampling_logprobs,
        texts.entropies, texts.logprobs.stride(0), kept_B, accepted_B, done_B, len(texts.lengths) - 1, rows.width,
        len(stop_token_ids_T), WIDTH=triton.next_power_of_2(rows.width),
        STOPS=triton.next_power_of_2(max(len(stop_token_ids_T), 1)), num_warps=1,
    )  # fmt: skip
    return kept_B, accepted_B, done_B
