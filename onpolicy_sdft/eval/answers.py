"""Answers to many prompts, written in chunks that outlive an interruption.

Noise is keyed by question and sample, so an answer does not depend on the call that writes it: chunks an interrupted
evaluation had finished are read back, and the others come out as they would have.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.sharing import shard_by_length, unshard
from onpolicy_sdft.rollout.backend import ignore_progress
from onpolicy_sdft.runs.files import append_jsonl, read_jsonl
from onpolicy_sdft.types import (
    ONE_RANK,
    Demonstration,
    NoiseKey,
    Ranks,
    RolloutProgress,
    RolloutRequest,
    SamplingParams,
)

if TYPE_CHECKING:
    from onpolicy_sdft.data.renderer import Renderer
    from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend

logger = logging.getLogger(__name__)

#: Step of the noise keys of evaluation: no optimizer step has it.
EVAL_STEP = -1

#: What is kept of one answer.
AnswerRecord = dict[str, Any]

#: Writes the answers to some of the requests, given by index; returns their records and the seconds of writing alone.
Write = Callable[[Sequence[int]], tuple[list[AnswerRecord], float]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How bare prompts are answered outside of steps."""

    max_new_tokens: int
    temperature: float  # 0: greedy
    seed: int  # of samples

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams(temperature=self.temperature)

    def request(self, prompt_token_ids: tuple[int, ...], name: str, sample: int = 0) -> RolloutRequest:
        """Return the request of an answer, whose noise follows from the name of the prompt."""
        return RolloutRequest(prompt_token_ids, NoiseKey(self.seed, EVAL_STEP, name, sample), self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Kept:
    """Answers on disk that do not make a whole set yet: whose they are, then one line a chunk."""

    path: Path
    weights: str  # identifies what answers; records of other weights are never taken for these
    chunk_size: int  # answers of a chunk, on each rank

    def read(self, asked: str) -> tuple[list[AnswerRecord], float]:
        """Return the records that are there, and the seconds they took; what belongs to something else is removed.

        Args:
            asked: Digest of the requests, see :func:`digest`.
        """
        if not self.path.is_file():
            return [], 0.0
        lines = read_jsonl(self.path)
        if not lines or lines[0] != self._owner(asked):
            if lines:
                logger.info(f"{self.path} holds answers of other weights or to other questions: they are written anew")
            self.path.unlink()
            return [], 0.0
        records = [record for line in lines[1:] for record in line["records"]]
        if records:
            logger.info(f"{len(records)} answers are there already ({self.path})")
        return records, sum(line["seconds"] for line in lines[1:])

    def append(self, asked: str, records: Sequence[AnswerRecord], seconds: float) -> None:
        """Add a chunk that is whole."""
        chunk = {"seconds": seconds, "records": list(records)}
        append_jsonl(self.path, *([] if self.path.is_file() else [self._owner(asked)]), chunk)

    def _owner(self, asked: str) -> dict[str, str]:
        return {"weights": self.weights, "asked": asked}


def remove_kept(path: Path) -> None:
    """Remove a file of chunks, once its records stand elsewhere, and its directory when that is empty then."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def digest(requests: Sequence[RolloutRequest], params: SamplingParams, *more: object) -> str:
    """Digest what decides answers besides the weights: prompts, noise keys, lengths, sampling parameters and more."""
    found = hashlib.sha256(repr((params, more)).encode("utf-8", "backslashreplace"))
    for request in requests:
        found.update(repr((request.prompt_token_ids, request.key, request.max_new_tokens)).encode())
    return found.hexdigest()


def write_in_chunks(
    requests: Sequence[RolloutRequest],
    write: Write,
    asked: str,
    on_progress: OnProgress = ignore_progress,
    ranks: Ranks = ONE_RANK,
    kept: Kept | None = None,
) -> tuple[list[AnswerRecord], float]:
    """Answer every request once, sharing chunks among ranks; all ranks get all records.

    Args:
        requests: What to answer.
        write: Answers some of them.
        asked: Digest of the requests.
        on_progress: Told of answers that were there before.
        ranks: Each makes the same calls.
        kept: Where finished chunks are kept; None answers everything in one chunk and keeps nothing.

    Returns:
        Records in the order of the requests, and the seconds of writing, those of an interrupted call included.
    """
    records, seconds = ranks.on_first(partial(kept.read, asked)) if kept else ([], 0.0)
    if records:
        on_progress(RolloutProgress(math.ceil(len(records) / ranks.num_ranks), 0))
    size = kept.chunk_size * ranks.num_ranks if kept else max(1, len(requests))
    for start in range(len(records), len(requests), size):
        indices = range(start, min(start + size, len(requests)))
        shares = shard_by_length([len(requests[index].prompt_token_ids) for index in indices], ranks.num_ranks)
        found = ranks.gather(write([indices[place] for place in shares[ranks.rank]]))
        chunk, took = unshard(shares, [part for part, _ in found]), max(its for _, its in found)
        if kept:
            ranks.on_first(partial(kept.append, asked, chunk, took))
        records, seconds = [*records, *chunk], seconds + took
    return records, seconds


def answer_prompts(
    prompts: Sequence[Demonstration],
    backend: RolloutBackend,
    renderer: Renderer,
    asking: Asking,
    on_progress: OnProgress,
    kept: Kept | None = None,
) -> list[AnswerRecord]:
    """Answer bare prompts that nobody checks.

    Returns:
        One record a prompt, with the token ids of prompt and answer.
    """
    requests = [asking.request(renderer.student_ids(prompt.turns), prompt.example_id) for prompt in prompts]

    def write(indices: Sequence[int]) -> tuple[list[AnswerRecord], float]:
        started = time.perf_counter()
        rollouts = backend.generate([requests[index] for index in indices], asking.params, on_progress)
        seconds = time.perf_counter() - started
        return [
            {
                "example_id": prompts[index].example_id,
                "prompt": prompts[index].prompt,
                "completion": renderer.decode(rollout.token_ids),
                "finish_reason": rollout.finish_reason,
                "prompt_ids": list(rollout.prompt_token_ids),
                "token_ids": list(rollout.token_ids),
            }
            for index, rollout in zip(indices, rollouts, strict=True)
        ], seconds

    return write_in_chunks(requests, write, digest(requests, asking.params), on_progress, kept=kept)[0]
