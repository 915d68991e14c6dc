"""The before / after table of ``eval/summary.json``, as cells, markdown and plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.runs.plain_table import format_plain_table, numeric_columns

COLUMNS = (
    "set",
    "kind",
    "n",
    "before [95 %]",
    "after [95 %]",
    "change",
    "mean length",
    "truncated",
    "tokens/s",
)


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table whose cells are text already."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_text(self) -> str:
        """Lay the table out in aligned plain text.

        Returns:
            Lines joined by newlines.
        """
        return format_plain_table(self.columns, self.rows)

    def to_markdown(self) -> str:
        """Write the table in GitHub's markdown.

        Returns:
            Lines joined by newlines.
        """
        rule = ["---:" if right else "---" for right in self.numeric]
        cells = [[markdown_text(cell) for cell in row] for row in (self.columns, *self.rows)]
        cells.insert(1, rule)
        return "\n".join("| " + " | ".join(row) + " |" for row in cells)

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold figures only."""
        return numeric_columns(self.columns, [[" ".join(cell.split()) for cell in row] for row in self.rows])


def before_after_table(summary: Mapping[str, Any]) -> TextTable:
    """Put the scores before and after training side by side, what is taught first.

    Args:
        summary: ``eval/summary.json``; ``before`` or ``after`` may be absent.

    Returns:
        One row a set. A dash stands for what was not measured. Length, truncation and speed are
        of the latest evaluation; length is shown as before -> after where both are known.
    """
    rows = tuple(_row(before, after) for before, after in paired_sets(summary))
    return TextTable(COLUMNS, rows)


def scores_table(stage: Mapping[str, Any]) -> TextTable:
    """List the scores of one evaluation.

    Args:
        stage: One stage of ``eval/summary.json``.

    Returns:
        One row a set.
    """
    rows = tuple(
        (
            str(entry["label"]),
            "retention" if entry.get("retention") else "task",
            _count(entry.get("n")),
            _score(entry),
            _decimal(entry.get("pass_at_k"), 3),
            _decimal(entry.get("mean_length"), 0),
            "-" if entry.get("truncated_rate") is None else f"{entry['truncated_rate']:.0%}",
            _decimal(entry.get("tokens_per_second"), 0),
        )
        for entry in stage.get("sets") or []
    )
    columns = ("set", "kind", "n", "score [95 %]", "pass@k", "mean length", "truncated", "tokens/s")
    return TextTable(columns, rows)


def paired_sets(
    summary: Mapping[str, Any],
) -> list[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]:
    """Match the sets of the two evaluations by label.

    Args:
        summary: ``eval/summary.json``.

    Returns:
        (before, after) pairs, at least one of them there; taught sets first, then retention.
    """
    before, after = (
        {entry["label"]: entry for entry in (summary.get(stage) or {}).get("sets") or []}
        for stage in ("before", "after")
    )
    pairs = [(before.get(label), after.get(label)) for label in {**before, **after}]
    return sorted(pairs, key=lambda pair: bool((pair[1] or pair[0] or {}).get("retention")))


def latest_stage(summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the scores of the trained model, and which stage they are of.

    Args:
        summary: ``eval/summary.json``.

    Returns:
        ``after``, where the run was scored at its end, else ``eval``; the stage is empty where it was not scored.
    """
    name = "after" if summary.get("after") or not summary.get("eval") else "eval"
    return name, summary.get(name) or {}


def score_notes(summary: Mapping[str, Any]) -> list[str]:
    """Collect the notes on sets, which belong under every table of their scores.

    Args:
        summary: ``eval/summary.json``.

    Returns:
        One line a set and note, each once.
    """
    stages = [stage for stage in summary.values() if isinstance(stage, Mapping)]
    entries = [entry for stage in stages for entry in stage.get("sets") or []]
    return list(dict.fromkeys(f"{entry.get('label')}: {entry['note']}" for entry in entries if entry.get("note")))


def kl_sentence(summary: Mapping[str, Any]) -> str | None:
    """Say how far the trained model has moved from the base model.

    Args:
        summary: ``eval/summary.json``.

    Returns:
        A sentence, or two where the likelihood was measured too; None where nothing was.
    """
    kl = (summary.get("after") or {}).get("kl")
    if not kl or kl.get("mean") is None:
        return None
    text = (
        f"KL(base || tuned) on general prompts: {_nats(kl, 'mean', 'low', 'high')} nats per token "
        f"({_count(kl.get('num_completions'))} completions, {_count(kl.get('num_tokens'))} tokens)."
    )
    if kl.get("nll_mean") is not None:
        nll = _nats(kl, "nll_mean", "nll_low", "nll_high")
        text += f" NLL of the same completions under the tuned model: {nll} nats per token."
    return text


def markdown_text(text: str) -> str:
    """Write a text so that Markdown shows it as it is, on one line.

    Args:
        text: The text.

    Returns:
        The text without what would end a cell or start a tag.
    """
    for sign, escaped in (("\\", "\\\\"), ("|", "\\|"), ("&", "&amp;"), ("<", "&lt;"), ("`", "\\`"), ("*", "\\*")):
        text = text.replace(sign, escaped)
    return " ".join(text.split())


def _row(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[str, ...]:
    latest = after or before or {}
    sizes = dict.fromkeys(_count(side.get("n")) for side in (before, after) if side)
    lengths = [_decimal(side.get("mean_length"), 0) for side in (before, after) if side]
    change = "-"
    if before and after and before.get("score") is not None and after.get("score") is not None:
        change = f"{after['score'] - before['score']:+.3f}"
    truncated = latest.get("truncated_rate")
    return (
        str(latest.get("label", "-")),
        "retention" if latest.get("retention") else "task",
        " -> ".join(sizes),
        _score(before),
        _score(after),
        change,
        " -> ".join(lengths),
        "-" if truncated is None else f"{truncated:.0%}",
        _decimal(latest.get("tokens_per_second"), 0),
    )


def _score(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry.get("score") is None:
        return "not checked" if entry and entry.get("n") else "-"  # answered, by a task that has no check
    if entry.get("low") is None or entry.get("high") is None:
        return f"{entry['score']:.3f}"
    return f"{entry['score']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _nats(kl: Mapping[str, Any], mean: str, low: str, high: str) -> str:
    if kl.get(low) is None or kl.get(high) is None:
        return f"{kl[mean]:.4f}"
    return f"{kl[mean]:.4f} [{kl[low]:.4f}, {kl[high]:.4f}]"


def _decimal(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
