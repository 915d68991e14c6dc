"""The plain backend: transformers' ``generate``, batched by length. Slow and simple: the oracle of others.

``generate`` runs greedily; a last logits processor adds the keyed noise, so its argmax is our draw and no
global random state is used. The processor list is ours: ``generate`` drops temperature, top-k and top-p when it
does not sample itself.

Shape letters: B rows of a batch, T prompt positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.rollout.backend import OnProgress, ignore_progress, no_trace
from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.sampling import Draw, SamplingLaw, cut_at_terminator, draw
from onpolicy_sdft.rollout.weights import merged_adapter
from onpolicy_sdft.types import Rollout, RolloutRequest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class HFBackend:
    """Rollouts through ``PreTrainedModel.generate`` on the weights being trained.

    Args:
        model: The live model, adapters in place.
        terminators: Token ids that end a completion.
        pad_token_id: Any valid id; padding is masked.
        batch_size: Completions written at once.
        merge_adapter: Decode from a merged scratch copy of the LoRA-targeted linears.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        terminators: Sequence[int],
        pad_token_id: int,
        batch_size: int,
        merge_adapter: bool = True,
    ) -> None:
        self.model = model
        self.terminators = tuple(terminators)
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size
        self.merge_adapter = merge_adapter

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        law: SamplingLaw,
        on_progress: OnProgress = ignore_progress,
    ) -> list[Rollout]:
        """Write one completion per request; see :class:`~onpolicy_sdft.rollout.backend.RolloutBackend`."""
        found: list[Rollout | None] = [None] * len(requests)
        merged = merged_adapter(self.model) if self.merge_adapter else contextlib.nullcontext()
        with no_trace(self.model), merged, _contiguous_head_input(inner_model(self.model)):
            for rows in self._batches(requests):
                batch = [requests[row] for row in rows]
                for row, rollout in zip(rows, self._write(batch, law, on_progress), strict=True):
                    found[row] = rollout
        return [rollout for rollout in found if rollout is not None]

    def _batches(self, requests: Sequence[RolloutRequest]) -> Iterator[list[int]]:
        # Neighbours in length share a batch: less padding in the prompts, fewer idle rows at the end.
        order = sorted(
            range(len(requests)),
            key=lambda row: (len(requests[row].prompt_token_ids), requests[row].max_new_tokens, row),
        )
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _write(self, requests: list[RolloutRequest], law: SamplingLaw, on_progress: OnProgress) -> list[Rollout]:
        model: Any = inner_model(self.model)
        device = model.get_input_embeddings().weight.device
        longest = max(len(request.prompt_token_ids) for request in requests)
        input_ids_BT = torch.full((len(requests), longest), self.pad_token_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(input_ids_BT)
        for row, request in enumerate(requests):
            ids = torch.tensor(request.prompt_token_ids, dtype=torch.int64)
            input_ids_BT[row, longest - len(ids) :] = ids
            mask_BT[row, longest - len(ids) :] = 1
        drawing = _KeyedDrawing(requests, law, longest, self.terminators, on_progress)
        # A blank config: the checkpoint's own would fill every unset field (top_k, repetition penalty, ...).
        own_config = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            model.generate(
                input_ids=input_ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                logits_processor=LogitsProcessorList([drawing]),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(request.max_new_tokens for request in requests),
                    eos_token_id=list(self.terminators),
                    pad_token_id=self.pad_token_id,
                    use_cache=True,
                ),
            )
        finally:
            model.generation_config = own_config
        return drawing.rollouts()


@contextlib.contextmanager
def _contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Make the slice of the last position contiguous before it meets the head.

    Otherwise the first product of a batch copies the head's weight once per row (seconds on a CPU).
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


class _KeyedDrawing(LogitsProcessor):
    """Draws and records each token; what it returns makes ``generate``'s argmax that token."""

    def __init__(
        self,
        requests: list[RolloutRequest],
        law: SamplingLaw,
        prompt_length: int,
        terminators: tuple[int, ...],
        on_progress: OnProgress,
    ) -> None:
        self.requests = requests
        self.law = law
        self.processors = law.processors()
        self.prompt_length = prompt_length
        self.terminators = frozenset(terminators)
        self.on_progress = on_progress
        self.words_B2 = key_words([request.key for request in requests])
        self.draws: list[Draw] = []
        self.live = [True] * len(requests)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.prompt_length
        positions_B = torch.full((len(self.requests),), position, device=scores.device)
        drawn = draw(scores, self.law, self.processors, self.words_B2.to(scores.device), positions_B)
        self.draws.append(
            Draw(scores[:, :0], drawn.token_ids, drawn.logprobs, drawn.sampling_logprobs, drawn.entropies)
        )
        self._report(drawn.token_ids.tolist(), position)
        return drawn.scores

    def _report(self, token_ids: list[int], position: int) -> None:
        num_live = sum(self.live)
        for row, token in enumerate(token_ids):
            limit = self.requests[row].max_new_tokens
            self.live[row] = self.live[row] and token not in self.terminators and position + 1 < limit
        self.on_progress(num_live - sum(self.live), num_live)

    def rollouts(self) -> list[Rollout]:
        token_ids = torch.stack([d.token_ids for d in self.draws], dim=1).tolist()
        logprobs = torch.stack([d.logprobs for d in self.draws], dim=1).tolist()
        sampling = torch.stack([d.sampling_logprobs for d in self.draws], dim=1).tolist()
        entropies = torch.stack([d.entropies for d in self.draws], dim=1).tolist()
        found = []
        for row, request in enumerate(self.requests):
            kept, stopped = cut_at_terminator(token_ids[row], self.terminators, request.max_new_tokens)
            found.append(
                Rollout(
                    key=request.key,
                    prompt_token_ids=request.prompt_token_ids,
                    token_ids=tuple(token_ids[row][:kept]),
                    logprobs=tuple(logprobs[row][:kept]),
                    sampling_logprobs=tuple(sampling[row][:kept]),
                    entropies=tuple(entropies[row][:kept]),
                    finish_reason="stop" if stopped else "length",
                )
            )
        return found
