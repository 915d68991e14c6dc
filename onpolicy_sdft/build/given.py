"""Objects that a program hands over in the place of what a config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onpolicy_sdft.models.load import LoadedModel
    from onpolicy_sdft.tasks.protocol import Task
    from onpolicy_sdft.train.callbacks import Callback


@dataclass(frozen=True, slots=True)
class Given:
    """What is there already and is not loaded."""

    model: LoadedModel | None = None  # for ``model.name``
    tasks: Mapping[str, Task] = field(default_factory=dict)  # by ``task.name``
    callbacks: Sequence[Callback] = ()


NOTHING = Given()
