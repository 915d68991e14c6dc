"""The before / after table."""

from places import metrics

from onpolicy_sdft.report.reading import Member, Reader, RunRecords
from onpolicy_sdft.report.tables import before_after_table, kl_sentence, latest_stage, score_notes
from onpolicy_sdft.report.training import tiles


def entry(label, score, *, retention=False, **others):
    return {
        "label": label,
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        "n": 128,
        "retention": retention,
        "mean_length": 61.7,
        "truncated_rate": 0.25,
        "tokens_per_second": 1234.4,
        **others,
    }


def test_sets_are_matched_by_label_with_the_change_and_the_task_first():
    before = [entry("calls", 0.3, retention=True), entry("task", 0.4)]
    after = [entry("task", 0.9, mean_length=50.2), entry("calls", 0.25, retention=True)]
    table = before_after_table({"before": {"sets": before}, "after": {"sets": after}})
    assert table.rows == (
        (
            "task",
            "task",
            "128",
            "0.400 [0.300, 0.500]",
            "0.900 [0.800, 1.000]",
            "+0.500",
            "62 -> 50",
            "25%",
            "1,234",
        ),
        (
            "calls",
            "retention",
            "128",
            "0.300 [0.200, 0.400]",
            "0.250 [0.150, 0.350]",
            "-0.050",
            "62 -> 62",
            "25%",
            "1,234",
        ),
    )


def test_what_was_not_measured_is_a_dash():
    bare = {"label": "x", "score": None, "n": None}
    table = before_after_table({"before": {"sets": [entry("task", 0.4), bare]}, "after": None})
    assert table.rows[0][3:6] == ("0.400 [0.300, 0.500]", "-", "-")
    assert table.rows[1] == ("x", "task", "-", "-", "-", "-", "-", "-", "-")
    assert before_after_table({}).rows == ()


def test_different_sample_sizes_are_both_shown():
    summary = {"before": {"sets": [entry("t", 0.4, n=64)]}, "after": {"sets": [entry("t", 0.4)]}}
    assert before_after_table(summary).rows[0][2] == "64 -> 128"


def test_markdown_escapes_what_would_break_a_row():
    table = before_after_table({"after": {"sets": [entry("a|b\nc", 0.4)]}})
    lines = table.to_markdown().splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| a\\|b c | task |")
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(table.columns) + 1}


def test_markdown_shows_tags_and_stars_as_they_are():
    table = before_after_table({"after": {"sets": [entry("<b>*`x`&", 0.4)]}})
    assert table.to_markdown().splitlines()[2].startswith("| &lt;b>\\*\\`x\\`&amp; | task |")


def test_plain_text_has_one_line_a_set():
    table = before_after_table({"after": {"sets": [entry("task", 0.4), entry("other", 0.5)]}})
    assert len(table.to_text().splitlines()) == 4


def test_the_shift_is_a_sentence_where_it_was_measured():
    kl = {"mean": 0.01234, "low": 0.01, "high": 0.015, "num_completions": 60, "num_tokens": 4321}
    assert kl_sentence({"after": {"kl": kl}}) == (
        "KL(base || tuned) on general prompts: 0.0123 [0.0100, 0.0150] nats per token (60 completions, 4,321 tokens)."
    )
    for summary in (
        {},
        {"after": None},
        {"after": {"kl": None}},
        {"after": {"kl": {"mean": None}}},
    ):
        assert kl_sentence(summary) is None


def test_the_likelihood_is_in_the_sentence_where_it_was_measured():
    kl = {"mean": 0.01, "num_completions": 6, "num_tokens": 43, "nll_mean": 1.25, "nll_low": 1.0, "nll_high": 1.5}
    assert kl_sentence({"after": {"kl": kl}}) == (
        "KL(base || tuned) on general prompts: 0.0100 nats per token (6 completions, 43 tokens). "
        "NLL of the same completions under the tuned model: 1.2500 [1.0000, 1.5000] nats per token."
    )


def test_notes_are_shown_once_each_with_their_set():
    refused = entry("safety", 0.5, note="undercounts refusals")
    summary = {"before": {"sets": [refused, entry("task", 0.4)]}, "after": {"sets": [refused]}, "eval": None}
    assert score_notes(summary) == ["safety: undercounts refusals"]


def test_the_latest_scores_are_those_after_training_else_those_of_eval():
    after, scored = {"sets": [entry("task", 0.4)]}, {"sets": [entry("task", 0.5)]}
    assert latest_stage({"after": after, "eval": scored}) == ("after", after)
    assert latest_stage({"before": after, "eval": scored}) == ("eval", scored)
    assert latest_stage({"before": after}) == ("after", {})


def test_the_loss_from_first_to_last_is_of_steps_that_learned(tmp_path):
    steps = [metrics(step) | {"skipped": "" if step in (2, 3) else "all_dropped"} for step in range(1, 5)]
    for record in steps:
        if record["skipped"]:
            del record["values"]["loss/total"]
    run = Member("run", tmp_path, RunRecords(metrics=steps))
    found = {tile.title: tile.text for tile in tiles(run, Reader(tmp_path)).tiles}
    assert found["loss, first to last"] == "0.500 -> 0.333"
    assert found["steps"] == "4 (2 skipped)"
