"""Rewrite a data set once: rollouts of the base model under the teacher's prompt, judged, and written row by row.

Rows are written in batches, each in one append, so a kill loses at most the batch at work; the file says which rows
are there, and a noise key belongs to its example, so a resumed run writes the same rows an undisturbed one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.offline.file import DistilledRow, read_rows
from onpolicy_sdft.offline.legacy import legacy_reason
from onpolicy_sdft.runs.files import append_jsonl
from onpolicy_sdft.screening.reasons import is_verbatim
from onpolicy_sdft.screening.review import BarePromptReview
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.types import PromptPair, Rollout, Target

#: Writes one completion per example: ``write(pairs, attempt)``.
Write = Callable[[Sequence[PromptPair], int], Sequence[Rollout | None]]


class Judge(Protocol):
    """Decides between the rewritten and the original response."""

    def __call__(
        self, pairs: Sequence[PromptPair], rollouts: Sequence[Rollout | None], write: Write
    ) -> list[DistilledRow]:
        """Return one row per example, in order."""
        ...


@dataclass(frozen=True, slots=True)
class ScreenJudge:
    """The verdicts of online training."""

    screen: Screen
    reviewer: BarePromptReview

    def __call__(
        self, pairs: Sequence[PromptPair], rollouts: Sequence[Rollout | None], write: Write
    ) -> list[DistilledRow]:
        """Return one row per example, in order."""
        return [self._row(target) for target in self.reviewer(self.screen(pairs, rollouts, write), step=0)]

    def _row(self, target: Target) -> DistilledRow:
        demonstration, rollout = target.pair.demonstration, target.rollout
        dropped = target.verdict == "drop"
        return DistilledRow(
            demonstration.example_id, demonstration.prompt, demonstration.response,
            rewritten=self.screen.decode(rollout.token_ids) if rollout else "",
            response="" if dropped else target.text,
            verdict=target.verdict, reason=target.reason, attempt=target.attempt, token_ids=tuple(target.token_ids),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LegacyJudge:
    """The rules of the ACL 2024 program; text counts, not tokens, and a text that was cut off is learned as whole."""

    task_name: str
    decode: Callable[[Sequence[int]], str]
    response_ids: Callable[[str], tuple[int, ...]]

    def __call__(
        self, pairs: Sequence[PromptPair], rollouts: Sequence[Rollout | None], write: Write
    ) -> list[DistilledRow]:
        """Return one row per example, in order."""
        return [self._row(pair, rollout) for pair, rollout in zip(pairs, rollouts, strict=True)]

    def _row(self, pair: PromptPair, rollout: Rollout | None) -> DistilledRow:
        demonstration = pair.demonstration
        text = self.decode(rollout.token_ids).strip() if rollout else ""
        reason, token_ids = legacy_reason(text, demonstration, self.task_name), pair.response_ids
        if not reason:
            try:
                token_ids = self.response_ids(text)
            except DataError:  # the chat template would write another text, as where the model wrote control tokens
                reason = "not_writable"
        response = demonstration.response if reason else text
        return DistilledRow(
            demonstration.example_id, demonstration.prompt, demonstration.response, text, response,
            verdict="fallback" if reason else "keep", reason=reason, attempt=0,
            token_ids=token_ids,
        )  # fmt: skip


def distill(
    pairs: Sequence[PromptPair], path: Path, write: Write, judge: Judge, batch_size: int, on_rows: Callable[[int], None]
) -> list[DistilledRow]:
    """Write the rows of a data set that are not in the file yet.

    Args:
        pairs: The data set.
        path: The file; it may hold rows already.
        write: Writes completions.
        judge: Decides between the two responses.
        batch_size: Rows of one write.
        on_rows: Told how many more rows are there.

    Returns:
        All rows of the file, in the order of the data set.
    """
    done = {row.example_id: row for row in read_rows(path)} if path.is_file() else {}
    on_rows(len(done))
    left = [pair for pair in pairs if pair.demonstration.example_id not in done]
    for start in range(0, len(left), batch_size):
        batch = left[start : start + batch_size]
        rows = judge(batch, write(batch, 0), write)
        append_jsonl(path, *(row.record() for row in rows))
        done |= {row.example_id: row for row in rows}
        on_rows(len(rows))
    return [done[pair.demonstration.example_id] for pair in pairs]


def count_rows(rows: Sequence[DistilledRow]) -> Mapping[str, Any]:
    """Return how many rows were kept, those copied word for word among them, and why others were not; rates of all."""
    verdicts, reasons = Counter(row.verdict for row in rows), Counter(row.reason for row in rows if row.reason)
    kept = [row for row in rows if row.verdict == "keep"]
    return {
        "num_rows": len(rows),
        "verdicts": dict(verdicts),
        "reasons": dict(reasons),
        "keep_rate": len(kept) / max(1, len(rows)),
        "verbatim_rate": sum(is_verbatim(row.rewritten, row.original) for row in kept) / max(1, len(rows)),
        "mean_characters_original": sum(len(row.original) for row in rows) / max(1, len(rows)),
        "mean_characters_learned": sum(len(row.response) for row in rows) / max(1, len(rows)),
    }
