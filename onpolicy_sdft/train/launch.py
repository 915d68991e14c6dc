"""Which backend this process was launched for."""

from __future__ import annotations

import os

from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.deepspeed import DeepSpeedBackend
from onpolicy_sdft.train.fsdp import FsdpBackend


def make_backend(precision: str, timeout_seconds: float = 1800.0) -> Backend:
    """Return the backend that this process was launched for.

    Raises:
        ConfigError: If the launch would not do what it says.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return DeepSpeedBackend(precision, timeout_seconds)
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return FsdpBackend(precision, timeout_seconds)
    return Backend(precision, timeout_seconds)
