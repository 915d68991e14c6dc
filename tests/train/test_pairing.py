from __future__ import annotations

from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.types import Demonstration, NoiseKey, PromptPair, Rollout, Target, Turn


def target(verdict: str, sample_index: int = 0, example_id: str = "a", presentation: int = 0) -> Target:
    pairs = PromptPair(
        Demonstration(example_id, (Turn("user", "q"),), "r"),
        (1,),
        (1, 2),
        (7, 8),
        sample_index=sample_index,
        presentation=presentation,
    )
    rollout = Rollout(
        NoiseKey(0, 0, example_id, sample_index), (1, 2), (5, 6), (-1.0,) * 2, (-1.0,) * 2, (0.5,) * 2, "stop"
    )
    token_ids = {"keep": (5, 6), "fallback": (7, 8), "drop": ()}[verdict]
    return Target(pairs, token_ids, "", verdict, "", rollout)


def test_the_added_demonstration_comes_once_and_goes_with_a_dropped_example():
    pairing = Pairing(100, 0, demonstration_weight=0.5)
    assert pairing.rows([target("drop")]) == []
    rows = pairing.rows([target("keep"), target("keep", 1)])
    assert [(row.target_ids, row.weight, row.counted) for row in rows] == [
        ((5, 6), 1.0, True),
        ((7, 8), 0.5, False),
        ((5, 6), 1.0, True),
    ]
    rows = pairing.rows([target("drop"), target("keep", 1), target("drop"), target("drop", 1)])
    assert [row.target_ids for row in rows] == [(5, 6), (7, 8)]
    across_epochs = [target("drop", 0, "b"), target("keep"), target("keep", 1, "b", 1)]
    assert [row.target_ids for row in pairing.rows(across_epochs)] == [(5, 6), (7, 8)] * 2


def test_an_example_twice_in_a_step_is_learned_alike_on_one_rank_and_on_two():
    pairing = Pairing(100, 0, demonstration_weight=0.5)
    first, second = [[target("keep", 2 * p + s, presentation=p) for s in range(2)] for p in range(2)]
    assert pairing.rows([*first, *second]) == pairing.rows(first) + pairing.rows(second)


def test_a_target_no_longer_than_what_is_skipped_gives_no_row():
    assert Pairing(100, 0, num_skipped=2).rows([target("keep")]) == []
    (row,) = Pairing(100, 0, num_skipped=1).rows([target("keep")])
    assert row.num_skipped == 1
