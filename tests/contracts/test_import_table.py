"""Imports go down one table only: what a room may know of the others, whether imported at run time or for types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "onpolicy_sdft"
BASE = {"errors", "hub", "log", "machine", "shapes", "system_errors", "tool_calls", "types", "versions", "wheels"}
PARTS = {"config", "runs", "tasks", "models", "objectives", "data", "screening", "rollout"}

#: Room -> rooms it may import from, besides itself and those of ``BASE``.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "hub": set(),
    "log": set(),
    "machine": set(),
    "system_errors": set(),
    "shapes": set(),
    "tool_calls": set(),
    "types": set(),
    "versions": set(),
    "wheels": set(),
    "config": set(),
    "runs": {"config"},
    "tasks": {"config"},
    "models": {"config"},
    "objectives": {"config"},
    "data": {"config", "tasks"},
    "screening": {"config", "tasks"},
    "rollout": {"config", "models"},
    "experiments": {"config", "runs", "data"},
    "report": {"runs", "experiments"},
    "train": PARTS - {"tasks"},
    "build": PARTS | {"train"},
    "eval": PARTS | {"build", "train"},
    "offline": PARTS | {"build", "eval", "train"},
    "fitting": PARTS | {"build", "eval", "offline", "train"},
    "cli": PARTS | {"train", "build", "eval", "offline", "fitting", "report", "experiments"},
    "api": PARTS | {"train", "build", "eval", "fitting", "report"},
    "__main__": {"cli"},
    "__init__": {"config", "build", "eval", "fitting", "api", "train"},
}
TORCH_FREE = BASE | {"config", "runs", "report", "experiments"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "onpolicy_sdft")


def test_every_room_is_in_the_table():
    assert {room(path) for path in PACKAGE.rglob("*.py")} == set(ALLOWED)


def test_imports_go_down_the_table_only():
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        may = ALLOWED[room(path)] | BASE | {room(path)}
        for module in imports(ast.parse(path.read_text())):
            package, _, rest = module.partition(".")
            if package == "onpolicy_sdft" and rest and rest.partition(".")[0] not in may:
                wrong.add(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_the_table_has_no_circle():
    known: set[str] = set(BASE)
    waiting = {name: may - {name} for name, may in ALLOWED.items() if name not in BASE}
    while waiting:
        ready = {name for name, may in waiting.items() if may <= known}
        assert ready, f"a circle among {sorted(waiting)}"
        known |= ready
        waiting = {name: may for name, may in waiting.items() if name not in ready}


def test_rooms_that_promise_it_do_not_import_torch():
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        lazy = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
        nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and id(n) not in lazy)
        if room(path) in TORCH_FREE and any(
            module.split(".")[0] == "torch" for node in nodes for module in imports(node)
        ):
            wrong.add(str(path.relative_to(PACKAGE)))
    assert not wrong


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
