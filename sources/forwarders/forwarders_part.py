"""The part that probes forwarders and publishes how they are.

What it keeps true:

* Each forwarder is probed in a task of its own, at times that differ from the others', `concurrency` at once at most.
* One whose status is in doubt is asked every DOUBT_S, so that a change is known within seconds. Those that are down are
  asked less often the more there are, so that they don't take the others' places.
* A change of status is published at once, as what must not be lost; figures every `interval_s`, as telemetry.
* What a status says follows from probes alone; figures of real queries, if another part has them, stand beside it.
* A list that can't be read leaves the forwarders that are known as they are; why stands in the status, and in the log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from solowire.runtime.settings.source_settings import ForwardersSettings
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.event_time import format_now
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.traffic_figures import TrafficFigures
from solowire.sources.forwarders.forwarder_list import ForwarderListUnavailable, parse_forwarders, read_named_conf
from solowire.sources.forwarders.forwarder_probe import ForwarderProbe
from solowire.sources.forwarders.forwarder_state import ForwarderLimits, ForwarderState, Status, StatusChange
from solowire.sources.forwarders.named_forwarders import NamedForwarder

REREAD_S = 60.0
"""How often named's configuration is read, and how often it is said that it can't be."""

DOUBT_S = 1.0
TURN_S = 0.5
JITTER = 0.1
MAX_DETAILS = 100
"""Forwarders in one `health_update`, the unhealthy ones first; all are counted."""
TRAFFIC_S = 65.0
"""For which figures of real queries are told; new ones come every 30 s."""
MAX_NAMES = 50
"""Views, and zones, in one `forwarder_health`."""

logger = structlog.get_logger()


class ForwardersPart:
    """Probes forwarders. Raises ConfigError for settings that can't be obeyed."""

    name = "forwarders"

    def __init__(self, settings: ForwardersSettings, outlet: EventOutlet) -> None:
        self._settings = settings
        self._outlet = outlet
        self._probe = ForwarderProbe(settings.name, settings.type, settings.timeout_s)
        self._limits = ForwarderLimits(
            fail_count=settings.failures,
            recover_count=settings.recoveries,
            loss=settings.degraded_loss_percent,
            servfail=settings.degraded_servfail_percent,
            rtt_ms=settings.degraded_rtt_ms,
            window_s=settings.window_s,
        )
        self._named = parse_forwarders(settings.addresses, "source.forwarders.addresses")
        self._named_conf = None if settings.named_conf is None else settings.named_conf.absolute()
        self._watched: dict[ServerAddress, _WatchedForwarder] = {}
        self._tasks: dict[ServerAddress, asyncio.Task[None]] = {}
        self._is_update_due = False
        self._status = PartStatus(self.name)  # until it runs
        self._slots = asyncio.Semaphore(settings.concurrency)

    def note_traffic(self, forwarder: ServerAddress, figures: TrafficFigures) -> bool:
        """Takes the figures of real queries, to be told with those of the probes. False: it is not probed here."""
        watched = self._watched.get(forwarder)
        if watched is None:
            return False
        watched.traffic, watched.traffic_at = figures, time.monotonic()
        return True

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Probes until `stop` is set. Raises PublishRefused."""
        self._watched, self._tasks = {}, {}
        self._status = status
        lasting = [_repeat(REREAD_S, self._read_list), self._report()]
        work: set[asyncio.Task[Any]] = {asyncio.create_task(each) for each in lasting}
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                # The list changes: look anew, now and then, at which tasks there are.
                done, _ = await asyncio.wait(
                    {*work, *self._tasks.values(), stopping}, timeout=TURN_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done - {stopping}:
                    if not task.cancelled():  # of a forwarder that is listed no more
                        task.result()
                if self._is_update_due:
                    await self._publish_update()
        finally:
            everything = [*work, *self._tasks.values(), stopping]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    # ------------------------------------------------------------------------------------------ the list

    async def _read_list(self) -> None:
        status = self._status
        path = self._named_conf
        forwarders = list(self._named)
        if path is not None:
            try:
                found = await read_named_conf(path)
            except ForwarderListUnavailable as error:
                hint = "let the agent's user read named's configuration, with its keys; or name forwarders one by one"
                logger.warning("forwarder_list_unavailable", path=str(path), reason=str(error), hint=hint)
                status.set_waiting(str(error))
                if not self._watched:
                    self._set_list(forwarders)
                return
            if found.left_out:
                hint = "only forwarders that are asked by plain DNS are probed"
                logger.info("forwarders_left_out", forwarders=found.left_out, hint=hint)
            known = {each.address for each in forwarders}
            forwarders += [each for each in found.forwarders if each.address not in known]
        self._set_list(forwarders)
        if forwarders:
            status.set_running()
        else:
            status.set_waiting(f"{path} names no forwarders")

    def _set_list(self, forwarders: list[NamedForwarder]) -> None:
        listed = {each.address: each for each in forwarders}
        for address in self._watched.keys() - listed.keys():
            self._tasks.pop(address).cancel()
            del self._watched[address]
            logger.info("forwarder_removed", forwarder=str(address))
        for address, named in listed.items():
            if address in self._watched:
                self._watched[address].named = named
                continue
            watched = self._watched[address] = _WatchedForwarder(named, ForwarderState(self._limits))
            self._tasks[address] = asyncio.create_task(self._watch(watched), name=f"forwarder {address}")

    # ------------------------------------------------------------------------------------------ probes

    async def _watch(self, watched: _WatchedForwarder) -> None:
        await asyncio.sleep(random.uniform(0, min(self._settings.probe_interval_s, DOUBT_S)))  # noqa: S311 - jitter
        while True:
            async with self._slots:
                result = await self._probe.ask(watched.named.address)
            self._status.read_count += 1
            watched.checked_at = format_now()
            change = watched.state.note_probe(
                result.outcome, time.monotonic(), rtt_ms=result.rtt_ms, error=result.error
            )
            await self._publish_change(watched, change)
            await asyncio.sleep(self._find_wait(watched.state) * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311

    def _find_wait(self, state: ForwarderState) -> float:
        """Seconds to the next probe of a forwarder."""
        settings = self._settings
        if state.is_in_doubt:
            return min(settings.probe_interval_s, DOUBT_S)
        if state.status is not Status.unhealthy:
            return settings.probe_interval_s
        # Each takes a place for the whole timeout: they get half of the places at most, so that the others get theirs.
        down_count = sum(each.state.status is Status.unhealthy for each in self._watched.values())
        least = 2 * down_count * settings.timeout_s / settings.concurrency
        return max(settings.probe_interval_s, min(least, settings.interval_s))

    async def _publish_change(self, watched: _WatchedForwarder, change: StatusChange | None) -> None:
        if change is None:
            return
        address = str(watched.named.address)
        watched.changed_at = format_now()
        await self._publish_health(watched)
        self._is_update_due = True
        if (change.old, change.new) == (Status.unknown, Status.healthy):
            return  # it is as it should be: no news, each time that the source begins
        logger.info("forwarder_status_changed", forwarder=address, status=change.new.value, reason=change.reason)
        await self._outlet.publish(
            "forwarder_status_change",
            {
                "forwarder_id": address,
                "forwarder_name": address,
                "old_status": change.old.value,
                "new_status": change.new.value,
                "reason": change.reason,
            },
            timestamp=watched.changed_at,
        )
        self._status.published_count += 1

    # ------------------------------------------------------------------------------------------ figures

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_s)
            for watched in list(self._watched.values()):
                await self._publish_health(watched)
            self._is_update_due = bool(self._watched)

    async def _publish_health(self, watched: _WatchedForwarder) -> None:
        """The key has the server's name: several may watch one forwarder, each from its own place."""
        state, named = watched.state, watched.named
        figures = state.describe(time.monotonic())
        measured = {
            "rtt_ms": figures.rtt_ms,
            "rtt_p50_ms": figures.rtt_p50_ms,
            "rtt_p95_ms": figures.rtt_p95_ms,
            "loss": figures.loss,
            "servfail_ratio": figures.servfail,
        }
        fields = {
            "forwarder_id": str(named.address),
            "forwarder_name": str(named.address),
            "status": state.status.value,
            "server_ip": named.address.address,
            "port": named.address.port,
            "probes": figures.probes_count,
            "consecutive_failures": state.failures_count,
            "views": named.views[:MAX_NAMES] or None,
            "zones": named.zones[:MAX_NAMES] or None,
            "last_checked": watched.checked_at,
            "last_changed": watched.changed_at,
            "error": state.last_error,
            "passive": watched.describe_traffic(time.monotonic()),
            **{name: None if value is None else round(value, 2) for name, value in measured.items()},
        }
        data = {name: value for name, value in fields.items() if value is not None}
        await self._offer("forwarder_health", data, key=f"{self._outlet.server} {named.address}")

    async def _publish_update(self) -> None:
        """All of them together: every TURN_S at most, though all may change at once."""
        self._is_update_due = False
        watched = sorted(self._watched.values(), key=lambda each: _ORDER.index(each.state.status))
        counts = {status: sum(each.state.status is status for each in watched) for status in Status}
        details = [
            {
                "id": str(each.named.address),
                "name": str(each.named.address),
                "status": each.state.status.value,
                **({} if each.checked_at is None else {"last_checked": each.checked_at}),
            }
            for each in watched[:MAX_DETAILS]
        ]
        data = {
            "total_forwarders": len(watched),
            "active_forwarders": counts[Status.healthy] + counts[Status.degraded],
            **{f"{status.value}_forwarders": count for status, count in counts.items()},
            "health_check_enabled": True,
            "last_updated": format_now(),
            "forwarder_details": details,
        }
        await self._offer("health_update", data, key=self._outlet.server)

    async def _offer(self, type: str, data: dict[str, Any], *, key: str) -> None:
        self._status.count_offered(await self._outlet.offer(type, data, key=key))


class _WatchedForwarder:
    def __init__(self, named: NamedForwarder, state: ForwarderState) -> None:
        self.named = named
        self.state = state
        self.checked_at: str | None = None
        self.changed_at: str | None = None
        self.traffic: TrafficFigures | None = None
        self.traffic_at = 0.0

    def describe_traffic(self, now: float) -> dict[str, Any] | None:
        """The figures of real queries; None if nobody has told any lately. now: monotonic seconds."""
        is_fresh = self.traffic is not None and now < self.traffic_at + TRAFFIC_S
        return self.traffic.describe() if self.traffic is not None and is_fresh else None


_ORDER = [Status.unhealthy, Status.degraded, Status.unknown, Status.healthy]


async def _repeat(interval_s: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        await work()
        await asyncio.sleep(interval_s)
