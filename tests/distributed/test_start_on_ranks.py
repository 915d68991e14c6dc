"""A run that starts from another one does on every backend what it does in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import figures, job, run_all, tokens, write_config

pytestmark = pytest.mark.timeout(400)
METRICS = ("loss/total", "train/grad_norm", "train/num_loss_tokens")
SHORT = {"train.max_steps": 2, "eval.before_and_after": False}
CARRIED = {
    "continue": {"lora.enabled": False, "optim.lr": 0.003, "train.keep_optimizer": True, "teacher.weights": "stage"},
    "merge": {"train.adapter_handoff": "merge"},
}
BACKENDS = {"continue": ("zero2", "zero3", "fsdp2"), "merge": ("zero3",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    pytest.importorskip("deepspeed")
    made = tmp_path_factory.mktemp("start")
    config, jobs = write_config(made, model_dir), []
    for handoff, options in CARRIED.items():
        first = made / f"first-{handoff}"
        shared = {name: value for name, value in options.items() if name.partition(".")[0] in ("lora", "optim")}
        jobs.append(job(1, config, first, **shared, **SHORT))
        start = {**options, **SHORT, "train.init_from": str(first)}
        jobs.append(job(1, config, made / f"one-{handoff}", **start))
        jobs += [job(2, config, made / f"{kind}-{handoff}", backend=kind, **start) for kind in BACKENDS[handoff]]
    done = run_all(*jobs, timeout=380)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize(("backend", "handoff"), [(b, handoff) for handoff, each in BACKENDS.items() for b in each])
@pytest.mark.few(2)
def test_two_ranks_go_on_from_another_run_as_one_process_does(folder, backend, handoff):
    one, two = folder / f"one-{handoff}", folder / f"{backend}-{handoff}"
    assert tokens(one) == tokens(two)
    torch.testing.assert_close(figures(one, *METRICS), figures(two, *METRICS), rtol=1e-5, atol=1e-6)
