"""The load of each publisher lately: by it the router slows those who send much before those who send little.

What it keeps true: those that are not `is_heavy` have sent less than half of all that has come lately, however many
they are and whatever the others do; so slowing the heavy ones takes the larger part of the load away. One publisher
alone is heavy, and so is each of several that send alike. What was sent counts half as much after HALF_LIFE_SECONDS:
whoever stops is light soon. There are MAX_PUBLISHERS at most; beyond, those that sent least are forgotten.
"""

from __future__ import annotations

from heapq import nlargest

HALF_LIFE_SECONDS = 5.0
EVENT_BYTES = 200
"""What an event costs whatever it says, beside the bytes of its body."""
MAX_PUBLISHERS = 10_000
_MAX_SCALE = 2.0**60
_LEAST_SHARE = 1e-6
"""Whoever has sent less than this part of all is forgotten when room is made."""


class PublisherLoad:
    """All amounts are kept as of one moment in the past: what comes later counts more, so nothing has to be aged."""

    def __init__(self) -> None:
        self._amounts: dict[str, float] = {}
        self._total = 0.0
        self._since: float | None = None

    def __len__(self) -> int:
        return len(self._amounts)

    def add(self, publisher: str, size: int, now: float) -> None:
        """The publisher has sent so much, in bytes. now: seconds, monotonic."""
        if self._since is None:
            self._since = now
        scale = 2.0 ** ((now - self._since) / HALF_LIFE_SECONDS) if now - self._since < 300 else _MAX_SCALE
        if scale >= _MAX_SCALE or (len(self._amounts) >= MAX_PUBLISHERS and publisher not in self._amounts):
            self._make_room(scale, now)
            scale = 1.0
        self._amounts[publisher] = self._amounts.get(publisher, 0.0) + size * scale
        self._total += size * scale

    def is_heavy(self, publisher: str) -> bool:
        """Whether the publisher has sent half of the mean, or more."""
        return 2.0 * self._amounts.get(publisher, 0.0) * len(self._amounts) >= self._total

    def _make_room(self, scale: float, now: float) -> None:
        """Takes the present for the moment that amounts are counted as of, and forgets who has sent next to nothing."""
        least = _LEAST_SHARE * self._total
        kept = nlargest(
            MAX_PUBLISHERS // 2, ((amount, name) for name, amount in self._amounts.items() if amount > least)
        )
        self._amounts = {name: amount / scale for amount, name in kept}
        self._total = sum(self._amounts.values())
        self._since = now
