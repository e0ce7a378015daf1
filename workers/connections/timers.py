"""Timers of connections: one heap for all of them.

What it keeps true: each act comes once, at its time or at the first look after it, the earliest first; never for a
connection that is closing or gone. What has been set for such ones is thrown out as soon as more than 64 acts, and four
more for each connection, are kept: else it would stay until the tokens of connections that ended long ago had expired.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from heapq import heapify, heappop, heappush
from itertools import count

from solowire.workers.connections.connection import Connection, State

Act = Callable[[Connection, float], None]
"""It is given the connection, and the time of the look (seconds, monotonic)."""

_ENDED = (State.closing, State.closed)


class Timers:
    """Calls that are due for connections at some time.

    connections: those that there are. Times in seconds, monotonic.
    """

    def __init__(self, connections: Sized) -> None:
        self._connections = connections
        self._order = count()  # of those of one time
        self._heap: list[tuple[float, int, Act, Connection]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def due_at(self) -> float | None:
        """When `run` has something to do."""
        return self._heap[0][0] if self._heap else None

    def schedule(self, when: float, act: Act, connection: Connection) -> None:
        if len(self._heap) > 64 + 4 * len(self._connections):
            self._heap = [timer for timer in self._heap if timer[3].state not in _ENDED]
            heapify(self._heap)
        heappush(self._heap, (when, next(self._order), act, connection))

    def run(self, now: float) -> None:
        """Does all that is due, and what becomes due by it."""
        while self._heap and self._heap[0][0] <= now:
            _, _, act, connection = heappop(self._heap)
            if connection.state not in _ENDED:
                act(connection, now)
