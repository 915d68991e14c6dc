"""What a run would take on so many GPUs: memory of a rank by backend, before one is at hand.

The numbers are estimates from sizes; what they leave out (kernels' workspaces, fragmentation, the libraries
themselves) is allowed for by ``RESERVE``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.jobs.method import keeps_gathered
from onpolicy_sdft.models.sizes import Sizes, model_sizes
from onpolicy_sdft.objectives.objective import chunk_size
from onpolicy_sdft.train.deepspeed import BUCKET_ELEMENTS

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig

GIB = 2**30
#: Share of a GPU that is left to what the estimate does not know.
RESERVE = 0.1
_MAX_SLOTS = 256  # completions at once on a GPU, where nothing else is said

#: Backend -> which of parameters, gradients and optimizer state are divided among the ranks.
SHARDED: dict[str, frozenset[str]] = {
    "ddp": frozenset(),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"optimizer", "gradients", "parameters"}),
    "fsdp2": frozenset({"optimizer", "gradients", "parameters"}),
    "zero3_offload": frozenset({"optimizer", "gradients", "parameters"}),
}
#: Backends that keep parameters and optimizer state in the CPU's memory.
OFFLOADED = ("zero3_offload",)


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
    num_gpus: int
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
    if config.train.batch_size < num_gpus:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} demonstrations a step leave some of {num_gpus} ranks without "
            f"any. Way out: --train.batch_size {num_gpus} or more."
        )
    sizes = model_sizes(config.model, config.lora)
    rollouts = config.train.batch_size * config.rollout.num_samples
    share = math.ceil(rollouts / num_gpus)
    rows = tuple(estimate(config, sizes, backend, num_gpus, share) for backend in SHARDED)
    usable = gpu_gib * GIB * (1 - RESERVE)
    fitting = [row.backend for row in rows if row.peak <= usable]
    return PlanOutcome(sizes, num_gpus, rows, rollouts, share, fitting[0] if fitting else None)


def estimate(config: RunConfig, sizes: Sizes, backend: str, num_gpus: int, most: int) -> Estimate:
    """Return what one rank of a backend holds; all training state is float32."""
    shared = SHARDED[backend]

    def share(part: str) -> int:
        return num_gpus if part in shared else 1

    weights = sizes.num_bytes
    gathered = weights if "parameters" in shared and config.rollout.weights != "sharded" else 0.0
    stays = keeps_gathered(config)
    held = {
        "parameters": weights / share("parameters"),
        "gradients": 4 * sizes.num_trainable / share("gradients"),
        # DeepSpeed steps a copy of the weights of its own.
        "optimizer": (12 if backend.startswith("zero") else 8) * sizes.num_trainable / share("optimizer"),
        "teacher": _copies(config) * 4 * sizes.num_trainable / share("optimizer"),
        "gathered": gathered if stays else 0.0,
        "keys and values": _keys_and_values(config, sizes, most),
    }
    if backend in OFFLOADED:
        held["parameters"] = held["optimizer"] = 0.0
    learning = {
        "activations": _activations(config, sizes),
        "logits": 4 * 4 * (config.objective.chunk_tokens or chunk_size(sizes.vocab_size, "cuda")) * sizes.vocab_size,
        "buckets": 4 * _bucket(backend, num_gpus, sizes),
    }
    merged = sizes.num_adapted * sizes.bytes_per_parameter if config.rollout.merge_adapter else 0
    writing: dict[str, float] = {
        "decode copy": 2 * sizes.num_parameters if config.rollout.decode_copy == "bfloat16" else merged,
    }
    if not stays:
        writing["gathered"] = gathered
    heavier = max((learning, writing), key=lambda parts: sum(parts.values()))
    parts = {name: value for name, value in {**held, **heavier}.items() if value}
    return Estimate(backend, parts, sum(parts.values()))


def _bucket(backend: str, num_gpus: int, sizes: Sizes) -> int:
    """Elements of the buffer that gradients travel in: all of them under DDP."""
    if num_gpus == 1 or backend == "fsdp2":
        return 0
    return sizes.num_trainable if backend == "ddp" else min(sizes.num_trainable, BUCKET_ELEMENTS)


def _copies(config: RunConfig) -> int:
    kinds = {config.teacher.weights, config.objective.anchor if config.objective.anchor_kl else "live"} - {"live"}
    on_device = kinds if config.teacher.device == "auto" else set()
    return len(on_device - {"base"} if config.lora.enabled else on_device)


def _activations(config: RunConfig, sizes: Sizes) -> float:
    """Activations that a backward needs: about 14 hidden and 5 intermediate vectors a token and layer."""
    width = 2 if config.train.precision == "bf16" else 4
    a_layer = 14 * sizes.hidden_size + 5 * sizes.intermediate_size
    if config.model.gradient_checkpointing:
        return width * config.train.micro_batch_tokens * (sizes.num_layers * sizes.hidden_size + a_layer)
    return width * config.train.micro_batch_tokens * sizes.num_layers * a_layer


def _keys_and_values(config: RunConfig, sizes: Sizes, most: int) -> float:
    if config.train.targets != "policy":
        return 0.0
    rollout = config.rollout
    length = config.context.max_teacher_tokens + rollout.max_new_tokens
    a_position = 2 * sizes.num_layers * sizes.kv_size * sizes.bytes_per_parameter
    asked = min(most, rollout.num_slots or _MAX_SLOTS) * length * a_position
    return min(asked, rollout.kv_gib * GIB) if rollout.kv_gib is not None else asked
