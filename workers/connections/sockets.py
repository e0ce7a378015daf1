"""The seam between a shard and the server beneath it, shaped for batches.

One frame is handed over with all connections that stand at it. None of them is ever waited for: those whose last send
is not done yet are returned, and that is the backpressure signal. `solowire.workers.net.tcp_sockets` has the real one;
a twin in `tests/support` keeps what was sent and lets a test say who is busy. Both run the suite in
`tests/workers/connections/test_sockets.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
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
