"""A check written as one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.function import FunctionTask
from onpolicy_sdft.types import CheckResult, Demonstration, Turn

ROW = Demonstration("a", (Turn("user", "2 + 2?"),), "4", {"unit": "apples"})


def saying(value: Any) -> FunctionTask:
    return FunctionTask(lambda prompt, completion, row: value)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (True, CheckResult(True)),
        (np.bool_(True), CheckResult(True)),
        (False, CheckResult(False, "wrong_answer")),
        ((False, "too long"), CheckResult(False, "too long")),
        ((True, "fine"), CheckResult(True)),
        (0.7, CheckResult(True, answer="0.7")),
        (1, CheckResult(True, answer="1")),
        (np.float32(0.25), CheckResult(False, "wrong_answer", "0.25")),
        ((0.2, "half of it"), CheckResult(False, "half of it", "0.2")),
    ],
)
def test_what_a_function_may_say(said, found):
    assert saying(said).check("four", ROW) == found


@pytest.mark.parametrize(
    "said", [None, "yes", float("nan"), (True, 3), (None, "reason"), [True], 87.0, 2, -1, (1.01, "x")]
)
def test_anything_else_is_refused_with_the_row(said):
    with pytest.raises(TaskError, match=r"example 'a'.*Fix: return True or False"):
        saying(said).check("four", ROW)


def test_it_sees_the_prompt_the_text_and_every_column():
    seen = []
    FunctionTask(lambda *given: not seen.append(given)).check("four", ROW)
    row = {"unit": "apples", "prompt": "2 + 2?", "response": "4", "messages": [{"role": "user", "content": "2 + 2?"}]}
    assert seen == [("2 + 2?", "four", row)]


def test_a_score_is_right_from_the_threshold_on():
    def half(prompt: str, completion: str, row: dict[str, Any]) -> float:
        return 0.5

    assert FunctionTask(half).check("", ROW).correct
    assert not FunctionTask(half, threshold=0.6).check("", ROW).correct
    with pytest.raises(TaskError, match="'threshold' is 2"):
        FunctionTask(half, threshold=2)


def test_a_function_of_a_file_is_a_task_by_name(tmp_path: Path):
    file = tmp_path / "checks.py"
    file.write_text("LIMIT = 3\ndef is_short(prompt, completion, row):\n    return len(completion) <= LIMIT\n")
    task = load_task(f"{file}:is_short", {"quick": True})
    assert (task.name, task.check_is_quick, task.ask("why?")) == ("is_short", True, "why?")
    assert task.check("abc", ROW).correct
    assert not task.check("abcd", ROW).correct
    with pytest.raises(TaskError, match=r"no class or function 'is_shrt'.*nearest: 'is_short'"):
        load_task(f"{file}:is_shrt", {})
    with pytest.raises(TaskError, match="no class or function 'LIMIT'"):
        load_task(f"{file}:LIMIT", {})
    with pytest.raises(TaskError, match="no option 'fast'"):
        load_task(f"{file}:is_short", {"fast": True})
