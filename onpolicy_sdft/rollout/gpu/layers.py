"""Whole decoder layers in nine kernels: norm, product, heads, attention, product; norm, product, gate, product.

A layer of the usual kind (two norms, attention, a gated unit) is run by :class:`FusedLayer` where that gives what the
layer gives itself, tried on numbers at several positions of scratch slots. Residuals are added by the products.
Whatever is built otherwise keeps its own forward, and what ``fused.py`` finds in it.

Shape letters: N packed tokens, D hidden size, X joined width, I size of the gated unit, H key-value heads, G query
heads a key-value head, E head size.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onpolicy_sdft.models.policy import body
from onpolicy_sdft.rollout.attention import Scoring, SlotAttention, slot_attention_on
from onpolicy_sdft.rollout.fused import (
    Forward,
    activation_of,
    has_hooks,
    is_close,
    is_patched,
    norm_epsilon,
    numbers,
    replace_on,
)
from onpolicy_sdft.rollout.gpu import passes
from onpolicy_sdft.rollout.gpu.attention import TritonKernels
from onpolicy_sdft.rollout.gpu.fusing import GpuPasses
from onpolicy_sdft.rollout.slots import LayerShape, Packing, Segment, SlotCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.copies import Copies, Plain

_SCRATCH = 16  # positions of a scratch slot
#: Largest difference of what a layer adds, relative: roundings of its operations, never another formula.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_HARMLESS = {"position_ids", "use_cache", "cache_position"}  # keywords that change nothing here


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm: its weight, what is added to it, epsilon, and whether rows are rounded first."""

    weight: torch.Tensor
    epsilon: float
    offset: float
    round_first: bool

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        return passes.rms_norm(x_ND, self.weight, self.offset, self.epsilon, round_first=self.round_first)


@dataclass(frozen=True)
class FusedLayer:
    """A decoder layer over slots; :meth:`forward` takes its place."""

    own: Forward
    before_attention: Norm
    before_unit: Norm
    head_norms: tuple[Norm, Norm] | None
    qkv: Plain
    out: Plain
    gate_up: Plain
    down: Plain
    activation: str
    layer_idx: int
    num_queries: int
    scoring: Scoring
    gives_tuple: bool

    def forward(self, hidden_states: torch.Tensor, *others: Any, **options: Any) -> Any:
        """Run the layer over packed tokens [1, N, D], in place; whatever else is asked for goes to its own forward."""
        slots, embeddings = options.get("slots"), options.get("position_embeddings")
        known = {"slots", "position_embeddings", "past_key_values", "attention_mask", *_HARMLESS}
        if (
            others
            or slots is None
            or embeddings is None
            or options.get("attention_mask") is not None
            or options.get("past_key_values") is not slots.cache
            or slots.watching
            or any(value is not None for name, value in options.items() if name not in known)
            or torch.is_grad_enabled()
        ):
            return self.own(hidden_states, *others, **options)
        self.advance(hidden_states[0], slots, *embeddings)
        return (hidden_states,) if self.gives_tuple else hidden_states

    def advance(self, x_ND: torch.Tensor, slots: SlotAttention, cos_1NE: torch.Tensor, sin_1NE: torch.Tensor) -> None:
        """Add the layer to its input."""
        cache = slots.cache
        keys_SHLE, values_SHLE = cache.keys[self.layer_idx], cache.values[self.layer_idx]
        num_heads, size = keys_SHLE.shape[1], keys_SHLE.shape[-1]
        norms = None
        if self.head_norms is not None:
            q_norm, k_norm = self.head_norms
            norms = (q_norm.weight, k_norm.weight, q_norm.epsilon, q_norm.offset, q_norm.round_first)
        qkv_NX = self.qkv(self.before_attention(x_ND))
        assert cache.packing is not None
        passes.finish_heads(
            qkv_NX, cos_1NE.contiguous(), sin_1NE.contiguous(), norms, cache.packing, keys_SHLE, values_SHLE,
            self.num_queries,
        )  # fmt: skip
        q_NHGE = qkv_NX[:, : self.num_queries * size].unflatten(1, (num_heads, -1, size))
        attended_NHGE = cache.kernels.attend(q_NHGE, keys_SHLE, values_SHLE, self.scoring)
        x_ND.addmm_(attended_NHGE.flatten(1), self.out.weight.T)
        both_NX = self.gate_up(self.before_unit(x_ND))
        half = both_NX.shape[1] // 2
        x_ND.addmm_(passes.gated(both_NX[:, :half], both_NX[:, half:], self.activation), self.down.weight.T)


class LayerFusion:
    """Finds the layers that can be fused; what was compared once is not compared again until something changes."""

    def __init__(self) -> None:
        self._known: dict[nn.Module, tuple[object, FusedLayer | None]] = {}

    @torch.no_grad()
    def fuse(
        self, model: PreTrainedModel, copies: Copies, dtype: torch.dtype, stack: contextlib.ExitStack
    ) -> list[nn.Module]:
        """Replace the forward of layers until the stack closes; return which."""
        found, rotary = [], getattr(body(model), "rotary_emb", None)
        if not isinstance(rotary, nn.Module):
            return []
        for layer in [module for module in model.modules() if hasattr(module, "self_attn") and hasattr(module, "mlp")]:
            if _is_patched(layer, copies):
                continue
            signature = _signature(layer, copies, dtype)
            before, fused = self._known.get(layer, (None, None))
            if before != signature:
                fused = _fused(model, layer, rotary, copies, dtype)
                self._known[layer] = signature, fused
            if fused is not None:
                replace_on(layer, "forward", fused.forward, stack)
                found.append(layer)
        return found


def _signature(layer: Any, copies: Copies, dtype: torch.dtype) -> object:
    """Return what a comparison depends on: modules, settings, and where weights lie."""
    facts: list[object] = [dtype, copies.addresses(), type(layer).forward]
    for module in layer.modules():
        settings = [item for item in vars(module).items() if isinstance(item[1], bool | int | float | str | None)]
        facts.append((id(module), type(module).forward, tuple(settings)))
    return tuple(facts), tuple(parameter.data_ptr() for parameter in layer.parameters())


def _fused(
    model: PreTrainedModel, layer: Any, rotary: nn.Module, copies: Copies, dtype: torch.dtype
) -> FusedLayer | None:
    """Return a layer's fused form, if it has one that gives the same."""
    try:
        with slot_attention_on(model):
            trial = _Trial(layer, rotary, dtype)
            return next((each for each in _candidates(layer, copies, trial, dtype) if trial.is_equal(each)), None)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it is built in another way
        return None


def _is_patched(layer: nn.Module, copies: Copies) -> bool:
    """Whether somebody looks at the calls of a layer or of its parts, or has given one another forward."""
    copied = [module for module in layer.modules() if module in copies.linears]  # these have another: the copy's
    inside = {part for module in copied for part in module.modules()}
    others = [module for module in layer.modules() if module not in inside]
    return any(has_hooks(module) for module in copied) or any(is_patched(module) for module in others)


class _Trial:
    """One try of a layer: its own result on some tokens, and how its attention scores.

    Raises:
        RuntimeError: Or whatever the layer raises where it is not of the usual kind.
    """

    def __init__(self, layer: Any, rotary: nn.Module, dtype: torch.dtype) -> None:
        attention = layer.self_attn
        weight = layer.input_layernorm.weight
        device, self.size = weight.device, int(attention.head_dim)
        self.layer_idx = int(attention.layer_idx)
        self.hidden = numbers(len(weight), dtype, device, rows=2)  # [1, N, D]
        self.positions = torch.arange(self.hidden.shape[1], device=device)[None]
        self.embeddings = rotary(self.hidden, self.positions)
        self.num_heads = _num_key_heads(attention, self.size)
        slots = self._slots(device, dtype)
        slots.watching = True
        found = self._run(layer.forward, slots)
        self.cache = slots.cache
        self.gives_tuple = isinstance(found, tuple)
        self.own: torch.Tensor = found[0] if self.gives_tuple else found
        self.scoring: Scoring = slots.seen[0]

    def _slots(self, device: torch.device, dtype: torch.dtype) -> SlotAttention:
        shapes = [LayerShape(self.num_heads, self.size, self.size)]
        cache = SlotCache(shapes, 1, _SCRATCH, dtype, device, TritonKernels(_SCRATCH, device))
        cache.keys, cache.values = cache.keys * (self.layer_idx + 1), cache.values * (self.layer_idx + 1)
        slots = SlotAttention(cache)
        slots.begin(Packing.of([Segment(0, self.hidden.shape[1], 0, 0)], device))
        return slots

    def _run(self, forward: Forward, slots: SlotAttention) -> Any:
        return forward(
            self.hidden.clone(), attention_mask=None, position_ids=self.positions, past_key_values=slots.cache,
            use_cache=True, position_embeddings=self.embeddings, slots=slots,
        )  # fmt: skip

    def is_equal(self, fused: FusedLayer) -> bool:
        """Whether a fused form stores the keys and values that the layer stores, and adds what it adds.

        In bfloat16 a residual hides much of what is added to it, and attention hides positions that are rotated in
        another way; so neither is compared through the other.
        """
        slots = self._slots(self.hidden.device, self.hidden.dtype)
        mine = self._run(fused.forward, slots)
        mine = mine[0] if self.gives_tuple else mine
        num_tokens = self.hidden.shape[1]
        for kept, own in ((slots.cache.keys, self.cache.keys), (slots.cache.values, self.cache.values)):
            if not is_close(kept[0][0, :, :num_tokens], own[0][0, :, :num_tokens]):
                return False
        small = self.hidden.abs().amax(-1) < 1.0  # rows whose residual takes no digits of what is added
        added, own_added = ((each - self.hidden)[small].double() for each in (mine, self.own))
        distance = (added - own_added).norm(dim=-1) / own_added.norm(dim=-1)
        return bool((distance <= _TOLERANCE[mine.dtype]).all()) and is_close(mine, self.own)


def _candidates(layer: Any, copies: Copies, trial: _Trial, dtype: torch.dtype) -> list[FusedLayer]:
    """Return forms a layer may have, by the names its parts have in transformers.

    Raises:
        AttributeError: Or another, if parts are missing.
    """
    attention, unit = layer.self_attn, layer.mlp
    qkv = _joined(copies, attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj")
    gate_up = _joined(copies, unit, ("gate_proj", "up_proj"), "gate_up_proj")
    out, down = copies.plain(attention.o_proj), copies.plain(unit.down_proj)
    act = getattr(unit, "act_fn", getattr(unit, "activation_fn", None))
    activation = None if act is None else activation_of(act, GpuPasses(copies, dtype))
    if qkv is None or gate_up is None or out is None or down is None or activation is None:
        return []
    # A bias is no residual, and of a layer that adds nothing the formula cannot be seen.
    if out.bias is not None or down.bias is not None or not (out.weight.any() and down.weight.any()):
        return []
    found = []
    for offset, round_first in ((0.0, True), (0.0, False), (1.0, False)):
        before_attention = _norm(layer.input_layernorm, offset, round_first)
        before_unit = _norm(layer.post_attention_layernorm, offset, round_first)
        heads = None
        if hasattr(attention, "q_norm") or hasattr(attention, "k_norm"):
            heads = _norm(attention.q_norm, offset, round_first), _norm(attention.k_norm, offset, round_first)
            if trial.embeddings[0].shape[-1] != trial.size or heads[0].epsilon != heads[1].epsilon:
                return []
        found.append(
            FusedLayer(
                own=layer.forward, before_attention=before_attention, before_unit=before_unit, head_norms=heads,
                qkv=qkv, out=out, gate_up=gate_up, down=down, activation=activation, layer_idx=trial.layer_idx,
                num_queries=attention.o_proj.in_features // trial.size, scoring=trial.scoring,
                gives_tuple=trial.gives_tuple,
            )
        )  # fmt: skip
    return found


def _joined(copies: Copies, owner: Any, names: tuple[str, ...], name: str) -> Plain | None:
    """Return one product for several linears: a copy of them side by side, or the one that the model has."""
    if hasattr(owner, name):
        return copies.plain(getattr(owner, name))
    return copies.joined(tuple(getattr(owner, each) for each in names))


def _norm(module: Any, offset: float, round_first: bool) -> Norm:
    epsilon = norm_epsilon(module)
    if epsilon is None:
        raise AttributeError(f"{type(module).__name__} is no root-mean-square norm")
    return Norm(module.weight, epsilon, offset, round_first)


def _num_key_heads(attention: Any, size: int) -> int:
    if hasattr(attention, "k_proj"):
        return int(attention.k_proj.out_features) // size
    return (int(attention.qkv_proj.out_features) - int(attention.o_proj.in_features)) // (2 * size)
