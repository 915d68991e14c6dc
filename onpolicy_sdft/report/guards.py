"""What watched runs: the verdict on the model that was left, alarms, and the gate's scores over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onpolicy_sdft.report.document import Block, Column, Picture, Sentence, count, make_table, plain, used
from onpolicy_sdft.report.drawing import CYCLE, RED, finish, from_zero, new_figure, plot_text, png_bytes
from onpolicy_sdft.report.reading import Member, Reader


def guard_blocks(members: Sequence[Member], reader: Reader) -> list[Block | None]:
    """Show verdicts, alarms and the gate's checks; nothing of runs that have none.

    Args:
        members: The runs.
        reader: Names their files.
    """
    return [
        *(_verdict(member, reader) for member in members),
        _alarms(members, reader),
        _checks(members, reader),
        *(_picture(member, reader, len(members) > 1) for member in members),
    ]


def _verdict(member: Member, reader: Reader) -> Sentence | None:
    verdict = member.records.result.get("verdict")
    if not verdict:
        return None
    sources = reader.sources([member], "result.json")
    return Sentence("verdict", f"{member.name}: {verdict['text']}.", verdict, sources)


def _alarms(members: Sequence[Member], reader: Reader) -> Block | None:
    rows = [{"run": member.name, **alarm} for member in members for alarm in member.records.alarms]
    columns = (
        Column("run", "run", plain),
        Column("step", "step", count),
        Column("since", "since step", count),
        Column("key", "metric", plain),
        Column("before", "from", plain),
        Column("value", "to", plain),
        Column("text", "what was said", str),
    )
    sources = reader.sources(members, "alarms.jsonl")
    return make_table("alarms", "Alarms", used(columns, rows), rows, sources)


def _checks(members: Sequence[Member], reader: Reader) -> Block | None:
    rows: list[dict[str, Any]] = []
    for member in members:
        for check in member.records.gate:
            scores = {f"score {label}": score for label, score in check["scores"].items()}
            rows.append({"run": member.name, **check, "outcome": check["action"] or "passed", **scores})
    labels = dict.fromkeys(key for row in rows for key in row if key.startswith("score "))
    columns = [Column("run", "run", plain), Column("step", "step", count), Column("why", "why", plain)]
    columns += [Column(key, plot_text(key.removeprefix("score ")), lambda score: f"{score:.3f}") for key in labels]
    columns.append(Column("outcome", "outcome", plain))
    caption = "Share of right answers from the bare prompt, greedy, on rows that are never trained on."
    sources = reader.sources(members, "gate.jsonl")
    return make_table("gate", "Gate", columns, rows, sources, caption=caption)


def _picture(member: Member, reader: Reader, is_one_of_several: bool) -> Picture | None:
    checks = member.records.gate
    if len(checks) < 2:
        return None
    figure, axes = new_figure()
    steps = [check["step"] for check in checks]
    for number, label in enumerate(checks[0]["scores"]):
        scores = [check["scores"][label] for check in checks]
        axes.plot(steps, scores, "o-", color=CYCLE[number % len(CYCLE)], label=plot_text(label))
    failed = [check["step"] for check in checks if not check["passed"]]
    if failed:
        axes.plot(
            failed, [0.02] * len(failed), "x", color=RED, label="worse than the start",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_ylabel("score")
    from_zero(axes)
    name, title = ("gate", "Gate") if not is_one_of_several else (f"gate-{member.name}", f"Gate of {member.name}")
    caption = "Scores on the rows of the gate over the steps; step 0 is the start."
    picture = png_bytes(finish(figure, axes))
    return Picture(name, title, caption, picture, reader.sources([member], "gate.jsonl"))
