"""The twin of a shard's sockets in memory: it keeps what was sent, and a test says who is busy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from solowire.workers.connections.connection import Connection


class MemorySockets:
    """No server, no loop. `sent` and `closed` are keyed by connection; `stuck` are those that don't read.

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
