"""One tree of user-facing errors: what was wrong, with which value, and the way out.

Raise one of these for anything a user can mend (an option, a file, a row, a missing extra). Programmer
errors stay ``assert``. Each class also inherits the standard error it replaces, so callers may catch either.
To add a category, subclass :class:`SdftError` and the closest standard error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a hint for a message, a blank before it, where one of the names is at least so much alike (0 to 1)."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


class SdftError(Exception):
    """Base of every error meant for the person who runs the program."""


class ConfigError(SdftError, ValueError):
    """An option has a bad value, or two options do not go together."""


class DataError(SdftError, ValueError):
    """A row, file or data set cannot be used as it is."""


class ModelError(SdftError, RuntimeError):
    """A model or tokenizer cannot be fetched, loaded or used for this job."""


class TaskError(SdftError, ValueError):
    """A task is unknown, malformed, or its check cannot run."""


class RunDirectoryError(SdftError, RuntimeError):
    """A run directory or checkpoint is missing, foreign or damaged."""


class TrainingError(SdftError, RuntimeError):
    """Training cannot go on: too many bad steps in a row, or a state that would lose work."""


class NoUpdateError(TrainingError):
    """Steps in a row made no update: a result of a run's settings, not an accident."""


class MissingDependencyError(SdftError, ImportError):
    """An optional extra is needed for what was asked."""
