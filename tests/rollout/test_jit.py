"""Kernels compile where nothing can be kept on disk, and are the same whether they were compiled or found there."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_attention import GROUP, NUM_HEADS, RAGGED, SCORINGS, in_blocks, inputs, pack

import onpolicy_sdft.rollout.cpu
from onpolicy_sdft.rollout.cpu import passes
from onpolicy_sdft.rollout.cpu.attention import slot_attention, tiles

WITHOUT_A_PLACE = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from onpolicy_sdft.rollout.cpu import attention, passes, vectors
from onpolicy_sdft.rollout.cpu.jit import jit
print(jit()(lambda x: x + 1)(np.float32(1)))
"""

NORM = """
import torch
from onpolicy_sdft.rollout.cpu import passes
passes.rms_norm(torch.ones(2, 32), torch.ones(32), 0.0, 1e-6)
print(sum(passes._norm.stats.cache_misses.values()))
"""
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kernels_compile_without_a_cache_and_it_is_said_once():
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_PLACE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1


def test_kernels_call_only_what_becomes_part_of_them():
    decorated, calls = dict[str, str](), dict[str, set[str]]()
    for path in Path(onpolicy_sdft.rollout.cpu.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("jit", "inlined"):
                    always = any(keyword.arg == "inline" for keyword in decorator.keywords)
                    decorated[node.name] = "inlined" if always else ast.unparse(decorator.func)
                    called = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
                    calls[node.name] = {each.id for each in called if isinstance(each, ast.Name)}
    assert list(decorated.values()).count("jit") >= 7
    assert {name for inner in calls.values() for name in inner if decorated.get(name) == "jit"} == set()


@pytest.mark.slow
def test_kernels_are_compiled_anew_when_any_of_their_files_changes(tmp_path):
    package = shutil.copytree(
        ROOT / "onpolicy_sdft", tmp_path / "onpolicy_sdft", ignore=shutil.ignore_patterns("*.nb?")
    )
    code = [sys.executable, "-c", NORM]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def num_compiled() -> int:
        done = subprocess.run(code, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        return int(done.stdout)

    assert [num_compiled(), num_compiled()] == [1, 0]
    with (package / "rollout" / "cpu" / "vectors.py").open("a") as file:
        file.write("# another version\n")
    assert [num_compiled(), num_compiled()] == [1, 0]


def digest(found: torch.Tensor) -> str:
    return hashlib.sha256(found.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def print_digests() -> None:
    """Give each kernel the same numbers every time."""
    torch.manual_seed(0)
    for rows, columns in ((7, 32), (5, 576), (300, 896)):
        print("norm", digest(passes.rms_norm(torch.randn(rows, columns), torch.randn(columns), 0.0, 1e-6)))
    for n in (9, 2000):
        print("rotate", digest(passes.rotate(torch.randn(1, 4, n, 64), torch.randn(1, n, 64), torch.randn(1, n, 64))))
    for dtype in (torch.float32, torch.bfloat16):
        for name, how in SCORINGS.items():
            packing = pack(RAGGED)
            q, keys, values = inputs(len(packing.slots_N), dtype)
            found = slot_attention(
                q, in_blocks(keys), values, tiles(packing.segments, GROUP), scale=how.scale, window=how.window,
                softcap=how.softcap, sinks_HG=None if how.sinks is None else how.sinks.reshape(NUM_HEADS, GROUP),
            )  # fmt: skip
            print(dtype, name, digest(found))


@pytest.mark.slow  # compiles every kernel: 17 s
def test_the_process_that_compiles_computes_what_later_ones_do_bit_for_bit(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    code = [sys.executable, "-c", "from test_jit import print_digests; print_digests()"]
    first, second = (
        subprocess.run(code, capture_output=True, text=True, check=True, env=environment).stdout for _ in range(2)
    )
    assert len(first.splitlines()) == 13
    assert first == second
