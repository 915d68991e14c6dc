"""A data set as the two prompts and the target of each row, made to fit before any step is taken."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Literal

from onpolicy_sdft.data.teacher_prompts import NO_TEACHER, LeftOut, TeacherPrompts, left_out
from onpolicy_sdft.data.tokenising import read_ahead
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

    Raises:
        ConfigError: If the chat template cannot serve.
        DataError: If rows are bad, or cannot fit and ``context.on_too_long`` is ``error``, or no row is left.
    """
    good, targets, bad_rows, missing_bare = _targets(demonstrations, renderer, config, on_bad_row)
    prompts = TeacherPrompts(good, renderer, config, seed, work)
    found: list[PromptPair] = []
    too_long: list[tuple[str, str]] = []
    missing: list[LeftOut] = []
    each_fitted = prompts.fit_all(good) if asks_teacher else repeat((NO_TEACHER, None), len(good))
    for demonstration, (student_ids, response_ids), (fitted, unwritten) in zip(good, targets, each_fitted, strict=True):
        if len(student_ids) > config.max_student_tokens:
            too_long.append((demonstration.example_id, f"bare prompt of {len(student_ids)} tokens"))
        elif fitted is None:
            length = prompts.whole_length(demonstration)
            too_long.append((demonstration.example_id, f"teacher's prompt of {length} tokens, uncut"))
        else:
            cut = fitted.num_trimmed_tokens, fitted.num_dropped_examples
            found.append(PromptPair(demonstration, student_ids, fitted.token_ids, response_ids, *cut))
            missing += [unwritten] if unwritten else []
    if too_long and config.on_too_long == "error":
        raise DataError(_do_not_fit(too_long, len(good), config, asks_teacher=asks_teacher))
    if not found:
        raise DataError("No row fits in context.max_student_tokens and context.max_teacher_tokens.")
    return Prepared(
        pairs=tuple(found),
        dropped_ids=tuple(name for name, _ in too_long),
        trimmed_ids=tuple(v.demonstration.example_id for v in found if v.num_trimmed_tokens),
        prompts=prompts,
        bad_rows=tuple(bad_rows),
        left_out=tuple(missing),
        left_out_bare=tuple(missing_bare),
        notes=tuple(renderer.notes()),
    )


def _targets(
    demonstrations: Sequence[Demonstration],
    renderer: Renderer,
    config: ContextConfig,
    on_bad_row: Literal["error", "skip"],
) -> tuple[list[Demonstration], list[tuple[tuple[int, ...], tuple[int, ...]]], list[str], list[LeftOut]]:
    """Return the rows that can be learned as they are, and their prompts and targets.

    Then a line about each other row, and what the chat template leaves out of the prompts.
    """
    good, targets, bad_rows, missing = [], [], [], []
    if config.trim_responses:
        demonstrations = [replace(each, response=each.response.strip()) for each in demonstrations]
    for demonstration in read_ahead(
        demonstrations,
        lambda rows: renderer.ahead((each.turns, "" if each.answer else each.response) for each in rows),
    ):
        try:
            if demonstration.response:
                ids = renderer.target(demonstration.turns, demonstration.answer or demonstration.response)
            else:
                shown = renderer.text_ids(demonstration.shown)
                ids = renderer.student_ids(demonstration.turns), (*shown, *renderer.end_ids)
        except DataError as error:
            message = f"{demonstration.origin or f'example {demonstration.example_id!r}'}: {error}"
            if on_bad_row == "error":
                raise DataError(f"{message}. Or leave bad rows out and count them: --data.on_bad_row skip.") from error
            bad_rows.append(message)
            continue
        if demonstration.answer:
            demonstration = replace(demonstration, response=renderer.decode(ids[1]))
        good.append(demonstration)
        targets.append(ids)
        missing += [unwritten] if (unwritten := left_out(renderer, demonstration)) else []
    if not good:
        raise DataError(f"No row is left to learn: {len(bad_rows)} are bad. The first: {bad_rows[0]}.")
    return good, targets, bad_rows, missing


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
