"""Files that come with the package: configs, accelerate's files and launch scripts, installed or in the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from onpolicy_sdft.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1] / "shipped"


def shipped_files() -> list[str]:
    """List all shipped files by relative path, the form that ``--config`` takes."""
    folders = [ROOT / "configs", *(ROOT / "configs").iterdir(), ROOT / "launch", ROOT / "launch" / "accelerate"]
    names = [path.relative_to(ROOT) for folder in folders for path in folder.glob("*.*") if path.is_file()]
    return sorted(str(name) for name in names if name.suffix in (".yaml", ".sh") and name.parts[-1] not in _OF_CHECKOUT)


#: Of the folder ``launch``, what only the checkout has a use for.
_OF_CHECKOUT = ("common.sh", "docs.sh", "mkdocs.yml", "quickstart.sh", "test.sh")


def here_or_shipped(name: str) -> Path | None:
    """Return the file of a name, which is looked for here and among those that are shipped; None: there is none."""
    path = Path(name).expanduser()
    return next((each for each in (path, ROOT / path) if each.is_file()), None)


def copy_shipped(name: str, output: Path) -> list[Path]:
    """Copy a file, or all files of a folder, under the same names.

    Args:
        name: ``configs/online/gsm8k.yaml``, or a folder such as ``launch``.
        output: Folder to copy into.

    Returns:
        The files that were written.

    Raises:
        ConfigError: If there is nothing of that name, or a file is there already with other content.
    """
    wanted = name.strip("/")
    names = [each for each in shipped_files() if each == wanted or each.startswith(f"{wanted}/")]
    if not names:
        raise ConfigError(f"There is no file or folder {name!r}. Fix: one of those that sdft configs list shows.")
    targets = [output / each for each in names]
    for each, target in zip(names, targets, strict=True):
        if target.exists() and target.read_bytes() != (ROOT / each).read_bytes():
            raise ConfigError(f"{target} is there already, with other content. Fix: --output DIR, or move it away.")
    for each, target in zip(names, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / each, target)
    return targets
