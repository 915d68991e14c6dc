"""The engine's attention and stores on a CPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.rollout.cpu import KEY_BLOCK, passes
from onpolicy_sdft.rollout.cpu.attention import slot_attention, tiles, use_threads_of_torch

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.attention import KernelName, Scoring
    from onpolicy_sdft.rollout.slots import Packing


class CpuKernels:
    """Stores keys in blocks and attends tile by tile.

    Args:
        length: Positions of a slot.
    """

    name: KernelName = "cpu"
    key_block = KEY_BLOCK

    def __init__(self, length: int) -> None:
        self.length = length
        self.seconds = 0.0
        self._packing: Packing | None = None
        self._tiles: dict[int, torch.Tensor] = {}  # query heads a key-value head -> tiles

    def begin(self, packing: Packing) -> None:
        """Take the packing of the next forward.

        Raises:
            IndexError: If it goes beyond a slot; nothing else would notice.
        """
        assert packing.segments is not None
        longest = max(s.position + s.count for s in packing.segments)
        if longest > self.length:
            raise IndexError(f"position {longest - 1} is beyond the {self.length} of a slot")
        use_threads_of_torch()
        self._packing = packing
        self._tiles.clear()

    def store(
        self, k_NHD: torch.Tensor, v_NHE: torch.Tensor, keys_SHBDW: torch.Tensor, values_SHLE: torch.Tensor
    ) -> None:
        """Store new keys and values where the packing says."""
        assert self._packing is not None
        passes.store(k_NHD, v_NHE, self._packing.slots_N, self._packing.positions_N, keys_SHBDW, values_SHLE)

    def attend(
        self, q_NHGD: torch.Tensor, keys_SHBDW: torch.Tensor, values_SHLE: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attend every packed token: -> float32 [N, H, G, E]."""
        started = time.perf_counter()
        num_heads, group = q_NHGD.shape[1:3]
        if group not in self._tiles:
            assert self._packing is not None
            assert self._packing.segments is not None
            self._tiles[group] = tiles(self._packing.segments, group)
        sinks_HG = None if scoring.sinks is None else scoring.sinks.reshape(num_heads, group)
        out = slot_attention(
            q_NHGD, keys_SHBDW, values_SHLE, self._tiles[group], scale=scoring.scale, window=scoring.window,
            softcap=scoring.softcap, sinks_HG=sinks_HG,
        )  # fmt: skip
        self.seconds += time.perf_counter() - started
        return out
