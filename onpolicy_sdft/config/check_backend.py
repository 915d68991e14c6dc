"""Options that do not go with how weights and optimizer state are divided among ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig

#: Kinds of adapters that read whole weights of the base.
READS_WHOLE = ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices")


def why_not_on(config: RunConfig, backend: str) -> str:
    """Return why a run cannot be had on a backend, with the way out; empty if it can.

    Args:
        config: Of the run.
        backend: As ``sdft plan`` calls it.
    """
    if config.optim.name != "adamw" and backend != "ddp":
        return (
            f"optim.name={config.optim.name} keeps state that {backend} cannot divide: it steps flat parts of weights. "
            "Fix: --optim.name adamw, or launch/accelerate/ddp.yaml."
        )
    if not (config.lora.enabled and backend.startswith(("zero3", "fsdp"))):
        return ""
    for name in READS_WHOLE:
        if value := getattr(config.lora, name):
            return (
                f"lora.{name}={value!r} reads whole weights, and {backend} divides them among the ranks. Fix: "
                "launch/accelerate/ddp.yaml, zero1.yaml or zero2.yaml, or leave it out."
            )
    return ""
