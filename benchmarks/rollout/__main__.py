"""Rollouts side by side: the same requests, weights, dtype and threads, contender after contender, again and again.

    python -m benchmarks.rollout --config benchmarks/rollout/gsm8k.yaml --results benchmarks/results

A config names the run config the prompts are made by, the requests and the contenders (see ``contenders.py``). Passes
are interleaved; ratios are taken within a round. Prints a table and writes NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy import stats

from benchmarks.rollout import contenders as kinds
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.rollout.weights import pack_linear
from onpolicy_sdft.runs.files import write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "engine": kinds.Engine,
    "hf_generate": kinds.HFGenerate,
    "continuous_batching": kinds.ContinuousBatching,
    "vllm": kinds.VLLM,
    "vllm_backend": kinds.VLLMBackend,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--repeats", type=int, help="Rounds; the config's by default.")
    parser.add_argument("--only", nargs="+", help="Contenders by name; all by default.")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text())
    bundle, requests = load(config)
    model = bundle.loaded.model.eval()
    found: dict[str, list[kinds.Pass]] = {}
    machine = rates(model)
    facts = {
        "command": ["python -m benchmarks.rollout", *sys.argv[1:]], "config": config, "git": git_state(ROOT),
        "hardware": hardware(), "threads": torch.get_num_threads(), "allocator": allocator(), "machine": machine,
        "versions": package_versions(["torch", "transformers", "numba"]),
    }  # fmt: skip

    def write(text: str, rows: list[dict[str, Any]]) -> None:
        if options.results:
            target = options.results / f"rollout_{options.config.stem}"
            write_json_atomic(target.with_suffix(".json"), json.loads(json.dumps({**facts, "rows": rows})))
            write_text_atomic(target.with_suffix(".md"), text + "\n")

    for temperature in config["temperatures"]:
        for passes in rounds(config, options, bundle, model, requests, temperature):
            found |= {f"{name}, T={temperature:g}": each for name, each in passes.items()}
            rows = [row(name, each, found, config, machine, requests) for name, each in found.items()]
            text = table(rows, config, len(requests))
            write(text, rows)  # after every round: one takes minutes
    print(text)


def load(config: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Load the model in the config's dtype and make the teacher's prompts."""
    run = load_config(ROOT / config["run_config"], **{"model.dtype": config["dtype"], **config.get("overrides", {})})
    bundle = load_bundle(run)
    task, rows = load_rows(run)
    pairs = make_prompt_pairs(run, bundle, task, rows).prepared.pairs[: config["num_requests"]]
    limit = config["max_new_tokens"]
    return bundle, [kinds.request_of(v.teacher_ids, v.response_ids, v.demonstration.example_id, limit) for v in pairs]


def rounds(
    config: Any, options: Any, bundle: Any, model: Any, requests: Any, temperature: float
) -> Iterator[dict[str, list[kinds.Pass]]]:
    """Run all contenders in turn, several times; yield the passes so far after every round."""
    made, wanted = {}, config["contenders"]
    for name, settings in wanted.items():
        if options.only and name not in options.only:
            continue
        settings = dict(settings)
        kind, settings["repeats"] = settings.pop("kind"), settings.get("repeats", config["repeats"])
        limit = settings.pop("repeats")
        settings.pop("against", None)
        if kind == "vllm":
            settings |= {
                "dtype": config["dtype"],
                "model_path": resolve_source(load_config(ROOT / config["run_config"]).model),
            }
            if not Path(settings["python"]).is_file():
                print(f"{name}: {settings['python']} is not there, left out", flush=True)
                continue
        if kind == "vllm_backend" and find_spec("vllm") is None:
            print(f"{name}: vLLM is not installed beside the project, left out", flush=True)
            continue
        made[name] = (KINDS[kind](model, bundle.stop_token_ids, **settings), limit)
    asked = requests
    histories = [c for c, _ in made.values() if isinstance(c, kinds.Engine) and "history" in c.drafts]
    if histories:
        asked = kinds.with_history(histories[0], requests, temperature)
    for contender, _ in made.values():
        contender.prepare(asked, temperature)
    passes: dict[str, list[kinds.Pass]] = {name: [] for name in made}
    for index in range(options.repeats or config["repeats"]):
        for name, (contender, limit) in made.items():
            if index < limit:
                passes[name].append(contender.run(asked, temperature, index))
                last = passes[name][-1]
                speed = last.num_tokens / last.seconds
                print(f"{time.strftime('%X')} T={temperature:g} round {index} {name}: {speed:.1f} tokens/s", flush=True)
        yield passes
    for contender, _ in made.values():
        contender.close()


def row(name: str, passes: Any, found: Any, config: Any, machine: Any, requests: Any) -> dict[str, Any]:
    """Summarise a contender."""
    speeds = [p.num_tokens / p.seconds for p in passes]
    contender, _, temperature = name.rpartition(", ")
    base = found[f"{config['contenders'][contender].get('against', config['baseline'])}, {temperature}"]
    paired = [s / (b.num_tokens / b.seconds) for s, b in zip(speeds, base, strict=False)]
    last = passes[-1].details
    made = {
        "name": name, "repeats": len(passes), "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds), "fastest": max(speeds), "ratio": statistics.median(paired),
        "ratio_interval": interval(paired), "peak_mib": max(p.peak_mib for p in passes),
        "passes": [{"seconds": p.seconds, "num_tokens": p.num_tokens, **p.details} for p in passes],
    }  # fmt: skip
    if last:
        decode = [(p.num_tokens - len(requests)) / p.details["decode_seconds"] for p in passes]
        base_decode = [(b.num_tokens - len(requests)) / b.details["decode_seconds"] for b in base if b.details]
        made |= {
            "decode_tokens_per_second": statistics.median(decode),
            "decode_ratio": statistics.median([d / b for d, b in zip(decode, base_decode, strict=False)] or [1.0]),
            "tokens_per_row": (last["num_tokens"] - len(requests)) / max(1, last["num_decode_rows"]),
            "occupancy": last["num_decode_rows"] / max(1, last["num_decode_forwards"]) / last["num_slots"],
            "accept_rate": last["num_accepted_tokens"] / max(1, last["num_drafted_tokens"]),
            "differing": statistics.mean(kinds.differing(p.texts, b.texts) for p, b in zip(passes, base, strict=False)),
            **floors(last, machine),
        }
    return made


def floors(last: dict[str, Any], machine: dict[str, float]) -> dict[str, float]:
    """Fractions of what the machine's matrix rate and memory bandwidth allow, prefill and decode apart."""
    body, head = machine["body_parameters"], machine["head_parameters"]
    computed = last["num_prompt_tokens"] - last["num_shared_tokens"]
    prefill = 2 * body * computed / machine["flops"]
    steps, tokens = last["num_decode_forwards"], last["num_decode_rows"] + last["num_drafted_tokens"]
    read = steps * (body + head) * machine["bytes_per_parameter"] / machine["bandwidth"]
    decode = max(read, 2 * (body + head) * tokens / machine["flops"])
    return {
        "prefill_floor_fraction": prefill / last["prefill_seconds"],
        "decode_floor_fraction": decode / last["decode_seconds"],
    }


def interval(ratios: list[float]) -> list[float] | None:
    """95 % interval of the mean ratio."""
    if len(ratios) < 3 or statistics.stdev(ratios) == 0:
        return None
    low, high = stats.t.interval(0.95, len(ratios) - 1, statistics.mean(ratios), stats.sem(ratios))
    return [float(low), float(high)]


def rates(model: Any) -> dict[str, float]:
    """Measure the machine, bytes and operations a second in the model's dtype, and count what a token computes."""
    weight = model.get_output_embeddings().weight
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight is not weight]
    big, out = torch.randn(1 << 26), torch.empty(1 << 26)
    packed, x = (
        pack_linear(torch.randn(1536, 576).to(weight.dtype)),
        torch.randn(1024, 576).to(weight.dtype),
    )

    def best(run: Any) -> float:
        times = []
        for _ in range(7):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return min(times)

    linear = torch.ops.mkldnn._linear_pointwise
    seconds = best(lambda: [linear(x, packed, None, "none", [], "") for _ in range(20)])
    return {
        "bandwidth": 2 * big.nbytes / best(lambda: out.copy_(big)), "flops": 20 * 2 * 1024 * 1536 * 576 / seconds,
        "body_parameters": float(sum(m.weight.numel() for m in linears)), "head_parameters": float(weight.numel()),
        "bytes_per_parameter": float(weight.element_size()),
    }  # fmt: skip


def allocator() -> str:
    """Return which allocator the process runs under: tcmalloc where it was preloaded."""
    return "tcmalloc" if "tcmalloc" in Path("/proc/self/maps").read_text() else "the system's"


def table(rows: list[dict[str, Any]], config: dict[str, Any], num_requests: int) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| contender | n | tokens/s (min-max) | ratio [95 %] | prefill s | decode s | decode tok/s | decode ratio | "
        "tokens/row | occupancy | accepted | differing | prefill floor | decode floor |",
        "|" + "---|" * 14,
    ]
    for r in rows:
        low_high = r["ratio_interval"]
        within = f" [{low_high[0]:.2f}, {low_high[1]:.2f}]" if low_high else ""
        cells = [
            r["name"], r["repeats"], f"{r['tokens_per_second']:.0f} ({r['slowest']:.0f}-{r['fastest']:.0f})",
            f"{r['ratio']:.2f}{within}",
        ]  # fmt: skip
        if "decode_ratio" in r:
            last = r["passes"][-1]
            cells += [
                f"{last['prefill_seconds']:.1f}", f"{last['decode_seconds']:.1f}",
                f"{r['decode_tokens_per_second']:.0f}", f"{r['decode_ratio']:.2f}", f"{r['tokens_per_row']:.2f}",
                f"{r['occupancy']:.2f}", f"{r['accept_rate']:.2f}", f"{r['differing']:.1e}",
                f"{r['prefill_floor_fraction']:.2f}", f"{r['decode_floor_fraction']:.2f}",
            ]  # fmt: skip
        else:
            cells += [""] * 10
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        f"{num_requests} requests, at most {config['max_new_tokens']} new tokens, {config['dtype']}; useful tokens a "
        f"second, median of n interleaved rounds; ratios to `{config['baseline']}` or to the same slots without "
        "drafts, paired by round. Differing: share of tokens that rounding made another one, drawn with the same keys "
        "as the baseline's. Floors: matrix rate and memory bandwidth of the linears alone.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
