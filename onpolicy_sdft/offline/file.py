"""The distilled file: one line a row, with both responses and why the one or the other is learned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.types import PromptPair


@dataclass(frozen=True, slots=True)
class DistilledRow:
    """One demonstration and what became of it."""

    example_id: str
    prompt: str
    original: str  # the demonstration's response
    rewritten: str  # what the base model wrote, shown the demonstration
    response: str  # what is learned: one of the two; empty when dropped
    verdict: str  # keep: rewritten; fallback: original; drop: neither
    reason: str  # why it was not kept
    attempt: int  # draws before this one
    token_ids: tuple[int, ...]  # the response as a target, terminator included where there is one

    def record(self) -> dict[str, Any]:
        """Return the row as a line of the file."""
        return asdict(self)


def read_rows(path: Path) -> list[DistilledRow]:
    """Read a distilled file; a line that is torn at its end is left out.

    Raises:
        DataError: If a line is not a row, or an example stands there twice.
    """
    rows: dict[str, DistilledRow] = {}
    for number, record in enumerate(read_jsonl(path), start=1):
        try:
            row = DistilledRow(**{**record, "token_ids": tuple(record["token_ids"])})
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a row of a distilled file: {error}.") from error
        if row.example_id in rows:
            raise DataError(f"{path}, line {number}: example {row.example_id!r} stands there twice. Take one out.")
        rows[row.example_id] = row
    return list(rows.values())


def apply_distilled(
    pairs: Sequence[PromptPair],
    rows: Sequence[DistilledRow],
    path: Path,
    decode: Callable[[Sequence[int]], str],
    controls: Callable[[PromptPair, Sequence[int]], Collection[str]],
) -> tuple[tuple[PromptPair, ...], int]:
    """Put the distilled responses in the place of the demonstrations'.

    Args:
        pairs: The data set of this run.
        rows: Of the distilled file.
        path: Where they are from, for messages.
        decode: Token ids to text, of the model that is trained.
        controls: Control tokens inside an answer that are not to be learned, by name.

    Returns:
        Views whose demonstration is the distilled response, and how many rows were dropped by the distiller.

    Raises:
        DataError: If a row of the data set is not in the file, has another prompt or response there, was written in
            another tokenizer's ids, or has control tokens inside.
    """
    known = {row.example_id: row for row in rows}
    lines = {row.example_id: line for line, row in enumerate(rows, start=1)}
    missing = [v.demonstration.example_id for v in pairs if v.demonstration.example_id not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(pairs)} rows of the data set are not in {path}, the first is {missing[0]!r}. "
            "Fix: finish it (sdft distill ... --distill.resume auto), or give data.* as it was distilled."
        )
    found = []
    for pair in pairs:
        demonstration = pair.demonstration
        row = known[demonstration.example_id]
        if (row.prompt, row.original) != (demonstration.prompt, demonstration.response):
            raise DataError(
                f"Example {row.example_id!r} has another prompt or response in {path} than in the data set. "
                "Fix: give data.* and task.* as they were distilled, or distil again."
            )
        if row.verdict == "keep":
            if decode(row.token_ids).strip() != row.response.strip():
                raise DataError(
                    f"Example {row.example_id!r}: the token ids in {path} do not spell its response with this model's "
                    "tokenizer. Fix: distil with the model that is trained."
                )
            if inside := sorted(controls(pair, row.token_ids)):
                raise DataError(
                    f"{path}, line {lines[row.example_id]}: the answer of example {row.example_id!r} has the control "
                    f"token {inside[0]!r} inside, which would be learned: {row.response!r:.80}. Fix: take the line out "
                    "and distil it again with --distill.resume auto, or learn such tokens: --screening.control keep."
                )
            taught = replace(demonstration, response=row.response)
            found.append(replace(pair, demonstration=taught, response_ids=row.token_ids))
        elif row.verdict == "fallback":
            found.append(pair)
    if not found:
        raise DataError(f"Every row of the data set was dropped in {path}: there is nothing to learn.")
    return tuple(found), len(pairs) - len(found)
