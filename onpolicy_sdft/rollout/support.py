"""Which models the engine can serve, found out before the first token: by what the config says, and by trying."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from onpolicy_sdft.models.lora import embedding_weight
from onpolicy_sdft.models.policy import body
from onpolicy_sdft.models.seam import UnsupportedModel, refuse_by_config, wrong_window
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.models.trial import how_far_off, own_hidden, texts
from onpolicy_sdft.rollout.attention import KernelName, SlotAttention, slot_attention_on
from onpolicy_sdft.rollout.kernels import make_kernels
from onpolicy_sdft.rollout.slots import LayerShape, Packing, Segment, SlotCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def examine(model: PreTrainedModel, kernels: KernelName) -> tuple[LayerShape, ...]:
    """Find out whether the engine writes what the model would write itself.

    Its config is read first; then three short texts are run through the slots, in two forwards, and compared with
    the model's own hidden states.

    Args:
        model: In place on its device.
        kernels: Implementation of attention that is to serve it.

    Returns:
        The shapes of its attention layers, in the order of the cache.

    Raises:
        UnsupportedModel: With the reason, if it does not.
    """
    refuse_by_config(model)
    try:
        with no_trace(model):
            shapes, differs = _try(model, kernels)
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever a model's own code raises when its cache or attention is another
        raise UnsupportedModel(f"its forward failed over slots ({type(error).__name__}: {error})") from error
    if differs:
        raise UnsupportedModel(differs)
    return shapes


class _ShapeRecorder(Cache):
    """Notes what each layer would cache, and caches nothing."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.shapes: dict[int, LayerShape] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes[layer_idx] = LayerShape(key_states.shape[1], key_states.shape[-1], value_states.shape[-1])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0


def _shapes(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    recorder = _ShapeRecorder()
    ids = torch.ones(1, 1, dtype=torch.int64, device=embedding_weight(model).device)
    body(model)(input_ids=ids, position_ids=torch.zeros_like(ids), past_key_values=recorder, use_cache=True)
    if sorted(recorder.shapes) != list(range(len(recorder.shapes))) or not recorder.shapes:
        raise UnsupportedModel("its attention layers do not fill a cache one by one")
    return tuple(recorder.shapes[layer] for layer in range(len(recorder.shapes)))


def _try(model: PreTrainedModel, kernels: KernelName) -> tuple[tuple[LayerShape, ...], str]:
    weight = embedding_weight(model)
    shapes = _shapes(model)
    config = model.config.get_text_config()
    tried = texts(config.vocab_size)
    own = [own_hidden(model, text) for text in tried]
    length = max(map(len, tried)) + 1
    how = make_kernels(kernels, length, weight.device)
    attention = SlotAttention(SlotCache(shapes, len(tried), length, weight.dtype, weight.device, how), watching=True)
    with slot_attention_on(model):
        _run(model, attention, [(slot, 0, text[:-1]) for slot, text in enumerate(tried)])
        attention.watching = False
        last = [(slot, len(text) - 1, text[-1:]) for slot, text in enumerate(tried)]
        ours = _run(model, attention, last, as_grid=how.key_block == 0)  # as a GPU decodes
    if off := how_far_off(model, tried, ours, own):
        return shapes, f"its hidden states over slots are {off:.2g} (relative) off its own"
    return shapes, wrong_window(config, [each.window for each in attention.seen])


def _run(
    model: PreTrainedModel,
    attention: SlotAttention,
    texts: list[tuple[int, int, tuple[int, ...]]],
    *,
    as_grid: bool = False,
) -> torch.Tensor:
    """Run (slot, position, ids) texts as one packed forward; return the hidden state at the end of each.

    As a grid they are of one token each.
    """
    device = embedding_weight(model).device
    segments, start = [], 0
    for slot, position, ids in texts:
        segments.append(Segment(start, len(ids), slot, position))
        start += len(ids)
    packing = Packing.of(segments, device)
    if as_grid:
        packing = replace(packing, segments=None, rows=len(segments))
    attention.begin(packing)
    flat = torch.tensor([[i for _, _, ids in texts for i in ids]], device=device)
    hidden = body(model)(
        input_ids=flat,
        position_ids=packing.positions_N[None],
        past_key_values=attention.cache,
        use_cache=True,
        slots=attention,
    ).last_hidden_state[0]
    found: torch.Tensor = hidden[[s.start + s.count - 1 for s in segments]]
    return found
