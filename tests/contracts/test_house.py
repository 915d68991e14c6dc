"""Files are read in a sitting, functions on a screen, and names of tests in a line."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "onpolicy_sdft"
#: Every option once; a kernel that Triton compiles as one.
LONG = {"config/schema.py"}
LONG_FUNCTIONS = {"attend_tiles"}


def test_a_file_is_read_in_a_sitting():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name for name, number in lines.items() if number > 400} == LONG


def test_a_function_stands_on_a_screen():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 70:
                found.add(node.name)
    assert found == LONG_FUNCTIONS


def test_the_name_of_a_test_stands_on_a_line():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert len(node.name) <= 80, node.name
