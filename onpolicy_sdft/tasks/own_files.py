"""The files behind a task of the user's own: its module and what that imports from beside it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def own_files(name: str) -> list[Path]:
    """Return the files that decide what a task does, in a fixed order; none for a task of the package.

    Args:
        name: ``task.name``. Followed are imports of modules in the folder of the task's file, or in its own package.
    """
    place, _, _ = name.rpartition(":")
    if not place:
        return []
    if place.endswith(".py"):
        first, root = Path(place).expanduser().resolve(), Path(place).expanduser().resolve().parent
    else:
        spec = importlib.util.find_spec(place)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            return []
        first = Path(spec.origin).resolve()
        root = first.parents[place.count(".")]
    found, waiting = {first}, [first]
    while waiting:
        file = waiting.pop()
        for imported in _imports(file, root):
            if imported not in found:
                found.add(imported)
                waiting.append(imported)
    return sorted(found)


def _imports(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files under a folder that a module imports, whole packages by their ``__init__``."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else root
            module = node.module or ""
            names = [(base, module), *((base, f"{module}.{alias.name}".strip(".")) for alias in node.names)]
        else:
            continue
        for base, name in names:
            path = base.joinpath(*name.split(".")) if name else base
            yield from (each.resolve() for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file())
