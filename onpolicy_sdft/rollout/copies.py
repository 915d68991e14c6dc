"""Copies of weights to decode from: adapters merged, side by side where that saves products, at fixed addresses.

On a GPU a product of few rows takes as long as it takes to start: queries, keys and values of a layer become one, and
so do gate and up. Graphs that read the copies stay good for as long as these stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

#: Linears that read the same numbers, by the names they have in transformers.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_SHARE_OF_FREE = 0.1  # of the device's free memory that copies may take that only save products


@dataclass(frozen=True, slots=True)
class Plain:
    """A linear of given weights."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Multiply, as ``nn.Linear`` does."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Source:
    """A linear of the model, and how its weight is had."""

    module: nn.Module  # whose forward stands for it: the linear itself, or the adapter around it
    linear: nn.Linear
    weight: Callable[[], torch.Tensor]  # merged, where there is an adapter
    is_merged: bool


class Copies:
    """The copies of one model.

    Args:
        together: Copy linears to save products: ``True``, ``False``, or ``None``: where memory allows.
    """

    def __init__(self, together: bool | None) -> None:
        self._together = together
        self._plan: tuple[tuple[int, ...], ...] | None = None
        self._weights: dict[tuple[int, ...], torch.Tensor] = {}  # by the place of the sources among all
        self._biases: dict[tuple[int, ...], torch.Tensor] = {}
        self._joined: dict[tuple[nn.Module, ...], Plain] = {}
        self.linears: dict[nn.Module, Plain] = {}

    @torch.no_grad()
    def refresh(self, model: nn.Module, sources: Sequence[Source], dtype: torch.dtype) -> None:
        """Write the weights of now into the copies, which are made the first time."""
        groups = self._groups(model, sources, dtype)
        if self._plan != groups or any(copy.dtype != dtype for copy in self._weights.values()):
            self.release()
            self._plan = groups
        self._joined, self.linears = {}, {}
        for group in groups:
            self._refresh(group, [sources[place] for place in group], dtype)

    def _refresh(self, group: tuple[int, ...], members: Sequence[Source], dtype: torch.dtype) -> None:
        heights = [member.linear.out_features for member in members]
        if group not in self._weights:
            first = members[0].linear
            self._weights[group] = first.weight.new_empty(sum(heights), first.in_features, dtype=dtype)
            if first.bias is not None:
                self._biases[group] = first.bias.new_empty(sum(heights), dtype=dtype)
        whole = Plain(self._weights[group], self._biases.get(group))
        biases = [None] * len(members) if whole.bias is None else whole.bias.split(heights)
        for member, weight, bias in zip(members, whole.weight.split(heights), biases, strict=True):
            weight.copy_(member.weight())
            if bias is not None:
                bias.copy_(member.linear.bias.data)
            self.linears[member.module] = Plain(weight, bias)
        if len(members) > 1:
            self._joined[tuple(member.module for member in members)] = whole

    def joined(self, modules: tuple[nn.Module, ...]) -> Plain | None:
        """Return the one product of several linears; None where they are apart."""
        return self._joined.get(modules)

    def plain(self, module: nn.Module) -> Plain | None:
        """Return what a module multiplies by: its copy, or its own weight; None where it is no plain linear."""
        if module in self.linears or type(module) is not nn.Linear:
            return self.linears.get(module)
        return Plain(module.weight, module.bias)

    @property
    def num_bytes(self) -> int:
        """Memory they take."""
        return sum(copy.nbytes for copies in (self._weights, self._biases) for copy in copies.values())

    def addresses(self) -> tuple[int, ...]:
        """Return where they lie."""
        return tuple(copy.data_ptr() for copies in (self._weights, self._biases) for copy in copies.values())

    def release(self) -> None:
        """Give their memory back."""
        self._weights, self._biases, self._joined, self.linears, self._plan = {}, {}, {}, {}, None

    def _groups(self, model: nn.Module, sources: Sequence[Source], dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """Return which sources are copied together: those that save a product, and what is merged anyway."""
        places = {source.module: place for place, source in enumerate(sources)}
        groups, alone = [], {place for place, source in enumerate(sources) if source.is_merged}
        for parent in model.modules():
            for names in _TOGETHER:
                found = [places.get(getattr(parent, name, None)) for name in names]  # type: ignore[arg-type]
                group = tuple(place for place in found if place is not None)
                if len(group) == len(names) and _fit_together([sources[place].linear for place in group]):
                    groups.append(group)
        only_joined = {place for group in groups for place in group} - alone
        extra = sum(sources[place].linear.weight.numel() * dtype.itemsize for place in only_joined)
        if self._together is None:  # decided once: what is free changes
            device = sources[0].linear.weight.device
            self._together = device.type != "cuda" or extra <= _SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]
        if not self._together:
            groups = [group for group in groups if set(group) <= alone]
        inside = {place for group in groups for place in group}
        return tuple(groups) + tuple((place,) for place in sorted(alone - inside))


def _fit_together(linears: Sequence[nn.Linear]) -> bool:
    return len({(each.in_features, each.bias is None, each.weight.dtype, each.weight.device) for each in linears}) == 1
