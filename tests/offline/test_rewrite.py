from __future__ import annotations

import json
from dataclasses import replace

import pytest

from onpolicy_sdft.data.inputs import DISTILLED_NAME, find_distilled
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.offline.file import DistilledRow, apply_distilled, read_rows
from onpolicy_sdft.offline.rewrite import LegacyJudge, count_rows, distill
from onpolicy_sdft.types import Demonstration, NoiseKey, PromptPair, Rollout, Turn


def make_pair(name: str) -> PromptPair:
    return PromptPair(Demonstration(name, (Turn("user", f"q {name}"),), f"r {name}"), (1,), (1, 2), (7, 8))


def row(name: str, verdict: str = "keep", **more) -> DistilledRow:
    response = {"keep": f"new {name}", "fallback": f"r {name}", "drop": ""}[verdict]
    made = DistilledRow(name, f"q {name}", f"r {name}", f"new {name}", response, verdict, "", 0, (5, int(name)))
    return replace(made, **more)


class Writer:
    """Counts what it writes, and can die in the middle."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.dies_at = dies_at

    def __call__(self, batch, attempt):
        if self.dies_at is not None and len(self.asked) >= self.dies_at:
            raise KeyboardInterrupt
        self.asked += [pair.demonstration.example_id for pair in batch]
        return [None] * len(batch)


def judge(batch, rollouts, write):
    return [row(pair.demonstration.example_id) for pair in batch]


ALL = [make_pair(str(index)) for index in range(10)]


def test_an_interrupted_file_is_gone_on_with_and_no_row_is_lost_or_written_twice(tmp_path):
    path, seen = tmp_path / DISTILLED_NAME, []
    with pytest.raises(KeyboardInterrupt):
        distill(ALL, path, Writer(dies_at=6), judge, 3, seen.append)
    assert len(read_rows(path)) == 6
    with path.open("a") as stream:
        stream.write('{"example_id": "6", "torn')  # a kill in the middle of a write
    writer = Writer()
    rows = distill(ALL, path, writer, judge, 3, seen.append)
    assert writer.asked == ["6", "7", "8", "9"]
    assert [each.example_id for each in rows] == [str(index) for index in range(10)]
    assert read_rows(path) == rows
    assert sum(seen) == 16, "told 6 of the first start, then 6 that were there and 4 more"


def test_rows_of_another_order_come_back_in_the_data_sets(tmp_path):
    path = tmp_path / DISTILLED_NAME
    distill(ALL[5:], path, Writer(), judge, 3, lambda count: None)
    rows = distill(ALL, path, Writer(), judge, 3, lambda count: None)
    assert [each.example_id for each in rows] == [str(index) for index in range(10)]


def test_the_legacy_judge_learns_text_as_whole_even_where_it_was_cut_off():
    rollout = Rollout(NoiseKey(0, 0, "0"), (1, 2), (9, 9), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), "length")
    decode = {(9, 9): "  the answer 3 "}.__getitem__
    judges = LegacyJudge("math_word_problem", lambda ids: decode(tuple(ids)), lambda text: (len(text), 0))
    example = replace(ALL[0], demonstration=replace(ALL[0].demonstration, response="#### 3"))
    kept = judges([example], [rollout], lambda *a: [])[0]
    assert (kept.verdict, kept.response, kept.token_ids) == ("keep", "the answer 3", (12, 0))
    refused = judges([ALL[1]], [rollout], lambda *a: [])[0]
    assert (refused.verdict, refused.reason, refused.response) == ("fallback", "check", "r 1")
    assert refused.token_ids == ALL[1].response_ids


def test_the_legacy_judge_falls_back_where_the_template_would_write_other_text():
    rollout = Rollout(NoiseKey(0, 0, "0"), (1, 2), (9, 9), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), "stop")

    def refuse(text):
        raise DataError(text)

    judges = LegacyJudge("math_word_problem", lambda ids: "the answer 3 <|im_start|>", refuse)
    example = replace(ALL[0], demonstration=replace(ALL[0].demonstration, response="#### 3"))
    (found,) = judges([example], [rollout], lambda *a: [])
    assert (found.verdict, found.reason, found.response) == ("fallback", "not_writable", "#### 3")
    assert found.token_ids == example.response_ids


def test_counts_of_what_became_of_the_rows():
    rows = [
        row("0"),
        row("1", "fallback", reason="check"),
        row("2", "drop", reason="empty"),
        row("3", original="new 3"),
    ]
    counts = count_rows(rows)
    assert counts["verdicts"] == {"keep": 2, "fallback": 1, "drop": 1}
    assert counts["reasons"] == {"check": 1, "empty": 1}
    assert counts["keep_rate"] == 0.5
    assert counts["verbatim_rate"] == 0.25


def test_training_takes_the_distilled_response_and_its_very_tokens(tmp_path):
    rows = [row(str(i), "drop" if i == 3 else "keep") for i in range(10)]
    taken, dropped = apply_distilled(ALL, rows, tmp_path, lambda ids: f"new {ids[1]}", lambda *_: ())
    assert dropped == 1
    assert len(taken) == 9
    assert taken[0].response_ids == (5, 0)
    assert taken[0].demonstration.response == "new 0"
    assert taken[0].student_ids == ALL[0].student_ids


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("0")], "9 of 10 rows of the data set are not in"),
        ([row(str(i), prompt="other") for i in range(10)], "another prompt or response"),
        ([row(str(i), original="other") for i in range(10)], "another prompt or response"),
        ([row(str(i), "drop") for i in range(10)], "nothing to learn"),
    ],
)
def test_a_file_of_other_data_is_refused(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        apply_distilled(ALL, rows, tmp_path, lambda ids: f"new {ids[1]}", lambda *_: ())


def test_a_file_that_is_none_is_refused_by_line(tmp_path):
    path = tmp_path / DISTILLED_NAME
    with pytest.raises(DataError, match="sdft distill"):
        find_distilled(tmp_path)
    path.write_text(json.dumps({"example_id": "0"}) + "\n")
    with pytest.raises(DataError, match="line 1 is not a row"):
        read_rows(find_distilled(tmp_path))
    path.write_text("".join(json.dumps(row("0").record()) + "\n" for _ in range(2)))
    with pytest.raises(DataError, match="line 2: example '0' stands there twice"):
        read_rows(path)


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    with pytest.raises(DataError, match="do not spell its response"):
        apply_distilled(ALL, [row(str(i)) for i in range(10)], tmp_path, lambda ids: "something else", lambda *_: ())
