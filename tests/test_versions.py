"""Versions of what is installed, of a source checkout, and of what is neither."""

from __future__ import annotations

import importlib.metadata

import pytest

from onpolicy_sdft import versions


@pytest.fixture
def _nothing_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)


def test_a_package_that_is_not_installed_has_no_version():
    found = versions.package_versions(["psutil", "no-such-package-at-all"])
    assert found["psutil"]
    assert found["no-such-package-at-all"] is None


@pytest.mark.usefixtures("_nothing_installed")
def test_a_checkout_has_the_version_of_its_own_pyproject(monkeypatch, tmp_path):
    assert versions.package_versions(["onpolicy_sdft", "torch"]) == {
        "onpolicy_sdft": "0.1.0 (source checkout)", "torch": None,
    }  # fmt: skip
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "onpolicy_sdft" / "versions.py"))
    assert versions.package_versions(["onpolicy_sdft"]) == {"onpolicy_sdft": None}
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "a program that carries a copy"\nversion = "9"\n')
    assert versions.package_versions(["onpolicy_sdft"]) == {"onpolicy_sdft": None}
