"""No character that a stream cannot hold ends a program."""

from __future__ import annotations

import io
import sys

from onpolicy_sdft.cli.main import main


def test_what_a_stream_cannot_write_or_read_is_replaced(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bad \xff\n"), encoding="utf-8"))
    assert main(["--help"]) == 0
    print("\u2588")
    sys.stdout.flush()
    assert written.getvalue().endswith(b"?\n")
    assert sys.stdin.readline() == "bad \ufffd\n"
