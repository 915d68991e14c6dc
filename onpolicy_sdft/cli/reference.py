"""The pages of ``docs/`` that are made from the program.

python -m onpolicy_sdft.cli.reference docs
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from onpolicy_sdft.cli.main import VERBS
from onpolicy_sdft.config import schema
from onpolicy_sdft.config.bounds import bounds_of
from onpolicy_sdft.config.load import make_parser
from onpolicy_sdft.config.schema import ContextConfig, RunConfig
from onpolicy_sdft.data.templates import PRIOR_TURN, TEMPLATES, TeacherContext
from onpolicy_sdft.runs.metrics import METRICS
from onpolicy_sdft.tasks.math_word_problem import MathWordProblem
from onpolicy_sdft.types import Demonstration, Turn

_MADE = "<!-- Made by `python -m onpolicy_sdft.cli.reference docs`; do not edit. -->\n"


def options_page() -> str:
    """Return every option of a run, by section, with type, default and help."""
    actions = {action.dest: action for action in make_parser("sdft train", "")._actions}
    parts = [
        "# Options\n",
        _MADE,
        "Every option of `sdft train`, in a YAML file (`--config`) or as a flag (`--train.max_steps 30`). Later files "
        "and flags win; an unknown option is an error that names the nearest one. "
        "`sdft train --print_config` prints the resolved file.\n",
    ]
    for section, kind in get_type_hints(RunConfig).items():
        parts.append(f"## {section}\n\n{' '.join((kind.__doc__ or '').split()).replace('``', '`')}\n")
        parts.append("| option | type | default | what it does |\n|---|---|---|---|")
        for field in dataclasses.fields(kind):
            action = actions[f"{section}.{field.name}"]
            cells = (
                f"`{section}.{field.name}`",
                f"`{_type(str(field.type))}`" + (f", {bounds}" if (bounds := bounds_of(field)) else ""),
                f"`{_shown(action.default)}`",
                " ".join((action.help or "").split()).replace("``", "`"),
            )
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts[-1] += "\n"
    return "\n".join(parts)


def _type(name: str) -> str:
    """Return a type as readers know it: of a name for several choices, the choices."""
    kind = getattr(schema, name, None)
    return str(kind).removeprefix("typing.") if get_origin(kind) is Literal else name


def commands_page() -> str:
    """Return every verb of the command with what it does."""
    rows = [f"| `sdft {verb}` | {text} |" for verb, text in VERBS.items()]
    note = (
        "`sdft VERB --help` shows the options of a verb, and the common ones of a run; `--help_all` shows every "
        "one, as [options](options.md) does.\n\n"
        '`eval "$(sdft completion bash)"` (or `zsh`) in `~/.bashrc` (`~/.zshrc`, after `compinit`) makes TAB complete '
        "verbs, options and values; a verb that takes a run or a model wants it before its options."
    )
    codes = (
        "Exit codes: 0 done; 2 an error to mend, said in one line; 3 the gate found nothing better than the start; "
        "130 and 143 stopped by Ctrl-C or SIGTERM; a training loop ends after a whole step, with the state saved.\n"
    )
    return "\n".join(["# Commands\n", _MADE, "| command | what it does |\n|---|---|", *rows, "", note + "\n", codes])


def metrics_page() -> str:
    """Return what a run leaves, and every metric of its steps with unit and meaning."""
    rows = [
        " | ".join(("", f"`{m.name}`", m.unit, m.meaning.replace("|", "\\|"), m.chart, "")).strip() for m in METRICS
    ]
    return "\n".join(["# What a run leaves, and its metrics\n", _MADE, _FILES, _TABLE, *rows, "", _RETENTION])


_FILES = """`config.yaml` (resolved), `manifest.json` (versions, commit, hardware, seeds, data fingerprint, base
model), `metrics.jsonl`, `rollouts.jsonl` (prompt, demonstration, rollout, target, verdict, surprise, leak),
`alarms.jsonl`, `gate.jsonl`, `result.json` (how it ended), `eval/` (a record per answer, the base model's completions,
summary), `checkpoints/`, `best/`, `model/` (adapter or model, tokenizer, card), `plots/*.png`, `report.html`.

A line of `metrics.jsonl` is a step; a metric that means nothing for a step or method is left out. `*` stands for names
of a kind. The last column is the chart of `report.html`, and of `plots/`, that shows it.
"""
_TABLE = "| metric | unit | meaning | chart |\n|---|---|---|---|"
_RETENTION = """Retention is measured two ways: scores on sets the base model was not trained on (`retention: true`),
and the mean per-token KL(base || tuned) over completions that the base model wrote once for 60 general prompts that
ship with the project (the same tokens for every method). Intervals are 95 %: Wilson for scores, bootstrap over
completions for KL.
"""


def wordings() -> str:
    """Return what the teacher reads under each ``context.template``, turn by turn, for one row."""
    row = Demonstration("", (Turn("user", "How many legs do 3 cats have?"),), "3 * 4 = 12. They have 12 legs.")
    work = MathWordProblem.work_wording
    parts = []
    for name in (PRIOR_TURN, *TEMPLATES):
        turns = TeacherContext(name).turns(row, row.response, [], work)
        text = "\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)
        parts.append(
            f"`{name}`{' (the default)' if name == ContextConfig().template else ''}:\n\n```text\n{text}\n```\n"
        )
    return "\n".join(parts)


def filled(page: str, part: str) -> str:
    """Return a page with a part that is made from the program between its marks."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n{part}\n{end}{after}"


_BEGIN = "<!-- Made by `python -m onpolicy_sdft.cli.reference docs`; do not edit what follows. -->\n"
_END = "<!-- /made -->"
#: Parts of pages that are written by hand otherwise.
PARTS = {"methods.md": wordings}
PAGES = {"options.md": options_page, "commands.md": commands_page, "metrics.md": metrics_page}


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def main() -> None:
    """Write the pages, and parts of pages, into a folder."""
    folder = Path(sys.argv[1])
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
    for name, part in PARTS.items():
        (folder / name).write_text(filled((folder / name).read_text(encoding="utf-8"), part()), encoding="utf-8")


if __name__ == "__main__":
    main()
