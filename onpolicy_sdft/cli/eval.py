"""``sdft eval``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.cli.target import split_target
from onpolicy_sdft.config.load import make_parser, parse


def run(arguments: Sequence[str]) -> int:
    """Score a run or a model and print the table."""
    parser = make_parser(
        "sdft eval TARGET", "Score TARGET (run directory, local model, hub id or embedded name) on eval.sets."
    )
    parser.add_argument("--output", type=str, help="Where to keep the records (default: the run, or runs/eval-NAME).")
    target, rest = split_target(parser, arguments)
    config, options = parse(parser, rest)
    from onpolicy_sdft.build.finished import evaluate, is_run
    from onpolicy_sdft.build.train import say_to_stderr
    from onpolicy_sdft.report.tables import kl_sentence, scores_table

    own = is_run(target) and not rest_has_config(rest)
    directory, summary = evaluate(target, None if own else config, options.output, say_to_stderr)
    print(scores_table(summary).to_text())
    sentence = kl_sentence({"after": summary})
    if sentence:
        print(sentence)
    print(f"records        {directory.eval_path}")
    return 0


def rest_has_config(arguments: Sequence[str]) -> bool:
    """Whether options were given that a run's own config does not have."""
    return any(a.startswith("--") and not a.startswith("--output") for a in arguments)
