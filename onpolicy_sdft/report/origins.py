"""What was run: command, commit, hardware, seeds, versions and config, with what differs between runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from onpolicy_sdft.report.document import Block, Column, Listing, Sentence, Table, make_table, plain, used
from onpolicy_sdft.report.reading import Member, Reader
from onpolicy_sdft.runs.files import dumps_strict, flatten

_NUM_NAMES = 3  # of runs that share a value, before they are only counted
_PLACES = ("train.output_dir", "output_dir")  # where a run stands is no option of what it does
_NUM_CONFIGS = 4  # shown whole; the others by what differs


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one run or sequence comes from."""

    name: str
    manifest: Mapping[str, Any]
    manifest_source: str
    config: str  # YAML
    config_source: str


def origins_of(members: Sequence[Member], reader: Reader) -> list[Origin]:
    """Return the origins of runs."""
    return [
        Origin(
            member.name,
            member.records.manifest,
            reader.name(member.path / "manifest.json"),
            member.records.config,
            reader.name(member.path / "config.yaml"),
        )
        for member in members
    ]


def origin_of_object(name: str, value: Mapping[str, Any], source: str) -> Origin:
    """Return the origin of what keeps its ``config`` and ``manifest`` in its own JSON file."""
    config, manifest = value.get("config"), value.get("manifest")
    text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False) if config else ""
    return Origin(name, manifest if isinstance(manifest, Mapping) else {}, source, text, source)


def origin_blocks(origins: Sequence[Origin], noun: str = "run") -> list[Block | None]:
    """Say what was run.

    Args:
        origins: Of each run or sequence.
        noun: What they are.

    Returns:
        Where each comes from, versions and, for several, the options that differ; then commands, configs and, for one
        alone, the manifest, folded.
    """
    known = [origin for origin in origins if origin.manifest]
    blocks: list[Block | None] = [_where(known, noun), *_versions(known)]
    if len(origins) > 1:
        blocks.append(_differences(origins, noun))
    blocks.append(_commands(known))
    blocks += _configs(origins)
    if len(origins) == 1 and known:
        text = dumps_strict(known[0].manifest, indent=2)
        blocks.append(Listing("manifest", "manifest", text, (known[0].manifest_source,)))
    return blocks


def start_of(manifest: Mapping[str, Any]) -> str:
    """Say in a line when, on which commit and on which machine a run was started."""
    parts = [f"started {manifest['started']}"] if manifest.get("started") else []
    commit = _commit(manifest)
    parts += [f"commit {commit}"] if commit else []
    machine = _mapping(manifest.get("hardware"))
    parts += [str(name) for name in _gpus(machine) or [machine.get("cpu")] if name]
    return ", ".join(parts)


def grouped(values: Mapping[str, Any]) -> str:
    """Show one value a run: each value once, with the runs that have it where they differ."""
    names_of: dict[str, list[str]] = {}
    for name, value in values.items():
        names_of.setdefault(_text(value), []).append(name)
    if len(names_of) == 1:
        return next(iter(names_of))
    return "; ".join(f"{text} ({_some(names)})" for text, names in names_of.items())


def _where(origins: Sequence[Origin], noun: str) -> Table | None:
    rows = []
    for origin in origins:
        machine = _mapping(origin.manifest.get("hardware"))
        gpus = _gpus(machine)
        kinds = [f"{gpus.count(kind)} x {kind}" for kind in dict.fromkeys(gpus)]
        cpu = [str(part) for part in (machine.get("cpu"), _cores(machine)) if part]
        seeds = _mapping(origin.manifest.get("seeds"))
        rows.append(
            {
                "name": origin.name,
                "started": origin.manifest.get("started"),
                "commit": _commit(origin.manifest),
                "hardware": ", ".join([*kinds, *cpu]),
                "seeds": ", ".join(f"{name} {seed}" for name, seed in seeds.items()),
                "num_ranks": origin.manifest.get("num_ranks"),
                "num_demonstrations": origin.manifest.get("num_demonstrations"),
                "command": origin.manifest.get("command"),
                "config": origin.config,
            }
        )
    columns = [
        Column("name", noun, plain),
        Column("started", "started", plain),
        Column("commit", "commit", plain),
        Column("hardware", "hardware", plain),
        Column("seeds", "seeds", plain),
        Column("num_ranks", "ranks", plain),
    ]
    sources = [origin.manifest_source for origin in origins]
    return make_table("what_was_run", "Started", used(columns, rows), rows, sources)


def _versions(origins: Sequence[Origin]) -> list[Block | None]:
    """Name the versions that all share, and show those that differ in a table."""
    versions = {origin.name: _mapping(origin.manifest.get("versions")) for origin in origins}
    packages = dict.fromkeys(name for each in versions.values() for name in each)
    rows: list[dict[str, Any]] = [
        {"package": package, "versions": {name: each.get(package) for name, each in versions.items()}}
        for package in packages
    ]
    shared = [row for row in rows if len(set(map(_text, row["versions"].values()))) == 1]
    others = [row for row in rows if row not in shared]
    sources = tuple(origin.manifest_source for origin in origins)
    columns = [Column("package", "package", plain), Column("versions", "version", grouped)]
    table = make_table("versions", "Versions that differ", columns, others, sources)
    if not shared:
        return [table]
    found = {str(row["package"]): next(iter(row["versions"].values())) for row in shared}
    text = "Versions: " + ", ".join(f"{package} {_text(version)}" for package, version in found.items()) + "."
    return [Sentence("shared_versions", text, found, sources), table]


def _differences(origins: Sequence[Origin], noun: str) -> Table | None:
    """Show the options that are not the same in all configs."""
    flat = {origin.name: flatten(_parse(origin.config)) for origin in origins if origin.config}
    rows = []
    for option in dict.fromkeys(name for each in flat.values() for name in each):
        values = {name: each.get(option) for name, each in flat.items()}
        if option in _PLACES:
            continue
        if len({_text(value) for value in values.values()}) > 1:
            rows.append({"option": option, "values": values})
    columns = [Column("option", "option", plain), Column("values", f"value ({noun}s that have it)", grouped)]
    sources = [origin.config_source for origin in origins if origin.config]
    return make_table("config_differences", "Options that differ", columns, rows, sources)


def _commands(origins: Sequence[Origin]) -> Listing | None:
    lines = []
    for origin in origins:
        command = origin.manifest.get("command")
        if command:
            words = [str(word) for word in command] if isinstance(command, list) else [str(command)]
            lines.append(f"# {origin.name}\n{shlex.join(words)}" if len(origins) > 1 else shlex.join(words))
    title = "command" if len(lines) == 1 else f"{len(lines)} commands"
    sources = tuple(origin.manifest_source for origin in origins)
    return Listing("commands", title, "\n".join(lines), sources) if lines else None


def _configs(origins: Sequence[Origin]) -> list[Block | None]:
    """List whole configs, each text once; of many only the first few, since what differs has a table."""
    by_text: dict[str, list[Origin]] = {}
    for origin in origins:
        if origin.config:
            by_text.setdefault(origin.config, []).append(origin)
    blocks: list[Block | None] = []
    for number, (text, same) in enumerate(list(by_text.items())[:_NUM_CONFIGS]):
        of = "" if len(origins) == 1 else f" of {_some([origin.name for origin in same])}"
        blocks.append(Listing(f"config_{number}", f"config{of}", text, tuple(origin.config_source for origin in same)))
    rest = [origin for same in list(by_text.values())[_NUM_CONFIGS:] for origin in same]
    if rest:
        files = "\n".join(origin.config_source for origin in rest)
        title = f"{len(rest)} more configs (what differs is in the table above)"
        blocks.append(Listing("more_configs", title, files, tuple(origin.config_source for origin in rest)))
    return blocks


def _parse(config: str) -> Any:
    try:
        return yaml.safe_load(config) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error


def _commit(manifest: Mapping[str, Any]) -> str:
    git = _mapping(manifest.get("git"))
    if not git.get("commit"):
        return ""
    return str(git["commit"])[:12] + (" (modified)" if git.get("dirty") else "")


def _gpus(machine: Mapping[str, Any]) -> list[Any]:
    gpus = machine.get("gpus")
    return gpus if isinstance(gpus, list) else []


def _cores(machine: Mapping[str, Any]) -> str:
    cores = machine.get("num_usable_cores")
    return f"{cores} core{'' if cores == 1 else 's'}" if cores else ""


def _some(names: Sequence[str]) -> str:
    if len(names) <= _NUM_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_NUM_NAMES])} and {len(names) - _NUM_NAMES} more"


def _text(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else plain_json(value)


def plain_json(value: Any) -> str:
    """Show a config value: a number as people write it, anything nested as JSON."""
    if isinstance(value, float):
        return f"{value:g}"
    return dumps_strict(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
