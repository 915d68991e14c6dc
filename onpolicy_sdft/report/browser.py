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
    num_shown: int
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
    return Packed(text, len(records), len(rows), _notice(left_out, len(records), logs))


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


#: Shows the packed rollouts. Texts go in by textContent alone.
SCRIPT = r"""
"use strict";
(() => {
  const [
    RUN, STEP, EXAMPLE, ATTEMPT, VERDICT, REASON, TOKENS, LOGPROB, SURPRISE, LEAK,
    PROMPT, DEMONSTRATION, ROLLOUT, TARGET,
  ] = Array.from({ length: 14 }, (_, i) => i);
  const NAMES = [[PROMPT, "prompt"], [DEMONSTRATION, "demonstration"], [ROLLOUT, "rollout"], [TARGET, "target"]];
  const PER_PAGE = 20;
  const { runs, texts, rows } = JSON.parse(document.getElementById("rollout-data").textContent);
  const find = (id) => document.getElementById(id);
  const controls = {
    run: find("by-run"), verdict: find("by-verdict"), reason: find("by-reason"),
    words: find("by-words"), order: find("by-order"),
  };
  const list = find("rollout-list"), count = find("rollout-count");
  let shown = [], page = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = (value) => value.toLocaleString("en");
  const show = (value) => (value === null || value === "" ? "(none)" : String(value));

  function fill(select, field, name, label) {
    const found = new Map();
    for (const row of rows) found.set(row[field], (found.get(row[field]) || 0) + 1);
    const all = element("option", "", `all ${name} (${number(rows.length)})`);
    all.value = "all";
    select.append(all);
    const values = [...found.keys()].sort((a, b) => (a === b ? 0 : label(a) < label(b) ? -1 : 1));
    select.values = values;
    values.forEach((value, place) => {
      const option = element("option", "", `${label(value)} (${number(found.get(value))})`);
      option.value = String(place);
      select.append(option);
    });
    select.parentElement.hidden = values.length < 2;
  }

  const chosen = (select) => (select.value === "all" ? undefined : select.values[Number(select.value)]);

  function matching(words) {
    if (!words) return null;
    const places = new Set();
    texts.forEach((text, place) => { if (text.toLowerCase().includes(words)) places.add(place); });
    return places;
  }

  const ORDERS = {
    newest: [STEP, -1], oldest: [STEP, 1], longest: [TOKENS, -1], shortest: [TOKENS, 1],
    likely: [LOGPROB, -1], unlikely: [LOGPROB, 1], surprising: [SURPRISE, -1], leaking: [LEAK, -1],
  };

  function sort(places, order) {
    const [field, sign] = ORDERS[order];
    const known = (row) => typeof row[field] === "number";
    places.sort((a, b) => {
      const x = rows[a], y = rows[b];
      if (known(x) !== known(y)) return known(x) ? -1 : 1;
      const difference = known(x) ? sign * (x[field] - y[field]) : 0;
      return difference || (order === "newest" ? b - a : a - b);
    });
  }

  function update() {
    const words = controls.words.value.trim().toLowerCase();
    const run = chosen(controls.run), verdict = chosen(controls.verdict), reason = chosen(controls.reason);
    const found = matching(words);
    shown = [];
    rows.forEach((row, place) => {
      if (run !== undefined && row[RUN] !== run) return;
      if (verdict !== undefined && row[VERDICT] !== verdict) return;
      if (reason !== undefined && row[REASON] !== reason) return;
      if (found && !NAMES.some(([field]) => found.has(row[field]))
        && !String(row[EXAMPLE]).toLowerCase().includes(words)) return;
      shown.push(place);
    });
    sort(shown, controls.order.value);
    page = 0;
    draw();
  }

  function textOf(row, field) {
    const text = texts[row[field]];
    if (field === TARGET && text) {
      for (const [other, name] of [[ROLLOUT, "rollout"], [DEMONSTRATION, "demonstration"]]) {
        if (row[other] >= 0 && texts[row[other]].trim() === text.trim()) return `(the ${name})`;
      }
    }
    return text;
  }

  function card(row) {
    const made = element("div", "rollout");
    made.dataset.verdict = show(row[VERDICT]);
    made.dataset.reason = show(row[REASON]);
    made.dataset.tokens = show(row[TOKENS]);
    const head = element("p");
    head.append(element("span", row[VERDICT] === "keep" ? "keep" : "other", show(row[VERDICT])));
    if (row[REASON]) head.append(` (${row[REASON]})`);
    const facts = [`step ${show(row[STEP])}`, `example ${show(row[EXAMPLE])}`];
    if (runs.length > 1) facts.unshift(runs[row[RUN]]);
    if (row[ATTEMPT]) facts.push(`attempt ${row[ATTEMPT]}`);
    if (typeof row[TOKENS] === "number") facts.push(`${number(row[TOKENS])} tokens`);
    if (typeof row[LOGPROB] === "number") facts.push(`mean log-prob ${row[LOGPROB].toFixed(2)} nats`);
    if (typeof row[SURPRISE] === "number") facts.push(`surprise ${row[SURPRISE].toFixed(2)}`);
    if (typeof row[LEAK] === "number") facts.push(`leak ${row[LEAK].toFixed(2)}`);
    head.append(" ", element("span", "soft", facts.join(", ")));
    const grid = element("div", "texts");
    for (const [field, name] of NAMES) {
      if (row[field] < 0) continue;
      const box = element("div");
      box.append(element("span", "soft", name), element("pre", "", textOf(row, field)));
      grid.append(box);
    }
    made.append(head, grid);
    return made;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    const start = page * PER_PAGE, some = shown.slice(start, start + PER_PAGE);
    const of = some.length ? `, ${number(start + 1)} to ${number(start + some.length)} on this page` : "";
    count.textContent = `${number(shown.length)} of ${number(rows.length)} rollouts${of}`;
    for (const each of document.querySelectorAll(".rollout-page")) each.textContent = `page ${page + 1} of ${pages}`;
    for (const each of document.querySelectorAll(".rollout-back")) each.disabled = page === 0;
    for (const each of document.querySelectorAll(".rollout-next")) each.disabled = page + 1 >= pages;
    list.replaceChildren(...some.map((place) => card(rows[place])));
  }

  const turn = (by) => () => {
    page += by;
    draw();
    find("rollouts").scrollIntoView();
  };

  fill(controls.run, RUN, "runs", (value) => runs[value]);
  fill(controls.verdict, VERDICT, "verdicts", show);
  fill(controls.reason, REASON, "reasons", show);
  for (const each of [controls.run, controls.verdict, controls.reason, controls.order]) {
    each.addEventListener("change", update);
  }
  controls.words.addEventListener("input", update);
  for (const each of document.querySelectorAll(".rollout-back")) each.addEventListener("click", turn(-1));
  for (const each of document.querySelectorAll(".rollout-next")) each.addEventListener("click", turn(1));
  update();
})();
"""
