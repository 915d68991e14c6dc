"""Token ids of large data sets on disk: a run that reads the same rows in the same way need not tokenise them again.

The key is a digest of all that is read: the rows, the tokenizer, both templates, the limits, and the code that renders.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from onpolicy_sdft.data.packed_rows import PackedRows, join
from onpolicy_sdft.data.teacher_prompts import TeacherPrompts
from onpolicy_sdft.data.tokenising import tokenizer_digest
from onpolicy_sdft.data.workers import FEWEST
from onpolicy_sdft.types import Demonstration, Turn
from onpolicy_sdft.versions import package_versions
from onpolicy_sdft.wheels import default_cache_dir, make_once

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ContextConfig
    from onpolicy_sdft.data.renderer import Renderer

logger = logging.getLogger(__name__)

_FILE = "rows.safetensors"
_MOST_KEPT = 8  # data sets; the one that was read longest ago goes first


def key_of(
    demonstrations: Sequence[Demonstration],
    renderer: Renderer,
    prompts: TeacherPrompts | None,
    config: ContextConfig,
    work: Callable[[Demonstration], str],
) -> str | None:
    """Return what names the token ids of rows; None where they are not worth keeping, or the tokenizer has no digest.

    Args:
        demonstrations: The rows.
        renderer: Renders and tokenises them.
        prompts: Makes what the teacher is shown; None: nothing is.
        config: How that is made, and the limits.
        work: What the task says the work of an answer is.
    """
    tokenizer = renderer.tokenizer
    if len(demonstrations) < FEWEST or not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        return None
    template = Path(config.template).expanduser()
    facts = {
        "code": _code(),
        "versions": package_versions(["transformers", "tokenizers", "jinja2"]),
        "tokenizer": tokenizer_digest(tokenizer),
        "its options": {name: str(value) for name, value in sorted(tokenizer.init_kwargs.items())},
        "chat template": str(tokenizer.chat_template),
        "date": renderer.writer.date,
        "context": {**asdict(config), "date": None},
        "context template": template.read_text(encoding="utf-8") if template.is_file() else "",
        "teacher": prompts is not None,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for each in demonstrations:
        turns = [_said(turn) for turn in (*each.turns, *([each.answer] if each.answer else []))]
        work_of_it = work(each) if prompts is not None else ""
        said = [each.example_id, turns, bool(each.answer), each.response, each.privileged, work_of_it]
        digest.update(json.dumps(said).encode())
    return digest.hexdigest()


def cached_rows(
    key: str, read: Callable[[], Iterable[PackedRows]], directory: Path | None = None
) -> Iterator[PackedRows]:
    """Yield what was made of rows before, or make it, and keep it where all of it was taken.

    Args:
        key: See :func:`key_of`.
        read: Makes it, some rows at a time.
        directory: Where it is kept; unset: ``rows`` in the cache of this program.
    """
    try:
        place = (directory or default_cache_dir() / "rows") / key
        found = _look_up(place)
    except (OSError, RuntimeError) as error:  # no home, or one that is not ours: the run needs no cache
        logger.warning(f"token ids are not kept on disk (data.cache): {error}")
        yield from read()
        return
    if found is not None:
        yield found
        return
    parts = []
    for part in read():
        parts.append(part)
        yield part
    try:
        make_once(place, lambda scratch: _save(join(parts), scratch))
        _prune(place.parent)
    except OSError as error:  # a disk that is full or read-only
        logger.warning(f"token ids are not kept in {place} (data.cache): {error}")


def _look_up(place: Path) -> PackedRows | None:
    if not place.is_dir():
        return None
    try:
        found = _load(place / _FILE)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning(f"{place} is damaged and made again: {error}")
        shutil.rmtree(place, ignore_errors=True)
        return None
    (place / _FILE).touch()  # the newest are kept
    logger.info(f"token ids of {found.num_rows} rows are read from {place} (data.cache)")
    return found


def _said(turn: Turn) -> tuple[str, str, str]:
    return turn.role, turn.content, turn.extra


def _code() -> str:
    """Digest the code that renders and tokenises."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), folder.parent / "tool_calls.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _save(rows: PackedRows, scratch: Path) -> Path:
    found = scratch / "made"
    found.mkdir()
    save_file(rows.arrays, found / _FILE, {"rare": json.dumps(rows.rare), "digest": _digest(rows.arrays)})
    return found


def _load(path: Path) -> PackedRows:
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        facts = file.metadata()
    if facts["digest"] != _digest(arrays):
        raise ValueError("its digest is another")
    rare = json.loads(facts["rare"])
    return PackedRows(arrays, {name: {int(place): value for place, value in rare[name].items()} for name in rare})


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode() + np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _prune(directory: Path) -> None:
    """Delete what was read longest ago."""
    kept = sorted(directory.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[_MOST_KEPT:]:
        shutil.rmtree(path.parent, ignore_errors=True)
