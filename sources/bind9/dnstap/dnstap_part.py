"""dnstap as a part of the BIND 9 source: `named` connects to a socket of ours and tells of its queries.

It never slows `named` down: what is not read in time, `named` drops and counts. What has no room because the gateway is
away is dropped and counted here.
"""

from __future__ import annotations

import asyncio
import errno
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.stop_wait import wait_for_stop
from solowire.sources.agent.traffic_figures import TrafficObserver
from solowire.sources.bind9.dnstap.dnstap_reader import DnstapConnection, DnstapReader
from solowire.sources.bind9.dnstap.dnstap_socket import DnstapSocket
from solowire.sources.bind9.dnstap.forwarder_traffic import EVENT_TYPE as HEALTH_TYPE
from solowire.sources.bind9.dnstap.forwarder_traffic import ForwarderTraffic, make_traffic_payload
from solowire.sources.bind9.dnstap.query_event import QueryEventMaker
from solowire.sources.bind9.dnstap.query_tap import QueryTap
from solowire.sources.bind9.queries.query_log import normalize_zones
from solowire.sources.bind9.queries.query_observer import QueryObserver
from solowire.sources.bind9.queries.query_statistics import EVENT_TYPE, QueryStatistics

TICK_S = 0.1
LOOK_S = 1.0
"""Between two looks at the socket's file, and two tries to make it."""
FORWARDERS_S = 30.0
"""Between two `forwarder_health` of what was sent to forwarders."""

logger = structlog.get_logger()


class DnstapPart:
    """Publishes the queries that `named` tells of on the socket at `path`.

    group: that may connect; None: the group of the socket's directory. zones: names of the zones to be told in events.
    stats_interval_s: between two `dns_query_stats`; 0: none. observers: are shown each query. traffic_observers: are
    told of the traffic with each forwarder. Raises ConfigError for a path or a group that can't be.
    """

    name = "dnstap"

    def __init__(
        self,
        path: Path,
        outlet: EventOutlet,
        *,
        group: str | None = None,
        zones: Iterable[str] = (),
        stats_interval_s: float = 10.0,
        observers: Sequence[QueryObserver] = (),
        traffic_observers: Sequence[TrafficObserver] = (),
    ) -> None:
        self._socket = DnstapSocket(path, group)
        self._outlet = outlet
        self._zones = normalize_zones(zones)
        self._stats_interval_s = stats_interval_s
        self._observers = tuple(observers)
        self._traffic_observers = tuple(traffic_observers)
        self._reader: DnstapReader | None = None

    def note_drops(self, count: int) -> None:
        """The server says that it has dropped so many messages since it was asked last, as nobody read them in time."""
        if self._reader is not None:
            self._reader.note_server_drops(count)

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises ConfigError, PublishRefused."""
        clock = asyncio.get_running_loop().time
        statistics = QueryStatistics(clock())
        traffic = ForwarderTraffic()
        is_counted = self._stats_interval_s > 0
        tap = QueryTap(
            QueryEventMaker(self._outlet.server, self._zones, uuid.uuid4().hex),
            (*self._observers, statistics) if is_counted else self._observers,
            traffic.observe_message,
        )
        reader = self._reader = DnstapReader(tap, self._outlet, status, self._socket.path)
        server: asyncio.Server | None = None
        missed = 0
        look_at, count_at, tell_at = 0.0, clock() + self._stats_interval_s, clock() + FORWARDERS_S
        try:
            while not stop.is_set():
                if clock() >= look_at:
                    look_at = clock() + LOOK_S
                    server = await self._keep_listening(reader, server)
                reader.tick()
                if is_counted and clock() >= count_at:
                    count_at = clock() + self._stats_interval_s
                    missed, before = reader.missed_count, missed
                    figures = statistics.take_figures(clock(), missed - before)
                    if reader.is_connected or figures["total_queries"]:
                        status.count_offered(await self._outlet.offer(EVENT_TYPE, figures))
                if clock() >= tell_at:
                    tell_at = clock() + FORWARDERS_S
                    await self._tell_traffic(traffic, status)
                await wait_for_stop(stop, TICK_S)
            reader.offer(tap.end(time.time()))
        finally:
            if server is not None:
                server.close()
            self._socket.remove()
            reader.close()
            reader.report()

    async def _tell_traffic(self, traffic: ForwarderTraffic, status: PartStatus) -> None:
        """Hands the figures of each forwarder to the part that probes it; of one that is not probed, publishes them."""
        for forwarder, figures in traffic.take_figures(asyncio.get_running_loop().time()):
            if any(observe(forwarder, figures) for observe in self._traffic_observers):
                continue
            data = make_traffic_payload(forwarder, figures)
            key = f"{self._outlet.server} {forwarder} passive"
            status.count_offered(await self._outlet.offer(HEALTH_TYPE, data, key=key))

    async def _keep_listening(self, reader: DnstapReader, server: asyncio.Server | None) -> asyncio.Server | None:
        """Makes the socket if it is not there, and says what is in the way, or that nobody has come."""
        if server is not None:
            if self._socket.is_in_place():
                if not reader.is_connected:
                    reader.note_listening()
                return server
            logger.warning(
                "dnstap_socket_lost",
                path=str(self._socket.path),
                hint="it was removed, or another took its place; it is made anew",
            )
            server.close()
        try:
            listening = self._socket.open()
        except OSError as error:
            reader.note_obstacle(error.strerror or str(error), self._explain_way_out(error))
            return None
        return await asyncio.get_running_loop().create_unix_server(lambda: DnstapConnection(reader), sock=listening)

    def _explain_way_out(self, error: OSError) -> str:
        folder = self._socket.path.parent
        match error.errno:
            case errno.ENOENT:
                return f"make the directory {folder}, where both this agent and named may go; trying on"
            case errno.EACCES | errno.EPERM:
                return f"give this agent the right to write in {folder}, or be in the group; trying on"
            case errno.EADDRINUSE:
                return "end the other, or give each its own path; trying on"
            case _:
                return "trying on"
