"""The agents' loops: the thin shells that read a real system and publish what it tells.

The BIND 9 agent is one loop over one file. It reads only as fast as the publisher takes events: while the
publisher is full the loop waits and the file is the buffer, so the agent's memory stays that of one read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import structlog

from solowire.errors import BufferFull, ConfigError
from sources.follow import Follower
from sources.query_log import EVENT_TYPE, parse_query, payload, zone_set

POLL_S = 0.1
REPORT_S = 60.0

log = structlog.get_logger()


class Publisher(Protocol):
    """What agents need of `solowire.publisher`. `publish` raises BufferFull; `drain` waits for room."""

    async def publish(
        self, type: str, data: dict[str, Any], *, timestamp: str | None = None, source: str | None = None
    ) -> object: ...

    async def drain(self) -> object: ...


async def run_bind9(
    query_log: Path,
    publisher: Publisher,
    *,
    server: str,
    from_start: bool,
    zones: Iterable[str],
    stop: asyncio.Event,
) -> None:
    """Publish every query of a BIND 9 query log as `dns_query_log`, until `stop` is set.

    query_log: the file of the channel, which need not exist yet. server: the name server's name, the events'
    `source`. from_start: also what the file holds already. zones: names of the zones to be told in the
    events. Times without a zone are this machine's. Raises ConfigError if the file is there and can't be
    read.
    """
    try:
        follower = Follower(query_log, from_start)
    except OSError as error:
        raise ConfigError(
            f"the query log {query_log} can't be read: {error.strerror}; let the agent's user read it"
        ) from error
    agent = _Bind9(follower, publisher, server, zone_set(zones), stop)
    try:
        await agent.run()
    finally:
        agent.report()
        follower.close()


class _Bind9:
    def __init__(
        self,
        follower: Follower,
        publisher: Publisher,
        server: str,
        zones: frozenset[str],
        stop: asyncio.Event,
    ) -> None:
        self.follower = follower
        self.publisher = publisher
        self.server = server
        self.zones = zones
        self.stop = stop
        self.lines = 0
        self.queries = 0
        self.skipped = 0
        self.waited = 0.0  # seconds, for a publisher that was full
        self.report_at = 0.0
        self.passed_over = 0
        self.trouble: str | None = None

    async def run(self) -> None:
        self.report_at = self.clock() + REPORT_S
        while not self.stop.is_set():
            lines = self.follower.read()
            self.tell_trouble()
            for line in lines:
                if not await self.handle(line):
                    return
            self.report_if_due()
            # More may be there already after a read that gave lines: only let the publisher have its turn.
            await self.pause(0 if lines else POLL_S)

    async def handle(self, line: str) -> bool:
        """Publish one line, however long it takes. False if the agent was stopped first."""
        self.lines += 1
        query = parse_query(line, None)
        if query is None:
            self.skipped += 1
            return True
        data = payload(query, self.zones)
        while True:
            try:
                await self.publisher.publish(EVENT_TYPE, data, timestamp=query.timestamp, source=self.server)
            except BufferFull:
                if not await self.room():
                    return False
            else:
                self.queries += 1
                return True

    async def room(self) -> bool:
        """Wait until the publisher has room. False if the agent was stopped first."""
        drained = asyncio.ensure_future(self.publisher.drain())
        begun, waited = self.clock(), self.waited
        try:
            while not drained.done():
                if self.stop.is_set():
                    return False
                self.follower.notice()  # the log may be rotated more than once meanwhile
                await asyncio.wait({drained}, timeout=POLL_S)
                self.waited = waited + self.clock() - begun
                self.report_if_due()
            drained.result()
            return True
        finally:
            drained.cancel()
            await asyncio.gather(drained, return_exceptions=True)

    async def pause(self, seconds: float) -> None:
        if seconds == 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            pass

    @staticmethod
    def clock() -> float:
        return asyncio.get_running_loop().time()

    def tell_trouble(self) -> None:
        """Say once that the log can't be opened: a rotation may give it the wrong owner for a moment."""
        if self.follower.passed_over != self.passed_over:
            self.passed_over = self.follower.passed_over
            log.error(
                "query log lost", server=self.server, files=self.passed_over, hint="rotated away before it was read"
            )
        trouble = None if self.follower.trouble is None else str(self.follower.trouble)
        if trouble != self.trouble:
            if trouble is not None:
                log.warning(
                    "query log can't be opened; trying on",
                    server=self.server,
                    error=trouble,
                    hint="let this user read it",
                )
            else:
                log.info("query log can be opened again", server=self.server)
            self.trouble = trouble

    def report_if_due(self) -> None:
        if self.clock() >= self.report_at:
            self.report()
            self.report_at = self.clock() + REPORT_S

    def report(self) -> None:
        """The counts since the agent began.

        skipped: lines that are no queries. dropped: lines over 64 KB. passed_over: files that were rotated away before
        they were read. waited_s: for the gateway, with a full buffer: the log is read that much later.
        """
        log.info(
            "query log read",
            server=self.server,
            lines=self.lines,
            queries=self.queries,
            skipped=self.skipped,
            dropped=self.follower.dropped,
            passed_over=self.follower.passed_over,
            waited_s=round(self.waited, 1),
        )
