"""Many connections of one address: they cost the gateway and the shard a bounded share, and nobody else a wait."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.system import ANSWER_SECONDS, System, open_session, running

CROWD = 8_300
CROWDED = "127.0.0.66"
"""Whence they come; everybody else comes from 127.0.0.1."""
MEGABYTE = 2**20
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
UPGRADE = f"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
BODY = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n["


@contextlib.asynccontextmanager
async def crowd(port: int, data: bytes, count: int = CROWD) -> AsyncIterator[list[socket.socket]]:
    """So many connections of one address, each of which sends this and no more."""
    loop = asyncio.get_running_loop()
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.socket()
            held.append(one)
            one.setblocking(False)
            one.bind((CROWDED, 0))
            with contextlib.suppress(ConnectionError):  # it is refused, which is what the test is about
                await loop.sock_connect(one, ("127.0.0.1", port))
                if data:
                    one.send(data)
        yield held
    finally:
        for one in held:
            one.close()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(
        tmp_path_factory.mktemp("crowded") / "data", shards=1, settings={"LISTEN__REQUEST_HEAD_TIMEOUT_S": 60}
    ) as started:
        yield started


@pytest.mark.parametrize("kind", ["silent at the gateway", "silent at the shard", "slow bodies"])
async def test_thousands_from_one_address_keep_nobody_else_waiting(crowded: System, kind: str) -> None:
    """The newest are refused beyond the address's share, and all others are served as if they weren't there."""
    token = crowded.token("slow-publisher", "publisher")
    port = crowded.port + 1 if kind == "silent at the shard" else crowded.port
    data = BODY % token.encode() if kind == "slow bodies" else b""
    async with crowd(port, data) as held, asyncio.timeout(ANSWER_SECONDS):
        refused = 0
        for one in held:
            try:
                one.recv(100)
            except BlockingIOError:
                continue  # it is waited for
            except ConnectionError:
                pass
            refused += 1
        assert refused > CROWD / 2
        for n in range(20):
            async with crowded.session(crowded.token(f"honest{n}"), {"subscriptions": ["custom.*"]}) as session:
                await crowded.publish({"type": "custom.x", "data": {"n": n}})
                assert (await session.events(1))[0]["data"] == {"n": n}


async def test_messages_that_never_end_cost_a_gateway_nothing(crowded: System) -> None:
    """Twelve users send tens of megabytes of one message each through the relay: each is ended at 64 KB."""
    gateway = crowded.pid_of("gateway")
    before = memory_of(gateway)
    frames = {
        "one frame": b"\x81\xff" + (2**40).to_bytes(8, "big") + bytes(4) + b"x" * MEGABYTE,
        "fragments": (b"\x01\xff" + (60_000).to_bytes(8, "big") + bytes(4) + b"x" * 60_000)
        + (b"\x00\xff" + (60_000).to_bytes(8, "big") + bytes(4) + b"x" * 60_000) * 16,
    }
    async with asyncio.timeout(2 * ANSWER_SECONDS):
        for start in frames.values():
            for n in range(12):
                reader, writer = await asyncio.open_connection("127.0.0.1", crowded.port)
                target = f"/ws?token={crowded.token(f'endless{n}')}"
                writer.write(f"GET {target} HTTP/1.1\r\n{UPGRADE}".encode() + start)
                with contextlib.suppress(ConnectionError):
                    for _ in range(30):
                        writer.write(b"x" * MEGABYTE)
                        await writer.drain()
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.transport.abort()
    assert memory_of(gateway) - before < 40 * MEGABYTE


async def test_an_unfinished_message_is_held_by_nobody_but_its_shard(crowded: System) -> None:
    """A hundred clients keep a message of 60 KB unfinished: the gateway holds none of it."""
    gateway = crowded.pid_of("gateway")
    before = memory_of(gateway)
    async with contextlib.AsyncExitStack() as stack:
        for n in range(100):
            url = f"ws://127.0.0.1:{crowded.port}/ws?token={crowded.token(f'half{n}')}"
            session = await stack.enter_async_context(open_session(url))
            await session.ask("welcome", type="hello", subscriptions=[])
            session.socket.transport.write(b"\x81\xfe" + (60_000).to_bytes(2, "big") + bytes(4) + b"x" * 59_000)
            assert await crowded.publish({"type": "custom.x", "data": {}})
        assert memory_of(gateway) - before < 100 * 40_000


def memory_of(pid: int) -> int:
    """Resident bytes."""
    [line] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS")]
    return int(line.split()[1]) * 1024
