"""The notebooks of docs/ are small, whole and linked, and they run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["compare", "own_data"]


@each_notebook
def test_a_notebook_was_run_from_top_to_bottom_without_an_error(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "image/png" in json.dumps(outputs)


@each_notebook
def test_a_notebook_is_small_and_its_links_lead_somewhere(path):
    assert path.stat().st_size < 300_000
    text = "".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert all((path.parent / link).is_file() for link in re.findall(r"\]\(([^)#]+)", text))


@each_notebook
def test_a_notebook_has_its_place_in_the_site_and_on_the_page_on_python(path):
    name = f"notebooks/{path.name}"
    assert name in (ROOT / "launch" / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"({name})" in (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
@each_notebook
def test_a_notebook_runs(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(nbformat.read(path, 4), timeout=1500, resources=where).execute()
    assert list(tmp_path.glob("runs/*/report.html"))
