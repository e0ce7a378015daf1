"""The clocks of a shard: what lies between the two, and how long a turn takes.

Nothing that is decided in a shard reads a clock. Times are arguments, in seconds of the loop's monotonic clock; who
needs another one asks here. `solowire.workers.server` sets it, and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """The clocks of a shard.

    wall_offset: what to add to a monotonic time to get unix seconds; the wall clock may be set while we run.

    stopwatch: seconds of whatever clock, to measure how long something takes; without one nothing is measured.
    """

    __slots__ = ("stopwatch", "wall_offset")

    def __init__(self, wall_offset: float, stopwatch: Callable[[], float] | None = None) -> None:
        self.wall_offset = wall_offset
        self.stopwatch = stopwatch

    def to_unix(self, now: float) -> float:
        return now + self.wall_offset
