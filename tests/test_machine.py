"""Memory within limits of control groups, version 1 and 2, and memory that is given back."""

from __future__ import annotations

import platform

import psutil
import pytest

from onpolicy_sdft.machine import free_memory, give_memory_back, total_memory

GIB = 2**30


def group(directory, **files):
    directory.mkdir(parents=True)
    for name, value in files.items():
        (directory / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize("path", ["/", "/pod/box"])
def test_a_limit_of_version_2_counts_less_what_is_used_and_cannot_be_given_back(tmp_path, path):
    (tmp_path / "cgroup").write_text(f"0::{path}\n")
    stat = f"anon 1\ninactive_file {GIB // 2}"
    group(tmp_path / "sys" / path.lstrip("/"), memory__max=GIB, memory__current=3 * GIB // 4, memory__stat=stat)
    free, origin = free_memory(tmp_path / "cgroup", tmp_path / "sys")
    assert free == 3 * GIB // 4
    assert "the limit of 1.00 GiB" in origin
    assert total_memory(tmp_path / "cgroup", tmp_path / "sys") == GIB


def test_the_tightest_group_above_counts(tmp_path):
    (tmp_path / "cgroup").write_text("0::/pod/box\n")
    group(tmp_path / "sys" / "pod", memory__max=GIB, memory__current=0)
    group(tmp_path / "sys" / "pod" / "box", memory__max="max", memory__current=0)
    assert free_memory(tmp_path / "cgroup", tmp_path / "sys")[0] == GIB


def test_a_limit_of_version_1_counts(tmp_path):
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/a\n")
    group(tmp_path / "sys" / "memory" / "a", memory__limit_in_bytes=GIB, memory__usage_in_bytes=GIB // 4)
    assert free_memory(tmp_path / "cgroup", tmp_path / "sys")[0] == 3 * GIB // 4


def test_without_a_limit_the_machine_decides(tmp_path):
    assert free_memory(tmp_path / "none", tmp_path)[1] == ""
    assert total_memory(tmp_path / "none", tmp_path) == psutil.virtual_memory().total


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_below_what_is_held_is_given_back():
    held = psutil.Process().memory_info
    blocks = [b"x" * 65_536 for _ in range(2_000)]
    last = blocks[-1]  # memory behind it would go back by itself
    del blocks
    before = held().rss
    give_memory_back()
    assert before - held().rss > 2_000 * 65_536 // 2
    assert len(last) == 65_536
