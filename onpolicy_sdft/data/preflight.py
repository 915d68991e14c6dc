"""What the lengths of a data set look like, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onpolicy_sdft.data.prepare import Prepared
from onpolicy_sdft.errors import DataError


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Quantiles and a histogram of one kind of length, in tokens."""

    name: str
    smallest: int
    median: int
    p95: int
    largest: int
    histogram: str  # one character a bin, from smallest to largest


def describe_lengths(prepared: Prepared, max_new_tokens: int) -> tuple[list[LengthRow], list[str]]:
    """Summarise the lengths of both prompts and of the demonstrations.

    Args:
        prepared: The data set.
        max_new_tokens: Longest rollout, for the warning.

    Returns:
        Rows of a table, and warnings to show before anything is computed.
    """
    lengths = {
        "bare prompt (student)": [len(pair.student_ids) for pair in prepared.pairs],
        "prompt + demonstration (teacher)": [len(pair.teacher_ids) for pair in prepared.pairs],
        "demonstration": [len(pair.response_ids) for pair in prepared.pairs],
    }
    rows = [_row(name, found) for name, found in lengths.items() if any(found)]  # a method may have no teacher
    warnings = [*prepared.notes]
    if prepared.bad_rows:
        warnings.append(
            f"{len(prepared.bad_rows)} rows are left out, the chat template does not write them as they are "
            f"(data.on_bad_row=skip). The first: {prepared.bad_rows[0]}"
        )
    for missing, prompt, fix in (
        (prepared.left_out_bare, "bare prompt", "the chat_template of the model's tokenizer, or other rows"),
        (prepared.left_out, "teacher's prompt", "--context.template reference shows demonstrations as text"),
    ):
        if missing:
            num, given = (sum(getattr(each, name) for each in missing) for name in ("num_characters", "num_given"))
            warnings.append(
                f"the chat template left {num} of {given} characters out of the {prompt}, in {len(missing)} rows: "
                f"{_some([each.example_id for each in missing])}. Fix: {fix}"
            )
    if prepared.trimmed_ids:
        warnings.append(
            f"{len(prepared.trimmed_ids)} demonstrations are cut to fit context.max_teacher_tokens: "
            f"{_some(prepared.trimmed_ids)}"
        )
    fewer = [v.demonstration.example_id for v in prepared.pairs if v.num_dropped_examples]
    if fewer:
        warnings.append(
            f"{len(fewer)} teacher contexts show fewer than context.num_demonstrations to fit: {_some(fewer)}"
        )
    if prepared.dropped_ids:
        warnings.append(
            f"{len(prepared.dropped_ids)} rows are left out, they do not fit: {_some(prepared.dropped_ids)}"
        )
    learned = [each for each in prepared.pairs if each.demonstration.response]
    if len(learned) < len(prepared.pairs):
        warnings.append(
            f"{len(prepared.pairs) - len(learned)} rows have no response: where a rollout is refused, nothing is "
            "learned of them"
        )
    longer = [v.demonstration.example_id for v in learned if len(v.response_ids) > max_new_tokens]
    if longer:
        warnings.append(
            f"{len(longer)} demonstrations are longer than rollout.max_new_tokens={max_new_tokens}, their "
            f"rollouts will be truncated: {_some(longer)}"
        )
    return rows, warnings


def refuse_beyond_window(prepared: Prepared, max_new_tokens: int, window: int | None) -> None:
    """Refuse prompts that do not fit into the model's context window together with what is written after them.

    Args:
        prepared: The data set.
        max_new_tokens: Longest rollout.
        window: Positions the model has; None when it does not say.

    Raises:
        DataError: With the longest example, the numbers and the way out.
    """
    for pair in prepared.pairs:
        longest = max(
            len(pair.teacher_ids) + max_new_tokens,
            len(pair.student_ids) + max(max_new_tokens, len(pair.response_ids) if pair.demonstration.response else 0),
        )
        if window is not None and longest > window:
            raise DataError(
                f"Example {pair.demonstration.example_id} needs {longest} positions with its answer, the model has "
                f"{window}. Lower context.max_teacher_tokens, context.max_student_tokens or rollout.max_new_tokens, "
                "and drop the rows that do not fit: --context.on_too_long drop."
            )


def _row(name: str, lengths: Sequence[int]) -> LengthRow:
    counts, _ = np.histogram(lengths, bins=16)
    bars = " ▁▂▃▄▅▆▇█"
    scaled = np.ceil(counts / counts.max() * (len(bars) - 1)).astype(int)
    smallest, median, p95, largest = np.quantile(lengths, [0, 0.5, 0.95, 1]).round().astype(int).tolist()
    return LengthRow(name, smallest, median, p95, largest, "".join(bars[level] for level in scaled))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (f", ... ({len(ids)} in all)" if len(ids) > 5 else "")
