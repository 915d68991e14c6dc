"""One process at a time works in a directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from onpolicy_sdft.errors import RunDirectoryError

LOCK = ".lock"


@contextlib.contextmanager
def claimed(directory: Path, option: str, work: str, writes: Sequence[str] = ()) -> Iterator[None]:
    """Keep others out of a directory, which is made, for as long as the context lasts; a killed process keeps none out.

    Args:
        directory: Where this process works.
        option: What names the directory, as users write it.
        work: What is done there, for the message: ``run``, ``sweep``, ...
        writes: Files that are written there, in the place of earlier ones of this program.

    Raises:
        RunDirectoryError: Another process is at work in it, it cannot be made, or a file of somebody else's would be
            overwritten: nobody has claimed the directory before.
    """
    others = [name for name in writes if (directory / name).exists()]
    if others and not (directory / LOCK).exists():
        raise RunDirectoryError(
            f"{option}={directory} holds {', '.join(others)}, which no {work} has written there: nothing is "
            "overwritten. Fix: another directory, or move them away."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"{option}={directory} cannot be made ({error}). Fix: another one.") from error
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RunDirectoryError(
            f"Another {work} is at work in {option}={directory}. Wait for it, or choose another."
        ) from error
    try:
        yield
    finally:
        lock.release()
