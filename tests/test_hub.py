"""Names of the hub where this machine has no way to it."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from onpolicy_sdft.config.schema import DataConfig, ModelConfig
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.errors import DataError, ModelError
from onpolicy_sdft.models.load import is_adapter, load
from onpolicy_sdft.tasks.free_form import FreeForm


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    def sleep(_seconds: float) -> None:
        raise AssertionError("it tries again")

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", sleep)


def test_an_unknown_model_is_refused_at_once() -> None:
    assert not is_adapter("nobody/nothing")
    with pytest.raises(ModelError, match=r"model\.name='nobody/nothing'.*Fix: a local path, a hub id"):
        load(ModelConfig(name="nobody/nothing"))


def test_an_unknown_data_set_is_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"data\.name='nobody/set'.*--data\.path FILE"):
        load_demonstrations(DataConfig(name="nobody/set"), FreeForm())
