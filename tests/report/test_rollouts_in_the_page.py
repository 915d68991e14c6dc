"""The rollouts inside the page: what of them is there, and that no text of theirs is read as anything else."""

import json

from places import EVIL, many_rollouts, rollout

from onpolicy_sdft.report.browser import FIELDS, pack, script_json
from onpolicy_sdft.report.document import Document, Part, RolloutLog
from onpolicy_sdft.report.html import render_page


def unpack(packed):
    """Rows as mappings, their texts put in."""
    found = json.loads(packed.text)
    rows = []
    for row in found["rows"]:
        named = dict(zip(FIELDS, row, strict=True))
        for name in FIELDS[10:]:
            named[name] = found["texts"][named[name]] if named[name] >= 0 else None
        rows.append({**named, "run": found["runs"][named["run"]]})
    return rows


def logs(**runs):
    return [RolloutLog(name, f"{name}/rollouts.jsonl", records) for name, records in runs.items()]


def test_every_rollout_is_there_whatever_its_texts():
    records = many_rollouts(500)
    packed = pack(logs(a=records), 10**6)
    assert (packed.num_recorded, packed.notice) == (500, "")
    assert [{key: row[key] for key in FIELDS[1:]} for row in unpack(packed)] == [
        {key: record[key] for key in FIELDS[1:]} for record in records
    ]


def test_no_sign_of_a_tag_is_left_in_the_json():
    packed = pack(logs(a=[rollout(1, rollout=EVIL, verdict=EVIL, example_id=EVIL)], **{EVIL: []}), 10**6)
    assert not set("<>&\u2028\u2029\ud800") & set(packed.text)
    packed.text.encode()  # what UTF-8 cannot hold is escaped too
    (row,) = unpack(packed)
    assert row["rollout"] == row["verdict"] == row["example_id"] == EVIL
    assert json.loads(script_json({"a": [1, EVIL]})) == {"a": [1, EVIL]}


def test_a_text_that_comes_often_is_there_once():
    packed = pack(logs(a=[rollout(step) for step in range(100)]), 10**6)
    assert packed.text.count("It is 4.") == 1
    assert len(json.loads(packed.text)["texts"]) == 3


def test_figures_that_json_or_the_script_cannot_hold_are_shown_as_none_or_text():
    records = [rollout(1, logprob_mean=float("-inf")), rollout(2, logprob_mean=float("nan"), num_tokens=[7])]
    first, second = unpack(pack(logs(a=records), 10**6))
    assert first["logprob_mean"] is None
    assert second["logprob_mean"] is None
    assert second["num_tokens"] == "[7]"


def test_what_does_not_fit_is_left_out_by_verdict_newest_kept_and_counted():
    records = [
        rollout(step, rollout=f"{step} " + "x" * 1000, verdict=("keep", "drop")[step % 2]) for step in range(100)
    ]
    packed = pack(logs(a=records), 20_000)
    rows = unpack(packed)
    assert len(packed.text.encode()) <= 20_000
    assert 0 < len(rows) < 20
    kept = [[row["step"] for row in rows if row["verdict"] == verdict] for verdict in ("keep", "drop")]
    assert kept[0] == list(range(100 - 2 * len(kept[0]), 100, 2))
    assert kept[1] == list(range(101 - 2 * len(kept[1]), 100, 2))
    assert abs(len(kept[0]) - len(kept[1])) <= 1
    left = {verdict: 50 - len(steps) for verdict, steps in zip(("keep", "drop"), kept, strict=True)}
    assert packed.notice == (
        f"{100 - len(rows)} of the 100 recorded rollouts are left out to keep this page small "
        f"({left['drop']} drop, {left['keep']} keep): the oldest of each verdict, and texts too long to fit. "
        "All of them are in a/rollouts.jsonl."
    )


def test_one_text_too_long_to_fit_leaves_the_others_in():
    records = [rollout(1), rollout(2, rollout="x" * 10_000), rollout(3)]
    packed = pack(logs(a=records), 5_000)
    assert [row["step"] for row in unpack(packed)] == [1, 3]
    assert "1 of the 3 recorded" in packed.notice


def test_rows_keep_the_order_they_were_recorded_in_run_by_run():
    rows = unpack(pack(logs(a=[rollout(2), rollout(1)], b=[rollout(5)]), 10**6))
    assert [(row["run"], row["step"]) for row in rows] == [("a", 2), ("a", 1), ("b", 5)]


def test_a_page_stays_within_its_size_and_says_what_is_left_out():
    records = [rollout(step, rollout=f"{step} " + "ä<" * 1000) for step in range(500)]
    part = Part("run", "run", logs=[RolloutLog("run", "rollouts.jsonl", records)])
    page = render_page(Document("run", (part,)), max_bytes=1_000_000)
    assert 800_000 < len(page.encode()) <= 1_000_000
    assert "recorded rollouts are left out to keep this page small" in page


def test_the_page_of_very_many_rollouts_stays_under_ten_megabytes():
    records = [rollout(step, rollout=f"{step} " + "x" * 2000) for step in range(4500)]
    part = Part("run", "run", logs=[RolloutLog("run", "rollouts.jsonl", records)])
    assert len(render_page(Document("run", (part,))).encode()) < 10_000_000
