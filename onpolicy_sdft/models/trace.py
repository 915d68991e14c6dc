"""The promise that a rollout, or a scoring, leaves no trace on the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from onpolicy_sdft.models.compiled import uncompiled
from onpolicy_sdft.models.modes import keeping_modes

_CHECKPOINTING = "gradient_checkpointing"  # the flag transformers keeps on its layers


@contextlib.contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients or autocast, and put everything back, also after an exception.

    Restores the train/eval flag of every submodule, gradient checkpointing (off meanwhile: it would disable the
    key-value cache) and the random state of the CPU and of the model's device. Autocast around the call is off inside
    (tokens are drawn under the weights as they are held); whoever scores in another precision enters it in here.
    """
    checkpointing = {
        module: getattr(module, _CHECKPOINTING)
        for module in model.modules()
        if isinstance(getattr(module, _CHECKPOINTING, None), bool)
    }
    devices = {p.device for p in model.parameters()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[each for each in devices if each.type == "cuda"]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(uncompiled(model))
        stack.enter_context(keeping_modes(model))
        for kind in sorted({each.type for each in devices}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            model.eval()
            for module in checkpointing:
                setattr(module, _CHECKPOINTING, False)
            yield
        finally:
            for module, enabled in checkpointing.items():
                setattr(module, _CHECKPOINTING, enabled)
