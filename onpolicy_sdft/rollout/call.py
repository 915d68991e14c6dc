"""One call of the engine: prompts are admitted and packed, live slots advance, finished texts leave their slots."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from onpolicy_sdft.models.policy import head_of
from onpolicy_sdft.rollout.backend import NO_LISTENER
from onpolicy_sdft.rollout.decode import DecodeResult, Rows, forward_hidden, place_drafts, sample_and_verify
from onpolicy_sdft.rollout.drafts import lay_out, look_up
from onpolicy_sdft.rollout.joining import Joining
from onpolicy_sdft.rollout.memory import choose_prefill_tokens
from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.sampling import CANDIDATES, BatchSamplingParams, Vocabulary
from onpolicy_sdft.rollout.scheduler import PromptPiece, Scheduler
from onpolicy_sdft.rollout.slots import Packing, Segment
from onpolicy_sdft.rollout.speculation import choose_drafts
from onpolicy_sdft.shapes import pad_rows, round_rows, round_tokens
from onpolicy_sdft.types import RecordOptions, Rollout, RolloutProgress, RolloutRequest, SamplingParams, TopLogprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.backend import Listener, OnProgress
    from onpolicy_sdft.rollout.engine import RolloutEngine
    from onpolicy_sdft.rollout.pool import Pool

#: A call that ends decodes every count of rows in turn, so that finer steps are seen at once and cost little memory.
_decode_rows = partial(round_rows, an_octave=8)


class Call:
    """One call of the engine."""

    def __init__(
        self,
        engine: RolloutEngine,
        model: PreTrainedModel,
        pool: Pool,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_progress: OnProgress,
        record: RecordOptions,
        listener: Listener = NO_LISTENER,
    ) -> None:
        self.engine, self.model, self.pool = engine, model, pool
        self.requests, self.on_progress, self.record = list(requests), on_progress, record
        self.params, self.joining = params, Joining(listener)
        self.texts, self.attention = pool.texts, pool.attention
        self.device = pool.texts.tokens.device
        self.stop_token_ids_T = engine.stop_token_ids_T
        self.texts.pairs = None
        self._lay_out_requests()
        prefill_tokens = choose_prefill_tokens(engine.options.prefill_tokens, self.device)
        self.scheduler = Scheduler(self.requests, pool.num_slots, prefill_tokens)
        self.stats = engine.stats
        self.draft_ends: dict[int, list[int]] = {}  # slot -> where each text of its draft source ends
        self.drafted: dict[int, list[int]] = {}  # slot -> draft tokens kept and looked at so far
        self.written: dict[int, int] = {}  # slot -> tokens of its completion so far
        self.prompt_ends: dict[int, torch.Tensor] = {}  # slot -> hidden state at its prompt's end, not drawn from yet
        pool.cache.kernels.seconds = 0.0
        self.texts.lengths.zero_()
        self.texts.draft_lengths.zero_()

    def run(self) -> None:
        """Admit, decode, collect, until nobody waits, no slot is live and the listener asks for nothing more."""
        try:
            while self.scheduler.num_waiting or self.scheduler.live or self._join(is_last=True):
                self._join()
                self._admit()
                if self.scheduler.live:
                    self._decode()
        finally:
            self.stats.attention_seconds += self.pool.cache.kernels.seconds

    def _join(self, is_last: bool = False) -> bool:
        """Take in what the listener asks for by now, and say whether there was any that these slots can hold."""
        more = self.joining.more(None if is_last else self.stats.num_decode_forwards)
        if not more:
            return False
        first = len(self.requests)
        self.requests += more
        self._lay_out_requests()
        fits = [self.pool.holds(request, self.engine.options.max_draft_tokens) for request in more]
        for index, does_fit in enumerate(fits, first):
            if does_fit:  # the engine writes the others in a call of their own
                self.scheduler.add(index)
        return any(fits)

    def _lay_out_requests(self) -> None:
        """Put the sampling parameters and keys of all requests into tensors; make room for partners if any has one."""
        vocab_size = head_of(self.model).weight_VD.shape[0]
        vocabulary = (self.engine.vocabulary or Vocabulary(vocab_size)).within(vocab_size)
        each = [request.params or self.params for request in self.requests] or [self.params]
        self.batch_params = BatchSamplingParams.of(each, vocabulary, self.device)
        self.pool.batch_params = replace(
            self.pool.batch_params,
            is_raw=self.batch_params.is_raw, is_filtered=self.batch_params.is_filtered,
            is_penalised=self.batch_params.is_penalised,
            vocabulary=vocabulary,
        )  # fmt: skip
        self.words_R2 = key_words([request.key for request in self.requests]).to(self.device)
        blends = [request.blend for request in self.requests if request.blend is not None]
        if blends:
            self.pool.pair_up(is_budgeted=any(blend.budget is not None for blend in blends))

    def _admit(self) -> None:
        """Fill free slots and run their prompts; texts that end with their first token free them again."""
        started = time.perf_counter()
        while slots := self.scheduler.admit():
            self._seat(slots)
            while True:
                copies, pieces, num_shared = self.scheduler.next_pack()
                if not pieces:
                    break
                self.pool.cache.copy_prefixes(copies)
                self.stats.num_shared_tokens += num_shared
                self._prefill(pieces)
                self.scheduler.filled(pieces)
        self.stats.prefill_seconds += time.perf_counter() - started

    def _seat(self, slots: list[int]) -> None:
        """Write what newly admitted requests need into their slots."""
        texts, indices = self.texts, [self._request_in(slot) for slot in slots]
        requests = [self.requests[index] for index in indices]
        where = torch.tensor(slots, device=self.device)
        self._seat_prompts(slots, [request.prompt_token_ids for request in requests])
        self._seat_partners(slots, requests)
        texts.limits[where] = torch.tensor([request.max_new_tokens for request in requests], device=self.device)
        texts.words[where] = self.words_R2[indices]
        self.pool.batch_params.put(where, self.batch_params, torch.tensor(indices, device=self.device))
        rows = []
        for slot, request in zip(slots, requests, strict=True):
            row, self.draft_ends[slot] = lay_out(request.prompt_token_ids, request.draft_token_ids)
            rows.append(torch.tensor(row))
            self.drafted[slot] = [0, 0]
        padded = pad_sequence(rows, batch_first=True).to(self.device)
        texts.draft_source[where, : padded.shape[1]] = padded
        texts.draft_lengths[where] = torch.tensor([len(row) for row in rows], device=self.device)

    def _seat_prompts(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        padded = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(self.device)
        self.texts.tokens[slots, : padded.shape[1]] = padded
        self.texts.starts[slots] = torch.tensor([len(prompt) for prompt in prompts], device=self.device)

    def _seat_partners(self, slots: Sequence[int], requests: Sequence[RolloutRequest]) -> None:
        """Write bare prompts into the partners of slots, and how the pairs are blended."""
        if self.texts.pairs is None:
            return
        self.texts.pairs.seat(slots, self.scheduler.partner_of, [request.blend for request in requests])
        blends = [request.blend for request in requests if request.blend is not None]
        if blends:
            self._seat_prompts(self._partners(slots), [blend.prompt_token_ids for blend in blends])

    def _request_in(self, slot: int) -> int:
        index = self.scheduler.request_of[slot]
        assert index is not None
        return index

    def _prefill(self, pieces: Sequence[PromptPiece]) -> None:
        """Run pieces of prompts as one packed forward and draw the first token behind each whole prompt, or pair."""
        segments, start = [], 0
        for piece in pieces:
            segments.append(Segment(start, piece.count, piece.slot, piece.first))
            start += piece.count
        hidden_ND = self._forward(segments, round_tokens)
        self.stats.num_prefill_forwards += 1
        for segment, piece in zip(segments, pieces, strict=True):
            if piece.is_last:
                self.prompt_ends[piece.slot] = hidden_ND[segment.start + segment.count - 1]
        there, request_of, partner_of = self.prompt_ends, self.scheduler.request_of, self.scheduler.partner_of
        slots = [slot for slot in there if request_of[slot] is not None and partner_of.get(slot, slot) in there]
        if not slots:
            return
        ends = [self.prompt_ends.pop(slot) for slot in (*slots, *self._partners(slots))]
        slots_B = torch.tensor(slots, device=self.device)
        self.texts.lengths[slots_B] = self.texts.starts[slots_B] - 1  # the prompt's last token is pending
        settled = self._settle(pad_rows(torch.stack(ends), round_rows(len(ends))), slots, [0] * len(slots))
        self._collect(slots, settled)

    def _decode(self) -> None:
        """Advance every live slot by one forward."""
        started = time.perf_counter()
        slots = self.scheduler.live
        num_drafts, kinds = self._draft(slots)
        self.stats.draft_seconds += time.perf_counter() - started
        hidden_ND = self._forward(self._segments(slots, num_drafts), _decode_rows)
        settled = self._settle(hidden_ND, slots, num_drafts)
        accepted = settled.accepted_B.tolist()
        self.stats.num_decode_forwards += 1
        self.stats.num_decode_rows += len(slots)
        self.stats.num_decode_slots += self.pool.num_slots
        self.stats.num_drafted_tokens += sum(num_drafts)
        self.stats.num_accepted_tokens += sum(accepted)
        for slot, kind, drafts, kept in zip(slots, kinds, num_drafts, accepted, strict=True):
            if drafts:
                seen = min(drafts, kept + 1)
                self.engine.acceptance.saw(kind, kept, seen)
                self.drafted[slot][0] += kept
                self.drafted[slot][1] += seen
        self._collect(slots, settled)
        self.stats.decode_seconds += time.perf_counter() - started

    def _partners(self, slots: Sequence[int]) -> list[int]:
        """Return the partners of those slots that have one, in order."""
        return [self.scheduler.partner_of[slot] for slot in slots if slot in self.scheduler.partner_of]

    def _num_prompts(self) -> int:
        """Slots that a text of this call is written in, at most."""
        return 1 if self.texts.pairs is None else 2

    def _segments(self, slots: list[int], num_drafts: list[int]) -> list[Segment]:
        """Lay pending tokens and drafts behind one another: those of the slots, then those of their partners."""
        counts = dict(zip(slots, (1 + drafts for drafts in num_drafts), strict=True))
        places = list(zip(slots, slots, self.texts.lengths[slots].tolist(), strict=True))
        paired = [slot for slot in slots if slot in self.scheduler.partner_of]
        if self.texts.pairs is not None and paired:
            paired_B = torch.tensor(paired, device=self.device)
            _, firsts_B = self.texts.pairs.level(self.texts, paired_B, max(counts.values()))
            places += zip(paired, self._partners(paired), firsts_B.tolist(), strict=True)
        segments, start = [], 0
        for slot, home, length in places:
            segments.append(Segment(start, counts[slot], home, length))
            start += counts[slot]
        return segments

    def _draft(self, slots: list[int]) -> tuple[list[int], list[int]]:
        """Write drafts behind the pending tokens; return how many each slot verifies and where they came from."""
        texts, max_drafts = self.texts, self.engine.options.max_draft_tokens
        if not max_drafts or (self.engine.costs is None and not self.engine.options.deterministic):
            return [0] * len(slots), [0] * len(slots)
        slots_B = torch.tensor(slots, device=self.device)
        longest = int(texts.draft_lengths[slots_B].max())
        drafts_BK, counts_B, places_B = look_up(
            texts.draft_source[slots_B, :longest], texts.draft_lengths[slots_B], max_drafts
        )
        written_B = texts.lengths[slots_B] + 1 - texts.starts[slots_B]
        counts = torch.minimum(counts_B, (texts.limits[slots_B] - written_B - 1).clamp(min=0)).tolist()
        kinds = [
            sum(place >= end for end in self.draft_ends[slot])
            for slot, place in zip(slots, places_B.tolist(), strict=True)
        ]
        rates = [
            self.engine.acceptance.rate(kind, *self.drafted[slot]) for slot, kind in zip(slots, kinds, strict=True)
        ]
        num_drafts = choose_drafts(rates, counts, self.engine.costs, self._num_prompts())
        if any(num_drafts):
            place_drafts(texts, slots_B, drafts_BK)
        return num_drafts, kinds

    def _forward(self, segments: list[Segment], rounded: Callable[[int], int]) -> torch.Tensor:
        """Run segments through the layers: their final hidden states, and behind them those of padding."""
        num_tokens = segments[-1].start + segments[-1].count
        num_padding = rounded(num_tokens) - num_tokens
        self.stats.num_forward_tokens += num_tokens
        self.stats.num_padding_tokens += num_padding
        return self._run(segments, num_padding)

    def _run(self, segments: list[Segment], num_padding: int) -> torch.Tensor:
        packing = Packing.of(segments, self.device, num_padding, self.pool.cache.padding_slot)
        return forward_hidden(self.model, self.texts, self.attention, packing)

    def _settle(self, hidden_MD: torch.Tensor, slots: list[int], num_drafts: list[int]) -> DecodeResult:
        """Draw behind the tokens of a forward, their partners and padding, which is read no further."""
        started = time.perf_counter()
        row_N = [row for row, n in enumerate(num_drafts) for _ in range(n + 1)]
        rows = Rows(
            slots_B=torch.tensor(slots, device=self.device),
            num_drafts_B=torch.tensor(num_drafts, device=self.device),
            row_N=torch.tensor(row_N, device=self.device),
            offset_N=torch.tensor([i for n in num_drafts for i in range(n + 1)], device=self.device),
            width=max(num_drafts) + 1,
            pair_N=self._pair([slots[row] for row in row_N]),
        )
        num_tokens = len(row_N) + sum(slots[row] in self.scheduler.partner_of for row in row_N)
        settled = sample_and_verify(
            self.texts, self.pool.batch_params, self.stop_token_ids_T, rows,
            self.model.get_output_embeddings()(hidden_MD)[:num_tokens], head_of(self.model), hidden_MD,
            num_candidates=CANDIDATES,
            kernels=self.attention.kernels.name == "triton" and not any(num_drafts),  # these take full grids only
        )  # fmt: skip
        self.stats.sampling_seconds += time.perf_counter() - started
        return settled

    def _pair(self, slots_N: list[int]) -> torch.Tensor | None:
        """Return which token of the forward each is blended with, given its slot; None where no slot has a partner."""
        has_partner = [slot in self.scheduler.partner_of for slot in slots_N]
        if not any(has_partner):
            return None
        behind = itertools.count(len(slots_N))  # partners' tokens stand behind, in the same order
        return torch.tensor([next(behind) if has else n for n, has in enumerate(has_partner)], device=self.device)

    def _collect(self, slots: list[int], settled: DecodeResult) -> None:
        """Count what a forward wrote, and take out what has ended."""
        kept, done = torch.stack([settled.kept_B, settled.done_B.to(torch.int64)]).tolist()
        for slot, num_kept in zip(slots, kept, strict=True):
            self.written[slot] = self.written.get(slot, 0) + num_kept
        self._leave([slot for slot, is_done in zip(slots, done, strict=True) if is_done], sum(kept))

    def _leave(self, finished: list[int], num_tokens: int) -> None:
        """Take finished texts out of their slots, all in one copy, and say how far the call has come."""
        self.stats.num_tokens += num_tokens
        indices = [self._request_in(slot) for slot in finished]
        for slot, index, rollout in zip(finished, indices, self._rollouts(finished, indices), strict=True):
            self.scheduler.release(slot)
            del self.written[slot]
            self.joining.ended(index, rollout, self.stats.num_decode_forwards)
        self.on_progress(RolloutProgress(len(finished), num_tokens, len(self.scheduler.live), self.stats.accept_rate))

    def _rollouts(self, slots: list[int], indices: list[int]) -> list[Rollout]:
        if not slots:
            return []
        texts, lengths = self.texts, [self.written[slot] for slot in slots]
        slots_F = torch.tensor(slots, device=self.device)
        places_C = torch.arange(max(lengths), device=self.device)
        where_FC = (texts.starts[slots_F][:, None] + places_C).clamp(max=texts.tokens.shape[1] - 1)
        ids_FC = texts.tokens[slots_F[:, None], where_FC]
        buffers = [texts.logprobs, texts.sampling_logprobs, texts.entropies]
        if texts.pairs is not None:
            buffers += [texts.pairs.bare_logprobs, texts.pairs.blends]
        recorded = [buffer[slots_F, : max(lengths)] for buffer in buffers]
        # Ids are exact in float64, so that everything travels together.
        columns = torch.stack([each.to(torch.float64) for each in (ids_FC, *recorded)], dim=1).cpu()
        return [
            self._rollout(slot, self.requests[index], columns_XC[:, :length])
            for slot, index, length, columns_XC in zip(slots, indices, lengths, columns, strict=True)
        ]

    def _rollout(self, slot: int, request: RolloutRequest, columns_XC: torch.Tensor) -> Rollout:
        texts, length = self.texts, columns_XC.shape[1]
        token_ids = tuple(columns_XC[0].to(torch.int64).tolist())
        logprobs, sampling_logprobs, entropies, *of_pair = (tuple(column.tolist()) for column in columns_XC[1:])
        bare_logprobs, blends = of_pair if request.blend is not None else ((), ())
        self.stats.blend_sum += sum(blends)
        self.stats.num_blended_tokens += len(blends)
        top = None
        if texts.top_token_ids is not None and texts.top_logprobs is not None:
            top = TopLogprobs(texts.top_token_ids[slot, :length].clone(), texts.top_logprobs[slot, :length].clone())
        return Rollout(
            key=request.key,
            prompt_token_ids=request.prompt_token_ids,
            token_ids=token_ids,
            logprobs=logprobs,
            sampling_logprobs=sampling_logprobs,
            entropies=entropies,
            finish_reason="stop" if token_ids[-1] in self.engine.stop_token_ids else "length",
            hidden=None if texts.hidden is None else texts.hidden[slot, :length].clone(),
            bare_logprobs=bare_logprobs,
            blends=blends,
            top=top,
        )

    def time_step(self, num_rows: int, width: int, context: int) -> float:
        """Run one decode forward over slots that hold nothing, and return its seconds."""
        started = time.perf_counter()
        slots = list(range(num_rows))
        self._lay_out(num_rows, width, context)
        segments = [Segment(row * width, width, row, context) for row in slots]
        hidden_ND = self._run(segments, _decode_rows(num_rows * width) - num_rows * width)
        self._settle(hidden_ND, slots, [width - 1] * num_rows).kept_B.tolist()
        return time.perf_counter() - started

    def _lay_out(self, num_rows: int, width: int, context: int) -> None:
        """Put texts of ``context`` positions, about to end, into the first slots."""
        texts = self.texts
        texts.lengths[:num_rows] = context
        texts.starts[:num_rows] = context
        texts.limits[:num_rows] = width + 1
        texts.draft_lengths[:num_rows] = 0
