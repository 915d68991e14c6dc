"""The only file that knows accelerate's arithmetic.

``Accelerator.backward`` divides by its accumulation steps (kept at 1 here) and DDP averages gradients over
ranks. The loss we hand over is already divided by the step's global number of loss tokens, so it is multiplied
by the number of ranks to undo that average.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from onpolicy_sdft.errors import ConfigError

if TYPE_CHECKING:
    from onpolicy_sdft.models.policy import Policy


class Backend:
    """Backward, clipping, the optimizer step and sums over ranks.

    Args:
        precision: ``fp32``, or ``bf16`` for bfloat16 compute on float32 weights.
    """

    def __init__(self, precision: str) -> None:
        try:
            self.accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
        except ValueError as error:  # accelerate keeps one precision a process
            raise ConfigError(
                f"train.precision={precision!r}, but this process has trained in another precision before: {error}. "
                "Way out: another process, or the same precision."
            ) from error
        if self.accelerator.num_processes > 1 or self.accelerator.distributed_type != DistributedType.NO:
            raise ConfigError(
                f"Launched as {self.accelerator.distributed_type.value} with {self.accelerator.num_processes} "
                "processes: this version trains in one process. Way out: plain `sdft train`, without accelerate launch."
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

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients of an already normalised loss; ranks meet at the last micro-batch only."""
        waiting = contextlib.nullcontext() if last else self.accelerator.no_sync(self._policy)
        with waiting:
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
