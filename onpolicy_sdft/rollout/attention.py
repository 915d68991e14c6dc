"""The attention seam: the function transformers' layers call during a rollout, over KV slots.

It is registered with ``AttentionInterface`` once and does nothing of its own; the rollout it belongs to travels
through the model's keyword arguments. Which implementation runs is the rollout's choice: the CPU kernel, or the
torch operations of this file, which run everywhere, in any dtype, and are what the kernel is tested against.

Shape letters: N packed tokens, S slots, H key-value heads, G query heads a key-value head, L positions, D head
size, B rows and Q tokens a row of a grid.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.slots import Packing, SlotCache

NAME = "sdft_slots"
#: Keywords that say nothing about which key a query sees or how scores are made.
_HARMLESS = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "position_embeddings", "past_key_values", "input_ids", "inputs_embeds",
}  # fmt: skip


class UnsupportedModel(Exception):
    """The engine cannot serve a model; the text says why."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer turns queries and keys into weights."""

    scale: float
    window: int  # keys a query sees, itself included; 0: all
    softcap: float  # 0: none
    sinks: torch.Tensor | None  # [heads] scores without a value


@dataclass
class SlotAttention:
    """One rollout's attention: its cache, its implementation, and what it saw of each layer."""

    cache: SlotCache
    use_kernel: bool
    tiles_W4: torch.Tensor | None = None  # of the current packing, for the kernel
    seconds: float = 0.0
    windows: dict[int, int] = field(default_factory=dict)  # layer -> window, filled while ``watching``
    watching: bool = False

    def attend(
        self, q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLD: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attend every packed token of the current packing: -> [N, H, G, D]."""
        packing = self.cache.packing
        assert packing is not None
        if self.use_kernel:
            assert self.tiles_W4 is not None
            from onpolicy_sdft.rollout.cpu.attention import slot_attention  # numba: not on a GPU

            started = time.perf_counter()
            num_heads, group = q_NHGD.shape[1:3]
            out = slot_attention(
                q_NHGD, keys_SHLD, values_SHLD, self.tiles_W4,
                scale=scoring.scale, window=scoring.window, softcap=scoring.softcap,
                sinks_HG=None if scoring.sinks is None else scoring.sinks.reshape(num_heads, group),
            )  # fmt: skip
            self.seconds += time.perf_counter() - started
            return out
        if packing.rows:
            return grid_attention(q_NHGD, keys_SHLD, values_SHLD, packing, scoring)
        return segment_attention(q_NHGD, keys_SHLD, values_SHLD, packing, scoring)


def slot_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    slots: SlotAttention | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend packed queries [1, heads, N, D] over slot buffers; the function ``AttentionInterface`` calls.

    Raises:
        UnsupportedModel: If the layer asks for something that is not known here.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown:
        raise UnsupportedModel(f"its attention passes {', '.join(unknown)}, which is not known here")
    if slots is None:
        raise UnsupportedModel("it does not pass keyword arguments on to its attention")
    if attention_mask is not None:
        raise UnsupportedModel("it makes an attention mask of its own")
    if dropout or is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModel("its attention is not causal, or drops out")
    num_heads = key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    scoring = Scoring(scale, int(sliding_window or 0), float(softcap or 0.0), s_aux)
    if slots.watching:
        slots.windows[len(slots.windows)] = scoring.window
    # "(h g) n d -> n h g d" and "n h g d -> 1 n (h g) d": einops would take a tenth of a decode step's attention.
    q_NHGD = query[0].unflatten(0, (num_heads, -1)).permute(2, 0, 1, 3)
    out_NHGD = slots.attend(q_NHGD, key, value, scoring)
    return out_NHGD.flatten(1, 2)[None].to(query.dtype), None


@contextlib.contextmanager
def slot_attention_on(model: PreTrainedModel) -> Iterator[None]:
    """Send a model's attention here for the length of the context."""
    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, slot_attention_forward)
    modules: Iterator[Any] = model.modules()
    configs = {id(m.config): m.config for m in modules if isinstance(getattr(m, "config", None), PreTrainedConfig)}
    own = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = own[key]


def segment_attention(
    q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLD: torch.Tensor, packing: Packing, scoring: Scoring
) -> torch.Tensor:
    """Attend segment by segment, each to exactly the keys it has. Needs the segments on the host."""
    assert packing.segments is not None
    out = q_NHGD.new_zeros(*q_NHGD.shape[:3], values_SHLD.shape[-1])
    for s in packing.segments:
        length = s.position + s.count
        q_1HTD = rearrange(q_NHGD[s.start : s.start + s.count], "t h g d -> 1 h (t g) d")
        positions_1Q = torch.arange(s.position, length, device=q_NHGD.device)[None]
        found = _weigh(
            q_1HTD, keys_SHLD[s.slot, :, :length][None], values_SHLD[s.slot, :, :length][None], positions_1Q, scoring
        )
        out[s.start : s.start + s.count] = rearrange(found, "1 h (t g) d -> t h g d", t=s.count)
    return out


def grid_attention(
    q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLD: torch.Tensor, packing: Packing, scoring: Scoring
) -> torch.Tensor:
    """Attend a [B, Q] grid of tokens, a slot a row, over whole slots under a mask. Reads nothing on the host."""
    rows = packing.rows
    q_BHTD = rearrange(q_NHGD, "(b q) h g d -> b h (q g) d", b=rows)
    slots_B = packing.slots_N.unflatten(0, (rows, -1))[:, 0]
    positions_BQ = packing.positions_N.unflatten(0, (rows, -1))
    found = _weigh(q_BHTD, keys_SHLD[slots_B], values_SHLD[slots_B], positions_BQ, scoring)
    return rearrange(found, "b h (q g) d -> (b q) h g d", g=q_NHGD.shape[2])


def _weigh(
    q_BHTD: torch.Tensor, keys_BHLD: torch.Tensor, values_BHLD: torch.Tensor, positions_BQ: torch.Tensor, how: Scoring
) -> torch.Tensor:
    """Attend T = Q x G query rows a head to L keys: the plain sum, or torch's fused one where it knows the scoring."""
    group = q_BHTD.shape[2] // positions_BQ.shape[1]
    key_positions_L = torch.arange(keys_BHLD.shape[2], device=q_BHTD.device)
    seen_BQL = key_positions_L <= positions_BQ[..., None]
    if how.window:
        seen_BQL = seen_BQL & (key_positions_L > positions_BQ[..., None] - how.window)
    seen_BHTL = seen_BQL.repeat_interleave(group, dim=1)[:, None]
    # A masked value is multiplied by 0, and 0 times nan is nan: stale keys and values must not reach the product.
    values_BHLD = values_BHLD.masked_fill(~seen_BQL.any(1)[:, None, :, None], 0.0)
    if not how.softcap and how.sinks is None:
        keys_BHLD = keys_BHLD.masked_fill(~seen_BQL.any(1)[:, None, :, None], 0.0)
        return F.scaled_dot_product_attention(q_BHTD, keys_BHLD, values_BHLD, attn_mask=seen_BHTL, scale=how.scale)
    scores_BHTL = q_BHTD @ keys_BHLD.transpose(-1, -2) * how.scale
    scores_BHTL = scores_BHTL if scores_BHTL.dtype == torch.float64 else scores_BHTL.float()
    if how.softcap:
        scores_BHTL = how.softcap * torch.tanh(scores_BHTL / how.softcap)
    scores_BHTL = scores_BHTL.masked_fill(~seen_BHTL, -torch.inf)
    if how.sinks is not None:
        sinks_HG = how.sinks.reshape(q_BHTD.shape[1], group).to(scores_BHTL.dtype)
        sinks_BHT1 = sinks_HG.repeat(1, positions_BQ.shape[1])[None, :, :, None].expand(len(q_BHTD), -1, -1, -1)
        scores_BHTL = torch.cat([scores_BHTL, sinks_BHT1], dim=-1)
    weights_BHTL = torch.softmax(scores_BHTL, dim=-1)[..., : keys_BHLD.shape[2]]
    return weights_BHTL.to(values_BHLD.dtype) @ values_BHLD
