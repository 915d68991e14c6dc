"""What both ways to vLLM share, in this process and as a server: what is asked of it, and what is made of its answers.

vLLM writes tokens and says how likely they were where it drew them; everything else that a rollout records comes from
one forward of the trained model over each text (``rescoring.py``), which also tells how far the two are apart.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.errors import ConfigError, TrainingError
from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.backend import NO_LISTENER, NO_RECORD, Listener, OnProgress, RolloutStats, ignore_progress
from onpolicy_sdft.rollout.memory import choose_prefill_tokens
from onpolicy_sdft.rollout.rescoring import Rescorer, Written
from onpolicy_sdft.types import RecordOptions, Rollout, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

    from onpolicy_sdft.rollout.sampling import Vocabulary


class VLLMBase(ABC):
    """Rollouts that vLLM writes with weights that are handed over before every call.

    Args:
        model: The live model, adapters in place; its weights are whole whenever it writes.
        stop_token_ids: Token ids that end a completion.
        prefill_tokens: Of one forward; None: what pays on the device.
        max_mismatch: See ``rollout.max_mismatch``.
        vocabulary: The ids that have a token: no other is drawn. None: all have one.
    """

    dtype: str  # that vLLM computes in

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        stop_token_ids: Sequence[int],
        prefill_tokens: int | None,
        max_mismatch: float | None,
        vocabulary: Vocabulary | None,
    ) -> None:
        self.model = model
        self.stop_token_ids = tuple(stop_token_ids)
        self.max_mismatch = max_mismatch
        self.vocabulary = vocabulary
        self.stats = RolloutStats()
        self.size = int(inner_model(model).config.get_text_config().vocab_size)
        self.never = frozenset() if vocabulary is None else frozenset(vocabulary.without_token(self.size))
        self.device = embedding_weight(inner_model(model)).device
        self.prefill_tokens = choose_prefill_tokens(prefill_tokens, self.device)

    @property
    @abstractmethod
    def longest(self) -> int:
        """Positions that one text can have."""

    @abstractmethod
    def _why_longest(self) -> str:
        """Say what :attr:`longest` follows from, and the way out."""

    @abstractmethod
    def _mend_mismatch(self) -> str:
        """Say what brings vLLM's numbers nearer to the model's."""

    @abstractmethod
    def _write(
        self, requests: Sequence[RolloutRequest], params: SamplingParams, on_progress: OnProgress
    ) -> list[Written]:
        """Hand the weights over, note the time of that, and return what was written with them."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_progress: OnProgress = ignore_progress,
        record: RecordOptions = NO_RECORD,
        listener: Listener = NO_LISTENER,
    ) -> list[Rollout]:
        """Write one completion per request; see :class:`~onpolicy_sdft.rollout.backend.RolloutBackend`.

        The listener hears of completions when all are there, and is never asked for more.

        Raises:
            ConfigError: If a request is longer than vLLM takes.
            TrainingError: If vLLM's numbers are further off the model's than ``rollout.max_mismatch``.
        """
        self.stats = RolloutStats()
        if not requests:
            return []
        self._refuse_long(requests)
        started = time.perf_counter()
        with no_trace(self.model):
            written = self._write(requests, params, on_progress)
            self.stats.decode_seconds = time.perf_counter() - started - self.stats.weights_seconds
            rollouts = self._rescore(written, record)
        for place, rollout in enumerate(rollouts):
            listener.ended(place, rollout)
        self.stats.num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        self.stats.num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self.stats.total_seconds = time.perf_counter() - started
        self._refuse_mismatch()
        return rollouts

    def release(self) -> bool:
        """Give nothing back: nothing is kept that could be."""
        return False

    def state(self) -> dict[str, Any]:
        """Return nothing: shapes follow from the requests."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027  # there is nothing
        """Restore nothing."""

    def _asked(self, request: RolloutRequest, params: SamplingParams) -> dict[str, Any]:
        """Return vLLM's sampling parameters for a request, by name; all that its own defaults could fill are set."""
        return {
            "temperature": params.temperature,
            "top_k": 0 if params.greedy else params.top_k,
            "top_p": 1.0 if params.greedy else params.top_p,
            "min_p": 0.0 if params.greedy else params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "max_tokens": request.max_new_tokens,
            "stop_token_ids": list(self.stop_token_ids),
            "ignore_eos": True,  # a terminator is one of ours
            "logprobs": 0,  # of the drawn token alone
            "detokenize": False,
        }

    def _refuse_long(self, requests: Sequence[RolloutRequest]) -> None:
        longest = max(len(request.prompt_token_ids) + request.max_new_tokens for request in requests)
        if longest > self.longest:
            raise ConfigError(
                f"A text of {longest} positions (prompt and rollout.max_new_tokens), but vLLM takes {self.longest}: "
                f"{self._why_longest()}"
            )

    def _rescore(self, written: Sequence[Written], record: RecordOptions) -> list[Rollout]:
        rescorer = Rescorer(inner_model(self.model), self.vocabulary, self.prefill_tokens)
        found = dict[int, Rollout]()
        for place, rollout, differences in rescorer(written, record):
            found[place] = rollout
            self.stats.add_mismatch(differences)
        return [found[place] for place in range(len(written))]

    def _refuse_mismatch(self) -> None:
        bound, mean = self.max_mismatch, self.stats.mean_mismatch
        if bound is not None and mean is not None and not mean <= bound:
            raise TrainingError(
                f"vLLM's log-probabilities are {mean:.4f} nats a token off the trained model's (largest "
                f"{self.stats.mismatch_max:.3f}), and rollout.max_mismatch={bound:g}. Fix: {self._mend_mismatch()}, "
                "--rollout.backend engine, or a larger bound."
            )


def config_for_vllm(model: PreTrainedModel) -> PretrainedConfig:
    """Return a model's config as vLLM reads it: the class at hand, whatever the checkpoint's was."""
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return config
