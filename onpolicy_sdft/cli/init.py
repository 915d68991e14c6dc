"""``sdft init``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy_sdft.cli.target import parse_options
from onpolicy_sdft.config.load import Parser
from onpolicy_sdft.config.schema import DataConfig, ModelConfig
from onpolicy_sdft.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Look at somebody's rows and write a commented config for them."""
    parser = Parser(
        prog="sdft init",
        description="Look at your rows and write a commented config for them.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_options(DataConfig, "data")
    parser.add_options(ModelConfig, "model")
    parser.add_argument("--eval_path", type=str, help="A file of rows to score before and after training.")
    parser.add_argument("--output", type=str, default="sdft.yaml", help="The file to write.")
    parser.add_argument("--output_dir", type=str, default="runs/first", help="Run directory that the config names.")
    options = parse_options(parser, arguments)
    target = Path(options.output)
    if target.exists():
        raise ConfigError(f"{target} is there already. Fix: --output FILE, or delete it.")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder {target.parent} for --output {target}. Fix: make it, or name another.")
    if options.eval_path is not None and not Path(options.eval_path).expanduser().exists():
        raise ConfigError(f"--eval_path {options.eval_path}: there is no such file. Fix: its path, or leave it out.")
    built = parser.instantiate(options)
    from onpolicy_sdft.build.starter import make_starter

    starter = make_starter(built.data, built.model, options.eval_path, options.output_dir)
    target.write_text(starter.text, encoding="utf-8")
    for what, number in starter.unread.items():
        print(f"not read in {number} of the rows: {what}")
    if starter.skipped:
        print(f"{len(starter.skipped)} rows cannot be read and are left out, the first: {starter.skipped[0]}")
    print(f"{starter.num_rows} rows, task {starter.task}: {target} is written. Read it, then:")
    print(f"  sdft probe --config {target}    # is the model, shown the demonstration, a good teacher?")
    print(f"  sdft train --config {target}")
    return 0
