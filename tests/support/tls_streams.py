"""A client of a test that speaks TLS and can do all that one without can: end one direction, not read, be cut."""

from __future__ import annotations

import asyncio
from typing import Any

from solowire.gateway.front.tls_transport import TlsClientTransport
from solowire.runtime.tls_port import TlsPort

BUFFER = memoryview(bytearray(64 * 1024))


class _Streams(asyncio.BufferedProtocol):
    """asyncio's streams, for a transport that hands over what it has read in a buffer."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self._protocol = asyncio.StreamReaderProtocol(self.reader)
        self._buffer = memoryview(bytearray(64 * 1024))
        self.writer: asyncio.StreamWriter

    def connection_made(self, transport: Any) -> None:
        self._protocol.connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, self._protocol, self.reader, asyncio.get_running_loop())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.reader.feed_data(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


async def open_tls_connection(
    port: int, tls: TlsPort, address: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port of this machine whose certificate is that of `tls`. address: whence."""
    streams = _Streams()
    transport = TlsClientTransport(streams, tls.certificate.fingerprint, BUFFER)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: transport, "127.0.0.1", port, local_addr=(address, 0))
    await transport.opened
    return streams.reader, streams.writer
