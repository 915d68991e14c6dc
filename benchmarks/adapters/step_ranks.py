"""This project's trainer on several ranks of this machine, one step at a time; see ``steps.py``.

    python -m benchmarks.adapters.step_ranks '{"backend": "zero3", "ranks": 2, "configs": [...], "overrides": {...}}'

On CPUs weights are divided with the help of ``tests/distributed/on_cpus.py``. The first rank talks; the others follow.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from benchmarks.adapters.steps import Channel, peak_mib
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.build.trainer import make_trainer
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.reading import GatheredCopy
from onpolicy_sdft.rollout.hf import CollectiveDecoding
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.train.batch import make_batch
from onpolicy_sdft.train.launch import make_backend
from onpolicy_sdft.train.loop import Plan

PARTS = ("rollout", "rollout_wait", "score", "learn", "step")


def work(rank: int, settings: dict[str, Any], port: int, channel: Channel | None) -> None:
    """Be one rank: take a step whenever the first is asked to."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "distributed"))
    import on_cpus

    ranks = settings["ranks"]
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(settings["threads"])
    on_cpus.BACKENDS[settings["backend"]](timedelta(hours=1))
    config = load_config(*settings["configs"], **settings["overrides"])
    backend = make_backend(config.train.precision, 3600.0)
    together = CollectiveDecoding(backend, backend.inside) if config.rollout.weights == "sharded" else None
    bundle = load_bundle(config, ranks=backend, device=backend.device, together=together)
    data = make_prompt_pairs(config, bundle, *load_rows(config))
    model = prepare_trainable(bundle.loaded.model, config.lora, config.model, config.train.seed)
    pairs, size = data.prepared.pairs, config.train.batch_size
    with Progress("step", 1, "steps", enabled=False) as progress:
        trainer = make_trainer(config, bundle, data, model, backend, Plan(len(pairs) // size, None), progress)
        reader = trainer.weights.reader
        moved = _bytes_to_gather(reader) if isinstance(reader, GatheredCopy) else 0
        if channel is not None:
            channel.say({"ready": True, "bytes_gathered": moved})
        while _ask(channel):
            start = trainer.state.step * size
            values = trainer.train_step(
                make_batch(pairs[start : start + size], trainer.num_samples, trainer.backend)
            ).values
            peaks = backend.gather(peak_mib())
            if channel is not None:
                found = {name: values[f"time/{name}_seconds"] for name in PARTS}
                channel.say({**found, "num_tokens": values["train/num_loss_tokens"], "peak_mib": max(peaks)})
    if rank:
        os._exit(0)


def _bytes_to_gather(reader: GatheredCopy) -> int:
    """Return what a step gathers, whole: frozen weights too where they are not kept."""
    parameters = reader.model.named_parameters()
    return sum(p.numel() * p.itemsize for name, p in parameters if not reader.keeps or name in reader._trainable)


def _ask(channel: Channel | None) -> bool:
    answer = [channel.wait() if channel is not None else None]
    distributed.broadcast_object_list(answer)
    return bool(answer[0])


def main() -> None:
    channel, settings = Channel(), json.loads(sys.argv[1])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    others = multiprocessing.get_context("fork")
    processes = [
        others.Process(target=work, args=(rank, settings, port, None), daemon=True)
        for rank in range(1, settings["ranks"])
    ]
    for process in processes:
        process.start()
    work(0, settings, port, channel)
    for process in processes:
        process.join(60)
        process.kill()
    # Nothing is left to save, and gloo waits for itself now and then when it is taken down right behind a collective:
    # its thread wants the interpreter's lock for a tensor while the interpreter, taking DDP down, waits for the thread.
    os._exit(0)


if __name__ == "__main__":
    main()
