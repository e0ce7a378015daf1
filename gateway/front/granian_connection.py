"""The connection to Granian that one client's requests go by, one after the other.

What it keeps true: what Granian answers is passed on as it comes, and no faster than the client takes it; the client's
connection hears when an answer is whole, and whether another request may follow. An answer that Granian gave before the
request was whole is found, also where its socket was closed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Protocol, cast

import httptools
import structlog

from solowire.errors import RequestError, RequestRejected

logger = structlog.get_logger("solowire.gateway")

BUFFER_BYTES = 64 * 1024


class GranianClient(Protocol):
    """The connection whose requests these are."""

    def write_part(self, data: bytes) -> None: ...

    def on_answered(self, *, keeps_alive: bool) -> None: ...

    def on_upstream_lost(self, *, was_answered: bool, has_begun: bool) -> None: ...

    def refuse(self, error: RequestError) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class GranianConnection(asyncio.BufferedProtocol):
    """A connection to Granian that carries one client's requests.

    path: of Granian's Unix socket. buffer: where all connections of this thread read into.
    """

    def __init__(self, client: GranianClient, path: str, buffer: memoryview) -> None:
        self._client = client
        self._path = path
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []  # until it is connected
        self._is_dropped = False
        self._is_lost = False  # by Granian, with what it has answered still to be read
        self._is_head_request = False
        self._is_answered = True
        self._has_begun = False  # the answer
        self._keeps_alive = True
        self._parser = httptools.HttpResponseParser(self)
        self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            await self._loop.create_unix_connection(lambda: self, self._path)
        except OSError as error:
            if not self._is_dropped:
                logger.error(
                    "upstream_unavailable", reason=str(error), hint="requests are refused until it is there again"
                )
                self._client.refuse(
                    RequestRejected(
                        503,
                        "overloaded",
                        "the gateway can't take requests",
                        "try again in a moment; its log says why",
                        1.0,
                    )
                )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_dropped:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._client.resume_reading()

    def begin_request(self, is_head_request: bool) -> None:
        self._is_head_request = is_head_request
        self._is_answered = self._has_begun = False

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
        else:
            self._unsent.append(data)
            self._client.pause_reading()

    def end_body(self) -> None:
        """All of the body has been passed on; Granian has seen so by itself."""

    def pause_writing(self) -> None:
        self._client.pause_reading()

    def resume_writing(self) -> None:
        self._client.resume_reading()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_dropped:
            return
        data = bytes(self._buffer[:nbytes])
        self._has_begun = True
        self._client.write_part(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:  # Granian's fault, and not the client's
            logger.error(
                "upstream_bad_response", reason=str(error), hint="a fault of the gateway: report it with this line"
            )
            self._client.on_answered(keeps_alive=False)
            return
        if self._is_answered:
            if self._is_head_request:
                self._parser = httptools.HttpResponseParser(self)  # this one waits for a body that doesn't come
            self._client.on_answered(keeps_alive=self._keeps_alive and not self._is_lost)

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._is_head_request:
            self.on_message_complete()

    def on_message_complete(self) -> None:
        """Called by the parser, for answers such as 100 Continue as well."""
        if self._parser.get_status_code() >= 200:
            self._is_answered = True
            self._keeps_alive = self._parser.should_keep_alive()  # which is known here only

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._is_answered and self._transport is not None:
            self._read_the_rest(self._transport.get_extra_info("socket").fileno())
        if not self._is_dropped:
            self._is_dropped = True
            self._client.on_upstream_lost(was_answered=self._is_answered, has_begun=self._has_begun)

    def _read_the_rest(self, descriptor: int) -> None:
        """An answer that came before the body was whole: writing failed first, so it is in the socket still."""
        self._is_lost = True
        with contextlib.suppress(OSError):
            while not self._is_dropped and (count := os.readv(descriptor, [self._buffer])):
                self.buffer_updated(count)

    def abort(self) -> None:
        self._is_dropped = True
        self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()
