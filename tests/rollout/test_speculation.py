from __future__ import annotations

import itertools

import numpy as np
import pytest

from onpolicy_sdft.rollout.speculation import WIDTHS, Acceptance, StepCosts, choose_drafts, choose_width


def costs(per_step, per_token, rows=(1, 4, 16)):
    return StepCosts(rows, tuple(tuple(per_step + per_token * n * w for w in WIDTHS) for n in rows))


def test_step_times_are_interpolated_and_carried_on():
    table = costs(1.0, 0.1)
    assert np.allclose(table.of(4, np.array([4, 8, 10, 36])), [1.4, 1.8, 2.0, 4.6])
    assert np.allclose(table.of(10, np.array([10, 25])), [2.0, 3.5])
    assert np.allclose(table.of(32, np.array([32])), [4.2])
    assert np.allclose(costs(1.0, 0.1, (3,)).of(3, np.array([3, 6])), [1.3, 1.6])


def test_measuring_times_every_shape_and_never_lets_more_tokens_cost_less():
    asked = []

    def time_step(rows, width):
        asked.append((rows, width))
        return 2.0 if (rows, width) == (4, 2) else 1.0

    table = StepCosts.measure(20, time_step)
    assert table.rows == (1, 4, 16, 20)
    assert {rows for rows, _ in asked} == set(table.rows)
    assert all(list(line) == sorted(line) for line in table.seconds)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all_choices(seed):
    chooser = np.random.default_rng(seed)
    rates, available = chooser.uniform(0.2, 0.95, 3).tolist(), chooser.integers(0, 4, 3).tolist()
    table = costs(*chooser.uniform(0.05, 1.0, 2))

    def speed(choice):
        tokens = 3 + sum(rate**i for rate, n in zip(rates, choice, strict=True) for i in range(1, n + 1))
        return tokens / float(table.of(3, np.array([3 + sum(choice)]))[0])

    best = max(map(speed, itertools.product(*(range(n + 1) for n in available))))
    chosen = choose_drafts(rates, available, table)
    assert all(n <= most for n, most in zip(chosen, available, strict=True))
    if best >= 1.05 * speed((0, 0, 0)):
        assert speed(chosen) == pytest.approx(best)
    else:
        assert chosen == [0, 0, 0]


def test_nothing_is_verified_where_tokens_cost_as_much_as_steps():
    assert choose_drafts([0.9, 0.9], [8, 8], costs(0.0, 1.0)) == [0, 0]
    assert sum(choose_drafts([0.9, 0.9], [8, 8], costs(1.0, 0.0))) == 16
    assert choose_drafts([0.1, 0.1], [5, 3], None) == [5, 3]  # no times: all there are
    assert choose_drafts([], [], None) == []


def test_acceptance_learns_by_kind_and_a_slot_can_differ_from_its_kind():
    seen = Acceptance()
    assert seen.rate(0) == pytest.approx(0.6)
    for _ in range(200):
        seen.saw(0, 1, 10)
    assert seen.rate(0) < 0.15
    assert seen.rate(1) == pytest.approx(0.6)
    assert seen.rate(0, slot_kept=40, slot_seen=40) > 0.9


def test_texts_that_are_run_in_two_slots_draft_where_twice_the_rows_would():
    """Up to eight tokens a forward cost the same, from there on each costs as much as those: pairs get there sooner."""
    rows = (1, 2, 4, 8, 16)
    table = StepCosts(rows, tuple(tuple(float(max(1, n * width / 8)) for width in WIDTHS) for n in rows))
    alone, paired = (choose_drafts([0.9] * 4, [4] * 4, table, num_prompts) for num_prompts in (1, 2))
    assert sum(alone) > 0
    assert sum(paired) == 0
    seen = Acceptance()
    widths = [choose_width(seen, table, 4, 2, hopeful=True, num_prompts=num_prompts) for num_prompts in (1, 2)]
    assert widths[0] > widths[1] == 0
