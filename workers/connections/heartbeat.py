"""Which connections are pinged when, and which are dead; and the pings.

What it keeps true: a connection is dead after two pings in a row that were sent to it and after which nothing was heard
of it. Ten thousand idle connections cost a little all the time, not much at once: one bucket of them has its turn after
the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from solowire.protocol.messages import Codec, Ping
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.sockets import Sockets

BUCKETS = 25

FREE_PONGS = 2
"""How many pings one may answer late. One who never answers and says other things instead saves none up."""


class Heartbeats:
    """interval: seconds between two pings to one connection."""

    def __init__(self, interval: float) -> None:
        self.due: float | None = None
        self._interval = interval
        self._step = interval / BUCKETS
        self._buckets: list[set[Connection]] = [set() for _ in range(BUCKETS)]
        self._at = 0

    def add(self, connection: Connection) -> None:
        connection.bucket = self._at - 1  # the one that is looked at last
        self._buckets[connection.bucket].add(connection)

    def discard(self, connection: Connection) -> None:
        self._buckets[connection.bucket].discard(connection)

    def turns(self, now: float) -> tuple[list[Connection], list[Connection]]:
        """Whom to ping now, and who is dead."""
        if self.due is None:
            self.due = now + self._step
        # After a pause of the whole process each bucket is looked at once: nobody could answer meanwhile.
        self.due = max(self.due, now - self._interval + self._step)
        alive: list[Connection] = []
        dead: list[Connection] = []
        while now >= self.due:
            self.due += self._step
            bucket = self._buckets[self._at]
            self._at = (self._at + 1) % BUCKETS
            for connection in bucket:
                connection.silent = 0 if connection.heard else connection.silent + 1
                connection.heard = False
                (dead if connection.silent >= 2 else alive).append(connection)
        return alive, dead

    def ping(self, connections: Iterable[Connection], sockets: Sockets, unix: float) -> None:
        """Sends each a ping, with the time (`unix`, seconds) and where it stands.

        So one whose feed is quiet has no old cursor when it comes back. One ping is encoded for all that stand alike.
        """
        at: dict[tuple[Codec, int | None], list[Connection]] = {}
        for connection in connections:
            if connection.answers:
                self._not_pinged(connection)  # the cursor would overtake them
                continue
            cursor = connection.feed.cursor_of(connection) if connection.feed is not None else None
            at.setdefault((connection.codec, cursor), []).append(connection)
        for (codec, cursor), alike in at.items():
            ping = codec.encode(Ping(time=unix, cursor=cursor))
            for connection in alike:
                connection.pings = min(connection.pings + 1, FREE_PONGS)
            for busy in sockets.send(ping, alike):
                busy.pings -= 1
                self._not_pinged(busy)

    def _not_pinged(self, connection: Connection) -> None:
        """Its socket was busy: what it is busy with tells as much, and its silence doesn't count."""
        connection.heard = True
