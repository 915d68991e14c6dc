"""Configs with some options changed, unchecked."""

from __future__ import annotations

from typing import Any

from onpolicy_sdft.config.schema import RunConfig


def config_with(**values: Any) -> RunConfig:
    """The defaults with options changed by dotted name."""
    config = RunConfig()
    for name, value in values.items():
        section, _, field = name.partition(".")
        assert hasattr(getattr(config, section), field), name
        setattr(getattr(config, section), field, value)
    return config
