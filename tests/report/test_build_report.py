"""The report of whole, partial and hostile runs."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from places import EVIL, kl, manifest, rollout

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.report.html import build_report
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import write_json_atomic, write_jsonl_atomic

pytestmark = pytest.mark.usefixtures("unrendered")


class Page(HTMLParser):
    """Collects tags, sources of pictures, text, and what scripts and styles hold."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sources, self.texts, self.open, self.scripts = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        links = [value for name, value in attrs if name in ("src", "href")]
        self.sources += [link for link in links if not link.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = bool(self.open) and self.open[-1] in ("script", "style")
        (self.scripts if inside else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def rollouts(self):
        """The rows of the browser, their texts put in."""
        found = next((json.loads(text) for text in self.scripts if text.startswith('{"runs"')), {"rows": []})
        return [[*row[:10], *(found["texts"][i] if i >= 0 else None for i in row[10:])] for row in found["rows"]]


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "my run")


def metrics(step, **values):
    """A step with a loss and nothing else."""
    return {"step": step, "skipped": "", "time": 0.0, "values": {"loss/total": 1.0, **values}}


def fill(run):
    run.config_path.write_text("train:\n  seed: 0\n")
    write_json_atomic(run.manifest_path, manifest())
    run.append_metrics(metrics(1, **{"train/total_loss_tokens": 1234.0}))
    run.append_rollouts([rollout(1), rollout(2, verdict="fallback", reason="wrong_answer")])
    scores = [{"label": "task", "score": 0.5, "low": 0.4, "high": 0.6, "n": 100}]
    summary = {"before": {"sets": scores, "kl": None}, "after": {"sets": scores, "kl": kl(0.02)}}
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
        "NLL of the same completions under the tuned model: 1.5000 [1.4000, 1.6000] nats per token",
        "1,234",
        "sdft train --train.seed 0",
        "torch 2.13.0",
        "train.seed 0",
        "seed: 0",
        "from eval/summary.json",
        "from metrics.jsonl",
    ):
        assert text in page.text
    keep, fallback = page.rollouts
    assert keep == [0, 1, "example-1", 0, "keep", "", 5, -0.25, 0.4, -0.1, "2 + 2?", "Four.", "It is 4.", "It is 4."]
    assert fallback[4:6] == ["fallback", "wrong_answer"]


def test_the_page_adapts_to_dark_and_allows_its_own_script_and_style_alone(run):
    fill(run)
    build_report(run.path)
    html = run.report_path.read_text()
    assert "prefers-color-scheme: dark" in html
    assert "http" not in re.sub("http-equiv", "", html)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (content,) = re.findall(pattern, html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "innerHTML" not in html
    assert " style=" not in html


def test_every_text_of_the_run_is_escaped(run):
    write_json_atomic(run.manifest_path, {"started": EVIL, "hardware": {"cpu": EVIL}, "command": [EVIL]})
    run.config_path.write_text(EVIL.replace("\ud800", ""))
    run.append_metrics(metrics(1))
    names = ("example_id", "prompt", "demonstration", "rollout", "target", "verdict", "reason")
    run.append_rollouts([rollout(1, **dict.fromkeys(names, EVIL))])
    sets = [{"label": EVIL, "score": 0.5, "n": 1, "note": EVIL}]
    write_json_atomic(run.eval_summary_path, {"before": {"sets": sets}})
    build_report(run)
    html = run.report_path.read_text()
    page = Page(html)
    assert page.open == []
    assert page.tags.count("script") == 2
    assert page.tags.count("img") == 2
    assert html.count("bold</b>") == 0
    assert "{{ 7 * 7 }}" in page.text
    assert page.text.count('alert("x")') >= 6
    (row,) = page.rollouts
    assert [row[2], *row[4:6], *row[10:]] == [EVIL] * 7


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


def test_a_run_that_was_scored_by_eval_alone_shows_those_scores(run):
    sets = [{"label": "task", "score": 0.5, "low": 0.4, "high": 0.6, "n": 100, "note": "short answers"}]
    write_json_atomic(run.eval_summary_path, {"eval": {"sets": sets, "kl": kl(0.03)}})
    build_report(run)
    text = Page(run.report_path.read_text()).text
    assert "0.500 [0.400, 0.600]" in text
    assert "task: short answers" in text
    assert "0.0300 [0.0200, 0.0400] nats per token" in text
    assert "eval/summary.json: scores" not in text
    assert (run.plots_path / "scores.png").is_file()


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
    bare, dropped = Page(run.report_path.read_text()).rollouts
    assert bare == [0, 1, *[None] * 12]
    assert dropped[4] == "drop"
    assert dropped[7] is None
    assert dropped[13] is None


def test_metrics_of_another_type_are_named_and_the_rest_is_still_shown(run):
    fill(run)
    run.append_metrics(metrics(2, **{"rollout/entropy": "high", "time/step_seconds": 1.0}))
    build_report(run)
    text = Page(run.report_path.read_text()).text
    assert "metrics.jsonl: entropy and variety (not of the expected form: ValueError" in text
    assert "0.500 [0.400, 0.600]" in text


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


def test_alarms_and_the_gate_stand_near_the_top_with_their_steps(run):
    fill(run)
    alarm = {
        "step": 5,
        "since": 3,
        "key": "rollout/mean_length",
        "before": 171.0,
        "value": 8.0,
        "text": "<short>",
    }
    write_jsonl_atomic(run.alarms_path, [alarm])
    checks = [
        {"step": 0, "why": "start", "scores": {"held back": 0.5, "facts": 0.75}, "passed": True, "action": ""},
        {"step": 5, "why": "alarm", "scores": {"held back": 0.0, "facts": 0.7}, "passed": False, "action": "stop"},
    ]
    write_jsonl_atomic(run.gate_path, checks)
    write_json_atomic(run.result_path, {"reason": "gate", "verdict": {"text": "the model IS THE START"}})
    written = build_report(run)
    assert run.plots_path / "gate.png" in written
    text = Page(run.report_path.read_text()).text
    top = text.index("Alarms and gate")
    assert top < text.index("What was run")
    assert "the model IS THE START." in text[top:]
    assert "5 3 rollout/mean_length 171 8 <short>" in text
    assert "5 alarm 0.000 0.700 stop" in text


def test_a_run_that_nothing_watched_lacks_nothing(run):
    fill(run)
    build_report(run)
    assert "Alarms and gate" not in Page(run.report_path.read_text()).text
