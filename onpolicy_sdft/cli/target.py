"""The one positional argument that ``eval``, ``chat``, ``export`` and ``report`` take."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from onpolicy_sdft.errors import ConfigError


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
