"""What the small verbs share: the one positional argument, and options that are no part of the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from onpolicy_sdft.config.load import explain
from onpolicy_sdft.errors import ConfigError

if TYPE_CHECKING:
    from onpolicy_sdft.eval.answers import Asking


def option_parser(prog: str, description: str) -> ArgumentParser:
    """Return an empty parser for :func:`parse_options`."""
    return ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)


def parse_options(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a verb's own options.

    Raises:
        ConfigError: In one line, with the nearest option.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ConfigError(explain(str(error), parser)) from error


def add_asking_options(parser: ArgumentParser, column: str, max_new_tokens: int) -> None:
    """Add which prompts a model answers, and how it is asked; see :func:`asking_of`."""
    parser.add_argument(
        "--prompts",
        type=str,
        help="A file of rows, or set:LABEL of a run, of several the first (default: general prompts).",
    )
    parser.add_argument("--prompt_column", type=str, default=column, help="Column of the prompt, of a file.")
    parser.add_argument("--num_prompts", type=int, help="Take the first so many (default: all).")
    parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens, help="Longest answer.")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy.")
    parser.add_argument("--seed", type=int, default=0, help="Of sampled answers.")


def asking_of(options: Namespace) -> Asking:
    """Return how a verb's options ask; a verb without a seed asks with 0."""
    from onpolicy_sdft.build.loaded import require_sampling
    from onpolicy_sdft.eval.answers import Asking

    require_sampling(options.temperature, options.max_new_tokens)
    return Asking(options.max_new_tokens, options.temperature, options.get("seed", 0))


def split_target(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Take the leading TARGET off the arguments.

    Raises:
        ConfigError: If the first argument is an option or missing.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        parser.print_help()
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"Name a run directory or a model first: {parser.prog} ... (see --help).")
    return arguments[0], list(arguments[1:])
