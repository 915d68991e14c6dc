"""A data set as the two prompts and the target of each row, made to fit before any step is taken."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from onpolicy_sdft.data.teacher_prompts import NO_TEACHER, LeftOut, Shown, TeacherPrompts, left_out
from onpolicy_sdft.data.workers import in_chunks
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.types import Demonstration, PromptPair

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ContextConfig
    from onpolicy_sdft.data.renderer import Renderer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready for training, with what was found when its rows were looked at."""

    pairs: tuple[PromptPair, ...]
    dropped_ids: tuple[str, ...]  # examples that cannot fit, left out as configured
    trimmed_ids: tuple[str, ...]  # examples whose shown demonstration was cut
    prompts: TeacherPrompts  # what made the teacher's prompts, for those that tell of an attempt as well
    bad_rows: tuple[str, ...] = ()  # one line per row whose texts cannot be rendered, left out on request
    left_out: tuple[LeftOut, ...] = ()  # of the teacher's prompts, by the chat template
    left_out_bare: tuple[LeftOut, ...] = ()  # of the bare prompts
    notes: tuple[str, ...] = ()  # what should be known of the chat template

    @property
    def digest(self) -> str:
        """Digest of the token ids of all prompts and targets: of what is read, whatever it was made from."""
        found = hashlib.sha256()
        for pair in self.pairs:
            found.update(pair.demonstration.example_id.encode("utf-8", "backslashreplace"))
            for ids in (pair.student_ids, pair.teacher_ids, pair.response_ids):
                found.update(len(ids).to_bytes(8) + array("I", ids).tobytes())
        return found.hexdigest()


def prepare(
    demonstrations: Sequence[Demonstration],
    renderer: Renderer,
    config: ContextConfig,
    seed: int,
    work: Callable[[Demonstration], str] = lambda demonstration: "",
    *,
    asks_teacher: bool = True,
    on_bad_row: Literal["error", "skip"] = "error",
    num_workers: int = 1,
) -> Prepared:
    """Build both prompts of every demonstration and make them fit, before any step is taken.

    Args:
        demonstrations: The data set.
        renderer: Turns conversations into tokens.
        config: How the teacher is shown demonstrations, and what has to fit.
        seed: Of the choice of other examples.
        work: What the task says the work of an answer is; see ``Task.work``.
        asks_teacher: Whether the method has a teacher; without one there are no teacher's prompts, and none need fit.
        on_bad_row: What to do with rows that the chat template does not write as they are.
        num_workers: Processes that render and tokenise many rows; 1: this one.

    Raises:
        ConfigError: If the chat template cannot serve.
        DataError: If rows are bad, or cannot fit and ``context.on_too_long`` is ``error``, or no row is left.
    """
    if config.trim_responses:
        demonstrations = [replace(each, response=each.response.strip()) for each in demonstrations]
    # Where the teacher is shown no other rows, both prompts of a row are made at once: they have texts in common.
    prompts = TeacherPrompts(demonstrations, renderer, config, seed, work) if config.show in ("own", "none") else None
    read = in_chunks(partial(_read, renderer, prompts if asks_teacher else None), demonstrations, num_workers)
    good, rows, bad_rows = _good_rows(demonstrations, read, renderer, on_bad_row)
    if prompts is None:
        prompts = TeacherPrompts(good, renderer, config, seed, work)
        if asks_teacher:
            shown = in_chunks(prompts.show, good, num_workers)
            rows = [replace(row, shown=_shared(each, renderer)) for row, each in zip(rows, shown, strict=True)]
    found: list[PromptPair] = []
    too_long: list[tuple[str, str]] = []
    for demonstration, row in zip(good, rows, strict=True):
        if len(row.student_ids) > config.max_student_tokens:
            too_long.append((demonstration.example_id, f"bare prompt of {len(row.student_ids)} tokens"))
        elif row.shown.fitted is None:
            length = row.shown.num_tokens
            too_long.append((demonstration.example_id, f"teacher's prompt of {length} tokens, uncut"))
        else:
            fitted = row.shown.fitted
            cut = fitted.num_trimmed_tokens, fitted.num_dropped_examples
            found.append(PromptPair(demonstration, row.student_ids, fitted.token_ids, row.response_ids, *cut))
    if too_long and config.on_too_long == "error":
        raise DataError(_do_not_fit(too_long, len(good), config, asks_teacher=asks_teacher))
    if not found:
        raise DataError("No row fits in context.max_student_tokens and context.max_teacher_tokens.")
    dropped = {name for name, _ in too_long}
    return Prepared(
        pairs=tuple(found),
        dropped_ids=tuple(name for name, _ in too_long),
        trimmed_ids=tuple(v.demonstration.example_id for v in found if v.num_trimmed_tokens),
        prompts=prompts,
        bad_rows=tuple(bad_rows),
        left_out=tuple(each for row in rows if (each := row.shown.left_out) and each.example_id not in dropped),
        left_out_bare=tuple(row.left_out for row in rows if row.left_out),
        notes=tuple(renderer.notes()),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """What is made of a row; made in another process, perhaps, and sent."""

    student_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    left_out: LeftOut | None  # of the bare prompt
    called: str = ""  # the text of an answer that calls tools, as the chat template writes it
    shown: Shown = NO_TEACHER

    def of(self, demonstration: Demonstration) -> Demonstration:
        """Return the demonstration with the response that is learned."""
        return replace(demonstration, response=self.called) if self.called else demonstration


def _read(
    renderer: Renderer, prompts: TeacherPrompts | None, demonstrations: Sequence[Demonstration]
) -> list[_Row | str]:
    """Render and tokenise rows; why it cannot be learned, of a row that the chat template does not write as it is."""
    with renderer.ahead((each.turns, "" if each.answer else each.response) for each in demonstrations):
        found = [_read_row(renderer, each) for each in demonstrations]
        if prompts is None:
            return found
        both = zip(demonstrations, found, strict=True)
        taught = [row.of(each) for each, row in both if isinstance(row, _Row)]
        shown = iter(prompts.show(taught))
        return [replace(row, shown=next(shown)) if isinstance(row, _Row) else row for row in found]


def _read_row(renderer: Renderer, row: Demonstration) -> _Row | str:
    try:
        if not row.response:
            ids = (*renderer.text_ids(row.shown), *renderer.end_ids)
            return _Row(renderer.student_ids(row.turns), ids, left_out(renderer, row))
        asked, target = renderer.target(row.turns, row.answer or row.response)
    except DataError as error:
        return str(error)
    return _Row(asked, target, left_out(renderer, row), renderer.decode(target) if row.answer else "")


def _good_rows(
    demonstrations: Sequence[Demonstration],
    read: Iterable[_Row | str],
    renderer: Renderer,
    on_bad_row: Literal["error", "skip"],
) -> tuple[list[Demonstration], list[_Row], list[str]]:
    """Return the rows that can be learned with what was made of them, and a line about each other one."""
    good, rows, bad_rows = [], [], []
    for demonstration, row in zip(demonstrations, read, strict=True):
        if isinstance(row, str):
            message = f"{demonstration.origin or f'example {demonstration.example_id!r}'}: {row}"
            if on_bad_row == "error":
                raise DataError(f"{message}. Or leave bad rows out and count them: --data.on_bad_row skip.")
            bad_rows.append(message)
            continue
        good.append(row.of(demonstration))
        student_ids, response_ids = map(renderer.text_ids.shared, (row.student_ids, row.response_ids))
        rows.append(_Row(student_ids, response_ids, row.left_out, shown=_shared(row.shown, renderer)))
    if not good:
        raise DataError(f"No row is left to learn: {len(bad_rows)} are bad. The first: {bad_rows[0]}.")
    return good, rows, bad_rows


def _shared(shown: Shown, renderer: Renderer) -> Shown:
    if shown.fitted is None:
        return shown
    return replace(shown, fitted=replace(shown.fitted, token_ids=renderer.text_ids.shared(shown.fitted.token_ids)))


def _do_not_fit(
    too_long: Sequence[tuple[str, str]], num_rows: int, config: ContextConfig, *, asks_teacher: bool
) -> str:
    limits = f"context.max_student_tokens={config.max_student_tokens}"
    if asks_teacher:
        limits += f" and context.max_teacher_tokens={config.max_teacher_tokens} even with all cut that may be cut"
    listed = ", ".join(f"{name} ({length})" for name, length in too_long[:5])
    return (
        f"{len(too_long)} of {num_rows} rows do not fit in {limits}: {listed}{', ...' if len(too_long) > 5 else ''}. "
        "Raise the limits, or leave these rows out and count them: --context.on_too_long drop."
    )
