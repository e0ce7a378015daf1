"""TLS at a shard's client port: the listener's part of it, and what a session may do that a socket can't.

What sockets promise is in `tests/workers/connections/test_sockets.py`, which runs over TLS as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.frames import Opcode

from solowire.protocol.close_codes import CloseCode
from solowire.protocol.tls_session import REFUSED_ALERT, TlsSession
from solowire.workers.connections.connection import Connection
from tests.support.certificates import TRUSTING, make_tls_port
from tests.support.tls_streams import open_tls_connection
from tests.workers.connections.test_sockets import SECONDS, TcpPeers, close, until_busy
from tests.workers.net.test_tcp_sockets import HANDSHAKE, masked, until


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[TcpPeers]:
    peers = TcpPeers(make_tls_port(tmp_path))
    try:
        async with asyncio.timeout(SECONDS):
            yield peers
    finally:
        await peers.close()


@contextlib.asynccontextmanager
async def raw(peers: TcpPeers, data: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", peers.port)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()


class Wire:
    """A client that sees what goes over the wire, and may do with it what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.session = TlsSession(TRUSTING, is_server=False)

    async def open(self) -> None:
        data = self.session.start()
        while not self.session.is_open or data:
            self.writer.write(data)
            if not self.session.is_open:
                self.session.receive(await self._reader.read(2**16))
            data = self.session.take_output()

    def say(self, data: bytes) -> None:
        self.writer.write(self.session.encrypt(data))

    async def hear(self) -> bytes:
        """All that is said from now on, until the end."""
        said = b""
        while data := await self._reader.read(2**16):
            said += self.session.receive(data)
        return said


@contextlib.asynccontextmanager
async def wired(peers: TcpPeers) -> AsyncIterator[Wire]:
    async with raw(peers) as (reader, writer):
        wire = Wire(reader, writer)
        await wire.open()
        yield wire


async def joined(peers: TcpPeers, wire: Wire) -> Connection:
    wire.say(HANDSHAKE)
    return await peers.opened()


async def test_what_came_with_the_handshake_is_a_message(peers: TcpPeers) -> None:
    """In the same record as the request, in the one behind it, or in a half of one."""
    async with wired(peers) as wire:
        wire.say(HANDSHAKE + masked(Opcode.TEXT, b"one") + masked(Opcode.TEXT, b"two")[:3])
        wire.say(masked(Opcode.TEXT, b"two")[3:])
        await until(peers, "one", peers.received)


async def test_a_refusal_is_said_by_tls_and_the_end_behind_it(peers: TcpPeers) -> None:
    async with wired(peers) as wire:
        wire.say(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        said = await wire.hear()
        assert said.startswith(b"HTTP/1.1 404 ")
        assert wire.session.has_ended


async def test_our_close_is_followed_by_the_end_of_tls(peers: TcpPeers) -> None:
    """So that a client knows that nobody has cut off what was to come."""
    async with wired(peers) as wire:
        connection = await joined(peers, wire)
        close(peers, connection, CloseCode.replaced)
        said = await wire.hear()
        assert said.endswith(CloseCode.replaced.reason.encode())
        assert wire.session.has_ended


async def test_the_end_of_tls_ends_the_connection(peers: TcpPeers) -> None:
    async with wired(peers) as wire:
        connection = await joined(peers, wire)
        wire.writer.write(wire.session.end())
        await until(peers, connection, peers.ended)


async def test_a_record_that_is_none_ends_one_connection(peers: TcpPeers) -> None:
    """Its peer is told so by an alert, and nothing of it is a message."""
    async with wired(peers) as wire, wired(peers) as other:
        connection, another = await joined(peers, wire), await joined(peers, other)
        broken = bytearray(wire.session.encrypt(masked(Opcode.TEXT, b"forged")))
        broken[-1] ^= 1
        wire.writer.write(bytes(broken))
        await until(peers, connection, peers.ended)
        other.say(masked(Opcode.TEXT, b"good"))
        await until(peers, "good", peers.received)
        assert peers.received == ["good"]
        assert another not in peers.ended


async def test_one_who_does_not_read_gets_busy_and_its_close_waits_behind_what_it_was_sent(peers: TcpPeers) -> None:
    """It is closed all the same, a moment later, whatever it reads."""
    async with wired(peers) as wire:
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection = await joined(peers, wire)
        await until_busy(peers, connection)
        assert peers.sockets.is_busy(connection)
        close(peers, connection, CloseCode.too_slow)
        await until(peers, connection, peers.ended)


async def test_a_handshake_under_way_has_room_like_any_head(peers: TcpPeers) -> None:
    """It counts from the accept on; where there is no room the client hears an alert; who leaves gives it back."""
    peers.listener._limiter._total = 2
    greeting = TlsSession(TRUSTING, is_server=False).start()
    async with raw(peers) as (_, silent), raw(peers, greeting[:20]):
        while peers.listener.pending_count < 2:
            await peers.turn()
        async with raw(peers, greeting) as (refused, _):
            assert await refused.read() == REFUSED_ALERT
        silent.transport.abort()
        while peers.listener.pending_count == 2:
            await peers.turn()
        assert peers.tls is not None
        _, writer = await open_tls_connection(peers.port, peers.tls)
        writer.transport.abort()


async def test_what_is_no_tls_is_told_so_or_cut(peers: TcpPeers) -> None:
    async with raw(peers, HANDSHAKE) as (reader, _):
        said = await reader.read()
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"tls_required" in said
    async with raw(peers, b"\x16\x03\x01\x00\x05hello") as (reader, _):
        assert (await reader.read())[:1] == b"\x15"
    async with raw(peers, b"\x16\x03\x01\x40\x00\x01\x01\xf0\x00" + b"x" * 200_000) as (reader, _):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    while peers.listener.pending_count:
        await peers.turn()
    assert peers.tls is not None
    assert peers.tls.faults.total() >= 1
