"""One data set out of several: demonstrations of other tasks learned along."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np

from onpolicy_sdft.data.sources import DemonstrationSet, fingerprint
from onpolicy_sdft.errors import DataError


def mix(
    own: DemonstrationSet, others: Mapping[str, DemonstrationSet], rate: float | None, seed: int
) -> DemonstrationSet:
    """Put demonstrations of other tasks behind a task's own; the order of training is drawn over all of them.

    Args:
        own: The task's demonstrations.
        others: By label, which becomes the beginning of their ids.
        rate: Share of the others in the result, the same number of each; None: all there are.
        seed: Of the choice.

    Raises:
        DataError: If a source has fewer rows than its share.
    """
    if not others:
        return own
    number = None
    if rate is not None:
        number = max(1, round(rate / (1.0 - rate) * len(own.demonstrations) / len(others)))
    found, parts = list(own.demonstrations), [own.where]
    _refuse_shared_ids(own, others)
    for label, source in others.items():
        rows = source.demonstrations
        if number is not None and number > len(rows):
            raise DataError(
                f"replay.rate={rate} asks for {number} demonstrations of {label!r}, {source.where} has {len(rows)}. "
                "Fix: a lower rate, a higher data.limit of that source, or a lower data.limit of this task."
            )
        order = np.random.default_rng([seed, len(parts)]).permutation(len(rows))[:number]
        found += [
            dataclasses.replace(rows[index], example_id=replayed_id(label, rows[index].example_id)) for index in order
        ]
        parts.append(f"{len(order)} of {source.where}")
    skipped = tuple(line for source in (own, *others.values()) for line in source.skipped)
    unread = sum((Counter(source.unread) for source in (own, *others.values())), Counter[str]())
    return DemonstrationSet(tuple(found), " with ".join(parts), skipped, fingerprint(found), unread)


def _refuse_shared_ids(own: DemonstrationSet, others: Mapping[str, DemonstrationSet]) -> None:
    """Refuse an id that two sources have once labels are before it: it says which task checks the row.

    Raises:
        DataError: Naming the id, both sources and the way out.
    """
    seen = {demonstration.example_id: own.where for demonstration in own.demonstrations}
    for label, source in others.items():
        ids = [replayed_id(label, demonstration.example_id) for demonstration in source.demonstrations]
        for example_id in ids:
            if example_id in seen:
                raise DataError(
                    f"id {example_id!r} stands in {seen[example_id]} and is that of a row replayed from {label!r}: "
                    "ids must be unique. Fix: another label of the replay, or another data.id_column."
                )
        seen |= dict.fromkeys(ids, source.where)


def replayed_id(label: str, example_id: str) -> str:
    """Return the id of a demonstration that is learned along with another task's."""
    return f"{label}/{example_id}"
