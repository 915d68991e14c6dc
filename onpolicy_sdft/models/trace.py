"""The promise that a rollout, or a scoring, leaves no trace on the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

_CHECKPOINTING = "gradient_checkpointing"  # the flag transformers keeps on its layers


@contextlib.contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients, and put everything back, also after an exception.

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
