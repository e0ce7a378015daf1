"""The schedule by which users move to other shards: one after the other, so that no shard is overrun.

What it keeps true: those who are to go are those of the last `schedule`, and each is named once, at its turn, if it
still stays then. `completed_version` is the newest version of the ring after which nobody was left to go: the router
goes on with the events of those who wait until it knows that. Two turns are `pause_s` seconds apart, unless the lease
is over: then all have theirs within the time that is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from solowire.workers.connections.connection import Connection
from solowire.workers.connections.users import ENDING_STATES

GATEWAYS_KNOW_SECONDS = 0.2
"""After the wish to leave: by then the gateways send nobody here any more."""


class Rebalancer:
    """Schedules connections that have to move to other shards.

    per_second: turns. ring_version: of the ring in force, -1 for none. Times in seconds, monotonic.
    """

    def __init__(self, per_second: float) -> None:
        self.due_at: float | None = None  # when `next_due` has something to do
        self.pause_s = 1 / per_second
        self.ring_version = -1
        self.completed_version = -1
        self._queue: deque[Connection] = deque()
        self._lease_pause_s: float | None = None  # instead of `pause_s`, while there is no lease

    def reset(self) -> None:
        """No ring is known of the router's new epoch."""
        self.ring_version = self.completed_version = -1

    def schedule(self, connections: Iterable[Connection], now: float) -> None:
        """Those of these who stay are to go; nobody else is."""
        self._queue = deque(connection for connection in connections if connection.state not in ENDING_STATES)
        if not self._queue:
            self.due_at = None
            self.completed_version = self.ring_version
        elif self.due_at is None:
            self.due_at = now

    def schedule_drain(self, connections: Collection[Connection], now: float, within: float | None = None) -> None:
        """The shard goes, and with it all of these. within: seconds in which all have their turn."""
        self.schedule(connections, now)
        if within is not None:
            self.pause_s = min(self.pause_s, within / (len(connections) + 1))
        if self._queue:
            self.due_at = now + GATEWAYS_KNOW_SECONDS

    def start_lease_expiry(self, connections: Iterable[Connection], now: float, within: float) -> int:
        """All of these go, within so many seconds; returns how many that are."""
        self.schedule(connections, now)
        self._lease_pause_s = within / (len(self._queue) + 1)
        return len(self._queue)

    def cancel_lease_expiry(self, connections: Iterable[Connection], now: float) -> None:
        """Whoever has not had its turn may stay, but for these."""
        self._lease_pause_s = None
        self.schedule(connections, now)

    def next_due(self, now: float) -> Connection | None:
        """Who goes now; None if it is nobody's turn. To be called until then: more than one may be due.

        Its turn is over when it is named: what is done with it may lead back here.
        """
        while self.due_at is not None and now >= self.due_at:
            if not self._queue:
                self.schedule((), now)
                return None
            connection = self._queue.popleft()
            if connection.state not in ENDING_STATES:
                self.due_at += self.pause_s if self._lease_pause_s is None else self._lease_pause_s
                return connection
        return None
