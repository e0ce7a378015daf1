"""Handshakes at a shard's client port, over a real listener: who is let in, who is refused, and what is noted of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from websockets.frames import Frame, Opcode

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.algorithms.token_bucket import Rate
from solowire.auth.failed_auth_limiter import FailedAuthLimiter
from solowire.auth.tokens import TICKET_SECONDS
from solowire.protocol import messages as c
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Codec
from solowire.protocol.opening_handshake import HEAD_END
from solowire.runtime.http_server import listen
from solowire.workers.connections.connection import Connection
from solowire.workers.net.client_listener import AcceptedSocket, ClientListener
from solowire.workers.net.client_port import ClientPort
from solowire.workers.net.tcp_sockets import TcpSockets
from solowire.workers.shard import Shard
from tests.support.shard_harness import TOKENS, WALL, ShardHarness

SECONDS = 30.0
PEER = "127.0.0.1"
MANY = Rate(1000.0, 1000.0)
UPGRADE = (
    b"Host: shard.example:8001\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


class Answer:
    """What a client hears. code: of a refusal, else ""."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(HEAD_END)
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split(b" ")[1])
        self.headers = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
        is_problem = self.headers.get(b"content-type") == b"application/problem+json"
        self.code = msgspec.json.decode(self.body)["code"] if is_problem else ""

    @property
    def told(self) -> tuple[int, str]:
        return self.status, self.code


class Site:
    """A client port before a shard that nobody else reaches, on sockets of its own. lines: of the audit log."""

    def __init__(self, *, wrong_tokens: Rate = MANY, allowed_origins: tuple[str, ...] = ()) -> None:
        self.lines: list[dict[str, Any]] = []
        self.bench = ShardHarness()
        self.shard = self.bench.shard
        # A shard's clock is the loop's.
        self.shard.set_clock(WALL + self.bench.now - asyncio.get_running_loop().time(), self.bench.now)
        self.sockets = TcpSockets()
        self.changes = 0
        self.port = ClientPort(
            self.shard,
            self.sockets,
            self._change,
            wrong_tokens=FailedAuthLimiter(wrong_tokens),
            allowed_origins=allowed_origins,
            audit=lambda event, **fields: self.lines.append({"event": event, **fields}),
        )
        listening = listen("127.0.0.1", 0)
        self.number: int = listening.getsockname()[1]
        self.listener = ClientListener(
            listening,
            self.port.handle,
            AcceptLimiter(100, None),
            head_s=SECONDS,
            socket_count=lambda: len(self.sockets),
            max_sockets=1000,
        )
        self.listener.start()

    def _change(self) -> None:
        self.changes += 1

    def close(self) -> None:
        self.listener.finish()
        self.sockets.finish()

    def ticket(self, user: str = "ann", address: str = "192.0.2.7", age: float = 0.0, shard: int = 0) -> str:
        wall = self.bench.now + WALL
        identity = TOKENS.identify(self.bench.sign_token(user), wall)
        return TOKENS.issue_ticket(identity, shard, f"{user}-{age}", wall - age, address)

    async def ask(self, first: str, headers: bytes = UPGRADE, version: str = "1.1") -> Answer:
        """What a client hears that asks so, and has closed then."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number)
        writer.write(f"{first} HTTP/{version}\r\n".encode() + headers + b"\r\n")
        answer = Answer(await asyncio.wait_for(reader.readuntil(HEAD_END), SECONDS) + await _rest(reader))
        writer.close()
        return answer

    async def refusal(self, ticket: str) -> tuple[int, str]:
        return (await self.ask("GET /ws", UPGRADE + b"X-Solowire-Ticket: %s\r\n" % ticket.encode())).told

    @contextlib.asynccontextmanager
    async def joined(
        self, ticket: str, headers: bytes = b"", behind: bytes = b""
    ) -> AsyncIterator[tuple[Connection, Answer, asyncio.StreamReader, asyncio.StreamWriter]]:
        """A client that is let in. headers: more of them; behind: sent together with the handshake."""
        before = set(self.shard.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number)
        writer.write(f"GET /ws?ticket={ticket} HTTP/1.1\r\n".encode() + UPGRADE + headers + b"\r\n" + behind)
        try:
            answer = Answer(await asyncio.wait_for(reader.readuntil(HEAD_END), SECONDS))
            [connection] = set(self.shard.connections) - before
            yield connection, answer, reader, writer
        finally:
            writer.transport.abort()

    async def until_gone(self, connection: Connection) -> None:
        async with asyncio.timeout(SECONDS):
            while connection in self.shard.connections:
                await asyncio.sleep(0.001)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(SECONDS):
        return await reader.read()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with contextlib.closing(Site()) as site:
        yield site


def masked(message: str) -> bytes:
    return Frame(Opcode.TEXT, message.encode()).serialize(mask=True)


# ---------------------------------------------------------------------------------------------------- who is let in


async def test_who_shows_a_ticket_is_let_in(site: Site) -> None:
    """It hears which shard it is at; its slot is taken until it goes, and then the shard is as before."""
    async with site.joined(site.ticket("ann")) as (connection, answer, _, _):
        assert answer.status == 101
        assert answer.headers[b"x-solowire-shard"] == b"0"
        assert answer.headers[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert b"sec-websocket-protocol" not in answer.headers
        assert (connection.identity.user, connection.codec, connection.transport) == ("ann", Codec.json, "direct")
        assert connection.address == "192.0.2.7"
        assert not site.shard.is_empty
        changes = site.changes
        assert changes
    await site.until_gone(connection)
    assert site.changes > changes
    assert site.shard.is_empty
    assert site.lines == []


async def test_what_a_client_offers_is_chosen_from(site: Site) -> None:
    """The codec that the shard likes of those that it offers, in however many headers; a relay says that it is one."""
    offers = b"Sec-WebSocket-Protocol: other, solowire.v1.msgpack\r\nSec-WebSocket-Protocol: another\r\n"
    async with site.joined(site.ticket(), offers + b"X-Solowire-Relayed: 1\r\n") as (connection, answer, _, _):
        assert answer.headers[b"sec-websocket-protocol"] == b"solowire.v1.msgpack"
        assert (connection.codec, connection.transport) == (Codec.msgpack, "relayed")


async def test_what_is_sent_with_the_handshake_is_heard(site: Site) -> None:
    """A hello that does not wait for the answer begins the connection."""
    hello = masked('{"type":"hello","subscriptions":["custom.a"],"id":7}')
    async with site.joined(site.ticket(), behind=hello) as (connection, _, _, _):
        [welcome] = [m for m in site.bench.read_messages(connection) if isinstance(m, c.Welcome)]
        assert (welcome.id, welcome.subscriptions) == (7, ["custom.a"])


async def test_what_comes_in_reaches_the_shard_and_what_breaks_is_closed(site: Site) -> None:
    """A message is answered; a frame that is none ends the connection with its code."""
    async with site.joined(site.ticket()) as (connection, _, _, writer):
        writer.write(masked('{"type":"ping","id":"p"}'))
        async with asyncio.timeout(SECONDS):
            while not (heard := site.bench.read_messages(connection)):
                await asyncio.sleep(0.001)
        assert [m.id for m in heard] == ["p"]
        writer.write(b"\x81\x01x")
        async with asyncio.timeout(SECONDS):
            while (code := site.bench.close_code(connection)) is None:
                await asyncio.sleep(0.001)
        assert code == CloseCode.protocol_error


@pytest.mark.parametrize(
    "query", ["ticket={}", "a=1&ticket={}", "ticket={}&a=1", "ticket={}?ticket={}", "ticket=&ticket={}", "encoded"]
)
async def test_a_ticket_in_the_url(site: Site, query: str) -> None:
    """Alone, as gateways write it, or beside whatever else stands there, it is the same ticket."""
    site.bench.grant_lease(spare=0)
    ticket = site.ticket("ann")
    encoded = "ticket=" + ticket.replace(".", "%2E")
    asked = encoded if query == "encoded" else query.format(ticket, ticket)
    assert (await site.ask(f"GET /ws?{asked}")).told == (503, "over_limit")
    assert [line["user"] for line in site.lines] == ["ann"]


# --------------------------------------------------------------------------------------------------- who is refused


async def test_who_shows_a_good_ticket_is_refused_by_name(site: Site) -> None:
    """The audit line tells user, role and the address that the gateway saw, not the gateway's own."""
    site.bench.grant_lease(spare=0)
    assert await site.refusal(site.ticket("ann")) == (503, "over_limit")
    who = {"user": "ann", "role": "viewer", "address": "192.0.2.7"}
    assert site.lines == [{"event": "refused", "action": "connect", "code": "over_limit", **who}]
    assert site.shard.totals["connections_rejected"] == 1


async def test_a_refusal_for_want_of_a_slot_is_told_to_the_router_at_once(site: Site) -> None:
    """The first under a lease has the router asked; those after it, of which it hears anyway, cost nothing."""
    site.bench.grant_lease(spare=0)
    site.shard.lease_usage_report(site.bench.now, is_heartbeat=True)
    for user in ("ann", "ben", "cid"):
        assert await site.refusal(site.ticket(user)) == (503, "over_limit")
        if site.changes:
            site.shard.lease_usage_report(site.bench.now)  # as it is sent then
    assert site.changes == 1


@pytest.mark.parametrize("query", ["", "?", "?ticket=", "?ticket", "?tickets=x", "?a=ticket=x"])
async def test_no_ticket_in_the_url(site: Site, query: str) -> None:
    """A query that has none is told so."""
    assert (await site.ask(f"GET /ws{query}")).told == (401, "missing_ticket")


async def test_a_ticket_that_proves_nothing_is_refused_by_its_address(site: Site) -> None:
    """Garbage, or a ticket that has expired, names nobody: the peer is what is known."""
    assert await site.refusal("garbage") == (401, "invalid_token")
    assert await site.refusal(site.ticket("ann", age=TICKET_SECONDS + 5)) == (401, "ticket_expired")
    about = {"event": "refused", "action": "connect", "address": PEER}
    assert site.lines == [{**about, "code": "invalid_token"}, {**about, "code": "ticket_expired"}]


async def test_a_ticket_is_good_once(site: Site) -> None:
    """Shown again, also by the same client, it opens nothing."""
    ticket = site.ticket("ann")
    async with site.joined(ticket):
        assert (await site.refusal(ticket))[0] == 401
        assert len(site.shard.connections) == 1


async def test_wrong_tickets_of_one_address_are_refused_after_some() -> None:
    """Two are told that they are wrong; then it is 429 with a time, and right ones go on working."""
    with contextlib.closing(Site(wrong_tokens=Rate(0.01, 2))) as site:
        for told in [(401, "invalid_token")] * 2 + [(429, "too_many_auth_failures")] * 2:
            assert await site.refusal("garbage") == told
        assert b"retry-after" in (await site.ask("GET /ws?ticket=garbage")).headers
        assert await site.refusal(site.ticket("ann", shard=1)) == (403, "wrong_shard")
        async with site.joined(site.ticket("ann")) as (_, answer, _, _):
            assert answer.status == 101
        codes = [line["code"] for line in site.lines]
        assert codes == ["invalid_token"] * 2 + ["too_many_auth_failures"] * 3 + ["wrong_shard"]


@pytest.mark.parametrize(
    ("first", "headers", "version", "told"),
    [
        ("GET /", UPGRADE, "1.1", (404, "not_found")),
        ("GET /ws/", UPGRADE, "1.1", (404, "not_found")),
        ("GET /stats", b"Host: x\r\n", "1.1", (404, "not_found")),
        ("GET /metrics", b"Host: x\r\n", "1.1", (404, "not_found")),
        ("GET /healthz", UPGRADE, "1.1", (404, "not_found")),
        ("GET /ws", b"Host: x\r\n", "1.1", (426, "upgrade_required")),
        ("GET /ws", b"Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", "1.1", (426, "upgrade_required")),
        ("GET /ws", UPGRADE.replace(b"13", b"12"), "1.1", (426, "websocket_version_not_supported")),
        ("GET /ws", UPGRADE, "1.0", (505, "http_version_not_supported")),
        ("POST /ws", UPGRADE, "1.1", (405, "method_not_allowed")),
        ("GET /ws", UPGRADE + b"Host: y\r\n", "1.1", (400, "bad_handshake")),
        ("GET /ws", UPGRADE + b"Host: y\r\nOrigin: http://x\r\n", "1.1", (400, "bad_handshake")),
        ("GET /ws", UPGRADE + b"X-Solowire-Ticket: a\r\nX-Solowire-Ticket: b\r\n", "1.1", (400, "bad_handshake")),
        ("GET /ws", UPGRADE + b"Origin: https://evil.example\r\n", "1.1", (403, "origin_not_allowed")),
        ("GET /ws", UPGRADE + b"Sec-WebSocket-Protocol: other\r\n", "1.1", (400, "unsupported_subprotocol")),
        ("GET /ws", UPGRADE + b"X: a\r\n b\r\n", "1.1", (400, "bad_handshake")),
        ("GET /ws", UPGRADE + b"X: y\r\n" * 100, "1.1", (431, "too_many_headers")),
    ],
)
async def test_a_handshake_that_is_none_is_refused_before_its_ticket_is_looked_at(
    site: Site, first: str, headers: bytes, version: str, told: tuple[int, str]
) -> None:
    """It costs no slot and no ticket; the answer is whole, and says that the connection ends."""
    with_ticket = f"{first}?ticket={site.ticket('ann')}"
    answer = await site.ask(with_ticket, headers, version)
    assert answer.told == told
    assert b"close" in answer.headers[b"connection"]
    assert int(answer.headers[b"content-length"]) == len(answer.body)
    assert site.shard.is_empty
    assert [(line["code"], line["address"]) for line in site.lines] == [(told[1], PEER)]
    async with site.joined(site.ticket("ann")) as (_, good, _, _):
        assert good.status == 101, "the ticket is used up"


async def test_pages_of_the_own_host_and_of_those_that_are_allowed_may_connect() -> None:
    """Whatever the port of the one; the others as the operator wrote them."""
    with contextlib.closing(Site(allowed_origins=("https://app.example",))) as site:
        for origin in (b"https://shard.example", b"http://shard.example:3000", b"https://app.example"):
            async with site.joined(site.ticket(origin.decode()), b"Origin: %s\r\n" % origin) as (_, answer, _, _):
                assert answer.status == 101


async def test_refusals_end_the_connection_for_both(site: Site) -> None:
    """A hundred leave no socket, no slot and no entry."""
    before = len(os.listdir("/proc/self/fd"))
    for n in range(100):
        assert (await site.refusal("garbage" if n % 2 else site.ticket("ann", shard=1)))[0] in (401, 403)
    async with asyncio.timeout(SECONDS):
        while site.listener.pending_count or len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.001)
    assert site.shard.is_empty


# -------------------------------------------------------------------------------------------------------- who has gone


async def test_a_client_that_has_gone_leaves_no_slot(site: Site) -> None:
    """Its handshake can't be answered any more: neither a connection stays, nor the user's place."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    head = f"GET /ws?ticket={site.ticket()} HTTP/1.1\r\n".encode() + UPGRADE + b"\r\n"
    assert site.port.handle(AcceptedSocket(ours, PEER, head, b"")) is None
    assert ours.fileno() == -1
    assert site.shard.is_empty
    assert not site.shard.connections
    assert site.shard._users.get("ann") is None
    assert len(site.sockets) == 0


async def test_a_fault_of_ours_leaves_neither_a_slot_nor_a_socket(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw ends that handshake alone, and is in the log; the next one is let in."""
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as broken:

        def fail(*_: object, **__: object) -> Connection:
            raise ZeroDivisionError

        broken.setattr(Shard, "open_connection", fail)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.number)
        writer.write(f"GET /ws?ticket={site.ticket()} HTTP/1.1\r\n".encode() + UPGRADE + b"\r\n")
        await _rest(reader)
        writer.close()
        async with asyncio.timeout(SECONDS):
            while len(os.listdir("/proc/self/fd")) > before:
                await asyncio.sleep(0.001)
    assert len(site.sockets) == 0
    assert site.shard.is_empty
    assert site.shard._users.get("ann") is None
    async with site.joined(site.ticket("ben")) as (_, answer, _, _):
        assert answer.status == 101


# -------------------------------------------------------------------------------------------------------------- probes


async def test_a_load_balancer_may_ask_how_it_is(site: Site) -> None:
    """Without a ticket, and as often as it likes: nothing is noted, and nothing told of anybody."""
    for path, body in (("/healthz", b'{"status":"ok"}'), ("/readyz", b'{"status":"ready"}')):
        answer = await site.ask(f"GET {path}", b"Host: x\r\n")
        assert (answer.status, answer.body) == (200, body)
        answer = await site.ask(f"HEAD {path}", b"Host: x\r\n", "1.0")
        assert (answer.status, answer.body, answer.headers[b"content-length"]) == (200, b"", b"%d" % len(body))
        assert answer.headers[b"connection"] == b"close"
    assert site.lines == []
    assert site.shard.totals["connections_rejected"] == 0


async def test_a_shard_that_is_not_ready_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lives, and is not to be sent anybody yet."""
    monkeypatch.setattr(Shard, "is_ready", False)
    answer = await site.ask("GET /readyz", b"Host: x\r\n")
    assert (answer.status, answer.body) == (503, b'{"status":"starting"}')
    assert (await site.ask("GET /healthz", b"Host: x\r\n")).status == 200
