"""``sdft shift``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.cli.target import option_parser, parse_options


def run(arguments: Sequence[str]) -> int:
    """Compare the answers of runs with those of their base model and print the table."""
    parser = option_parser(
        "sdft shift", "How far the answers of runs have moved from their base model's: embedding similarity, KL, NLL."
    )
    parser.add_argument("runs", nargs="+", help="Run directories of one base model.")
    parser.add_argument("--output", type=str, help="Directory for shift.json and records.jsonl.", required=True)
    parser.add_argument(
        "--prompts", type=str, help="A file of rows, or set:LABEL of the first run (default: general prompts)."
    )
    parser.add_argument("--prompt_column", type=str, default="prompt", help="Column of the prompt, of a file.")
    parser.add_argument("--num_prompts", type=int, help="Take the first so many (default: all).")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="Longest answer.")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy.")
    parser.add_argument("--seed", type=int, default=0, help="Of sampled answers.")
    parser.add_argument(
        "--embedder",
        type=str,
        default="embedded:all-minilm-l6-v2",
        help="embedded:NAME, or a name or path that sentence-transformers loads.",
    )
    options = parse_options(parser, arguments)
    from onpolicy_sdft.eval.answers import Asking
    from onpolicy_sdft.eval.shift import ShiftOptions, run_shift
    from onpolicy_sdft.runs.progress import print_table

    chosen = ShiftOptions(
        options.prompts, options.prompt_column, options.num_prompts,
        Asking(options.max_new_tokens, options.temperature, options.seed), options.embedder,
    )  # fmt: skip
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
