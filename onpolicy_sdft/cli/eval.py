"""``sdft eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy_sdft.cli.target import split_target
from onpolicy_sdft.config.load import make_parser, parse
from onpolicy_sdft.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Score a run or a model and print the table."""
    parser = make_parser(
        "sdft eval TARGET", "Score TARGET (run directory, local model, hub id or embedded name) on eval.sets."
    )
    parser.add_argument("--output", type=str, help="Where to keep the records (default: the run, or runs/eval-NAME).")
    target, rest = split_target(parser, arguments)
    own = Path(target) / "config.yaml"
    for name in (flag.partition("=")[0] for flag in rest):
        if name == "--model.name" or (own.is_file() and name.startswith("--model.")):
            raise ConfigError(f"{name} has no effect: {target} is what is scored, as it is. Fix: leave it out.")
    if own.is_file() and not any(flag.partition("=")[0] == "--config" for flag in rest):
        rest = ["--config", str(own), *rest]  # a run is scored as its own config says, flags on top
    config, options = parse(parser, rest)
    from onpolicy_sdft.eval.evaluate import evaluate
    from onpolicy_sdft.report.tables import kl_sentence, score_notes, scores_table

    directory, summary = evaluate(target, config, options.output)
    print(scores_table(summary).to_text())
    for line in (kl_sentence({"after": summary}), *score_notes({"eval": summary})):
        if line:
            print(line)
    print(f"records        {directory.eval_path}")
    return 0
