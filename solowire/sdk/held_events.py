"""Events that are kept for later, as requests with them don't get through while others do.

A firewall that resets the connection for what an event says looks like a network that is down, but for the requests
beside it. So such an event is not given up: it is kept, the others go on, and it is tried again after a pause that
doubles.

Pure. What it keeps true: there are MOST_HELD at most. With more it is not the events, and none is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

CUT_OFF_TRIES = 5
"""A batch that ends so often like that, while the gateway answers other requests, is sent in parts."""
KNOWN_TRIES = 2
"""A part of such a batch is tried so often."""
SURE_TRIES = 3
"""And so often in a row the gateway must have answered beside it before a single event is kept for later."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 600.0
MOST_HELD = 100


class HeldEvent:
    """One of them. settled_count: up to where all of the buffer's events are settled but for those held before it."""

    __slots__ = ("due_at", "held_at", "item", "pause_s", "settled_count")

    def __init__(self, item: bytes, settled_count: int, now: float) -> None:
        self.item = item
        self.settled_count = settled_count
        self.held_at = now
        self.pause_s = FIRST_PAUSE_S
        self.due_at = now + FIRST_PAUSE_S

    def put_off(self, now: float, at_least: float = 0.0) -> None:
        """It was tried in vain."""
        self.pause_s = min(LONGEST_PAUSE_S, 2 * self.pause_s)
        self.due_at = now + max(self.pause_s, at_least)


class HeldEvents:
    """All of a publisher's, in the order in which they were put here. Times: seconds, monotonic."""

    def __init__(self) -> None:
        self._events: list[HeldEvent] = []

    def __len__(self) -> int:
        return len(self._events)

    @property
    def events(self) -> Sequence[HeldEvent]:
        return tuple(self._events)

    @property
    def has_room(self) -> bool:
        return len(self._events) < MOST_HELD

    @property
    def settled_count(self) -> int | None:
        """Up to where all was settled before the first of them; None if there are none."""
        return min((held.settled_count for held in self._events), default=None)

    @property
    def due_at(self) -> float | None:
        """When the next is to be tried; None if there are none."""
        return min((held.due_at for held in self._events), default=None)

    def add(self, item: bytes, settled_count: int, now: float) -> None:
        self._events.append(HeldEvent(item, settled_count, now))

    def find_due(self, now: float) -> HeldEvent | None:
        """One whose time has come."""
        return next((held for held in self._events if held.due_at <= now), None)

    def remove(self, held: HeldEvent) -> None:
        """It is settled."""
        self._events = [other for other in self._events if other is not held]
