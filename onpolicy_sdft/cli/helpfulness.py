"""``sdft helpfulness``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from onpolicy_sdft.cli.target import add_asking_options, asking_of, option_parser, parse_options, split_target
from onpolicy_sdft.errors import ConfigError

LOCAL_PREFIX = "local:"


def run(arguments: Sequence[str]) -> int:
    """Export answers, or let a judge compare two exports."""
    parser = option_parser("sdft helpfulness export|judge", "Answers in AlpacaEval's format, and pairwise win rates.")
    action, rest = split_target(parser, arguments)
    if action not in ("export", "judge"):
        raise ConfigError(f"There is no action {action!r}. Fix: sdft helpfulness export, or judge.")
    return _export(rest) if action == "export" else _judge(rest)


def _export(arguments: Sequence[str]) -> int:
    parser = option_parser("sdft helpfulness export", "Write a model's answers as AlpacaEval's model_outputs.")
    parser.add_argument("target", help="Run directory, local model, hub id or embedded name.")
    parser.add_argument("--output", type=str, help="The file.", required=True)
    add_asking_options(parser, "instruction", 512)
    parser.add_argument("--generator", type=str, help="Name of the model in the file (default: the target's).")
    options = parse_options(parser, arguments)
    from onpolicy_sdft.eval.helpfulness import export_outputs

    num_answers = export_outputs(
        options.target, options.prompts, options.prompt_column, options.num_prompts, asking_of(options),
        options.generator, Path(options.output),
    )  # fmt: skip
    print(f"{num_answers} answers        {options.output}")
    return 0


def _judge(arguments: Sequence[str]) -> int:
    parser = option_parser("sdft helpfulness judge", "Let a judge compare two files of answers, in both orders.")
    parser.add_argument("first", help="A file in AlpacaEval's format; the win rate is its.")
    parser.add_argument("second", help="The other file, to the same instructions.")
    parser.add_argument("--output", type=str, help="Directory for judgements.jsonl and judge.json.", required=True)
    parser.add_argument(
        "--judge", type=str, help="URL of an OpenAI-compatible endpoint (.../v1), or local:MODEL.", required=True
    )
    parser.add_argument("--judge_model", type=str, help="Name of the model at the endpoint.")
    parser.add_argument("--api_key_env", type=str, default="OPENAI_API_KEY", help="Environment variable of the key.")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="Longest reply (max_tokens of the request).")
    parser.add_argument("--temperature", type=float, default=0.0, help="Of the judge; 0 is greedy.")
    parser.add_argument(
        "--request", type=dict[str, Any], default={}, help="More fields of each request; null leaves one out."
    )
    parser.add_argument("--num_parallel", type=int, default=8, help="Requests under way at once.")
    parser.add_argument("--max_retries", type=int, default=5, help="Further tries of a request that failed in passing.")
    parser.add_argument("--timeout_seconds", type=float, default=120.0, help="Longest wait for one reply.")
    options = parse_options(parser, arguments)
    local = options.judge.startswith(LOCAL_PREFIX)
    if not local and options.judge_model is None:
        raise ConfigError(f"judge={options.judge} may serve several models. Fix: --judge_model NAME.")
    if options.num_parallel < 1:
        raise ConfigError(f"num_parallel={options.num_parallel} asks nothing. Fix: 1 or more.")
    from onpolicy_sdft.eval.helpfulness import run_judge

    judge, facts = _local_judge(options) if local else _endpoint_judge(options)
    summary = run_judge(Path(options.first), Path(options.second), judge, facts, Path(options.output))
    _show(summary)
    print(f"judgements        {options.output}")
    return 0


def _local_judge(options: Namespace) -> tuple[Any, dict[str, Any]]:
    from onpolicy_sdft.eval.helpfulness import LocalJudge

    name = options.judge.removeprefix(LOCAL_PREFIX)
    asking = asking_of(options)
    facts = {"judge": name, "max_new_tokens": asking.max_new_tokens, "temperature": asking.temperature}
    return LocalJudge(name, asking), facts


def _endpoint_judge(options: Namespace) -> tuple[Any, dict[str, Any]]:
    from onpolicy_sdft.eval.judge import EndpointJudge

    given = {"temperature": options.temperature, "max_tokens": options.max_new_tokens, **options.request}
    request = {name: value for name, value in given.items() if value is not None}
    judge = EndpointJudge(
        options.judge, os.environ.get(options.api_key_env), options.judge_model, request, options.num_parallel,
        options.max_retries, options.timeout_seconds,
    )  # fmt: skip
    return judge, {"judge": options.judge, "judge_model": options.judge_model, **request}


def _show(summary: dict[str, Any]) -> None:
    from onpolicy_sdft.runs.progress import print_table

    if not summary["n"]:
        print(f"No pair has two clear verdicts: {summary['num_unparsable']} replies without one.")
    else:
        row = (
            summary["first"]["generator"],
            summary["second"]["generator"],
            str(summary["n"]),
            f"{summary['win_rate']:.3f} [{summary['low']:.3f}, {summary['high']:.3f}]",
            f"{summary['num_wins']} / {summary['num_ties']} / {summary['num_losses']}",
            f"{summary['disagreement_rate']:.0%}",
            "-" if summary["first_place_rate"] is None else f"{summary['first_place_rate']:.0%}",
        )
        columns = ["of", "against", "n", "win rate [95 %]", "won / tied / lost", "orders disagree", "first shown wins"]
        print_table(f"win rate by {summary['judge'].get('judge_model') or summary['judge']['judge']}", columns, [row])
    for line in summary["left_out"][:5]:
        print(f"left out: {line}")
    if len(summary["left_out"]) > 5:
        print(f"left out: {len(summary['left_out']) - 5} more (left_out in judge.json)")
