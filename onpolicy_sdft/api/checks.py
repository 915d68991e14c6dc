"""A function or an object -> the task of a run, under a name that tells it from others; and a check of callbacks."""

from __future__ import annotations

import hashlib
import inspect
import re
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from onpolicy_sdft.config.schema import IN_MEMORY
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.tasks.function import CheckFunction, FunctionTask
from onpolicy_sdft.tasks.loading import require_protocol
from onpolicy_sdft.tasks.protocol import Task

if TYPE_CHECKING:
    from onpolicy_sdft.train.callbacks import Callback

_CALLBACK = ("on_rollouts", "on_step_end", "on_evaluate", "on_save")


def given_task(task: Task | CheckFunction) -> tuple[str, Task]:
    """Return a task object, or a function that checks, under the name that the run keeps it by.

    The name holds a digest of the source, so that a run is not resumed with another check.
    """
    if isinstance(task, type):
        raise ConfigError(f"task={task.__name__} is a class. Fix: an object of it, {task.__name__}(...).")
    made = cast("Task", task) if hasattr(task, "check") else FunctionTask(cast("Any", task))
    require_protocol(made, type(made).__name__)
    said = f"{_said(made.function)} {made.threshold}" if isinstance(made, FunctionTask) else _said(made)
    return f"{IN_MEMORY}{made.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}", made


def _said(found: Any) -> str:
    """Return what an object says of itself, by its source and what it holds; the same in every process."""
    if isinstance(found, partial):
        return f"{_said(found.func)} {_held([found.args, sorted(found.keywords.items())])}"
    if inspect.isfunction(found):
        cells = [each.cell_contents for each in found.__closure__ or ()]
        return f"{_source(found)} {_held([found.__defaults__, found.__kwdefaults__, *cells])}"
    if inspect.ismethod(found):
        return f"{_source(found)} {_said(found.__self__)}"
    return f"{_source(type(found))} {_held(sorted(getattr(found, '__dict__', {}).items()))}"


def _held(values: Any) -> str:
    """Return values as text without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(values))


def _source(found: Any) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):  # typed at a prompt
        code = getattr(found, "__code__", None)
        return repr((code.co_code, code.co_names)) if code else str(getattr(found, "__qualname__", found))


def require_callback(callback: Callback) -> Callback:
    """Check that an object is a callback before training starts, not after the first step.

    Raises:
        ConfigError: Naming it.
    """
    if isinstance(callback, type) or not all(hasattr(callback, name) for name in _CALLBACK):
        raise ConfigError(
            f"callbacks: {callback!r:.80} is no callback of this package. Fix: an object of a class that is "
            "derived from onpolicy_sdft.Callback."
        )
    return callback
