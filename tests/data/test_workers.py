"""What several processes make of rows is what one makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import chat_toys
import psutil
import pytest

from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.workers import in_chunks
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.types import Demonstration, Turn

MANY = 4200  # enough for processes to be started


def rows() -> list[Demonstration]:
    call = Turn("assistant", "", '{"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}')
    tools = Turn("tools", '[{"type": "function", "function": {"name": "f", "parameters": {}}}]')
    found = []
    for number in range(MANY):
        asked = Turn("user", f"What is {number} plus 1?" + " Say it briefly." * (number % 50 == 7) * 9)
        if number % 84 == 1:
            asked = Turn("user", f"{number}<|im_end|>")  # spells a control token
        turns, answer = ((tools, asked), call) if number % 10 == 3 else ((asked,), None)
        said = f"It is {number + 1}." + " Really." * (number % 50 == 9) * 40
        found.append(Demonstration(f"id-{number}", turns, said, answer=answer))
    return found


def prepared(num_workers: int, on_bad_row: str = "skip") -> Prepared:
    config = ContextConfig(max_student_tokens=200, max_teacher_tokens=350, on_too_long="drop", trim_responses=True)
    tokenizer = chat_toys.make(chat_toys.TOOL_TOYS["hermes"], "bytes")
    return prepare(rows(), Renderer(tokenizer, config), config, 0, on_bad_row=on_bad_row, num_workers=num_workers)


def test_rows_that_processes_prepare_are_what_one_process_makes_of_them():
    alone, together = prepared(1), prepared(3)
    assert alone.dropped_ids
    assert alone.trimmed_ids
    assert len(alone.bad_rows) == MANY // 84
    for part in ("pairs", "dropped_ids", "trimmed_ids", "bad_rows", "left_out", "left_out_bare", "digest"):
        assert getattr(alone, part) == getattr(together, part)


def test_the_first_bad_row_is_named_whichever_process_sees_it():
    with pytest.raises(DataError, match=r"example 'id-1': the user's text spells the control token '<\|im_end\|>'"):
        prepared(2, on_bad_row="error")


def test_rows_come_back_in_order_and_few_rows_start_no_process():
    few = list(in_chunks(lambda some: (list(some), os.getpid()), range(300), 4))
    assert [each for some, _ in few for each in some] == list(range(300))
    assert {process for _, process in few} == {os.getpid()}
    many = list(in_chunks(lambda some: (list(some), os.getpid()), range(MANY), 2))
    assert [each for some, _ in many for each in some] == list(range(MANY))
    assert os.getpid() not in {process for _, process in many}


def test_an_error_of_a_process_is_raised_as_it_is():
    def refuse(some):
        raise ConfigError(f"a template that fails on {some[0]}")

    with pytest.raises(ConfigError, match="a template that fails on 0"):
        list(in_chunks(refuse, range(MANY), 2))


def test_no_process_outlives_the_first_one_that_is_killed():
    script = (
        "import os, time\nfrom onpolicy_sdft.data.workers import in_chunks\n"
        "list(in_chunks(lambda some: os.write(1, b'%d\\n' % os.getpid()) and time.sleep(60), range(5000), 2))"
    )
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    others = [psutil.Process(int(first.stdout.readline())) for _ in range(2)]
    first.kill()
    first.wait()
    assert not psutil.wait_procs(others, timeout=10)[1]


def test_a_process_that_is_killed_ends_the_work_with_the_way_out():
    with pytest.raises(DataError, match=r"was killed, perhaps for want of memory. Fix: --data.num_workers 1"):
        list(in_chunks(lambda some: os.kill(os.getpid(), signal.SIGKILL), range(MANY), 2))
