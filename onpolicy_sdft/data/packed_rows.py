"""Rows as a few arrays: quick to send from one process to another, and to keep on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from onpolicy_sdft.data.read_rows import ReadRow
from onpolicy_sdft.data.teacher_prompts import Fitted, LeftOut, Shown

_NONE = Fitted((), 0, 0)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """What was made of rows, or why one is bad."""

    arrays: dict[str, np.ndarray]  # token ids of all rows end to end, and how many each has; N rows
    rare: dict[str, dict[int, Any]]  # what few rows have, by their place

    @property
    def num_rows(self) -> int:
        """How many rows there are, bad ones among them."""
        return len(self.arrays["cut"])


def pack(rows: Sequence[ReadRow | str]) -> PackedRows:
    """Pack rows; the reason stands in the place of a bad one."""
    good = [row if isinstance(row, ReadRow) else ReadRow((), (), None, shown=Shown(_NONE, None)) for row in rows]
    fitted = [row.shown.fitted or _NONE for row in good]
    ids = {
        "student": [row.student_ids for row in good],
        "response": [row.response_ids for row in good],
        "teacher": [each.token_ids for each in fitted],
    }
    arrays = {name: np.fromiter(chain.from_iterable(texts), np.int32) for name, texts in ids.items()}
    arrays |= {f"{name} lengths": np.fromiter(map(len, texts), np.int32, len(texts)) for name, texts in ids.items()}
    cut = [(each.num_trimmed_tokens, each.num_dropped_examples) for each in fitted]
    arrays["cut"] = np.array(cut, np.int32).reshape(-1, 2)  # [N, 2]
    rare: dict[str, dict[int, Any]] = {
        "bad": {place: row for place, row in enumerate(rows) if isinstance(row, str)},
        "written": {place: row.written for place, row in enumerate(good) if row.written},
        "left out": {place: astuple(row.left_out) for place, row in enumerate(good) if row.left_out},
        "left out for the teacher": {
            place: astuple(row.shown.left_out) for place, row in enumerate(good) if row.shown.left_out
        },
        "too long": {place: row.shown.num_tokens for place, row in enumerate(good) if row.shown.fitted is None},
    }
    return PackedRows(arrays, rare)


def join(parts: Sequence[PackedRows]) -> PackedRows:
    """Return packed rows as one; there must be some."""
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    rare: dict[str, dict[int, Any]] = {name: {} for name in parts[0].rare}
    first = 0
    for part in parts:
        for name, found in part.rare.items():
            rare[name] |= {first + place: value for place, value in found.items()}
        first += part.num_rows
    return PackedRows(arrays, rare)


def unpack(packed: PackedRows, share: Callable[[Sequence[int]], tuple[int, ...]]) -> Iterator[ReadRow | str]:
    """Yield the rows.

    Args:
        packed: See :func:`pack`.
        share: Makes ids that are kept of ids that are read.
    """
    arrays, rare = packed.arrays, packed.rare
    texts = [_texts(arrays[name], arrays[f"{name} lengths"], share) for name in ("student", "response", "teacher")]
    rows = zip(*texts, arrays["cut"].tolist(), strict=True)
    for place, (student_ids, response_ids, teacher_ids, cut) in enumerate(rows):
        if place in rare["bad"]:
            yield rare["bad"][place]
            continue
        left_out, for_teacher = (
            LeftOut(*rare[name][place]) if place in rare[name] else None
            for name in ("left out", "left out for the teacher")
        )
        too_long = rare["too long"].get(place)
        fitted = Fitted(teacher_ids, *cut) if too_long is None else None
        shown = Shown(fitted, for_teacher, too_long or 0)
        yield ReadRow(student_ids, response_ids, left_out, rare["written"].get(place, ""), shown)


def _texts(
    ids: np.ndarray, lengths: np.ndarray, share: Callable[[Sequence[int]], tuple[int, ...]]
) -> Iterator[tuple[int, ...]]:
    ends = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
    return (share(ids[start:end].tolist()) for start, end in pairwise(ends))
