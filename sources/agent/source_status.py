"""The status of a source: a `source_status` of each of its parts, as the newest state.

It is published every INTERVAL_S, and within CHANGE_S when a part's status changes. Counts are of events, since the
process began.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.stop_wait import wait_for_stop

INTERVAL_S = 10.0
CHANGE_S = 0.5

EVENT_TYPE = "source_status"

Status = Literal["starting", "running", "waiting", "failed", "stopped"]


class PartStatus:
    """How one part is doing. The part itself writes it; counts only grow.

    reason: why it waits or failed, in plain words. read_count: what the watched system has told. lost_count: what it
    told and could not be had or kept, known losses only. dropped_count: events for which there was no room.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: Status = "starting"
        self.reason: str | None = None
        self.read_count = 0
        self.published_count = 0
        self.dropped_count = 0
        self.lost_count = 0

    def set_running(self) -> None:
        """Nothing stands in its way."""
        self.status, self.reason = "running", None

    def set_waiting(self, reason: str) -> None:
        """What it watches is not there yet, or not any more; it goes on by itself. reason: with the path or address."""
        self.status, self.reason = "waiting", reason

    def set_failed(self, reason: str) -> None:
        """It broke, and is begun anew."""
        self.status, self.reason = "failed", reason

    def count_offered(self, has_room: bool) -> None:
        """Counts an event of telemetry, for which there was room or not."""
        self.published_count += has_room
        self.dropped_count += not has_room


class StatusReporter:
    """The statuses of all parts of one source. kind: the source's, such as `bind9`."""

    def __init__(self, kind: str, outlet: EventOutlet) -> None:
        self.kind = kind
        self.outlet = outlet
        self.clock_skew_ms: float | None = None
        self.parts: dict[str, PartStatus] = {}
        self._began_at = time.monotonic()
        self._published: dict[str, tuple[Status, str | None]] = {}

    def add_part(self, name: str) -> PartStatus:
        """Adds a part; `name` is in its events."""
        part = self.parts[name] = PartStatus(name)
        return part

    async def report(self, stop: asyncio.Event) -> None:
        """Publishes the statuses until `stop` is set. Raises PublishRefused."""
        next_at = 0.0
        while not stop.is_set():
            now = time.monotonic()
            is_due = now >= next_at
            for part in self.parts.values():
                if is_due or self._published.get(part.name) != (part.status, part.reason):
                    await self._publish(part)
            if is_due:
                next_at = now + INTERVAL_S
            await wait_for_stop(stop, CHANGE_S)
        for part in self.parts.values():
            part.status = "stopped"
            await self._publish(part)

    async def _publish(self, part: PartStatus) -> None:
        self._published[part.name] = (part.status, part.reason)
        data: dict[str, Any] = {
            "kind": self.kind,
            "part": part.name,
            "status": part.status,
            "reason": part.reason,
            "events_read": part.read_count,
            "events_published": part.published_count,
            "events_dropped": part.dropped_count,
            "events_lost": part.lost_count,
            "clock_skew_ms": self.clock_skew_ms,
            "uptime_s": round(time.monotonic() - self._began_at, 1),
        }
        await self.outlet.offer(EVENT_TYPE, {name: value for name, value in data.items() if value is not None})
