"""Which connections are pinged when, and which are dead.

What it keeps true: a connection is dead after two pings in a row that were sent to it and after which nothing was heard
of it. Ten thousand idle connections cost a little all the time, not much at once: one bucket of them has its turn after
the other.
"""

from __future__ import annotations

from workers.connection import Connection

BUCKETS = 25


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

    def not_pinged(self, connection: Connection) -> None:
        """Its socket was busy: what it is busy with tells as much, and its silence doesn't count."""
        connection.heard = True
