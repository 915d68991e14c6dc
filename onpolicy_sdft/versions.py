"""Versions of packages, also of those that are on the path without having been installed."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_OWN_NAME = "onpolicy_sdft"


def package_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Look versions up in the installed metadata, without importing anything.

    Args:
        names: Distribution names.

    Returns:
        Version by name; None where there is no metadata of it. A source checkout of this package that was never
        installed has the version of its pyproject.toml.
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _checkout_version() if name == _OWN_NAME else None


def _checkout_version() -> str | None:
    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:  # the package's folder alone
        return None
    project = tomllib.loads(text).get("project", {})
    return f"{project['version']} (source checkout)" if project.get("name") == _OWN_NAME else None
