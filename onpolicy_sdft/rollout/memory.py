"""How many slots fit: from free memory where nothing else is said, refused with the numbers where not one does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.machine import free_memory

_GIB = 2**30
_LEAST_SHARE = 0.1  # of what is free, for keys and values; where it is in learning's way, it is given back then
#: Completions at once, where nothing else is said: beyond, more rows stopped paying, or were not tried.
MAX_SLOTS = {"cpu": 128, "cuda": 1024}
_PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192}  # of one forward, where nothing else is said


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory for keys and values, fixed once a run."""

    num_bytes: int
    origin: str  # where the number came from, for messages


def kv_budget(kv_gib: float | None, kv_fraction: float, device: torch.device, learning_bytes: int = 0) -> Budget:
    """Return the memory keys and values may take: as configured, else a fraction of what is free now.

    Args:
        kv_gib: ``rollout.kv_gib``.
        kv_fraction: ``rollout.kv_fraction``.
        device: Where they live.
        learning_bytes: What learning will take beside them on a GPU; a part of the fraction is theirs in any case.
    """
    if kv_gib is not None:
        return Budget(int(kv_gib * _GIB), f"rollout.kv_gib={kv_gib:g}")
    free, limited_by = _free_bytes(device)
    origin = f"rollout.kv_fraction={kv_fraction:g} of {show_bytes(free)} free"
    if limited_by:
        origin += f" below {limited_by}"
    if device.type == "cuda" and learning_bytes:
        origin += f", {show_bytes(learning_bytes)} of them for learning"
        free = max(free - learning_bytes, int(free * _LEAST_SHARE))
    return Budget(int(free * kv_fraction), origin)


def _free_bytes(device: torch.device) -> tuple[int, str]:
    """Return what can be had, and a limit below the machine's: on a GPU also what torch has taken and nothing uses."""
    if device.type != "cuda":
        return free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused, ""


def max_slots(asked: int | None, device: torch.device) -> int:
    """Return the completions to write at once: as asked, or what pays on the device."""
    return asked or MAX_SLOTS.get(device.type, 64)


def choose_prefill_tokens(asked: int | None, device: torch.device) -> int:
    """Return the prompt tokens to read in one forward: as asked, or what pays on the device."""
    return asked or _PREFILL_TOKENS.get(device.type, 1024)


def show_bytes(num_bytes: int) -> str:
    """Write a number of bytes as people read it."""
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.2f} MiB"


def choose_num_slots(
    asked: int | None,
    num_requests: int,
    length: int,
    bytes_per_position: int,
    budget: Budget,
    device: torch.device,
    least: int = 1,
) -> int:
    """Return the number of slots of a call: what was asked for or what pays, at most what fits and what is needed.

    Args:
        asked: ``rollout.num_slots``.
        num_requests: Of the call; a blended one counts as two.
        length: Positions of a slot: longest prompt, longest completion and drafts.
        bytes_per_position: Keys and values of one position in all layers.
        budget: What may be used.
        device: Where the slots live.
        least: Slots of one request: two where it is blended.

    Raises:
        ConfigError: If not even one request fits, with the numbers.
    """
    if asked is not None and asked < least:
        raise ConfigError(
            f"rollout.num_slots={asked}, but a blended rollout (rollout.blend) takes {least} slots: one for the "
            f"teacher's prompt, one for the bare prompt. Fix: --rollout.num_slots {least} or more."
        )
    slot_bytes = length * bytes_per_position
    fit = budget.num_bytes // slot_bytes
    if fit < least:
        twice = f", {least} slots: it is blended" if least > 1 else ""
        raise ConfigError(
            f"One rollout of {length} positions needs {show_bytes(least * slot_bytes)} of keys and values "
            f"({bytes_per_position} bytes a position{twice}), and {show_bytes(budget.num_bytes)} may be used "
            f"({budget.origin}). Fix: raise rollout.kv_gib, or lower context.max_teacher_tokens or "
            "rollout.max_new_tokens."
        )
    return max(least, min(max_slots(asked, device), num_requests, fit))
