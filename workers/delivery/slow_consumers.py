"""Connections that can't follow: who they are, when that is over, and how much of a turn they may take.

What it keeps true: a connection is slow from when it is found to lie more than a frame behind because its socket was
busy, until it has had all that it lacked then, and its socket has been free, for OVER_SECONDS; so it is told once when
it begins and once when it ends. All of them together have the log looked through at READS_PER_SECOND at most, and who
did not get its turn is served before those who did. That the whole process stood still while some waited is not held
against them: they may make up for it, else they would fall out of the log.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.workers.connections.connection import Connection

OVER_SECONDS = 1.0
LOOK_SECONDS = 0.25
TURN_SECONDS = 0.02
"""When to try again for those who did not get their turn."""

READS_PER_SECOND = 200_000.0
"""Entries of the log, at about a microsecond each; building and sending a frame counts as so many more."""

MAX_READS = 8_000.0
STOOD_STILL_SECONDS = 0.25
"""When those who wait have not been asked for so long, nobody has."""
MADE_UP_READS = 100_000.0
FRAME_READS = 100
SEND_READS = 25


class SlowReaders:
    """Times in seconds, monotonic. due: when `recovered` wants to be called; None if nobody is slow."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._level_since: dict[Connection, float | None] = {}
        self._reads = MAX_READS
        self._reads_at = 0.0
        self._wait = False  # somebody does

    def __len__(self) -> int:
        return len(self._level_since)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._level_since

    def add(self, connection: Connection, now: float) -> None:
        self._level_since[connection] = None
        if self.due is None:
            self.due = now + LOOK_SECONDS

    def discard(self, connection: Connection) -> None:
        self._level_since.pop(connection, None)

    def fell_behind(self, connection: Connection) -> None:
        """Whoever is slow is so for longer."""
        if connection in self._level_since:
            self._level_since[connection] = None

    def may_read(self, now: float) -> bool:
        """Whether there is something left for them in this turn."""
        passed, self._reads_at = now - self._reads_at, now
        most = MADE_UP_READS if self._wait and passed >= STOOD_STILL_SECONDS else MAX_READS
        if self._reads < most:
            self._reads = min(most, self._reads + passed * READS_PER_SECOND)
        self._wait = self._reads <= 0
        return not self._wait

    def has_read(self, entries: int) -> None:
        self._reads -= entries

    def recovered(self, now: float, busy: Callable[[Connection], bool]) -> list[Connection]:
        """Those who are slow no longer."""
        over = []
        for connection, since in self._level_since.items():
            feed = connection.feed
            lag = feed.behind.get(connection) if feed is not None else None
            # One may also be behind on purpose, for an event of its own: that is no sign of slowness.
            if feed is None or (lag is not None and lag.busy) or busy(connection):
                self._level_since[connection] = None
            elif since is None:
                self._level_since[connection] = now
            elif now - since >= OVER_SECONDS:
                over.append(connection)
        for connection in over:
            del self._level_since[connection]
        self.due = now + LOOK_SECONDS if self._level_since else None
        return over
