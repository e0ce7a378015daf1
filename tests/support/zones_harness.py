"""The zones part over a real server, with what it publishes kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from solowire.runtime.settings.source_settings import ZonesSettings
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.statistics_channel import StatisticsChannel
from solowire.sources.bind9.zones.observed_change import ChangeObserver
from solowire.sources.bind9.zones.update_authors import UpdateAuthors
from solowire.sources.bind9.zones.zones_part import ZonesPart
from tests.support.bind_servers import BindServer
from tests.support.recorded_outlet import RecordedOutlet

DEADLINE_S = 60.0


class ZonesHarness:
    """A running part: `events` are those of its own run, `outlet` may outlive it."""

    def __init__(self, outlet: RecordedOutlet) -> None:
        self.outlet = outlet
        self.status = PartStatus("zones")

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            kept = [(event["type"], event["data"]) for event in self.outlet.events[-20:]]
            assert time.monotonic() < deadline, f"{what}\n{self.status.status} {self.status.reason}\n{kept}"
            await asyncio.sleep(0.02)

    async def reach(self, serial: int, zone: str = "z.example", view: str | None = None) -> None:
        """Waits until the step to a serial has been told."""

        def is_told() -> bool:
            return any(
                (data["zone"], data["serial"], data.get("view")) == (zone, serial, view)
                for data in self.outlet.of_type("zone_updated")
            )

        await self.wait_until(is_told, f"{zone} reaches {serial}")

    def changes(self) -> list[tuple[Any, ...]]:
        """Each change in short: serial, action, name, type, records before and after."""
        return [shorten(event) for event in self.outlet.events if event["type"] in CHANGES]


CHANGES = ("record_created", "record_updated", "record_deleted")


def shorten(event: dict[str, Any]) -> tuple[Any, ...]:
    data = event["data"]
    states = [
        (data[side]["ttl"], tuple(data[side]["records"])) if side in data else None for side in ("before", "after")
    ]
    return (data["serial"], event["type"].removeprefix("record_"), data["name"], data["type"], *states)


@asynccontextmanager
async def watch_zones(
    server: BindServer,
    state_dir: Path,
    *,
    outlet: RecordedOutlet | None = None,
    authors: UpdateAuthors | None = None,
    observers: Sequence[ChangeObserver] = (),
    running: bool = True,
    lists_zones: bool = False,
    **settings: Any,
) -> AsyncIterator[ZonesHarness]:
    """A part that watches `z.example`, or what the settings say, or what the server lists.

    running: wait until nothing stands in its way.
    """
    harness = ZonesHarness(outlet or RecordedOutlet())
    channel = StatisticsChannel(server.statistics) if lists_zones else None
    if channel is None:
        settings.setdefault("names", ["z.example"])
    settings.setdefault("address", f"127.0.0.1#{server.port}")
    settings.setdefault("poll_interval_s", 0.5)
    part = ZonesPart(
        ZonesSettings(**settings),
        harness.outlet,
        state_dir,
        channel=channel,
        authors=authors or UpdateAuthors(),
        observers=observers,
    )
    stop = asyncio.Event()
    running_part = asyncio.create_task(part.run(harness.status, stop))

    def has_begun() -> bool:
        if running_part.done():
            running_part.result()
        return harness.status.status == "running" if running else harness.status.status != "starting"

    try:
        await harness.wait_until(has_begun, "the part runs")
        yield harness
        assert not running_part.done(), running_part.result()
    finally:
        stop.set()
        await running_part
