"""Write docs/results.md and the figures of other pages from what was measured.

`benchmarks/claims.yaml` says what is claimed and which result each figure is in; no score is typed there. A figure is
named in one of two ways, and a last part `::mean` leaves its interval out:

{FILE::ROW::COLUMN}  a cell of a table of benchmarks/results/FILE.md; ROW is the first cells of the row, with / between
                     them, or `start` for the scores before training; COLUMN `*` is all cells behind the first
{FILE.json::PATH}    a value of benchmarks/results/FILE.json; [key=value,...] picks one item of a list

Pages other than docs/results.md have such text between `<!-- claims: NAME -->` and `<!-- /claims -->`.

python -m benchmarks.claims
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLAIMS = ROOT / "benchmarks" / "claims.yaml"
MADE = "<!-- Made by `python -m benchmarks.claims` from benchmarks/claims.yaml and benchmarks/results; do not edit. -->"
BLOCK = re.compile(r"(?<=<!-- claims: )([\w-]+)( -->\n\n)(.*?\n)(?=\n<!-- /claims -->)", re.DOTALL)
FIGURE = re.compile(r"\{([^{}]+?)::([^{}]+)\}")
#: Options that all runs of a sweep have, as far as a reader needs them.
COMMON = (
    "model.name", "optim.lr", "train.batch_size", "train.max_steps", "rollout.temperature", "context.template",
    "rollout.max_new_tokens", "screening.check",
)  # fmt: skip


class ClaimError(Exception):
    """A claim names a figure that no result has, or more than one."""


# What is in the results.


@functools.cache
def tables(file: str) -> list[list[list[str]]]:
    """Return the tables of a result's Markdown, each as rows of cells, the header first."""
    path = RESULTS / f"{file}.md"
    if not path.exists():
        raise ClaimError(f"{path.name} is not in benchmarks/results")
    found: list[list[list[str]]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            found.append([])
        elif not set(line) <= set("|-: "):
            found[-1].append([cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [table for table in found if table]


def cell(file: str, row: str, column: str) -> str:
    """Return the one cell of a result's tables that has this row and this column."""
    if row == "start":
        text = (RESULTS / f"{file}.md").read_text(encoding="utf-8")
        before = re.search(r"Before training: (.*)\.\n", text)
        scores = dict(each.rsplit(" ", 1) for each in before.group(1).split(", ")) if before else {}
        found = [scores[column]] if column in scores else []
    else:
        matches = [
            [
                " | ".join(cells[1:]) if column == "*" else cells[table[0].index(column)]
                for cells in table[1:]
                if row == cells[0] or row.split("/") == cells[: row.count("/") + 1]
            ]
            for table in tables(file)
            if column == "*" or column in table[0]
        ]
        found = next((each for each in matches if len(each) == 1), [])
    if not found or found[0] == "-":
        raise ClaimError(f"{file}.md has no one cell {column!r} in a row {row!r}")
    return re.sub(r"^(\S+) ± .*", r"\1", found[0])  # of runs with several seeds the mean stands first


@functools.cache
def result(file: str) -> Any:
    """Return what a result's JSON file holds."""
    path = RESULTS / f"{file}.json"
    if not path.exists():
        raise ClaimError(f"{path.name} is not in benchmarks/results")
    return json.loads(path.read_text(encoding="utf-8"))


def value(file: str, path: str) -> Any:
    """Return the value at a path of a result's JSON file."""
    here = result(file)
    for part in path.split("/"):
        name, _, picked = part.partition("[")
        try:
            here = here[name]
            if picked:
                wanted = [each.split("=") for each in picked.rstrip("]").split(",")]
                (here,) = [item for item in here if all(str(item[key]) == want for key, want in wanted)]
        except (KeyError, TypeError, ValueError) as error:
            raise ClaimError(f"{file}.json has no one value at {path}") from error
    return here


def show(number: Any) -> str:
    """Return a value of a JSON file as text: a number, or one with its interval."""
    if isinstance(number, Mapping):
        middle = number["value"] if "value" in number else number["mean"]
        return f"{show(middle)} ({show(number['low'])} to {show(number['high'])})"
    if isinstance(number, float):
        return f"{round(number, 3) + 0.0:.3f}"  # + 0.0: no -0.000
    return f"{number:,}" if isinstance(number, int) else str(number)


def show_metric(text: str) -> str:
    """Return a metric of a sweep's table with three decimals, with four where it is small."""
    return f"{float(text):.{3 if abs(float(text)) >= 0.01 else 4}f}"


def show_rate(rate: float) -> str:
    """Return a learning rate as it is given on the command line."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def fill(text: str) -> str:
    """Replace the names of figures by the figures."""

    def figure(match: re.Match[str]) -> str:
        file, *names = match.group(0)[1:-1].split("::")
        if file.endswith(".json"):
            found = value(file.removesuffix(".json"), names[0])
            shown = show_rate(found) if names[0].startswith("chosen/") or names[0].endswith("/lr") else show(found)
        else:
            shown = cell(file, names[0], names[1])
            shown = show_metric(shown) if re.match("eval/|screen/|rollout/", names[1]) else shown
        return shown.split(" ")[0] if names[-1] == "mean" else shown

    return FIGURE.sub(figure, text)


# How a run was made.


@functools.cache
def sweep_options(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the options of all runs of a sweep, and those of each of its points by label."""
    sweep = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    options: dict[str, Any] = {}
    for base in sweep.get("base", []):
        for section, names in yaml.safe_load((ROOT / base).read_text(encoding="utf-8")).items():
            options |= {f"{section}.{name}": given for name, given in names.items()}
    return options | sweep["options"], {point["label"]: point for point in sweep["axes"]["recipe"]}


def show_options(options: Iterable[tuple[str, Any]]) -> str:
    """Return options with their values; three or more reasons to refuse a text with one verdict are one entry."""
    verdicts = ("keep", "fallback", "drop")
    shown = {name: given for name, given in options if name != "label"}
    for verdict in verdicts:
        same = [name for name, given in shown.items() if name.startswith("screening.") and given == verdict]
        if len(same) > 2:
            shown = {name: given for name, given in shown.items() if name not in same} | {"screening.*": verdict}
    return ", ".join(
        f"`{name}` {show_rate(given) if name == 'optim.lr' else str(given).lower()}" for name, given in shown.items()
    )


def set_size(sweep: str, label: str) -> int:
    """Return how many questions of a set a sweep asks."""
    options, _ = sweep_options(sweep)
    sizes = {each["label"]: each["data"]["limit"] for each in options["eval.sets"]}
    return int(sizes.get(label) or options["eval.limit"])


# The page.


def effect(claim: Mapping[str, Any]) -> str:
    """Return the figures of a sweep's point: scores with differences, distance, learned tokens."""
    file, row = claim["file"], claim["row"]
    lines = []
    for name, label in ((claim["task_name"], claim["task"]), ("facts", "short_facts")):
        line = f"{name} {cell(file, row, label)} from {cell(file, 'start', label)}"
        line += f", {cell(file, row, f'{label} - start')}"
        for other in claim.get("against", ["sft"]):
            if other != row:
                line += f"; against `{other}` {cell(file, row, f'{label} - {other}')}"
        lines.append(line)
    lines.append(f"KL {show_metric(cell(file, row, 'eval/kl'))}; {cell(file, row, 'train/total_loss_tokens')} tokens")
    return "<br>".join(lines)


def claim_row(claim: Mapping[str, Any]) -> list[str]:
    """Return the cells of a claim."""
    file, sweep = claim["file"], claim.get("sweep", "")
    setting = claim.get("setting") or show_options(sweep_options(sweep)[1][claim["row"]].items())
    setting += f", {claim['beside']}" if "beside" in claim else ""
    seeds = claim.get("seeds") or cell(file, claim["row"], "seeds")
    n = claim.get("n") or f"{set_size(sweep, claim['task'])}, {set_size(sweep, 'short_facts')}"
    figures = fill(claim["effect"]) if "effect" in claim else effect(claim)
    cells = [claim["id"], claim["says"], setting, figures, f"{seeds}; {n}", claim["status"], source(file)]
    return [" ".join(fill(str(each)).split()).replace("|", "\\|") for each in cells]


def source(file: str) -> str:
    """Return where a result was measured: its file, the commits, the hardware."""
    facts = result(file)
    if "hardware" in facts:
        commits = list(facts.get("commits") or {row["git"]["commit"]: 0 for row in facts["rows"] if "git" in row})
        hardware = f"{facts['hardware']['num_usable_cores']} cores, {facts['hardware']['cpu']}"
    else:  # the result of a comparison: its report has a row for each sequence
        head = next(table for table in tables(file) if table[0][:4] == ["sequence", "started", "commit", "hardware"])
        commits = list(dict.fromkeys(row[2] for row in head[1:]))
        hardware = ", ".join(dict.fromkeys(row[3] for row in head[1:]))
    short = ", ".join(commit[:7] for commit in commits)
    return f"[{file}](../benchmarks/results/{file}.md); {short}; {hardware.replace('(R)', '')}"


def section(part: Mapping[str, Any]) -> list[str]:
    """Return the lines of a data set: what its runs have in common, its claims, notes."""
    options, _ = sweep_options(part["common"]) if "common" in part else ({}, {})
    common = show_options((name, options[name]) for name in COMMON if name in options)
    about = " ".join(filter(None, [part.get("about", "").strip(), common and f"{common}."]))
    lines = [f"## {part['title']}", "", *([fill(about), ""] if about else [])]
    lines += ["| id | claim | setting | effect | seeds; n | status | result |", "|---" * 7 + "|"]
    defaults = {key: part[key] for key in ("task", "task_name", "sweep", "file", "n", "against") if key in part}
    lines += ["| " + " | ".join(claim_row(defaults | claim)) + " |" for claim in part["claims"]]
    return [*lines, "", *([fill(part["notes"]).strip(), ""] if "notes" in part else [])]


def commands(claims: Mapping[str, Any]) -> list[str]:
    """Return the rows of the table of commands: each with the results it gave, in the order of the page."""
    parts = claims["sections"]
    files = dict.fromkeys(claim.get("file", part.get("file")) for part in parts for claim in part["claims"])
    gave: dict[str, list[str]] = {}
    for file in files:
        command = claims["commands"].get(file) or " ".join(result(file)["command"])
        gave.setdefault(command, []).append(file)
    return [f"| {', '.join(names)} | `{command}` |" for command, names in gave.items()]


def results_page(claims: Mapping[str, Any]) -> str:
    """Return docs/results.md."""
    lines = ["# Results", "", MADE, "", fill(claims["summary"]).strip(), ""]
    for part in claims["sections"]:
        lines += section(part)
    lines += ["## Commands", "", claims["measured"].strip(), "", "| result | command |", "|---|---|", *commands(claims)]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return every page that has figures of claims, as it should be."""
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    made = {ROOT / "docs" / "results.md": results_page(claims)}
    used = set()

    def block(match: re.Match[str]) -> str:
        used.add(match.group(1))
        return f"{match.group(1)}{match.group(2)}{fill(claims['blocks'][match.group(1)]).rstrip()}\n"

    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]):
        text = path.read_text(encoding="utf-8")
        if path not in made and BLOCK.search(text):
            made[path] = BLOCK.sub(block, text)
    if unused := set(claims["blocks"]) - used:
        raise ClaimError(f"no page has the marks of {', '.join(sorted(unused))}")
    return made


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
