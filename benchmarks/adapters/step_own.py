"""This project's trainer in the step benchmark; see ``steps.py``.

python -m benchmarks.adapters.step_own '{"configs": [...], "overrides": {...}}'
"""

from __future__ import annotations

import json
import sys

from benchmarks.adapters.steps import Channel, peak_mib
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.build.trainer import make_trainer
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.batch import make_batch
from onpolicy_sdft.train.loop import Plan


def main() -> None:
    channel, settings = Channel(), json.loads(sys.argv[1])
    config = load_config(*settings["configs"], **settings["overrides"])
    bundle = load_bundle(config)
    data = make_prompt_pairs(config, bundle, *load_rows(config))
    model = prepare_trainable(bundle.loaded.model, config.lora, config.model, config.train.seed)
    backend, size = Backend(config.train.precision), config.train.batch_size
    pairs = data.prepared.pairs
    with Progress("step", 1, "steps", enabled=False) as progress:
        plan = Plan(len(pairs) // size, None)
        trainer = make_trainer(config, bundle, data, model, backend, plan, progress)
        channel.say({"ready": True, "num_parameters": sum(p.numel() for p in model.parameters())})
        while channel.wait():
            start = trainer.state.step * size
            metrics = trainer.train_step(make_batch(pairs[start : start + size], trainer.num_samples, trainer.backend))
            values = metrics.values
            channel.say(
                {
                    "seconds": values["time/step_seconds"],
                    "rollout": values["time/rollout_seconds"],
                    "score": values["time/score_seconds"],
                    "learn": values["time/learn_seconds"],
                    "num_tokens": values["train/num_loss_tokens"],
                    "num_prompt_tokens": sum(len(target.pair.student_ids) for target in metrics.targets),
                    "num_teacher_tokens": sum(len(target.pair.teacher_ids) for target in metrics.targets),
                    "writes_bare": config.rollout.prompt == "student",
                    "peak_mib": peak_mib(),
                }
            )


if __name__ == "__main__":
    main()
