"""The statistics channel of a server as a part of the BIND 9 source.

Only the two small answers are asked for often: named stops for the making of an answer, and the one with all zones is
long where there are thousands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import StatisticsError
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.stop_wait import wait_for_stop
from solowire.sources.bind9.server.bind_state import BindState
from solowire.sources.bind9.server.server_statistics import (
    ServerFigures,
    is_restarted,
    make_measured,
    make_query_figures,
    parse_memory,
    parse_server,
)
from solowire.sources.bind9.statistics_channel import WAY_OUT, StatisticsChannel
from solowire.sources.bind9.zone_listing import ListedZone

AWAY_S = 1.0
"""Between two questions while named is away: its start is seen soon."""
SERIALS = 200
"""Of a server with more zones, those that changed last."""
SERIALS_CHARACTERS = 8_000

STATUS_TYPE = "bind_status"
FIGURES_TYPE = "dns_query_stats"

logger = structlog.get_logger()


class StatisticsPart:
    """Asks one server's statistics channel every `interval_s` seconds, and for its zones every `zones_interval_s`.

    state: what is known of the server, also by its log. counts_queries: publish
    `dns_query_stats`, if no other part does. drop_observers: told how many dnstap messages named has dropped since.
    """

    name = "statistics"

    def __init__(
        self,
        channel: StatisticsChannel,
        outlet: EventOutlet,
        state: BindState,
        *,
        interval_s: float,
        zones_interval_s: float,
        counts_queries: bool,
        drop_observers: Sequence[Callable[[int], None]] = (),
    ) -> None:
        self._channel = channel
        self._outlet = outlet
        self._state = state
        self._interval_s = interval_s
        self._zones_interval_s = zones_interval_s
        self._counts_queries = counts_queries
        self._drop_observers = drop_observers
        self._before: ServerFigures | None = None
        self._before_at = 0.0
        self._listed: list[ListedZone] | None = None
        self._list_at = 0.0
        self._zones: dict[str, Any] = {}
        self._serials: dict[str, int] = {}
        self._trouble = WarningPace()

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises PublishRefused."""
        self._before = None
        while not stop.is_set():
            wait_s = self._interval_s
            try:
                await self._ask(status)
            except StatisticsError as error:
                await self._note_trouble(error, status)
                wait_s = min(AWAY_S, wait_s)
            await wait_for_stop(stop, wait_s)

    async def _ask(self, status: PartStatus) -> None:
        """One round. Raises StatisticsError."""
        figures = parse_server(await self._channel.fetch("server"))
        asked_at = time.monotonic()
        memory_bytes = parse_memory(await self._channel.fetch("mem"))
        status.set_running()
        self._trouble.reset()
        status.read_count += 1
        before = self._before
        if before is not None and is_restarted(before, figures):
            before = None
            self._zones = {}
            self._state.set_status("running", "restarted")
        elif self._state.status != "running":
            self._state.set_status("running", None)
        self._before, window_s, self._before_at = figures, asked_at - self._before_at, asked_at
        self._state.version = figures.version or self._state.version
        await self._list_zones()
        self._state.measured = make_measured(before, figures, memory_bytes) | self._zones
        status.count_offered(await self._outlet.offer(STATUS_TYPE, self._state.make_payload()))
        if before is None:
            return
        if drops := max(0, figures.dnstap_dropped_count - before.dnstap_dropped_count):
            for observe_drops in self._drop_observers:
                observe_drops(drops)
        if self._counts_queries:
            status.count_offered(await self._outlet.offer(FIGURES_TYPE, make_query_figures(before, figures, window_s)))

    async def _note_trouble(self, error: StatisticsError, status: PartStatus) -> None:
        """Publishes at once that the server is away, and says why once a minute."""
        if self._state.set_status("stopped" if error.is_refused else "unknown", str(error)):
            await self._outlet.publish(STATUS_TYPE, self._state.make_payload())
            status.published_count += 1
        self._before = None
        self._zones = {}
        self._list_at = 0.0
        if self._trouble.is_due("", time.monotonic()):
            logger.warning("statistics_unavailable", url=self._channel.url, reason=str(error), hint=WAY_OUT)
        status.set_waiting(f"{self._channel.url}: {error}")

    async def _list_zones(self) -> None:
        """How many zones there are, and their serials: of the list that the zones part has asked for, or seldom."""
        if time.monotonic() < self._list_at:
            return
        try:
            listed = await self._channel.list_zones(self._zones_interval_s if self._zones else 0.0)
        except StatisticsError as error:
            self._list_at = time.monotonic() + self._zones_interval_s
            logger.warning(
                "statistics_zones_unavailable",
                url=self._channel.url,
                reason=str(error),
                hint="serials are not told meanwhile; it is asked again",
            )
            return
        if listed is self._listed and self._zones:
            return
        self._listed = listed
        serials = {
            zone.zone if zone.view == "_default" else f"{zone.zone}/{zone.view}": zone.serial
            for zone in listed
            if zone.serial is not None
        }
        changed = [name for name, serial in serials.items() if self._serials.get(name) != serial]
        kept = [name for name in self._zones.get("serials", ()) if name in serials and name not in changed]
        self._serials = serials
        shown: dict[str, int] = {}
        room = SERIALS_CHARACTERS
        for name in [*changed, *kept, *serials]:
            if len(shown) >= SERIALS or (room := room - len(name)) < 0:
                break
            shown[name] = serials[name]
        self._zones = {"zones": len(listed), "serials": shown}
