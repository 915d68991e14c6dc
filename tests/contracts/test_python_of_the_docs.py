"""The Python of the README and the docs runs, on a tiny model; the page on Python names every public name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

import onpolicy_sdft
from onpolicy_sdft.errors import SdftError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHORT = (
    '"train.max_steps": 1, "rollout.max_new_tokens": 6, "eval.kl_prompts": 0, "gate.rows": 0, "probe.num_examples": 0'
)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(code: str, model: Path, names: dict[str, Any]) -> None:
    code = re.sub(r'"(embedded:|Qwen/)[^"]*"', repr(str(model)), code)
    exec(re.sub(r'"train.max_steps": \d+', SHORT, code), names)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs(tmp_path, model_dir, monkeypatch, capsys, page):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "program"}
    for code in blocks(ROOT / page):
        run(code, model_dir, names)
    assert "finished" in capsys.readouterr().out or page == "README.md"
    assert names["trainer"].outcome.result.reason == "finished"


def test_the_program_that_comes_from_trl_runs(tmp_path, model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = datasets.Dataset.from_list([{"source": "a", "messages": talk, "num_turns": 1}] * 16)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    theirs, ours = blocks(DOCS / "migrating.md")
    run(ours, model_dir, {"__name__": "program"})
    assert (tmp_path / "final" / "adapter_config.json").is_file()
    kept = [line for line in theirs.splitlines() if line in ours.splitlines()]
    assert len(kept) >= 9  # all but the names and the arguments


def test_the_page_names_every_public_name():
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    names = set(onpolicy_sdft.__all__)
    for kind in (onpolicy_sdft.SDFTTrainer, onpolicy_sdft.Callback):
        names |= {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    names |= set(inspect.signature(onpolicy_sdft.SDFTTrainer).parameters)
    assert {name for name in names if name not in page} == set()


def test_options_without_a_file_are_the_defaults():
    assert onpolicy_sdft.load_config().train.batch_size == 16
    with pytest.raises(SdftError, match="data"):  # what to train on has to be said
        onpolicy_sdft.fit(onpolicy_sdft.load_config())
