"""No question gives its answer away, every response is right, and the splits share no fact."""

from __future__ import annotations

from collections import Counter

import pytest

from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.generators.common import SPLITS
from onpolicy_sdft.data.generators.short_facts import KINDS
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Demonstration, Turn

TASK = load_task("exact", {"match": "contains"})


def demonstration(row: dict) -> Demonstration:
    fields = {name: row[name] for name in ("answer", "aliases", "kind")}
    return Demonstration(row["id"], (Turn("user", row["prompt"]),), row["response"], fields)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {split: generate_rows("short_facts", split=split) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_every_response_and_every_accepted_answer_passes_the_check(split, rows):
    for row in rows[split]:
        example = demonstration(row)
        TASK.check_demonstration(example)
        assert TASK.reference_answer(example) == row["response"]
        for text in (row["response"], row["answer"], *row["aliases"]):
            assert TASK.check(text, example).correct, (row, text)


@pytest.mark.parametrize("split", SPLITS)
def test_no_question_contains_its_answer(split, rows):
    for row in rows[split]:
        assert not TASK.check(TASK.ask(row["prompt"]), demonstration(row)).correct, row
        # Nor would the sentence of the response, had it another answer.
        blank = row["response"].replace(row["answer"], "?")
        assert not TASK.check(blank, demonstration(row)).correct, row


def test_the_splits_share_no_fact(rows):
    facts = [{(row["kind"], row["response"]) for row in rows[split]} for split in SPLITS]
    assert len(set.union(*facts)) == sum(map(len, facts)) == sum(len(kind.facts) for kind in KINDS.values())


def test_there_are_many_facts_and_the_test_split_asks_for_each_of_its_own_once(rows):
    assert sum(len(kind.facts) for kind in KINDS.values()) >= 420
    assert len({(row["kind"], row["response"]) for row in rows["test"]}) == len(rows["test"]) >= 200


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_is_in_every_split_and_none_makes_up_more_than_an_eighth(split, rows):
    counts = Counter(row["kind"] for row in rows[split])
    assert set(counts) == set(KINDS)
    assert max(counts.values()) <= len(rows[split]) / 8


def test_the_best_known_fact_of_a_kind_is_tested(rows):
    asked = {row["kind"]: set() for row in rows["test"]}
    for row in rows["test"]:
        asked[row["kind"]].add(row["answer"])
    for name, kind in KINDS.items():
        assert next(iter(kind.facts.values())).split("|")[0] in asked[name]


@pytest.mark.parametrize(
    ("answer", "aliases", "kind", "response"),
    [
        ("Paris", [], "capital", "The capital of France is Paris."),
        ("7", ["seven"], "count", "A week has 7 days."),
        ("4", ["four"], "sum", "2 plus 2 is 4."),
        ("small", ["little", "tiny"], "opposite", 'The opposite of "big" is "small".'),
    ],
)
def test_a_row_reads_as_expected(answer, aliases, kind, response, rows):
    found = [row for split in SPLITS for row in rows[split] if row["response"] == response]
    assert {(row["answer"], tuple(row["aliases"]), row["kind"]) for row in found} == {(answer, tuple(aliases), kind)}


def test_sums_and_differences_are_right(rows):
    for row in (row for split in SPLITS for row in rows[split] if row["kind"] in ("sum", "difference")):
        a, sign, b = row["response"].split()[:3]
        assert int(row["answer"]) == int(a) + int(b) * {"plus": 1, "minus": -1}[sign] < 20
