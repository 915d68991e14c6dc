"""What stands at the places that a report is asked for, and the report's parts for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.report.comparisons import comparison_part
from onpolicy_sdft.report.document import Document, Part
from onpolicy_sdft.report.reading import Reader, short_names
from onpolicy_sdft.report.runs import one_run, several_runs
from onpolicy_sdft.report.sequences import sequence_part
from onpolicy_sdft.report.shifts import shift_part
from onpolicy_sdft.report.sweeps import sweep_part
from onpolicy_sdft.runs.directory import ENTRIES, RunDirectory

Make = Callable[[Path, str, Reader], Part]

#: The file that tells what a directory holds, and what makes its part of a report.
KINDS: Mapping[str, Make] = {
    "comparison.json": comparison_part,
    "sequence.json": sequence_part,
    "sweep.json": sweep_part,
    "shift.json": shift_part,
}
_TRAINED = ("metrics.jsonl", "rollouts.jsonl")  # what only a run leaves
_WRITTEN_BY_REPORTS = ("report.html", "plots")


def kinds_of(path: Path) -> list[str]:
    """Tell what a directory holds.

    Args:
        path: The directory.

    Returns:
        Keys of ``KINDS``, and ``run``.

    Raises:
        RunDirectoryError: It holds nothing that a report can be made of.
    """
    found = [name for name in KINDS if (path / name).is_file()]
    own = [name for name in (_TRAINED if found else ENTRIES) if (path / name).exists()]
    if set(own) - set(_WRITTEN_BY_REPORTS):
        found.append("run")
    if not found:
        there = "it holds" if path.is_dir() else "there is no such directory, so it holds"
        raise RunDirectoryError(
            f"{path} is not a run directory: {there} none of {', '.join(ENTRIES[:5])}; nor {', '.join(KINDS)} of a "
            "comparison, sequence, sweep or shift. Fix: give the output directory of sdft train, continual, "
            "compare, sweep or shift."
        )
    return found


def run_document(run: RunDirectory) -> Document:
    """Report one run, for a page in its own directory."""
    reader = Reader(run.path)
    part = one_run(reader.member(run.path, run.path.resolve().name), reader)
    return Document(part.title, (part,))


def compose(paths: Sequence[Path], base: Path) -> Document:
    """Report runs, sequences, comparisons, sweeps and shifts in one document.

    Args:
        paths: Their directories; one that is named twice is shown once.
        base: The directory that the report is written to: files are named from there.

    Returns:
        The document: runs side by side in one part, everything else in a part each.

    Raises:
        RunDirectoryError: A directory holds nothing that a report can be made of.
    """
    paths = list({path.resolve(): path for path in paths}.values())
    kinds = [kinds_of(path) for path in paths]
    names = short_names(paths)
    reader = Reader(base)
    runs = [reader.member(path, name) for path, name, kind in zip(paths, names, kinds, strict=True) if "run" in kind]
    parts = []
    if runs:
        parts.append(one_run(runs[0], reader) if len(runs) == 1 else several_runs(runs, reader))
    for path, name, found in zip(paths, names, kinds, strict=True):
        parts += [KINDS[kind](path, name, reader) for kind in found if kind != "run"]
    title = ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"
    return Document(title, tuple(parts))
