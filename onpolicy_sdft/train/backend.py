"""What processes that learn together do together: backward, the optimizer step, sums over ranks, state for checkpoints.

``Accelerator.backward`` divides by its accumulation steps (kept at 1 here), and DDP, FSDP and DeepSpeed average
gradients over ranks. The loss we hand over is already divided by the step's global number of loss tokens, so it is
multiplied by the number of ranks to undo that average. This file does one process and DDP; ``fsdp.py`` and
``deepspeed.py`` do what is different there, and nothing else knows of them.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.nn.parallel import DistributedDataParallel

from onpolicy_sdft.config.check_backend import why_not_on
from onpolicy_sdft.errors import ConfigError, SdftError, TrainingError
from onpolicy_sdft.models.shards import WHOLE, Shards
from onpolicy_sdft.train.heartbeat import Heartbeat
from onpolicy_sdft.types import T

if TYPE_CHECKING:
    from torch import nn

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.policy import Policy

_LATE_BYTES = 1 << 28  # of gradients that may wait for the last backward


class OutOfMemoryOnAnyRank(Exception):
    """Memory ran out on one rank, in what can be forgotten and done again; every rank raises it."""


class Backend:
    """One process, or several with DDP.

    Args:
        precision: ``fp32``, or ``bf16`` for bfloat16 compute on float32 weights.
        timeout_seconds: Longest silence of another rank that is waited for, and longest time of a collective.
    """

    kinds: tuple[DistributedType, ...] = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    name = "ddp"  # as ``sdft plan`` calls it
    shards: Shards = WHOLE  # as they are once the policy was prepared
    _heartbeat: Heartbeat | None = None  # None: one process

    def __init__(self, precision: str, timeout_seconds: float = 1800.0) -> None:
        self.precision = precision
        patience = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_seconds))
        try:
            self.accelerator = Accelerator(mixed_precision=self._mixed_precision(), kwargs_handlers=[patience])
        except ValueError as error:  # accelerate keeps one precision a process
            raise ConfigError(
                f"train.precision={precision!r}, but this process has trained in another precision before: {error}. "
                "Fix: another process, or the same precision."
            ) from error
        self._check_launch()
        if self.num_ranks > 1:
            store = torch.distributed.distributed_c10d._get_default_store()
            self._heartbeat = Heartbeat(store, self.rank, self.num_ranks, timeout_seconds)
        self._model: nn.Module | None = None
        self._policy: Any = None
        self._optimizer: Any = None
        self._defers_allreduce = False  # ranks put gradients together after the last backward, not within it

    def check(self, config: RunConfig) -> None:
        """Refuse options that this launch cannot do.

        Raises:
            ConfigError: Naming the option and the way out.
        """
        asked = config.rollout.weights
        if asked != "auto" and (asked == "in_place") != self.shards.in_place:
            where = "whole on every rank" if self.shards.in_place else "divided among the ranks"
            raise ConfigError(f"rollout.weights={asked}, but weights are {where} here. Fix: --rollout.weights auto.")
        if why := why_not_on(config, self.name):
            raise ConfigError(why)
        if config.model.load_in_4bit and not self.shards.in_place:
            raise ConfigError(
                "model.load_in_4bit=true cannot be divided among ranks. Fix: launch/accelerate/ddp.yaml or "
                "zero2.yaml, or --model.load_in_4bit false."
            )

    def _mixed_precision(self) -> str:
        return "no" if self.precision == "fp32" else self.precision

    def _check_launch(self) -> None:
        kind = self.accelerator.distributed_type
        if kind not in self.kinds:
            raise ConfigError(
                f"Launched for {self.kinds[0].value}, but accelerate made it {kind.value}: weights would not be "
                "divided among ranks. accelerate does that on GPUs only. Fix: launch/accelerate/ddp.yaml."
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if self.num_ranks != launched:
            raise ConfigError(
                f"{launched} processes were launched, but accelerate sees {self.num_ranks} ({kind.value}): each would "
                "train alone. On CPUs set ACCELERATE_USE_CPU=true before accelerate launch; on GPUs start as many "
                "processes as there are GPUs."
            )

    @property
    def num_ranks(self) -> int:
        """Number of processes that learn together."""
        return int(self.accelerator.num_processes)

    @cached_property
    def num_local_ranks(self) -> int:
        """Number of processes that share this machine's cores; every rank must ask first at the same time."""
        own = socket.gethostname()
        return self.gather(own).count(own)

    @property
    def rank(self) -> int:
        """Index of this process."""
        return int(self.accelerator.process_index)

    @property
    def can_repeat(self) -> bool:
        """Whether a backward that was broken off can be forgotten and done again: no other rank may be in it still."""
        return self.num_ranks == 1 or self._defers_allreduce

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self.accelerator.device)

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap the policy for this launch; call once.

        Returns:
            The wrapped policy, and the optimizer whose groups hold the learning rate.
        """
        self._model = policy.model
        self._policy, self._optimizer = self.accelerator.prepare(policy, optimizer)
        if isinstance(self._policy, DistributedDataParallel):
            # Few gradients (adapters) travel quickly, so they need not do so while others are still computed. Until
            # they do, a rank whose memory runs out can tell the others.
            num_bytes = sum(parameter.nbytes for parameter in self.trainable().values())
            self._defers_allreduce = num_bytes <= _LATE_BYTES
            # Buffers are constants, alike on all ranks; sending them in a forward would be one more place to meet in.
            self._policy.broadcast_buffers = False
        return self._policy, optimizer

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of the learning pass's precision, for forwards outside the wrapped policy."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function that reads the live model on all ranks at once, where it is divided."""
        return function()

    def _wait_for_all(self) -> None:
        """Wait for every rank, as long as each lives: the collective that follows would give up on one that is busy."""
        if self._heartbeat is not None:
            self._heartbeat.meet()

    def max_over_ranks(self, value: int) -> int:
        """Return the largest of a number over all ranks."""
        if self.num_ranks == 1:
            return value
        self._wait_for_all()
        gathered = self.accelerator.gather(torch.tensor([value], device=self.device))
        return int(gathered.max().item())

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank, on every rank; values are pickled."""
        if self.num_ranks == 1:
            return [value]
        self._wait_for_all()
        found: list[T] = [value] * self.num_ranks
        torch.distributed.all_gather_object(found, value)
        return found

    def on_first(self, function: Callable[[], T]) -> T:
        """Run a function on the first rank; every rank gets its result, or its error."""
        if self.num_ranks == 1:
            return function()
        outcome: list[Any] = [None, None]
        failed: Exception | None = None
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as error:  # whatever it is: the others wait for it
                own = isinstance(error, SdftError)
                failed = error
                outcome[1] = error if own else TrainingError(f"Rank 0 failed ({type(error).__name__}): {error}")
        self._wait_for_all()
        torch.distributed.broadcast_object_list(outcome)
        if failed is not None:
            raise failed
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
            differing = [name for name in {**found[0], **theirs} if theirs.get(name) != found[0].get(name)]
            if differing:
                here, there = theirs.get(differing[0]), found[0].get(differing[0])
                raise ConfigError(
                    f"Rank {rank} has another {', '.join(differing)} than rank 0: {here} instead of {there} as the "
                    "first of them. Fix: the same command, files and checkout on every rank; absolute paths."
                )

    @contextlib.contextmanager
    def oom_on_all_ranks(self) -> Iterator[None]:
        """Tell every rank when memory runs out on one, where what was begun can be forgotten.

        Raises:
            OutOfMemoryOnAnyRank: On all ranks alike.
        """
        said = ""
        try:
            yield
        except torch.OutOfMemoryError as error:
            if not self.can_repeat:
                raise
            said = str(error) or "out of memory"  # not the error: kept here it would keep what it broke off in memory
        if self.can_repeat and self.max_over_ranks(int(bool(said))):
            raise OutOfMemoryOnAnyRank(said or "on another rank")

    def micro_batch(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a micro-batch's forward and backward: ranks meet in the last one, or after it.

        DDP decides in the forward whether the backward that follows reduces gradients.
        """
        waiting: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(self._policy)
        return contextlib.nullcontext() if last and not self._defers_allreduce else waiting

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients of an already normalised loss."""
        self.accelerator.backward(loss * self.num_ranks)

    def step_if_finite(self, loss_sum: float, max_norm: float) -> float:
        """Clip and step; return the norm before clipping.

        Where loss or gradient is not finite, return a number that is not either, and leave weights and moments alone.
        """
        if math.isfinite(loss_sum):
            return self.optimizer_step(max_norm)
        self.discard_gradients()
        return math.nan

    def optimizer_step(self, max_norm: float) -> float:
        """Clip and step, unless the gradient is not finite; gradients are gone afterwards either way.

        Args:
            max_norm: Largest global norm; 0 does not clip.

        Returns:
            The norm before clipping. If it is not finite, no step was taken.
        """
        if self._defers_allreduce:
            self._allreduce_gradients()
        grad_norm = self._clip(max_norm if max_norm > 0 else math.inf)
        if math.isfinite(grad_norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return grad_norm

    @torch.no_grad()
    def _allreduce_gradients(self) -> None:
        """Average gradients over ranks, as DDP does."""
        parameters = list(self.trainable().values())
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = torch.cat([part.flatten() for part in parts]) / self.num_ranks
        torch.distributed.all_reduce(whole)
        for parameter, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def _clip(self, limit: float) -> float:
        return float(self.accelerator.clip_grad_norm_(self._policy.parameters(), limit).item())

    def discard_gradients(self) -> None:
        """Forget what was accumulated."""
        self._optimizer.zero_grad(set_to_none=True)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, as they are divided now."""
        assert self._model is not None
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the trained parameters whole, on the CPU of the first rank; every rank must call it."""
        found = {name: self._kept(self.shards.gather(p, self.shards.local(p))) for name, p in self.trainable().items()}
        return {name: whole for name, whole in found.items() if whole is not None}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Restore :meth:`weights`."""
        for name, parameter in self.trainable().items():
            self.shards.assign(parameter, weights[name])

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state by parameter name, whole, on the CPU of the first rank; every rank must call it.

        It does not depend on the backend nor on the number of ranks.
        """
        state = {
            name: {
                key: _number(value) if is_scalar(value) else self._kept(self._gathered(p, value))
                for key, value in self._states(p).items()
            }
            for name, p in self.trainable().items()
        }
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._basic().param_groups]
        return {"state": state, "groups": groups}

    def load_optimizer_state(self, saved: Mapping[str, Any]) -> None:
        """Restore :meth:`optimizer_state`; parameters that had no state have none."""
        if not any(saved["state"].values()):  # it is of before the first step
            self._basic().state.clear()
        for name, parameter in self.trainable().items():
            if state := saved["state"][name]:
                self._place(parameter, state)
        for group, kept in zip(self._basic().param_groups, saved["groups"], strict=True):
            group.update(kept)

    def _basic(self) -> torch.optim.Optimizer:
        """Return torch's own optimizer."""
        optimizer: torch.optim.Optimizer = self._optimizer.optimizer
        return optimizer

    def _states(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        """Return what the optimizer keeps of a parameter; empty before its first step."""
        found: Mapping[str, Any] = self._basic().state.get(parameter, {})
        return found

    def _place(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
        self._basic().state[parameter] = {
            key: number_in(self._basic(), value) if is_scalar(value) else self._state_like(parameter, value)
            for key, value in state.items()
        }

    def _state_like(self, parameter: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        return whole.to(parameter.device, copy=True)

    def _gathered(self, parameter: nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        """Return an optimizer state whole."""
        return part

    def _kept(self, whole: torch.Tensor) -> torch.Tensor | None:
        """Return a tensor on the CPU of the first rank; the others need not hold it."""
        return whole.detach().cpu().contiguous() if self.rank == 0 else None


class DividedBackend(Backend):
    """What backends share that divide more than the work: weights stay float32, computed with under autocast."""

    def _mixed_precision(self) -> str:
        return "no"

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Let the policy's forward open autocast itself; see :meth:`Backend.prepare`."""
        policy.forward = self.autocast()(policy.forward)  # type: ignore[method-assign, operator]  # a context decorates
        return super().prepare(policy, optimizer)

    @property
    def can_repeat(self) -> bool:
        """No: what a broken-off backward has gathered and reduced so far stays."""
        return False


def _number(value: Any) -> torch.Tensor:
    return value.detach().cpu() if isinstance(value, torch.Tensor) else torch.tensor(float(value))


def number_in(optimizer: torch.optim.Optimizer, value: torch.Tensor) -> torch.Tensor | int:
    """Return a saved count as an optimizer keeps it: torch's own in tensors, those of others in ints."""
    return value.clone() if type(optimizer).__module__.startswith("torch.") else int(value)


def is_scalar(value: Any) -> bool:
    """Whether an optimizer state is one number for the whole parameter."""
    return not isinstance(value, torch.Tensor) or value.ndim == 0
