"""Kernels compile where nothing can be kept on disk: a user without a home, a package that is read-only."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_A_PLACE = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from onpolicy_sdft.rollout.cpu import attention, passes, vectors
from onpolicy_sdft.rollout.cpu.jit import jit
print(jit()(lambda x: x + 1)(np.float32(1)))
"""


def test_kernels_compile_without_a_cache_and_it_is_said_once():
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_PLACE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
