"""Which models the engine can serve, found out before the first token: by what the config says, and by trying."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from onpolicy_sdft.models.lora import embedding_weight
from onpolicy_sdft.models.policy import body
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.attention import KernelName, SlotAttention, UnsupportedModel, slot_attention_on
from onpolicy_sdft.rollout.kernels import make_kernels
from onpolicy_sdft.rollout.slots import LayerShape, Packing, Segment, SlotCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_MOVING_ROPES = {"dynamic", "longrope"}  # their frequencies depend on the longest position of the batch
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
_LARGEST_TOLERANCE = 0.5  # a mask or a position that is wrong is further off than this
_TRIED_LENGTHS = (5, 9, 12)


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine needs to know of a model it can serve."""

    shapes: tuple[LayerShape, ...]  # of its attention layers, in the order of the cache


def examine(model: PreTrainedModel, kernels: KernelName) -> Served:
    """Find out whether the engine writes what the model would write itself.

    Its config is read first; then three short texts are run through the slots, in two forwards, and compared with
    the model's own hidden states.

    Args:
        model: In place on its device.
        kernels: Implementation of attention that is to serve it.

    Raises:
        UnsupportedModel: With the reason, if it does not.
    """
    _refuse_by_config(model)
    try:
        with no_trace(model):
            served, differs = _try(model, kernels)
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever a model's own code raises when its cache or attention is another
        raise UnsupportedModel(f"its forward failed over slots ({type(error).__name__}: {error})") from error
    if differs:
        raise UnsupportedModel(differs)
    return served


def _refuse_by_config(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel("it does not take its attention from AttentionInterface")
    if getattr(model, "_is_stateful", False) or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel("it is recurrent or an encoder-decoder: there is no position to go back to")
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - _LAYER_TYPES)
    if others:
        raise UnsupportedModel(f"it has layers of type {', '.join(others)}")
    moving = sorted(_MOVING_ROPES & set(_rope_types(config)))
    if moving:
        raise UnsupportedModel(f"its rope type {moving[0]} depends on the longest text of a batch")


def _rope_types(config: Any) -> Iterator[str]:
    waiting = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield str(item.get("rope_type", item.get("type", "default")))
            waiting += item.values()


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


def _texts(vocab_size: int) -> list[tuple[int, ...]]:
    """Return short texts of ids from all over the vocabulary: the first ids are often special, and never trained."""
    ids = [(12_345 + 7_919 * place) % vocab_size for place in range(sum(_TRIED_LENGTHS))]
    ends = list(accumulate(_TRIED_LENGTHS))
    return [tuple(ids[end - length : end]) for end, length in zip(ends, _TRIED_LENGTHS, strict=True)]


def _try(model: PreTrainedModel, kernels: KernelName) -> tuple[Served, str]:
    weight = embedding_weight(model)
    shapes = _shapes(model)
    config = model.config.get_text_config()
    tried = _texts(config.vocab_size)
    own = [_own_hidden(model, text) for text in tried]
    length = max(_TRIED_LENGTHS) + 1
    how = make_kernels(kernels, length, weight.device)
    attention = SlotAttention(SlotCache(shapes, len(tried), length, weight.dtype, weight.device, how), watching=True)
    with slot_attention_on(model):
        _run(model, attention, [(slot, 0, text[:-1]) for slot, text in enumerate(tried)])
        attention.watching = False
        ours = _run(model, attention, [(slot, len(text) - 1, text[-1:]) for slot, text in enumerate(tried)])
    middle = _middle_distance(ours, own)
    if not middle < _TOLERANCE[weight.dtype] and not middle < min(_LARGEST_TOLERANCE, 3 * _rounding(model, tried, own)):
        return Served(shapes), f"its hidden states over slots are {middle:.2g} (relative) off its own"
    return Served(shapes), _wrong_window(config, [each.window for each in attention.seen.values()])


def _own_hidden(model: PreTrainedModel, text: tuple[int, ...], disturbance: float = 0.0) -> torch.Tensor:
    """Return the final hidden state [D] behind a text, with its embeddings disturbed relatively by so much."""
    ids = torch.tensor([text], device=embedding_weight(model).device)
    asked = {"input_ids": ids}
    if disturbance:
        embedded = model.get_input_embeddings()(ids)
        noise = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded.device)
        asked = {"inputs_embeds": embedded * (1 + disturbance * noise).to(embedded.dtype)}
    hidden: torch.Tensor = body(model)(**asked, use_cache=False).last_hidden_state[0, -1]
    return hidden


def _middle_distance(found: Iterable[torch.Tensor], own: Sequence[torch.Tensor]) -> float:
    """Return the median relative distance: in bfloat16 one text may be sent to other experts."""
    pairs = zip(found, own, strict=True)
    distances: list[float] = sorted(((mine - theirs).norm() / theirs.norm()).item() for mine, theirs in pairs)
    return distances[len(own) // 2]


def _rounding(model: PreTrainedModel, tried: Sequence[tuple[int, ...]], own: Sequence[torch.Tensor]) -> float:
    """Return the median distance that rounding of the embeddings alone makes: in some trained models it grows a lot."""
    dtype = embedding_weight(model).dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return 0.0
    return _middle_distance([_own_hidden(model, text, torch.finfo(dtype).eps) for text in tried], own)


def _run(
    model: PreTrainedModel, attention: SlotAttention, texts: list[tuple[int, int, tuple[int, ...]]]
) -> torch.Tensor:
    """Run (slot, position, ids) texts as one packed forward; return the hidden state at the end of each."""
    device = embedding_weight(model).device
    segments, start = [], 0
    for slot, position, ids in texts:
        segments.append(Segment(start, len(ids), slot, position))
        start += len(ids)
    packing = Packing.of(segments, device)
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


def _wrong_window(config: Any, windows: list[int]) -> str:
    """A window longer than the texts that were tried shows in the keywords alone."""
    window = getattr(config, "sliding_window", None) or 0
    one_kind = "sliding_attention" if window else "full_attention"
    kinds = getattr(config, "layer_types", None) or [one_kind] * len(windows)
    for layer, kind in enumerate(kinds[: len(windows)]):
        expected = window if kind == "sliding_attention" else 0
        if windows[layer] != expected:
            return f"layer {layer} ({kind}) passes a window of {windows[layer]}, its config says {expected}"
    return ""
