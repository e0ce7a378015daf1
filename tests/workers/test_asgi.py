"""The shard's ASGI application beside its sockets: whom it refuses, and what it writes down of that."""

from __future__ import annotations

import asyncio
from errno import EMFILE
from typing import Any

import msgspec
import pytest
from workers.asgi import App

from solowire.rates import Rate
from solowire.tokens import TICKET_SECONDS
from tests.workers.bench import TOKENS, WALL, Bench

PEER = "198.51.100.9"


class Handshakes:
    """In the place of the sockets, as far as a handshake needs them."""

    def __init__(self) -> None:
        self.reserved: list[int] = []
        self.lost = False

    async def alone(self, host: str, port: int) -> None:
        pass

    def reserve(self, host: str, port: int) -> int | None:
        if self.lost:
            return None
        self.reserved.append(port)
        return port

    def drop(self, handshake: int) -> None:
        self.reserved.remove(handshake)


class Site:
    """An application over a shard that nobody else reaches. lines: of the audit log."""

    def __init__(self, **options: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.bench = Bench()
        # A shard's clock is the loop's.
        self.bench.shard.set_clock(WALL + self.bench.now - asyncio.get_running_loop().time(), self.bench.now)
        self.sockets = Handshakes()
        self.changes = 0
        self.app = App(self.bench.shard, self.sockets, TOKENS, bytes, self._change, audit=self._note, **options)  # type: ignore[arg-type]

    def _change(self) -> None:
        self.changes += 1

    def _note(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})

    def ticket(self, user: str = "ann", address: str = "192.0.2.7", age: float = 0.0, shard: int = 0) -> str:
        wall = self.bench.now + WALL
        identity = TOKENS.identify(self.bench.token(user), wall)
        return TOKENS.issue_ticket(identity, shard, f"{user}-{age}", wall - age, address)

    async def handshake(self, ticket: str) -> tuple[int, str]:
        """Status and code of the refusal."""
        headers = [(b"x-solowire-ticket", ticket.encode())]
        return await self._ask("websocket", "/ws", headers)

    async def handshake_by(self, query: str) -> tuple[int, str]:
        """As a client without headers of its own does it."""
        return await self._ask("websocket", "/ws", [], query)

    async def get(self, path: str, token: str, *headers: tuple[bytes, bytes]) -> tuple[int, str]:
        """Status, and the code of a refusal or ""."""
        return await self._ask("http", path, [(b"authorization", f"Bearer {token}".encode()), *headers])

    async def _ask(self, type: str, path: str, headers: list[tuple[bytes, bytes]], query: str = "") -> tuple[int, str]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        def send(message: dict[str, Any]) -> Any:
            sent.append(message)
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

        scope = {"type": type, "path": path, "headers": headers, "query_string": query.encode(), "subprotocols": []}
        await self.app({**scope, "client": (PEER, 1)}, receive, send)
        body = msgspec.json.decode(sent[1]["body"])
        return sent[0]["status"], body.get("code", "")


async def test_who_shows_a_good_ticket_is_refused_by_name() -> None:
    """The audit line tells user, role and the address that the gateway saw, not the gateway's own."""
    site = Site()
    site.bench.lease(spare=0)
    assert await site.handshake(site.ticket("ann")) == (503, "over_limit")
    who = {"user": "ann", "role": "viewer", "address": "192.0.2.7"}
    assert site.lines == [{"event": "refused", "action": "connect", "code": "over_limit", **who}]


@pytest.mark.parametrize(
    "query", ["ticket={}", "a=1&ticket={}", "ticket={}&a=1", "ticket={}?ticket={}", "ticket=&ticket={}", "encoded"]
)
async def test_a_ticket_in_the_url(query: str) -> None:
    """Alone, as gateways write it, or beside whatever else stands there, it is the same ticket."""
    site = Site()
    site.bench.lease(spare=0)
    ticket = site.ticket("ann")
    encoded = "ticket=" + ticket.replace(".", "%2E")
    asked = encoded if query == "encoded" else query.format(ticket, ticket)
    assert await site.handshake_by(asked) == (503, "over_limit")
    assert [line["user"] for line in site.lines] == ["ann"]


async def test_a_refusal_for_want_of_a_slot_is_told_to_the_router_at_once() -> None:
    """The first under a lease has the router asked; those after it, of which it hears anyway, cost nothing."""
    site = Site()
    site.bench.lease(spare=0)
    site.bench.shard.slots(site.bench.now, beat=True)
    for user in ("ann", "ben", "cid"):
        assert await site.handshake(site.ticket(user)) == (503, "over_limit")
        if site.changes:
            site.bench.shard.slots(site.bench.now)  # as it is sent then
    assert site.changes == 1


@pytest.mark.parametrize("query", ["", "ticket=", "ticket", "tickets=x", "a=ticket=x"])
async def test_no_ticket_in_the_url(query: str) -> None:
    """A query that has none is told so."""
    assert await Site().handshake_by(query) == (401, "missing_ticket")


async def test_a_ticket_that_proves_nothing_is_refused_by_its_address() -> None:
    """Garbage, or a ticket that has expired, names nobody: the peer is what is known."""
    site = Site()
    assert await site.handshake("garbage") == (401, "invalid_token")
    assert await site.handshake(site.ticket("ann", age=TICKET_SECONDS + 5)) == (401, "ticket_expired")
    about = {"event": "refused", "action": "connect", "address": PEER}
    assert site.lines == [{**about, "code": "invalid_token"}, {**about, "code": "ticket_expired"}]


async def test_wrong_tokens_of_one_address_are_refused_after_some() -> None:
    """Two are told that they are wrong, be they tokens or tickets; then it is 429, and right ones go on working."""
    site = Site(wrong_tokens=Rate(0.01, 2))
    assert await site.get("/stats", "wrong") == (401, "invalid_token")
    assert await site.handshake("garbage") == (401, "invalid_token")
    assert await site.get("/stats", "wrong") == (429, "too_many_wrong_tokens")
    assert await site.handshake("garbage") == (429, "too_many_wrong_tokens")
    assert await site.get("/stats/users/ann", "") == (401, "missing_token")
    assert await site.get("/stats", site.bench.token("root", "admin")) == (200, "")
    assert await site.handshake(site.ticket("ann", shard=1)) == (403, "wrong_shard")
    assert [line["code"] for line in site.lines if line["event"] == "refused"][2:4] == ["too_many_wrong_tokens"] * 2


async def test_a_handshake_without_a_connection_is_refused() -> None:
    """It has ended unseen: nothing is accepted, and its slot is free."""
    site = Site()
    site.sockets.lost = True
    assert await site.handshake(site.ticket()) == (503, "connection_lost")
    assert site.bench.shard.empty


async def test_a_handshake_whose_connection_cannot_be_looked_for_leaves_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that has no file left to look with keeps neither the slot nor the user's place."""
    site = Site()

    def reserve(host: str, port: int) -> int | None:
        raise OSError(EMFILE, "too many open files")

    monkeypatch.setattr(site.sockets, "reserve", reserve)
    with pytest.raises(OSError, match="too many"):
        await site.handshake(site.ticket())
    assert site.bench.shard.empty
    assert site.bench.shard._users.get("ann") is None


async def test_one_who_goes_away_while_it_is_accepted_leaves_its_slot() -> None:
    """A client whose handshake can't be answered any more has neither a connection nor a slot."""
    site = Site()

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    def send(message: dict[str, Any]) -> Any:
        assert message["type"] == "websocket.accept"
        assert not site.bench.shard.empty
        assert site.sockets.reserved
        gone = asyncio.get_running_loop().create_future()
        gone.set_exception(ConnectionError())
        return gone

    headers = [(b"x-solowire-ticket", site.ticket().encode())]
    scope = {"type": "websocket", "path": "/ws", "headers": headers, "query_string": b"", "subprotocols": []}
    with pytest.raises(ConnectionError):
        await site.app({**scope, "client": (PEER, 1)}, receive, send)
    assert site.bench.shard.empty
    assert not site.bench.shard.connections
    assert not site.sockets.reserved


async def test_who_asks_is_written_down_whoever_passes_it_on() -> None:
    """Each question is a line with user and role; that a gateway asks is told beside it, since anybody may say so."""
    site = Site()
    token = site.bench.token("root", "admin")
    asked_by_gateway = (b"x-solowire-asked-by", b"gateway")
    assert await site.get("/stats", token) == (200, "")
    assert await site.get("/stats", token, asked_by_gateway) == (200, "")
    line = {"event": "administered", "user": "root", "role": "admin", "action": "stats"}
    line |= {"path": "/stats", "address": PEER}
    assert site.lines == [line, {**line, "via": "gateway"}]


async def test_a_question_that_is_refused_is_written_down_with_who_asked() -> None:
    """Who is known and may not is named; of a token that proves nothing the address is what is known."""
    site = Site()
    assert await site.get("/stats", site.bench.token("ann", "viewer")) == (403, "forbidden")
    assert await site.get("/stats/users/ann", "garbage") == (401, "invalid_token")
    line = {"event": "refused", "action": "administer", "address": PEER}
    assert site.lines == [
        {**line, "code": "forbidden", "path": "/stats", "user": "ann", "role": "viewer"},
        {**line, "code": "invalid_token", "path": "/stats/users/ann"},
    ]
