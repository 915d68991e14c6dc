"""``sdft probe``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onpolicy_sdft.config.load import make_parser, parse

if TYPE_CHECKING:
    from onpolicy_sdft.eval.probe_rows import ProbeRow


def run(arguments: Sequence[str]) -> int:
    """Probe the teacher and print a table with a recommendation."""
    parser = make_parser("sdft probe", "Is the model, shown the demonstration, a good teacher?")
    parser.add_argument(
        "--templates",
        type=list[str],
        default=["reference", "prior_turn", "work", "explain"],
        help="Context templates to try.",
    )
    parser.add_argument("--temperatures", type=list[float], default=[1.0], help="Sampling temperatures to try.")
    parser.add_argument("--num_examples", type=int, default=32, help="Demonstrations to try them on.")
    config, options = parse(parser, arguments)
    from onpolicy_sdft.eval.probe import run_probe
    from onpolicy_sdft.runs.progress import print_table

    outcome = run_probe(config, options.templates, options.temperatures, options.num_examples)
    num_rollouts = config.train.batch_size * config.rollout.num_samples
    rows = [
        (
            row.template,
            f"{row.temperature:g}",
            f"{row.score:.2f} [{row.low:.2f}, {row.high:.2f}]",
            f"{row.keep_rate:.2f}",
            f"{row.verbatim_rate:.2f}",
            f"{row.answer_only_rate:.2f}",
            f"{row.surprise:.2f}",
            "-" if row.leak is None else f"{row.leak:.2f}",
            _refusals(row),
            f"{row.entropy:.2f}",
            f"{row.mean_length:.0f}",
            f"{row.length_ratio:.2f}",
            f"{row.bare_ratio:.2f}",
            f"{row.seconds_per_rollout * num_rollouts + outcome.learning_seconds:.1f}",
        )
        for row in outcome.rows
    ]
    columns = [
        "template", "T", "score [95 %]", "kept", "verbatim", "answer only", "surprise", "leak", "refused (right)",
        "entropy", "tokens", "to demo", "to bare", "s/step",
    ]  # fmt: skip
    print_table(f"probe of {config.model.name}, n = {outcome.rows[0].n}", columns, rows)
    print(
        f"s/step: expected seconds per step of {num_rollouts} rollouts, of which {outcome.learning_seconds:.1f} s "
        "learning; refused: share of rollouts by reason, of them right ones; surprise, leak: nats a token "
        "under the bare prompt; tokens: of a rollout, compared with the demonstrations and with bare answers."
    )
    for problem in outcome.problems:
        print(f"warning: would teach shortcuts: {problem}")
    print(outcome.recommendation)
    return 0


def _refusals(row: ProbeRow) -> str:
    """Word what each rule would refuse, and what of it the check accepts."""
    parts = []
    for reason, count in sorted(row.reasons.items()):
        right = row.refused_right.get(reason, 0)
        parts.append(f"{reason} {count / row.n:.0%}" + (f" ({right / row.n:.0%})" if right else ""))
    return ", ".join(parts) or "-"
