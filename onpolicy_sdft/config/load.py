"""Load a run's options from YAML files and dotted flags, and write them back."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from onpolicy_sdft.config.check import check
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig
from onpolicy_sdft.errors import ConfigError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def make_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser with every option of :class:`RunConfig` as ``--section.field`` and ``--config FILE``."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; flags after it win.")
    for section in dataclasses.fields(RunConfig):
        kind = type(section.default_factory())  # type: ignore[misc]
        parser.add_class_arguments(kind, section.name)
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[RunConfig, Namespace]:
    """Parse the command line to a checked config.

    Returns:
        The config and the namespace, for what the verb added to the parser.

    Raises:
        ConfigError: With the field, the value and the nearest valid name.
    """
    from jsonargparse import ArgumentError

    try:
        namespace = parser.parse_args(list(arguments))
    except (ArgumentError, OSError) as error:
        raise ConfigError(_explain(str(error), parser)) from error
    config = to_config(parser, namespace)
    check(config)
    return config, namespace


def load_config(*files: str | Path, **overrides: Any) -> RunConfig:
    """Load a config from YAML files, later ones winning, with overrides by dotted name.

    Example: ``load_config("configs/online/quickstart.yaml", **{"train.max_steps": 3})``.

    Raises:
        ConfigError: As :func:`parse`.
    """
    arguments = [part for file in files for part in ("--config", str(file))]
    for name, value in overrides.items():
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()
        arguments.append(f"--{name}={text.removesuffix('...').strip()}")
    return parse(make_parser("onpolicy_sdft", ""), arguments)[0]


def to_config(parser: ArgumentParser, namespace: Namespace) -> RunConfig:
    """Turn a parsed namespace into the config object."""
    built = parser.instantiate_classes(namespace)
    return RunConfig(**{section.name: built[section.name] for section in dataclasses.fields(RunConfig)})


def dump_config(config: RunConfig) -> str:
    """Return the whole config as YAML that ``--config`` reads back."""
    text: str = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    return text


def field_names(kind: type[Any] = RunConfig, prefix: str = "") -> list[str]:
    """List every option by dotted name."""
    names = []
    for item in dataclasses.fields(kind):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            names += field_names(type(default), f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _explain(message: str, parser: ArgumentParser) -> str:
    """Add the nearest valid option to the parser's message about an unknown one."""
    unknown = re.search(
        r"[Uu]nrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)' is not|option '([\w.]+)'$", message
    )
    name = next((group for group in unknown.groups() if group), "") if unknown else ""
    group = re.search(r"Group '([\w.]+)' does not accept", message)
    name = f"{group[1]}.{name}" if group else name
    names = field_names() + field_names(EvalSetConfig, "eval.sets[].")
    if not name or name in names:
        return message.strip()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.rsplit(".", 1)[-1], [n.rsplit(".", 1)[-1] for n in names], n=1
    )
    hint = f" The nearest option is {near[0]!r}." if near else ""
    return f"{message.strip()}{hint} See {parser.prog} --help."
