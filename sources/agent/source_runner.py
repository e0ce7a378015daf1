"""The life of a source: all its parts beside each other, none of them able to stop another.

A part that breaks by a fault of ours is logged and begun anew, later each time. One that can't work as it was set up
(ConfigError) ends the source: its operator has to know. So does a gateway that refuses for good (PublishRefused).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from solowire.algorithms.backoff import Backoff
from solowire.errors import ConfigError, PublishRefused
from solowire.sources.agent.clock_skew import watch_clock
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus, StatusReporter
from solowire.sources.agent.stop_wait import wait_for_stop

RESTART_MIN_S = 1.0
RESTART_MAX_S = 60.0
STOP_S = 5.0
"""For which the parts may go on when they are told to stop, and then the last events may wait to be acknowledged."""
STRANGER_STOP_S = 0.3
"""The latter where the gateway has not answered since the start: it is not there yet, and was told nothing before."""

logger = structlog.get_logger()


class SourcePart(Protocol):
    """One thing that a source watches."""

    @property
    def name(self) -> str:
        """What its status calls it; one word."""
        ...

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Watch until `stop` is set. Sets `status` running as soon as nothing stands in its way.

        Begun anew after a failure: what it had must be made here. Raises ConfigError, PublishRefused.
        """
        ...


async def run_source(
    kind: str,
    parts: Sequence[SourcePart],
    outlet: EventOutlet,
    stop: asyncio.Event,
    *,
    url: str,
    begun: Callable[[], None] = lambda: None,
    api: socket.socket | None = None,
) -> None:
    """Runs all parts until `stop` is set. begun: called when each part runs, or has said what it waits for.

    api: a listening socket for metrics and probes.

    Raises ConfigError, PublishRefused: of the part that raised it first.
    """
    source = StatusReporter(kind, outlet)
    served = None
    if api is not None:
        from solowire.sources.agent.source_api import serve_api  # a web server, which most sources do without

        served = serve_api(source, api)
    tasks = [
        asyncio.create_task(_keep_running(part, source.add_part(part.name), stop), name=part.name) for part in parts
    ]
    watching = asyncio.create_task(watch_clock(url, source, stop), name="clock")
    reporting = asyncio.create_task(source.report(stop), name="status")
    starting = asyncio.create_task(_wait_until_begun(source, begun), name="start")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        work: set[asyncio.Task[object]] = {*tasks, reporting}
        while work and not stop.is_set():
            done, _ = await asyncio.wait({*work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
                work.discard(task)
        await asyncio.wait({*tasks, reporting}, timeout=STOP_S)
        await _drain(outlet)
    finally:
        everything = [*tasks, watching, reporting, starting, stopping]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        if served is not None:
            await served.finish()


async def _keep_running(part: SourcePart, status: PartStatus, stop: asyncio.Event) -> None:
    backoff = Backoff(RESTART_MIN_S, RESTART_MAX_S)
    while True:
        try:
            await part.run(status, stop)
        except (ConfigError, PublishRefused):
            raise
        except Exception as error:
            wait = backoff.next_delay(at_least=RESTART_MIN_S)
            status.set_failed(f"{type(error).__name__}: {error}")
            logger.exception("source_part_failed", part=part.name, again_s=round(wait, 1))
            if not await wait_for_stop(stop, wait):
                continue
        return


async def _wait_until_begun(source: StatusReporter, begun: Callable[[], None]) -> None:
    while any(part.status == "starting" for part in source.parts.values()):
        await asyncio.sleep(0.05)
    begun()


async def _drain(outlet: EventOutlet) -> None:
    try:
        async with asyncio.timeout(STOP_S if outlet.contact.has_succeeded else STRANGER_STOP_S):
            await outlet.drain()
    except TimeoutError:
        logger.warning(
            "events_unsent",
            server=outlet.server,
            hint="the gateway did not take them in time; changes are read again at the next start, telemetry is lost",
        )
