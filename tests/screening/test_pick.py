from __future__ import annotations

import dataclasses
from typing import Any

from test_screen import make_pair, rollout

from onpolicy_sdft.screening.pick import LearnedTexts, pick_best, remember
from onpolicy_sdft.types import Measures, Target


def sample(text: str, surprise: float, verdict: Any = "keep", name: str = "id-0") -> Target:
    written = rollout(text)
    return Target(
        make_pair(name), written.token_ids, text, verdict, "" if verdict == "keep" else "check", written,
        correct=verdict == "keep", measures=Measures(surprise, surprise),
    )  # fmt: skip


def learned_of(targets: list[Target]) -> list[str]:
    return [target.text for target in targets if target.verdict in ("keep", "fallback")]


def test_of_several_right_rollouts_the_least_surprising_is_learned():
    targets = [sample("yes, loud", 0.9), sample("yes, calm", 0.3), sample("no", 0.1, "fallback")]
    picked = pick_best(targets, 3, {})
    assert [target.verdict for target in picked] == ["spare", "keep", "spare"]
    assert [target.reason for target in picked] == ["spare", "", "check"]
    assert learned_of(picked) == ["yes, calm"]
    assert all(not target.token_ids for target in picked if target.verdict == "spare")


def test_a_demonstration_stands_in_once_where_no_rollout_is_right():
    picked = pick_best([sample("no", 0.1, "fallback"), sample("nope", 0.2, "fallback")], 2, {})
    assert [target.verdict for target in picked] == ["fallback", "spare"]


def test_what_is_dropped_stays_dropped():
    picked = pick_best([sample("no", 0.1, "drop"), sample("nope", 0.2, "drop")], 2, {})
    assert [target.verdict for target in picked] == ["drop", "drop"]


def test_a_new_text_goes_before_one_that_was_learned_already():
    learned: LearnedTexts = {}
    targets = [sample("yes, calm", 0.3), sample("yes, loud", 0.9)]
    first = pick_best(targets, 2, learned)
    remember(learned, first)
    assert learned_of(first) == ["yes, calm"]
    second = pick_best(targets, 2, learned)
    remember(learned, second)
    assert learned_of(second) == ["yes, loud"]
    assert learned_of(pick_best(targets, 2, learned)) == ["yes, calm"]  # nothing is new: the least surprising again
    other = [dataclasses.replace(target, pair=make_pair("id-1")) for target in targets]
    assert learned_of(pick_best(other, 2, learned)) == ["yes, calm"]


def test_demonstrations_are_picked_each_by_itself():
    targets = [sample("yes, 1", 0.3), sample("yes, 2", 0.2), sample("yes, 3", 0.5), sample("yes, 4", 0.6)]
    assert learned_of(pick_best(targets, 2, {})) == ["yes, 2", "yes, 3"]
