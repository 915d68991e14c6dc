"""Refuse limits of alarms and of the gate that cannot be meant, with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onpolicy_sdft.errors import ConfigError

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig


def check_guards(config: RunConfig) -> None:
    """Check ``alarms`` and ``gate``.

    Raises:
        ConfigError: On the first value that is refused.
    """
    alarms, gate = config.alarms, config.gate
    for name, number, least in (
        ("alarms.patience_steps", alarms.patience_steps, 1),
        ("alarms.reference_steps", alarms.reference_steps, 1),
        ("alarms.min_tokens", alarms.min_tokens, 0),
        ("gate.rows", gate.rows, 0),
        ("gate.max_rollbacks", gate.max_rollbacks, 1),
        ("gate.every_steps", 1 if gate.every_steps is None else gate.every_steps, 1),
    ):
        _require(number >= least, name, number, f"{least} or more")
    for name, share in (
        ("alarms.length_fall", alarms.length_fall),
        ("alarms.loss_tokens_fall", alarms.loss_tokens_fall),
        ("alarms.entropy_fall", alarms.entropy_fall),
        ("alarms.min_keep_rate", alarms.min_keep_rate),
    ):
        _require(share is None or 0 < share < 1, name, share, "above 0 and below 1, or null for no alarm")
    rise, copies = alarms.surprise_rise, alarms.max_verbatim_rate
    _require(rise is None or rise > 1, "alarms.surprise_rise", rise, "above 1, or null for no alarm")
    _require(copies is None or 0 <= copies < 1, "alarms.max_verbatim_rate", copies, "in [0, 1), or null for no alarm")
    _require(0 <= gate.max_drop < 1, "gate.max_drop", gate.max_drop, "in [0, 1)")
    _require(0 < gate.max_p_value < 1, "gate.max_p_value", gate.max_p_value, "above 0 and below 1")
    _require(0 < gate.max_cost <= 1, "gate.max_cost", gate.max_cost, "above 0 and at most 1")
    factor = gate.rollback_lr_factor
    _require(0 < factor <= 1, "gate.rollback_lr_factor", factor, "above 0 and at most 1")


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r} is not usable: it must be {wanted}.")
