"""The connections on which servers tell of their queries, and what becomes of that: events, counts, words in the log.

What it keeps true: a fault of one connection ends that connection alone. Whatever else fails, such as a gateway that
refuses for good, is kept in `failure` for the part, as nobody waits for a protocol's callbacks.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import DnstapError
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.dnstap.frame_stream import FrameStream, StreamState
from solowire.sources.bind9.dnstap.query_tap import QueryTap

REPORT_S = 60.0
HANDSHAKE_S = 10.0
"""For which a connection may be there without having begun to tell."""
MAX_CONNECTIONS = 32
"""Of servers at a time; `named` opens one."""

logger = structlog.get_logger()


class DnstapReader:
    """Publishes what comes on all connections to one socket. path: the socket's.

    failure: what ended all work, if anything did.
    """

    def __init__(self, tap: QueryTap, outlet: EventOutlet, status: PartStatus, path: Path) -> None:
        self.failure: Exception | None = None
        self._tap = tap
        self._outlet = outlet
        self._status = status
        self._path = path
        self._clock = asyncio.get_running_loop().time
        self._connections: set[DnstapConnection] = set()
        self._dropped_count = 0
        self._server_dropped_count = 0
        self._said_losses = (0, 0, 0)
        self._report_at = self._clock() + REPORT_S
        self._obstacle = WarningPace()

    @property
    def is_connected(self) -> bool:
        """Whether a server tells of its queries now."""
        return any(connection.is_streaming for connection in self._connections)

    @property
    def missed_count(self) -> int:
        """What became no event, as far as that is known: events, and messages of the server."""
        return self._dropped_count + self._tap.counts.damaged + self._server_dropped_count

    def take_frames(self, frames: list[bytes]) -> None:
        """Publishes what these frames tell; there is no waiting."""
        self.offer(self._tap.take_frames(frames, self._clock(), time.time()))

    def offer(self, events: list[bytes]) -> None:
        """Publishes events, as far as there is room. Raises PublishRefused."""
        if events:
            accepted = self._outlet.offer_many(events)
            self._dropped_count += len(events) - accepted
            self._status.published_count += accepted
            self._status.dropped_count += len(events) - accepted
        self._status.read_count = self._tap.counts.queries
        self._status.lost_count = self._tap.counts.damaged + self._server_dropped_count

    def note_server_drops(self, count: int) -> None:
        """The server itself has dropped so many messages more."""
        self._server_dropped_count += count

    def tick(self) -> None:
        """Does what time has brought. Raises PublishRefused, and what failed meanwhile."""
        if self.failure is not None:
            raise self.failure
        now = self._clock()
        self.offer(self._tap.expire(now, time.time()))
        for connection in [one for one in self._connections if one.is_late(now)]:
            connection.refuse(f"nothing of the handshake for {HANDSHAKE_S:g} s")
        if now >= self._report_at:
            self._report_at = now + REPORT_S
            self.report()

    def close(self) -> None:
        """Ends all connections."""
        for connection in list(self._connections):
            connection.close()

    # ------------------------------------------------------------------------------------------ what it waits for

    def note_obstacle(self, reason: str, hint: str) -> None:
        """The socket can't be made: said at once, and once a minute while it lasts."""
        self._wait_for(f"the dnstap socket {self._path} can't be made: {reason}", hint)

    def note_listening(self) -> None:
        """The socket is there."""
        if not self.is_connected:
            self._wait_for(
                f"no server is connected to {self._path}",
                f'named.conf needs `dnstap-output unix "{self._path}"`, and named the right to write to it',
            )

    def _wait_for(self, reason: str, hint: str) -> None:
        self._status.set_waiting(reason)
        if self._obstacle.is_due(reason, self._clock()):
            logger.warning("dnstap_waiting", server=self._outlet.server, reason=reason, hint=hint)

    # ------------------------------------------------------------------------------------------ connections

    def add(self, connection: DnstapConnection) -> bool:
        """Takes a connection in; False if there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def note_streaming(self) -> None:
        """A server begins to tell of its queries."""
        self._status.set_running()
        self._obstacle.reset()
        logger.info("dnstap_connected", server=self._outlet.server, path=str(self._path))

    def note_closed(self, connection: DnstapConnection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if connection.is_streaming and not self.is_connected:
            logger.info("dnstap_disconnected", server=self._outlet.server, path=str(self._path))
            self._status.set_waiting(f"no server is connected to {self._path}")

    def note_refused(self, fault: str) -> None:
        """A connection is ended for what came on it."""
        logger.warning(
            "dnstap_connection_refused",
            server=self._outlet.server,
            path=str(self._path),
            reason=fault,
            hint="only name servers should connect to this socket: `dnstap-output unix` in named.conf",
        )

    # ------------------------------------------------------------------------------------------ its reports

    def report(self) -> None:
        """Says the counts since the part began; a warning if something was lost since the last time.

        dropped: events without room. damaged: messages that could not be understood. server_dropped: messages that the
        server itself had no room for, if its statistics are asked.
        """
        counts = self._tap.counts
        losses = (self._dropped_count, counts.damaged, self._server_dropped_count)
        words = {"last_fault": self._tap.last_fault} if counts.damaged else {}
        say = logger.info
        if losses != self._said_losses:
            say, self._said_losses = logger.warning, losses
            words["hint"] = (
                "dropped: is the gateway away, or its publish.rate too low? server_dropped: give this more CPU"
            )
        say(
            "dnstap_progress",
            server=self._outlet.server,
            frames=counts.frames,
            queries=counts.queries,
            unanswered=counts.unanswered,
            unasked=counts.unasked,
            skipped=counts.skipped,
            dropped=self._dropped_count,
            damaged=counts.damaged,
            server_dropped=self._server_dropped_count,
            **words,
        )


class DnstapConnection(asyncio.Protocol):
    """One server's connection."""

    def __init__(self, reader: DnstapReader) -> None:
        self._reader = reader
        self._stream = FrameStream()
        self._transport: asyncio.Transport | None = None
        self._began_at = asyncio.get_running_loop().time()
        self.is_streaming = False

    def is_late(self, now: float) -> bool:
        """Whether it has not begun to tell in time."""
        return not self.is_streaming and now > self._began_at + HANDSHAKE_S

    def refuse(self, fault: str) -> None:
        """Ends the connection for a fault of its peer's."""
        self._reader.note_refused(fault)
        self.close()

    def close(self) -> None:
        """Ends the connection, after what it was sent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream's; uvloop's is none by its class
        if not self._reader.add(self):
            self.refuse(f"more than {MAX_CONNECTIONS} connections at a time")

    def data_received(self, data: bytes) -> None:
        if self._reader.failure is not None or self._transport is None or self._transport.is_closing():
            return
        try:
            step = self._stream.feed(data)
            if step.reply:
                self._transport.write(step.reply)
            if not self.is_streaming and self._stream.state is StreamState.streaming:
                self.is_streaming = True
                self._reader.note_streaming()
            if step.frames:
                self._reader.take_frames(step.frames)
            if self._stream.state is StreamState.finished:
                self._transport.close()
        except DnstapError as error:
            self.refuse(f"it sent {error}")
        except Exception as error:  # the part's, which has to know
            self._reader.failure = error

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.note_closed(self)
