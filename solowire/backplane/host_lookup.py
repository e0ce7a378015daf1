"""The addresses of a host, looked up beside the event loop: its name may come to mean another one.

What it keeps true: nobody waits for a name server, neither the loop nor the end of the process: each look-up has a
thread of its own, which is a daemon, and there is one at a time.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from solowire.algorithms.hosts import bracket_host


class Endpoint(NamedTuple):
    """An address and a port, as ZeroMQ has them: `tcp://10.0.0.5:7400`, `tcp://[fd00::5]:7400`."""

    text: str
    is_ipv6: bool


class HostLookup:
    """The addresses of one host, which may be written as an address itself.

    endpoints: as they were found last; none until then. A look-up that fails leaves them as they are. failure: why the
    last one failed.
    """

    def __init__(self, host: str, port: int) -> None:
        self.endpoints: list[Endpoint] = []
        self.failure = ""
        self._host = host
        self._port = port
        self._is_running = False
        with suppress(OSError, UnicodeError):
            self.endpoints = find_endpoints(host, port, socket.AI_NUMERICHOST)
        self._is_fixed = bool(self.endpoints)

    def refresh(self, loop: asyncio.AbstractEventLoop, finished: Callable[[], None]) -> None:
        """Looks the name up, unless that is under way, and calls `finished` in the loop; at once for an address."""
        if self._is_fixed:
            finished()
        elif not self._is_running:
            self._is_running = True
            threading.Thread(target=self._run, args=(loop, finished), daemon=True, name="host-lookup").start()

    def _run(self, loop: asyncio.AbstractEventLoop, finished: Callable[[], None]) -> None:
        found, failure = [], ""
        try:
            found = find_endpoints(self._host, self._port)
        except (OSError, UnicodeError) as error:
            failure = f"{self._host}: {getattr(error, 'strerror', None) or 'that is no name of a host'}"
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._finish, found, failure, finished)

    def _finish(self, found: list[Endpoint], failure: str, finished: Callable[[], None]) -> None:
        self._is_running = False
        self.failure = failure
        self.endpoints = found or self.endpoints
        finished()


def find_endpoints(host: str, port: int, flags: int = 0) -> list[Endpoint]:
    """All addresses of a host, in the system's order. Waits for the name server. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    endpoints = [
        Endpoint(f"tcp://{bracket_host(str(address[0]))}:{port}", family == socket.AF_INET6)
        for family, _, _, _, address in found
    ]
    return list(dict.fromkeys(endpoints))
