"""PyTorch's ``fully_shard`` (FSDP2): parameters, gradients and optimizer state divided among the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.shards import Fsdp2
from onpolicy_sdft.train.backend import DividedBackend
from onpolicy_sdft.types import T

if TYPE_CHECKING:
    from torch import nn

    from onpolicy_sdft.models.policy import Policy


class FsdpBackend(DividedBackend):
    """As :class:`Backend`, under FSDP2.

    Weights are gathered in float32 and computed with under autocast, so that the numbers are those of DDP; gradients
    are reduced after every micro-batch, since keeping them whole would undo what is divided.
    """

    kinds = (DistributedType.FSDP,)
    name = "fsdp2"
    shards = Fsdp2()

    def _check_launch(self) -> None:
        super()._check_launch()
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ConfigError(f"fsdp_version is {plugin.fsdp_version}; only 2 is known here: fsdp_version: 2.")
        if plugin.cpu_ram_efficient_loading:
            raise ConfigError(
                "fsdp_cpu_ram_efficient_loading loads the weights on one rank only, so the others cannot try what "
                "learning needs before weights are divided. Fix: fsdp_cpu_ram_efficient_loading: false."
            )
        if plugin.activation_checkpointing:
            raise ConfigError(
                "fsdp_activation_checkpointing renames parameters. Fix: false, and --model.gradient_checkpointing true."
            )

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Divide the policy, layer by layer; see :meth:`Backend.prepare`."""
        _refuse_mixed_dtypes(policy)
        prepared = super().prepare(policy, optimizer)
        register_fsdp_forward_method(self._policy, "run")
        return prepared

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function with what no layer of its own holds in place: embeddings, final norm, head."""
        try:
            return self._policy.run(function)  # type: ignore[no-any-return]
        finally:
            self._policy.reshard()

    def micro_batch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def _clip(self, limit: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._policy.parameters(), limit)
        return float((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())

    def _gathered(self, parameter: nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        return part.full_tensor() if isinstance(part, DTensor) else part

    def _state_like(self, parameter: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        part = self.shards.part_of(parameter, whole).clone()
        return Fsdp2().distributed(parameter, part) if isinstance(parameter, DTensor) else part


def _refuse_mixed_dtypes(policy: Policy) -> None:
    dtypes = {str(parameter.dtype) for parameter in policy.parameters()}
    if len(dtypes) > 1:
        raise ConfigError(
            f"FSDP2 divides weights of one dtype together, and these are {' and '.join(sorted(dtypes))}. "
            "Fix: --model.dtype float32, or DeepSpeed (launch/accelerate/zero3.yaml)."
        )
