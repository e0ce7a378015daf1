"""The fault proxy: what it forwards is what it was given, and its faults are those that were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.chaos.processes import free_block
from tests.chaos.proxy import Link

SECONDS = 30.0
SOON = 0.5

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(1000):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """A link to a server that says what it hears."""
    port = free_block()
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    link = Link("test", port + 1, port, Random(1))
    await link.start()
    yield link
    await link.close()
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def connected(link: Link) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def says(stream: Stream, text: bytes) -> bytes:
    stream[1].write(text)
    async with asyncio.timeout(SECONDS):
        return await stream[0].readexactly(len(text))


async def is_cut(stream: Stream) -> bool:
    async with asyncio.timeout(SECONDS):
        try:
            return await stream[0].read() == b""
        except ConnectionResetError:
            return True


async def test_it_forwards(link: Link) -> None:
    """A megabyte comes back as it was sent."""
    data = Random(2).randbytes(2**20)
    async with connected(link) as (reader, writer):
        writer.write(data)
        async with asyncio.timeout(SECONDS):
            assert await reader.readexactly(len(data)) == data


async def test_an_end_is_passed_on(link: Link) -> None:
    """Who has said everything still hears the answer."""
    async with connected(link) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        async with asyncio.timeout(SECONDS):
            assert await reader.read() == b"last words"


async def test_cut_all(link: Link) -> None:
    """Every connection is gone, and new ones are welcome."""
    async with connected(link) as one, connected(link) as two:
        await says(one, b"1")
        await says(two, b"2")
        assert link.cut() == 2
        assert await is_cut(one)
        assert await is_cut(two)
    async with connected(link) as three:
        assert await says(three, b"3") == b"3"


async def test_cut_half(link: Link) -> None:
    """Half of them are gone, the others don't notice."""
    async with connected(link) as one, connected(link) as two:
        await says(one, b"1")
        await says(two, b"2")
        assert link.cut(0.5) == 1
        cut = [asyncio.create_task(is_cut(stream)) for stream in (one, two)]
        done, alive = await asyncio.wait(cut, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
        assert (len(done), len(alive)) == (1, 1)
        for task in alive:
            task.cancel()
        await asyncio.gather(*alive, return_exceptions=True)


@pytest.mark.parametrize("direction", ["up", "down", "both"])
async def test_stall(link: Link, direction: str) -> None:
    """Nothing comes back while it lasts, all of it afterwards, on the same connection."""
    async with connected(link) as stream:
        await says(stream, b"before")
        stalled = asyncio.create_task(link.stall(3 * SOON, direction))
        await asyncio.sleep(0)
        stream[1].write(b"after")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await stream[0].read(1)
        assert not stalled.done()
        async with asyncio.timeout(SECONDS):
            assert await stream[0].readexactly(5) == b"after"
        await stalled


async def test_a_stall_catches_newcomers(link: Link) -> None:
    """A whole link that is stalled takes connections, and forwards none of them."""
    stalled = asyncio.create_task(link.stall(2 * SOON))
    await asyncio.sleep(0)
    async with connected(link) as stream:
        assert await says(stream, b"late") == b"late"
        assert stalled.done()


async def test_a_cut_ends_a_stalled_connection(link: Link) -> None:
    """Also what is held is gone with it."""
    async with connected(link) as stream:
        await says(stream, b"before")
        stalled = asyncio.create_task(link.stall(SECONDS))
        await asyncio.sleep(0)
        stream[1].write(b"held")
        link.cut()
        assert await is_cut(stream)
        stalled.cancel()
        await asyncio.gather(stalled, return_exceptions=True)


async def test_no_server(link: Link) -> None:
    """A client of a server that is not there is cut off."""
    other = Link("away", link.port + 1, link.port + 2, Random(1))
    await other.start()
    async with connected(other) as stream:
        assert await is_cut(stream)
    await other.close()
