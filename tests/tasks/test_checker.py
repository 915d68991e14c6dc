"""A check that raises is a verdict, in training and in evaluation."""

from __future__ import annotations

import pytest

from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.eval.runner import check_answers
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.tasks.protocol import CHECK_ERROR, Checker
from onpolicy_sdft.types import CheckResult, Demonstration, NoiseKey, Rollout, Turn

ROW = Demonstration("row-1", (Turn("user", "q"),), "yes")


class Fragile(FreeForm):
    """A check of a user's own that knows three letters; slow ones are run in threads."""

    check_is_quick = False

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        if completion == "row":
            raise DataError("mend the row")
        return CheckResult({"a": True, "b": False, "c": True}[completion], "wrong_answer")


@pytest.mark.parametrize("num_workers", [0, 3])
def test_an_error_is_a_verdict_with_its_text_and_the_others_go_on(num_workers: int) -> None:
    check = Checker(Fragile())
    results = check.all(["a", "x", "b"], [ROW] * 3, num_workers)
    assert [result.correct for result in results] == [True, False, False]
    assert [result.reason for result in results] == ["wrong_answer", CHECK_ERROR, "wrong_answer"]
    assert results[1].answer == "KeyError: 'x'"
    assert results[1].message == "The answer could not be checked: KeyError: 'x'"
    assert (check.num_errors, check.num_checks) == (1, 3)


def test_too_many_errors_stop_with_the_last_one_and_its_example() -> None:
    check = Checker(Fragile(), max_errors=0.2)
    check.all(["a"] * 40 + ["x"] * 8, [ROW] * 48)
    check.all(["x", "x"], [ROW] * 2)
    with pytest.raises(TaskError, match="11 of 51 checks.*'row-1', with KeyError: 'x'. Fix: mend the task's check"):
        check("x", ROW)


def test_an_error_that_says_what_to_mend_is_raised_as_it_is() -> None:
    with pytest.raises(DataError, match="mend the row"):
        Checker(Fragile())("row", ROW)


def test_an_evaluation_goes_on_and_records_the_error() -> None:
    written = [Rollout(NoiseKey(0, 0, "row-1"), (1,), (ord(c),), (0.0,), (0.0,), (0.0,), "stop") for c in "axb"]
    records = check_answers([ROW] * 3, written, Fragile(), lambda ids: "".join(map(chr, ids)))
    assert [record["reason"] for record in records] == ["wrong_answer", CHECK_ERROR, "wrong_answer"]
    assert records[1]["answer"] == "KeyError: 'x'"
