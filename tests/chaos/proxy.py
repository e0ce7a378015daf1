"""A TCP proxy that fails on purpose: forwards, and on command cuts its connections or stops forwarding.

What it keeps true: bytes are never changed, reordered or dropped while a connection lives; a cut is a reset on both
sides; a stalled direction stays open and reads nothing, so TCP holds the sender back. Held at most: one read of
`CHUNK_BYTES` for each direction of a connection, and the transports' own buffers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 5.0


class Link:
    """One listener and the server behind it. random: which connections a share of them is."""

    def __init__(self, name: str, port: int, upstream: int, random: Random) -> None:
        self.name = name
        self.port = port
        self.accepted = 0
        self.cuts = 0
        self._upstream = upstream
        self._random = random
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}  # in the order of arrival: a set's would differ from run to run
        self._tasks: set[asyncio.Task[None]] = set()
        self._stalled: dict[object, str] = {}  # stalls of the whole link, which catch those who come meanwhile, too

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuses whoever comes, and cuts who is there."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def cut(self, share: float = 1.0) -> int:
        """Resets so many of the connections; returns how many there were."""
        chosen = self._choose(share)
        for connection in chosen:
            connection.cut()
        self.cuts += len(chosen)
        return len(chosen)

    async def stall(self, seconds: float, direction: str = "both", share: float = 1.0) -> None:
        """Stops forwarding in a direction (`up`, `down`, `both`) for a time; of a whole link, for newcomers as well."""
        mark = object()
        chosen = self._choose(share)
        if share == 1.0:
            self._stalled[mark] = direction
        for connection in chosen:
            connection.stall(mark, direction)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stalled.pop(mark, None)
            for connection in list(self._connections):
                connection.go_on(mark)

    def _choose(self, share: float) -> list[_Connection]:
        there = list(self._connections)
        return there if share == 1.0 else self._random.sample(there, round(len(there) * share))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        connection = _Connection(writer)
        self._connections[connection] = None
        for mark, direction in self._stalled.items():
            connection.stall(mark, direction)
        # Cancelled only by `close`, which has seen to it: asyncio's streams would tell of it as of a fault.
        with suppress(OSError, TimeoutError, asyncio.CancelledError):
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
                connection.writers.append(server_writer)
                async with asyncio.TaskGroup() as both:
                    both.create_task(connection.forward(reader, server_writer, "up"))
                    both.create_task(connection.forward(server_reader, writer, "down"))
            finally:
                connection.cut()
                del self._connections[connection]
                self._tasks.discard(task)


class _Connection:
    """The two sockets of one client. A cut closes both, and so ends what forwards between them."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._stalls: dict[object, str] = {}
        self._cut = False
        self._settle()

    def cut(self) -> None:
        self._cut = True
        self._settle()
        for writer in self.writers:
            writer.transport.abort()

    def stall(self, mark: object, direction: str) -> None:
        self._stalls[mark] = direction
        self._settle()

    def go_on(self, mark: object) -> None:
        if self._stalls.pop(mark, None) is not None:
            self._settle()

    async def forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str) -> None:
        """Until `source` ends; its end is passed on, after which the other direction may still speak."""
        gate = self._open[direction]
        with suppress(OSError):
            while True:
                await gate.wait()
                chunk = await source.read(CHUNK_BYTES)
                await gate.wait()
                if self._cut:
                    return
                if not chunk:
                    if sink.can_write_eof():
                        sink.write_eof()
                    return
                sink.write(chunk)
                await sink.drain()

    def _settle(self) -> None:
        for direction, gate in self._open.items():
            if not self._cut and any(stalled in (direction, "both") for stalled in self._stalls.values()):
                gate.clear()
            else:
                gate.set()
