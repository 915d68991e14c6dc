"""``sdft shift``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.cli.target import add_asking_options, asking_of, option_parser, parse_options


def run(arguments: Sequence[str]) -> int:
    """Compare the answers of runs with those of their base model and print the table."""
    parser = option_parser(
        "sdft shift", "How far the answers of runs have moved from their base model's: embedding similarity, KL, NLL."
    )
    parser.add_argument("runs", nargs="+", help="Run directories of one base model.")
    parser.add_argument("--output", type=str, help="Directory for shift.json and records.jsonl.", required=True)
    add_asking_options(parser, "prompt", 256)
    parser.add_argument(
        "--embedder",
        type=str,
        default="embedded:all-minilm-l6-v2",
        help="embedded:NAME, or a name or path that sentence-transformers loads.",
    )
    options = parse_options(parser, arguments)
    from onpolicy_sdft.eval.shift import ShiftOptions, run_shift
    from onpolicy_sdft.runs.progress import print_table

    chosen = ShiftOptions(
        options.prompts, options.prompt_column, options.num_prompts, asking_of(options), options.embedder
    )
    summary = run_shift(options.runs, options.output, chosen, ["sdft", "shift", *arguments])
    rows = [
        (
            entry["name"],
            f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]",
            f"{entry['identical_rate']:.0%}",
            f"{entry['kl']:.4f} [{entry['kl_low']:.4f}, {entry['kl_high']:.4f}]",
            f"{entry['nll']:.4f} [{entry['nll_low']:.4f}, {entry['nll_high']:.4f}]",
        )
        for entry in summary["runs"]
    ]
    print_table(
        f"answers compared with those of {summary['reference']}, n = {summary['num_prompts']}",
        ["run", "similarity [95 %]", "identical", "KL(base || tuned) [95 %]", "NLL of the base model's answers [95 %]"],
        rows,
    )
    if summary["num_cut"]:
        print(f"{summary['num_cut']} answers are longer than the embedder reads; their beginnings were compared.")
    print(f"similarities and answers        {options.output}")
    return 0
