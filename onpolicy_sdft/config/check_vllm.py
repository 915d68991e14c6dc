"""Refuse what vLLM cannot do, before anything is loaded."""

from __future__ import annotations

from urllib.parse import urlsplit

from onpolicy_sdft.config.schema import RolloutConfig, RunConfig
from onpolicy_sdft.errors import ConfigError

_COOLEST = 0.01  # vLLM raises lower temperatures to this
#: Options that say how the engine works, and that vLLM has nothing for.
_OF_THE_ENGINE = (
    "attention", "sync_steps", "max_draft_tokens", "drafts", "draft_store_tokens", "blend", "blend_budget",
    "deterministic", "merge_adapter",
)  # fmt: skip
#: Options that a server was given already, and how.
_OF_THE_SERVER = {
    "kv_gib": "--kv-cache-memory-bytes", "kv_fraction": "--gpu-memory-utilization", "num_slots": "--max-num-seqs",
    "graphs": "--enforce-eager", "decode_copy": "--dtype",
}  # fmt: skip
#: Kinds of adapters that are not merged into the weight of a linear layer.
_BESIDE_THE_WEIGHTS = ("modules_to_save", "target_parameters", "trainable_token_indices")


def check_vllm(config: RunConfig) -> None:
    """Check the options of rollouts against vLLM, and what is of vLLM alone against the other backends.

    Raises:
        ConfigError: On the first that is refused.
    """
    rollout, default = config.rollout, RolloutConfig()
    _check_server(rollout)
    if rollout.backend not in ("vllm", "vllm_server"):
        if rollout.max_mismatch is not None:
            raise ConfigError(
                f"rollout.max_mismatch={rollout.max_mismatch:g} bounds how far vLLM's numbers are off the model's, but "
                f"rollout.backend={rollout.backend} writes with the model itself. Fix: leave it unset."
            )
        return
    for name in _OF_THE_ENGINE:
        value, usual = getattr(rollout, name), getattr(default, name)
        if value != usual:
            raise ConfigError(
                f"rollout.{name}={value!r} is an option of the engine that vLLM has nothing for. "
                f"Fix: --rollout.backend engine, or leave it at {usual!r}."
            )
    if rollout.decode_copy == "packed":
        raise ConfigError(
            "rollout.decode_copy=packed is a layout of the engine; vLLM has its own. Fix: --rollout.decode_copy auto "
            "(the dtype of the weights) or bfloat16."
        )
    if rollout.weights == "sharded":
        raise ConfigError(
            "rollout.weights=sharded has no whole copy of the weights to hand to vLLM. Fix: --rollout.weights gather, "
            "or --rollout.backend hf."
        )
    if config.model.load_in_4bit:
        raise ConfigError(
            "model.load_in_4bit=true holds weights that cannot be handed to vLLM. Fix: --rollout.backend engine, or "
            "--model.load_in_4bit false."
        )
    for name in _BESIDE_THE_WEIGHTS:
        if value := getattr(config.lora, name):
            raise ConfigError(
                f"lora.{name}={value!r} trains what is not handed to vLLM. Fix: --rollout.backend engine, or leave it "
                "out."
            )
    _check_distribution(rollout)


def _check_server(rollout: RolloutConfig) -> None:
    """What is of a server alone, and what only it decides."""
    default = RolloutConfig()
    if rollout.backend != "vllm_server":
        for name in ("server_url", "server_weights", "server_timeout"):
            value, usual = getattr(rollout, name), getattr(default, name)
            if value != usual:
                raise ConfigError(
                    f"rollout.{name}={value!r} is of a vLLM server, and rollout.backend={rollout.backend} has none. "
                    f"Fix: --rollout.backend vllm_server, or leave it at {usual!r}."
                )
        return
    if not _is_address(rollout.server_url):
        raise ConfigError(
            f"rollout.server_url={rollout.server_url!r} is no address of a server. Fix: one such as "
            f"{default.server_url}."
        )
    if rollout.server_weights == "":
        raise ConfigError("rollout.server_weights='' names no folder. Fix: a folder, or leave it unset.")
    for name, flag in _OF_THE_SERVER.items():
        value, usual = getattr(rollout, name), getattr(default, name)
        if value != usual:
            raise ConfigError(
                f"rollout.{name}={value!r} is decided where the vLLM server is started. Fix: {flag} of vllm serve, and "
                f"leave it at {usual!r} here."
            )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0  # raises where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and has_port and not parts.query


def _check_distribution(rollout: RolloutConfig) -> None:
    """What vLLM would quietly make another distribution of."""
    lowest = min(rollout.temperature, rollout.temperature_end or rollout.temperature)
    if 0 < lowest < _COOLEST:
        raise ConfigError(
            f"vLLM samples at a temperature of {_COOLEST} or more, and rollout asks for {lowest:g}. "
            f"Fix: --rollout.temperature 0 (greedy) or {_COOLEST} and above, or --rollout.backend engine."
        )
    if rollout.top_p < 1 and (rollout.min_p > 0 or rollout.min_p_end):
        raise ConfigError(
            "vLLM applies min_p before top_p, the other backends behind it: together they keep other tokens. "
            "Fix: rollout.top_p 1 or min_p 0, or --rollout.backend engine."
        )
