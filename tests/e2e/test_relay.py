"""The relay: a client that can't go to its shard gets the same through the gateway, both ways, to the last code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from solowire.auth.tokens import MAX_TOKEN_BYTES
from solowire.backplane.messages import ShardAddress
from tests.support.relay_harness import OneShardGateway, relay_front
from tests.support.system import (
    ANSWER_SECONDS,
    Session,
    System,
    alive,
    has_ipv6,
    open_session,
    refusal,
    running,
    sockets_with,
)

MSGPACK = "solowire.v1.msgpack"
JSON = "solowire.v1.json"
CUSTOM = {"subscriptions": ["custom.*"]}
KILO = 1024


@pytest.fixture(scope="module")
def relaying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with little patience for sockets that nobody reads; the last test takes its gateway away."""
    settings = {
        "LISTEN__WRITE_TIMEOUT_S": 3,
        "LISTEN__SEND_BUFFER_BYTES": 32 * KILO,
        "SESSION__HEARTBEAT_INTERVAL_S": 3,
    }
    with running(tmp_path_factory.mktemp("relaying") / "data", shards=2, settings=settings) as started:
        yield started


def url_of(system: System, token: str) -> str:
    return f"ws://127.0.0.1:{system.port}/ws?token={token}"


@contextlib.asynccontextmanager
async def relayed(
    system: System, token: str, hello: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Session]:
    async with open_session(url_of(system, token), **options) as session:
        session.welcome = await session.ask("welcome", type="hello", **(hello or CUSTOM))
        yield session


async def test_a_relayed_client_gets_the_same_as_a_direct_one(system: System) -> None:
    """Two users of one shard, one direct and one relayed: the same events, the same answers."""
    direct_user, relayed_user = system.user_on(1, "direct"), system.user_on(1, "relayed")
    async with (
        system.session(system.token(direct_user, "viewer"), CUSTOM) as direct,
        relayed(system, system.token(relayed_user, "viewer")) as session,
    ):
        assert session.welcome.keys() == direct.welcome.keys()
        assert (session.welcome["user"], session.welcome["role"]) == (relayed_user, "viewer")
        await system.publish(*({"type": "custom.same", "data": {"n": n, "ü": "€😀"}} for n in range(50)))
        assert await session.events(50) == await direct.events(50)
        assert (await session.ask("pong", type="ping", id="x"))["id"] == "x"
        answer = await session.ask("subscriptions", type="subscribe", id=2, event_types=["audit_log", "zone_created"])
        assert (answer["id"], answer["subscriptions"]) == (2, ["custom.*", "zone_created"])
        assert [d["type"] for d in answer["denied"]] == ["audit_log"]
        assert (await session.ask("reply", type="stats"))["data"]["shard"] == 1


async def test_the_longest_token_opens_a_connection_both_ways(system: System) -> None:
    """A token of nearly 8 KB makes a ticket that is longer: it goes through the URL, and through the relay's header."""

    def long(user: str) -> str:
        return system.token(user, "viewer", scopes={"view": [f"{n:02}" + "x" * 106 for n in range(54)]})

    direct_user, relayed_user = system.user_on(0, "long-direct"), system.user_on(0, "long-relayed")
    assert MAX_TOKEN_BYTES - 200 < len(long(direct_user)) <= MAX_TOKEN_BYTES
    assert len((await system.negotiate(long(direct_user)))["ticket"]) > MAX_TOKEN_BYTES
    async with (
        system.session(long(direct_user), CUSTOM) as direct,
        relayed(system, long(relayed_user)) as session,
    ):
        assert (direct.welcome["user"], session.welcome["user"]) == (direct_user, relayed_user)


async def test_binary_passes_both_ways(system: System) -> None:
    """A MessagePack client speaks and hears binary frames through the relay."""
    async with relayed(system, system.token("binary"), subprotocols=[MSGPACK]) as session:
        assert session.socket.subprotocol == MSGPACK
        await session.say(type="ping", id=1)
        assert isinstance(await session.socket.recv(), bytes)
        await system.publish({"type": "custom.binary", "data": {"x": [1.5, None, "ü"]}})
        [event] = await session.events(1)
        assert event["data"] == {"x": [1.5, None, "ü"]}
        await session.socket.send(b"\xc1")
        assert (await session.hear("error"))["code"] == "invalid_message"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        ([JSON], JSON),
        ([MSGPACK, JSON], MSGPACK),
        (["x", JSON, MSGPACK], JSON),
        ([JSON + "+deflate", JSON], JSON + "+deflate"),
    ],
)
async def test_the_subprotocol_is_the_shards_choice(
    system: System, offered: list[Any] | None, chosen: str | None
) -> None:
    """The relay answers with the subprotocol that the shard chose."""
    async with relayed(system, system.token("choice"), subprotocols=offered) as session:
        assert session.socket.subprotocol == chosen


async def test_refusals_pass_through(system: System) -> None:
    """What the shard refuses before the upgrade is refused by the gateway, with the shard's status and words."""
    status, problem = await refusal(url_of(system, system.token("refused")), subprotocols=["graphql-ws"])
    assert (status, problem["code"]) == (400, "unsupported_subprotocol")
    assert MSGPACK in problem["hint"]


async def test_without_a_hello_the_defaults_come_through_the_relay(tmp_path: Path) -> None:
    """`wscat` and a URL are enough to watch events."""
    with running(tmp_path / "data", shards=1, settings={"SESSION__HELLO_TIMEOUT_S": 0.3}) as system:
        async with open_session(url_of(system, system.token("wscat", "viewer"))) as session:
            assert "zone_created" in (await session.hear("welcome"))["subscriptions"]


async def test_close_codes_and_reasons_pass_through(system: System, relaying: System) -> None:
    """A relayed client learns why it was closed: replaced, too big, bad protocol, expired, no heartbeat."""
    token = system.token("codes")
    async with relayed(system, token) as first:
        async with relayed(system, token) as second:
            assert await first.closed() == (4409, "replaced by a newer connection")
            await second.socket.send("x" * 100 * KILO)
            assert await second.closed() == (1009, "message too big")
        async with relayed(system, token) as third:
            for _ in range(10):
                await third.say(type="teleport")
            assert await third.closed() == (4400, "10 bad messages within a minute")
    async with relayed(system, system.token("codes", ttl=3)) as session:
        assert await session.closed() == (4401, "the token has expired")
    async with relayed(relaying, relaying.token("quiet")) as session:
        assert await session.closed() == (4408, "no answer to heartbeats")


class Upstream:
    """A gateway's port with its relay, and the shard behind it, here, so that a test sees what the shard is told."""

    def __init__(self, host: str = "127.0.0.1", *, origins: Collection[str] = ()) -> None:
        self.accepted: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.host = host
        self.origins = origins
        self.gateway = OneShardGateway(ShardAddress(0, host, 0, "boot"))
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self, folder: Path, *, shard: bool = True) -> AsyncIterator[Upstream]:
        async def accept(shard: ServerConnection) -> None:
            self.accepted.put_nowait(shard)
            await shard.wait_closed()

        async with (
            asyncio.timeout(ANSWER_SECONDS),
            serve(accept, self.host, 0) as server,
            relay_front(self.gateway, folder, origins=self.origins) as self.port,
        ):
            if shard:
                port = next(iter(server.sockets)).getsockname()[1]
                self.gateway.address = ShardAddress(0, self.host, port, "boot")
            yield self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws?token=t"

    async def told(self) -> tuple[int | None, str | None]:
        """The code and reason with which the shard's connection ended."""
        shard = await self.accepted.get()
        await shard.wait_closed()
        return shard.close_code, shard.close_reason


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, ""), (3000, ""), (4321, "grüße")])
async def test_close_codes_pass_upward(tmp_path: Path, code: int, reason: str) -> None:
    """The shard is told with what code and reason a relayed client went."""
    async with Upstream().running(tmp_path) as upstream:
        async with open_session(upstream.url) as session:
            await session.socket.close(code, reason)
        assert await upstream.told() == (code, reason)


async def test_a_cut_connection_is_cut_on_the_shard_too(tmp_path: Path) -> None:
    """One that was cut did not say good-bye, and nobody says it in its place."""
    async with Upstream().running(tmp_path) as upstream, open_session(upstream.url) as session:
        session.socket.transport.abort()
        assert await upstream.told() == (1006, "")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
async def test_a_shard_with_an_ipv6_address_is_reached(tmp_path: Path) -> None:
    """A shard that advertises a bare IPv6 address is relayed to like any other."""
    async with Upstream("::1").running(tmp_path) as upstream:
        async with open_session(upstream.url) as session:
            await session.socket.close(1001)
        assert (await upstream.told())[0] == 1001


async def test_a_shard_at_no_address_is_away(tmp_path: Path) -> None:
    """A shard that doesn't say where it is can't be reached, and the client is told that."""
    upstream = Upstream()
    upstream.gateway.address = ShardAddress(0, "", 1, "boot")
    async with upstream.running(tmp_path, shard=False):
        status, problem = await refusal(upstream.url)
    assert (status, problem["code"]) == (503, "shard_unavailable")


async def test_a_page_of_another_site_is_refused_and_ones_own_is_not(tmp_path: Path) -> None:
    """By its Origin: the gateway's own host whatever the port, those that the setting names, and who has none."""
    async with Upstream(origins=["https://app.example.com"]).running(tmp_path) as upstream:
        status, problem = await refusal(upstream.url, origin="https://evil.example")
        assert (status, problem["code"]) == (403, "origin_not_allowed")
        for origin in ("http://127.0.0.1:9999", "https://app.example.com", None):
            async with open_session(upstream.url, origin=origin):
                shard = await upstream.accepted.get()
            assert shard.request is not None
            assert "Origin" not in shard.request.headers, "the shard's host is another: it would refuse it"


@pytest.mark.parametrize("megabytes", [1, 20])
async def test_a_huge_message_ends_that_connection_alone(system: System, megabytes: int) -> None:
    """It is refused with 1009 as on the shard, however huge, and the client reads so; others notice nothing."""
    async with relayed(system, system.token("neighbour")) as other, asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        writer.write(
            f"GET /ws?token={system.token('huge')} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        size = megabytes * KILO * KILO
        writer.write(b"\x81\xff" + size.to_bytes(8, "big") + bytes(4) + b"x" * size)
        read = await reader.read()
        assert read[:4] == b"\x88\x11" + (1009).to_bytes(2, "big")
        writer.close()
        await system.publish({"type": "custom.neighbour", "data": {}})
        assert len(await other.events(1)) == 1


async def test_invalid_utf_8_ends_that_connection_alone(system: System) -> None:
    """Broken text is answered with 1007, and the user may come back."""
    token = system.token("latin")
    async with relayed(system, token) as session:
        await session.socket.send(b"\xff\xfe", text=True)
        assert await session.closed() == (1007, "text is not valid UTF-8")
    async with relayed(system, token) as session:
        assert await session.ask("pong", type="ping")


async def test_a_client_that_goes_is_gone_on_the_shard_too(relaying: System) -> None:
    """However a relayed client leaves, its shard's connection and the gateway's descriptors go with it."""
    gateway = relaying.pid_of("gateway")
    shards = range(relaying.port + 1, relaying.port + 1 + relaying.shards)
    ports = []
    await wait_for(relaying, 0)
    for n in range(20):
        async with relayed(relaying, relaying.token(f"leaver{n}")) as session:
            assert sockets_with(gateway, session.port) == 1
            ports.append(session.port)
            if n % 2:
                session.socket.transport.abort()
    await wait_for(relaying, 0)
    async with asyncio.timeout(ANSWER_SECONDS):
        while sockets_with(gateway, *ports, *shards):
            await asyncio.sleep(0.05)


async def test_a_relayed_client_that_never_reads_holds_up_nobody(relaying: System) -> None:
    """One relayed client reads nothing: the others get everything, and it is cut, on the gateway and on the shard."""
    hello = {"subscriptions": ["custom.bulk"]}
    gateway = relaying.pid_of("gateway")
    await wait_for(relaying, 0)
    async with relayed(relaying, relaying.token("reader"), hello) as reader:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * KILO)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", relaying.port))
        async with relayed(relaying, relaying.token("deaf"), hello, sock=sock, close_timeout=0.1) as deaf:
            deaf.socket.transport.pause_reading()
            assert sockets_with(gateway, deaf.port) == 1
            for start in range(0, 480, 60):
                events = (
                    {"type": "custom.bulk", "data": {"n": n, "x": "x" * 30_000}} for n in range(start, start + 60)
                )
                await relaying.publish(*events)
                assert [e["data"]["n"] for e in await reader.events(60)] == list(range(start, start + 60))
            await wait_for(relaying, 1, reader)
            async with asyncio.timeout(ANSWER_SECONDS):
                while sockets_with(gateway, deaf.port):
                    await asyncio.sleep(0.05)
        assert await reader.ask("pong", type="ping")


async def test_a_relayed_client_resumes_where_it_was(system: System) -> None:
    """A cursor from a direct connection is good through the relay, and the other way round."""
    token = system.token("wanderer")
    async with system.session(token, CUSTOM) as session:
        resume = {"epoch": session.welcome["epoch"], "cursor": session.welcome["cursor"]}
    await system.publish({"type": "custom.missed", "data": {"n": 1}})
    async with relayed(system, token, {**CUSTOM, "resume": resume}) as session:
        assert session.welcome["resumed"] is True
        frame = await session.hear("events")
        assert [e["data"]["n"] for e in frame["events"]] == [1]
    await system.publish({"type": "custom.missed", "data": {"n": 2}})
    resume["cursor"] = frame["cursor"]
    async with system.session(token, {**CUSTOM, "resume": resume}) as session:
        assert [e["data"]["n"] for e in await session.events(1)] == [2]


async def test_a_gateway_that_stops_sends_its_clients_to_another(relaying: System) -> None:
    """When the gateway stops, relayed clients get 1012 and may come back; direct ones notice nothing."""
    async with (
        relaying.session(relaying.token("unmoved"), CUSTOM) as direct,
        relayed(relaying, relaying.token("moved-1")) as one,
        relayed(relaying, relaying.token("moved-2"), subprotocols=[MSGPACK]) as two,
    ):
        stopped = relaying.pid_of("gateway")
        os.kill(stopped, signal.SIGTERM)
        assert (await one.closed())[0] == 1012
        assert (await two.closed())[0] == 1012
        assert await direct.ask("pong", type="ping")
        # Only when the old one has ended is an answer the new one's.
        await asyncio.to_thread(relaying.wait_until, lambda: not alive(stopped), "the gateway has ended")
        await asyncio.to_thread(relaying.wait_until, relaying._all_ready, "the gateway is back")
        assert await direct.ask("pong", type="ping")
        async with relayed(relaying, relaying.token("moved-1")) as back:
            await relaying.publish({"type": "custom.back", "data": {}})
            assert len(await back.events(1)) == len(await direct.events(1)) == 1


async def wait_for(system: System, connections: int, reader: Session | None = None) -> None:
    """Until the shards together have so many. reader: a session that must answer its pings meanwhile."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            if reader is not None:
                await reader.ask("pong", type="ping")
            stats = [await system.shard_stats(shard) for shard in range(system.shards)]
            if sum(shard["connections"] for shard in stats) == connections:
                return
            await asyncio.sleep(0.05)
