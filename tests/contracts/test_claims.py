"""Scores of docs/results.md, the README and other pages are those of committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from benchmarks import claims

ROOT = Path(__file__).parents[2]
SCORE = re.compile(r"(?<![\w.])[01]\.\d{3}(?!\d)")
#: Results of sweeps, grids and comparisons: what is claimed of learning and forgetting.
LEARNED = ("functions", "compare_", "decide_", "forgetting", "methods", "openfunctions", "recipe_")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Return an empty folder that stands in for benchmarks/results."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    for cached in (claims.tables, claims.result):
        cached.cache_clear()
    yield tmp_path
    for cached in (claims.tables, claims.result):
        cached.cache_clear()


def test_pages_with_figures_are_fresh():
    for path, text in claims.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m benchmarks.claims"


def test_no_score_is_typed():
    """Not in the file of claims, and not in the README beside what is written by the script."""
    typed = claims.FIGURE.sub("", claims.CLAIMS.read_text(encoding="utf-8"))
    outside = claims.BLOCK.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert not SCORE.findall(typed)
    assert not SCORE.findall(outside)


def test_every_result_of_learning_has_a_claim():
    parts = yaml.safe_load(claims.CLAIMS.read_text(encoding="utf-8"))["sections"]
    claimed = {claim.get("file", part.get("file")) for part in parts for claim in part["claims"]}
    there = {path.stem for path in claims.RESULTS.glob("*.md") if path.stem.startswith(LEARNED)}
    assert there == claimed


def test_ids_are_named_once_and_those_that_pages_name_are_there():
    parts = yaml.safe_load(claims.CLAIMS.read_text(encoding="utf-8"))["sections"]
    ids = [claim["id"] for part in parts for claim in part["claims"]]
    assert len(ids) == len(set(ids))
    kinds = "|".join({each.rpartition("-")[0] for each in ids})
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert set(re.findall(rf"`((?:{kinds})-\d+)`", path.read_text(encoding="utf-8"))) <= set(ids), path.name


def test_figures_are_read_by_row_and_column_and_by_path(results):
    (results / "a.md").write_text(
        "| recipe | task | eval/kl |\n|---|---|---|\n| sft | 0.391 ± 0.037 (0.363 to 0.433) | 0.04418 |\n\n"
        "Before training: task 0.190, short_facts 0.433.\n\n"
        "| point | task - start |\n|---|---|\n| sft | +0.201 (+0.151 to +0.252) |\n"
    )
    (results / "a.json").write_text(
        '{"rows": [{"seed": 0, "lr": 0.0003}, {"seed": 1, "x": {"mean": 1, "low": 0, "high": 2}}]}'
    )
    assert claims.fill("{a::sft::task} from {a::start::task}, KL {a::sft::eval/kl}") == "0.391 from 0.190, KL 0.044"
    assert claims.fill("{a::sft::task - start}; {a::sft::task - start::mean}") == "+0.201 (+0.151 to +0.252); +0.201"
    assert claims.fill("{a.json::rows[seed=0]/lr}, {a.json::rows[seed=1]/x}") == "3e-4, 1 (0 to 2)"


@pytest.mark.parametrize(
    "figure",
    [
        "{b::sft::task}",
        "{a::sft::none}",
        "{a::none::task}",
        "{a::sft::task}",
        "{b.json::rows}",
        "{a.json::rows[seed=0]}",
    ],
)
def test_a_figure_that_no_result_has_is_an_error(results, figure):
    (results / "a.md").write_text("| recipe | task |\n|---|---|\n| sft | - |\n")  # a run that has not been made
    (results / "a.json").write_text('{"rows": [{"seed": 0}, {"seed": 0}]}')
    with pytest.raises(claims.ClaimError):
        claims.fill(figure)
