"""What every rollout backend offers, and the promise that a rollout leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import nn

    from onpolicy_sdft.rollout.sampling import SamplingLaw
    from onpolicy_sdft.types import Rollout, RolloutRequest

_CHECKPOINTING = "gradient_checkpointing"  # the flag transformers keeps on its layers

#: Told the number of finished completions and of tokens written since the last call.
OnProgress = Callable[[int, int], None]


def ignore_progress(num_finished: int, num_tokens: int) -> None:
    """Take no notice."""


class RolloutBackend(Protocol):
    """Writes completions with the current weights."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        law: SamplingLaw,
        on_progress: OnProgress = ignore_progress,
    ) -> list[Rollout]:
        """Write one completion per request, in the order of the requests."""
        ...


@contextlib.contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Run generation in eval mode without gradients, and put everything back, also after an exception.

    Restores the train/eval flag of every submodule, gradient checkpointing (off meanwhile: it would disable the
    key-value cache) and the random state of the CPU and of the model's device.
    """
    flags = {module: module.training for module in model.modules()}
    checkpointing = {
        module: getattr(module, _CHECKPOINTING)
        for module in model.modules()
        if isinstance(getattr(module, _CHECKPOINTING, None), bool)
    }
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        try:
            model.eval()
            for module in checkpointing:
                setattr(module, _CHECKPOINTING, False)
            yield
        finally:
            for module, flag in flags.items():
                module.training = flag
            for module, enabled in checkpointing.items():
                setattr(module, _CHECKPOINTING, enabled)
