from __future__ import annotations

from onpolicy_sdft.rollout.scheduler import Scheduler, expected_tokens
from onpolicy_sdft.types import NoiseKey, RolloutRequest


def request(prompt, expected=None, limit=50):
    return RolloutRequest(tuple(prompt), NoiseKey(0, 0, str(prompt)), limit, (), expected)


def run(scheduler):
    """Run all that waits for its prompt; return the packs."""
    packs = []
    while True:
        copies, pieces, shared = scheduler.next_pack()
        if not pieces:
            return packs
        scheduler.filled(pieces)
        packs.append((copies, [(p.slot, p.first, p.count, p.is_last) for p in pieces], shared))


def test_the_longest_expected_comes_first_and_a_guess_never_exceeds_the_limit():
    requests = [request([1], 5), request([2], 40), request([3], 900), request([4])]
    assert [expected_tokens(r) for r in requests] == [5, 40, 50, 50]
    scheduler = Scheduler(requests, 1, 100)
    order = []
    while scheduler.num_waiting:
        (slot,) = scheduler.admit()
        order.append(scheduler.request_of[slot])
        run(scheduler)
        scheduler.release(slot)
    assert order == [2, 3, 1, 0]


def test_prompts_are_packed_without_going_over_and_long_ones_are_cut_in_pieces():
    prompts = [range(100, 140), range(200, 230), range(300, 325)]
    scheduler = Scheduler([request(p, 9 - i) for i, p in enumerate(prompts)], 3, 32)
    scheduler.admit()
    packs = run(scheduler)
    assert all(sum(count for _, _, count, _ in pieces) <= 32 for _, pieces, _ in packs)
    ran = {slot: [] for slot in range(3)}
    for _, pieces, _ in packs:
        for slot, first, count, is_last in pieces:
            ran[slot].append((first, count, is_last))
    assert ran == {0: [(0, 32, False), (32, 8, True)], 1: [(0, 30, True)], 2: [(0, 25, True)]}


def test_a_common_beginning_is_run_once_and_copied():
    common = list(range(20))
    scheduler = Scheduler([request([*common, 50 + i, 60 + i], 9 - i) for i in range(3)], 3, 1000)
    scheduler.admit()
    assert run(scheduler) == [
        ([], [(0, 0, 22, True)], 0),
        ([(0, 1, 20), (0, 2, 20)], [(1, 20, 2, True), (2, 20, 2, True)], 40),
    ]


def test_the_same_prompt_again_keeps_all_but_its_last_token_in_place():
    scheduler = Scheduler([request(range(30), 2), request(range(30), 1)], 2, 1000)
    first, second = scheduler.admit()
    run(scheduler)
    scheduler.release(first)
    scheduler.release(second)
    later = Scheduler([request(range(30), 2), request(range(30), 1)], 1, 1000)
    (slot,) = later.admit()
    run(later)
    later.release(slot)
    assert later.admit() == [slot]
    assert run(later) == [([], [(slot, 29, 1, True)], 29)]


def test_a_slot_that_is_being_overwritten_offers_only_what_is_still_there():
    long, other = list(range(40)), [*range(20), *range(900, 910)]
    scheduler = Scheduler([request(long, 9), request(other, 8), request([*long, 7], 7)], 1, 1000)
    slot = scheduler.admit()[0]
    run(scheduler)
    scheduler.release(slot)
    scheduler.admit()
    assert run(scheduler) == [([], [(slot, 20, 10, True)], 20)]
    scheduler.release(slot)
    scheduler.admit()
    assert run(scheduler) == [([], [(slot, 20, 21, True)], 20)]
