"""Let a process of a campaign show where it is: a file in ``SDFT_MARKS`` for as long as it is inside a phase.

Python imports this by itself where ``PYTHONPATH`` has its folder, so the commands stay those that a user types, and
ranks and child runs show themselves as well. Nothing but the files is changed.
"""

from __future__ import annotations

import functools
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

#: Module -> what of it is which phase.
PHASES = {
    "onpolicy_sdft.train.source": ("PolicySource.rollouts", "rollout"),
    "onpolicy_sdft.train.backend": ("Backend.backward", "learning"),
    "onpolicy_sdft.train.checkpoint": ("Checkpointer._write", "checkpoint"),
    "onpolicy_sdft.eval.runner": ("score_set", "evaluation"),
    "onpolicy_sdft.build.base": ("make_base", "hand-over"),
    "onpolicy_sdft.models.export": ("export_model", "export"),
}


def marked(function: Any, phase: str) -> Any:
    """Return a function that shows that it is at work."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        mark = Path(os.environ["SDFT_MARKS"]) / f"{phase}.{os.getpid()}"
        mark.touch()
        try:
            return function(*arguments, **options)
        finally:
            mark.unlink(missing_ok=True)

    return wrapper


class _Marking(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        name, phase = PHASES[module.__name__]
        *owner, last = name.split(".")
        place = getattr(module, owner[0]) if owner else module
        setattr(place, last, marked(getattr(place, last), phase))


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in PHASES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Marking(spec.loader)
        return spec


if "SDFT_MARKS" in os.environ:
    sys.meta_path.insert(0, _Finder())
