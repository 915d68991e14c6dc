from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

from onpolicy_sdft.config import schema, sequence, sweep

PACKAGE = Path(schema.__file__).parents[1]


def sections() -> list[type]:
    rooms = (schema, sequence, sweep)
    return [kind for room in rooms for _, kind in inspect.getmembers(room, dataclasses.is_dataclass)]


def attributes_read(trees: list[ast.Module]) -> set[str]:
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def names_given_to_getattr(folder: Path) -> set[str]:
    """String constants of a room that calls ``getattr`` with a name it looks up."""
    trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if not any(isinstance(call.func, ast.Name) and call.func.id == "getattr" for call in calls):
        return set()
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_config_field_is_read_outside_the_config():
    outside = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "config"]
    used = attributes_read([ast.parse(path.read_text()) for path in outside])
    for folder in {path.parent for path in outside}:
        used |= names_given_to_getattr(folder)
    # What eval.path and eval.limit mean is written once, beside the check of their labels.
    used |= attributes_read([ast.parse(inspect.getsource(check_of_sets()))])
    unread = {f"{kind.__name__}.{item.name}" for kind in sections() for item in dataclasses.fields(kind)}
    assert {name for name in unread if name.partition(".")[2] not in used} == set()


def check_of_sets():
    from onpolicy_sdft.config.check import evaluation_sets

    return evaluation_sets


def test_the_search_would_find_a_field_that_nobody_reads():
    used = attributes_read([ast.parse("def f(config):\n    config.written = config.read")])
    assert used == {"read"}
