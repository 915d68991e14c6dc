"""Run jobs on several ranks of this machine: one process imports and tries it all, then forks the ranks of each job.

Each line of standard input is a request, answered by a line with the exit code: that of the worst rank of the first job
that fails; the jobs after it are not run:

    {"jobs": [{"num_ranks": 2, "backend": "zero3", "files": [...], "overrides": {...}}],
     "output": "FILE", "errors": "FILE"}

Ranks talk through gloo with a short time-out, so that a hang is a failure.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import on_cpus
import torch
from harness import write_config
from torch import multiprocessing

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.errors import SdftError
from onpolicy_sdft.train import backend
from onpolicy_sdft.train.backend import Backend
from tests.conftest import make_model, make_tokenizer

TIMEOUT = timedelta(seconds=60)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def warm_up() -> None:
    """Train once in this process: what a first run loads (kernels, option parsers, statistics) its forks have then."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model().save_pretrained(folder / "model")
        make_tokenizer().save_pretrained(folder / "model")
        config = write_config(folder, folder / "model")
        fit(load_config(config, **{"train.output_dir": str(folder / "run"), "train.max_steps": 1}))
    on_cpus.forget_launch()


def work(rank: int, num_ranks: int, port: int, job: dict[str, Any]) -> None:
    """Be one rank."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    on_cpus.BACKENDS[job.get("backend", "ddp")](TIMEOUT)
    overrides = {**job["overrides"], **job.get("by_rank", {}).get(str(rank), {})}
    os.chdir(job.get("directories", {}).get(str(rank), "."))
    die_at = job.get("die_at", {}).get(str(rank))
    if die_at is not None:
        _die_at_step(*die_at)
    if "late_bytes" in job:
        backend._LATE_BYTES = job["late_bytes"]
    if rank in job.get("short_of_memory", []):
        _run_out_of_memory()
    if "detached" in job:
        _detach(job["detached"])
    counted = _count_reductions() if job.get("count_reductions") else []
    if job.get("count_collectives"):
        _count_collectives(rank)
    try:
        outcome = fit(load_config(*job["files"], **overrides), ["test"])
    except SdftError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    if job.get("count_reductions"):
        os.write(1, f"rank {rank} reduced {len(counted)} buckets\n".encode())
    torch.distributed.destroy_process_group()
    sys.exit(outcome.result.exit_code)


def _count_reductions() -> list[int]:
    """Note each bucket of gradients that DDP reduces, and each reduction of gradients after the backward."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    prepare, reduce, counted = Backend.prepare, Backend._allreduce_gradients, []

    def note(state, bucket):  # DDP refuses annotations that are written as text
        counted.append(bucket.index())
        return allreduce_hook(state, bucket)

    def counting(self: Backend, *arguments: Any) -> Any:
        policy, optimizer = prepare(self, *arguments)
        policy.register_comm_hook(None, note)
        return policy, optimizer

    def reducing(self: Backend) -> None:
        counted.append(0)
        reduce(self)

    Backend.prepare, Backend._allreduce_gradients = counting, reducing  # type: ignore[method-assign]
    return counted


def _run_out_of_memory() -> None:
    """Let this rank learn one row at a time, no more."""
    from onpolicy_sdft.models.policy import Policy

    forward = Policy.forward

    def short(self: Policy, batch: Any, *others: Any) -> Any:
        if len(batch.rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch, *others)

    Policy.forward = short  # type: ignore[method-assign]


def _detach(name: str) -> None:
    """Let no gradient go back through a layer of the model that is trained."""
    module = importlib.import_module("onpolicy_sdft.fitting.fit")

    make_ready = module.make_ready

    def detached(model: torch.nn.Module, *others: Any) -> None:
        layer = next(layer for full_name, layer in model.named_modules() if full_name.endswith(name))
        layer.register_forward_hook(lambda _, __, output: output.detach())
        make_ready(model, *others)

    module.make_ready = detached


def _count_collectives(rank: int) -> None:
    """Say how many collectives a rank calls to put weights in place, and while it writes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from onpolicy_sdft.models.reading import GatheredCopy
    from onpolicy_sdft.train.source import PolicySource

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            self.count += operation.namespace in ("c10d", "_c10d_functional") and "wait" not in operation.__name__
            return operation(*arguments, **(options or {}))

    def counting(owner: Any, name: str, where: str) -> None:
        method = getattr(owner, name)

        def counted(self: Any, *arguments: Any, **options: Any) -> Any:
            with Counting() as seen:
                found = method(self, *arguments, **options)
            os.write(1, f"rank {rank} {where} {seen.count}\n".encode())  # in one piece: ranks share the pipe
            return found

        setattr(owner, name, counted)

    counting(PolicySource, "rollouts", "wrote with")
    counting(GatheredCopy, "_fill", "gathered with")


def _die_at_step(step: int, number: int) -> None:
    """Send this rank a signal in the middle of a step."""
    from onpolicy_sdft.train.step import Trainer

    learn = Trainer.learn

    def dying(self: Trainer, *arguments: Any) -> Any:
        if self.state.step == step:
            os.kill(os.getpid(), signal.Signals(number))
        return learn(self, *arguments)

    Trainer.learn = dying  # type: ignore[method-assign]


def run(job: dict[str, Any]) -> int:
    """Run one job; return the exit code of its worst rank."""
    num_ranks = job["num_ranks"]
    context = multiprocessing.start_processes(
        work, args=(num_ranks, free_port(), job), nprocs=num_ranks, join=False, start_method="fork"
    )
    try:
        while not context.join(timeout=1, grace_period=10):  # one dead rank ends the others
            pass
    except multiprocessing.ProcessExitedException as error:
        print(f"rank {error.error_index} ended with {error.exit_code}", file=sys.stderr)
        return 1 if error.exit_code < 0 else error.exit_code
    return 0


def run_all(jobs: list[dict[str, Any]]) -> int:
    """Run jobs one after another, up to the first that fails."""
    for job in jobs:
        if code := run(job):
            print(f"failed: {job}", file=sys.stderr, flush=True)
            return code
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    if not torch.cuda.is_available():  # a process that has used a GPU cannot be forked
        warm_up()
    gc.freeze()  # what is there is shared by the forks, and looking through it would copy it
    for line in sys.stdin:
        asked = json.loads(line)
        if any(job["backend"].startswith("zero") for job in asked["jobs"]):
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  # once, before the forks: it loads Inductor
        child = os.fork()  # each request starts from what was imported and nothing else
        if child == 0:
            for name, stream in (("output", 1), ("errors", 2)):
                os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            sys.exit(run_all(asked["jobs"]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()
