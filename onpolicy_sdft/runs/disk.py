"""Errors of a disk, told from a program's own, and what a user can do about each."""

from __future__ import annotations

import errno
import os

_AGAIN = "then start the same command again (a run goes on with --train.resume auto)"
_WAYS_ON = {
    errno.ENOSPC: f"make room on that disk, {_AGAIN}",
    errno.EDQUOT: f"raise the quota or make room on that disk, {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f), {_AGAIN}",
    errno.EROFS: f"make the disk writable, or name a directory on another one, {_AGAIN}",
    errno.EACCES: "name a directory or file that you may use, or change its rights",
    errno.EPERM: "name a directory or file that you may use, or change its rights",
    errno.EIO: f"look at the disk (its log says what failed), {_AGAIN}",
    errno.EMFILE: f"raise the number of open files (ulimit -n), {_AGAIN}",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ESTALE: f"mount the network disk again, {_AGAIN}",
}


def way_on(error: BaseException) -> str | None:
    """Return what to do about an error that comes from a disk; None if it does not.

    Libraries that write by themselves (torch, safetensors) raise errors of their own, which end in the system's words.
    """
    if isinstance(error, OSError):
        return _WAYS_ON.get(error.errno or 0)
    return next((way for number, way in _WAYS_ON.items() if os.strerror(number) in str(error)), None)
