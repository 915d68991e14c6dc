"""Talks to vLLM over HTTP, with nothing but the standard library: many requests at once, and nothing waits for ever."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from onpolicy_sdft.errors import TrainingError

_CONNECT_SECONDS = 30.0  # until a server takes a connection, or says that it lives
_LOOK_SECONDS = 10.0  # without an answer, until it is asked whether it lives
_MAX_AT_ONCE = 512  # each is a thread and a socket


class RefusedError(Exception):
    """A server answers that it does not do what was asked; its status and its words."""

    def __init__(self, path: str, status: int, words: str) -> None:
        super().__init__(f"{path} answers {status}: {words}")
        self.path = path
        self.status = status


@dataclass(slots=True)
class _Open:
    """The connections of a call, so that all can be ended at once."""

    connections: set[HTTPConnection] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False

    def end(self) -> None:
        """Wake everyone who waits for an answer; the server leaves off writing when nobody reads."""
        with self.lock:
            self.ended = True
            for connection in self.connections:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):  # closed by the other side
                        connection.sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class VLLMClient:
    """A vLLM server.

    Args:
        url: Where it answers, with or without a path.
        timeout: Longest wait for one answer, in seconds.
        start: How it is to be started, for people.
    """

    url: str
    timeout: float
    start: str

    def get(self, path: str, timeout: float | None = None) -> Any:
        """Ask for what stands at a path.

        Args:
            path: Below the server's address.
            timeout: Longest wait, in seconds; None: the server's own.

        Raises:
            RefusedError: If it answers that it does not have it.
            TrainingError: If it does not answer.
        """
        return self._ask("GET", path, None, timeout or self.timeout, _Open())

    def post(self, path: str, body: object) -> Any:
        """Send one request and return its answer; raises as :meth:`post_all` does."""
        found: list[Any] = []
        self.post_all(path, [body], 1, lambda _, answer: found.append(answer))
        return found[0]

    def look(self) -> None:
        """Find out whether the server lives.

        Raises:
            TrainingError: If it does not.
        """
        try:
            self.get("/health", min(self.timeout, _CONNECT_SECONDS))
        except RefusedError as error:
            raise self.failed(str(error)) from error

    def post_all(self, path: str, bodies: Sequence[object], at_once: int, hear: Callable[[int, Any], None]) -> None:
        """Send many requests side by side; on the first failure the others are ended.

        Args:
            path: Below the server's address.
            bodies: A request each.
            at_once: Requests that wait for their answers at the same time, at most.
            hear: Told the place and the answer of each as it comes, in this thread.

        Raises:
            RefusedError: If one is refused.
            TrainingError: If an answer does not come, or the server does not live any more.
        """
        places, answers, ongoing = queue.SimpleQueue[int](), queue.SimpleQueue[tuple[int, Any]](), _Open()
        for place in range(len(bodies)):
            places.put(place)

        def work() -> None:
            while not ongoing.ended:
                try:
                    place = places.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((place, self._ask("POST", path, bodies[place], self.timeout, ongoing)))
                except Exception as error:  # raised where the call is waited for
                    answers.put((place, error))

        count = min(len(bodies), max(1, at_once), _MAX_AT_ONCE)
        threads = [threading.Thread(target=work, name=f"vllm-{number}", daemon=True) for number in range(count)]
        try:
            for thread in threads:
                thread.start()
            for _ in bodies:
                place, answer = self._next(answers)
                if isinstance(answer, Exception):
                    raise answer
                hear(place, answer)
        finally:
            ongoing.end()

    def _next(self, answers: queue.SimpleQueue[tuple[int, Any]]) -> tuple[int, Any]:
        """Wait for an answer, and ask now and then whether the server lives: of a lost machine one hears nothing."""
        while True:
            try:
                return answers.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self.look()

    def _ask(self, method: str, path: str, body: object, timeout: float, ongoing: _Open) -> Any:
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=min(timeout, _CONNECT_SECONDS))
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            with ongoing.lock:
                if ongoing.ended:
                    raise self.failed("the call has ended")
                ongoing.connections.add(connection)
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, parts.path.rstrip("/") + path, sent, {"Content-Type": "application/json"})
            response = connection.getresponse()
            words = response.read().decode(errors="replace")
        except TimeoutError as error:
            raise self.failed(
                f"{path} was not answered within {timeout:g} s (rollout.server_timeout={self.timeout:g})"
            ) from error
        except (OSError, HTTPException) as error:
            raise self.failed(f"{path}: {type(error).__name__}: {error}") from error
        finally:
            with ongoing.lock:
                ongoing.connections.discard(connection)
            connection.close()
        if response.status != 200:
            raise RefusedError(path, response.status, words[:500])
        try:
            return json.loads(words) if words else None
        except ValueError as error:
            raise self.failed(f"{path} answers with something else than JSON ({words[:80]!r})") from error

    def failed(self, why: str) -> TrainingError:
        """Return the error of a server that cannot be worked with, with the way out."""
        return TrainingError(
            f"The vLLM server at rollout.server_url={self.url} cannot be used: {why}. Fix: see what it printed, start "
            f"it again ({self.start}), wait until it answers, and repeat the command with --train.resume auto; or "
            "--rollout.backend engine."
        )
