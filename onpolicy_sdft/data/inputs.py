"""The files that a run reads, and what tells each from another of its name, without loading it.

It is what tells whether a finished run, which is not loaded, may count (sweeps, sequences, comparisons; ``files`` in
``manifest.json``). What was loaded is told by ``build/identity.py``, whose digests of weights are exact.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.data.files import find_files
from onpolicy_sdft.data.templates import template_file
from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.tasks.own_files import own_files

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import DataConfig, RunConfig, TaskConfig

#: Of a model's folder: what decides its weights, its tokens and its prompts.
_MODEL_ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
#: Of the distilled file in its directory.
DISTILLED_NAME = "distilled.jsonl"
_PART = 1 << 20  # bytes
#: Weights of gigabytes are told by so many parts of them: training moves all of them, and reading all takes minutes.
_NUM_PARTS = 64


def input_files(config: RunConfig, *, is_distilled_there: bool = True, is_scored: bool = True) -> dict[str, list[Path]]:
    """Return the files of this machine that a run reads, by the option that names them.

    Args:
        config: Of the run. What it takes from the hub or from the package is no file here.
        is_distilled_there: False for a distilled set that is only going to be written.
        is_scored: False for a job that asks no evaluation set.

    Raises:
        ConfigError, DataError, TaskError: Naming the option of a file that is not there.
    """
    found = {**_rows_and_task("", config.data, config.task)}
    for index, source in enumerate(config.replay.sources):
        found |= _rows_and_task(f"replay.sources[{index}].", source.data, source.task)
    if is_scored:
        for section, sets in (("eval.sets", evaluation_sets(config)), ("eval.validation", config.eval.validation)):
            for each in sets:
                found |= _rows_and_task(f"{section} {each.label}: ", each.data, each.task)
    if config.train.distilled is not None and is_distilled_there:
        found["train.distilled"] = [find_distilled(config.train.distilled)]
    if config.train.init_from is not None:  # of a sequence, the stage before: it may not be there yet
        found["train.init_from"] = sorted(Path(config.train.init_from).expanduser().glob("model/*.safetensors"))
    template, model = template_file(config.context.template), Path(config.model.name).expanduser()
    found["context.template"] = [template] if template is not None else []
    found["model.name"] = sorted(each for each in model.glob("*") if each.suffix in _MODEL_ENDINGS and each.is_file())
    return {option: files for option, files in found.items() if files}


def find_distilled(path: str | Path) -> Path:
    """Return the distilled file that a path names, or that stands in the directory it names.

    Raises:
        DataError: If there is none.
    """
    named = Path(path).expanduser()
    found = named / DISTILLED_NAME if named.is_dir() else named
    if not found.is_file():
        raise DataError(
            f"train.distilled={str(path)!r}: there is no file {found}. Fix: write it with `sdft distill`, or name one "
            "that is there."
        )
    return found


def input_digests(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, str]]:
    """Return a digest of each file, by option and path."""
    return {option: {str(path): _digest(path) for path in paths} for option, paths in files.items()}


def task_digest(name: str) -> str:
    """Return what tells the check of ``task.name`` from another of that name: its files; empty for the package's."""
    return " ".join(_digest(path) for path in own_files(name))


def task_digests(config: RunConfig) -> list[str]:
    """Return :func:`task_digest` of each task that judges what is learned: of the data, and of what is rehearsed."""
    return [task_digest(each.name) for each in (config.task, *(source.task for source in config.replay.sources))]


def changed_inputs(recorded: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the options, each with a file, whose files are others now; a folder that was moved as a whole is not."""
    changed = []
    for option in dict.fromkeys((*recorded, *now)):
        before, after = recorded.get(option, {}), now.get(option, {})
        if list(before.values()) != list(after.values()):
            names = [name for name in dict.fromkeys((*after, *before)) if before.get(name) != after.get(name)]
            changed.append(f"{option} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})")
    return changed


def _rows_and_task(where: str, data: DataConfig, task: TaskConfig) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    if data.path is not None:
        try:
            found[f"{where}data.path"] = find_files(data.path)
        except DataError as error:
            raise DataError(f"{where}{error}") from error
    elif data.name is not None and ":" not in data.name:
        place = Path(data.name).expanduser()
        found[f"{where}data.name"] = sorted(each for each in (place, *place.rglob("*")) if each.is_file())
        named = data.options.get("data_files", [])
        each = named.values() if isinstance(named, Mapping) else [named] if isinstance(named, str) else named
        files = [Path(str(one)).expanduser() for one in each]
        found[f"{where}data.options"] = [one for one in files if one.is_file()]
    try:
        own = own_files(task.name)
    except ImportError:  # a module that is not there: loading the task says so
        own = []
    if missing := [str(each) for each in own if not each.is_file()]:
        raise TaskError(f"{where}task.name={task.name!r}: there is no file {missing[0]}. Fix: its path.")
    found[f"{where}task.name"] = own
    return found


def _digest(path: Path) -> str:
    facts = path.stat()
    if facts.st_size <= _NUM_PARTS * _PART:
        return _digest_of_all(path)
    # The time of the last change of any kind, which no program can set back, as it can that of the last writing.
    return _digest_as_it_is(path, facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)


@functools.cache
def _digest_as_it_is(path: Path, size: int, *facts: int) -> str:
    """Digest a large file; sweeps ask for the same one again for every run."""
    if path.suffix != ".safetensors":
        return _digest_of_all(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for index in range(_NUM_PARTS):
            stream.seek(index * (size - _PART) // (_NUM_PARTS - 1))
            digest.update(stream.read(_PART))
    return digest.hexdigest()


def _digest_of_all(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
