"""vLLM as a server of its own, on other devices than the trained model: asked over HTTP, weights handed over in files.

The server is started by hand and outlives the run. Before every call the weights are written into a new folder that
both programs see, adapters merged; the server reads them in place of those it has, and the folder goes again.

Each request has a seed, made from its key: what is drawn depends on nothing else but rounding, which depends on the
requests that a server happens to take together.

Lost beside the engine: tokens that are the same to the bit, drafts, blending, requests that join a call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from onpolicy_sdft.errors import ConfigError, ModelError, TrainingError
from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.rollout.backend import OnProgress
from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.rescoring import Written
from onpolicy_sdft.rollout.vllm_base import VLLMBase, config_for_vllm
from onpolicy_sdft.rollout.vllm_client import RefusedError, VLLMClient
from onpolicy_sdft.rollout.weights import whole_weights
from onpolicy_sdft.types import NoiseKey, RolloutProgress, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.sampling import Vocabulary

_SHARD_BYTES = 2**30  # of weights that are copied at a time
_NEVER = -1e4  # added to the logit of an id without a token: exp of it is 0
_INFO_SECONDS = 300.0  # it looks at the machine it runs on first
_RESET_SECONDS = 60.0  # until requests that somebody gave up have ended


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Which server writes, and how it is worked with."""

    url: str
    weights: str | None = None  # folder that both programs see; None: in this machine's memory, or its temporary files
    timeout: float = 1800.0  # longest wait for an answer, seconds
    prefill_tokens: int | None = None  # of one forward of the model at hand; None: what pays on the device
    max_mismatch: float | None = None  # nats a token, see ``rollout.max_mismatch``


def how_to_start(url: str, model: str = "MODEL", dtype: str = "DTYPE") -> str:
    """Return the command that starts a server which a run can use."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {model} --host {host} --port {parts.port or 80} --dtype {dtype} "
        "--logprobs-mode processed_logprobs --enable-scale-out"
    )


def require_server(url: str, model: str) -> None:
    """Refuse to begin where no server answers.

    Raises:
        TrainingError: With the way to start one.
    """
    VLLMClient(url, 30.0, how_to_start(url, model)).look()


class VLLMServerBackend(VLLMBase):
    """Rollouts through a vLLM server, which is looked at at once.

    Args:
        model: The live model, adapters in place; its weights are whole whenever it writes.
        stop_token_ids: Token ids that end a completion.
        options: The server.
        vocabulary: The ids that have a token: no other is drawn. None: all have one.

    Raises:
        ConfigError: If the folder for weights cannot be used.
        ModelError: If the server was started in a way that it cannot be used.
        TrainingError: If it does not answer.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        stop_token_ids: Sequence[int],
        options: ServerOptions,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__(model, stop_token_ids, options.prefill_tokens, options.max_mismatch, vocabulary)
        self.options = options
        inner = inner_model(model)
        held = str(embedding_weight(inner).dtype).removeprefix("torch.")
        name = str(getattr(inner.config, "_name_or_path", "") or "MODEL")
        self.start = how_to_start(options.url, name, held)
        self.client = VLLMClient(options.url, options.timeout, self.start)
        self.folder = _folder_of(options.weights)
        self.client.look()
        self._longest, self.at_once, self.dtype = self._look_at_the_server()

    @property
    def longest(self) -> int:
        """Positions that one text can have."""
        return self._longest

    def _why_longest(self) -> str:
        return (
            f"what the server at {self.options.url} was started with. Fix: a larger --max-model-len of vllm serve, or "
            "lower context.max_teacher_tokens or rollout.max_new_tokens."
        )

    def _mend_mismatch(self) -> str:
        return (
            f"let no other run use the server at {self.options.url}, start it with --dtype float32 or --enforce-eager"
        )

    def _look_at_the_server(self) -> tuple[int, int, str]:
        """Return its longest text, the requests that keep it busy, and its dtype."""
        try:
            found = self.client.get("/server_info?config_format=json", _INFO_SECONDS)["vllm_config"]
        except RefusedError as error:
            if error.status == 404:
                raise self._unfit("it does not take weights: VLLM_SERVER_DEV_MODE=1 was not set") from error
            raise self._unfit(str(error)) from error
        except (KeyError, TypeError) as error:
            raise self._unfit("what it says of itself cannot be read; vLLM 0.32 was tried") from error
        try:
            model, scheduler = found["model_config"], found["scheduler_config"]
            mode, dtype = model["logprobs_mode"], str(model["dtype"]).removeprefix("torch.")
            longest, num_slots = int(model["max_model_len"]), int(scheduler["max_num_seqs"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._unfit(f"what it says of itself lacks {error}; vLLM 0.32 was tried") from error
        if mode != "processed_logprobs":
            raise self._unfit(f"it was started with --logprobs-mode {mode}, which is not what tokens are drawn with")
        return longest, 2 * num_slots, dtype

    def _unfit(self, why: str) -> ModelError:
        return ModelError(
            f"The vLLM server at rollout.server_url={self.options.url} cannot write for this run: {why}. Fix: start it "
            f"with {self.start}, or --rollout.backend engine."
        )

    def _write(
        self, requests: Sequence[RolloutRequest], params: SamplingParams, on_progress: OnProgress
    ) -> list[Written]:
        started = time.perf_counter()
        self._hand_over()
        self.stats.weights_seconds = time.perf_counter() - started
        bodies = [self._body(request, request.params or params) for request in requests]
        found = dict[int, Written]()

        def hear(place: int, answer: Any) -> None:
            request = requests[place]
            found[place] = self._written(request, request.params or params, answer)
            on_progress(RolloutProgress(1, len(found[place].token_ids), len(requests) - len(found)))

        try:
            self.client.post_all("/inference/v1/generate", bodies, self.at_once, hear)
        except RefusedError as error:
            if error.status in (403, 404):
                raise self._unfit(f"it does not take token ids: {error}") from error
            raise self.client.failed(str(error)) from error
        return [found[place] for place in range(len(requests))]

    def _hand_over(self) -> None:
        """Let the server read the weights that the model shows now; keys and values of others are forgotten."""
        try:
            # A new folder each time, private to its user, and gone when the server has read it.
            with tempfile.TemporaryDirectory(prefix="sdft-weights-", dir=self.folder) as folder:
                save_weights(inner_model(self.model), Path(folder))
                self.client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
            self._forget()
        except RefusedError as error:
            if error.status == 404:
                raise self._unfit("it does not take weights: VLLM_SERVER_DEV_MODE=1 was not set") from error
            raise TrainingError(
                f"The vLLM server at rollout.server_url={self.options.url} does not take weights from {self.folder}: "
                f"{error}. Fix: start it again, as what it has read in part is of no use, with the trained model "
                f"({self.start}), as the user of this run; and --rollout.server_weights with a folder that both "
                "programs see under one name."
            ) from error
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"The weights for the vLLM server cannot be written into {self.folder} ({error}). "
                "Fix: --rollout.server_weights with a folder that has room for all weights."
            ) from error

    def _forget(self) -> None:
        """Let the server forget keys and values; it does when no request runs that an earlier call has given up."""
        until = time.monotonic() + min(self.options.timeout, _RESET_SECONDS)
        while not (self.client.post("/reset_prefix_cache", {}) or {}).get("success", False):
            if time.monotonic() > until:
                raise self.client.failed("it still writes for somebody else: keys of other weights cannot be forgotten")
            time.sleep(0.2)

    def _body(self, request: RolloutRequest, params: SamplingParams) -> dict[str, Any]:
        asked = self._asked(request, params)
        asked["seed"] = _seed(request.key)
        if self.never:  # shorter than a list of all that are allowed, which each request would carry
            asked["logit_bias"] = {str(each): _NEVER for each in sorted(self.never)}
        return {"token_ids": list(request.prompt_token_ids), "sampling_params": asked, "stream": False}

    def _written(self, request: RolloutRequest, params: SamplingParams, answer: Any) -> Written:
        try:
            (choice,) = answer["choices"]
            token_ids, ended = tuple(map(int, choice["token_ids"])), choice["finish_reason"]
            steps = choice["logprobs"]["content"]
            logprobs = tuple(float(step["logprob"]) for step in steps)
            fits = tuple(step["token_id"] for step in steps) == token_ids and ended in ("stop", "length")
        except (KeyError, TypeError, ValueError) as error:
            raise self.client.failed(f"an answer cannot be read ({type(error).__name__}: {error})") from error
        if not (fits and 0 < len(token_ids) <= request.max_new_tokens and max(token_ids) < self.size):
            raise self.client.failed(f"an answer of {len(token_ids)} tokens that ended with {ended!r} makes no text")
        return Written(request, params, token_ids, logprobs, stopped=ended == "stop")


def _seed(key: NoiseKey) -> int:
    """Return a number of 63 bits that stands for a draw: vLLM takes no more."""
    low, high = key_words([key])[0].tolist()
    return int(low | high << 32) >> 1


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's weights and config, adapters merged, as vLLM reads them.

    Args:
        model: With or without adapters; its weights are whole.
        folder: An empty one.

    Raises:
        UnsupportedModel: If an adapter cannot be merged.
    """
    config_for_vllm(model).save_pretrained(folder)
    shard: dict[str, torch.Tensor] = {}
    number = 0
    for name, tensor in whole_weights(model):
        # A copy even on a CPU: what is tied or cut from one tensor is not written otherwise.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(each.nbytes for each in shard.values()) >= _SHARD_BYTES:
            save_file(shard, folder / f"model-{number:05}.safetensors", {"format": "pt"})
            shard, number = {}, number + 1
    if shard:
        save_file(shard, folder / f"model-{number:05}.safetensors", {"format": "pt"})


def _folder_of(asked: str | None) -> Path:
    """Return the folder for weights: as asked, made if need be, or one of this machine's."""
    if asked is None:
        memory = Path("/dev/shm")
        return memory if memory.is_dir() else Path(tempfile.gettempdir())
    folder = Path(asked).expanduser().absolute()  # the server may stand in another folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise ConfigError(
            f"rollout.server_weights={asked} cannot be written into ({error}). Fix: a folder that this program can "
            "write and the server's can read, or leave it unset where both are on one machine."
        ) from error
    return folder
