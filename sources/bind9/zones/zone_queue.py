"""The order in which zones are looked at: those that were announced first, all others in their turn.

Pure. What it keeps true: no zone is looked at twice at once; one that is announced while it is looked at is looked at
again afterwards; polls are spread, so that thousands of zones don't come at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from solowire.sources.bind9.zones.zone_identity import ZoneName

SPREAD = 0.2
"""Of the interval, by which a poll may come earlier."""


class ZoneQueue:
    """Zones and when they are due. random: gives numbers from 0 to 1."""

    def __init__(self, poll_s: float, random: Callable[[], float]) -> None:
        self._poll_s = poll_s
        self._random = random
        self._due: dict[ZoneName, float] = {}
        self._announced: dict[ZoneName, None] = {}
        self._busy: set[ZoneName] = set()
        self._heap: list[tuple[float, ZoneName]] = []

    def add_zone(self, zone: ZoneName, now: float) -> None:
        """Adds a zone, due now."""
        self._schedule(zone, now)

    def remove_zone(self, zone: ZoneName) -> None:
        """Forgets a zone."""
        self._due.pop(zone, None)
        self._announced.pop(zone, None)

    def announce_zone(self, zone: ZoneName) -> None:
        """Has a zone looked at before all that are only due."""
        if zone in self._due:
            self._announced[zone] = None

    def take_due(self, now: float) -> tuple[ZoneName, bool] | None:
        """A zone to be looked at, and whether it was announced; None if none is due. `finish_zone` has to follow."""
        for zone in self._announced:
            if zone not in self._busy:
                del self._announced[zone]
                self._busy.add(zone)
                return zone, True
        while self._heap and self._heap[0][0] <= now:
            due_at, zone = heapq.heappop(self._heap)
            if self._due.get(zone) == due_at and zone not in self._busy:
                self._busy.add(zone)
                return zone, False
        return None

    def finish_zone(self, zone: ZoneName, now: float, *, wait_s: float | None = None) -> None:
        """A zone has been looked at. wait_s: seconds until it is due again; an interval, if None."""
        self._busy.discard(zone)
        if zone in self._due:
            spread = 1 - SPREAD * self._random()
            self._schedule(zone, now + (self._poll_s if wait_s is None else wait_s) * spread)

    def find_next_at(self) -> float | None:
        """When the next zone is due; None if none is. Announced ones are due at once."""
        if any(zone not in self._busy for zone in self._announced):
            return 0.0
        return self._heap[0][0] if self._heap else None

    def _schedule(self, zone: ZoneName, due_at: float) -> None:
        self._due[zone] = due_at
        heapq.heappush(self._heap, (due_at, zone))
