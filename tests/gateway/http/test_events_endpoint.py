"""Reading publish requests: what is kept of one, what is forgotten, and which answer it gets.

Everything is real but for the client, whose messages are the test's own, and the router, which takes all it hears.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.auth.tokens import Tokens
from solowire.backplane import messages as backplane
from solowire.backplane.messages import Heartbeat, Join, PublishAck, PublishRequest, RingState, ShardAddress
from solowire.backplane.zmq_transport import RouterSocket
from solowire.domains.dns.dns_domain import DNS
from solowire.gateway.audit_events import GatewayAudit
from solowire.gateway.http import events_endpoint as posting
from solowire.gateway.http.events_endpoint import DISCARDED_BYTES, EventsEndpoint
from solowire.gateway.publish.publish_limiter import PublishLimiter
from solowire.gateway.router_client import RouterClient
from solowire.model.access import ROLES
from solowire.model.events import Priority, decode_event
from solowire.runtime.settings import Settings
from solowire.runtime.settings.publish_settings import PublishSettings
from tests.support.factories import change
from tests.support.system import ANSWER_SECONDS

MAX_BYTES = 40_000
EVENT = b'{"type":"custom.x","data":{}}'
EVENTS = [b"[" + EVENT, b"," + EVENT, b"]"]
LEAVES = {"type": "http.disconnect"}


class Client:
    """What one client sends, and what it hears. Behind its pieces it says nothing more: it is slow, or waits."""

    def __init__(
        self,
        token: str,
        pieces: Iterable[bytes],
        length: int | None = None,
        *,
        leaves: bool = False,
        pause: float = 0.0,
    ) -> None:
        headers = [(b"authorization", f"Bearer {token}".encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self.scope: dict[str, Any] = {
            "path": "/v1/events",
            "method": "POST",
            "client": ("192.0.2.1", 1),
            "headers": headers,
        }
        self.heard: list[dict[str, Any]] = []
        self.waits = asyncio.Event()
        self._pieces = iter(pieces)
        self._leaves = leaves
        self._pause = pause
        self.whole = False

    async def receive(self) -> dict[str, Any]:
        if self._pause:
            await asyncio.sleep(self._pause)
        piece = next(self._pieces, None)
        if piece is not None:
            return {"type": "http.request", "body": piece, "more_body": True}
        if self._leaves:
            return LEAVES
        if self.whole:
            return {"type": "http.request", "body": b"", "more_body": False}
        self.waits.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    def ends(self) -> Client:
        """Its request is whole behind the pieces."""
        self.whole = True
        return self

    @property
    def is_last(self) -> bool:
        """Whether the answer says that it is the connection's last."""
        return (b"connection", b"close") in self.heard[0]["headers"]

    @property
    def told(self) -> tuple[int, str]:
        """Status of the answer, and the problem's code or ""."""
        start, body = self.heard
        return start["status"], msgspec.json.decode(body["body"]).get("code", "")


class House:
    """A gateway's publishing and the router that it hears. published: the events that the router was sent."""

    def __init__(self, folder: Path) -> None:
        address = f"ipc://{folder}/router"
        self.tokens = Tokens("s" * 32, ROLES, domain=DNS)
        self.intake = PublishLimiter(
            change(
                PublishSettings(),
                max_held_requests=4,
                max_held_bytes=100_000,
                timeout_s=120.0,
                rate=1000.0,
                burst=1000.0,
            )
        )
        self.published = 0
        self.priorities: list[Priority] = []
        self.audited: list[tuple[str, str]] = []
        self._hub = RouterSocket(address, self._hear)
        trail = GatewayAudit(self._note)
        self.gateway = RouterClient(address, self.tokens, ROLES, self.intake, timeout=ANSWER_SECONDS, audit=trail)
        self._folder, self._trail = folder, trail
        self.set_up()

    def set_up(self, **publish: Any) -> None:
        """With other settings from now on."""
        made = Settings(data_dir=self._folder, publish=PublishSettings(max_request_bytes=MAX_BYTES, **publish))
        self.posting = EventsEndpoint(self.gateway, made, self._trail)

    def token(self, user: str, role: str = "publisher") -> str:
        return self.tokens.sign_token(user, role, now=time.time(), ttl=60)

    async def answers(self, client: Client) -> tuple[int, str]:
        async with asyncio.timeout(ANSWER_SECONDS):
            await self.posting(client.scope, client.receive, client.heard.append)
        return client.told

    def _hear(self, peer: bytes, raw: bytes) -> None:
        message = backplane.decode_from_peer(raw)
        if isinstance(message, (Join, Heartbeat)):
            answer: Any = RingState("epoch", 1, 0, [ShardAddress(0, "127.0.0.1", 1, "boot")])
        elif isinstance(message, PublishRequest):
            self.published += len(message.events)
            self.priorities += (decode_event(event.body).priority for event in message.events)
            answer = PublishAck(message.request, "epoch", list(range(1, 1 + len(message.events))), [])
        else:
            return
        self._hub.send(peer, backplane.encode(answer))

    def _note(self, event: str, **fields: Any) -> None:
        self.audited.append((event, fields.get("code", "")))

    def close(self) -> None:
        self.gateway.close()
        self._hub.close()


@pytest.fixture
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    made = House(tmp_path_factory.mktemp("p"))  # short: it becomes a unix socket's address
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not made.gateway.is_ready:
                await asyncio.sleep(0.005)
        yield made
    finally:
        made.close()


async def test_a_request_in_pieces_is_one_request(house: House) -> None:
    """However a body is cut, its events are published together, and it holds nothing afterwards."""
    client = Client(house.token("ann"), EVENTS).ends()
    assert await house.answers(client) == (200, "")
    assert msgspec.json.decode(client.heard[1]["body"])["accepted"] == house.published == 2
    assert (house.intake.requests, house.intake.bytes) == (0, 0)
    assert house.audited == [("published", "")]


async def test_a_slow_request_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not come within its time gets 408, its room is free again, and nothing of it is published."""
    monkeypatch.setattr(posting, "BODY_SECONDS", 0.05)
    house.set_up(min_body_bytes_per_s=0)
    client = Client(house.token("ann"), EVENTS)
    assert await house.answers(client) == (408, "too_slow")
    assert client.is_last
    assert (house.intake.requests, house.intake.bytes, house.published) == (0, 0, 0)


@pytest.mark.parametrize("begins", [b"[", b" " * 30_000], ids=["from the first", "after a fast beginning"])
async def test_a_request_that_falls_silent_is_given_up_within_the_grace(house: House, begins: bytes) -> None:
    """Its place is another's again after some seconds, not after a minute."""
    house.set_up(body_grace_s=0.05)
    client = Client(house.token("ann"), [begins])
    assert await house.answers(client) == (408, "too_slow")
    assert client.is_last
    assert (house.intake.requests, house.intake.bytes, house.intake.slow_count) == (0, 0, 1)


async def test_a_request_that_trickles_is_given_up(house: House) -> None:
    """A byte now and then buys no time: below its pace a body is ended, however busy it looks."""
    house.set_up(body_grace_s=0.1, min_body_bytes_per_s=10_000)
    client = Client(house.token("ann"), [b" "] * 100_000, pause=0.01)
    assert await house.answers(client) == (408, "too_slow")
    assert house.intake.requests == 0


async def test_a_request_at_its_pace_is_taken(house: House) -> None:
    """Who comes in many small pieces, one after the other, is not cut off."""
    house.set_up(min_body_bytes_per_s=1, body_grace_s=ANSWER_SECONDS)
    assert await house.answers(Client(house.token("ann"), [b" "] * 20 + EVENTS, pause=0.001).ends()) == (200, "")


async def test_two_publishers_with_slow_bodies_stop_nobody_else(house: House) -> None:
    """All places are taken by bodies that don't end: a third publisher is answered, and who had the most is told."""
    slow = [Client(house.token(user), EVENTS[:1]) for user in ("eve", "mal", "eve", "mal")]
    asking = [asyncio.ensure_future(house.answers(client)) for client in slow]
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while sum(client.waits.is_set() or bool(client.heard) for client in slow) < 4:
                await asyncio.sleep(0.005)
        for _ in range(10):
            assert await house.answers(Client(house.token("ann"), EVENTS).ends()) == (200, "")
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    assert house.published == 20


async def test_who_has_to_give_its_place_hears_why(house: House) -> None:
    """A request that is ended for another publisher is answered with 408 and when to come again, and nothing of it
    is published.
    """
    async with asyncio.TaskGroup() as tasks:
        slow = [Client(house.token(user), EVENTS[:1]) for user in ("eve", "eve", "bob", "cid")]
        asking = []
        for client in slow:
            asking.append(tasks.create_task(house.answers(client)))
            async with asyncio.timeout(ANSWER_SECONDS):
                await client.waits.wait()
        assert house.intake.requests == 4
        assert await house.answers(Client(house.token("ann"), EVENTS).ends()) == (200, "")
        async with asyncio.timeout(ANSWER_SECONDS):
            assert await asking[0] == (408, "too_slow")
        assert dict(slow[0].heard[0]["headers"])[b"retry-after"] == b"1"
        assert slow[0].is_last
        assert (house.intake.requests, house.intake.slow_count, house.published) == (3, 1, 2)
        for task in asking[1:]:
            task.cancel()


async def test_a_client_that_leaves_has_published_nothing(house: House) -> None:
    """Whoever goes in the midst of a request takes its room along, and what had come of it is not published."""
    assert (await house.answers(Client(house.token("ann"), EVENTS, leaves=True)))[1] == "client_disconnected"
    assert (house.intake.requests, house.intake.bytes, house.published) == (0, 0, 0)


async def test_what_is_said_to_be_far_too_large_is_not_read(house: House) -> None:
    """A request that announces more than is even read and forgotten is answered at once, and so is nonsense."""
    for length in (DISCARDED_BYTES + 1, 10**30):
        assert await house.answers(Client(house.token("ann"), [], length)) == (413, "too_large")


async def test_what_is_far_too_large_is_read_so_far_and_no_farther(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body without a length is read and forgotten up to its bound: there it is answered, while it goes on."""
    monkeypatch.setattr(posting, "DISCARDED_BYTES", 2 * MAX_BYTES)
    for token, answer in (
        (house.token("ann"), (413, "too_large")),
        (house.token("vic", "viewer"), (403, "forbidden")),
    ):
        assert await house.answers(Client(token, [b" " * 30_000] * 3)) == answer
    assert (house.intake.requests, house.intake.bytes) == (0, 0)


async def test_what_is_forgotten_holds_no_room_while_it_is_read(house: House) -> None:
    """Of a request that is too large nothing is kept from then on, and so none of its bytes is counted."""
    client = Client(house.token("ann"), [b" " * 30_000] * 2)
    asking = asyncio.ensure_future(house.answers(client))
    async with asyncio.timeout(ANSWER_SECONDS):
        await client.waits.wait()
    assert (house.intake.requests, house.intake.bytes) == (1, 0)
    asking.cancel()
    await asyncio.wait((asking,))
    assert house.intake.requests == 0


async def test_a_request_for_which_the_room_ends_is_refused_as_a_whole(house: House) -> None:
    """At the bound of bytes a request in its midst is read to its end, and then refused with 503."""
    others = [house.intake.reserve(user, 0.0) for user in ("bob", "cid")]
    for number, room in enumerate(others):
        house.intake.grow(room, 45_000)
        house.intake.mark_sent(room, number, asyncio.get_running_loop().time())
    client = Client(house.token("ann"), [b" " * 9_000, *EVENTS, b" " * 9_000]).ends()
    assert await house.answers(client) == (503, "overloaded")
    assert [name for name, _ in client.heard[0]["headers"]].count(b"retry-after") == 1
    assert (house.intake.requests, house.intake.bytes, house.published) == (2, 90_000, 0)
    house.intake.reset()
    for room in others:
        house.intake.release(room)
    assert await house.answers(Client(house.token("ann"), EVENTS).ends()) == (200, "")


async def test_a_publisher_that_sends_nothing_stops_nobody_else(house: House) -> None:
    """Whoever opens request after request and sends none of them is refused; another publisher is answered."""
    slow = [Client(house.token("eve"), EVENTS[:1]) for _ in range(6)]
    asking = [asyncio.ensure_future(house.answers(client)) for client in slow]
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while sum(client.waits.is_set() or bool(client.heard) for client in slow) < 6:
                await asyncio.sleep(0.005)
        assert house.intake.requests == 2
        assert await house.answers(Client(house.token("ann"), EVENTS).ends()) == (200, "")
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    assert {code for _, code in house.audited} == {"overloaded", ""}


REFUSED = {
    "wrong token": (401, "invalid_token"),
    "viewer": (403, "forbidden"),
    "in debt": (429, "publish_rate_limited"),
}


@pytest.mark.parametrize("who", REFUSED)
@pytest.mark.parametrize("body", ["too large", "too slow", "cut off"])
async def test_the_reason_of_a_refusal_is_not_what_is_wrong_with_the_body(
    house: House, monkeypatch: pytest.MonkeyPatch, who: str, body: str
) -> None:
    """Whoever may not publish is told so, whatever its request would have been, and is noted so."""
    monkeypatch.setattr(posting, "BODY_SECONDS", 0.05)
    tokens = {"wrong token": "wrong", "viewer": house.token("vic", "viewer"), "in debt": house.token("ann")}
    house.intake.charge("ann", 5000, asyncio.get_running_loop().time())
    length = DISCARDED_BYTES + 1 if body == "too large" else None
    client = Client(tokens[who], EVENTS, length, leaves=body == "cut off")
    assert await house.answers(client) == REFUSED[who]
    assert house.audited == [("refused", REFUSED[who][1])]


def encoded(token: str, *pieces: bytes, encodings: Iterable[bytes] = (b"gzip",)) -> Client:
    """A whole request with `Content-Encoding` headers."""
    client = Client(token, pieces).ends()
    client.scope["headers"] += [(b"content-encoding", encoding) for encoding in encodings]
    return client


async def test_a_compressed_request_is_published(house: House) -> None:
    """However it is cut, and it leaves no room taken."""
    body = gzip.compress(b"".join(EVENTS))
    assert await house.answers(encoded(house.token("ann"), body[:20], body[20:])) == (200, "")
    assert house.published == 2
    assert (house.intake.requests, house.intake.bytes) == (0, 0)


async def test_a_compressed_request_gives_others_their_turn(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decompressed in steps, between which the loop does whatever else is due."""
    monkeypatch.setattr("solowire.gateway.publish.content_encoding.STEP_BYTES", 1000)
    monkeypatch.setattr("solowire.gateway.publish.parser_turns.TURN_SECONDS", 0.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    body = gzip.compress(b"".join(EVENTS) + b" " * 38_000)
    assert await house.answers(encoded(house.token("ann"), body)) == (200, "")
    counting.cancel()
    assert turns > 30


async def test_a_compressed_request_counts_as_what_it_becomes(house: House) -> None:
    """What is under way to the router has its bound in bytes as they are there, not as they came."""
    other = house.intake.reserve("bob", 0.0)
    house.intake.grow(other, 65_000)
    large = gzip.compress(b"".join(EVENTS) + b" " * 38_000)
    assert await house.answers(encoded(house.token("ann"), large)) == (503, "overloaded")
    assert house.published == 0
    house.intake.release(other)
    assert await house.answers(encoded(house.token("ann"), large)) == (200, "")


@pytest.mark.parametrize(
    ("body", "encodings", "answer"),
    [
        (gzip.compress(bytes(2**20)), [b"gzip"], (413, "too_large")),
        (b"".join(EVENTS), [b"gzip"], (400, "invalid_body")),
        (b"".join(EVENTS), [b"br"], (415, "unsupported_encoding")),
        (gzip.compress(b"".join(EVENTS)), [b"gzip", b"gzip"], (415, "unsupported_encoding")),
        (gzip.compress(b"".join(EVENTS)), [b"zstd", b"gzip"], (415, "unsupported_encoding")),
        (b"".join(EVENTS), [b"identity"], (200, "")),
    ],
    ids=["bomb", "plain", "br", "twice", "two", "identity"],
)
async def test_what_can_t_be_decoded_is_refused(
    house: House, body: bytes, encodings: list[bytes], answer: tuple[int, str]
) -> None:
    """Each with its own answer; several headers are several encodings; and no room stays taken."""
    client = encoded(house.token("ann"), body, encodings=encodings)
    assert await house.answers(client) == answer
    assert (house.intake.requests, house.intake.bytes) == (0, 0)
    accepted = dict(client.heard[0]["headers"]).get(b"accept-encoding")
    assert (accepted == b"gzip, deflate, zstd, identity") is (answer[0] == 415)


@pytest.mark.parametrize("who", [*REFUSED, "no room", "router away"])
async def test_who_is_refused_is_told_at_once_and_its_connection_ends(house: House, who: str) -> None:
    """Not a byte of its body is waited for, so that nobody holds a connection with a token that proves nothing."""
    tokens = {"wrong token": "wrong", "viewer": house.token("vic", "viewer")}
    if who == "in debt":
        house.intake.charge("ann", 5000, asyncio.get_running_loop().time())
    elif who == "no room":
        for number, user in enumerate(("bob", "bob", "cid", "dan")):
            house.intake.mark_sent(house.intake.reserve(user, 0.0), number, asyncio.get_running_loop().time())
    elif who == "router away":
        house.gateway.close()
        async with asyncio.timeout(ANSWER_SECONDS):
            while house.gateway.is_router_alive:
                await asyncio.sleep(0.02)
    client = Client(tokens.get(who) or house.token("ann"), [])
    others = {"no room": (503, "overloaded"), "router away": (503, "router_unavailable")}
    assert await house.answers(client) == (REFUSED | others)[who]
    assert client.is_last
    assert not client.waits.is_set()


async def test_after_an_answer_to_a_whole_request_the_connection_goes_on(house: House) -> None:
    """What is at fault in a request that was read to its end is no reason to close."""
    client = Client(house.token("ann"), [b"garbage"]).ends()
    assert await house.answers(client) == (400, "invalid_body")
    assert not client.is_last


# ------------------------------------------------------------------------------------------------- what it costs


async def test_what_is_refused_for_what_is_in_it_is_paid_for_by_its_size(house: House) -> None:
    """Else one publisher could have a gateway look for faults all the time, and never reach its rate."""
    bad = b'[{"type":"custom.x","data":1},' + b" " * 39_000 + b"1]"
    told = [await house.answers(Client(house.token("ann"), [bad]).ends()) for _ in range(9)]
    assert told[0] == (400, "invalid_events")
    assert told[-1] == (429, "publish_rate_limited")
    assert await house.answers(Client(house.token("bob"), EVENTS).ends()) == (200, "")


async def test_events_of_many_values_are_paid_for_by_them(house: House) -> None:
    """4 KB of gzip held 4 MB of empty lists, took 0.3 s of the gateway and of each shard, and counted as 120 events."""
    heavy = b'[{"type":"custom.x","data":{"f":[' + b",".join([b"[]"] * 10_000) + b"]}}]"
    told = [await house.answers(Client(house.token("ann"), [heavy]).ends()) for _ in range(9)]
    assert (told[0], told[-1]) == ((200, ""), (429, "publish_rate_limited"))
    assert house.published < 7
    assert await house.answers(Client(house.token("bob"), EVENTS).ends()) == (200, "")


async def test_large_events_are_paid_for_by_their_bytes(house: House) -> None:
    """What the log keeps of an event counts, whatever the events are few; others are not kept from publishing."""
    house.intake._byte_buckets = BucketTable(Rate(1000.0, 90_000.0), 10)
    plain = b'{"type":"custom.x","data":{"text":"' + b"x" * 30_000 + b'"}}'
    told = [await house.answers(Client(house.token("ann"), [plain]).ends()) for _ in range(4)]
    assert told == [(200, ""), (200, ""), (429, "publish_rate_limited"), (429, "publish_rate_limited")]
    assert await house.answers(Client(house.token("bob"), [plain]).ends()) == (200, "")


async def test_a_publishers_critical_events_beyond_its_rate_are_high(house: House) -> None:
    """It is told how many, and so is the log; nothing of them is refused."""
    house.set_up(critical_rate=1, critical_burst=2)
    body = b'{"type":"custom.x","data":{},"priority":"critical"}'
    client = Client(house.token("ann"), [b"[" + b",".join([body] * 5) + b"]"]).ends()
    with capture_logs() as lines:
        assert await house.answers(client) == (200, "")
    answer = msgspec.json.decode(client.heard[1]["body"])
    assert (answer["accepted"], answer["demoted"]) == (5, 3)
    assert house.priorities == [*[Priority.critical] * 2, *[Priority.high] * 3]
    [line] = [line for line in lines if line["event"] == "critical_events_demoted"]
    assert (line["user"], line["events"], house.posting.criticals.demoted_count) == ("ann", 3, 3)
    plain = Client(house.token("ann"), EVENTS).ends()
    await house.answers(plain)
    assert "demoted" not in msgspec.json.decode(plain.heard[1]["body"])


async def test_a_request_whose_place_was_taken_while_it_waited_to_be_parsed_is_not_published(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is another's by then, and must not be given back a second time."""
    monkeypatch.setattr(posting, "SMALL_BYTES", 0)

    async def run(turns: object, publisher: str, steps: Any) -> list[Any]:
        for user in ("ann", "bob", "cid", "dan"):
            house.intake.reserve(user, time.monotonic())
        return list(steps)

    monkeypatch.setattr("solowire.gateway.publish.parser_turns.ParserTurns.run", run)
    assert await house.answers(Client(house.token("ann"), EVENTS).ends()) == (408, "too_slow")
    assert (house.published, house.intake.requests) == (0, 4)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(bytes(2**20)), gzip.compress(bytes(MAX_BYTES))[:-5]],
    ids=["too large", "cut off"],
)
async def test_what_is_refused_while_it_is_decompressed_is_paid_for_as_well(house: House, body: bytes) -> None:
    """A few bytes that stand for many are as much work, and could be sent all the time."""
    told = [await house.answers(encoded(house.token("ann"), body)) for _ in range(9)]
    assert told[0] in {(413, "too_large"), (400, "invalid_body")}
    assert told[-1] == (429, "publish_rate_limited")
    assert await house.answers(Client(house.token("bob"), EVENTS).ends()) == (200, "")
    assert (house.intake.requests, house.intake.bytes) == (0, 0)


async def test_no_more_is_decompressed_than_there_is_room_for(house: House) -> None:
    """What it becomes counts while it is made, and not only when all of it is there."""
    other = house.intake.reserve("bob", 0.0)
    house.intake.grow(other, 95_000)
    most: list[int] = []

    def note(room: Any, size: int) -> None:
        grow(room, size)
        most.append(house.intake.bytes)

    grow, house.intake.grow = house.intake.grow, note  # type: ignore[method-assign, assignment]
    large = gzip.compress(b"".join(EVENTS) + b" " * 38_000)
    assert await house.answers(encoded(house.token("ann"), large)) == (503, "overloaded")
    assert max(most, default=0) <= 100_000
    assert house.published == 0
