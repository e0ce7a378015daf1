"""The seam between a shard and the server beneath it, shaped for batches, and its in-memory twin.

One frame is handed over with all connections that stand at it. None of them is ever waited for: those whose last send
is not done yet are returned, and that is the backpressure signal. `solowire.workers.net.tcp_sockets` has the real one;
`MemorySockets` keeps what was sent and lets a test say who is busy. Both run the suite in
`tests/workers/connections/test_sockets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from solowire.workers.connections.connection import Connection


class Sockets(Protocol):
    """What a shard needs of the server beneath it."""

    def send(self, frame: str | bytes, connections: Iterable[Connection]) -> list[Connection]:
        """Starts sending `frame` (str: text, bytes: binary) to each; returns those still busy with their last one."""

    def queue(self, frame: str | bytes, connection: Connection) -> None:
        """Starts sending to a connection that may be busy with frames of this same turn: they arrive in order."""

    def is_busy(self, connection: Connection) -> bool:
        """Whether its last send is not done."""

    def ping(self, connection: Connection) -> None:
        """Asks its client for a sign that it speaks WebSocket, which comes back as `Shard.show_alive`."""

    def keep_open(self, connection: Connection) -> None:
        """Has something pass that a proxy sees and the client's code does not; an answer means nothing."""

    def close(self, connection: Connection, code: int, reason: str) -> None:
        """Starts closing it, whatever it is busy with. The end comes back as `Shard.on_closed`."""


class MemorySockets:
    """The twin: no server, no loop. `sent` and `closed` are keyed by connection; `stuck` are those that don't read.

    answered(connection) is called when one that was asked for a sign of life gives it, which all but `silent` ones do.
    """

    def __init__(self) -> None:
        self.sent: dict[Connection, list[str | bytes]] = {}
        self.closed: dict[Connection, tuple[int, str]] = {}
        self.stuck: set[Connection] = set()
        self.silent: set[Connection] = set()
        self.kept_open: list[Connection] = []
        self.on_probe_answered: Callable[[Connection], None] = lambda connection: None
        self._under_way: set[Connection] = set()

    def send(self, frame: str | bytes, connections: Iterable[Connection]) -> list[Connection]:
        busy = []
        for connection in connections:
            if connection in self._under_way:
                busy.append(connection)
            else:
                self.queue(frame, connection)
        return busy

    def queue(self, frame: str | bytes, connection: Connection) -> None:
        self.sent.setdefault(connection, []).append(frame)
        if connection in self.stuck:
            self._under_way.add(connection)

    def is_busy(self, connection: Connection) -> bool:
        return connection in self._under_way

    def ping(self, connection: Connection) -> None:
        if connection not in self.silent:
            self.on_probe_answered(connection)

    def keep_open(self, connection: Connection) -> None:
        self.kept_open.append(connection)

    def close(self, connection: Connection, code: int, reason: str) -> None:
        self.closed.setdefault(connection, (code, reason))

    def read_all(self, connection: Connection) -> None:
        """The peer has read all so far, and reads no further."""
        self._under_way.discard(connection)

    def unstick(self, connection: Connection) -> None:
        """The peer reads again."""
        self.stuck.discard(connection)
        self._under_way.discard(connection)
