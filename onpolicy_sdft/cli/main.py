"""``sdft VERB ...``: find the verb, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from onpolicy_sdft.errors import SdftError, did_you_mean

#: Verb -> what it does, as in ``sdft --help``. Each lives in ``cli/VERB.py`` with ``run(arguments) -> exit code``.
VERBS = {
    "train": "score the base model, train, score again, leave a report",
    "eval": "score a model or a run on tasks",
    "probe": "is the model, shown the demonstration, a good teacher? before anything is trained",
    "distill": "rewrite a data set once with the base model, for offline SDFT",
    "plan": "what a run would take on so many GPUs, without one",
    "continual": "train on tasks one after the other, scoring all of them each time",
    "compare": "methods side by side on one sequence of tasks",
    "sweep": "train over axes of options and seeds: one table",
    "shift": "how far the answers of runs have moved from their base model's",
    "helpfulness": "export answers in AlpacaEval's format, or let a judge compare two exports",
    "lm_eval": "run tasks of EleutherAI's lm-evaluation-harness on a run or a model",
    "chat": "talk to a model or a run",
    "export": "write a run's model, merged if asked, or push it to the hub",
    "report": "one page of runs, sequences, comparisons, sweeps and shifts: tables, plots, rollouts",
    "models": "list or fetch embedded models",
    "configs": "list, show or copy the configs and launch scripts that come with the package",
    "init": "look at your data and write a commented config for it",
    "doctor": "what this machine has, and what will be used of it",
    "completion": "what makes bash or zsh complete verbs and options",
}


def usage() -> str:
    """Return the overview of verbs."""
    lines = ["usage: sdft VERB [options]", "", "Fine-tune chat models on demonstrations without forgetting.", ""]
    lines += [f"  {verb:11} {text}" for verb, text in VERBS.items()]
    return "\n".join([*lines, "", "sdft VERB --help shows the options of a verb; --help_all every option of a run."])


def _print_anything() -> None:
    """Let no character end a program: what a stream cannot write, or read, is replaced."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return its exit code: 0 done, 2 an error to mend, 130/143 stopped by a signal (a run is saved)."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, on TAB
        from onpolicy_sdft.cli.completion import complete

        complete(VERBS)
        return 0
    _print_anything()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"sdft: there is no verb {verb!r}.{did_you_mean(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    if verb != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(
            f"sdft {verb}: works in one process, but {os.environ['WORLD_SIZE']} were launched; each would write the "
            "same files. Start it without accelerate launch.",
            file=sys.stderr,
        )
        return 2
    from onpolicy_sdft import log  # takes a tenth of a second, which --help need not wait for

    log.show(int(os.environ.get("RANK", "0")))
    try:
        return int(importlib.import_module(f"onpolicy_sdft.cli.{verb}").run(rest))
    except SdftError as error:
        print(f"sdft {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sdft {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output (head, less) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere at the end
        return 141
    except Exception as error:
        from onpolicy_sdft.system_errors import way_on

        if (way := way_on(error)) is None:
            raise
        print(f"sdft {verb}: {error}. Fix: {way}.", file=sys.stderr)
        return 2
