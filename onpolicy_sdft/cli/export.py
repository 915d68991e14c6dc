"""``sdft export``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.cli.target import option_parser, parse_options, split_target


def run(arguments: Sequence[str]) -> int:
    """Export a run's model."""
    parser = option_parser("sdft export RUN", "Write a run's model for transformers or peft.")
    parser.add_argument("--output", type=str, help="Directory to write.")
    parser.add_argument("--merged", action="store_true", help="Fold the adapter into the base: a plain model.")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="Of a whole model (default: merged as the base's files, else as trained).",
    )
    parser.add_argument("--push_to_hub", type=str, help="Hub name USER/NAME to push to (off by default).")
    parser.add_argument("--private", action="store_true", help="Make the hub repository private.")
    parser.add_argument("--revision", type=str, help="Branch of the hub repository to push to.")
    target, rest = split_target(parser, arguments)
    options = parse_options(parser, rest)
    from onpolicy_sdft.fitting.export import export

    export(
        target, options.output, merged=options.merged, push_to_hub=options.push_to_hub,
        dtype=options.dtype, private=options.private, revision=options.revision,
    )  # fmt: skip
    return 0
