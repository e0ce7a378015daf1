"""The reconnect ramp: a lost shard's users come back one after the other, not all at once.

What it keeps true: the window is as long as they are many, each user has a place in it that depends on nothing but its
name, and nobody else waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from solowire.algorithms.hash_ring import Ring
from solowire.gateway.admission.jitter import jitter_fraction

SHORTEST_SECONDS = 1.0
"""What can be back within this needs no order."""


class _Window(NamedTuple):
    ring: Ring  # as it was
    shard: int
    begins_at: float
    duration_s: float


class ReconnectRamp:
    """Spreads the return of a lost shard's users over time.

    pace: users per second. Times in seconds, of any one clock.
    """

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._windows: list[_Window] = []

    def start(self, shards: Iterable[tuple[int, int]], before: Ring, now: float) -> None:
        """These shards (index, users) have gone; `before` says whose they were."""
        self._windows = [w for w in self._windows if now < w.begins_at + w.duration_s]
        for shard, users in shards:
            if users / self._pace > SHORTEST_SECONDS:
                self._windows.append(_Window(before, shard, now, users / self._pace))

    def delay_for(self, user: str, now: float) -> float:
        """Seconds until the user's turn; 0 if it may come now."""
        for window in self._windows:
            left = window.begins_at + jitter_fraction(user, b"returning") * window.duration_s - now
            if left > 0 and window.ring.owner(user) == window.shard:
                return left
        return 0.0
