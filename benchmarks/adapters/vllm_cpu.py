"""vLLM on CPU as a long-lived peer in the generation benchmark, spoken to in JSON lines.

DOCSTRING
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, Any

READY_MARK = "ADAPTER_ENVIRONMENT_SET"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")
TCMALLOC_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve vLLM completions on CPU over stdin and stdout.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--kv-gib", type=float, default=4.0)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--worker-processes", action="store_true", help="engine and worker in processes of their own")
    parser.add_argument("--openmp", choices=("gnu", "intel"), default="intel")
    parser.add_argument("--tcmalloc", type=Path, help="libtcmalloc to preload; looked for in the usual places if unset")
    return parser.parse_args()


def find_tcmalloc(given: Path | None) -> Path | None:
    """The allocator vLLM's own documentation asks for, where this machine has it."""
    if given is not None:
        return given.resolve(strict=True)
    names = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
    folders = (Path(sys.prefix) / "lib", *map(Path, TCMALLOC_FOLDERS))
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


def find_openmp(kind: str) -> Path:
    if kind == "intel":
        return Path(sys.prefix) / "lib" / "libiomp5.so"
    return Path(sysconfig.get_paths()["purelib"]) / "torch" / "lib" / "libgomp.so.1"


def affinity(kind: str, cores: list[int]) -> dict[str, str]:
    """One OpenMP thread pinned to each core, as vLLM's own worker launcher sets it."""
    if kind == "gnu":
        return {"GOMP_CPU_AFFINITY": " ".join(map(str, cores))}
    pinned = f"granularity=fine,explicit,proclist=[{','.join(map(str, cores))}]"
    return {"KMP_AFFINITY": pinned, "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0"}


def environment(args: argparse.Namespace) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    preload = [path for path in (find_tcmalloc(args.tcmalloc), find_openmp(args.openmp)) if path is not None]
    wanted = {
        **dict.fromkeys(OFFLINE, "1"),
        "LD_PRELOAD": ":".join(map(str, preload)),
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(args.worker_processes)),
        "VLLM_USE_AOT_COMPILE": "0",  # 0.32.0 cannot load what it saved, and would compile anew at every start
        READY_MARK: "1",
    }
    return wanted if args.worker_processes else wanted | affinity(args.openmp, cores)


def restart_with(wanted: dict[str, str]) -> None:
    """Start this program again under `wanted`: libraries are preloaded and OpenMP is configured only at start."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def private_stdout() -> IO[str]:
    """The real standard output, with descriptor 1 pointed at standard error so that no log line can reach it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def build(args: argparse.Namespace) -> Any:
    from vllm import LLM

    return LLM(
        model=str(args.model),
        dtype=args.dtype,
        skip_tokenizer_init=True,
        generation_config="vllm",
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        kv_cache_memory_bytes=int(args.kv_gib * 2**30),
        enable_prefix_caching=args.prefix_caching,
        enforce_eager=args.eager,
        disable_log_stats=True,
    )


def sampling(order: dict[str, Any]) -> list[Any]:
    from vllm import SamplingParams

    return [
        SamplingParams(
            temperature=order["temperature"],
            max_tokens=request["max_new_tokens"],
            stop_token_ids=order["stop_token_ids"],
            ignore_eos=True,
            detokenize=False,
        )
        for request in order["requests"]
    ]


def peak_rss_mib() -> float:
    """The largest process of the tree, live or ended."""
    import psutil

    peaks = [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        peaks.extend(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM"))
    return round(max(peaks), 1)


def complete(llm: Any, order: dict[str, Any]) -> dict[str, Any]:
    import torch

    if order.get("seed") is not None:
        torch.manual_seed(order["seed"])  # the engine samples in this process, from the global generator
    prompts = [{"prompt_token_ids": request["prompt_token_ids"]} for request in order["requests"]]
    start = time.perf_counter()
    outputs = llm.generate(prompts, sampling(order), use_tqdm=False)
    seconds = time.perf_counter() - start
    num_tokens = [len(output.outputs[0].token_ids) for output in outputs]
    return {"seconds": seconds, "num_tokens": num_tokens, "max_rss_mib": peak_rss_mib()}


def serve(args: argparse.Namespace, answers: IO[str]) -> None:
    llm = build(args)
    import torch
    import vllm

    say(answers, {"ready": True, "vllm": vllm.__version__, "torch": torch.__version__})
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("quit"):
            return
        say(answers, complete(llm, order))


def main() -> None:
    args = arguments()
    if READY_MARK not in os.environ:
        restart_with(environment(args))
    serve(args, private_stdout())


if __name__ == "__main__":
    main()
