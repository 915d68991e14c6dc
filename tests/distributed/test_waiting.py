"""Ranks wait for one that is at work, however long, and give up on one that is gone."""

from __future__ import annotations

import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import on_cpus
import pytest
import torch
from torch import multiprocessing

from onpolicy_sdft.errors import SdftError
from onpolicy_sdft.train.backend import Backend

TIMEOUT = 3.0
BUSY = 8.0


def busy(result: int) -> int:
    time.sleep(BUSY)
    return result


def first_works(backend: Backend) -> object:
    return backend.on_first(lambda: busy(7))


def second_is_late(backend: Backend) -> object:
    mine = busy(1) if backend.rank else 1
    return backend.max_over_ranks(mine), backend.gather(mine)


def second_stands_still(backend: Backend) -> object:
    if backend.rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    return backend.gather(1)


def second_is_killed(backend: Backend) -> object:
    if backend.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return backend.gather(1)


def second_fails(backend: Backend) -> object:
    if backend.rank:
        raise RuntimeError("on purpose")
    return backend.gather(1)


def rank_of_two(rank: int, port: int, act: object, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    on_cpus.forget_launch()
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    backend = Backend("fp32", TIMEOUT)
    backend.gather(0)
    began = time.monotonic()
    try:
        said = repr(act(backend))  # type: ignore[operator]
    except SdftError as error:
        said = str(error)
    (folder / f"{rank}.txt").write_text(f"{time.monotonic() - began}\n{said}")


def run_two(act: object, folder: Path) -> dict[int, tuple[float, str]]:
    """Return each rank's seconds and result or error; a rank that left none is not there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")  # importing torch twice takes longer than most of these
    ranks = [context.Process(target=rank_of_two, args=(rank, port, act, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    ranks[0].join(timeout=100)
    ranks[1].join(timeout=0 if act is second_stands_still else 20)
    for process in ranks:
        process.kill()
        process.join()
    texts = {rank: folder / f"{rank}.txt" for rank in range(2)}
    left = {rank: path.read_text().split("\n", 1) for rank, path in texts.items() if path.exists()}
    return {rank: (float(seconds), said) for rank, (seconds, said) in left.items()}


@pytest.mark.parametrize(
    ("act", "result"), [(first_works, "7"), (second_is_late, "(1, [1, 1])")], ids=["first", "second"]
)
@pytest.mark.few(1)
def test_a_rank_that_works_longer_than_the_time_out_is_waited_for(tmp_path, act, result):
    ends = run_two(act, tmp_path)
    assert [said for _, said in ends.values()] == [result, result]
    assert max(seconds for seconds, _ in ends.values()) >= BUSY > 2 * TIMEOUT


def test_a_rank_that_stands_still_is_named_with_the_option(tmp_path):
    ends = run_two(second_stands_still, tmp_path)
    assert "Rank 1 has been silent for" in ends[0][1]
    assert "train.rank_timeout_seconds=3" in ends[0][1]
    assert TIMEOUT <= ends[0][0] < 3 * TIMEOUT


def test_a_rank_that_failed_is_not_waited_for(tmp_path):
    ends = run_two(second_fails, tmp_path)
    assert "Rank 1 has ended while the others wait for it" in ends[0][1]


def test_a_rank_that_was_killed_is_missed_before_it_is_silent_for_too_long(tmp_path):
    ends = run_two(second_is_killed, tmp_path)
    assert "Rank 1 has ended while the others wait for it" in ends[0][1]
    assert ends[0][0] < TIMEOUT
