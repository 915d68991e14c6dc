"""The one place where the check makes engines: as a run makes them, with the ways of working that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.weights import LocalWeights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def make_engine(
    model: PreTrainedModel | PeftModel,
    num_slots: int | None,
    stop_token_ids: Sequence[int] = (),
    fuse: bool = True,
    **options: Any,
) -> RolloutEngine:
    """Return an engine whose shapes follow from its options.

    Args:
        model: With or without adapters.
        num_slots: Completions at once; None: as the engine chooses.
        stop_token_ids: Token ids that end a completion.
        fuse: False: every operation is the model's own, and adapters are all that is copied.
        options: Of the engine; on a CPU, too, steps have a fixed shape unless it is told otherwise.
    """
    wanted = {"max_draft_tokens": 0, "deterministic": True, "grid": True, **options}
    weights = LocalWeights.on_device(model, decode_copy="auto" if fuse else "none", attention=wanted.get("attention"))
    weights.triton = weights.triton and fuse
    return RolloutEngine(model, stop_token_ids, weights, EngineOptions(num_slots=num_slots, **wanted))
