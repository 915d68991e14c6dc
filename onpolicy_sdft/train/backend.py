"""The only file that knows accelerate's arithmetic.

``Accelerator.backward`` divides by its accumulation steps (kept at 1 here) and DDP averages gradients over
ranks. The loss we hand over is already divided by the step's global number of loss tokens, so it is multiplied
by the number of ranks to undo that average.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from onpolicy_sdft.errors import ConfigError, SdftError
from onpolicy_sdft.types import T

if TYPE_CHECKING:
    from onpolicy_sdft.models.policy import Policy


_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class Backend:
    """Backward, clipping, the optimizer step and sums over ranks.

    Args:
        precision: ``fp32``, or ``bf16`` for bfloat16 compute on float32 weights.
        timeout_seconds: Longest wait for another rank; then it counts as dead.
    """

    def __init__(self, precision: str, timeout_seconds: float = 1800.0) -> None:
        patience = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_seconds))
        try:
            self.accelerator = Accelerator(
                mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[patience]
            )
        except ValueError as error:  # accelerate keeps one precision a process
            raise ConfigError(
                f"train.precision={precision!r}, but this process has trained in another precision before: {error}. "
                "Way out: another process, or the same precision."
            ) from error
        kind = self.accelerator.distributed_type
        if kind not in _SUPPORTED:
            raise ConfigError(
                f"Launched as {kind.value}: this version trains in one process or with DDP. Way out: "
                "accelerate launch --config_file launch/accelerate/ddp.yaml -m onpolicy_sdft train ..."
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if self.num_ranks != launched:
            raise ConfigError(
                f"{launched} processes were launched, but accelerate sees {self.num_ranks} ({kind.value}): each would "
                "train alone. On CPUs set ACCELERATE_USE_CPU=true before accelerate launch; on GPUs start as many "
                "processes as there are GPUs."
            )
        self._policy: Policy | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def num_ranks(self) -> int:
        """Number of processes that learn together."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Index of this process."""
        return int(self.accelerator.process_index)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self.accelerator.device)

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[Policy, torch.optim.Optimizer]:
        """Wrap policy and optimizer for this launch; call once."""
        self._policy, self._optimizer = self.accelerator.prepare(policy, optimizer)
        assert self._policy is not None
        assert self._optimizer is not None
        return self._policy, self._optimizer

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of the learning pass's precision, for forwards outside the wrapped policy."""
        context: contextlib.AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def sum_over_ranks(self, value: float) -> float:
        """Sum a number over all ranks."""
        if self.num_ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(total, reduction="sum").item())

    def max_over_ranks(self, value: int) -> int:
        """Return the largest of a number over all ranks."""
        if self.num_ranks == 1:
            return value
        gathered = self.accelerator.gather(torch.tensor([value], device=self.device))
        return int(gathered.max().item())

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank, on every rank; values are pickled."""
        if self.num_ranks == 1:
            return [value]
        found: list[T] = [value] * self.num_ranks
        torch.distributed.all_gather_object(found, value)
        return found

    def on_first(self, function: Callable[[], T]) -> T:
        """Run a function on the first rank; every rank gets its result, or its error."""
        if self.num_ranks == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except SdftError as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def refuse_disagreement(self, facts: Mapping[str, Any]) -> None:
        """Refuse to go on where ranks were given different settings, data or code.

        Raises:
            ConfigError: Naming what differs, and the first rank that differs from rank 0.
        """
        mine = {name: repr(value) for name, value in facts.items()}
        found = self.gather(mine)
        for rank, theirs in enumerate(found):
            differing = [name for name in mine if theirs[name] != found[0][name]]
            if differing:
                name = differing[0]
                raise ConfigError(
                    f"Rank {rank} has another {name} than rank 0: {theirs[name]} instead of {found[0][name]}. "
                    "Start every rank with the same command, data and checkout."
                )

    def micro_batch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a micro-batch's forward and backward: ranks meet in the last one only.

        DDP decides in the forward whether the backward that follows reduces gradients.
        """
        waiting: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(self._policy)
        return contextlib.nullcontext() if last else waiting

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients of an already normalised loss."""
        self.accelerator.backward(loss * self.num_ranks)

    def optimizer_step(self, max_norm: float) -> float:
        """Clip and step, unless the gradient is not finite; gradients are gone afterwards either way.

        Args:
            max_norm: Largest global norm; 0 does not clip.

        Returns:
            The norm before clipping. If it is not finite, no step was taken.
        """
        assert self._policy is not None
        assert self._optimizer is not None
        limit = max_norm if max_norm > 0 else math.inf
        norm = self.accelerator.clip_grad_norm_(self._policy.parameters(), limit)
        grad_norm = float(norm.item()) if norm is not None else 0.0
        if math.isfinite(grad_norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def discard_gradients(self) -> None:
        """Forget what was accumulated."""
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)
