"""Options of ``sdft sweep``: axes over the options of runs, loaded and checked like those of a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser, Namespace

from onpolicy_sdft.config.bounds import check_bounds, number
from onpolicy_sdft.config.load import Parser, Verbatim, explain, field_names, kept_parser, parse_arguments
from onpolicy_sdft.config.shipped import ROOT, here_or_shipped
from onpolicy_sdft.errors import ConfigError

#: Axis whose values are methods: names of ``configs/methods`` or YAML files of options.
METHOD = "method"
#: Name of a bundle of options, where an axis has such values.
LABEL = "label"
#: Why a combination is left out.
WHY = "why"
#: Options that the sweep sets itself, with the way out.
OWN = {
    "train.output_dir": "output_dir is the directory of the sweep, and every run has its own in it",
    "train.seed": "seeds",
    "train.resume": "leave it out: every run is gone on with",
    "distill.output_dir": "leave it out: distilled sets are kept in output_dir",
    "distill.resume": "leave it out: a distilled set is gone on with",
}


@dataclass
class SweepConfig:
    """Runs that differ in a few options, with several seeds each."""

    base: list[str] = field(default_factory=list)
    """YAML files of run options that all runs share; later ones win."""
    options: dict[str, Verbatim] = field(default_factory=dict)
    """Options that all runs share, by dotted name; they win over ``base``. As flags: ``--train.max_steps 30``."""
    axes: dict[str, list[Verbatim]] = field(default_factory=dict)
    """Dotted option: its values. Runs are all combinations; later axes win over earlier ones, and over ``options``.
    The axis ``method`` takes names of ``configs/methods`` or YAML files. An axis of any other name takes bundles, such
    as {label: on-policy, train.targets: policy}: options that belong together, as one value."""
    exclude: list[dict[str, Verbatim]] = field(default_factory=list)
    """Combinations that are left out, such as {objective.name: nll, rollout.prompt: student}; a list stands for any of
    its values. ``why`` is shown."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """``train.seed`` of the runs of each combination."""
    metrics: list[str] = field(default_factory=list)
    """What the table shows: eval/LABEL/score, eval/kl, eval/nll, train/steps, train/total_loss_tokens, train/seconds,
    or any name of metrics.jsonl (the mean over steps). Empty: all scores, eval/kl and train/steps."""
    output_dir: str = "runs/sweep"
    """The sweep's directory; the same one again goes on with it."""
    max_parallel: int = number(1, at_least=1)
    """Runs at once, at most."""
    retry_failed: bool = False
    """Try runs again that failed before; otherwise they are kept as failed, with their reason."""
    launch: list[str] = field(default_factory=list)
    """Command that starts each run, such as [accelerate, launch, --config_file, launch/accelerate/zero2.yaml]."""
    launcher: Literal["local", "submitit"] = "local"
    """Where runs are started: on this machine, or as jobs under Slurm (extra ``submitit``)."""
    slurm: dict[str, Verbatim] = field(default_factory=dict)
    """Parameters of the jobs, as submitit names them: timeout_min, slurm_partition, gpus_per_node, ...
    ``cluster: local`` tries them on this machine."""


def make_sweep_parser() -> ArgumentParser:
    """Return a parser with every option of :class:`SweepConfig` and ``--config FILE``."""
    parser = Parser(
        prog="sdft sweep",
        description="Train over axes of options and seeds, and put the scores into one table. Options of a run may be "
        "given as flags, too (--train.max_steps 30): all runs share them.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of options; flags after it win.")
    parser.add_options(SweepConfig)
    return parser


def load_sweep(arguments: Sequence[str], parser: ArgumentParser | None = None) -> tuple[SweepConfig, Namespace]:
    """Parse the command line to a checked sweep.

    Args:
        arguments: ``--config FILE``, flags of the sweep, and flags of runs, which win over ``options``.
        parser: Of :func:`make_sweep_parser`, where a verb has added to it.

    Returns:
        The sweep and the namespace, for what the verb added.

    Raises:
        ConfigError: With the option, the value and the nearest valid name.
    """
    parser = make_sweep_parser() if parser is None else parser
    own, shared = _split_run_options(arguments)
    namespace = parse_arguments(parser, own, _explain)
    built = parser.instantiate(namespace)
    config = SweepConfig(**{item.name: built[item.name] for item in fields(SweepConfig)})
    config.options = {**config.options, **cast(dict[str, Verbatim], shared)}
    check_sweep(config)
    return config, namespace


def layer_file(name: str, *, is_method: bool = False) -> Path:
    """Return the YAML file of options that a name stands for.

    Args:
        name: A path, from here or of a shipped file; with ``is_method`` also a name of ``configs/methods``.
        is_method: Whether it may be such a name.

    Returns:
        The file.

    Raises:
        ConfigError: There is none.
    """
    methods = [place / "configs" / "methods" for place in (Path(), ROOT)]
    names = [name, f"configs/methods/{name}.yaml"] if is_method else [name]
    for each in names:
        if (found := here_or_shipped(each)) is not None:
            return found
    if is_method:
        known = sorted({path.stem for folder in methods for path in folder.glob("*.yaml")})
        raise ConfigError(f"There is no method and no file {name!r}. There are: {', '.join(known) or 'none'}.")
    raise ConfigError(f"base: there is no file {name!r}. Fix: a path from here, or of sdft configs list.")


def check_sweep(config: SweepConfig) -> None:
    """Check what can be told without the options of a run.

    Raises:
        ConfigError: On the first thing that is refused.
    """
    check_bounds(config)
    names = set(field_names())
    for name in config.options:
        _refuse_own("options", name, names)
    for axis, values in config.axes.items():
        _check_axis(axis, values, names)
    _check_excluded(config)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise ConfigError(f"seeds={config.seeds} is not usable: give different numbers from 0 on, at least one.")
    if config.slurm and config.launcher != "submitit":
        raise ConfigError(
            f"slurm={config.slurm!r} is not read by launcher=local. Fix: --launcher submitit, or leave it out."
        )
    if config.launcher == "submitit" and not {"timeout_min", "slurm_time"} & config.slurm.keys():
        raise ConfigError(
            "launcher=submitit: slurm says nothing of how long a run may take, and submitit would give it minutes. "
            "Fix: slurm: {timeout_min: 240, ...}."
        )


def is_bundle_axis(axis: str) -> bool:
    """Whether an axis is no option of a run, so that its values are bundles of options."""
    return axis != METHOD and axis not in field_names()


def shown_value(axis: str, value: Any) -> Any:
    """Return what stands for an axis value in names and tables: of a bundle its label, of a method its name."""
    if axis == METHOD:
        return Path(value).stem if Path(value).suffix in (".yaml", ".yml") else value
    return value[LABEL] if is_bundle_axis(axis) else value


def canonical(value: Any) -> str:
    """Return a text that is the same for equal values, and for them alone: 1 is 1.0, but not true."""
    return json.dumps(_with_floats(value), sort_keys=True, default=str)


def _with_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_axis(axis: str, values: Sequence[Any], names: set[str]) -> None:
    if not re.fullmatch(r"[\w.-]+", axis):
        raise ConfigError(f"axes: {axis!r} names files and columns. Fix: letters, digits, '_', '-' and '.' only.")
    if not values:
        raise ConfigError(f"axes: {axis} has no values. Fix: give it some, or leave it out.")
    bundled = axis != METHOD and axis not in names
    if bundled and not any(isinstance(value, Mapping) and LABEL in value for value in values):
        raise ConfigError(
            f"axes: {axis}: {explain(f'unrecognized arguments: --{axis}', kept_parser('sdft train'))} An axis of a "
            f"name of its own takes bundles: [{{{LABEL}: a, train.targets: policy}}, ...]."
        )
    for value in values:
        if bundled:
            _check_bundle(axis, value, names)
        elif axis == METHOD:
            if not isinstance(value, str):
                raise ConfigError(f"axes: {METHOD}={value!r} is not usable: expected a name or a YAML file.")
            layer_file(value, is_method=True)
        else:
            _refuse_own("axes", axis, names)
    shown = Counter(canonical(shown_value(axis, value)) for value in values)
    twice = [text for text, count in shown.items() if count > 1]
    if twice:
        raise ConfigError(f"axes: {axis} has {twice[0]} twice. Fix: each value, or label, once.")


def _check_bundle(axis: str, value: Any, names: set[str]) -> None:
    if not isinstance(value, Mapping) or LABEL not in value or len(value) < 2:
        raise ConfigError(
            f"axes: {axis}={value!r} is not usable: expected a bundle of options with a name, such as {{{LABEL}: a, "
            "train.targets: policy}."
        )
    label = value[LABEL]
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise ConfigError(
            f"axes: {axis}: the {LABEL} {label!r} is not usable: expected a text or a number (YAML reads on, off, yes "
            "and no as truth values: put them in quotes)."
        )
    for name, option in value.items():
        if name == METHOD:
            layer_file(str(option), is_method=True)
        elif name != LABEL:
            _refuse_own(f"axes: {axis} ({label})", name, names)


def _refuse_own(where: str, name: str, names: set[str]) -> None:
    if name in OWN:
        raise ConfigError(f"{where}: {name} is set by the sweep itself. Fix: {OWN[name]}.")
    if name not in names:
        hint = explain(f"unrecognized arguments: --{name}", kept_parser("sdft train"))
        raise ConfigError(f"{where}: {hint}")


def _check_excluded(config: SweepConfig) -> None:
    for entry in config.exclude:
        axes = [name for name in entry if name != WHY]
        if not axes:
            raise ConfigError(f"exclude: {entry!r} names no axis, so it would leave everything out.")
        if not isinstance(entry.get(WHY, ""), str):
            raise ConfigError(f"exclude: {WHY}={entry[WHY]!r} is not usable: expected a text.")
        for axis in axes:
            if axis not in config.axes:
                raise ConfigError(f"exclude: {axis!r} is no axis. There are: {', '.join(config.axes) or 'none'}.")
            known = [shown_value(axis, value) for value in config.axes[axis]]
            for value in excluded_values(entry[axis], known):
                if canonical(value) not in map(canonical, known):
                    raise ConfigError(f"exclude: {axis} has no value {value!r}. There are: {known!r}.")


def excluded_values(entry: Any, known: Sequence[Any]) -> list[Any]:
    """Return the values that an entry of ``exclude`` names: a list is several, unless it is a value itself."""
    is_value = not isinstance(entry, list) or canonical(entry) in map(canonical, known)
    return [entry] if is_value else list(entry)


def _split_run_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take the flags of runs off a command line."""
    known, own, shared = set(field_names()), list[str](), dict[str, str]()
    waiting = iter(arguments)
    for flag in waiting:
        name, is_whole, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or name not in known:
            own.append(flag)
            continue
        given = value if is_whole else next(waiting, None)
        if given is None:
            raise ConfigError(f"--{name} needs a value.")
        shared[name] = given
    return own, shared


def _explain(message: str, parser: ArgumentParser) -> str:
    """Explain a refused option; one of a run in a sweep's file belongs under ``options``."""
    unknown = re.search(r"[Uu]nrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'", message)
    name = (unknown[1] or unknown[2]) if unknown else ""
    section = name.partition(".")[0]
    if name in field_names():
        return f"{name} is an option of runs. Fix: write it under options (options: {{{name}: ...}}), or as a flag."
    if "." in name and section in {known.partition(".")[0] for known in field_names()}:
        return explain(message, kept_parser(parser.prog))
    return explain(message.replace(f"'{name}'", f"'{section}'"), parser)
