"""What the small verbs share: the one positional argument, and options that are no part of the config."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from onpolicy_sdft.config.load import explain
from onpolicy_sdft.errors import ConfigError


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
