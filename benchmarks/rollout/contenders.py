"""What is compared: the engine with and without drafts, transformers' two ways to generate, and vLLM in two ways.

Every contender answers the same requests with the same weights; ``run`` returns what one pass took.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.memory import kv_budget
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams

ADAPTERS = Path(__file__).resolve().parents[1] / "adapters"


@dataclass(frozen=True)
class Pass:
    """One pass over all requests."""

    seconds: float
    num_tokens: int  # useful ones: up to and including each text's first terminator
    peak_mib: float  # of the process that generates
    details: dict[str, Any] = field(default_factory=dict)
    texts: list[tuple[int, ...]] = field(default_factory=list)  # of contenders that draw by key


def keyed(requests: Sequence[RolloutRequest], step: int, drafts: Sequence[str]) -> list[RolloutRequest]:
    """The requests of a step, with the drafts that are wanted (a request carries history, then demonstration)."""
    kept = [("history", "demonstration").index(name) for name in drafts]
    return [
        replace(r, key=replace(r.key, step=step), draft_token_ids=tuple(r.draft_token_ids[i] for i in kept))
        for r in requests
    ]


def peak_mib() -> float:
    info = psutil.Process().memory_info()
    return float(info.rss) / 2**20


class Engine:
    """This project's engine."""

    def __init__(self, model: Any, stop_token_ids: Sequence[int], *, drafts: list[str] | None = None, **options: Any):
        self.drafts = drafts or []
        if drafts is None:
            options["max_draft_tokens"] = 0
        view = LocalWeights(model, True, options.pop("decode_copy", "auto"))
        self.engine = RolloutEngine(model, stop_token_ids, view, EngineOptions(**options))

    def run(self, requests: list[RolloutRequest], temperature: float, step: int) -> Pass:
        started = time.perf_counter()
        asked = keyed(requests, step, self.drafts)
        rollouts = self.engine.generate(asked, SamplingParams(temperature))
        seconds = time.perf_counter() - started
        texts = [r.token_ids for r in rollouts]
        return Pass(seconds, sum(map(len, texts)), peak_mib(), asdict(self.engine.stats), texts)

    def prepare(self, requests: list[RolloutRequest], temperature: float) -> None:
        self.run(requests[:4], temperature, 10_000)  # compiles the kernel
        self.run(requests, temperature, 10_000)  # makes the slots that all passes use and measures step times

    def close(self) -> None:
        """Free the slots."""
        self.engine._pool = None


class HFGenerate:
    """``PreTrainedModel.generate`` as a trainer would call it: sampling, left padding, dynamic cache."""

    def __init__(self, model: Any, stop_token_ids: Sequence[int], *, batch_size: int = 32):
        self.model, self.stop_token_ids, self.batch_size = model, list(stop_token_ids), batch_size

    def prepare(self, requests: list[RolloutRequest], temperature: float) -> None:
        self.run(requests[:2], temperature, 0)

    def run(self, requests: list[RolloutRequest], temperature: float, step: int) -> Pass:
        torch.manual_seed(step)
        started, num_tokens = time.perf_counter(), 0
        for first in range(0, len(requests), self.batch_size):
            batch = requests[first : first + self.batch_size]
            longest = max(len(r.prompt_token_ids) for r in batch)
            pad = self.stop_token_ids[0]
            ids = torch.tensor([[pad] * (longest - len(r.prompt_token_ids)) + [*r.prompt_token_ids] for r in batch])
            mask = torch.tensor(
                [[0] * (longest - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids) for r in batch]
            )
            with torch.no_grad():
                out = self.model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=self._config(batch, temperature)
                )
            num_tokens += sum(useful(row[longest:].tolist(), self.stop_token_ids) for row in out)
        return Pass(time.perf_counter() - started, num_tokens, peak_mib())

    def _config(self, batch: Sequence[RolloutRequest], temperature: float) -> GenerationConfig:
        return GenerationConfig(
            do_sample=True, temperature=temperature, top_k=0, top_p=1.0, eos_token_id=self.stop_token_ids,
            pad_token_id=self.stop_token_ids[0], max_new_tokens=max(r.max_new_tokens for r in batch),
        )  # fmt: skip

    def close(self) -> None:
        """Hold nothing."""


class ContinuousBatching(HFGenerate):
    """transformers' continuous batching, prefix sharing off."""

    def prepare(self, requests: list[RolloutRequest], temperature: float) -> None:
        """Nothing is compiled on a CPU."""

    def run(self, requests: list[RolloutRequest], temperature: float, step: int) -> Pass:
        torch.manual_seed(step)
        started = time.perf_counter()
        own = self.model.config._attn_implementation
        try:
            found = self.model.generate_batch(
                inputs=[list(r.prompt_token_ids) for r in requests],
                generation_config=self._config(requests, temperature),
                continuous_batching_config=ContinuousBatchingConfig(
                    num_blocks=192, max_batch_tokens=512, allow_block_sharing=False
                ),
                progress_bar=False,
            )
        finally:
            self.model.set_attn_implementation(own)
        if len(found) != len(requests):
            raise RuntimeError(f"continuous batching answered {len(found)} of {len(requests)} requests")
        num_tokens = sum(useful(list(o.generated_tokens), self.stop_token_ids) for o in found.values())
        return Pass(time.perf_counter() - started, num_tokens, peak_mib())


class VLLM:
    """vLLM in an environment and a process of its own."""

    def __init__(
        self, model: Any, stop_token_ids: Sequence[int], *, python: str, model_path: str, dtype: str, **flags: Any
    ):
        arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command = [
            python, str(ADAPTERS / "vllm_cpu.py"), "--model", model_path, "--dtype", dtype,
            "--threads", str(torch.get_num_threads()), *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.stop_token_ids = list(stop_token_ids)
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("vLLM ended before it answered; run the adapter by hand to see why")
        return dict(json.loads(line))

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def prepare(self, requests: list[RolloutRequest], temperature: float) -> None:
        self.run(requests[:2], temperature, 0)

    def run(self, requests: list[RolloutRequest], temperature: float, step: int) -> Pass:
        asked = [{"prompt_token_ids": r.prompt_token_ids, "max_new_tokens": r.max_new_tokens} for r in requests]
        self._send({"requests": asked, "temperature": temperature, "stop_token_ids": self.stop_token_ids, "seed": step})
        answer = self._read()
        return Pass(answer["seconds"], sum(answer["num_tokens"]), answer.get("max_rss_mib", 0.0))

    def close(self) -> None:
        self._send({"quit": True})
        self.process.wait(30)


class VLLMBackend:
    """``rollout.backend: vllm``, in this process: hand-over of the weights, writing, and the model's own look at it."""

    def __init__(self, model: Any, stop_token_ids: Sequence[int], *, kv_gib: float, num_slots: int, **options: Any):
        from onpolicy_sdft.rollout import vllm

        budget = kv_budget(kv_gib, 1.0, model.device)
        self.backend = vllm.VLLMBackend(model, stop_token_ids, vllm.VLLMOptions(budget, num_slots, **options))

    def prepare(self, requests: list[RolloutRequest], temperature: float) -> None:
        self.run(requests[:2], temperature, 0)

    def run(self, requests: list[RolloutRequest], temperature: float, step: int) -> Pass:
        started = time.perf_counter()
        rollouts = self.backend.generate(keyed(requests, step, []), SamplingParams(temperature))
        seconds, stats = time.perf_counter() - started, self.backend.stats
        print(
            f"of {seconds:.1f} s: hand-over {stats.weights_seconds:.1f}, writing {stats.decode_seconds:.1f}; mismatch "
            f"{stats.mean_mismatch:.1e} nats a token, largest {stats.mismatch_max:.1e}",
            flush=True,
        )
        return Pass(seconds, sum(len(r.token_ids) for r in rollouts), peak_mib())

    def close(self) -> None:
        """Leave it to the end of the process."""


def useful(token_ids: list[int], stop_token_ids: list[int]) -> int:
    """Tokens up to and including the first terminator."""
    return next((i + 1 for i, token in enumerate(token_ids) if token in stop_token_ids), len(token_ids))


def differing(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> float:
    """Return how often a token drawn with the same key from the same text is another one, a token.

    A text is compared up to its first difference: behind it the two are texts of their own.
    """
    compared = changed = 0
    for mine, other in zip(ours, theirs, strict=True):
        place = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        changed += place is not None
        compared += len(mine) if place is None else place + 1
    return changed / max(1, compared)


def with_history(engine: Engine, requests: list[RolloutRequest], temperature: float) -> list[RolloutRequest]:
    """Write every request once, as the last epoch did, and put what was written in front of its drafts."""
    rollouts = engine.engine.generate(keyed(requests, 20_000, []), SamplingParams(temperature))
    return [
        replace(request, draft_token_ids=(rollout.token_ids, request.draft_token_ids[1]))
        for request, rollout in zip(requests, rollouts, strict=True)
    ]


def request_of(prompt: tuple[int, ...], response: tuple[int, ...], example_id: str, limit: int) -> RolloutRequest:
    """A request as training makes it, without a history."""
    return RolloutRequest(prompt, NoiseKey(0, 0, example_id), limit, ((), response), len(response))
