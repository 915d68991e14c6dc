"""Questions that are trained on are said."""

from __future__ import annotations

from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.fitting.held_out import warn_of_overlap
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Demonstration, Turn


def asked(*texts: str) -> list[Demonstration]:
    return [Demonstration(str(number), (Turn("user", text),), "x") for number, text in enumerate(texts)]


def test_questions_that_are_training_prompts_up_to_blanks_and_case_are_counted(logged):
    sets = [EvalSet(label, asked(*texts), FreeForm(), 4, False) for label, texts in
            {"test": ["say  One ", "say two", "other"], "apart": ["else"]}.items()]  # fmt: skip
    assert warn_of_overlap(asked("Say one", "say two\n"), sets) == {"test": [2, 3]}
    (line,) = [line for line in logged if "training prompts" in line]
    assert "2 of 3 questions of 'test' are training prompts" in line
