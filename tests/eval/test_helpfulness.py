"""Helpfulness through the commands a user types; the judge is a stand-in on this machine, never a real service."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.runs.files import read_json, read_jsonl

Respond = Callable[[dict[str, Any], int], tuple[int, str]]


class StandIn:
    """A server that answers as the test says; it speaks OpenAI's chat completions."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.respond: Respond = lambda request, number: (200, completion(verdict_for_longer(request)))
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand_in.lock:
                    number = len(stand_in.requests)
                    stand_in.requests.append({**body, "path": self.path})
                    stand_in.keys.append(self.headers.get("Authorization"))
                status, text = stand_in.respond(body, number)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def completion(text: str | None) -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


def verdict_for_longer(request: dict[str, Any]) -> str:
    shown = re.findall(r"<answer_\d>\n(.*?)\n</answer_\d>", request["messages"][0]["content"], re.DOTALL)
    first, second = (len(text) for text in shown)
    return "Longer is better.\n" + ("[[tie]]" if first == second else "[[1]]" if first > second else "[[2]]")


@pytest.fixture
def judge() -> Iterator[StandIn]:
    pytest.importorskip("openai")
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Answers of two models; the first's is longer for the first two of four instructions, shorter for the third."""
    lengths = {"long": (30, 30, 5, 9), "short": (10, 10, 20, 9)}
    for name, sizes in lengths.items():
        entries = [
            {"instruction": f"Instruction {i}", "output": name[0] * size, "generator": name}
            for i, size in enumerate(sizes)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    return [str(tmp_path / "long.json"), str(tmp_path / "short.json")]


def ask(files: list[str], judge: StandIn, output: Path, *options: str) -> int:
    command = ["helpfulness", "judge", *files, "--judge", judge.url, "--judge_model", "m", "--output", str(output)]
    return main([*command, *options])


def test_the_win_rate_of_a_consistent_judge(judge, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert ask(files, judge, tmp_path / "out") == 0
    found = read_json(tmp_path / "out" / "judge.json")
    assert (found["n"], found["num_wins"], found["num_ties"], found["num_losses"]) == (4, 2, 1, 1)
    assert found["win_rate"] == 2.5 / 4
    assert (found["disagreement_rate"], found["num_unparsable"], found["num_refused"]) == (0.0, 0, 0)
    assert found["first_place_rate"] == 0.5
    assert found["first"]["generator"] == "long"
    assert found["first"]["mean_characters"] == 74 / 4
    assert len(judge.requests) == 8, "each pair in both orders"
    assert {request["path"] for request in judge.requests} == {"/v1/chat/completions"}
    assert all(request["temperature"] == 0.0 and request["max_tokens"] == 512 for request in judge.requests)
    assert set(judge.keys) == {"Bearer secret"}
    judgements = read_jsonl(tmp_path / "out" / "judgements.jsonl")
    assert sorted((j["pair"], j["order"]) for j in judgements) == [(p, o) for p in (1, 2, 3, 4) for o in ("ab", "ba")]
    assert "secret" not in (tmp_path / "out" / "judge.json").read_text()
    assert "0.625 [" in capsys.readouterr().out


def test_a_judge_that_takes_whatever_stands_first_prefers_nobody(judge, files, tmp_path):
    judge.respond = lambda request, number: (200, completion("[[1]]"))
    assert ask(files, judge, tmp_path / "out") == 0
    found = read_json(tmp_path / "out" / "judge.json")
    assert (found["win_rate"], found["num_ties"], found["disagreement_rate"]) == (0.5, 4, 1.0)
    assert found["first_place_rate"] == 1.0


def test_passing_faults_are_tried_again(judge, files, tmp_path):
    def respond(request: dict[str, Any], number: int) -> tuple[int, str]:
        return (
            (500, "{}")
            if number < 3
            else (429, "{}")
            if number == 3
            else (200, completion(verdict_for_longer(request)))
        )

    judge.respond = respond
    assert ask(files, judge, tmp_path / "out", "--num_parallel", "1") == 0
    assert read_json(tmp_path / "out" / "judge.json")["n"] == 4
    assert len(judge.requests) == 8 + 4


def test_a_judge_that_stays_away_stops_the_call_and_the_next_one_goes_on(judge, files, tmp_path, capsys):
    def respond(request: dict[str, Any], number: int) -> tuple[int, str]:
        return (
            (503, '{"error": {"message": "down"}}') if number >= 3 else (200, completion(verdict_for_longer(request)))
        )

    judge.respond = respond
    assert ask(files, judge, tmp_path / "out", "--num_parallel", "1", "--max_retries", "1") == 2
    assert "503" in (said := capsys.readouterr().err)
    assert "give the same command again" in said
    assert not (tmp_path / "out" / "judge.json").exists()
    assert len(read_jsonl(tmp_path / "out" / "judgements.jsonl")) == 3
    judge.requests.clear()
    judge.respond = lambda request, number: (200, completion(verdict_for_longer(request)))
    assert ask(files, judge, tmp_path / "out") == 0
    assert len(judge.requests) == 5, "what was judged is not asked again"
    assert read_json(tmp_path / "out" / "judge.json")["win_rate"] == 2.5 / 4
    judge.requests.clear()
    assert ask(files, judge, tmp_path / "out", "--temperature", "0.5") == 0
    assert len(judge.requests) == 8, "another way of asking is another judge"


def test_replies_that_cannot_be_read_are_counted_and_named(judge, files, tmp_path, capsys):
    replies = [
        (200, completion("I cannot decide.")),
        (200, completion(None)),
        (200, '{"strange": true}'),
        (200, "this is no JSON"),
        (400, '{"error": {"message": "too long"}}'),
        (200, '{"choices": [{}]}'),
    ]

    def respond(request: dict[str, Any], number: int) -> tuple[int, str]:
        return replies[number] if number < len(replies) else (200, completion(verdict_for_longer(request)))

    judge.respond = respond
    assert ask(files, judge, tmp_path / "out", "--num_parallel", "1") == 0
    found = read_json(tmp_path / "out" / "judge.json")
    assert (found["n"], found["num_pairs"], found["num_unparsable"], found["num_refused"]) == (1, 4, 2, 4)
    assert found["left_out"][0] == "pair 1 (ab): no clear verdict in the reply"
    assert any("pair 3 (ab): refused by the endpoint" in line and "too long" in line for line in found["left_out"])
    assert sum("no chat completion came back" in line for line in found["left_out"]) == 3
    assert "left out: pair 1 (ab)" in capsys.readouterr().out
    judge.requests.clear()
    assert ask(files, judge, tmp_path / "out") == 0
    assert len(judge.requests) == 4, "a question without a reply is asked again, one with an unclear reply is not"


def test_a_judge_that_refuses_everything_is_an_error(judge, files, tmp_path, capsys):
    judge.respond = lambda request, number: (400, '{"error": {"message": "no such option: temperature"}}')
    assert ask(files, judge, tmp_path / "out") == 2
    assert "replied to none of 8 questions" in (said := capsys.readouterr().err)
    assert "no such option: temperature" in said


def test_a_key_that_is_wrong_stops_the_call(judge, files, tmp_path, capsys):
    judge.respond = lambda request, number: (401, '{"error": {"message": "who are you?"}}')
    assert ask(files, judge, tmp_path / "out") == 2
    assert "status 401" in capsys.readouterr().err


def test_request_fields_can_be_added_and_left_out(judge, files, tmp_path):
    request = '{"max_tokens": null, "max_completion_tokens": 99, "temperature": null}'
    assert ask(files, judge, tmp_path / "out", "--request", request) == 0
    assert all(sent["max_completion_tokens"] == 99 for sent in judge.requests)
    assert not any({"max_tokens", "temperature"} & set(sent) for sent in judge.requests)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--judge", "http://localhost:1/v1"], "--judge_model NAME"),
        (["--judge", "http://localhost:1/v1", "--judge_model", "m", "--num_parallel", "0"], "num_parallel=0"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything(files, tmp_path, capsys, options, said):
    assert main(["helpfulness", "judge", *files, "--output", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_action_names_the_ones_there_are(capsys):
    assert main(["helpfulness", "praise"]) == 2
    assert "export, or judge" in capsys.readouterr().err


def test_a_model_is_exported_and_judged_by_a_model_of_this_machine(tmp_path, model_dir, capsys):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"instruction": f"Say {i}.", "dataset": "koala"} for i in range(3)]))
    for name, temperature in (("greedy", "0"), ("sampled", "1")):
        command = ["helpfulness", "export", str(model_dir), "--output", str(tmp_path / f"{name}.json")]
        options = [
            "--prompts",
            str(prompts),
            "--max_new_tokens",
            "5",
            "--temperature",
            temperature,
            "--generator",
            name,
        ]
        assert main([*command, *options]) == 0
    greedy = json.loads((tmp_path / "greedy.json").read_text())
    assert [set(entry) for entry in greedy] == [{"instruction", "output", "generator", "dataset"}] * 3
    assert [(e["instruction"], e["generator"], e["dataset"]) for e in greedy] == [
        (f"Say {i}.", "greedy", "koala") for i in range(3)
    ]
    assert not list(tmp_path.glob(".*partial*"))
    files = [str(tmp_path / "greedy.json"), str(tmp_path / "sampled.json")]
    command = ["helpfulness", "judge", *files, "--judge", f"local:{model_dir}", "--output", str(tmp_path / "out")]
    capsys.readouterr()
    # The prompts of a judge are longer than the tiny model's context window leaves room for.
    assert main([*command, "--max_new_tokens", "600"]) == 2
    assert "do not fit into the judge's context window of 1024" in capsys.readouterr().err
    assert main([*command, "--max_new_tokens", "8"]) == 0
    found = read_json(tmp_path / "out" / "judge.json")
    assert (found["n"], found["num_unparsable"], found["win_rate"]) == (0, 6, None), "a random model decides nothing"
    assert "No pair has two clear verdicts" in capsys.readouterr().out


def test_an_interrupted_export_goes_on(tmp_path, model_dir, monkeypatch):
    from onpolicy_sdft.eval import evaluate as job
    from onpolicy_sdft.rollout.engine import RolloutEngine

    monkeypatch.setattr(job, "CHUNK_SIZES", {"cpu": 2})
    original, sizes = RolloutEngine.generate, []

    def dies(self, requests, *arguments):
        sizes.append(len(requests))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return original(self, requests, *arguments)

    command = ["helpfulness", "export", str(model_dir), "--num_prompts", "7", "--max_new_tokens", "4", "--output"]
    assert main([*command, str(tmp_path / "whole.json")]) == 0
    monkeypatch.setattr(RolloutEngine, "generate", dies)
    assert main([*command, str(tmp_path / "parts.json")]) == 130
    assert not (tmp_path / "parts.json").exists()
    assert main([*command, str(tmp_path / "parts.json")]) == 0
    assert sizes == [2, 2, 2, 2, 1]
    assert json.loads((tmp_path / "parts.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
