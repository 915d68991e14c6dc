"""Triton's kernels without a GPU.

Triton looks at TRITON_INTERPRET when a kernel is declared, so one process runs either the tests that compile kernels
(without it) or those that run them in the interpreter (with it).
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytest.importorskip("triton")
collect_ignore_glob = ["test_compile*.py"] if INTERPRETED else ["test_interpreted*.py"]
