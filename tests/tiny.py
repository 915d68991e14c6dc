"""The tiny run of tests that train: a model that is to say words, adapters, and nothing refused for how it looks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

WORDS = ("one", "two", "three", "four", "five", "six", "seven")
OPTIONS: dict[str, Any] = {
    "lora.r": 4, "task.name": "exact", "train.batch_size": 4, "train.micro_batch_tokens": 400, "probe.num_examples": 2,
    **{f"screening.{rule}": "keep" for rule in ("truncated", "looping", "length", "check")},
}  # fmt: skip


def say(*words: object) -> list[tuple[str, str]]:
    """Prompts and responses: each word is to be said."""
    return [(f"say {word}", str(word)) for word in words]


def write_rows(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "response": text}) + "\n" for prompt, text in pairs))
    return path


def write_run(folder: Path, model: Path, pairs: Iterable[tuple[str, str]] = say(*WORDS), **options: Any) -> Path:
    """Write ``rows.jsonl`` and ``config.yaml`` into a folder; return the config.

    Args:
        folder: Where to.
        model: Folder of the model.
        pairs: The rows.
        **options: By dotted name, over ``OPTIONS``.
    """
    data = write_rows(folder / "rows.jsonl", pairs)
    sections: dict[str, dict[str, Any]] = {}
    for name, value in {"model.name": str(model), "data.path": str(data), **OPTIONS, **options}.items():
        section, _, option = name.partition(".")
        sections.setdefault(section, {})[option] = str(value) if isinstance(value, Path) else value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def questions(folder: Path, label: str = "task", *, limit: int | None = None, **more: Any) -> dict[str, Any]:
    """An evaluation set of the rows of a folder."""
    data = {"path": str(folder / "rows.jsonl"), "limit": limit}
    return {"label": label, "data": data, "task": {"name": "exact"}, "max_new_tokens": 5, **more}
