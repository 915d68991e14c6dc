"""A run that starts from another one does on every backend what it does in one process."""

from __future__ import annotations

import pytest
import torch
from harness import figures, job, run_all, tokens

pytestmark = pytest.mark.timeout(400)
METRICS = ("loss/total", "train/grad_norm", "train/num_loss_tokens")
SHORT = {"train.max_steps": 2, "eval.before_and_after": False}
CARRIED = {
    "continue": {"lora.enabled": False, "optim.lr": 0.003, "train.keep_optimizer": True, "teacher.weights": "stage"},
    "merge": {"train.adapter_handoff": "merge"},
}
BACKENDS = {"continue": ("zero2", "zero3", "fsdp2"), "merge": ("zero3",)}


@pytest.mark.parametrize(("backend", "handoff"), [(b, handoff) for handoff, each in BACKENDS.items() for b in each])
@pytest.mark.few(1)
def test_two_ranks_go_on_from_another_run_as_one_process_does(config, tmp_path, backend, handoff):
    pytest.importorskip("deepspeed")
    options = CARRIED[handoff]
    shared = {name: value for name, value in options.items() if name.partition(".")[0] in ("lora", "optim")}
    first, one, two = (tmp_path / name for name in ("first", "one", "two"))
    start = {**options, **SHORT, "train.init_from": str(first)}
    done = run_all(
        job(1, config, first, **shared, **SHORT),
        job(1, config, one, **start),
        job(2, config, two, backend=backend, **start),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert tokens(one) == tokens(two)
    torch.testing.assert_close(figures(one, *METRICS), figures(two, *METRICS), rtol=1e-5, atol=1e-6)
