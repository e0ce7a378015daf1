"""Old clients that the gateway carries: what they are closed with, and that they are held while their shard is gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from solowire.backplane.messages import ShardAddress
from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.gateway.front.relay import Relay
from solowire.protocol.dialect_requests import DialectRequests
from tests.support.relay_harness import OneShardGateway, relay_front

SECONDS = 20.0
HELLO = '{"type":"hello","subscriptions":["dns.*"]}'
DIALECTS = DialectRequests(LegacyDialect(DNS.catalog, datetime(2027, 12, 31, tzinfo=UTC), "/guide"))


class FakeShard:
    """Accepts everybody, says one word, and can go without another."""

    def __init__(self) -> None:
        self.sockets: list[ServerConnection] = []
        self.messages: list[str | bytes] = []

    async def handle(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        await socket.send("{}")
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.messages.append(await socket.recv())

    def vanish(self) -> None:
        for socket in self.sockets:
            socket.transport.abort()


class Place:
    def __init__(self, port: int, shard: FakeShard, gateway: OneShardGateway, relay: Relay) -> None:
        self.port = port
        self.shard = shard
        self.gateway = gateway
        self.relay = relay
        self.opened: list[ClientConnection] = []

    async def open_page(self, path: str = "/api/websocket/ws/admin", **options: Any) -> ClientConnection:
        """As a browser opens it."""
        origin = Origin(f"http://127.0.0.1:{self.port}")
        uri = f"ws://127.0.0.1:{self.port}{path}?token=x"
        socket = await connect(uri, origin=origin, proxy=None, ping_interval=None, **options)
        self.opened.append(socket)
        assert await socket.recv() == "{}"
        return socket

    async def say(self, client: ClientConnection, message: str | list[str]) -> None:
        """Returns when the shard has it. message: a list's parts are frames of one."""
        await client.send(message)
        whole = "".join(message)
        async with asyncio.timeout(SECONDS):
            while whole not in self.shard.messages:
                await asyncio.sleep(0.005)

    async def wait_for_held(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.relay.held) != count:
                await asyncio.sleep(0.005)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    shard, relays = FakeShard(), list[Relay]()
    async with serve(shard.handle, "127.0.0.1", 0, compression=None) as server:  # as a shard does
        port = next(iter(server.sockets)).getsockname()[1]
        gateway = OneShardGateway(ShardAddress(0, "127.0.0.1", port, "boot"))
        async with relay_front(gateway, tmp_path, relays=relays, dialects=DIALECTS) as front_port:
            made = Place(front_port, shard, gateway, relays[0])
            yield made
            for socket in made.opened:
                await socket.close()


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
    return socket.close_code


async def test_the_shard_sees_the_page_s_own_path_and_no_token(place: Place) -> None:
    await place.open_page("/ws/health/17")
    request = place.shard.sockets[0].request
    assert request is not None
    assert request.path == "/ws/health/17"
    assert request.headers["X-Solowire-Ticket"] == "ticket"
    assert "python" in request.headers["User-Agent"].lower()


async def test_a_page_whose_shard_has_gone_is_held_and_then_told_to_come_at_once(place: Place) -> None:
    """With 1000, which alone it comes back on with its newest token; not before there is somebody to take it."""
    page = await place.open_page()
    place.shard.vanish()
    async with asyncio.timeout(SECONDS):
        while not len(place.relay.held):
            await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(page.recv(), 0.5)
    place.gateway.return_delay = 0.0
    assert await close_code(page) == 1000


async def test_a_page_that_goes_while_it_is_held_is_forgotten(place: Place) -> None:
    page = await place.open_page()
    place.shard.vanish()
    async with asyncio.timeout(SECONDS):
        while not len(place.relay.held):
            await asyncio.sleep(0.01)
        page.transport.abort()
        while len(place.relay.held):
            await asyncio.sleep(0.01)


async def test_others_are_told_at_once(place: Place) -> None:
    """A client of solowire.v1 comes back by itself, with its cursor."""
    client = await place.open_page("/ws", subprotocols=[Subprotocol("solowire.v1.json")])
    place.shard.vanish()
    assert await close_code(client) == 1012


@pytest.mark.parametrize("words", [None, '{"type":"ping"}', ['{"type":"sub', 'scribe"}'], "nonsense"])
async def test_a_page_at_the_shared_path_is_a_page(place: Place, words: str | list[str] | None) -> None:
    """It says nothing, or what is no hello."""
    page = await place.open_page("/ws")
    if words is not None:
        await place.say(page, words)
    place.shard.vanish()
    await place.wait_for_held(1)
    place.gateway.return_delay = 0.0
    assert await close_code(page) == 1000


@pytest.mark.parametrize("words", [HELLO, ['{"type":', '"hello"', "}"]])
async def test_one_that_says_hello_at_the_shared_path_is_like_any_other(place: Place, words: str | list[str]) -> None:
    client = await place.open_page("/ws")
    await (await client.ping())
    await place.say(client, words)
    await place.say(client, '{"type":"ping"}')
    place.shard.vanish()
    assert await close_code(client) == 1012


async def test_one_that_says_hello_while_it_is_held_is_told_at_once(place: Place) -> None:
    """Nobody answers it, and it comes back by itself."""
    client = await place.open_page("/ws")
    place.shard.vanish()
    await place.wait_for_held(1)
    await client.send(HELLO)
    assert await close_code(client) == 1012
    assert len(place.relay.held) == 0


async def test_a_gateway_that_ends_closes_pages_one_after_the_other(place: Place) -> None:
    """With 1000, at the pace that it is given; the others then, with 1012."""
    pages = [await place.open_page() for _ in range(4)]
    pages.append(await place.open_page("/ws"))
    other = await place.open_page("/ws")
    await place.say(other, HELLO)
    began = time.monotonic()
    await place.relay.drain_dialects(10.0, 60.0)
    assert time.monotonic() - began >= 0.4
    assert [await close_code(page) for page in pages] == [1000] * 5
    assert place.relay.open_count == 1
    place.relay.close()
    assert await close_code(other) == 1012
