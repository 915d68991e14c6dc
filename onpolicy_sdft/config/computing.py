"""Options that say how a run is computed, not what: they change its results by rounding alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: By section. What memory or a machine asks for must not tie a run to it: one that goes on may have others of these.
COMPUTING: Mapping[str, frozenset[str]] = {
    "model": frozenset({"attn_implementation", "gradient_checkpointing", "cache_dir"}),
    "rollout": frozenset({
        "attention", "backend", "batch_size", "decode_copy", "deterministic", "draft_store_tokens", "drafts", "graphs",
        "kv_fraction", "kv_gib", "max_draft_tokens", "max_mismatch", "merge_adapter", "num_slots", "prefill_tokens",
        "server_timeout", "server_url", "server_weights", "sync_steps", "weights",
    }),
    "train": frozenset({"layout", "micro_batch_tokens"}),
}  # fmt: skip


def without_computing(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a section that decide its results."""
    return {name: value for name, value in options.items() if name not in COMPUTING[section]}


def computing_of(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the other ones of a whole config, by dotted name; but for where embedded models are kept."""
    return {
        f"{section}.{name}": config[section][name]
        for section, names in COMPUTING.items()
        for name in sorted(names - {"cache_dir"})
    }
