"""Let accelerate divide weights among ranks on CPUs, which it does on GPUs only; for tests.

It reaches into accelerate and DeepSpeed where they take a CPU for a mistake:

* FSDP is switched off unless the launch is of GPUs;
* DeepSpeed's process group is one rank for accelerate unless it is told the backend;
* DeepSpeed would compile a kernel of its own for collectives within one machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

STRICT = Path(__file__).with_name("zero3_strict.json")


def forget_launch() -> None:
    """Forget what accelerate knows of this process; a fork of one that has trained is told anew what it is."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def ddp(timeout: timedelta) -> None:
    """Average gradients over gloo."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.distributed.init_process_group("gloo", timeout=timeout)


def deepspeed(timeout: timedelta, stage: int | None = None) -> None:
    """Divide by DeepSpeed; without a stage, by the config file that the environment names."""
    import deepspeed as library
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if stage == 3:
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(STRICT)
    elif stage is not None:
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(stage)
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"
    library.init_distributed("gloo", timeout=timeout, verbose=False)
    PartialState(backend="gloo", timeout=timeout)
    assert PartialState().distributed_type == DistributedType.DEEPSPEED


def fsdp2(timeout: timedelta, *, by_file: bool = False) -> None:
    """Divide by ``fully_shard``; the environment names its options if it came from a config file."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if not by_file:
        os.environ.update(
            ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
            FSDP_RESHARD_AFTER_FORWARD="true", FSDP_CPU_RAM_EFFICIENT_LOADING="false", FSDP_OFFLOAD_PARAMS="false",
        )  # fmt: skip
    PartialState(cpu=True, timeout=timeout)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


BACKENDS: dict[str, Callable[[timedelta], None]] = {
    "ddp": ddp,
    "zero1": partial(deepspeed, stage=1),
    "zero2": partial(deepspeed, stage=2),
    "zero3": partial(deepspeed, stage=3),
    "fsdp2": fsdp2,
}
