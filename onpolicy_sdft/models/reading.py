"""What is read where weights must be whole: by rollouts, scoring, evaluation and export.

Where parameters are whole on every rank that is the model itself. Under ZeRO-3 and FSDP2 it is a second set of
modules over an arena: flat buffers that the ranks' parts are gathered into, once for all that is read of the same
weights. Generation then runs as on one process, with no communication of its own. Buffers that are kept do not move.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from onpolicy_sdft.models.shards import Shards

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: This rank's parts of the trainable parameters, by name.
Parts = Mapping[str, torch.Tensor]


class WeightProvider(Protocol):
    """Weights that can be read."""

    model: PreTrainedModel | PeftModel  # what to read from, while they are shown

    def showing(self, name: str, parts: Parts | None) -> contextlib.AbstractContextManager[None]:
        """Let the model's weights be readable; every rank enters and leaves together.

        Args:
            name: Of these weights; equal names between two calls of :meth:`forget` mean equal weights.
            parts: What the trainable parameters read from; None: the live weights.
        """
        ...

    def forget(self) -> None:
        """Take notice that weights have changed."""
        ...

    def release(self) -> None:
        """Give memory back that only reading needs."""
        ...


class LiveWeights:
    """The model itself: parameters read from the given parts while these are shown.

    Args:
        model: The live model.
        shards: How the parts are divided.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, shards: Shards) -> None:
        self.model = model
        self.shards = shards

    @contextlib.contextmanager
    def showing(self, name: str, parts: Parts | None) -> Iterator[None]:
        """Point the parameters at the parts, and back."""
        if parts is None:
            yield
            return
        parameters = dict(self.model.named_parameters())
        live = {key: parameters[key].data for key in parts}
        try:
            for key, part in parts.items():
                parameters[key].data = self.shards.gather(parameters[key], part).to(live[key])
            yield
        finally:
            for key, data in live.items():
                parameters[key].data = data

    def forget(self) -> None:
        """Keep nothing."""

    def release(self) -> None:
        """Keep nothing."""


class GatheredCopy:
    """A second set of the model's modules over whole weights.

    Make it before the parameters are divided. It takes memory from its first use on, when they are.

    Args:
        model: The live model.
        device: Where the whole weights are.
        shards: How parameters will be divided.
        keeps: Whether they stay while the model learns: frozen weights are then gathered once. Otherwise
            :meth:`release` gives the memory back, and everything is gathered again.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, device: torch.device, shards: Shards, keeps: bool) -> None:
        self.live = model
        self.shards = shards
        self.keeps = keeps
        self.arenas, parameters = _arenas(model, device)
        # The copy shares nothing with the model but what it is made of: each parameter has its stand-in.
        memo = {id(parameter): stand_in for parameter, stand_in in parameters}
        self.model = copy.deepcopy(model, memo)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        self._trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        self._holds: str | None = None
        self._has_frozen = False

    @property
    def num_bytes(self) -> int:
        """Memory of the whole weights."""
        return sum(arena.numel() * arena.itemsize for arena in self.arenas)

    @contextlib.contextmanager
    def showing(self, name: str, parts: Parts | None) -> Iterator[None]:
        """Gather into the arenas what is not there yet."""
        if self._holds != name:
            self._fill(parts)
            self._holds = name
        yield

    def forget(self) -> None:
        """Gather again next time."""
        self._holds = None

    @torch.no_grad()
    def _fill(self, parts: Parts | None) -> None:
        for arena in self.arenas:
            num_bytes = arena.numel() * arena.itemsize
            if arena.untyped_storage().size() != num_bytes:  # torch would move it even to the size it has
                arena.untyped_storage().resize_(num_bytes)
        for (key, parameter), stand_in in zip(self.live.named_parameters(), self.model.parameters(), strict=True):
            if key in self._trainable:
                part = self.shards.local(parameter) if parts is None else parts[key]
                stand_in.data.copy_(self.shards.gather(parameter, part))
            elif not self._has_frozen:
                stand_in.data.copy_(self.shards.gather(parameter, self.shards.local(parameter)))
        self._has_frozen = True

    def release(self) -> None:
        """Give the memory back, unless it is to be kept."""
        if self.keeps:
            return
        for arena in self.arenas:
            arena.untyped_storage().resize_(0)
        self._holds, self._has_frozen = None, False


def _arenas(
    model: nn.Module, device: torch.device
) -> tuple[list[torch.Tensor], list[tuple[nn.Parameter, nn.Parameter]]]:
    """Return one flat buffer a dtype, without memory yet, and each parameter of a model with its stand-in over them."""
    parameters = list(model.parameters())
    sizes: dict[torch.dtype, int] = {}
    for parameter in parameters:
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    arenas = {dtype: torch.empty(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
    pairs, used = [], dict.fromkeys(sizes, 0)
    for parameter in parameters:
        start = used[parameter.dtype]
        view = arenas[parameter.dtype][start : start + parameter.numel()].view(parameter.shape)
        used[parameter.dtype] += parameter.numel()
        pairs.append((parameter, nn.Parameter(view, requires_grad=False)))
    for arena in arenas.values():
        arena.untyped_storage().resize_(0)
    return list(arenas.values()), pairs
