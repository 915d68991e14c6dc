from __future__ import annotations

import sys

import pytest

from onpolicy_sdft.errors import MissingDependencyError
from onpolicy_sdft.eval.alpaca import Pair
from onpolicy_sdft.eval.intervals import mean_interval
from onpolicy_sdft.eval.judge import EndpointJudge, count_wins, judge_prompt, parse_verdict, questions_of


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Answer 1 is correct.\n[[1]]", "1"),
        ("[[2]]", "2"),
        ("Both are fine.\n\n**[[tie]]**\n", "tie"),
        ("verdict: [[ TIE ]]", "tie"),
        ("I first thought [[1]].\nOn reflection: [[2]]", "2"),
        ("[[1]] [[1]]", "1"),
        # A judge that only repeats its instructions has not decided.
        ("[[1]] if answer 1 is better, [[2]] if answer 2 is better, [[tie]] if they are equally good.", None),
        ("Answer 1 is better.", None),
        ("[[3]]", None),
        ("[1]", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_where_it_is_clear(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_the_prompt_shows_instruction_and_answers_as_they_stand():
    text = judge_prompt("What is {x}?", "A {first} answer", "A $second answer")
    for part in (
        "What is {x}?",
        "<answer_1>\nA {first} answer\n</answer_1>",
        "<answer_2>\nA $second answer\n</answer_2>",
    ):
        assert part in text


def test_each_pair_is_shown_both_ways():
    straight, swapped = questions_of([Pair(0, "q", "mine", "theirs")])
    assert (straight.order, swapped.order) == ("ab", "ba")
    assert straight.prompt == judge_prompt("q", "mine", "theirs")
    assert swapped.prompt == judge_prompt("q", "theirs", "mine")
    assert straight.key("j") != swapped.key("j")
    assert straight.key("j") == questions_of([Pair(5, "q", "mine", "theirs")])[0].key("j")
    assert straight.key("j") != straight.key("another judge")


def test_wins_ties_and_disagreements_are_counted_as_worked_out_by_hand():
    pairs = [Pair(i, f"q{i}", "a", "b") for i in range(8)]
    told = [
        ("1", "2"),  # the first file's answer wins both ways
        ("1", "2"),
        ("2", "1"),  # the second file's does
        ("tie", "tie"),
        ("1", "1"),  # whichever is shown first: disagreement, a tie
        ("2", "tie"),  # disagreement, a tie
        ("1", None),  # one reply is unclear: left out
        (None, "2"),
    ]
    verdicts = [verdict for pair in told for verdict in pair]
    problems = [""] * 16
    problems[14] = "refused by the endpoint: too long"
    found = count_wins(questions_of(pairs), verdicts, problems)
    assert found.n == 6
    assert (found.num_wins, found.num_losses, found.num_ties) == (2, 1, 3)
    assert found.win_rate == (2 + 0 + 1.5) / 6
    assert (found.low, found.high) == mean_interval([1.0, 1.0, 0.0, 0.5, 0.5, 0.5])
    assert found.disagreement_rate == 2 / 6
    assert found.first_place_rate == 6 / 11  # 1: four straight, one swapped by (2, 1), one by (1, 1)
    assert (found.num_unparsable, found.num_refused) == (1, 1)
    assert found.left_out == (
        "pair 7 (ba): no clear verdict in the reply",
        "pair 8 (ab): refused by the endpoint: too long",
    )


def test_swapping_the_files_mirrors_the_win_rate():
    told = ["1", "2", "2", "1", "1", "1", "tie", "2", "1", "2"]
    pairs = [Pair(i, f"q{i}", "a", "b") for i in range(5)]
    mirrored = [verdict for i in range(0, 10, 2) for verdict in (told[i + 1], told[i])]
    one = count_wins(questions_of(pairs), told, [""] * 10)
    other = count_wins(questions_of(pairs), mirrored, [""] * 10)
    assert one.win_rate == pytest.approx(1 - other.win_rate)
    assert one.disagreement_rate == other.disagreement_rate


def test_without_a_clear_pair_there_is_no_rate():
    found = count_wins(questions_of([Pair(0, "q", "a", "b")]), [None, "1"], ["", ""])
    assert (found.n, found.win_rate, found.low, found.disagreement_rate) == (0, None, None, None)


def test_without_the_library_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'onpolicy_sdft\[judge\]'.*local:MODEL"):
        EndpointJudge("http://localhost:1/v1", None, "m", {}, 1, 0, 1.0)
