"""``sdft completion``, and what a shell is answered when TAB is pressed after ``sdft``."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Mapping, Sequence

import argcomplete
from argcomplete.lexers import split_line
from argcomplete.shell_integration import shellcode

from onpolicy_sdft.cli.target import option_parser, parse_options


def run(arguments: Sequence[str]) -> int:
    """Print the lines that make a shell complete the verbs and options of ``sdft``."""
    parser = option_parser(
        "sdft completion",
        "Complete verbs, options and their values with TAB. In ~/.bashrc or ~/.zshrc (there after compinit): "
        'eval "$(sdft completion bash)"',
    )
    parser.add_argument("shell", choices=["bash", "zsh"], help="Which shell.")
    print(shellcode(["sdft"], shell=parse_options(parser, arguments).shell))
    return 0


def complete(verbs: Mapping[str, str]) -> None:
    """Answer a shell that asks (argcomplete's protocol in the environment) for what may stand at the cursor.

    After a verb, its own parser answers: jsonargparse does so in ``parse_args``, and ends the process.

    Args:
        verbs: What each does, by verb.
    """
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    _, _, _, words, _ = split_line(line, len(line.encode()[:point].decode(errors="ignore")))
    if len(words) > 1 and words[1] in verbs:
        os.environ["_ARGCOMPLETE"] = "2"  # the program of that parser is the second word
        importlib.import_module(f"onpolicy_sdft.cli.{words[1]}").run(words[2:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=list(verbs))
    argcomplete.autocomplete(parser)
