"""Fine-tune chat models on demonstrations without making them forget.

from onpolicy_sdft import fit, load_config, load_run

config = load_config("configs/online/quickstart.yaml", **{"train.max_steps": 5})
outcome = fit(config)
print(load_run(outcome.run.path).sample(["Write a Python function that sums a list."]))
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "SDFTTrainer": "onpolicy_sdft.api.trainer",
    "Callback": "onpolicy_sdft.train.callbacks",
    "load_config": "onpolicy_sdft.config.load",
    "fit": "onpolicy_sdft.fitting.fit",
    "evaluate": "onpolicy_sdft.eval.evaluate",
    "load_run": "onpolicy_sdft.build.loaded",
    "load_model": "onpolicy_sdft.build.loaded",
}
__all__ = ["Callback", "SDFTTrainer", "evaluate", "fit", "load_config", "load_model", "load_run"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch is not loaded before it is needed."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
