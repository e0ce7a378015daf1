"""TLS in front of the gateway's port: what holds of connections without it holds of these."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.backplane.messages import ShardAddress
from solowire.protocol.tls_session import REFUSED_ALERT, TlsSession
from solowire.runtime.tls_port import TlsPort
from tests.gateway.front.test_http_front import GET, KILO, SECONDS, Site, answer_from, chunked, post, site
from tests.support.certificates import TRUSTING, make_tls_port
from tests.support.echo_shard import Echo
from tests.support.relay_harness import OneShardGateway, relay_front
from tests.support.system import refusal
from tests.support.tls_streams import open_tls_connection


@contextlib.asynccontextmanager
async def tls_site(folder: Path, **limits: object) -> AsyncIterator[tuple[Site, TlsPort]]:
    tls = make_tls_port(folder)
    async with site(folder, tls=tls, **limits) as made:
        yield made, tls


@contextlib.asynccontextmanager
async def connected(
    made: Site, tls: TlsPort, data: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await open_tls_connection(made.port, tls)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def raw(made: Site, data: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that sends what it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("path", ["/", "/direct"])
async def test_requests_arrive_in_their_order_however_they_are_sent(tmp_path: Path, path: str) -> None:
    """In records of any size, with bodies of many, one behind the other."""
    large = bytes(range(256)) * 400
    requests = [post(b"one", path), chunked(b"t", b"wo", path=path), post(large, path), GET]
    expected = [(200, b"one"), (200, b"two"), (200, large), (200, b"/")]
    async with tls_site(tmp_path) as (made, tls):
        async with connected(made, tls, b"".join(requests)) as (reader, _):
            assert [await answer_from(reader) for _ in expected] == expected
        async with connected(made, tls) as (reader, writer):
            for byte in requests[0] + requests[1]:
                writer.write(bytes([byte]))
            assert [await answer_from(reader) for _ in range(2)] == expected[:2]
        assert tls.handshake_count == 2


async def test_each_end_of_a_connection_is_told_by_itself(tmp_path: Path) -> None:
    """Who says that it says no more has its answer; who is answered for the last time is told that it was the last."""
    async with tls_site(tmp_path) as (made, tls):
        async with connected(made, tls, post(b"all")) as (reader, writer):
            writer.write_eof()
            assert await answer_from(reader) == (200, b"all")
            assert await reader.read() == b""
        async with connected(made, tls, GET.replace(b"/ ", b"/close ", 1)) as (reader, writer):
            assert (await answer_from(reader))[0] == 200
            assert await reader.read() == b""
            assert not writer.transport.is_closing()  # the wire is: but that is said before


async def test_who_does_not_read_has_no_more_waiting_for_it_and_is_cut(tmp_path: Path) -> None:
    large = GET.replace(b"/ ", b"/large ", 1)
    async with tls_site(tmp_path, stalled_s=1.0) as (made, tls), connected(made, tls, large) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        while not made.front.context.registry.clients:
            await asyncio.sleep(0.01)
        [client] = made.front.context.registry.clients
        most = 0
        while made.front.context.registry.clients:
            most = max(most, client.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
        assert 0 < most < 300 * KILO


async def test_a_handshake_has_the_time_of_a_head_and_counts_as_a_connection(tmp_path: Path) -> None:
    """Whoever says nothing, or a part of a greeting: it takes room from the accept on, and gives it back."""
    greeting = TlsSession(TRUSTING, is_server=False).start()
    async with tls_site(tmp_path, head_s=0.5, limiter=AcceptLimiter(2, None)) as (made, tls):
        async with raw(made) as (silent, _), raw(made, greeting[:50]) as (half, _):
            while len(made.front.context.registry.clients) < 2:
                await asyncio.sleep(0.01)
            async with raw(made, greeting) as (refused, _):
                assert await refused.read() == REFUSED_ALERT
            assert await silent.read() == await half.read() == b""
        async with connected(made, tls, GET) as (reader, _):
            assert (await answer_from(reader))[0] == 200


async def test_what_is_no_tls_is_told_so_or_cut(tmp_path: Path) -> None:
    """Plain HTTP hears what is spoken; a broken greeting an alert; each is counted by what was wrong."""
    async with tls_site(tmp_path) as (made, tls):
        async with raw(made, GET) as (reader, writer):
            status, body = await answer_from(reader)
            assert (status, b"tls_required" in body) == (400, True)
            assert await reader.read() == b""
            writer.write(b"more that nobody reads")
        async with raw(made, b"\x16\x03\x01\x00\x05hello") as (reader, _):
            assert (await reader.read())[:1] == b"\x15"
        endless = b"\x16\x03\x01" + struct.pack("!H", 2**14) + b"\x01\x01\xf0\x00" + b"x" * 70_000
        async with raw(made, endless) as (reader, _):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        while tls.faults.total() < 2:
            await asyncio.sleep(0.01)
        assert tls.handshake_count == 0


async def test_handshakes_of_a_crowd_have_turns_and_all_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of one of them in a turn of the loop, where a step takes all the time that they have."""
    monkeypatch.setattr("solowire.runtime.tls_port.SLICE_SECONDS", 0.0)
    async with tls_site(tmp_path) as (made, tls), contextlib.AsyncExitStack() as stack:
        opened = asyncio.gather(*(stack.enter_async_context(connected(made, tls, GET)) for _ in range(30)))
        most = before = 0
        while not opened.done():
            await asyncio.sleep(0)
            most, before = max(most, tls.handshake_count - before), tls.handshake_count
        assert most == 1
        for reader, _ in opened.result():
            assert (await answer_from(reader))[0] == 200


async def test_an_address_that_has_used_up_its_time_waits_and_another_does_not(tmp_path: Path) -> None:
    """It is cut when its time for a head is over, and leaves nothing behind."""
    async with tls_site(tmp_path, head_s=1.0) as (made, tls):
        tls._turns.charge("127.0.0.1", asyncio.get_running_loop().time(), 1e6)
        greeting = TlsSession(TRUSTING, is_server=False).start()
        async with raw(made, greeting) as (waiting, _):
            while not len(tls._turns):
                await asyncio.sleep(0.01)
            reader, other = await open_tls_connection(made.port, tls, "127.0.0.2")
            other.write(GET)
            assert (await answer_from(reader))[0] == 200
            other.transport.abort()
            assert len(tls._turns) == 1
            assert await waiting.read() == b""
            assert len(tls._turns) == 0


class _AskedGateway(OneShardGateway):
    """Knows when it was asked where the shard is now."""

    def __init__(self, address: ShardAddress) -> None:
        super().__init__(address)
        self.is_asked = asyncio.Event()

    @property
    def shards(self) -> dict[int, ShardAddress]:
        self.is_asked.set()
        return super().shards


async def test_the_relay_waits_for_the_word_of_a_new_certificate_and_takes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard shows another one than it is known by: the relay waits for that word, and nobody gets in before it."""
    monkeypatch.setattr("solowire.gateway.front.relay.OPEN_SECONDS", 2.0)
    tls = make_tls_port(tmp_path)
    echo = Echo(tls)
    shown = ShardAddress(0, "127.0.0.1", echo.port, "i", certificate=tls.certificate.fingerprint)
    gateway = _AskedGateway(msgspec.structs.replace(shown, certificate="0" * 64))
    try:
        async with asyncio.timeout(SECONDS), relay_front(gateway, tmp_path) as port:
            url = f"ws://127.0.0.1:{port}/ws?token=any"
            waiting = asyncio.create_task(connect(url, proxy=None).__aenter__())
            await gateway.is_asked.wait()
            assert not waiting.done()
            gateway.address = shown
            client = await waiting
            await client.send("over TLS")
            assert await client.recv() == "over TLS"
            await client.close()
            gateway.address = msgspec.structs.replace(shown, certificate="1" * 64)
            status, problem = await refusal(url)
            assert (status, problem["code"]) == (503, "shard_unavailable")
    finally:
        echo.close()


async def test_a_shard_that_says_nothing_is_named_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts, and does not shake hands: the client hears so, the log says why, and nothing fails behind that."""
    monkeypatch.setattr("solowire.gateway.front.relay.OPEN_SECONDS", 0.2)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    with socket.create_server(("127.0.0.1", 0)) as silent, capture_logs() as lines:
        address = ShardAddress(0, "127.0.0.1", silent.getsockname()[1], "i", certificate="0" * 64)
        async with asyncio.timeout(SECONDS), relay_front(OneShardGateway(address), tmp_path) as port:
            status, problem = await refusal(f"ws://127.0.0.1:{port}/ws?token=any")
            assert (status, problem["code"]) == (503, "shard_unavailable")
            accepted, _ = silent.accept()
            with accepted:
                accepted.settimeout(SECONDS)
                await asyncio.to_thread(read_to_end, accepted)
    assert [line["error"] for line in lines if line["event"] == "shard_unreachable"] == ["no answer within 0.2 s"]
    assert faults == []


def read_to_end(accepted: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):  # reset: the relay has cut it
        while accepted.recv(1000):
            pass
