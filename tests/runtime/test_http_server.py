"""The server beneath: handshakes that don't finish are cut, and keep nobody else out meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from solowire.errors import ConfigError
from solowire.runtime.http_server import HEAD_BYTES, WebServer, listen

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer_all(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def serving(handshake_s: float) -> AsyncIterator[int]:
    sock = listen("127.0.0.1", 0)
    server = WebServer(answer_all, sock, handshake_s=handshake_s)
    server.start()
    try:
        async with asyncio.timeout(30):
            yield sock.getsockname()[1]
    finally:
        await server.finish()


async def ended_after(port: int, sent: bytes, answered: bytes = b"") -> float:
    """Seconds until the server ends a connection on which this was sent, after what it `answered` to it."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        got = await reader.read()
        assert got.startswith(answered)
        assert answered or not got
    writer.close()
    return loop.time() - begin


async def test_a_handshake_that_does_not_finish_is_cut() -> None:
    """One that sends nothing, half a head, or nothing more after an answer is closed after the set time."""
    async with serving(0.5) as port:
        took = await asyncio.gather(
            ended_after(port, b""),
            ended_after(port, b"G"),
            ended_after(port, REQUEST[:20]),
            ended_after(port, REQUEST, b"HTTP/1.1 204"),
            ended_after(port, REQUEST + REQUEST[:10], b"HTTP/1.1 204"),
        )
    assert all(seconds > 0.4 for seconds in took), took


async def test_a_head_that_comes_slowly_is_cut() -> None:
    """A byte now and then wins no time."""
    async with serving(0.5) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ended = asyncio.ensure_future(reader.read())
        with contextlib.suppress(ConnectionError):
            while not ended.done():
                writer.write(b"x")
                await asyncio.sleep(0.05)
            assert await ended == b""
        writer.close()


async def test_those_who_send_nothing_keep_nobody_out() -> None:
    """With 500 silent connections the next request is answered at once, and not when they are cut."""
    async with serving(600.0) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(500)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        assert (await reader.read(12)) == b"HTTP/1.1 204"
        for _, other in [*silent, (reader, writer)]:
            other.close()


async def test_a_head_has_a_bound() -> None:
    """A head that is too long is refused before it fills the memory."""
    async with serving(5.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"x-more: " + b"x" * HEAD_BYTES)
        assert (await reader.read(12)) == b"HTTP/1.1 431"
        writer.close()


@pytest.mark.parametrize("host", ["nosuch.invalid", "http://x", "a..b", "192.0.2.1", "x" * 70 + ".invalid"])
def test_a_host_that_is_not_here_is_one_line_with_the_way_out(host: str) -> None:
    """Whatever the resolver or the kernel make of it, it is the host that is to be changed, and not the port."""
    with pytest.raises(ConfigError, match="--host") as refused:
        listen(host, 0)
    assert "--port" not in str(refused.value)
