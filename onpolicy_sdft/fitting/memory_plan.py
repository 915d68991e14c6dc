"""What a run would take on so many GPUs: memory of a rank by backend, before one is at hand.

The numbers are estimates from sizes; what they leave out (kernels' workspaces, fragmentation, the libraries
themselves) is allowed for by ``RESERVE``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.build.method import keeps_gathered
from onpolicy_sdft.config.check_backend import why_not_on
from onpolicy_sdft.config.check_method import is_blended
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.sizes import Sizes, model_sizes
from onpolicy_sdft.rollout.memory import MAX_SLOTS
from onpolicy_sdft.train.loop import refuse_idle_ranks
from onpolicy_sdft.train.memory import OFFLOADED, SHARDED, share_of, training_state, working_memory

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig

GIB = 2**30
#: Share of a GPU that is left to what the estimate does not know.
RESERVE = 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one rank, by part."""

    backend: str
    parts: dict[str, float]  # of the learning pass or the rollout, whichever is larger
    peak: float  # bytes


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """What a run would take."""

    sizes: Sizes
    rows: tuple[Estimate, ...]
    rollouts_a_step: int
    rollouts_a_rank: int  # an even share; they are dealt by length, so a rank can have a few more
    recommended: str | None  # the first backend that fits; None: none does


def plan(config: RunConfig, num_gpus: int, gpu_gib: float) -> PlanOutcome:
    """Estimate the memory of a rank for every backend.

    Raises:
        ConfigError: If there are fewer demonstrations a step than GPUs, or no GPU.
    """
    if num_gpus < 1 or gpu_gib <= 0:
        raise ConfigError(f"A plan needs GPUs with memory: --gpus {num_gpus} --gpu_memory {gpu_gib:g}.")
    refuse_idle_ranks(config.train, num_gpus)
    sizes = model_sizes(config.model, config.lora)
    rollouts = config.train.batch_size * config.rollout.num_samples
    share = math.ceil(rollouts / num_gpus)
    rows = tuple(
        estimate(config, sizes, backend, num_gpus, share)
        for backend, divided in SHARDED.items()
        if not (why_not_on(config, backend) or (sizes.has_other_parts and "parameters" in divided))
    )
    usable = gpu_gib * GIB * (1 - RESERVE)
    fitting = [row.backend for row in rows if row.peak <= usable]
    return PlanOutcome(sizes, rows, rollouts, share, fitting[0] if fitting else None)


def estimate(config: RunConfig, sizes: Sizes, backend: str, num_gpus: int, most: int) -> Estimate:
    """Return what one rank of a backend holds; all training state is float32."""
    divides = "parameters" in SHARDED[backend]
    gathered = sizes.num_bytes if divides and config.rollout.weights != "sharded" else 0.0
    stays = keeps_gathered(config)
    parameters = 0.0 if backend in OFFLOADED else sizes.num_bytes * share_of("parameters", backend, num_gpus)
    held = {
        "parameters": parameters,
        **training_state(sizes, backend, num_gpus, config.optim.name),
        "teacher": _copies(config) * 4 * sizes.num_trainable * share_of("optimizer", backend, num_gpus),
        "gathered": gathered if stays else 0.0,
        "keys and values": _keys_and_values(config, sizes, most),
    }
    learning = working_memory(config, sizes, backend, num_gpus)
    merged = sizes.num_adapted * sizes.bytes_per_parameter if config.rollout.merge_adapter else 0
    writing: dict[str, float] = {
        "decode copy": 2 * sizes.num_parameters if config.rollout.decode_copy == "bfloat16" else merged,
    }
    if not stays:
        writing["gathered"] = gathered
    heavier = max((learning, writing), key=lambda parts: sum(parts.values()))
    parts = {name: value for name, value in {**held, **heavier}.items() if value}
    return Estimate(backend, parts, sum(parts.values()))


def _copies(config: RunConfig) -> int:
    kinds = {config.teacher.weights, config.objective.anchor if config.objective.anchor_kl else "live"} - {"live"}
    on_device = kinds if config.teacher.device == "auto" else set()
    return len(on_device - {"base"} if config.lora.enabled else on_device)


def _keys_and_values(config: RunConfig, sizes: Sizes, most: int) -> float:
    if config.train.targets != "policy":
        return 0.0
    rollout = config.rollout
    length = config.context.max_teacher_tokens + rollout.max_new_tokens
    a_position = 2 * sizes.num_layers * sizes.kv_size * sizes.bytes_per_parameter
    wanted = 2 * most if is_blended(rollout) else most
    asked = min(wanted, rollout.num_slots or MAX_SLOTS["cuda"]) * length * a_position
    return min(asked, rollout.kv_gib * GIB) if rollout.kv_gib is not None else asked
