"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from onpolicy_sdft.errors import ConfigError, MissingDependencyError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from onpolicy_sdft.config.schema import OptimConfig

logger = logging.getLogger(__name__)

_IN_8_BITS = 4096  # weights of fewer elements keep float32 moments in bitsandbytes
_DECAY_ONE_IN = 10  # of the steps of a run, where nothing else is said


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters; norms and biases are not decayed.

    Raises:
        ModelError: If a trainable parameter is not float32 or wider: updates of the usual size would be rounded
            away.
        MissingDependencyError: If bitsandbytes is asked for and not there.
        ConfigError: If it cannot step weights where these are.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    narrow = [name for name, p in trainable.items() if p.dtype not in (torch.float32, torch.float64)]
    if narrow:
        raise ModelError(
            f"{len(narrow)} trainable weights are {trainable[narrow[0]].dtype} (first: {narrow[0]}): most updates "
            "of the size of the learning rate would be lost to rounding. Fix: --model.dtype float32 "
            "(with --train.precision bf16 for speed), or --lora.enabled true."
        )
    groups = [
        {"params": [p for p in trainable.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "adafactor":
        if any("lora_" in name for name in trainable):
            logger.warning(
                "Adafactor steps by the size of a weight, and half of an adapter's start at zero: they will hardly "
                "move. Fix: --optim.name adamw (adapters have little state), or --lora.enabled false"
            )
        return torch.optim.Adafactor(groups, lr=config.lr)
    kind = torch.optim.AdamW if config.name == "adamw" else _adamw_8bit(next(iter(trainable.values())).device)
    made: torch.optim.Optimizer = kind(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps)
    return made


def _adamw_8bit(device: torch.device) -> Any:
    """Return bitsandbytes' class, tried: not every build of it steps weights on every device."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingDependencyError(
            "optim.name=adamw_8bit needs bitsandbytes: pip install 'onpolicy_sdft[bitsandbytes]'."
        ) from error
    tried = torch.nn.Parameter(torch.zeros(_IN_8_BITS, device=device))
    tried.grad = torch.ones_like(tried)
    try:
        AdamW8bit([tried]).step()
    except Exception as error:  # whatever a build without the kernels raises
        raise ConfigError(
            f"optim.name=adamw_8bit: this bitsandbytes does not step weights on {device.type} "
            f"({type(error).__name__}: {error}). Fix: a newer bitsandbytes, or --optim.name adamw."
        ) from error
    return AdamW8bit


def make_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the warm-up and what follows it; one tick per optimizer step taken.

    The rate of step k of the warm-up, counted from 1, is ``lr * k / warmup_steps``. transformers counts from 0, which
    throws the first step away; so its schedules start one step on.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    schedule: torch.optim.lr_scheduler.LRScheduler
    if config.schedule == "cosine":
        schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, num_steps + 1, last_epoch=0)
    elif config.schedule == "linear":
        schedule = get_linear_schedule_with_warmup(optimizer, config.warmup_steps, num_steps + 1, last_epoch=0)
    elif config.schedule == "warmup_stable_decay":
        decay_steps = config.decay_steps or max(1, num_steps // _DECAY_ONE_IN)
        if config.warmup_steps + decay_steps > num_steps:
            raise ConfigError(
                f"optim.warmup_steps={config.warmup_steps} and {decay_steps} steps of decay (optim.decay_steps) are "
                f"more than the {num_steps} steps of the run. Fix: fewer of either, or more steps."
            )
        schedule = get_wsd_schedule(
            optimizer, config.warmup_steps, decay_steps, num_steps + 1, decay_type="linear", last_epoch=0
        )
    else:
        schedule = get_constant_schedule_with_warmup(optimizer, config.warmup_steps, last_epoch=0)
    return schedule


def scale_rates(schedule: torch.optim.lr_scheduler.LRScheduler, factor: float) -> None:
    """Multiply the learning rates of a schedule, from where it is to its end."""
    state = schedule.state_dict()
    rates = {name: [factor * rate for rate in state[name]] for name in ("base_lrs", "_last_lr")}
    schedule.load_state_dict({**state, **rates})
    for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
