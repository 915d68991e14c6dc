"""``sdft configs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy_sdft.cli.target import option_parser, parse_options
from onpolicy_sdft.config.shipped import ROOT, copy_shipped, shipped_files
from onpolicy_sdft.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """List, show or copy the files that come with the package."""
    parser = option_parser("sdft configs", "Configs and launch scripts that come with the package.")
    parser.add_argument("action", choices=["list", "show", "copy"], help="What to do.")
    parser.add_argument("name", nargs="?", help="File, or for copy a folder (configs, configs/online, launch).")
    parser.add_argument("--output", type=str, default=".", help="Folder to copy into.")
    options = parse_options(parser, arguments)
    if options.action == "list":
        for name in shipped_files():
            print(f"{name:44} {_first_words(ROOT / name)}".rstrip())
        return 0
    if options.name is None:
        raise ConfigError(f"sdft configs {options.action} NAME: say which. sdft configs list shows them.")
    if options.action == "copy":
        for path in copy_shipped(options.name, Path(options.output)):
            print(path)
        return 0
    if options.name not in shipped_files():
        raise ConfigError(f"There is no file {options.name!r}. sdft configs list shows what there is.")
    print((ROOT / options.name).read_text(encoding="utf-8"), end="")
    return 0


def _first_words(path: Path) -> str:
    """Return the first sentence of a file's comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("# ")]
    text = " ".join(comment).partition(". ")[0].rstrip(".")
    return text if len(text) <= 90 else f"{text[:87]}..."
