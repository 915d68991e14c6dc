from __future__ import annotations

import random

import pytest
import torch

from onpolicy_sdft.rollout.drafts import MAX_NGRAM, MIN_NGRAM, SEPARATOR, DraftStore, lay_out, look_up


def naive(row, max_drafts):
    """The longest n-gram that ends the row and stood before, the first of equals, and what followed it."""
    for n in range(MAX_NGRAM, MIN_NGRAM - 1, -1):
        if len(row) < n:
            continue
        tail = row[-n:]
        for end in range(n, len(row)):
            if row[end - n : end] == tail:
                draft = row[end : end + max_drafts]
                return draft[: draft.index(SEPARATOR)] if SEPARATOR in draft else draft
    return []


def found(rows, max_drafts):
    width = max(map(len, rows)) + 3
    padded = torch.tensor([row + [7] * (width - len(row)) for row in rows])
    drafts, counts, _ = look_up(padded, torch.tensor([len(row) for row in rows]), max_drafts)
    return [draft[:count].tolist() for draft, count in zip(drafts, counts.tolist(), strict=True)]


@pytest.mark.parametrize("max_drafts", [1, 3, 8])
def test_a_look_up_finds_what_a_naive_search_finds(max_drafts):
    chooser = random.Random(max_drafts)
    rows = []
    for _ in range(300):
        prompt = [chooser.randrange(4) for _ in range(chooser.randrange(1, 9))]
        texts = [[chooser.randrange(4) for _ in range(chooser.randrange(0, 12))] for _ in range(2)]
        row, _ = lay_out(prompt, texts)
        rows.append(row + [chooser.randrange(4) for _ in range(chooser.randrange(0, 9))])
    assert found(rows, max_drafts) == [naive(row, max_drafts) for row in rows]
    assert sum(map(bool, found(rows, max_drafts))) > 100


def test_the_beginning_of_a_text_is_proposed_before_anything_is_written():
    row, ends = lay_out((1, 2, 3, 4, 5), [(10, 11, 12), (20, 21)])
    assert row == [2, 3, 4, 5, 10, 11, 12, SEPARATOR, 2, 3, 4, 5, 20, 21, SEPARATOR, 2, 3, 4, 5]
    assert ends == [8, 15]
    assert found([row], 8) == [[10, 11, 12]]  # the first text is the more telling one


def test_a_terminator_at_the_end_of_a_text_is_proposed_and_nothing_behind_it():
    row, _ = lay_out((1, 2), [(10, 11, 99)])
    assert found([[*row, 10, 11]], 8) == [[99]]


def test_an_empty_text_proposes_nothing():
    row, _ = lay_out((1, 2), [()])
    assert found([row], 4) == [[]]


def test_the_store_keeps_the_last_text_of_an_example_in_a_context():
    store = DraftStore(100)
    store.put("a", (1, 2), (5, 6))
    store.put("a", (1, 2), (7,))
    store.put("a", (1, 3), (8,))
    assert (store.get("a", (1, 2)), store.get("a", (1, 3)), store.get("b", (1, 2))) == ((7,), (8,), ())


def test_the_store_is_bounded_and_drops_what_was_written_longest_ago():
    store = DraftStore(5)
    for name in "abc":
        store.put(name, (1,), (1, 2))
    assert (store.get("a", (1,)), store.get("b", (1,)), store.get("c", (1,))) == ((), (1, 2), (1, 2))
    store.put("b", (1,), (3, 4, 5, 6, 7, 8))  # longer than the whole store
    assert store.get("b", (1,)) == ()


def test_the_store_comes_back_from_a_checkpoint_in_its_order(tmp_path):
    store = DraftStore(6)
    for name in "abc":
        store.put(name, (1,), (1, 2))
    torch.save(store.state(), tmp_path / "store.pt")
    other = DraftStore(6)
    other.restore(torch.load(tmp_path / "store.pt", weights_only=True))
    for one in (store, other):
        one.put("d", (1,), (9, 9))
        assert [one.get(name, (1,)) for name in "abcd"] == [(), (1, 2), (1, 2), (9, 9)]
    assert store.state()["tokens"].dtype == torch.int32
