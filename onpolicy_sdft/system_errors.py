"""Errors of the machine (a disk, memory), told from a program's own, and what a user can do about each."""

from __future__ import annotations

import errno
import os

_AGAIN = "then start the same command again (a run goes on with --train.resume auto)"
_OF_DISKS = {
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
#: Of the system alone, where it names a path: in other errors the same words may tell of anything.
_OF_PATHS = {
    errno.EEXIST: "name another file or directory: there is one of that name",
    errno.ENOTDIR: "name another file or directory: a part of the path before it is a file",
    errno.EISDIR: "name a file: a directory is there",
    errno.ENOENT: "name a file or directory that is there, or that can be made",
}
_OF_MEMORY = (
    "lower train.micro_batch_tokens (learning, scoring), rollout.kv_gib or rollout.num_slots (writing), or the lengths "
    f"(context.max_teacher_tokens, rollout.max_new_tokens); sdft plan shows what a run takes. {_AGAIN.capitalize()}"
)
_SAYS_MEMORY = ("out of memory", "can't allocate memory", os.strerror(errno.ENOMEM))


def way_on(error: BaseException) -> str | None:
    """Return what to do about an error that comes from the machine; None if it does not.

    Libraries raise errors of their own (torch, safetensors), which have the system's words in them.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return _OF_MEMORY
    if isinstance(error, OSError):
        return _OF_DISKS.get(error.errno or 0) or (_OF_PATHS.get(error.errno or 0) if error.filename else None)
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS_MEMORY):
        return _OF_MEMORY
    return next((way for number, way in _OF_DISKS.items() if os.strerror(number) in str(error)), None)
