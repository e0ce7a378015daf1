"""Who is to go to another shard, and when: one after the other, so that whoever takes them isn't run over.

What it keeps true: those who are to go are those of the last `begin`, and each is named once, at its turn, if it still
stays then. `settled` is the newest version of the ring after which nobody was left to go: the router goes on with the
events of those who wait until it knows that. Two turns are `pause` seconds apart, unless the lease is over: then all
have theirs within the time that is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from solowire.workers.connections.connection import Connection
from solowire.workers.connections.users import GOING

GATEWAYS_KNOW_SECONDS = 0.2
"""After the wish to leave: by then the gateways send nobody here any more."""


class Moves:
    """per_second: turns. version: of the ring in force, -1 for none. Times in seconds, monotonic."""

    def __init__(self, per_second: float) -> None:
        self.due: float | None = None  # when `turn` has something to do
        self.pause = 1 / per_second
        self.version = -1
        self.settled = -1
        self._waiting: deque[Connection] = deque()
        self._lease_pause: float | None = None  # instead of `pause`, while there is no lease

    def reset(self) -> None:
        """No ring is known of the router's new epoch."""
        self.version = self.settled = -1

    def begin(self, connections: Iterable[Connection], now: float) -> None:
        """Those of these who stay are to go; nobody else is."""
        self._waiting = deque(connection for connection in connections if connection.state not in GOING)
        if not self._waiting:
            self.due = None
            self.settled = self.version
        elif self.due is None:
            self.due = now

    def leave(self, connections: Collection[Connection], now: float, within: float | None = None) -> None:
        """The shard goes, and with it all of these. within: seconds in which all have their turn."""
        self.begin(connections, now)
        if within is not None:
            self.pause = min(self.pause, within / (len(connections) + 1))
        if self._waiting:
            self.due = now + GATEWAYS_KNOW_SECONDS

    def lease_over(self, connections: Iterable[Connection], now: float, within: float) -> int:
        """All of these go, within so many seconds; returns how many that are."""
        self.begin(connections, now)
        self._lease_pause = within / (len(self._waiting) + 1)
        return len(self._waiting)

    def leased_again(self, connections: Iterable[Connection], now: float) -> None:
        """Whoever has not had its turn may stay, but for these."""
        self._lease_pause = None
        self.begin(connections, now)

    def turn(self, now: float) -> Connection | None:
        """Who goes now; None if it is nobody's turn. To be called until then: more than one may be due.

        Its turn is over when it is named: what is done with it may lead back here.
        """
        while self.due is not None and now >= self.due:
            if not self._waiting:
                self.begin((), now)
                return None
            connection = self._waiting.popleft()
            if connection.state not in GOING:
                self.due += self.pause if self._lease_pause is None else self._lease_pause
                return connection
        return None
