"""The report of how far answers have moved from the base model's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from onpolicy_sdft.report.document import Block, Column, Part, Picture, interval, make_table, plain, share, used
from onpolicy_sdft.report.drawing import look_of, new_figure, plot_text, png_bytes, style
from onpolicy_sdft.report.origins import origin_blocks, origin_of_object, start_of
from onpolicy_sdft.report.reading import Reader

_NUM_BINS = 30


def shift_part(path: Path, name: str, reader: Reader) -> Part:
    """Report the distribution shift of runs.

    Args:
        path: Directory of ``shift.json``.
        name: What to call it.
        reader: Reads and names its files.

    Returns:
        Its part of the report.
    """
    part = Part(name, "shift")
    source = reader.name(path / "shift.json")
    shift = reader.object_or_name(path / "shift.json", "the shift", part.missing)
    origin = origin_of_object(name, shift, source)
    part.subtitle = start_of(origin.manifest)
    part.add("What was run", part.attempt(source, "what was run", partial(origin_blocks, [origin])))
    records = str(shift.get("prompts") or "records.jsonl")
    if shift and not (path / records).exists():
        part.missing.append(f"{reader.name(path / records)}: prompts and answers")
    sources = (source, reader.name(path / records)) if (path / records).exists() else (source,)
    part.add("Distribution shift", part.attempt(source, "the shift", partial(_blocks, shift, sources)))
    return part


def draw_similarities(shift: Mapping[str, Any]) -> Figure | None:
    """Draw the histograms of similarities over each other, with the mean of each run.

    Args:
        shift: ``shift.json``.

    Returns:
        The figure, or None without similarities.
    """
    known = [run for run in shift["runs"] if run.get("similarities")]
    if not known:
        return None
    everything = np.concatenate([np.asarray(run["similarities"], dtype=float) for run in known])
    ends = min(float(everything.min()), 0.99), max(float(everything.max()), 1.0)
    edges = [float(edge) for edge in np.linspace(*ends, _NUM_BINS + 1)]
    figure, axes = new_figure()
    figure.set_figheight(3.8)
    for number, run in enumerate(known):
        color, line = look_of(number)
        values = np.asarray(run["similarities"], dtype=float)
        weights = np.full(len(values), 1 / len(values))
        label = f"{plot_text(run['name'], 32)} (mean {values.mean():.3f})"
        axes.hist(values, edges, weights=weights, histtype="stepfilled", alpha=0.15, color=color)
        axes.hist(
            values, edges, weights=weights, histtype="step", color=color, linestyle=line, linewidth=1.3, label=label
        )
        axes.axvline(values.mean(), color=color, linestyle="--", linewidth=1)
    axes.set_xlabel("similarity of the answer with the base model's")
    axes.set_ylabel("share of prompts")
    style(axes)
    return figure


def _blocks(shift: Mapping[str, Any], sources: tuple[str, ...]) -> list[Block | None]:
    rows = []
    for run in shift["runs"]:
        row = {key: value for key, value in run.items() if key != "similarities"}
        row["n"] = len(run.get("similarities") or [])
        row["similarity"] = {key: run.get(key) for key in ("mean", "low", "high")}
        row["kl_interval"] = {"mean": run.get("kl"), "low": run.get("kl_low"), "high": run.get("kl_high")}
        row["nll_interval"] = {"mean": run.get("nll"), "low": run.get("nll_low"), "high": run.get("nll_high")}
        rows.append(row)
    columns = [
        Column("name", "run", plain),
        Column("n", "prompts", plain),
        Column("similarity", "similarity [95 %]", partial(_figure, digits=3)),
        Column("identical_rate", "identical answers", share),
        Column("truncated_rate", "truncated", share),
        Column("kl_interval", "KL(base || tuned), nats a token", partial(_figure, digits=4)),
        Column("nll_interval", "NLL of the base model's answers", partial(_figure, digits=4)),
        Column("path", "path", plain),
    ]
    reference, embedder = shift.get("reference", "the base model"), shift.get("embedder", "an embedder")
    caption = f"Answers of runs beside those of {reference} to the same prompts, compared by {embedder}."
    cut = shift.get("num_cut")
    notes = [f"{cut} answers are longer than the embedder reads: their beginnings were compared."] if cut else []
    table = make_table(
        "shift", "Distance from the base model", used(columns, rows), rows, sources, caption=caption, notes=notes
    )
    figure = draw_similarities(shift)
    if figure is None:
        return [table]
    text = "1: the same meaning. Dashed: the mean of each run."
    return [
        table,
        Picture("similarities", "Similarity with the base model's answers", text, png_bytes(figure), sources),
    ]


def _figure(value: Mapping[str, Any], digits: int) -> str:
    return interval(value.get("mean"), value.get("low"), value.get("high"), digits)
