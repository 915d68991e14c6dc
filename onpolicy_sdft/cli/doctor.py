"""``sdft doctor``."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from onpolicy_sdft.cli.target import option_parser, parse_options
from onpolicy_sdft.machine import free_memory, num_cores, total_memory
from onpolicy_sdft.versions import package_versions

_PACKAGES = ("onpolicy_sdft", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
#: Extras, what is imported of each, and what it is for.
_EXTRAS = {
    "deepspeed": ("deepspeed", "ZeRO on several GPUs"),
    "bitsandbytes": ("bitsandbytes", "4-bit base models, 8-bit AdamW"),
    "vllm": ("vllm", "rollout.backend vllm"),
    "tensorboard": ("tensorboard", "train.trackers tensorboard"),
    "wandb": ("wandb", "train.trackers wandb"),
    "trackio": ("trackio", "train.trackers trackio"),
    "mlflow": ("mlflow", "train.trackers mlflow"),
    "swanlab": ("swanlab", "train.trackers swanlab"),
    "slurm": ("submitit", "sweeps under Slurm"),
    "judge": ("openai", "a judge for helpfulness"),
    "lm-eval": ("lm_eval", "sdft lm_eval"),
    "similarity": ("sentence_transformers", "distances between answers in sdft shift"),
}


def run(arguments: Sequence[str]) -> int:
    """Print what this machine has, and what the program will use of it."""
    parse_options(option_parser("sdft doctor", "What this machine has, and what will be used of it."), arguments)
    for name, text in facts():
        print(f"{name:14} {text}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    """Yield what was found, by name."""
    import torch

    versions = package_versions(_PACKAGES)
    yield "versions", ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    free, limit = free_memory()
    where = f" ({limit})" if limit else ""
    yield "memory", f"{free / 2**30:.1f} GiB free of {total_memory() / 2**30:.1f}{where}"
    yield (
        "cores",
        f"{num_cores()} usable, {torch.get_num_threads()} threads in torch, {torch.backends.cpu.get_cpu_capability()}",
    )
    yield from _devices()
    for extra, (module, use) in _EXTRAS.items():
        there = find_spec(module) is not None
        yield (
            f"[{extra}]",
            f"installed: {use}" if there else f"not installed ({use}): pip install 'onpolicy_sdft[{extra}]'",
        )


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield (
                f"gpu {index}",
                (
                    f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}, "
                    f"bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
                ),
            )
    else:
        built = torch.version.cuda
        why = "torch is a CPU build" if built is None else f"torch has CUDA {built}, but no device or driver is there"
        yield "gpu", f"none: {why}"
    yield "rollouts", _rollouts()
    yield "bfloat16", _bfloat16()


def _rollouts() -> str:
    import torch

    if not torch.cuda.is_available():
        return "the engine on the CPU, with kernels compiled by numba"
    if find_spec("triton") is None:
        return "the engine in plain operations: triton is not installed, so its kernels and graphs are not used"
    return "the engine with Triton kernels and CUDA graphs, where the model allows it (each run says what it uses)"


def _bfloat16() -> str:
    """Say whether products in bfloat16 pay on this machine: by its instructions on a CPU."""
    import torch

    from onpolicy_sdft.models.load import is_slow_in_bfloat16

    if torch.cuda.is_available():
        return "model.dtype bfloat16 and train.precision bf16 are faster and take half the memory"
    if is_slow_in_bfloat16("cpu"):
        return "this CPU has no instructions for it: model.dtype bfloat16 saves memory and is several times slower"
    return "this CPU has instructions for it: model.dtype bfloat16 is faster"
