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
CHECK_SECONDS = 0.25
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


class SlowConsumers:
    """Times in seconds, monotonic. due: when `take_recovered` wants to be called; None if nobody is slow."""

    def __init__(self) -> None:
        self.due_at: float | None = None
        self._caught_up_since: dict[Connection, float | None] = {}
        self._reads = MAX_READS
        self._reads_at = 0.0
        self._has_waiting = False  # somebody does

    def __len__(self) -> int:
        return len(self._caught_up_since)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._caught_up_since

    def add(self, connection: Connection, now: float) -> None:
        self._caught_up_since[connection] = None
        if self.due_at is None:
            self.due_at = now + CHECK_SECONDS

    def discard(self, connection: Connection) -> None:
        self._caught_up_since.pop(connection, None)

    def mark_behind(self, connection: Connection) -> None:
        """Whoever is slow is so for longer."""
        if connection in self._caught_up_since:
            self._caught_up_since[connection] = None

    def has_budget(self, now: float) -> bool:
        """Whether there is something left for them in this turn."""
        passed, self._reads_at = now - self._reads_at, now
        most = MADE_UP_READS if self._has_waiting and passed >= STOOD_STILL_SECONDS else MAX_READS
        if self._reads < most:
            self._reads = min(most, self._reads + passed * READS_PER_SECOND)
        self._has_waiting = self._reads <= 0
        return not self._has_waiting

    def spend(self, entries: int) -> None:
        self._reads -= entries

    def take_recovered(self, now: float, busy: Callable[[Connection], bool]) -> list[Connection]:
        """Those who are slow no longer."""
        over = []
        for connection, since in self._caught_up_since.items():
            feed = connection.feed
            lag = feed.behind.get(connection) if feed is not None else None
            # One may also be behind on purpose, for an event of its own: that is no sign of slowness.
            if feed is None or (lag is not None and lag.was_busy) or busy(connection):
                self._caught_up_since[connection] = None
            elif since is None:
                self._caught_up_since[connection] = now
            elif now - since >= OVER_SECONDS:
                over.append(connection)
        for connection in over:
            del self._caught_up_since[connection]
        self.due_at = now + CHECK_SECONDS if self._caught_up_since else None
        return over
