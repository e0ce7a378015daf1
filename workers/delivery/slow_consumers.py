"""Connections that can't follow: who they are, and how much of a turn they may take.

What it keeps true: a connection is slow from when it is found to lie more than a frame behind because its socket was
busy, until it has had all that it lacked then, and its socket has been free, for RECOVERY_SECONDS
(`solowire.fanout.reader`); so it is told once when it begins and once when it ends. All of them together have the log
looked through at READS_PER_SECOND at most, and who did not get its turn is served before those who did. That the whole
process stood still while some waited is not held against them: they may make up for it, else they would fall out of the
log.
"""

from __future__ import annotations

from solowire.workers.connections.connection import Connection
from solowire.workers.connections.sockets import Sockets

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
    """Gives slow consumers their turns, and notices who has recovered.

    Times in seconds, monotonic. due_at: when to look who has recovered; None if nobody is slow.
    """

    def __init__(self) -> None:
        self.due_at: float | None = None
        self._slow: dict[Connection, None] = {}  # in the order in which they became so
        self._reads = MAX_READS
        self._reads_at = 0.0
        self._has_waiting = False  # somebody does

    def add(self, connection: Connection, now: float) -> None:
        self._slow[connection] = None
        if self.due_at is None:
            self.due_at = now + CHECK_SECONDS

    def discard(self, connection: Connection) -> None:
        self._slow.pop(connection, None)

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

    def take_recovered(self, now: float, sockets: Sockets) -> list[Connection]:
        """Those who are slow no longer."""
        recovered = []
        for connection in self._slow:
            is_free = connection.feed is not None and not sockets.is_busy(connection)
            if connection.reader.check_recovered(now, is_free=is_free):
                recovered.append(connection)
        for connection in recovered:
            del self._slow[connection]
        self.due_at = now + CHECK_SECONDS if self._slow else None
        return recovered
