"""Work on many rows chunk by chunk, in several processes where that pays."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from onpolicy_sdft.errors import DataError

_CHUNK = 256  # rows that are worked on together
_FEWEST_CHUNKS = 4  # for a process
_PR_SET_PDEATHSIG = 1
#: Rows for which processes are worth starting.
FEWEST = 4096

Row = TypeVar("Row")
Result = TypeVar("Result")

#: Of a worker: what it does, and with which rows. Forked, not sent: neither need be picklable.
_work: Callable[[Any], Any]
_rows: Sequence[Any]


def in_chunks(work: Callable[[Sequence[Row]], Result], rows: Sequence[Row], num_workers: int = 1) -> Iterator[Result]:
    """Yield what is made of each chunk, in the order of the rows.

    Args:
        work: What to make of a chunk. Results of another process are sent, so they must be picklable, and nothing else
            that it does is seen.
        rows: To work on.
        num_workers: Processes; 1: this one. Few rows are worked on in this one.

    Raises:
        DataError: If a process was killed.
    """
    starts = range(0, len(rows), _CHUNK)
    num_workers = min(num_workers, len(starts) // _FEWEST_CHUNKS)
    if num_workers < 2 or len(rows) < FEWEST:
        for start in starts:
            yield work(rows[start : start + _CHUNK])
        return
    workers = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"), _begin, (work, rows))
    try:
        yield from workers.map(_work_on, starts)
    except BrokenProcessPool as error:
        raise DataError(
            f"One of {num_workers} processes that prepare rows was killed, perhaps for want of memory. Fix: "
            "--data.num_workers 1."
        ) from error
    finally:
        workers.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any], rows: Sequence[Any]) -> None:
    global _work, _rows
    _work, _rows = work, rows
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))  # if the first process is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process is one thread; unset, the library warns of the fork
    gc.freeze()  # a collection would write to, and so copy, all memory that is shared with the first process
    gc.set_threshold(100_000)  # almost nothing that is made here is part of a cycle


def _work_on(start: int) -> Any:
    return _work(_rows[start : start + _CHUNK])
