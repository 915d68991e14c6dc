"""Every command of the README and of the first page of the docs is run, in a short form: a tiny model, one step."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from onpolicy_sdft.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "getting-started.md")
#: What makes a run short, whatever its file of options.
SHORT = {
    "train.max_steps": 1, "train.batch_size": 2, "train.checkpoint_steps": "null", "train.precision": "fp32",
    "model.dtype": "float32", "rollout.max_new_tokens": 6, "probe.num_examples": 0, "gate.rows": 0, "data.limit": 4,
    "eval.kl_prompts": 1, "eval.kl_max_new_tokens": 3, "context.max_teacher_tokens": 900,
}  # fmt: skip
ROWS = {
    "gsm8k": {"prompt": "Ann has 2 apples and buys 3. How many?", "response": "2 + 3 = 5\n#### 5"},
    "openfunctions": {
        "prompt": 'Question: What is the weather in Oslo?\nFunction: {"name": "weather", "parameters": {"city": "x"}}',
        "response": "weather(city='Oslo')",
    },
}


def commands(page: Path) -> list[str]:
    """Return the commands of a page's indented blocks, without comments; several may stand on a line."""
    lines = re.findall(r"^ {4}(\S.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    parts = [part.strip() for line in lines for part in re.sub(r"\s{2,}#.*$", "", line).split(";")]
    return [part for part in parts if re.match(r"(sdft|bash|source|[A-Z_]+=\S+ .*bash) ", part)]


ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def test_commands_are_found():
    verbs = {command.split()[1] for command in ALL if command.startswith("sdft ")}
    assert verbs >= {"train", "probe", "eval", "chat", "report", "export"}


@pytest.mark.parametrize("command", [each for each in ALL if not each.startswith("sdft ")])
def test_a_script_that_the_docs_name_is_there(command):
    name = next(word for word in command.split() if word.endswith(".sh") or word.startswith(".venv"))
    assert name.startswith(".venv") or (ROOT / name).is_file()  # the first is made by the second


def test_the_commands_of_the_docs_run_one_after_the_other(tmp_path, model_dir, monkeypatch, capsys):
    """In order: what is evaluated and exported is what was trained before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody to chat with
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for number, command in enumerate(each for each in ALL if each.startswith("sdft ")):
        rows = ROWS["openfunctions" if "openfunctions" in command else "gsm8k"]
        for name in ("train.jsonl", "test.jsonl"):
            Path(name).write_text("".join(json.dumps(rows) + "\n" for _ in range(4)))
        words = [{"RUN": "run", "DIR": "exported"}.get(word, word) for word in shlex.split(command)[1:]]
        if words[0] in ("train", "probe"):
            output = "run" if words[0] == "train" and not Path("run").exists() else f"other-{number}"
            options = {"model.name": model_dir, "train.output_dir": output, **SHORT}
            words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += ["--num_examples", "2"] if words[0] == "probe" else []
        words += ["--model.name", str(model_dir)] if words[0] == "init" else []
        assert main(words) == 0, f"{command}: {capsys.readouterr().err}"
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "exported" / "model.safetensors").is_file()
