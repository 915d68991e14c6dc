"""The report of whole, partial and hostile runs."""

import re
from html.parser import HTMLParser

import pytest

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.report import build_report
from onpolicy_sdft.report.html import sample_rollouts
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import write_json_atomic

EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Collects tags, sources of pictures and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sources, self.texts, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "my run")


def metrics(step, **values):
    return {"step": step, "skipped": "", "time": 0.0, "values": {"loss/total": 1.0, **values}}


def rollout(step, **others):
    return {
        "step": step,
        "example_id": f"example-{step}",
        "attempt": 0,
        "prompt": "2 + 2?",
        "demonstration": "Four.",
        "rollout": "It is 4.",
        "target": "It is 4.",
        "verdict": "keep",
        "reason": "",
        "num_tokens": 5,
        "logprob_mean": -0.25,
        **others,
    }


def fill(run):
    run.config_path.write_text("train:\n  seed: 0\n")
    write_json_atomic(
        run.manifest_path,
        {
            "started": "2026-01-02T03:04:05+00:00",
            "git": {"commit": "a" * 40, "dirty": True},
            "hardware": {"cpu": "CPU X", "gpus": []},
        },
    )
    run.append_metrics(metrics(1, **{"train/total_loss_tokens": 1234.0}))
    run.append_rollouts([rollout(1), rollout(2, verdict="fallback", reason="wrong_answer")])
    scores = [{"label": "task", "score": 0.5, "low": 0.4, "high": 0.6, "n": 100}]
    kl = {"mean": 0.02, "low": 0.01, "high": 0.03, "num_completions": 60, "num_tokens": 999}
    summary = {"before": {"sets": scores, "kl": None}, "after": {"sets": scores, "kl": kl}}
    write_json_atomic(run.eval_summary_path, summary)


def test_a_whole_run_is_one_page_that_needs_no_other_file(run):
    fill(run)
    written = build_report(run)
    assert written[0] == run.report_path
    assert {path.name for path in written[1:]} == {"loss.png", "scores.png"}
    assert all(path.stat().st_size > 0 for path in written)
    page = Page(run.report_path.read_text())
    assert page.open == []
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for text in (
        "my run",
        "started 2026-01-02T03:04:05+00:00, commit aaaaaaaaaaaa (modified), CPU X",
        "0.500 [0.400, 0.600]",
        "0.0200 [0.0100, 0.0300] nats per token",
        "1,234",
        "keep step 1, example example-1, 5 tokens, mean log-prob -0.25 nats",
        "fallback (wrong_answer) step 2",
        "(the rollout)",
        "seed: 0",
    ):
        assert text in page.text


def test_the_page_adapts_to_dark_and_allows_no_scripts(run):
    fill(run)
    build_report(run.path)
    html = run.report_path.read_text()
    assert "prefers-color-scheme: dark" in html
    assert "default-src 'none'" in html
    assert "http" not in re.sub("http-equiv", "", html)


def test_every_text_of_the_run_is_escaped(run):
    write_json_atomic(run.manifest_path, {"started": EVIL, "hardware": {"cpu": EVIL}})
    run.config_path.write_text(EVIL)
    run.append_metrics(metrics(1))
    names = ("example_id", "prompt", "demonstration", "rollout", "target", "verdict", "reason")
    run.append_rollouts([rollout(1, **dict.fromkeys(names, EVIL))])
    sets = [{"label": EVIL, "score": 0.5, "n": 1}]
    write_json_atomic(run.eval_summary_path, {"before": {"sets": sets}})
    build_report(run)
    html = run.report_path.read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert "{{ 7 * 7 }}" in page.text
    assert "<script" not in html.lower()
    assert page.text.count("alert('x')") >= 8


@pytest.mark.parametrize(
    "parts",
    [
        ["config.yaml"],
        ["metrics.jsonl"],
        ["rollouts.jsonl"],
        ["eval/summary.json"],
        ["manifest.json", "metrics.jsonl"],
    ],
)
def test_a_partial_run_gets_a_report_that_says_what_is_missing(parts, run):
    fill(run)
    every = {
        "config.yaml": run.config_path,
        "manifest.json": run.manifest_path,
        "metrics.jsonl": run.metrics_path,
        "rollouts.jsonl": run.rollouts_path,
        "eval/summary.json": run.eval_summary_path,
    }
    for name, path in every.items():
        if name not in parts:
            path.unlink()
    build_report(run)
    page = Page(run.report_path.read_text())
    for name in every:
        assert (f"{name}:" in page.text) == (name not in parts)


def test_a_run_that_was_scored_only_before_says_so(run):
    sets = [{"label": "task", "score": 0.5, "low": 0.4, "high": 0.6, "n": 100}]
    write_json_atomic(run.eval_summary_path, {"before": {"sets": sets, "kl": None}})
    build_report(run)
    text = Page(run.report_path.read_text()).text
    assert "eval/summary.json: scores after training" in text
    assert "scores before training" not in text


@pytest.mark.parametrize("content", [b'{"step": 1}\n{broken\n{"step": 3}\n', b'{"stop": 1}\n', b'{"step": null}\n'])
def test_a_damaged_log_is_named_and_the_rest_is_still_shown(content, run):
    fill(run)
    run.metrics_path.write_bytes(content)
    build_report(run)
    text = Page(run.report_path.read_text()).text
    assert "metrics.jsonl: figures of the optimizer steps (" in text
    assert "0.500 [0.400, 0.600]" in text


def test_a_summary_that_is_not_an_object_is_named(run):
    fill(run)
    run.eval_summary_path.write_text("[]")
    build_report(run)
    assert "summary.json is not a JSON object" in Page(run.report_path.read_text()).text


def test_a_torn_last_line_does_not_matter(run):
    fill(run)
    with run.metrics_path.open("ab") as stream:
        stream.write(b'{"step": 2, "val')
    build_report(run)
    assert "metrics.jsonl:" not in Page(run.report_path.read_text()).text


def test_rollouts_with_missing_or_null_fields_are_shown(run):
    run.append_rollouts([{"step": 1}, rollout(2, target=None, logprob_mean=None, verdict="drop")])
    build_report(run)
    assert "drop step 2" in Page(run.report_path.read_text()).text


def test_pictures_of_data_that_is_gone_are_removed(run):
    fill(run)
    build_report(run)
    run.metrics_path.unlink()
    build_report(run)
    assert [path.name for path in run.plots_path.iterdir()] == ["scores.png"]


def test_a_place_without_a_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunDirectoryError, match="not a run directory"):
            build_report(path)


def test_the_sample_has_each_verdict_and_reason_and_spreads_over_the_run():
    rare = rollout(7, verdict="drop", reason="empty")
    rollouts = [rare if step == 7 else rollout(step) for step in range(100)]
    chosen = sample_rollouts(rollouts, 6)
    steps = [r["step"] for r in chosen]
    assert rare in chosen
    assert len(steps) == len(set(steps)) == 6
    assert steps == sorted(steps)
    assert steps[0] < 10
    assert steps[-1] == 99
    assert sample_rollouts(rollouts[:3], 6) == rollouts[:3]
    assert sample_rollouts([], 6) == []
