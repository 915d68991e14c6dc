"""The closing table of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onpolicy_sdft.report.tables import before_after_table, kl_sentence, score_notes
from onpolicy_sdft.runs.files import read_json, read_jsonl

if TYPE_CHECKING:
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.loop import FitResult


def print_summary(run: RunDirectory, result: FitResult) -> None:
    """Print scores before and after, speed, alarms, where everything is, and last how the model compares."""
    summary = read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
    if summary:
        print(before_after_table(summary).to_text())
    for note in score_notes(summary):
        print(note)
    sentence = kl_sentence(summary)
    if sentence:
        print(sentence)
    metrics = [record["values"] for record in run.read_metrics()]
    if metrics:
        seconds = sum(values["time/step_seconds"] for values in metrics)
        learned = sum(values["train/num_loss_tokens"] for values in metrics)
        written = [v["rollout/tokens_per_second"] for v in metrics if "rollout/tokens_per_second" in v]
        speed = f"{learned / seconds:.0f} learned tokens/s over whole steps"
        if written:
            speed += f", {sum(written) / len(written):.0f} tokens/s while writing rollouts"
        print(f"{len(metrics)} steps in {seconds:.0f} s ({result.reason}): {speed}")
    for alarm in read_jsonl(run.alarms_path) if run.alarms_path.is_file() else []:
        print(f"step {alarm['step']}: {alarm['text']}")
    print(f"run directory  {run.path}")
    print(f"report         {run.report_path}")
    print(f"plots          {run.plots_path}")
    print(f"model          {run.model_path}")
    if verdict := read_json(run.result_path).get("verdict"):
        print(f"verdict        {verdict['text']}")
