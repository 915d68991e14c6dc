"""A model with its tokenizer, prompts and rollout backend."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel

from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.models.generation import settle_generation
from onpolicy_sdft.models.load import LoadedModel, is_slow_in_bfloat16, load, load_tokenizer, terminator_ids
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.hf import CollectiveDecoding
from onpolicy_sdft.rollout.hf_trial import hf_backend
from onpolicy_sdft.rollout.memory import kv_budget
from onpolicy_sdft.rollout.sampling import Vocabulary
from onpolicy_sdft.rollout.vllm import VLLMOptions, require_vllm
from onpolicy_sdft.rollout.vllm_server import ServerOptions, require_server
from onpolicy_sdft.rollout.vllm_trial import server_backend, vllm_backend
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import ONE_RANK, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import RolloutConfig, RunConfig
    from onpolicy_sdft.rollout.backend import RolloutBackend

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A model that can be asked: weights, prompts, stop tokens."""

    loaded: LoadedModel
    renderer: Renderer
    stop_token_ids: tuple[int, ...]
    ranks: Ranks = ONE_RANK
    together: CollectiveDecoding | None = None  # how ranks write with weights that are divided
    backends: dict[tuple[int, int], RolloutBackend] = field(default_factory=dict, repr=False)

    @property
    def pad_token_id(self) -> int:
        """Any valid id for padding; masks tell it from text."""
        tokenizer = self.loaded.tokenizer  # not given one here: it is exported as it came
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids that may be drawn."""
        return Vocabulary.of(self.loaded.tokenizer, self.stop_token_ids)

    def backend(
        self,
        model: PreTrainedModel | PeftModel,
        config: RolloutConfig,
        batch_size: int,
        learning_bytes: int = 0,
    ) -> RolloutBackend:
        """Return the rollout backend over a model that lives as long as this, the same one at every call."""
        key = (id(inner_model(model)), batch_size if config.backend == "hf" else 0)
        if key not in self.backends:
            self.backends[key] = self.new_backend(model, config, batch_size, learning_bytes)
        return self.backends[key]

    def _kv_fraction(self, config: RolloutConfig) -> float:
        # Ranks on the CPUs of a machine see the same free memory; those on GPUs have each their own.
        on_cpu = self.loaded.model.device.type == "cpu"
        return config.kv_fraction / (self.ranks.num_local_ranks if on_cpu else 1)

    def new_backend(
        self,
        model: PreTrainedModel | PeftModel,
        config: RolloutConfig,
        batch_size: int,
        learning_bytes: int = 0,
    ) -> RolloutBackend:
        """Return a rollout backend of its own over a model: as asked, or transformers' generate where it must be.

        Args:
            model: With or without adapters.
            config: ``rollout`` of the run.
            batch_size: Completions at once, of ``hf``.
            learning_bytes: What learning will take on a GPU and has not taken yet.
        """
        if self.together is not None:
            return self._hf_backend(model, batch_size, False)
        if config.backend == "vllm":
            return self._vllm_backend(model, config, learning_bytes)
        if config.backend == "vllm_server":
            asked = ServerOptions(
                config.server_url, config.server_weights, config.server_timeout, config.prefill_tokens,
                config.max_mismatch,
            )  # fmt: skip
            return server_backend(model, self.stop_token_ids, asked, self.vocabulary)
        if config.backend == "engine":
            attention = None if config.attention == "auto" else config.attention
            options = EngineOptions(
                num_slots=config.num_slots, kv_gib=config.kv_gib, kv_fraction=self._kv_fraction(config),
                learning_bytes=learning_bytes, prefill_tokens=config.prefill_tokens,
                max_draft_tokens=config.max_draft_tokens, deterministic=config.deterministic,
                attention=attention, graphs=config.graphs, sync_steps=config.sync_steps,
            )  # fmt: skip
            weights = LocalWeights.on_device(model, config.merge_adapter, config.decode_copy, attention)
            try:
                return RolloutEngine(model, self.stop_token_ids, weights, options, self.vocabulary)
            except UnsupportedModel as error:
                logger.info(f"rollouts go through transformers' generate: {type(inner_model(model)).__name__}: {error}")
        return self._hf_backend(model, batch_size, config.merge_adapter)

    def _vllm_backend(
        self, model: PreTrainedModel | PeftModel, config: RolloutConfig, learning_bytes: int
    ) -> RolloutBackend:
        budget = kv_budget(config.kv_gib, self._kv_fraction(config), model.device, learning_bytes)
        options = VLLMOptions(
            budget, config.num_slots, config.prefill_tokens, config.decode_copy == "bfloat16", config.graphs,
            config.max_mismatch, self.ranks.num_ranks,
        )  # fmt: skip
        return vllm_backend(model, self.stop_token_ids, options, self.vocabulary)

    def _hf_backend(self, model: PreTrainedModel | PeftModel, batch_size: int, merge_adapter: bool) -> RolloutBackend:
        return hf_backend(
            model,
            self.stop_token_ids,
            self.pad_token_id,
            batch_size,
            merge_adapter,
            self.together,
            self.vocabulary,
        )


def load_bundle(
    config: RunConfig,
    ranks: Ranks = ONE_RANK,
    device: torch.device | None = None,
    together: CollectiveDecoding | None = None,
    tokenizer_from: Path | None = None,
    given: LoadedModel | None = None,
) -> ModelBundle:
    """Load the model of a config and what is needed to talk to it.

    Args:
        config: Names the model.
        ranks: The processes that each load it.
        device: Where to; None: the GPU, if there is one.
        together: How ranks write with weights that are divided among them.
        tokenizer_from: Folder of the tokenizer and chat template that an adapter was trained with; None: the model's.
        given: The model, where it is there already.
    """
    if given is None:
        logger.info(f"loading {config.model.name}")
    loaded = load(config.model) if given is None else given
    if tokenizer_from is not None:
        loaded = replace(loaded, tokenizer=load_tokenizer(str(tokenizer_from), config.model))
    if not config.model.load_in_4bit:
        loaded.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # transformers wraps .to in a way mypy misreads
    if loaded.model.dtype == torch.bfloat16 and is_slow_in_bfloat16(loaded.model.device.type):
        logger.warning(
            "this CPU has no instructions for bfloat16: model.dtype=bfloat16 saves memory, but float32 is several "
            "times faster. Fix: --model.dtype float32 --train.precision fp32, if memory allows"
        )
    renderer = Renderer(loaded.tokenizer, config.context)
    stop_token_ids = tuple(sorted({*terminator_ids(loaded.model, loaded.tokenizer), renderer.terminator_id}))
    settle_generation(loaded.model, stop_token_ids)
    return ModelBundle(loaded, renderer, stop_token_ids, ranks, together)


def require_writer(config: RunConfig, ranks: Ranks = ONE_RANK) -> None:
    """Refuse to load a model that is to write where the program it writes through is not there.

    Raises:
        ConfigError: If more ranks than one ask for one vLLM server.
        MissingDependencyError: If vLLM is asked for and not installed.
        TrainingError: If a vLLM server is asked for and does not answer.
    """
    if config.rollout.backend == "vllm":
        require_vllm()
    if config.rollout.backend == "vllm_server":
        if ranks.num_ranks > 1:
            raise ConfigError(
                f"rollout.backend=vllm_server serves one process, and this run has {ranks.num_ranks} ranks. Fix: "
                "--rollout.backend vllm (each rank has a vLLM of its own) or engine, or start the run with one rank."
            )
        require_server(config.rollout.server_url, config.model.name)


def context_window(bundle: ModelBundle) -> int | None:
    """Positions the model has; None when its config does not say."""
    window = getattr(bundle.loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return None if window is None or window < 1 else int(window)


def room_to_answer(window: int | None, num_tokens: int, max_new_tokens: int, prompt: str, fix: str) -> int:
    """Return how long an answer may be so that prompt and answer fit into the model's context window.

    Args:
        window: Positions the model has; None when it does not say.
        num_tokens: Of the prompt.
        max_new_tokens: Longest answer that was asked for.
        prompt: What the prompt is, for the message.
        fix: The way out, where it leaves no room.

    Raises:
        DataError: If the prompt leaves no room at all.
    """
    if window is None:
        return max_new_tokens
    if num_tokens >= window:
        raise DataError(
            f"{prompt} takes {num_tokens} tokens and leaves no room for an answer in the model's context window of "
            f"{window} positions (max_position_embeddings). Fix: {fix}."
        )
    return min(max_new_tokens, window - num_tokens)
