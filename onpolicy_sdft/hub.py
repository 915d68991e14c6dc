"""The Hugging Face hub, where this machine has no way to it."""

from __future__ import annotations

import socket
from typing import Any
from urllib.request import getproxies


def give_up_early() -> None:
    """Let requests to hosts that have no address fail at once: the hub's client would try each six times, over 70 s.

    It then reads what it has on disk, as it does when it is told to be offline.
    """
    import huggingface_hub

    if getproxies():  # a proxy finds hosts that this machine does not know
        return
    client = huggingface_hub.get_session()
    hooks = client.event_hooks.get("request", [])
    if _refuse_unknown_host not in hooks:
        client.event_hooks = {**client.event_hooks, "request": [*hooks, _refuse_unknown_host]}


def _refuse_unknown_host(request: Any) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        socket.getaddrinfo(request.url.host, request.url.port)
    except socket.gaierror as error:
        raise OfflineModeIsEnabled(f"{request.url.host} has no address here: {error}") from error
