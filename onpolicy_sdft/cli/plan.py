"""``sdft plan``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.config.load import make_parser, parse


def run(arguments: Sequence[str]) -> int:
    """Print what a run would take on so many GPUs."""
    parser = make_parser("sdft plan", "What a run would take on so many GPUs: memory of a rank by backend.")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, over all machines: one rank each.")
    parser.add_argument("--gpu_memory", type=float, default=80.0, help="Memory of one GPU, GiB.")
    config, options = parse(parser, arguments)
    from onpolicy_sdft.fitting.memory_plan import GIB, RESERVE, plan
    from onpolicy_sdft.runs.progress import print_table

    outcome = plan(config, options.gpus, options.gpu_memory)
    sizes = outcome.sizes
    columns = list(dict.fromkeys(name for row in outcome.rows for name in row.parts))
    table = [
        (row.backend, *(f"{row.parts.get(name, 0) / GIB:.2f}" for name in columns), f"{row.peak / GIB:.2f}")
        for row in outcome.rows
    ]
    print_table(f"GiB of a rank, {options.gpus} GPUs", ["backend", *columns, "peak"], table)
    print(
        f"{sizes.num_trainable / 1e6:.1f} M of {sizes.num_parameters / 1e6:.1f} M parameters are trained; a step "
        f"writes {outcome.rollouts_a_step} rollouts, about {outcome.rollouts_a_rank} on a rank."
    )
    usable = f"{options.gpu_memory:g} GiB with {RESERVE:.0%} in reserve"
    if outcome.recommended is None:
        print(
            f"Nothing fits into {usable}: try more GPUs, model.gradient_checkpointing, fewer "
            "train.micro_batch_tokens, or model.dtype bfloat16 with LoRA."
        )
        return 1
    print(
        f"Take {outcome.recommended}: the first that fits into {usable} (launch/accelerate/{outcome.recommended}.yaml)."
    )
    return 0
