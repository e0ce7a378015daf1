"""Heartbeats: pings to connections, and those that don't answer any more.

What it keeps true: a connection is dead after two pings in a row that were sent to it and after which nothing was heard
of it. One that speaks a dialect is never dead, and is sent no message: what passes on its socket is for the proxies in
between, which end what is silent for a minute. Ten thousand idle connections cost a little all the time, not much at
once: one bucket of them has its turn after the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from solowire.protocol.dialect_codec import AnyCodec
from solowire.protocol.messages import Ping
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.sockets import Sockets

BUCKETS = 25

FREE_PONGS = 2
"""How many pings one may answer late. One who never answers and says other things instead saves none up."""


class Heartbeats:
    """Pings connections and finds the dead ones. interval: seconds between two pings to one connection."""

    def __init__(self, interval: float) -> None:
        self.due_at: float | None = None
        self._interval = interval
        self._step = interval / BUCKETS
        self._buckets: list[set[Connection]] = [set() for _ in range(BUCKETS)]
        self._next_bucket = 0

    def add(self, connection: Connection) -> None:
        connection.heartbeat_bucket = self._next_bucket - 1  # the one that is looked at last
        self._buckets[connection.heartbeat_bucket].add(connection)

    def discard(self, connection: Connection) -> None:
        self._buckets[connection.heartbeat_bucket].discard(connection)

    def due_connections(self, now: float) -> tuple[list[Connection], list[Connection]]:
        """Whom to ping now, and who is dead."""
        if self.due_at is None:
            self.due_at = now + self._step
        # After a pause of the whole process each bucket is looked at once: nobody could answer meanwhile.
        self.due_at = max(self.due_at, now - self._interval + self._step)
        alive: list[Connection] = []
        dead: list[Connection] = []
        while now >= self.due_at:
            self.due_at += self._step
            bucket = self._buckets[self._next_bucket]
            self._next_bucket = (self._next_bucket + 1) % BUCKETS
            for connection in bucket:
                if connection.dialect is not None:
                    alive.append(connection)
                    continue
                connection.missed_pings = 0 if connection.seen_since_ping else connection.missed_pings + 1
                connection.seen_since_ping = False
                (dead if connection.missed_pings >= 2 else alive).append(connection)
        return alive, dead

    def ping(self, connections: Iterable[Connection], sockets: Sockets, unix: float) -> None:
        """Sends each a ping, with the time (`unix`, seconds) and where it stands.

        So one whose feed is quiet has no old cursor when it comes back. One ping is encoded for all that stand alike.
        """
        at: dict[tuple[AnyCodec, int | None], list[Connection]] = {}
        for connection in connections:
            if connection.dialect is not None:
                sockets.keep_open(connection)
                continue
            if connection.reader.pending_replies:
                self._excuse_silence(connection)  # the cursor would overtake them
                continue
            cursor = connection.feed.cursor_of(connection) if connection.feed is not None else None
            at.setdefault((connection.codec, cursor), []).append(connection)
        for (codec, cursor), alike in at.items():
            ping = codec.encode(Ping(time=unix, cursor=cursor))
            for connection in alike:
                connection.unanswered_pings = min(connection.unanswered_pings + 1, FREE_PONGS)
            for busy in sockets.send(ping, alike):
                busy.unanswered_pings -= 1
                self._excuse_silence(busy)

    def _excuse_silence(self, connection: Connection) -> None:
        """Its socket was busy: what it is busy with tells as much, and its silence doesn't count."""
        connection.seen_since_ping = True
