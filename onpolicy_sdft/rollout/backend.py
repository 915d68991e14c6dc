"""What every rollout backend offers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from onpolicy_sdft.types import RecordOptions, RolloutProgress

if TYPE_CHECKING:
    from onpolicy_sdft.types import Rollout, RolloutRequest, SamplingParams

#: Record nothing but the tokens and how likely they were.
NO_RECORD = RecordOptions()

#: Told how far a call has come.
OnProgress = Callable[[RolloutProgress], None]


def ignore_progress(advance: RolloutProgress) -> None:
    """Take no notice."""


class Listener(Protocol):
    """Hears of completions while others are still written, and may ask for more; called in the thread that writes."""

    def ended(self, index: int, rollout: Rollout) -> None:
        """Hear that a request has its completion, once each.

        Args:
            index: Of the request; those asked for by :meth:`more` are counted on from the call's own.
            rollout: Its completion.
        """
        ...

    def more(self, num_ended: int) -> Sequence[RolloutRequest]:
        """Return what to write in the same call as well.

        It may depend on the first ``num_ended`` completions that ended and on nothing else, so that a run can be
        repeated: never on what a clock or another thread decides.
        """
        ...


class _Silent:
    """Hears nothing and asks for nothing."""

    def ended(self, index: int, rollout: Rollout) -> None:
        """Take no notice."""

    def more(self, num_ended: int) -> Sequence[RolloutRequest]:
        """Ask for nothing."""
        return ()


#: For calls that nobody listens to.
NO_LISTENER: Listener = _Silent()


@dataclass
class RolloutStats:
    """What one call of a backend did, or several; a count or a time is 0 where the backend does not know it."""

    num_tokens: int = 0  # kept, over all completions
    num_prompt_tokens: int = 0  # of all prompts
    num_shared_tokens: int = 0  # of those, copied from another slot instead of computed
    num_prefill_forwards: int = 0
    num_decode_forwards: int = 0
    num_decode_rows: int = 0  # completions advanced, summed over decode forwards
    num_decode_slots: int = 0  # slots there were for them, likewise
    num_forward_tokens: int = 0  # run through the layers by ragged forwards, padding not counted
    num_padding_tokens: int = 0  # beside them, so that forwards are of few shapes
    num_blended_tokens: int = 0  # of blended texts
    blend_sum: float = 0.0  # of the b that they were drawn with
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_rescored_tokens: int = 0  # written by another program, and looked at by the model itself
    mismatch_sum: float = 0.0  # of the distances between their log-probabilities, nats
    mismatch_max: float = 0.0
    num_slots: int = 0  # of several calls the most
    num_out_of_memory: int = 0  # times the slots, or the batch, were halved for running out of it
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0  # model, attention and sampling of decode forwards
    attention_seconds: float = 0.0  # part of both
    sampling_seconds: float = 0.0  # head and draw, part of both
    draft_seconds: float = 0.0  # look-up and choice of drafts
    weights_seconds: float = 0.0  # making the decode copy
    total_seconds: float = 0.0

    @property
    def accept_rate(self) -> float | None:
        """Share of drafted tokens that were kept; None when none was drafted."""
        return self.num_accepted_tokens / self.num_drafted_tokens if self.num_drafted_tokens else None

    @property
    def mean_blend(self) -> float | None:
        """Mean b that tokens of blended texts were drawn with; None when none was."""
        return self.blend_sum / self.num_blended_tokens if self.num_blended_tokens else None

    @property
    def mean_mismatch(self) -> float | None:
        """Mean distance of another program's log-probabilities from the model's own; None where all are its own."""
        return self.mismatch_sum / self.num_rescored_tokens if self.num_rescored_tokens else None

    def add_mismatch(self, differences: Sequence[float]) -> None:
        """Count a text's log-probabilities of another program less the model's, a token each in nats."""
        distances = [math.inf if math.isnan(each) else abs(each) for each in differences]
        self.num_rescored_tokens += len(distances)
        self.mismatch_sum += sum(distances)
        self.mismatch_max = max(self.mismatch_max, *distances)

    def add(self, other: RolloutStats) -> None:
        """Count another call as well."""
        for name in (each.name for each in fields(self)):
            pair = getattr(self, name), getattr(other, name)
            setattr(self, name, max(pair) if name in ("num_slots", "mismatch_max") else sum(pair))

    def figures(self) -> dict[str, float]:
        """Return the figures of a training step's log."""
        if not self.num_tokens:
            return {}
        found = {"rollout/num_tokens": self.num_tokens, "time/sampling_seconds": self.total_seconds}
        if self.mean_blend is not None:
            found["rollout/blend"] = self.mean_blend
        if self.mean_mismatch is not None:
            found |= {"rollout/mismatch": self.mean_mismatch, "rollout/mismatch_max": self.mismatch_max}
        if not self.num_slots:
            return found
        forwards = max(1, self.num_decode_forwards)
        return found | {
            "rollout/num_slots": self.num_slots,
            "rollout/slot_occupancy": self.num_decode_rows / max(1, self.num_decode_slots),
            "rollout/tokens_per_forward": self.num_tokens / forwards,
            **({} if self.accept_rate is None else {"rollout/accept_rate": self.accept_rate}),
            "rollout/drafted_rate": self.num_drafted_tokens / max(1, self.num_tokens),
            "rollout/padding_rate": self.num_padding_tokens / max(1, self.num_forward_tokens + self.num_padding_tokens),
            "rollout/num_out_of_memory": self.num_out_of_memory,
            "time/rollout_prefill_seconds": self.prefill_seconds,
            "time/rollout_decode_seconds": self.decode_seconds,
        }


class RolloutBackend(Protocol):
    """Writes completions with the current weights."""

    stats: RolloutStats  # of the last call

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_progress: OnProgress = ignore_progress,
        record: RecordOptions = NO_RECORD,
        listener: Listener = NO_LISTENER,
    ) -> list[Rollout]:
        """Write one completion per request, in the order of the requests; those the listener asks for come behind.

        Args:
            requests: What to write.
            params: The sampling parameters of requests that have none of their own.
            on_progress: Told how far the call has come.
            record: What to keep of the distribution at each token.
            listener: Told of each completion as soon as it is there. A backend that cannot take in more while it
                writes never asks it for any.
        """
        ...

    def release(self) -> bool:
        """Give memory back that is kept for the next call; whether there was any."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to choose the same shapes again; empty when there is nothing."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""
        ...
