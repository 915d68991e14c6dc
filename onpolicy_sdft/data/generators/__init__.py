"""Embedded tasks: rows made on the spot, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onpolicy_sdft.data.generators import (
    function_calls,
    list_functions,
    math_word_problems,
    short_facts,
    word_categories,
)
from onpolicy_sdft.data.generators.common import Generate, nearest
from onpolicy_sdft.errors import DataError

GENERATORS: dict[str, Generate] = {
    "list_functions": list_functions.generate,
    "function_calls": function_calls.generate,
    "math_word_problems": math_word_problems.generate,
    "short_facts": short_facts.generate,
    "word_categories": word_categories.generate,
}


def generate_rows(
    name: str,
    *,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows of an embedded task.

    Args:
        name: A key of ``GENERATORS``.
        split: ``train``, ``validation`` or ``test``; the splits share no prompt.
        limit: Number of rows; None for all there are.
        seed: Chooses which rows come first.
        options: Options of the generator.

    Returns:
        Rows with ``id``, ``prompt``, ``response`` and what the task's check needs.

    Raises:
        DataError: A bad name, split, limit, seed or option.
        MissingDependencyError: The generator needs a package that is not installed.
    """
    if name not in GENERATORS:
        raise DataError(f"data.name='embedded:{name}' is not an embedded task; {nearest(name, GENERATORS)}")
    return GENERATORS[name](split=split, limit=limit, seed=seed, **dict(options or {}))
