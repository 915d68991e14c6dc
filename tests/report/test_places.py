"""What the report says of sequences, comparisons, sweeps, shifts and several runs, against figures worked by hand."""

import json

import pytest
from places import (
    METHODS,
    make_comparison,
    make_run,
    make_sequence,
    make_shift,
    make_sweep,
    rollout,
    sequence,
)

from onpolicy_sdft.report.compose import compose
from onpolicy_sdft.report.document import Column, Picture, Table, used
from onpolicy_sdft.report.text import print_text
from onpolicy_sdft.runs.files import read_json, write_json_atomic

pytestmark = pytest.mark.usefixtures("unrendered_module")


def blocks(document, kind=Table):
    """All blocks of a kind, by name; a name that comes twice holds the last."""
    return {b.name: b for part in document.parts for s in part.sections for b in s.blocks if isinstance(b, kind)}


def cells(table):
    """A table as rows by heading."""
    return [dict(zip(table.text.columns, row, strict=True)) for row in table.text.rows]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    base = tmp_path_factory.mktemp("places")
    make_run(base / "run-a")
    make_run(base / "run-b", seed=1, lr=0.01, num_steps=40)
    make_sequence(base / "seq")
    make_comparison(base / "cmp")
    make_sweep(base / "swp")
    make_shift(base / "shf")
    return base


@pytest.fixture(scope="module")
def documents(places, unrendered_module):
    return {name: compose([places / name], places) for name in ("seq", "cmp", "swp", "shf")}


@pytest.mark.parametrize("name", ["seq", "cmp", "swp", "shf"])
def test_nothing_of_a_directory_is_missing_and_every_block_names_its_source(documents, places, name):
    (part,) = documents[name].parts
    assert part.missing == []
    for section in part.sections:
        for block in section.blocks:
            assert block.sources, block.name
            for source in block.sources:
                if not source.endswith("before-code.jsonl"):  # the records themselves are not made here
                    assert (places / source).is_file(), source


def test_a_sequence_shows_its_matrix_with_intervals_and_its_metrics(documents):
    tables = blocks(documents["seq"])
    rows = cells(tables["accuracy"])
    assert [row["stage"] for row in rows] == ["base model", "after code", "after calls", "after math"]
    assert rows[2]["calls\n(task, n = 128)"] == "0.800 [0.750, 0.850]"
    assert rows[3]["short_facts\n(never trained, n = 120)"] == "0.350 [0.300, 0.400]"
    assert [row["KL(base || tuned)\nnats a token"] for row in rows] == [
        "-", "0.0200 [0.0100, 0.0300]", "0.0400 [0.0300, 0.0500]", "0.0625 [0.0525, 0.0725]",
    ]  # fmt: skip
    found = {row["metric"]: row["value [95 %]"] for row in cells(tables["metrics"])}
    assert found["average accuracy"] == "0.633 [0.583, 0.683]"  # (0.4 + 0.6 + 0.9) / 3
    assert found["forgetting"] == "0.250 [0.200, 0.300]"  # (0.7 - 0.4 + 0.8 - 0.6) / 2
    assert found["backward transfer"] == "-0.250 [-0.300, -0.200]"
    assert [row["forgetting [95 %]"] for row in cells(tables["forgetting_by_task"])] == [
        "0.300 [0.250, 0.350]",
        "0.200 [0.150, 0.250]",
    ]
    pictures = blocks(documents["seq"], Picture)
    assert {"accuracy", "forgetting", "stages", "loss-total", "time-by-run"} <= set(pictures)
    assert pictures["accuracy"].sources == ("seq/sequence.json", "seq/stage-1-code/eval/before-code.jsonl")
    assert pictures["loss-total"].sources == tuple(
        f"seq/stage-{i}-{task}/metrics.jsonl" for i, task in enumerate(("code", "calls", "math"), start=1)
    )


def test_the_stages_of_a_sequence_bring_their_rollouts(documents):
    (part,) = documents["seq"].parts
    assert [(log.run, len(log.records)) for log in part.logs] == [("code", 2), ("calls", 2), ("math", 2)]


def test_a_comparison_puts_methods_beside_each_other_over_seeds(documents):
    tables = blocks(documents["cmp"])
    rows = {row["metric"]: row for row in cells(tables["over_seeds"])}
    assert list(rows["forgetting"]) == ["metric", *METHODS]
    # sft loses nothing more with seed 0 (0.250) and 0.01 more of both tasks with seed 1 (0.260)
    assert rows["forgetting"]["sft"] == "0.255 [0.225, 0.285]\n0.250 to 0.260, n = 2"
    assert rows["forgetting"]["sdft"] == "0.295 [0.265, 0.325]\n0.290 to 0.300, n = 2"
    assert len(cells(tables["sequences"])) == 8
    assert (
        cells(tables["sequences"])[5] | {"method": "sdft", "seed": "1", "sequence": "sdft-seed1"}
        == (cells(tables["sequences"])[5])
    )
    (test,) = cells(tables["mcnemar"])
    assert (test["a"], test["b"], test["task"], test["only a right"], test["p (exact, two-sided)"]) == (
        "sft", "sdft", "code", "20", "0.004",
    )  # fmt: skip
    assert [row["chosen"] for row in cells(tables["tuning"])] == ["no", "yes"] * 4
    (difference,) = cells(tables["differences"])
    assert difference == {"a": "sft", "b": "sdft", "forgetting": "0.100\n[0.050, 0.150]"}


def test_a_comparison_draws_methods_their_trade_and_the_matrix_of_every_sequence(documents):
    pictures = blocks(documents["cmp"], Picture)
    expected = {"metrics-by-method", "learning-against-forgetting", "stages-by-method", "tuning", "loss-total"}
    assert expected | {f"accuracy-{m}-seed{s}" for m in METHODS for s in (0, 1)} <= set(pictures)
    assert len(pictures["loss-total"].sources) == 24
    (part,) = documents["cmp"].parts
    assert len(part.logs) == 24


def test_a_sweep_shows_points_over_seeds_and_lists_what_failed_with_its_reason(documents):
    tables = blocks(documents["swp"])
    rows = cells(tables["points"])
    assert len(rows) == 6
    assert rows[2]["code"] == "0.425 ± 0.010 (0.420 to 0.430)"  # 0.4 + 20 * 0.001 + 0.01 * seed
    assert (rows[2]["runs"], rows[2]["failed"]) == ("2", "0")
    assert (rows[4]["code"], rows[4]["runs"], rows[4]["failed"]) == ("-", "0", "2")
    assert tables["points"].notes == ("Before training: code 0.300.", "No run has screen/keep_rate.")
    failed = cells(tables["runs_not_done"])
    assert [row["reason"] for row in failed] == ["steps in a row made no update"] * 2
    assert [row["seed"] for row in failed] == ["0", "1"]
    assert cells(tables["excluded"]) == [{"left out": "lr 1, targets policy", "why": "too hot"}]
    pictures = blocks(documents["swp"], Picture)
    assert {"axis-optim.lr", "axis-train.targets"} <= set(pictures)
    differing = {row["option"] for row in cells(tables["config_differences"])}
    assert differing == {"optim.lr", "train.seed"}


def test_a_shift_shows_similarities_kl_and_likelihood(documents):
    tables = blocks(documents["shf"])
    first, second = cells(tables["shift"])
    assert first["similarity [95 %]"] == "0.650 [0.500, 0.800]"
    assert second["similarity [95 %]"].startswith("0.950 ")
    assert first["KL(base || tuned), nats a token"] == "0.4000 [0.3500, 0.4500]"
    assert first["NLL of the base model's answers"] == "1.5000 [1.4000, 1.6000]"
    assert "similarities" in blocks(documents["shf"], Picture)
    assert "similarities" not in tables["shift"].data[0]


def test_several_runs_stand_in_one_table_and_one_picture_a_metric(places):
    document = compose([places / "run-b", places / "run-a", places / "run-a"], places)
    (part,) = document.parts
    assert part.title == "2 runs"
    assert part.missing == []
    tables, pictures = blocks(document), blocks(document, Picture)
    scores = [(row["set"], row["run"], row["before [95 %]"], row["change"]) for row in cells(tables["scores"])]
    assert scores == [
        ("code", "run-b", "0.400 [0.300, 0.500]", "+0.200"),
        ("code", "run-a", "0.400 [0.300, 0.500]", "+0.200"),
        ("facts", "run-b", "0.500 [0.400, 0.600]", "-0.050"),
        ("facts", "run-a", "0.500 [0.400, 0.600]", "-0.050"),
    ]
    assert tables["scores"].notes == ("facts: phrase matching undercounts refusals",)
    assert pictures["loss-total"].sources == ("run-b/metrics.jsonl", "run-a/metrics.jsonl")
    assert {"scores", "rollout-entropy", "memory-learn_mib", "time-by-run"} <= set(pictures)
    rates = {row["option"]: row["value (runs that have it)"] for row in cells(tables["config_differences"])}
    assert rates == {"optim.lr": "0.01 (run-b); 0.001 (run-a)", "train.seed": "1 (run-b); 0 (run-a)"}


def test_time_memory_collapse_and_verdicts_are_tabulated(places):
    tables = blocks(compose([places / "run-b"], places))
    (time,) = cells(tables["time"])
    # Of a step of 2 s: 1 s rollout, 0.1 screen, 0.2 score, 0.5 learn; 50 tokens learned a step.
    shares = {name: time[name] for name in ("rollout", "screen", "score", "learn", "other")}
    assert shares == {"rollout": "50%", "screen": "5%", "score": "10%", "learn": "25%", "other": "10%"}
    assert (time["steps"], time["seconds"], time["learned tokens/s"]) == ("40", "80", "25")
    assert (time["rollout memory"], time["learn memory"]) == ("3.00 GiB", "1.04 GiB")  # the most of 1024 + step MiB
    (collapse,) = cells(tables["collapse"])
    # Entropy is 0.8 - 0.01 * step; the ends are steps 1 to 4 and 37 to 40.
    assert collapse["entropy, nats"] == "0.775 -> 0.415"
    (verdicts,) = cells(tables["verdicts"])
    assert verdicts == {"run": "run-b", "keep": "75.0%", "fallback": "25.0%", "check": "25.0%"}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("seq", ["Accuracy matrix", "base model", "Forgetting by task"]),
        ("cmp", ["Methods over seeds", "Learning rates tried", "McNemar's tests"]),
        ("swp", ["Points", "No run has screen/keep_rate.", "lr 1, targets policy  too hot"]),
    ],
)
def test_the_terminal_shows_the_tables_of_the_page_that_sum_it_up(documents, capsys, name, lines):
    print_text(documents[name])
    shown = capsys.readouterr().out
    assert all(f"\n{line}" in f"\n{shown}" for line in lines)
    tables = [b for s in documents[name].parts[0].sections if s.is_summary for b in s.blocks if isinstance(b, Table)]
    assert len(tables) > 1
    for table in tables:
        for row in table.text.rows:
            assert all(" ".join(cell.split()) in shown for cell in row)
    assert "not here" not in shown


def test_runs_and_other_directories_share_a_document(places):
    document = compose([places / "shf", places / "run-a", places / "seq"], places)
    assert [part.kind for part in document.parts] == ["run", "shift", "sequence"]


def test_a_directory_that_holds_several_things_shows_them_all(tmp_path):
    make_sequence(tmp_path / "both")
    make_shift(tmp_path / "both")
    document = compose([tmp_path / "both"], tmp_path)
    assert [part.kind for part in document.parts] == ["sequence", "shift"]


def test_directories_of_the_same_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        make_run(tmp_path / parent / "seed0")
    (part,) = compose([tmp_path / "x" / "seed0", tmp_path / "y" / "seed0"], tmp_path).parts
    assert [log.run for log in part.logs] == ["x/seed0", "y/seed0"]


def test_a_sequence_that_is_not_whole_shows_what_there_is(tmp_path):
    make_sequence(tmp_path / "seq")
    content = sequence()
    for key in ("matrix", "retention"):
        content[key] = {name: rows[:2] for name, rows in content[key].items()}
    content |= {"stages": content["stages"][:1], "kl": content["kl"][:2], "metrics": {}, "forgetting_by_task": {}}
    write_json_atomic(tmp_path / "seq" / "sequence.json", content)
    document = compose([tmp_path / "seq"], tmp_path)
    assert [row["stage"] for row in cells(blocks(document)["accuracy"])] == ["base model", "after code"]
    assert {"accuracy", "stages"} <= set(blocks(document, Picture))
    assert document.parts[0].missing == []


def test_a_stage_that_is_gone_is_named(tmp_path):
    make_sequence(tmp_path / "seq")
    (tmp_path / "seq" / "stage-2-calls" / "metrics.jsonl").unlink()
    (part,) = compose([tmp_path / "seq"], tmp_path).parts
    assert part.missing == ["seq/stage-2-calls/metrics.jsonl: figures of the optimizer steps"]


@pytest.mark.parametrize("key", ["matrix", "stages", "metrics", "labels"])
def test_a_damaged_field_is_named_and_the_rest_is_still_shown(tmp_path, key):
    make_sequence(tmp_path / "seq")
    path = tmp_path / "seq" / "sequence.json"
    write_json_atomic(path, {**read_json(path), key: 7})
    (part,) = compose([tmp_path / "seq"], tmp_path).parts
    assert part.missing
    assert all(line.startswith("seq/sequence.json: ") for line in part.missing)
    assert part.sections


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (make_sequence, "sequence.json"),
        (make_comparison, "comparison.json"),
        (make_sweep, "sweep.json"),
        (make_shift, "shift.json"),
    ],
)
def test_a_file_that_is_not_json_or_empty_is_named(tmp_path, make, file):
    make(tmp_path / "it")
    for content in ("{broken", "[]", "{}"):
        (tmp_path / "it" / file).write_text(content)
        (part,) = compose([tmp_path / "it"], tmp_path).parts
        assert any(line.startswith(f"it/{file}: ") for line in part.missing)


def test_a_stopped_sequence_of_a_comparison_is_named_with_its_reason(tmp_path):
    make_comparison(tmp_path / "cmp")
    path = tmp_path / "cmp" / "comparison.json"
    content = read_json(path)
    content["rows"][0] |= {"stopped": "25 steps in a row made no update", "metrics": {}, "kl": None, "steps": None}
    write_json_atomic(path, content)
    document = compose([tmp_path / "cmp"], tmp_path)
    (part,) = document.parts
    assert part.missing == ["cmp/sft-seed0: not whole, in tables only (25 steps in a row made no update)"]
    rows = cells(blocks(document)["sequences"])
    assert rows[0]["stopped"] == "25 steps in a row made no update"
    assert rows[0]["forgetting"] == "-"


def test_a_column_of_zeros_is_shown_and_one_of_nothing_is_not():
    columns = [Column(name, name, str) for name in ("zero", "none", "unset", "empty")]
    rows = [{"zero": 0.0, "none": None, "unset": False, "empty": ""}] * 2
    assert [column.key for column in used(columns, rows)] == ["zero"]


def test_nasty_names_break_no_plot(tmp_path):
    evil = "$x$ </script>\ud800 😀 _{" + "y" * 60
    make_sequence(tmp_path / "seq")
    path = tmp_path / "seq" / "sequence.json"
    write_json_atomic(path, json.loads(json.dumps(read_json(path)).replace('"code"', json.dumps(evil))))
    document = compose([tmp_path / "seq"], tmp_path)
    assert {"accuracy", "forgetting", "stages"} <= set(blocks(document, Picture))
    assert document.parts[0].missing == []


def test_more_runs_than_looks_are_named_instead_of_drawn(tmp_path):
    paths = [make_run(tmp_path / f"run-{i}", num_steps=1, scored=False) for i in range(33)]
    (part,) = compose(paths, tmp_path).parts
    assert any(line.startswith("curves over the steps: 33 runs are more than 32 looks") for line in part.missing)
    assert "Curves" not in [section.title for section in part.sections]


def test_the_rollouts_are_counted_by_verdict_and_reason(tmp_path):
    rollouts = [rollout(1), rollout(1, num_tokens=9), rollout(2, verdict="drop", reason="empty", num_tokens=None)]
    document = compose([make_run(tmp_path / "run", rollouts=rollouts)], tmp_path)
    assert [tuple(row.values()) for row in cells(blocks(document)["recorded_rollouts"])] == [
        ("run", "drop", "empty", "1", "-"),
        ("run", "keep", "-", "2", "7"),
    ]
