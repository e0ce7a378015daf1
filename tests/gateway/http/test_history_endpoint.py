"""The endpoint of history: how many answers it has under way, and what becomes of those that nobody reads."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from solowire.gateway.asker import ASKER
from solowire.gateway.http import history_endpoint
from solowire.gateway.http.history_endpoint import NDJSON, HistoryEndpoint
from solowire.gateway.http.shard_client import ShardClient
from solowire.gateway.router_client import RouterClient
from solowire.runtime.settings.history_settings import HistorySettings

PAGE = json.dumps({"events": [{"id": "a"}], "next": None, "complete": True}).encode()


class StubGateway:
    """Knows everybody, by a token that is the user's name."""

    addresses = SimpleNamespace(resolve_scope=lambda scope: "")

    async def identify(self, token: str, address: str) -> Any:
        return SimpleNamespace(user=token)

    def find_shard(self, user: str) -> None:
        return None


class StubShards:
    async def fetch_history(self, *question: Any) -> tuple[int, bytes, str]:
        return 200, PAGE, ""


class Client:
    """One that takes what it is answered when the test says so. parts: whether it takes parts of a stream."""

    def __init__(self, *, takes_parts: bool = True) -> None:
        self.taken = asyncio.Event()
        self.takes_parts = takes_parts
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.was_cut = False

    async def wait_until_taken(self) -> None:
        await self.taken.wait()

    def abort(self) -> None:
        self.was_cut = True

    def yield_turn(self) -> None:
        """Nobody else is here."""

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["body"] and not self.takes_parts:
            await asyncio.Event().wait()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("it never goes")

    def ask(self, endpoint: HistoryEndpoint, user: str, accept: str = "", query: bytes = b"") -> asyncio.Task[None]:
        headers = [(b"authorization", b"Bearer " + user.encode()), (b"accept", accept.encode())]
        scope = {"path": "/v1/events", "headers": headers, "query_string": query}

        async def answer() -> None:
            ASKER.set(self)
            await endpoint(scope, self.receive, self.send)

        return asyncio.get_running_loop().create_task(answer())


@pytest.fixture
def endpoint() -> HistoryEndpoint:
    gateway, shards = cast(RouterClient, StubGateway()), cast(ShardClient, StubShards())
    return HistoryEndpoint(gateway, shards, HistorySettings(max_per_user=2))


async def settle() -> None:
    """What can go on without anybody else has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("accept", ["", NDJSON])
async def test_an_answer_counts_until_it_is_read(endpoint: HistoryEndpoint, accept: str) -> None:
    """A user has two of them, whatever they are, and a next one when one of them has been read."""
    unread = [Client(), Client()]
    asking = [client.ask(endpoint, "ann", accept) for client in unread]
    await settle()
    assert [client.status for client in unread] == [200, 200]
    assert endpoint.answer_count == 2
    third, other = Client(), Client()
    await third.ask(endpoint, "ann")
    assert (third.status, third.headers[b"retry-after"]) == (429, b"1")
    asking.append(other.ask(endpoint, "bob"))
    await settle()
    assert other.status == 200
    unread[0].taken.set()
    await settle()
    asking.append(third.ask(endpoint, "ann"))
    await settle()
    assert third.status == 200
    for client in (*unread, third, other):
        client.taken.set()
    await asyncio.gather(*asking)
    assert endpoint.answer_count == 0


async def test_all_together_have_a_bound(endpoint: HistoryEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many users there are: whoever finds no room is told to come again."""
    monkeypatch.setattr(history_endpoint, "MAX_ANSWERS", 3)
    clients = [Client() for _ in range(4)]
    asking = [client.ask(endpoint, f"user-{n}") for n, client in enumerate(clients)]
    await settle()
    assert [client.status for client in clients] == [200, 200, 200, 503]
    assert clients[3].headers[b"retry-after"] == b"2"
    for client in clients:
        client.taken.set()
    await asyncio.gather(*asking)
    assert endpoint.answer_count == 0


@pytest.mark.parametrize(("accept", "takes_parts"), [("", True), (NDJSON, True), (NDJSON, False)])
async def test_who_reads_nothing_is_cut(
    endpoint: HistoryEndpoint, monkeypatch: pytest.MonkeyPatch, accept: str, takes_parts: bool
) -> None:
    """Its place is another's then."""
    monkeypatch.setattr(history_endpoint, "READ_SECONDS", 0.01)
    client = Client(takes_parts=takes_parts)
    await client.ask(endpoint, "ann", accept)
    assert (client.status, client.was_cut, endpoint.answer_count) == (200, True, 0)


async def test_what_is_refused_counts_no_more(endpoint: HistoryEndpoint) -> None:
    """A question that is wrong has no answer to be read."""
    for _ in range(3):
        client = Client()
        await client.ask(endpoint, "ann", NDJSON, b"limit=0")
        assert client.status == 400
    assert endpoint.answer_count == 0
