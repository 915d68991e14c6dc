"""The rollouts inside the page: what of them fits, and how they are packed for the script that shows them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.report.document import RolloutLog

#: Fields of a packed row; texts are places in the list of texts, -1 where there is none.
FIELDS = (
    "run", "step", "example_id", "attempt", "verdict", "reason", "num_tokens", "logprob_mean", "surprise", "leak",
    "prompt", "demonstration", "rollout", "target",
)  # fmt: skip
_NUM_FIGURES = 10
_TEXTS = FIELDS[_NUM_FIGURES:]
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Packed:
    """Rollouts as the page holds them."""

    text: str  # JSON that can stand in a script element
    num_recorded: int
    notice: str  # which rows are left out and where they are; empty where all are there


@dataclass(slots=True)
class _Room:
    """Texts that are in the page already, each once, and how many bytes are left."""

    texts: dict[str, int]
    parts: list[str]
    num_bytes: int

    def add(self, run: int, record: Mapping[str, Any]) -> str | None:
        """Return a record as a packed row, its texts added; None, and nothing changed, where it does not fit."""
        texts = [_text(record.get(name)) for name in _TEXTS]
        new = [text for text in dict.fromkeys(texts) if text is not None and text not in self.texts]
        escaped = [script_json(text) for text in new]
        start = len(self.texts)
        place = {text: start + i for i, text in enumerate(new)}
        figures = [run, *(_figure(record.get(name)) for name in FIELDS[1:_NUM_FIGURES])]
        places = [-1 if t is None else place[t] if t in place else self.texts[t] for t in texts]
        row = script_json([*figures, *places])
        size = len(row.encode()) + 1 + sum(len(text.encode()) + 1 for text in escaped)
        if size > self.num_bytes:
            return None
        self.num_bytes -= size
        self.texts |= place
        self.parts += escaped
        return row


def pack(logs: Sequence[RolloutLog], max_bytes: int) -> Packed:
    """Pack as many rollouts as fit: of each verdict in turn the newest.

    Args:
        logs: Of each run.
        max_bytes: What they may take in the page.

    Returns:
        The packed rollouts, in the order they were recorded, and what was left out.
    """
    records = [(run, place) for run, log in enumerate(logs) for place in range(len(log.records))]
    room = _Room({}, [], max_bytes - len(script_json([log.run for log in logs]).encode()) - 100)
    rows: dict[tuple[int, int], str] = {}
    left_out: Counter[str] = Counter()
    for run, place in _newest_first(logs, records):
        record = logs[run].records[place]
        row = room.add(run, record)
        if row is None:
            left_out[str(record.get("verdict", ""))] += 1
        else:
            rows[run, place] = row
    names = script_json([log.run for log in logs])
    packed = ",\n".join(rows[key] for key in sorted(rows))
    text = f'{{"runs": {names},\n"texts": [{",".join(room.parts)}],\n"rows": [{packed}]}}'
    return Packed(text, len(records), _notice(left_out, len(records), logs))


def script_json(value: Any) -> str:
    """Write JSON that no HTML parser sees a tag in, and that UTF-8 can hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _newest_first(logs: Sequence[RolloutLog], records: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Order rollouts so that verdicts take turns, each its newest first."""

    def age(key: tuple[int, int]) -> tuple[float, int]:
        step = logs[key[0]].records[key[1]].get("step")
        return (-step if isinstance(step, int) else 0, -key[1])

    by_verdict: dict[str, list[tuple[int, int]]] = {}
    for run, place in sorted(records, key=age):
        by_verdict.setdefault(str(logs[run].records[place].get("verdict", "")), []).append((run, place))
    longest = max(map(len, by_verdict.values()), default=0)
    return [keys[turn] for turn in range(longest) for keys in by_verdict.values() if turn < len(keys)]


def _notice(left_out: Mapping[str, int], num_recorded: int, logs: Sequence[RolloutLog]) -> str:
    if not left_out:
        return ""
    counts = ", ".join(f"{number:,} {verdict or 'without verdict'}" for verdict, number in sorted(left_out.items()))
    files = ", ".join(log.source for log in logs[:3]) + (f" and {len(logs) - 3} more" if len(logs) > 3 else "")
    return (
        f"{sum(left_out.values()):,} of the {num_recorded:,} recorded rollouts are left out to keep this page small "
        f"({counts}): the oldest of each verdict, and texts too long to fit. All of them are in {files}."
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _figure(value: Any) -> Any:
    """Keep names and finite numbers; show anything else as text."""
    if isinstance(value, float):
        return round(value, 4) if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, int | str) else str(value)
