"""Timers of connections: one heap for all of them.

What it keeps true: each timer comes once, at its time or at the first look after it, the earliest first; never for a
connection that is closing or gone. What has been set for such ones is thrown out as soon as more than 64 timers, and
four more for each connection, are kept: else it would stay until the tokens of connections that ended long ago had
expired.
"""

from __future__ import annotations

from collections.abc import Sized
from enum import IntEnum
from heapq import heapify, heappop, heappush
from itertools import count

from solowire.workers.connections.connection import Connection, State


class TimerKind(IntEnum):
    """What it is time for."""

    hello = 0  # it should have said hello
    replay = 1  # to look how far the replay is
    token = 2  # to warn of the token's end, or to close
    leave = 3  # it was told to leave, and should have
    dialect = 4  # it speaks a dialect, since it has said nothing else
    dialect_replay = 5  # more of its replay may be due


_ENDED = (State.closing, State.closed)


class Timers:
    """Calls that are due for connections at some time.

    connections: those that there are. Times in seconds, monotonic.
    """

    def __init__(self, connections: Sized) -> None:
        self._connections = connections
        self._order = count()  # of those of one time
        self._heap: list[tuple[float, int, TimerKind, Connection]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def due_at(self) -> float | None:
        """When `pop_due` has something."""
        return self._heap[0][0] if self._heap else None

    def schedule(self, when: float, kind: TimerKind, connection: Connection) -> None:
        if len(self._heap) > 64 + 4 * len(self._connections):
            self._heap = [timer for timer in self._heap if timer[3].state not in _ENDED]
            heapify(self._heap)
        heappush(self._heap, (when, next(self._order), kind, connection))

    def pop_due(self, now: float) -> tuple[TimerKind, Connection] | None:
        """What is due next, None if nothing is. To be called until then."""
        while self._heap and self._heap[0][0] <= now:
            _, _, kind, connection = heappop(self._heap)
            if connection.state not in _ENDED:
                return kind, connection
        return None
