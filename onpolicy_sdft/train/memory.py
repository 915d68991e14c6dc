"""How much memory learning takes: measured after a part of a step, and estimated from sizes before there was one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

from onpolicy_sdft.objectives.objective import chunk_size
from onpolicy_sdft.train.deepspeed import BUCKET_ELEMENTS

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.sizes import Sizes

_MIB = 2**20
#: Optimizer -> bytes it keeps of a weight; Adafactor's sums of rows and columns are next to nothing.
_STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0, "adafactor": 0.0}

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


def memory_mib(device: torch.device) -> int:
    """Return this process's memory in MiB: on a GPU the peak since the last call, elsewhere what is resident now."""
    if device.type != "cuda":
        return int(psutil.Process().memory_info().rss // _MIB)
    peak = int(torch.cuda.max_memory_allocated(device) // _MIB)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def training_state(sizes: Sizes, backend: str, num_ranks: int, optimizer_name: str = "adamw") -> dict[str, float]:
    """Return the bytes of gradients and optimizer state on one rank; both are float32 but for 8-bit moments."""
    # DeepSpeed steps a copy of the weights of its own.
    own = _STATE_BYTES[optimizer_name]
    optimizer = 0 if backend in OFFLOADED else own + 4 if backend.startswith("zero") else own
    return {
        "gradients": 4 * sizes.num_trainable * share_of("gradients", backend, num_ranks),
        "optimizer": optimizer * sizes.num_trainable * share_of("optimizer", backend, num_ranks),
    }


def working_memory(config: RunConfig, sizes: Sizes, backend: str, num_ranks: int) -> dict[str, float]:
    """Return the bytes that a rank holds while it learns one micro-batch, and not before or after."""
    chunk = config.objective.chunk_tokens or chunk_size(sizes.vocab_size, "cuda")
    return {
        "activations": _activations(config, sizes),
        "logits": 4 * 4 * chunk * sizes.vocab_size,
        "buckets": 4 * _bucket(backend, num_ranks, sizes),
    }


def memory_to_come(config: RunConfig, sizes: Sizes, backend: str, num_ranks: int) -> int:
    """Return the bytes that learning will take on a rank whose policy was prepared and has not learned yet."""
    parts = training_state(sizes, backend, num_ranks, config.optim.name)
    parts |= working_memory(config, sizes, backend, num_ranks)
    # There already: DDP made its buckets when it was prepared, DeepSpeed its optimizer state.
    ready = {"buckets"} if backend == "ddp" else {"optimizer"} if backend.startswith("zero") else set()
    return int(sum(num_bytes for name, num_bytes in parts.items() if name not in ready))


def share_of(part: str, backend: str, num_ranks: int) -> float:
    """Return how much of parameters, gradients or optimizer state one rank holds."""
    return 1 / num_ranks if part in SHARDED[backend] else 1.0


def _bucket(backend: str, num_ranks: int, sizes: Sizes) -> int:
    """Elements of the buffer that gradients travel in: all of them under DDP."""
    if num_ranks == 1 or backend == "fsdp2":
        return 0
    return sizes.num_trainable if backend == "ddp" else min(sizes.num_trainable, BUCKET_ELEMENTS)


def _activations(config: RunConfig, sizes: Sizes) -> float:
    """Activations that a backward needs: about 14 hidden and 5 intermediate vectors a token and layer."""
    width = 2 if config.train.precision == "bf16" else 4
    a_layer = 14 * sizes.hidden_size + 5 * sizes.intermediate_size
    if config.model.gradient_checkpointing:
        return width * config.train.micro_batch_tokens * (sizes.num_layers * sizes.hidden_size + a_layer)
    return width * config.train.micro_batch_tokens * sizes.num_layers * a_layer
