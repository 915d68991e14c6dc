"""Pages of docs/ say what the program does: made pages are fresh, links lead somewhere, the README stays short."""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from onpolicy_sdft.cli.reference import PAGES, PARTS, filled
from onpolicy_sdft.tasks.stated_number import final_number

ROOT = Path(__file__).parents[2]
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Return the names of a page's headings, as links write them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_from_the_program_is_fresh(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), "python -m onpolicy_sdft.cli.reference docs"


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_page_made_from_the_program_is_fresh(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    part = PARTS[name]()
    assert part in page, "python -m onpolicy_sdft.cli.reference docs"
    assert page == filled(page, part)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_are_there(path):
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme():
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in linked]
    assert not missing


def test_every_page_has_its_place_in_the_site():
    site = yaml.safe_load((ROOT / "launch" / "mkdocs.yml").read_text(encoding="utf-8"))
    named = re.findall(r"[\w-]+\.md", str(site["nav"]))
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_is_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_options_that_pages_name_are_there():
    known = set(re.findall(r"^\| `([\w.]+)`", (ROOT / "docs" / "options.md").read_text(encoding="utf-8"), re.MULTILINE))
    sections = {name.partition(".")[0] for name in known}
    for path in TEXTS:
        for name in re.findall(r"`-?-?((?:\w+)\.(?:\w+))\b[^`/(]*`", path.read_text(encoding="utf-8")):
            section, option = name.split(".")
            if section in sections and option not in ("jsonl", "md", "py", "json", "yaml", "sh"):
                assert name in known, f"{path.name}: {name}"


def words_of_the_program() -> str:
    """Return every string of the package but docstrings; the parts of one are joined, what is filled in is left out."""
    texts = []
    for path in (ROOT / "onpolicy_sdft").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_that_troubleshooting_quotes_are_printed():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        text for row in re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE) for text in re.findall(r'"([^"]+)"', row)
    ]
    assert len(quoted) >= 10
    printed = words_of_the_program()
    for text in quoted:
        parts = [re.escape(part) for part in text.split("...") if part]
        assert re.search("[^\n]*".join(parts), printed), text


def test_numbers_are_read_as_the_page_on_checks_says():
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    table = page.partition("## How math_word_problem")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \|", table, re.MULTILINE)
    assert len(rows) > 15
    for text, number in rows:
        assert final_number(text) == (None if number == "none" else Fraction(number)), text
