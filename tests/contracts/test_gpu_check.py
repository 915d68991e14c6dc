"""The check on a GPU, rehearsed: both files are written, and a part that fails or hangs does not end the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runner import Check, Part
from benchmarks.gpu.tables import TARGETS, markdown

ROOT = Path(__file__).parents[2]
FOUND = {"tables": {"speeds": {"slow": {"ms": 1.5}}}, "error": None}
#: The program of a part that finds something.
WRITES_FOUND = f"import json, pathlib, sys; pathlib.Path(sys.argv[1]).write_text({json.dumps(FOUND)!r})"


def part(name, code, seconds=30.0):
    return Part(name, seconds, lambda file, limit: [sys.executable, "-c", code, str(file), str(limit)])


def check(folder, seconds=100.0):
    return Check(folder, {"card": "none"}, seconds)


def results(folder):
    return json.loads((folder / "check.json").read_text())["parts"]


@pytest.mark.slow
def test_a_small_rehearsal_writes_both_files(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "check", "--rehearse", "--parts", "environment"]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True, timeout=200)
    found = results(tmp_path)["environment"]
    assert (found["state"], found["error"]) == ("done", None)
    assert found["tables"]["environment"]["copied"]["tb_a_second"] > 0
    page = (tmp_path / "check.md").read_text()
    assert "| environment | done |" in page
    assert "not measured" in page


def test_a_part_that_fails_is_said_and_the_next_goes_on(tmp_path):
    failing = part("failing", f"{WRITES_FOUND}; raise ValueError('no such kernel')")
    check(tmp_path).run([failing, part("next", WRITES_FOUND)])
    found = results(tmp_path)
    assert found["failing"]["state"] == "failed"
    assert "ValueError: no such kernel" in found["failing"]["error"]
    assert found["failing"]["tables"]["speeds"]["slow"]["ms"] == 1.5, "what it had found is kept"
    assert found["next"]["state"] == "done"
    assert "no such kernel" in (tmp_path / "check.md").read_text()


@pytest.mark.slow
def test_a_part_over_its_limit_is_killed_with_its_children_and_said(tmp_path):
    started = time.perf_counter()
    pid = tmp_path / "pid"
    child = f"p = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, 'w').write(str(p.pid))"
    code = f"import subprocess, time; {child}; {WRITES_FOUND}; time.sleep(60)"
    check(tmp_path).run([part("hanging", code, 3.0), part("next", WRITES_FOUND)])
    assert time.perf_counter() - started < 30
    found = results(tmp_path)
    assert found["hanging"]["state"] == "over its limit"
    assert found["hanging"]["tables"]["speeds"]["slow"]["ms"] == 1.5
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.is_file() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert found["next"]["state"] == "done"


def test_what_no_longer_fits_is_left_out_and_said(tmp_path):
    check(tmp_path, seconds=5.0).run([part("long", WRITES_FOUND), part("short", WRITES_FOUND, 2.0)])
    found = results(tmp_path)
    assert found["long"]["state"] == "left out"
    assert "s were left" in found["long"]["error"]
    assert found["short"]["state"] == "done"


def test_parts_that_were_run_before_stay_in_the_files(tmp_path):
    check(tmp_path).run([part("first", WRITES_FOUND)])
    check(tmp_path).run([part("second", WRITES_FOUND)])
    assert list(results(tmp_path)) == ["first", "second"]


@pytest.mark.parametrize(("step_ms", "met"), [(1.0, "yes"), (1.2, "NO")])
def test_a_target_is_met_by_the_worst_of_its_rows(step_ms, met):
    rows = {f"135M, {rows} rows": {"step_ms": step_ms if rows == 64 else 0.9} for rows in (1, 16, 64)}
    page = markdown({}, {"speed": {"state": "done", "error": None, "tables": {"speed": rows}}})
    (line,) = [line for line in page.splitlines() if line.startswith("| 135M: a decode step up to 64 rows")]
    assert line.split("|")[2:4] == [f" {step_ms:g} ", f" {met} "]
    assert page.count("not measured") == len(TARGETS) - 1


def test_a_measurement_that_fails_is_noted_and_one_without_time_is_left_out(tmp_path):
    bench = Bench(tmp_path / "figures.json", 5.0, rehearse=False)
    bench.free = lambda: None  # there may be no device
    bench.attempt("speeds", "broken", lambda: [][0])
    bench.attempt("speeds", "late", lambda: None, least_seconds=10.0)
    rows = json.loads((tmp_path / "figures.json").read_text())["tables"]["speeds"]
    assert rows["broken"]["error"] == "IndexError: list index out of range"
    assert rows["late"]["left_out"].endswith("s were left")


def test_without_a_device_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "check"])
    with pytest.raises(SystemExit, match="Fix: --rehearse"):
        main()
