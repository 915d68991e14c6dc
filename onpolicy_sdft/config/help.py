"""The help of verbs that take every option of a run: the common ones first, all of them on request."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import Any

#: What most runs set; the order of the help.
COMMON = (
    "model.name", "model.dtype", "data.path", "data.name", "data.limit", "task.name", "task.options", "eval.path",
    "eval.limit", "train.output_dir", "train.max_steps", "train.num_epochs", "train.batch_size", "train.targets",
    "train.resume", "train.precision", "train.seed", "train.trackers", "optim.lr", "lora.enabled", "lora.r",
    "context.template", "rollout.max_new_tokens", "rollout.temperature", "rollout.num_samples", "screening.check",
    "objective.name", "teacher.weights", "gate.rows", "probe.action",
)  # fmt: skip
_WIDTH, _INDENT = 110, 30


class HelpAll(argparse.Action):
    """``--help_all``: every option."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        """Print it, and end."""
        print(parser.format_help())
        parser.exit()


def short_help(parser: argparse.ArgumentParser) -> str:
    """Return the help that fits two screens: a verb's own options, and the common ones of a run."""
    actions = {action.dest: action for action in parser._actions}
    of_run = [name for name in actions if "." in name]
    hidden = ("help", "print_config", argparse.SUPPRESS)
    own = [
        name
        for name, action in actions.items()
        if "." not in name and name not in hidden and action.option_strings and action.help != argparse.SUPPRESS
    ]
    lines = [
        f"usage: {parser.prog} [--config FILE ...] [--SECTION.OPTION VALUE ...]",
        "",
        *textwrap.wrap(parser.description or "", _WIDTH),
        "",
    ]
    sections = {name.partition(".")[0] for name in of_run}
    own = [name for name in own if name not in sections]  # a section's own flag takes a file
    lines += [line for name in own for line in _lines(actions[name], ".")]
    more = f"{parser.prog} --help_all shows all of them, as docs/options.md does"
    lines += ["", f"The common options ({len(COMMON)} of {len(of_run)}; {more}):", ""]
    lines += [line for name in COMMON for line in _lines(actions[name], f"(default: {_shown(actions[name].default)})")]
    lines += ["", "--print_config prints all options as they are resolved. sdft configs list shows the shipped files."]
    return "\n".join([*lines, ""])


def _lines(action: argparse.Action, end: str) -> list[str]:
    """Return an option with the first sentence of its help."""
    text = " ".join((action.help or "").split()).replace("``", "")
    sentence = re.split(r"(?<=[a-z)])\. (?=[A-Z])", text)[0].rstrip(".")
    flag = "  " + next(name for name in action.option_strings if not name.endswith("+"))
    said = f"{sentence}{end}" if end == "." else f"{sentence} {end}"
    wrapped = textwrap.wrap(said, _WIDTH - _INDENT)
    first = f"{flag:{_INDENT}}{wrapped[0]}" if len(flag) < _INDENT else f"{flag}  {wrapped[0]}"
    return [first, *(" " * _INDENT + line for line in wrapped[1:])]


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)
