"""The results as Markdown: targets first, then what every part found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.parts import correct, kernels, ragged, speed, step

#: Results of parts by name.
Parts = dict[str, dict[str, Any]]
_FEW_ROWS = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be."""

    text: str
    find: Callable[[Parts], float | None]  # the figure; None where it was not measured
    most: float | None = None
    least: float | None = None
    look_at: str = ""  # the profile that says where the time goes

    def line(self, parts: Parts) -> list[str]:
        """Return the cells of its row."""
        found = self.find(parts)
        if found is None:
            return [self.text, "not measured", "", self.look_at]
        met = (self.most is None or found <= self.most) and (self.least is None or found >= self.least)
        return [self.text, show(found), "yes" if met else "NO", "" if met else self.look_at]


def markdown(facts: dict[str, Any], parts: Parts) -> str:
    """Return the whole page."""
    lines = ["# Check on a GPU", "", *(f"* {key}: {value}" for key, value in facts.items()), ""]
    lines += table(["target", "measured", "met", "where the time goes"], [each.line(parts) for each in TARGETS])
    states = [
        [name, part["state"], show(part.get("seconds", "")), show(part.get("limit", ""))]
        for name, part in parts.items()
    ]
    lines += ["## Parts", "", *table(["part", "state", "seconds", "limit"], states)]
    for name, part in parts.items():
        if part["error"]:
            lines += [f"### {name}: {part['state']}", "", "```", part["error"].rstrip(), "```", ""]
        for title, rows in part["tables"].items():
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            cells = [[row, *(show(values.get(column, "")) for column in columns)] for row, values in rows.items()]
            lines += [f"## {title}", "", *table([name, *columns], cells)]
    return "\n".join(lines)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line([each.replace("_", " ") for each in head]), "|" + "---|" * len(head), *map(line, rows), ""]


def show(value: Any) -> str:
    """Return a figure for people."""
    if isinstance(value, float):
        return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def figures(parts: Parts, part: str, title: str, column: str, rows: list[str]) -> list[float] | None:
    """Return a column's figures in some rows; None unless all are there."""
    found = parts.get(part, {}).get("tables", {}).get(title, {})
    values = [found.get(row, {}).get(column) for row in rows]
    return values if values and all(value is not None for value in values) else None


def _step_ms(name: str, *rows: int) -> Callable[[Parts], float | None]:
    names = [f"{name}, {each} rows" for each in rows]
    return lambda parts: max(figures(parts, "speed", speed.TABLE, "step_ms", names) or [], default=None)


def _of_floor(name: str, *rows: int) -> Callable[[Parts], float | None]:
    names = [f"{name}, {each} rows" for each in rows]
    return lambda parts: min(figures(parts, "speed", speed.TABLE, "of_floor", names) or [], default=None)


def _ragged(parts: Parts) -> float | None:
    found = figures(parts, "ragged", ragged.TABLE, "tokens_a_second", ["256 slots"])
    return found[0] if found else None


def _sdft_by_sft(name: str) -> Callable[[Parts], float | None]:
    def find(parts: Parts) -> float | None:
        found = figures(parts, "step", step.TABLE, "ms_a_loss_token", [f"{name}, sdft", f"{name}, sft"])
        return found[0] / found[1] if found else None

    return find


def _packed(spread: int) -> Callable[[Parts], float | None]:
    rows = [f"{name}, lengths spread 1 to {spread}" for name in ("135M", "1.5B")]
    return lambda parts: min(figures(parts, "step", step.PACKED, "times_as_fast", rows) or [], default=None)


def _kernels(parts: Parts) -> float | None:
    found = figures(parts, "kernels", kernels.TABLE, "kernels", ["135M, 1 rows"])
    return found[0] if found else None


def _texts(*variants: str) -> Callable[[Parts], float | None]:
    """Return the share of texts that are the same, over all distributions."""
    rows = [f"{params}, {variant}" for params in correct.PARAMS for variant in variants]

    def find(parts: Parts) -> float | None:
        same = figures(parts, "correct", correct.TEXTS, "same", rows)
        of = figures(parts, "correct", correct.TEXTS, "of", rows)
        return sum(same) / sum(of) if same and of else None

    return find


def _logprobs(parts: Parts) -> float | None:
    rows = [f"{params}, the model's own forward" for params in correct.PARAMS]
    return max(figures(parts, "correct", correct.TEXTS, "logprob_difference", rows) or [], default=None)


_STEP = f"the tables '{kernels.TABLE}'"
_SECONDS = f"the parts of a step in '{step.TABLE}'"
TARGETS = (
    Target("float32: share of texts with graphs = without", _texts("without graphs"), least=1.0),
    Target("float32: share of texts with drafts = without", _texts("with drafts"), least=1.0),
    Target("float32: log-probabilities within 1e-4 of the model's own", _logprobs, most=1e-4),
    Target("135M: a decode step up to 64 rows <= 1.1 ms", _step_ms("135M", *_FEW_ROWS), most=1.1, look_at=_STEP),
    Target("0.5B: a decode step up to 64 rows <= 1.1 ms", _step_ms("0.5B", *_FEW_ROWS), most=1.1, look_at=_STEP),
    Target("7B: bandwidth floor / step up to 64 rows >= 0.75", _of_floor("7B", *_FEW_ROWS), least=0.75, look_at=_STEP),
    Target("7B: a decode step of 256 rows <= 6.5 ms", _step_ms("7B", 256), most=6.5, look_at=_STEP),
    Target("135M: kernels a decode step <= 350", _kernels, most=350, look_at=_STEP),
    Target("256 ragged requests of 0.5B >= 35,000 tokens/s", _ragged, least=35_000, look_at=f"'{ragged.TABLE}'"),
    Target("135M: sdft / sft, time a learned token <= 1.6", _sdft_by_sft("135M"), most=1.6, look_at=_SECONDS),
    Target("1.5B: sdft / sft, time a learned token <= 1.6", _sdft_by_sft("1.5B"), most=1.6, look_at=_SECONDS),
    Target("packed / padded learning, equal lengths >= 1", _packed(1), least=1.0, look_at=f"'{step.PACKED}'"),
    Target("packed / padded, lengths spread 1 to 8 >= 1.3", _packed(8), least=1.3, look_at=f"'{step.PACKED}'"),
)
