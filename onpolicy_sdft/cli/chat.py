"""``sdft chat``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onpolicy_sdft.cli.target import option_parser, parse_options, split_target


def run(arguments: Sequence[str]) -> int:
    """Answer lines from standard input until it ends; every line is a new conversation."""
    parser = option_parser("sdft chat TARGET", "Talk to a run or a model; one line, one question.")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy.")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="Longest answer.")
    parser.add_argument("--system", type=str, help="System message.")
    target, rest = split_target(parser, arguments)
    options = parse_options(parser, rest)
    from onpolicy_sdft.build.loaded import load_target, require_sampling

    require_sampling(options.temperature, options.max_new_tokens)
    finished = load_target(target)
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        if line.strip():
            answer = finished.sample(
                [line.strip()],
                temperature=options.temperature,
                max_new_tokens=options.max_new_tokens,
                system=options.system,
            )[0]
            print(answer, flush=True)
