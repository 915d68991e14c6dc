"""Change configs, flags and data files at random, and look at what a user would be told.

    python -m benchmarks.fuzz --cases 1000 --results benchmarks/results

A case is a shipped config with a few options changed in its YAML or by flags, or a file of rows with a few values, keys
or bytes changed, which is read and rendered for a tokenizer. Each is either read or refused by an error of the package
that says where, what and what to do. Anything else counts: another exception, an error without a way on, or more than
``SLOW`` seconds. Cases follow from their number, so that one can be made again (``--kind data --first 17 --cases 1``).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import ContextConfig, DataConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.errors import SdftError
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.runs.files import write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = "embedded:smollm2-135m-instruct"
SLOW = 5.0
#: What an error says when it says what to do.
WAY_ON = re.compile(
    r"Fix|Mend|Give |give a value|Set |Use |Rename|Save |Did you mean|nearest option|must be|one of|--[a-z]|"
    r"is not usable: expected |Lower |In a \.jsonl"
)

_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
_USER, _SAID = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "The answer is 4."}
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2 + 2?", "response": "The answer is 4."},
    {"prompt": "What is 2 + 2?", "completion": "The answer is 4."},
    {"prompt": [_USER], "completion": [_SAID]},
    {"instruction": "Add.", "input": "2 and 2", "output": "The answer is 4."},
    {"messages": [{"role": "system", "content": "Be brief."}, _USER, _SAID, _USER, _SAID]},
    {"messages": [_USER, {**_SAID, "reasoning_content": "2 and 2"}]},
    {"messages": [_USER, {"role": "assistant", "tool_calls": [_CALL]}, {"role": "tool", "content": "4"}, _SAID],
     "tools": [_TOOL]},
    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    {"query": "2 + 2?", "tools": json.dumps([_TOOL["function"]]), "answers": json.dumps([_CALL["function"]])},
    {"prompt": "Who may enter?", "privileged_context": "Members only.", "response": "Members."},
    {"prompt": "Which?", "response": "B", "choices": ["x", "y"], "answer": "B"},
]  # fmt: skip
TASKS = ("free_form", "exact", "math_word_problem", "multiple_choice", "function_call", "refusal")
ENDINGS = (".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 10**30, 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), "", " ", "\n",
    "null", "4", "-1", "1e3", "a b", "a" * 5000, "\ud800", "\u202e\ufeff", "\x00", "<|im_start|>user", "{{ x }}",
    "{% x", "../../etc/passwd", "~", "$HOME", [], [[]], [None], ["a", 1], {}, {"a": {}}, {"role": "user"},
    [{"role": "user"}],
    "[1, 2]", '{"a": 1}', "auto", "none", "embedded:nothing", "http://127.0.0.1:9/x",
]  # fmt: skip
NAMES = (
    "prompt", "response", "completion", "messages", "conversations", "role", "content", "from", "value", "tools",
    "tool_calls", "function", "name", "arguments", "system", "history", "label", "weight", "id", "image", "text", "",
    "answer", "choices", "reasoning_content", "thinking", "\ud800", "a.b", "input",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    kind: str  # read, refused, no way on, slow, or the name of an exception
    message: str
    seconds: float


def outcome_of(call: Callable[[], object]) -> Outcome:
    """Call, and say how a user would see it."""
    started = time.perf_counter()
    kind, message = "read", ""
    try:
        call()
    except SdftError as error:
        kind, message = "refused" if WAY_ON.search(str(error)) else "no way on", str(error)
    except Exception as error:
        kind, message = type(error).__name__, str(error)
    seconds = time.perf_counter() - started
    return Outcome("slow" if seconds > SLOW else kind, message, seconds)


def changed(value: Any, draw: random.Random) -> Any:
    """Change one thing of a tree of dicts and lists: a value, a key, what stands there twice, or not at all."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        how = draw.random()
        if how < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if how < 0.2:
            return {(draw.choice(NAMES) if name == key else name): each for name, each in value.items()}
        if how < 0.25:
            return {**value, draw.choice(NAMES): draw.choice(VALUES)}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        how = draw.random()
        if how < 0.15:
            return value[:place] + value[place + 1 :]
        if how < 0.3:
            return [*value, copy.deepcopy(value[place])]
        return [*value[:place], changed(value[place], draw), *value[place + 1 :]]
    if isinstance(value, str) and value and draw.random() < 0.3:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice(["", "\n", '"', "\\", "é", "<|im_end|>", "4"]) + value[place + 1 :]
    return copy.deepcopy(draw.choice(VALUES))


def data_file(folder: Path, draw: random.Random) -> Path:
    """Write a file of rows, some changed, in one of the forms that are read; some files are broken afterwards."""
    form = draw.choice(ROWS)
    rows: list[Any] = [copy.deepcopy(form) for _ in range(draw.randint(1, 4))]
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(rows))
        rows[place] = changed(rows[place], draw)
    ending = draw.choice(ENDINGS)
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        except (pyarrow.ArrowException, AttributeError, TypeError, ValueError, OverflowError):
            ending, path = ".jsonl", folder / "rows.jsonl"
    if ending != ".parquet":
        path.write_bytes(_written(rows, ending, draw))
    if draw.random() < 0.25:
        path.write_bytes(_broken(path.read_bytes(), draw))
    return path


def _written(rows: list[Any], ending: str, draw: random.Random) -> bytes:
    if ending == ".csv":
        keys = list(dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row)) or ["prompt"]
        cells = [[row.get(key, "") if isinstance(row, dict) else row for key in keys] for row in rows]
        sign = draw.choice([",", ",", ";", "\t"])
        lines = [sign.join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in [keys, *cells]]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    if ending == ".json":
        return json.dumps(rows).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if ending.endswith(".gz") else lines


def _broken(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return draw.choice([
        content[:place], content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
        b"\xef\xbb\xbf" + content, content + b"\n\n", content + content, content.replace(b"\n", b"\r\n"),
        content[:place] + b"\x00" + content[place:],
    ])  # fmt: skip


def read_data(path: Path, tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> None:
    """Read a file as a run does, up to the token ids of both prompts."""
    options: dict[str, Any] = {"on_bad_row": draw.choice(["error", "skip"]), "turns": draw.choice(["last", "all"])}
    if draw.random() < 0.2:
        name = draw.choice(["prompt_column", "response_column", "messages_column", "input_column", "tools_column"])
        options[name] = draw.choice(NAMES[:9])
    task = load_task(draw.choice((*TASKS, *["free_form"] * len(TASKS))), {})
    found = load_demonstrations(DataConfig(path=str(path), **options), task)
    context = ContextConfig(template=draw.choice(["reference", "prior_turn", "work"]), max_teacher_tokens=2048)
    prepare(found.demonstrations, Renderer(tokenizer, context), context, 0, on_bad_row=options["on_bad_row"])


def read_config(folder: Path, draw: random.Random) -> None:
    """Read a shipped config with some options changed, in the file or by flags."""
    source = draw.choice(sorted((ROOT / "configs" / "online").glob("*.yaml")))
    options = yaml.safe_load(source.read_text(encoding="utf-8"))
    flags: dict[str, Any] = {}
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            options = changed(options, draw)
        else:
            flags[draw.choice(_option_names(draw))] = copy.deepcopy(draw.choice(VALUES))
    path = folder / "config.yaml"
    text = yaml.safe_dump(options)
    path.write_text(text if draw.random() < 0.9 else text[: draw.randrange(len(text) + 1)], encoding="utf-8")
    load_config(path, **flags)


@cache
def _options() -> list[str]:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([a-z_.]+)`", page, re.MULTILINE)


def _option_names(draw: random.Random) -> list[str]:
    name = draw.choice(_options())
    return [name, name, name, name[:-1], f"{name}.x", name.partition(".")[0]]


def cases(kind: str, first: int, number: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, Outcome]]:
    """Make cases by their numbers, and yield how each ends."""
    for each in range(first, first + number):
        draw = random.Random(f"{kind} {each}")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if kind == "data":
                path = data_file(folder, draw)
                yield each, outcome_of(lambda path=path, draw=draw: read_data(path, tokenizer, draw))  # type: ignore[misc]
            else:
                yield each, outcome_of(lambda folder=folder, draw=draw: read_config(folder, draw))  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=["data", "config"], nargs="*", default=["data", "config"])
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_source(load_config(**{"model.name": EMBEDDED}).model))
    found: dict[str, dict[str, Any]] = {}
    for kind in arguments.kind:
        counts, longest = Counter[str](), 0.0
        for number, outcome in cases(kind, arguments.first, arguments.cases, tokenizer):
            counts[outcome.kind] += 1
            longest = max(longest, outcome.seconds)
            if outcome.kind not in ("read", "refused") or arguments.cases == 1:
                print(f"{kind} {number}: {outcome.kind}: {outcome.message!r:.400}", flush=True)
        asked = {"cases": arguments.cases, "first": arguments.first}
        found[kind] = {**asked, **counts, "longest_seconds": round(longest, 2)}
        print(kind, found[kind], flush=True)
    if arguments.results:
        versions = package_versions(["jsonargparse", "pyarrow", "transformers", "tokenizers"])
        about = {"git": git_state(ROOT), "hardware": hardware(), "versions": versions}
        write_json_atomic(arguments.results / "fuzz.json", {**about, "kinds": found})
        columns = ("kind", "cases", "read", "refused, with a way on", "anything else", "longest, seconds")
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for kind, each in found.items():
            other = each["cases"] - each.get("read", 0) - each.get("refused", 0)
            lines.append(
                f"| {kind} | {each['cases']} | {each.get('read', 0)} | {each.get('refused', 0)} | {other} | "
                f"{each['longest_seconds']} |"
            )
        write_text_atomic(arguments.results / "fuzz.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
