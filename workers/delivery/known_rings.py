"""The rings that a shard has known, newest first: since when its log holds all that is for one user alone.

What it keeps true: the router gives a shard a user's own events as long as a ring gives it the user, so for a user whom
this and the rings before have given it without a break, its log is whole since the oldest of those began; and never
from before the log itself begins.
"""

from __future__ import annotations

from solowire.algorithms.hash_ring import Ring


class KnownRings:
    """Remembers rings, and from which offset each was in force.

    index: the shard's. Offsets are those of the log when each ring was told.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._begins = 0
        self._rings: list[tuple[Ring, int]] = []  # newest first

    @property
    def ring(self) -> Ring:
        return self._rings[0][0] if self._rings else Ring()

    def reset(self, offset: int) -> None:
        """The log begins anew behind `offset`."""
        self._begins = offset
        del self._rings[1:]

    def add_ring(self, ring: Ring, position: int, start_offset: int) -> None:
        """Another ring since `position`; what is below `start_offset` nobody asks for any more."""
        self._rings.insert(0, (ring, position))
        while len(self._rings) > 2 and self._rings[-2][1] <= start_offset:
            self._rings.pop()

    def owns(self, user: str) -> bool:
        return self.ring.owner(user) == self._index

    def find_personal_start(self, user: str) -> int:
        """The log holds all of this user's own events behind this offset.

        Of a user that is on the way to another shard, too: its events come here until it has gone.
        """
        since = None
        for ring, position in self._rings:
            if ring.owner(user) == self._index:
                since = position
            elif since is not None:
                break
        return max(since or 0, self._begins)
