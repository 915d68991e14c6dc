"""Points to runs: the options of each resolved and checked before the first is started; nothing is written here."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError

from onpolicy_sdft.config.check import check, evaluation_sets
from onpolicy_sdft.config.load import explain, kept_parser, to_config
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.config.scores import score_metric
from onpolicy_sdft.config.sweep import SweepConfig, canonical, layer_file
from onpolicy_sdft.errors import ConfigError, did_you_mean
from onpolicy_sdft.experiments.grid import Excluded, Point, grid, run_name
from onpolicy_sdft.runs.metrics import METRICS

_DISTILLED = "train.distilled"


@dataclass(frozen=True, slots=True)
class Distilled:
    """A data set that offline runs learn from, written before them."""

    name: str  # of its directory in the sweep's
    config: RunConfig


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    point: Point
    seed: int
    config: RunConfig
    distilled: Distilled | None  # the sweep's own set, if it learns from one

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.config.train.output_dir)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a sweep is going to do."""

    runs: tuple[PlannedRun, ...]  # all points with the first seed, then with the second, ...
    excluded: tuple[Excluded, ...]

    @property
    def distilled(self) -> tuple[Distilled, ...]:
        """The sets that are to be written, each once."""
        return tuple({run.distilled.name: run.distilled for run in self.runs if run.distilled}.values())


def make_plan(config: SweepConfig) -> Plan:
    """Resolve every point's options and check them against the schema.

    Raises:
        ConfigError: Listing every point that is refused, and why.
    """
    if not (config.axes or config.base or config.options):
        raise ConfigError(
            "A sweep needs runs: neither axes nor base nor options are given. Fix: --config FILE (sdft configs list "
            "shows some)."
        )
    points = grid(config.axes, config.exclude)
    resolved: dict[str, tuple[RunConfig, Distilled | None]] = {}
    problems: dict[str, str] = {}
    same: dict[str, str] = {}  # options of a point -> its name
    for point in points.points:
        try:
            found = resolve(config, point)
        except ConfigError as error:
            problems[point.name] = str(error)
            continue
        earlier = same.setdefault(canonical(dataclasses.asdict(found[0])), point.name)
        if earlier != point.name:
            problems[point.name] = (
                f"its options are those of {earlier}, so it would be the same run: a later axis sets what an earlier "
                "one varies. Fix: another order of the axes, or leave it out."
            )
        resolved[point.name] = found
    if problems:
        lines = "\n".join(f"  {name or 'the only point'}: {text}" for name, text in problems.items())
        raise ConfigError(
            f"{len(problems)} of {len(points.points)} points cannot run, so none was started. Fix: mend them, or "
            f"leave them out (exclude).\n{lines}"
        )
    _check_metrics(config, [run for run, _ in resolved.values()])
    runs = [_planned(config, point, seed, *resolved[point.name]) for seed in config.seeds for point in points.points]
    return Plan(tuple(runs), points.excluded)


def resolve(config: SweepConfig, point: Point) -> tuple[RunConfig, Distilled | None]:
    """Return the options of a point, but for its seed and directory, and the distilled set it learns from.

    A point that learns from a distilled set and does not say which gets one of its own. A method's file does not count
    as saying: what stands there is an example.

    Raises:
        ConfigError: The options are refused.
    """
    arguments = [f"--config={layer_file(name)}" for name in config.base]
    arguments += _flags(config.options)
    for choice in point.choices:
        if choice.method is not None:
            arguments.append(f"--config={layer_file(choice.method, is_method=True)}")
        arguments += _flags(choice.options)
    parser = kept_parser("sdft train")
    try:
        run = to_config(parser, parser.parse_args(arguments))
    except (ArgumentError, OSError) as error:
        raise ConfigError(explain(str(error), parser)) from error
    own = _own_distilled(config, point, run)
    if own is not None:
        check(own.config)
        run = _with_train(run, distilled=str(Path(config.output_dir) / own.name))
    check(run)
    return run, own


def _own_distilled(config: SweepConfig, point: Point, run: RunConfig) -> Distilled | None:
    says = any(_DISTILLED in options for options in (config.options, *(choice.options for choice in point.choices)))
    has_method = any(choice.method is not None for choice in point.choices)
    if run.train.targets != "distilled" or says or (run.train.distilled is not None and not has_method):
        return None
    name = f"distilled-{_digest(run)}"
    writes = replace(run, distill=replace(run.distill, output_dir=str(Path(config.output_dir) / name), resume="auto"))
    return Distilled(name, _with_train(writes, targets="policy", distilled=None))


def _digest(run: RunConfig) -> str:
    """Digest what decides the rows of a distilled set; its seed is the shared options': one set for all seeds."""
    whole = dataclasses.asdict(run)
    decides: dict[str, Any] = {
        name: whole[name] for name in ("data", "task", "replay", "context", "rollout", "screening") if name in whole
    }
    decides |= {"model": {**whole["model"], "cache_dir": None}, "rules": run.distill.rules, "seed": run.train.seed}
    return hashlib.sha256(canonical(decides).encode()).hexdigest()[:8]


def _planned(config: SweepConfig, point: Point, seed: int, run: RunConfig, distilled: Distilled | None) -> PlannedRun:
    name = run_name(point, seed)
    place = str(Path(config.output_dir) / "runs" / name)
    return PlannedRun(name, point, seed, _with_train(run, output_dir=place, seed=seed, resume="auto"), distilled)


def _with_train(run: RunConfig, **changed: Any) -> RunConfig:
    return replace(run, train=replace(run.train, **changed))


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Write options as flags of a run; text as it stands, the rest as YAML."""
    return [f"--{name}={value if isinstance(value, str) else _yaml(value)}" for name, value in options.items()]


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 20)
    return text.strip().removesuffix("...").strip()  # the end mark of a document that is one scalar


def _check_metrics(config: SweepConfig, runs: list[RunConfig]) -> None:
    """Refuse scores that no run will have, and names that no step logs."""
    known = {score_metric(item.label) for run in runs for item in evaluation_sets(run)} | {"eval/kl", "eval/nll"}
    logged = {each.name for each in METRICS if each.name != "loss/*"}
    logged |= {"train/steps", "train/seconds", *(f"loss/{run.objective.name}" for run in runs)}
    for name in config.metrics:
        if name.startswith("eval/") and name not in known:
            raise ConfigError(f"metrics: no run has {name!r}. There are: {', '.join(sorted(known))}.")
        if "/" not in name:
            raise ConfigError(f"metrics: {name!r} is no metric: they are called area/quantity, e.g. train/steps.")
        if not name.startswith("eval/") and not any(fnmatchcase(name, each) for each in logged):
            raise ConfigError(
                f"metrics: no step logs {name!r}.{did_you_mean(name, logged)} Fix: a name of docs/metrics.md, "
                "train/steps or train/seconds."
            )
