"""Log lines: whole and above the bar on a terminal, plain elsewhere, of the first rank alone."""

import os
import pty
import re
import subprocess
import sys

SCRIPT = """
import logging
from onpolicy_sdft import log
from onpolicy_sdft.runs.progress import Progress
{show}
logger = logging.getLogger("onpolicy_sdft.somewhere")
logger.info("[bold]a line[/bold] :smile: " + "word " * 60 + "end")
with Progress("train", 2, "steps", every_seconds=0) as progress:
    progress.update(loss=1.5)
    logger.warning("rollouts are long")
    progress.update(loss=1.0)
logger.error("it failed")
"""
LONG = "[bold]a line[/bold] :smile: " + "word " * 60 + "end"


def lines_of(show: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    command = [sys.executable, "-c", SCRIPT.format(show=show)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if not line.startswith("train ")]


def test_lines_are_not_wrapped_nor_read_as_markup_and_warnings_say_so():
    assert lines_of("log.show(); log.show()") == [LONG, "warning: rollouts are long", "error: it failed"]


def test_only_the_first_rank_writes_more_than_errors():
    assert lines_of("log.show(rank=1)") == ["error: it failed"]


def test_a_program_that_sets_up_nothing_sees_warnings_as_of_any_library():
    assert lines_of("") == ["rollouts are long", "it failed"]


def test_on_a_terminal_a_line_stands_whole_above_the_bar():
    child, terminal = pty.fork()
    if child == 0:
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        os.execve(sys.executable, [sys.executable, "-c", SCRIPT.format(show="log.show()")], environment)
    written = b""
    try:
        while data := os.read(terminal, 4096):
            written += data
    except OSError:  # how a terminal ends
        pass
    assert os.waitpid(child, 0)[1] == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", written.decode()).replace("\r\n", "\n").split("\n")
    shown = [line.rpartition("\r\r")[2].strip("\r") for line in lines]
    assert LONG in shown
    assert "warning: rollouts are long" in shown
    assert "2/2 steps loss 1" in " ".join(shown)
