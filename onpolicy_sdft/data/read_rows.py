"""One row of a data set as token ids: its bare prompt, its target, and what the teacher is shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.teacher_prompts import NO_TEACHER, LeftOut, Shown, TeacherPrompts, left_out
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.types import Demonstration


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What is made of a row."""

    student_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    left_out: LeftOut | None  # of the bare prompt
    written: str = ""  # the answer as the chat template writes it, where that is another text than the row's
    shown: Shown = NO_TEACHER

    def of(self, demonstration: Demonstration) -> Demonstration:
        """Return the demonstration with the response that is learned."""
        return replace(demonstration, response=self.written) if self.written else demonstration


def read_rows(
    renderer: Renderer, prompts: TeacherPrompts | None, demonstrations: Sequence[Demonstration]
) -> list[ReadRow | str]:
    """Render and tokenise rows together.

    Args:
        renderer: Turns conversations into tokens.
        prompts: Makes what the teacher is shown; None: it is shown nothing, or not yet.
        demonstrations: The rows.

    Returns:
        What is made of each row; of a row that the chat template does not write as it is, why.
    """
    with renderer.ahead((each.turns, "" if each.answer else each.response) for each in demonstrations):
        found = [_read(renderer, each) for each in demonstrations]
        if prompts is None:
            return found
        both = zip(demonstrations, found, strict=True)
        shown = iter(prompts.show([row.of(each) for each, row in both if isinstance(row, ReadRow)]))
        return [replace(row, shown=next(shown)) if isinstance(row, ReadRow) else row for row in found]


def show_rows(prompts: TeacherPrompts, demonstrations: Sequence[Demonstration]) -> list[ReadRow | str]:
    """Return what the teacher is shown of rows, and nothing else of them."""
    return [ReadRow((), (), None, shown=shown) for shown in prompts.show(demonstrations)]


def _read(renderer: Renderer, row: Demonstration) -> ReadRow | str:
    try:
        if not row.response:
            ids = (*renderer.text_ids(row.shown), *renderer.end_ids)
            return ReadRow(renderer.student_ids(row.turns), ids, left_out(renderer, row))
        asked, target = renderer.target(row.turns, row.answer or row.response)
    except DataError as error:
        return str(error)
    text = renderer.decode(target)  # other than the response's where that calls tools, or opens what the header opens
    return ReadRow(asked, target, left_out(renderer, row), text if text != row.response else "")
