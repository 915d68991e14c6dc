"""A data set as the two prompts and the target of each row, made to fit before any step is taken."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onpolicy_sdft.data.packed_rows import PackedRows, pack, unpack
from onpolicy_sdft.data.read_rows import ReadRow, read_rows, show_rows
from onpolicy_sdft.data.row_cache import cached_rows, key_of
from onpolicy_sdft.data.teacher_prompts import LeftOut, TeacherPrompts
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
    uses_cache: bool = False,
    window: int | None = None,
    max_new_tokens: int = 0,
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
        uses_cache: Whether what is made of many rows is kept on disk, for the next time.
        window: Positions the model has, for a prompt and what is written after it; None when it does not say.
        max_new_tokens: Longest rollout.

    Raises:
        ConfigError: If the chat template cannot serve.
        DataError: If rows are bad, or cannot fit and ``context.on_too_long`` is ``error``, or no row is left.
    """
    asked, config = config, _within_window(config, window, max_new_tokens)
    if config.trim_responses:
        demonstrations = [replace(each, response=each.response.strip()) for each in demonstrations]
    # Where the teacher is shown no other rows, both prompts of a row are made at once: they have texts in common.
    prompts = TeacherPrompts(demonstrations, renderer, config, seed, work) if config.show in ("own", "none") else None
    taught = prompts if asks_teacher else None

    def read() -> Iterator[PackedRows]:
        return in_chunks(lambda rows: pack(read_rows(renderer, taught, rows)), demonstrations, num_workers)

    key = key_of(demonstrations, renderer, taught, config, work) if uses_cache else None
    made = _unpacked(read() if key is None else cached_rows(key, read), renderer)
    good, rows, bad_rows = _good_rows(demonstrations, made, on_bad_row)
    if prompts is None:
        prompts = TeacherPrompts(good, renderer, config, seed, work)
        if asks_teacher:
            shown = in_chunks(lambda rows: pack(show_rows(prompts, rows)), good, num_workers)
            both = zip(rows, _unpacked(shown, renderer), strict=True)
            rows = [replace(row, shown=its.shown) for row, its in both if isinstance(its, ReadRow)]
    found, too_long = _fitting(good, rows, config)
    if too_long and config.on_too_long == "error":
        limits, fix = _limits(asked, window, max_new_tokens, asks_teacher=asks_teacher)
        raise DataError(_do_not_fit(too_long, len(good), limits, fix))
    if not found:
        limits, fix = _limits(asked, window, max_new_tokens, asks_teacher=asks_teacher)
        raise DataError(f"No row fits in {limits}. Fix: {fix}.")
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


def _fitting(
    demonstrations: Sequence[Demonstration], rows: Sequence[ReadRow], config: ContextConfig
) -> tuple[list[PromptPair], list[tuple[str, str]]]:
    """Return the rows that fit, and the example and the length of each other one."""
    found: list[PromptPair] = []
    too_long: list[tuple[str, str]] = []
    for demonstration, row in zip(demonstrations, rows, strict=True):
        if len(row.student_ids) > config.max_student_tokens:
            too_long.append((demonstration.example_id, f"bare prompt of {len(row.student_ids)} tokens"))
        elif row.shown.fitted is None:
            length = row.shown.num_tokens
            too_long.append((demonstration.example_id, f"teacher's prompt of {length} tokens, uncut"))
        else:
            fitted = row.shown.fitted
            cut = fitted.num_trimmed_tokens, fitted.num_dropped_examples
            found.append(PromptPair(demonstration, row.student_ids, fitted.token_ids, row.response_ids, *cut))
    return found, too_long


def _unpacked(parts: Iterable[PackedRows], renderer: Renderer) -> Iterator[ReadRow | str]:
    return (row for part in parts for row in unpack(part, renderer.text_ids.shared))


def _good_rows(
    demonstrations: Sequence[Demonstration],
    read: Iterable[ReadRow | str],
    on_bad_row: Literal["error", "skip"],
) -> tuple[list[Demonstration], list[ReadRow], list[str]]:
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
        rows.append(row)
    if not good:
        raise DataError(f"No row is left to learn: {len(bad_rows)} are bad. The first: {bad_rows[0]}.")
    return good, rows, bad_rows


def _within_window(config: ContextConfig, window: int | None, max_new_tokens: int) -> ContextConfig:
    """Lower the limits of prompts to what the model's context window leaves them."""
    if window is None:
        return config
    room = window - max_new_tokens
    if room < 1:
        raise DataError(
            f"rollout.max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context window of "
            f"{window} positions (max_position_embeddings). Fix: --rollout.max_new_tokens {max(1, window // 2)} or "
            "less, or a model with a longer window."
        )
    return replace(
        config,
        max_teacher_tokens=min(config.max_teacher_tokens, room),
        max_student_tokens=min(config.max_student_tokens, room),
    )


def _limits(asked: ContextConfig, window: int | None, max_new_tokens: int, *, asks_teacher: bool) -> tuple[str, str]:
    """Name what limits prompts, an option or the model's context window, and what to do about it."""
    names = ("max_student_tokens", "max_teacher_tokens") if asks_teacher else ("max_student_tokens",)
    room = None if window is None else window - max_new_tokens
    own = [name for name in names if room is None or getattr(asked, name) <= room]
    parts = [f"context.{name}={getattr(asked, name)}" for name in own]
    fixes = [f"raise {' and '.join(f'context.{name}' for name in own)}"] if own else []
    if len(own) < len(names):
        parts.append(
            f"the {room} tokens that rollout.max_new_tokens={max_new_tokens} leaves of the model's context window of "
            f"{window} positions"
        )
        fixes.append("lower rollout.max_new_tokens, take a model with a longer window")
    cut = ", even with all cut that may be cut" if asks_teacher else ""
    return " and ".join(parts) + cut, ", ".join(fixes)


def _do_not_fit(too_long: Sequence[tuple[str, str]], num_rows: int, limits: str, fix: str) -> str:
    listed = ", ".join(f"{name} ({length})" for name, length in too_long[:5])
    return (
        f"{len(too_long)} of {num_rows} rows do not fit in {limits}: "
        f"{listed}{', ...' if len(too_long) > 5 else ''}. Fix: {fix}, or leave these rows out and count them: "
        "--context.on_too_long drop."
    )
