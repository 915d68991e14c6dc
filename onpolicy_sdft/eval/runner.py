"""Score a model on sets of questions: one record per answer, an interval per set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.eval.answers import AnswerRecord, Asking, Kept, digest, write_in_chunks
from onpolicy_sdft.eval.intervals import mean_interval, wilson_interval
from onpolicy_sdft.tasks.protocol import Checker, has_check
from onpolicy_sdft.types import ONE_RANK, Demonstration, Ranks, Rollout

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import EvalConfig
    from onpolicy_sdft.data.renderer import Renderer
    from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend
    from onpolicy_sdft.tasks.protocol import Task


_CHECKS_AT_ONCE = 2  # a code check waits for its subprocess


@dataclass(frozen=True, slots=True)
class SetScore:
    """The score of one set."""

    label: str
    retention: bool
    score: float | None  # share of right answers; of several samples the mean over questions; None: no check
    low: float | None  # 95 % interval
    high: float | None
    n: int  # questions that the score is of; without one, all of them
    pass_at_k: float | None  # with several samples: share of questions with at least one right answer (unbiased)
    pass_at: Mapping[int, float]  # the same by number of samples: 1, 2, 4, ... and all of them
    mean_length: float  # tokens an answer
    truncated_rate: float
    tokens_per_second: float
    note: str  # what its task wants said beside the score; mostly empty
    records: tuple[AnswerRecord, ...]  # one per answer


def score_set(
    questions: EvalSet,
    backend: RolloutBackend,
    renderer: Renderer,
    config: EvalConfig,
    on_progress: OnProgress,
    ranks: Ranks = ONE_RANK,
    kept: Kept | None = None,
) -> SetScore:
    """Answer every question from its bare prompt and check the answers.

    Greedy at ``eval.temperature`` 0, else sampled ``eval.num_samples`` times with noise keyed by the question. Ranks
    share the questions and all get the score. With ``kept``, what was answered outlives an interruption.
    """
    asking = Asking(questions.max_new_tokens, config.temperature, config.seed)
    requests = [
        asking.request(renderer.student_ids(question.turns), question.example_id, sample)
        for question in questions.demonstrations
        for sample in range(config.num_samples)
    ]
    asked = [question for question in questions.demonstrations for _ in range(config.num_samples)]

    def write(indices: Sequence[int]) -> tuple[list[AnswerRecord], float]:
        started = time.perf_counter()
        written = backend.generate([requests[index] for index in indices], asking.params, on_progress)
        seconds = time.perf_counter() - started
        return check_answers([asked[index] for index in indices], written, questions.task, renderer.decode), seconds

    what = digest(requests, asking.params, questions.identity)
    records, seconds = write_in_chunks(requests, write, what, on_progress, ranks, kept)
    return summarise(questions, records, config.num_samples, seconds)


def check_answers(
    asked: Sequence[Demonstration],
    rollouts: Sequence[Rollout],
    task: Task,
    decode: Callable[[Sequence[int]], str],
) -> list[AnswerRecord]:
    """Check each answer and return one record each."""
    texts = [decode(rollout.token_ids) for rollout in rollouts]
    results = Checker(task).all(texts, asked, _CHECKS_AT_ONCE)
    return [
        {
            "example_id": question.example_id,
            "sample": rollout.key.sample_index,
            "correct": result.correct,
            "reason": result.reason,
            "answer": result.answer,
            "prompt": question.prompt,
            "reference": question.response,
            "completion": text,
            "num_tokens": len(rollout.token_ids),
            "finish_reason": rollout.finish_reason,
        }
        for question, rollout, text, result in zip(asked, rollouts, texts, results, strict=True)
    ]


def summarise(questions: EvalSet, records: Sequence[AnswerRecord], num_samples: int, seconds: float) -> SetScore:
    """Turn records into a score with its interval; several records of one question follow each other.

    Questions whose task accepts any text say nothing of a model: they are left out of the score.
    """
    answers = [records[i : i + num_samples] for i in range(0, len(records), num_samples)]
    asked = zip(questions.demonstrations, answers, strict=True)
    right = [sum(r["correct"] for r in each) for row, each in asked if has_check(questions.task, row)]
    num_unchecked, is_checked = len(answers) - len(right), bool(right)
    score = sum(right) / (num_samples * len(right)) if is_checked else None
    low: float | None = None
    high: float | None = None
    if is_checked and num_samples == 1:
        low, high = wilson_interval(sum(right), len(right))
    elif is_checked:
        low, high = mean_interval([count / num_samples for count in right])
    num_tokens = sum(record["num_tokens"] for record in records)
    return SetScore(
        label=questions.label,
        retention=questions.retention,
        score=score,
        low=low,
        high=high,
        n=len(right) or len(answers),
        pass_at_k=pass_at_k(right, num_samples, num_samples) if num_samples > 1 and is_checked else None,
        pass_at={k: pass_at_k(right, num_samples, k) for k in _sample_counts(num_samples)} if is_checked else {},
        mean_length=num_tokens / len(records),
        truncated_rate=sum(record["finish_reason"] == "length" for record in records) / len(records),
        tokens_per_second=num_tokens / seconds if seconds > 0 else 0.0,
        note="; ".join(filter(None, [_note_of_task(questions.task, len(answers), num_unchecked), questions.note])),
        records=tuple(records),
    )


def _note_of_task(task: Task, num_questions: int, num_unchecked: int) -> str:
    """Return what a task wants said beside a score, and how many questions it is not of."""
    if num_unchecked == num_questions:
        return f"not checked: {task.name} has no check"
    unchecked = f"{num_unchecked} of {num_questions} questions have no check" if num_unchecked else ""
    return "; ".join(filter(None, [getattr(task, "note", ""), unchecked]))


def _sample_counts(num_samples: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of samples itself."""
    return sorted({num_samples, *(2**power for power in range(num_samples.bit_length()))})


def pass_at_k(num_right: Sequence[int], num_samples: int, k: int) -> float:
    """Return the unbiased estimate of pass@k, averaged over questions.

    Source: Chen et al. (2021), arXiv:2107.03374, equation 1.
    """
    missed = [math.comb(num_samples - right, k) / math.comb(num_samples, k) for right in num_right]
    return float(1.0 - sum(missed) / len(missed))
