"""A pipe on standard input as a part of a source: what syslog or journald hands on, line by line.

It reads only as fast as the gateway takes events, so that whoever writes waits. No place is kept, as nothing is read
twice: what was read and not acknowledged when the agent is killed is lost. The pipe's end is the source's end, once all
of it is acknowledged.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

import structlog

from solowire.errors import BufferFull, ConfigError, PublishRefused
from solowire.runtime.standard_input import read_pieces
from solowire.sdk.publisher import Publisher
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.files.line_meaning import LineInterpreter
from solowire.sources.files.log_condition import LogCondition
from solowire.sources.files.pipe_lines import PipeLines

STANDARD_INPUT = Path("-")
"""What a setting that names a file calls it."""
STOP_S = 4.0
"""For which the last events may wait for their acknowledgement when the agent is told to end."""
REPORT_S = 60.0

logger = structlog.get_logger()


class PipePart:
    """Publishes what the lines of standard input become. Raises ConfigError where there is none. name: of the part."""

    def __init__(self, interpreter: LineInterpreter, outlet: EventOutlet, *, name: str) -> None:
        if sys.stdin is None:
            raise ConfigError("standard input is closed; have syslog or journald write into it, or name a file")
        self.name = name
        self._interpreter = interpreter
        self._outlet = outlet
        self._server = outlet.server
        self._descriptor = sys.stdin.fileno()

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until the pipe's end, and sets `stop` then; or until it is set. Raises PublishRefused."""
        async with self._outlet.make_log_lane() as publisher:
            status.set_running()
            reading = asyncio.ensure_future(self._read(publisher, status))
            stopping = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                if not reading.done():
                    reading.cancel()
                    await asyncio.wait({reading})
            if not reading.cancelled():
                reading.result()
                stop.set()
            else:
                await self._drain(publisher)
            await publisher.close()

    async def _read(self, publisher: Publisher, status: PartStatus) -> None:
        """All of the pipe, and until all of it is acknowledged."""
        clock = asyncio.get_running_loop().time
        lines = PipeLines()
        condition = LogCondition(Path("standard input"), self._server, clock, self._interpreter.kind)
        report_at = clock() + REPORT_S
        async for piece in read_pieces(self._descriptor):
            await self._publish(lines.feed(piece), publisher, status, condition)
            condition.check_lines()
            status.lost_count = lines.dropped_count
            if clock() >= report_at:
                report_at = clock() + REPORT_S
                self._report(status)
        await self._publish(lines.end(), publisher, status, condition)
        await publisher.drain()
        logger.info("pipe_ended", server=self._server, log=self.name)
        self._report(status)

    async def _publish(
        self, lines: list[str], publisher: Publisher, status: PartStatus, condition: LogCondition
    ) -> None:
        now = datetime.now(UTC)
        for line in lines:
            status.read_count += 1
            meaning = self._interpreter.interpret_line(line, now)
            if meaning.is_known:
                condition.match_line()
            else:
                condition.skip_line(line)
            if (event := meaning.event) is None:
                continue
            data = event.data if "server" in event.data else {"server": self._server, **event.data}
            while True:
                try:
                    await publisher.publish(event.type, data, timestamp=event.timestamp, source=self._server)
                except BufferFull:
                    await publisher.wait_for_room()
                else:
                    break
            status.published_count += 1

    async def _drain(self, publisher: Publisher) -> None:
        try:
            async with asyncio.timeout(STOP_S):
                await publisher.drain()
        except (TimeoutError, PublishRefused):
            logger.warning(
                "events_unsent",
                server=self._server,
                events=len(publisher.unsent),
                hint="the gateway did not take them in time; what came through a pipe is not read again: they are lost",
            )

    def _report(self, status: PartStatus) -> None:
        logger.info(
            "pipe_progress",
            server=self._server,
            log=self.name,
            lines=status.read_count,
            events=status.published_count,
            dropped=status.lost_count,
        )
