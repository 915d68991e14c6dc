"""``sdft lm_eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy_sdft.cli.target import option_parser, parse_options


def run(arguments: Sequence[str]) -> int:
    """Run tasks of lm-eval and print the table."""
    parser = option_parser(
        "sdft lm_eval", "Tasks of EleutherAI's lm-evaluation-harness on a run or a model, adapter merged in memory."
    )
    parser.add_argument("target", help="Run directory, local model, hub id or embedded name.")
    parser.add_argument("--tasks", type=str, default="", help="Tasks, groups or tags: mmlu,hellaswag,ifeval,...")
    parser.add_argument("--preset", type=str, help="acl2024: the general-knowledge tasks of the ACL 2024 paper.")
    parser.add_argument("--num_fewshot", type=int, help="Examples shown (default: the preset's, or each task's own).")
    parser.add_argument("--limit", type=int, help="First questions of each task only; for trying out.")
    parser.add_argument("--include_path", type=str, help="Directory of further tasks (YAML files).")
    parser.add_argument("--batch_size", type=int, default=8, help="Requests of one forward.")
    parser.add_argument("--chat_template", type=bool, default=False, help="Ask through the chat template.")
    parser.add_argument("--seed", type=int, default=1234, help="Of the choice of examples.")
    parser.add_argument(
        "--output", type=str, help="Directory (default: eval/lm_eval of the run, or runs/lm_eval-NAME)."
    )
    options = parse_options(parser, arguments)
    from onpolicy_sdft.eval.lm_eval import LmEvalOptions, run_lm_eval
    from onpolicy_sdft.runs.progress import print_table

    tasks = tuple(name.strip() for name in options.tasks.split(",") if name.strip())
    chosen = LmEvalOptions(
        tasks, options.preset, options.num_fewshot, options.limit, options.include_path, options.batch_size,
        options.chat_template, options.seed,
    )  # fmt: skip
    output = Path(options.output) if options.output else None
    directory, rows = run_lm_eval(options.target, chosen, output)
    print_table(
        f"lm-eval on {options.target}" + (f", the first {options.limit} questions" if options.limit else ""),
        ["task", "metric", "value", "stderr", "n", "shots"],
        [
            (
                row.task,
                row.metric,
                f"{row.value:.4f}",
                "-" if row.stderr is None else f"{row.stderr:.4f}",
                str(row.n),
                "-" if row.num_fewshot is None else str(row.num_fewshot),
            )
            for row in rows
        ],
    )
    print(f"results and samples        {directory}")
    return 0
