"""Which of several rollouts of one demonstration is learned: a kept one, a new one, the least surprising one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from onpolicy_sdft.types import Target

#: Digests of the texts that were learned of each example, by example id.
LearnedTexts = dict[str, list[str]]


def remember(learned: LearnedTexts, targets: Sequence[Target]) -> None:
    """Note which rollouts a step learned."""
    for target in targets:
        if target.verdict == "keep" and target.rollout is not None and not _is_known(target, learned):
            learned.setdefault(target.pair.demonstration.example_id, []).append(_digest(target))


def pick_best(targets: Sequence[Target], num_samples: int, learned: LearnedTexts) -> list[Target]:
    """Leave one target of each demonstration's samples; the others become ``spare``.

    A kept rollout goes before any fallback. Of those that are kept, a text that was not learned before goes first,
    then the one with the least surprise under the bare prompt, then the first.

    Args:
        targets: The samples of each demonstration, ``num_samples`` in a row.
        num_samples: Samples of each.
        learned: Texts of earlier steps.
    """
    found: list[Target] = []
    for start in range(0, len(targets), num_samples):
        group = targets[start : start + num_samples]
        best = min(range(len(group)), key=lambda index: _rank(group[index], learned))
        found += [target if index == best else _spare(target) for index, target in enumerate(group)]
    return found


def _rank(target: Target, learned: LearnedTexts) -> tuple[int, bool, float]:
    order = {"keep": 0, "fallback": 1}.get(target.verdict, 2)
    surprise = target.measures.surprise if target.measures else 0.0
    return (order, _is_known(target, learned), surprise) if order == 0 else (order, False, 0.0)


def _is_known(target: Target, learned: LearnedTexts) -> bool:
    return _digest(target) in learned.get(target.pair.demonstration.example_id, ())


def _spare(target: Target) -> Target:
    if target.verdict == "drop":
        return target
    reason = target.reason or "spare"
    return replace(target, token_ids=(), verdict="spare", reason=reason)


def _digest(target: Target) -> str:
    assert target.rollout is not None
    return hashlib.blake2b(repr(target.rollout.token_ids).encode(), digest_size=8).hexdigest()
