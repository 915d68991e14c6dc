"""The one place where the check makes engines.

Options that this build's engine does not have are left out and named, so that the check runs before and after they
come. Once all of :data:`WANTED` are there, :func:`make_engine` is a plain call and :func:`missing` can go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.weights import LocalWeights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Options the check sets beyond those of the engine's first version.
WANTED = ("graphs", "sync_steps", "grid", "attention", "fuse")


def missing(options: dict[str, Any]) -> list[str]:
    """Return which options this build's engine does not have."""
    return sorted(set(options) - {each.name for each in fields(EngineOptions)})


def make_engine(
    model: PreTrainedModel | PeftModel, num_slots: int | None, terminators: Sequence[int] = (), **options: Any
) -> RolloutEngine:
    """Return an engine whose shapes follow from its options; a fixed-shape step on a CPU too, as on a GPU."""
    wanted = {"max_draft_tokens": 0, "deterministic": True, "grid": True, **options}
    known = {name: value for name, value in wanted.items() if name not in missing(wanted)}
    return RolloutEngine(
        model, terminators, LocalWeights(model), EngineOptions(num_slots=num_slots, **known), lambda text: print(text)
    )
