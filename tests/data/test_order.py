from __future__ import annotations

from collections import Counter

from onpolicy_sdft.data.order import batch_indices, permutation


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    first = permutation(50, seed=3, epoch=2)
    permutation.cache_clear()
    assert permutation(50, seed=3, epoch=2) == first
    assert sorted(first) == list(range(50))
    assert len({first, permutation(50, seed=3, epoch=1), permutation(50, seed=4, epoch=2)}) == 3


def test_steps_of_any_size_walk_through_the_same_stream():
    stream = [i for epoch in range(3) for i in permutation(7, 0, epoch)]
    for batch_size in (1, 3, 7, 10):
        steps = len(stream) // batch_size
        walked = [
            i for step in range(steps) for i in batch_indices(step, batch_size=batch_size, num_examples=7, seed=0)
        ]
        assert walked == stream[: steps * batch_size]


def test_nothing_is_dropped_where_a_batch_spans_two_epochs():
    batches = [batch_indices(step, batch_size=4, num_examples=10, seed=1) for step in range(5)]
    assert Counter(i for batch in batches for i in batch) == dict.fromkeys(range(10), 2)


def test_the_last_batch_of_a_counted_stream_is_smaller_and_the_next_is_empty():
    batches = [batch_indices(step, batch_size=4, num_examples=10, seed=0, num_presentations=10) for step in range(4)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 0]
    assert sorted(i for batch in batches for i in batch) == list(range(10))


def test_a_batch_may_be_larger_than_the_data_set():
    assert Counter(batch_indices(0, batch_size=9, num_examples=3, seed=0)) == dict.fromkeys(range(3), 3)
