"""Where the elements of a parameter are: whole on every rank, or divided among the ranks.

Copies of weights (the teacher's) are divided as the optimizer's state is; elementwise work on them needs no other
rank. Whatever leaves this process (a checkpoint, weights to read from) is gathered first, so it does not depend on
how many ranks there were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, distribute_tensor


class Shards(Protocol):
    """How parameters are divided; every rank must make the same calls of :meth:`gather` in the same order."""

    @property
    def in_place(self) -> bool:
        """Whether parameters are whole where the model keeps them."""
        ...

    def local(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return this rank's part of a parameter as it is now; writing to it writes to the parameter."""
        ...

    def part_of(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of a whole tensor of a parameter's shape."""
        ...

    def gather(self, parameter: torch.nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        """Return the whole tensor that ranks hold parts of."""
        ...

    def assign(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
        """Give a parameter the values of a whole tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """One process, or DDP: every rank has everything."""

    in_place: bool = True

    def local(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the parameter's values."""
        return parameter.data

    def part_of(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return whole

    def gather(self, parameter: torch.nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return part

    def assign(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
        """Copy the values."""
        parameter.data.copy_(whole)


WHOLE = Whole()


@dataclass(frozen=True, slots=True)
class Slices:
    """ZeRO-1 and ZeRO-2: parameters are whole on every rank, what is kept beside them is cut into equal slices."""

    rank: int
    num_ranks: int
    in_place: bool = True

    def local(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return this rank's slice; the last ones can be shorter, or empty."""
        return self.part_of(parameter, parameter.data)

    def part_of(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's slice."""
        size = _slice_size(parameter.numel(), self.num_ranks)
        return whole.reshape(-1)[self.rank * size : (self.rank + 1) * size]

    def gather(self, parameter: torch.nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        """Put the slices of all ranks together."""
        size = _slice_size(parameter.numel(), self.num_ranks)
        return _put_together(part, size, parameter.numel(), parameter.shape, parameter.device)

    def assign(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
        """Copy the values; every rank has them whole."""
        parameter.data.copy_(whole)


@dataclass(frozen=True, slots=True)
class Zero3:
    """DeepSpeed ZeRO-3: a parameter is empty, and its attribute ``ds_tensor`` holds this rank's padded slice."""

    rank: int
    num_ranks: int
    device: torch.device
    in_place: bool = False

    def local(self, parameter: Any) -> torch.Tensor:
        """Return this rank's slice, padding included."""
        part: torch.Tensor = parameter.ds_tensor.data
        return part

    def part_of(self, parameter: Any, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's slice, padding included."""
        size = parameter.ds_tensor.numel()
        found = whole.reshape(-1)[self.rank * size : (self.rank + 1) * size]
        return torch.nn.functional.pad(found, (0, size - found.numel()))

    def gather(self, parameter: Any, part: torch.Tensor) -> torch.Tensor:
        """Put the slices of all ranks together."""
        return _put_together(part, part.numel(), parameter.ds_numel, parameter.ds_shape, self.device)

    def assign(self, parameter: Any, whole: torch.Tensor) -> None:
        """Write this rank's slice, and the whole parameter where it is kept whole for being small."""
        parameter.ds_tensor.data.copy_(self.part_of(parameter, whole))
        if parameter.data.numel() == parameter.ds_numel:
            parameter.data.copy_(whole.reshape(parameter.data.shape))


@dataclass(frozen=True, slots=True)
class Fsdp2:
    """PyTorch's ``fully_shard``: a parameter is a distributed tensor, divided along its first dimension."""

    in_place: bool = False

    def local(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return this rank's rows."""
        return _local(parameter.data)

    def part_of(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows."""
        if not isinstance(parameter, DTensor):
            return whole
        mesh = parameter.device_mesh
        # Every rank has the whole: nothing has to be sent.
        return _local(distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None))

    def gather(self, parameter: torch.nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        """Put the rows of all ranks together."""
        if not isinstance(parameter, DTensor):
            return part
        whole: torch.Tensor = self.distributed(parameter, part).full_tensor()
        return whole

    def distributed(self, parameter: DTensor, part: torch.Tensor) -> DTensor:
        """Return the distributed tensor of a parameter's shape that this rank's part belongs to."""
        mesh = parameter.device_mesh
        return DTensor.from_local(
            part.to(mesh.device_type), mesh, parameter.placements, run_check=False, shape=parameter.shape,
            stride=parameter.stride(),
        )  # fmt: skip

    def assign(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
        """Write this rank's rows."""
        self.local(parameter).copy_(self.part_of(parameter, whole))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _slice_size(num_elements: int, num_ranks: int) -> int:
    return math.ceil(num_elements / num_ranks)


def _put_together(
    part: torch.Tensor, size: int, num_elements: int, shape: torch.Size, device: torch.device
) -> torch.Tensor:
    """Gather equal slices of a flat tensor, cut the padding off and give it its shape."""
    padded = torch.nn.functional.pad(part.to(device), (0, size - part.numel())).contiguous()
    flat = torch.empty(size * distributed.get_world_size(), dtype=part.dtype, device=device)
    distributed.all_gather_into_tensor(flat, padded)
    return flat[:num_elements].view(shape)
