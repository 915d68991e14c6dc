"""What the generators share: option checks, the selection of rows, and seeded randomness."""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import DataError

SPLITS = ("train", "validation", "test")

Generate = Callable[..., list[dict[str, Any]]]


def nearest(value: object, valid: Iterable[str]) -> str:
    """The valid names as text, with the nearest one to ``value`` first if one is near."""
    names = list(valid)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"


def check_choice(generator: str, option: str, value: object, valid: Sequence[str]) -> None:
    """Raise DataError unless ``value`` is one of ``valid``."""
    if not isinstance(value, str) or value not in valid:
        raise DataError(f"embedded:{generator}: {option}={value!r} is not available; {nearest(value, valid)}")


def check_options(generator: str, options: Mapping[str, Any], valid: Sequence[str]) -> None:
    """Raise DataError on an option that the generator does not have."""
    for name in options:
        if name not in valid:
            raise DataError(
                f"embedded:{generator}: unknown option {name!r}; "
                f"{nearest(name, valid) if valid else 'it has none'}. "
                "Correct or remove it in data.options"
            )


def keyed_random(*key: object) -> random.Random:
    """A generator that is a function of ``key`` alone, the same in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def select_indices(generator: str, *, split: str, available: int, limit: int | None, seed: int) -> list[int]:
    """The indices of the split's rows to use: a shuffle by ``seed``, cut after ``limit``.

    Rows are numbered independently of the seed, so that an id always names the same row.

    Raises:
        DataError: The seed is not an integer, or the limit is not positive or above ``available``.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"embedded:{generator}: seed={seed!r} is not an integer")
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise DataError(
                f"embedded:{generator}: limit={limit!r} is not a positive integer; "
                f"leave it unset for all {available} rows of split {split!r}"
            )
        if limit > available:
            raise DataError(
                f"embedded:{generator}: limit={limit} asks for more rows than split {split!r} has "
                f"({available}); lower it to at most {available}, or leave it unset"
            )
    order = list(range(available))
    keyed_random(generator, split, seed).shuffle(order)
    return order[:limit]


def read_catalogue(name: str) -> list[dict[str, Any]]:
    """Read the rows of ``catalogues/NAME.jsonl``."""
    text = (Path(__file__).parent / "catalogues" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
