"""The client, over real sockets, against a small gateway and shard whose every word a test chooses."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Literal

import httpx
import msgspec
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from solowire.errors import ConnectionEnded, MessageRefused, SubscriptionDenied
from solowire.protocol.close_codes import TERMINAL
from solowire.protocol.messages import SUBPROTOCOLS, Notice, ReceivedEvent
from solowire.sdk.client import Client, ConnectionState

DEADLINE_S = 30.0
SOON: dict[str, Any] = {"reconnect_min": 0.01, "reconnect_max": 0.02}

codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


def event(offset: int, **data: Any) -> dict[str, Any]:
    return {
        "offset": offset,
        "id": f"e{offset}",
        "type": "record_updated",
        "priority": "normal",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "data": data,
    }


def events(*offsets: int, cursor: int | None = None) -> dict[str, Any]:
    return {
        "type": "events",
        "cursor": offsets[-1] if cursor is None else cursor,
        "events": [event(offset) for offset in offsets],
    }


class Peer:
    """The shard's end of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.hello: dict[str, Any] = {}

    async def say(self, message: dict[str, Any]) -> None:
        if self.speaks_msgpack:
            await self.socket.send(msgspec.msgpack.encode(message))
        else:
            await self.socket.send(msgspec.json.encode(message).decode())

    @property
    def speaks_msgpack(self) -> bool:
        return "msgpack" in (self.socket.subprotocol or "")

    async def say_compressed(self, message: dict[str, Any]) -> None:
        encode = msgspec.msgpack.encode if self.speaks_msgpack else msgspec.json.encode
        await self.socket.send(b"\xc1" + zlib.compress(encode(message), wbits=-15))

    async def hear(self) -> dict[str, Any]:
        raw = await self.socket.recv()
        message: dict[str, Any] = msgspec.json.decode(raw) if isinstance(raw, str) else msgspec.msgpack.decode(raw)
        return message

    async def welcome(self, **fields: Any) -> None:
        welcome = {
            "type": "welcome",
            "session": "s",
            "user": "ada",
            "role": "viewer",
            "epoch": "e1",
            "cursor": 0,
            "resumed": "resume" in self.hello,
            "subscriptions": ["record_updated"],
            "denied": [],
            "heartbeat_s": 25,
            "reconnect": {"min_ms": 10, "max_ms": 20},
        }
        if "resume" in self.hello:
            welcome["cursor"] = self.hello["resume"]["cursor"]
        welcome["id"] = self.hello.get("id")
        await self.say(welcome | fields)


class Fake:
    """A gateway and its only shard. tokens: that were shown. refusals: what /v1/connect answers first, in turn."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens: list[str] = []
        self.refusals: deque[tuple[int, dict[str, str], bytes]] = deque()
        self.handshake_refusals: deque[int] = deque()
        self.redirects: deque[str | None] = deque()
        self.times: list[float] = []
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._shard: Server | None = None
        self.subprotocols = [Subprotocol(name) for name in SUBPROTOCOLS]

    async def peer(self) -> Peer:
        """The next connection; it has said nothing yet."""
        return await self._peers.get()

    async def accept(self, **welcome: Any) -> Peer:
        """The next connection, welcomed."""
        peer = await self.peer()
        peer.hello = await peer.hear()
        await peer.welcome(**welcome)
        return peer

    def refuse(self, status: int, code: str = "no", *, retry_after: str | None = None, detail: str = "no") -> None:
        """A refusal of the gateway's own."""
        headers = {"content-type": "application/problem+json"}
        if retry_after is not None:
            headers["retry-after"] = retry_after
        self.refusals.append((status, headers, msgspec.json.encode({"status": status, "code": code, "detail": detail})))

    async def shard(self, socket: ServerConnection) -> None:
        self._peers.put_nowait(Peer(socket))
        await socket.wait_closed()

    def judge(self, socket: ServerConnection, request: Request) -> Response | None:
        assert request.path == "/ws?ticket=t"
        if self.handshake_refusals:
            return socket.respond(HTTPStatus(self.handshake_refusals.popleft()), "")
        if self.redirects:
            answer = socket.respond(HTTPStatus.FOUND, "")
            if (location := self.redirects.popleft()) is not None:
                answer.headers["Location"] = location
            return answer
        return None

    def choose(self, _: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """As a shard does: what the client names first."""
        self.offered = list(offered)
        return next((name for name in offered if name in self.subprotocols), None)

    async def gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                assert head.startswith(b"POST /v1/connect ")
                lines = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                await reader.readexactly(int(lines["content-length"]))
                self.tokens.append(lines["authorization"].removeprefix("bearer "))
                self.times.append(asyncio.get_running_loop().time())
                status, headers, body = self.refusals.popleft() if self.refusals else (200, {}, self.grant())
                headers = {"content-length": str(len(body)), **headers}
                writer.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode())
                writer.write("".join(f"{n}: {v}\r\n" for n, v in headers.items()).encode() + b"\r\n" + body)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    def grant(self) -> bytes:
        assert self._shard is not None
        port = next(iter(self._shard.sockets)).getsockname()[1]
        answer = {"url": f"ws://127.0.0.1:{port}/ws?ticket=t", "ticket": "t", "shard": 3, "epoch": "e1"}
        return msgspec.json.encode(answer | {"expires_in": 30, "subprotocols": SUBPROTOCOLS})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Fake]:
        async with (
            serve(
                self.shard,
                "127.0.0.1",
                0,
                subprotocols=self.subprotocols,
                select_subprotocol=self.choose,
                process_request=self.judge,
            ) as self._shard,
            await asyncio.start_server(self.gateway, "127.0.0.1", 0) as front,
        ):
            self.url = f"http://127.0.0.1:{front.sockets[0].getsockname()[1]}"
            yield self


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with asyncio.timeout(DEADLINE_S), Fake().running() as fake:
        yield fake


@asynccontextmanager
async def connected(
    fake: Fake, *, token: Any = "tok", welcome: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Client, Peer]]:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        accepting = tasks.create_task(fake.accept(**(welcome or {})))
        async with Client(fake.url, token, **(SOON | options)) as client:
            yield client, await accepting


async def free_port() -> int:
    """A port that nobody listens on."""
    closed = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port: int = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    return port


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def take(client: Client, count: int) -> list[ReceivedEvent]:
    return [await anext(client) for _ in range(count)]


def offsets(received: list[ReceivedEvent]) -> list[int]:
    return [event.offset for event in received]


# ---------------------------------------------------------------------------------------------- one connection


@codecs
async def test_gives_events_in_order(fake: Fake, codec: Literal["json", "msgpack"]) -> None:
    """Events come one by one, in the order of the frames, in both codecs."""
    async with connected(fake, codec=codec) as (client, peer):
        assert peer.socket.subprotocol == f"solowire.v1.{codec}"
        await peer.say({"type": "events", "cursor": 2, "events": [event(1, zone="é.example"), event(2)]})
        await peer.say(events(5) | {"compacted": {"dns_query_log": 2}})
        received = await take(client, 3)
    assert offsets(received) == [1, 2, 5]
    assert received[0].data == {"zone": "é.example"}


async def test_introduces_itself(fake: Fake) -> None:
    """The token goes to the gateway, subscriptions, filter and cursor to the shard; what they say is at hand."""
    options: dict[str, Any] = {"subscriptions": ["dns.*"], "filter": {"zone": ["b", "a"]}, "resume": ("e1", 7)}
    async with connected(fake, **options) as (client, peer):
        hello = peer.hello
        assert (client.epoch, client.cursor, client.session, client.shard) == ("e1", 7, "s", 3)
        assert client.welcome is not None
        assert client.welcome.user == "ada"
        assert client.subscriptions == ["record_updated"]
    assert fake.tokens == ["tok"]
    assert hello["subscriptions"] == ["dns.*"]
    assert hello["filter"] == {"zone": ["a", "b"]}
    assert hello["resume"] == {"epoch": "e1", "cursor": 7}


async def test_asks_for_defaults_by_saying_nothing(fake: Fake) -> None:
    """Without subscriptions the hello names none, and without a cursor it asks for no resumption."""
    async with connected(fake) as (_, peer):
        assert peer.hello.keys() == {"type", "id"}


async def test_answers_pings_and_says_nothing_else(fake: Fake) -> None:
    """Each ping gets one pong with its id, and a message that nobody asked for never comes."""
    async with connected(fake) as (client, peer):
        await peer.say({"type": "ping", "time": 1.0})
        await peer.say({"type": "ping", "id": "x", "time": 2.0})
        await peer.say(events(1))
        await take(client, 1)
        assert [await peer.hear(), await peer.hear()] == [{"type": "pong"}, {"type": "pong", "id": "x"}]
        await client.close()
        with pytest.raises(ConnectionClosed):
            await peer.hear()


async def test_cursor_follows_what_was_handed_out(fake: Fake) -> None:
    """The cursor moves with the last event of a frame, not with what is only buffered, and over empty frames."""
    async with connected(fake, welcome={"cursor": 1}) as (client, peer):
        await peer.say(events(2, 3, cursor=4))
        await peer.say(events(6))
        await peer.say({"type": "events", "cursor": 9, "events": []})
        seen: list[int | None] = [client.cursor]
        for _ in range(3):
            await anext(client)
            seen.append(client.cursor)
        assert seen[:3] == [1, 1, 4]
        await until(lambda: client.cursor == 9)


async def test_takes_compacted_frames_as_they_are(fake: Fake) -> None:
    """Events older than the cursor, or in another order, are handed out, and the cursor is what the frame says."""
    async with connected(fake) as (client, peer):
        await peer.say(events(3, 7))
        await peer.say(events(4, cursor=7) | {"compacted": {"record_updated": 0}})
        await peer.say(events(12, 9, cursor=14) | {"compacted": {"dns_query_log": 5}})
        got = [await anext(client) for _ in range(5)]
        assert [e.offset for e in got] == [3, 7, 4, 12, 9]
        assert client.cursor == 14
        assert client.left_out == {"dns_query_log": 5, "record_updated": 0}
        await peer.say({"type": "events", "cursor": 20, "events": [], "compacted": {"rpz_hit": 2}})
        await until(lambda: client.left_out["rpz_hit"] == 2)


async def test_ignores_messages_of_the_future(fake: Fake) -> None:
    """A message of an unknown type is passed over, and the connection goes on."""
    async with connected(fake) as (client, peer):
        await peer.say({"type": "fanfare", "volume": 11})
        await peer.say(events(1))
        await take(client, 1)
        assert (client.connections, client.undecodable) == (1, 0)


@codecs
async def test_reads_compressed_frames(fake: Fake, codec: Literal["json", "msgpack"]) -> None:
    """Who asks for compression gets what is compressed and what is not, in order, and speaks plainly itself."""
    async with connected(fake, codec=codec, compress=True) as (client, peer):
        assert peer.socket.subprotocol == f"solowire.v1.{codec}+deflate"
        await peer.say_compressed({"type": "events", "cursor": 2, "events": [event(1, zone="é.example"), event(2)]})
        await peer.say(events(3))
        await peer.say_compressed({"type": "fanfare", "volume": 11})
        await peer.say_compressed(events(*range(4, 500)) | {"compacted": {"dns_query_log": 2}})
        assert offsets(await take(client, 499)) == list(range(1, 500))
        assert (client.left_out, client.undecodable) == ({"dns_query_log": 2}, 0)
        await peer.say({"type": "ping", "time": 1.0})
        assert await peer.hear() == {"type": "pong"}


@codecs
async def test_asks_for_compression_only_if_told_to(fake: Fake, codec: Literal["json", "msgpack"]) -> None:
    """Without the option it offers no compression; with it, the plain subprotocol second, which an old server takes."""
    async with connected(fake, codec=codec) as (_, peer):
        assert fake.offered == [f"solowire.v1.{codec}"]
    del fake.subprotocols[2:]  # a server from before there was compression
    async with connected(fake, codec=codec, compress=True) as (client, peer):
        assert fake.offered == [f"solowire.v1.{codec}+deflate", f"solowire.v1.{codec}"]
        assert peer.socket.subprotocol == f"solowire.v1.{codec}"
        await peer.say(events(1))
        assert offsets(await take(client, 1)) == [1]


async def test_closing_ends_the_iteration(fake: Fake) -> None:
    """An iteration that waits ends when the client is closed, and the server sees a polite close."""
    async with connected(fake) as (client, peer):

        async def iterate() -> list[ReceivedEvent]:
            return [event async for event in client]

        iterating = asyncio.create_task(iterate())
        await peer.say(events(1))
        await until(lambda: client.cursor == 1)
        await client.close()
        assert offsets(await iterating) == [1]
        await peer.socket.wait_closed()
        assert peer.socket.close_code == 1000
        with pytest.raises(ConnectionEnded):
            await client.stats()


async def test_is_used_within_its_context(fake: Fake) -> None:
    """Iterating or asking before entering, and entering twice, are refused as misuse."""
    client = Client(fake.url, "tok")
    with pytest.raises(RuntimeError):
        await anext(client)
    with pytest.raises(RuntimeError):
        await client.stats()
    async with connected(fake) as (entered, _):
        with pytest.raises(RuntimeError):
            await entered.__aenter__()


def test_refuses_settings_that_make_no_sense() -> None:
    """A URL that is not the gateway's and bounds that contradict each other are refused at once."""
    for wrong in ({"url": "ws://x"}, {"max_buffered": 0}, {"reconnect_min": 2.0, "reconnect_max": 1.0}):
        with pytest.raises(ValueError, match=r"http|max_buffered|reconnect_min"):
            Client(**{"url": "http://x", "token": "t", **wrong})  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- coming back


@pytest.mark.parametrize("code", [1000, 1001, 1012, 1013, 4408, 4413, 4421])
async def test_comes_back_with_what_has_arrived(fake: Fake, code: int) -> None:
    """After a close that is not terminal it shows the cursor of what arrived, handed out or not, and misses nothing."""
    async with connected(fake) as (client, peer):
        await peer.say(events(1, 2))
        await peer.socket.close(code)
        peer = await fake.accept()
        assert peer.hello["resume"] == {"epoch": "e1", "cursor": 2}
        assert client.cursor == 0
        await peer.say(events(3))
        assert offsets(await take(client, 3)) == [1, 2, 3]
        assert (client.gaps, client.connections) == (0, 2)


async def test_comes_back_after_a_cut(fake: Fake) -> None:
    """A connection that just breaks is made anew."""
    async with connected(fake) as (client, peer):
        peer.socket.transport.abort()
        peer = await fake.accept()
        await peer.say(events(1))
        assert offsets(await take(client, 1)) == [1]


async def test_tells_a_gap_in_its_place(fake: Fake) -> None:
    """Where the server can't resume, the reason is told after the events before the gap and before those behind it."""
    story: list[object] = []
    async with connected(fake, on_gap=story.append) as (client, peer):
        await peer.say(events(1))
        await peer.socket.close(4413)
        peer = await fake.accept(resumed=False, cursor=50, epoch="e2", reason="retention")
        await peer.say(events(51))
        await until(lambda: client.gaps == 1)
        assert story == []
        story.append((await anext(client)).offset)
        story.append((await anext(client)).offset)
        assert story == [1, "retention", 51]
        assert (client.epoch, client.cursor) == ("e2", 51)


async def test_first_welcome_is_no_gap(fake: Fake) -> None:
    """A client that showed no cursor has missed nothing; one that brought a cursor in vain has."""
    async with connected(fake, welcome={"resumed": False, "cursor": 9}) as (client, _):
        assert client.gaps == 0
    async with connected(fake, resume=("old", 1), welcome={"resumed": False, "reason": "epoch"}) as (client, _):
        assert client.gaps == 1


@pytest.mark.parametrize("code", sorted(TERMINAL))
async def test_stays_away_after_a_terminal_close(fake: Fake, code: int) -> None:
    """A terminal code ends the iteration with its code and reason, after what had arrived, each time it is tried."""
    async with connected(fake, steady_after=0.0) as (client, peer):
        await peer.say(events(1))
        await peer.socket.close(code, "because")
        assert offsets(await take(client, 1)) == [1]
        for _ in range(2):
            with pytest.raises(ConnectionEnded, match="because") as ended:
                await anext(client)
            assert ended.value.close_code == code
    assert len(fake.tokens) == 1


async def test_expired_token_is_renewed(fake: Fake) -> None:
    """After 4401 a token function is asked again, paced, for as long as it takes; a token alone ends it."""
    fresh = iter(["t1", "t2", "t3"])
    clock = asyncio.get_running_loop().time
    said: list[str] = []
    async with connected(
        fake, token=lambda: next(fresh), steady_after=0.0, on_state=lambda state: said.append(state.reason)
    ) as (client, peer):
        await peer.socket.close(4401, "the token has expired")
        peer = await fake.accept()
        client._schedule.steady_after = DEADLINE_S  # from here on no connection is a steady one
        closed_at = clock()
        await peer.socket.close(4401)
        await fake.accept()
        assert clock() - closed_at >= 1
    assert fake.tokens == ["t1", "t2", "t3"]
    assert any("the token has expired" in text for text in said)
    assert not any("given a function" in text for text in said)  # it was


@pytest.mark.parametrize(
    ("status", "code", "close"),
    [
        (401, "invalid_token", 4401),
        (403, "forbidden", 4403),
        (409, "duplicate_connection", 4409),
        (404, "not_found", 4400),
        (400, "unsupported_subprotocol", 4400),
    ],
)
async def test_refused_by_the_gateway_for_good(fake: Fake, status: int, code: str, close: int) -> None:
    """An answer of the gateway that can't get better is raised on entering, as the close code that means the same."""
    fake.refuse(status, code, detail="so it is")
    with pytest.raises(ConnectionEnded, match=f"{re.escape(fake.url)}/v1/connect answered {status} so it is") as ended:
        async with Client(fake.url, "tok", **SOON):
            pass
    assert ended.value.close_code == close


@pytest.mark.parametrize(("status", "code"), [(401, 4401), (403, 4403), (404, 4400), (405, 4400), (307, 4400)])
async def test_no_gateway_at_first_is_told(fake: Fake, status: int, code: int) -> None:
    """Another server's answer to the first attempt says that the URL is wrong: it is raised, with a way out."""
    fake.refusals.append((status, {"content-type": "text/html", "location": "https://x.example/"}, b"<html>"))
    words = "redirects are not followed" if status == 307 else "no answer of a Solowire gateway"
    with pytest.raises(ConnectionEnded, match=rf"{re.escape(fake.url)}.* answered {status} .*{words}") as ended:
        async with Client(fake.url, "tok", **SOON):
            pass
    assert ended.value.close_code == code


HTML = {"content-type": "text/html"}
ELSEWHERE: list[tuple[int, dict[str, str], bytes]] = [
    (404, HTML, b"<html>nginx</html>"),
    (301, HTML | {"location": "https://elsewhere.example/"}, b""),
    (403, HTML, b"<html>WAF</html>"),
    (401, HTML | {"www-authenticate": "Basic"}, b"log in"),
    (405, HTML, b""),
    (421, HTML, b""),
    (410, {}, b""),
    (502, HTML, b"<html>"),
    (503, HTML | {"retry-after": "-7"}, b""),
    (503, HTML | {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, b""),
    (200, HTML, b"<html>welcome to nginx"),
    (204, {}, b""),
    (400, {"content-type": "application/problem+json"}, b'{"title": "no code"}'),
    (403, {"content-type": "application/problem+json"}, b'{"status": 403, "code": "RBAC: access denied"}'),
    (404, {"content-type": "application/json"}, b'{"status": 404, "code": "not_found"}'),
]


async def test_whatever_a_deployment_answers_passes(fake: Fake) -> None:
    """After one connection nothing that is not the gateway's own ends the client: it comes back with its cursor."""
    async with connected(fake) as (client, peer):
        await peer.say(events(1))
        assert offsets(await take(client, 1)) == [1]
        fake.refusals += ELSEWHERE
        peer.socket.transport.abort()
        peer = await fake.accept()
        assert peer.hello["resume"] == {"epoch": "e1", "cursor": 1}
        assert not fake.refusals


async def test_shard_that_is_being_deployed_passes(fake: Fake) -> None:
    """The same of what answers the handshake in the shard's place."""
    async with connected(fake) as (client, peer):
        fake.handshake_refusals += [404, 301, 403, 401, 405, 421, 400, 426, 502]
        await peer.socket.close(1012)
        await fake.accept()
        await until(lambda: client.connections == 2)


async def test_what_the_gateway_calls_final_is_final_later_too(fake: Fake) -> None:
    """Its own `forbidden` ends a client that has worked, and so does its own 401 one that has a token alone."""
    for status, code in ((403, "forbidden"), (401, "token_expired")):
        fake.tokens.clear()
        async with connected(fake) as (client, peer):
            fake.refuse(status, code, detail="not any more")
            await peer.socket.close(1012)
            with pytest.raises(ConnectionEnded, match="not any more"):
                await anext(client)
        assert len(fake.tokens) == 2


@pytest.mark.parametrize("code", ["token_expired", "invalid_token"])
@pytest.mark.parametrize("at_first", [True, False])
async def test_stale_token_is_waited_out(fake: Fake, code: str, at_first: bool) -> None:
    """A token function that gives a stale token for a while is asked on, no more often than once a second."""
    tokens = iter(["stale", "stale", "good"] if at_first else ["good", "stale", "stale", "good"])

    def refuse() -> None:
        for _ in range(2):
            fake.refuse(401, code, detail="stale")

    if at_first:
        refuse()
    async with connected(fake, token=lambda: next(tokens)) as (_, peer):
        if not at_first:
            refuse()
            await peer.socket.close(1012)
            await fake.accept()
    first, second, third = fake.times[-3:]
    assert second - first >= 1
    assert third - second >= 1
    assert fake.tokens[-1] == "good"


async def test_token_function_that_never_gives_a_good_one_ends_at_first(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has ever worked, a token function is asked on for a bounded time."""
    monkeypatch.setattr("solowire.sdk.retry_policy.FIRST_TOKEN_S", 1.5)
    for _ in range(10):
        fake.refuse(401, "invalid_token", detail="the signature is wrong")
    with pytest.raises(ConnectionEnded, match="the signature is wrong"):
        await Client(fake.url, lambda: "bad", **SOON).__aenter__()
    assert 2 <= len(fake.tokens) <= 4


class IdentityProviderError(Exception):
    """As HTTP libraries have it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}")
        self.status = status


async def test_token_function_that_fails_later_is_asked_again(fake: Fake) -> None:
    """Whatever it raises, or gives in place of a token, passes once there was a connection; a ClientError ends it."""
    outcomes: deque[Any] = deque(["t1", IdentityProviderError(503), KeyError("cache"), None, "", "a b", "t2\n"])

    async def token() -> str:
        outcome = outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    async with connected(fake, token=token) as (client, peer):
        await peer.socket.close(1012)
        peer = await fake.accept()
        assert fake.tokens == ["t1", "t2"]
        outcomes.append(ConnectionEnded(4401, "logged out"))
        await peer.socket.close(1012)
        with pytest.raises(ConnectionEnded, match="logged out"):
            await anext(client)


async def test_no_such_host_is_told() -> None:
    """A first attempt at a name that does not exist ends at once, and says so."""
    with pytest.raises(ConnectionEnded, match=r"http://nosuch\.invalid.* no such host") as ended:
        await Client("http://nosuch.invalid", "tok", **SOON).__aenter__()
    assert ended.value.close_code == 1006


async def test_what_does_not_speak_tls_is_told() -> None:
    """https:// in front of a plain port ends the first attempt at once."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionEnded, match=r"TLS.*http://"):
            await Client(f"https://127.0.0.1:{port}", "tok", **SOON).__aenter__()


async def test_waiting_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    """A client without a server warns at the first attempt, once for each reason, and tells its state each time."""
    states: list[ConnectionState] = []
    client = Client(f"http://127.0.0.1:{await free_port()}", "tok", on_state=states.append, **SOON)
    entering = asyncio.create_task(client.__aenter__())
    await until(lambda: len(states) >= 5)
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    assert {state.name for state in states} == {"waiting"}
    assert "can't be reached" in states[0].reason
    assert [record.levelname for record in caplog.records if "can't be reached" in record.message].count("WARNING") == 1


async def test_states_are_told(fake: Fake) -> None:
    """`on_state` hears of each connection, of each wait with its reason, and of the end."""
    states: list[ConnectionState] = []
    async with connected(fake, on_state=states.append) as (client, peer):
        await peer.socket.close(1012, "restarting")
        peer = await fake.accept()
        await peer.socket.close(4409, "replaced")
        with pytest.raises(ConnectionEnded):
            await anext(client)
    assert [state.name for state in states] == ["connected", "waiting", "connected", "ended"]
    assert "restarting" in states[1].reason
    assert "one client for each user" in states[3].reason


async def test_own_ghost_is_waited_for(fake: Fake) -> None:
    """A 409 just after a lost connection may be about that one, so it is tried again."""
    async with connected(fake) as (client, peer):
        fake.refuse(409, "duplicate_connection")
        fake.handshake_refusals.append(409)
        peer.socket.transport.abort()
        await fake.accept()
        await until(lambda: client.connections == 2)


async def test_ticket_that_is_not_taken_is_replaced(fake: Fake) -> None:
    """A shard that refuses the ticket with 401 says nothing about the token: another ticket is fetched."""
    fake.handshake_refusals += [401, 503]
    async with connected(fake):
        assert len(fake.tokens) == 3


async def test_waits_as_long_as_the_gateway_asks(fake: Fake) -> None:
    """Overload is waited out, no sooner than Retry-After says; so is an answer that is not the gateway's."""
    async with connected(fake) as (client, peer):
        fake.refusals.append((200, {}, b"<html>"))
        fake.refuse(429)
        fake.refuse(503, retry_after="1", detail="come later")
        await peer.socket.close(1012)
        await fake.accept()
        await until(lambda: client.connections == 2)
        _, first, second, third, fourth = fake.times
        assert client.last_reason == "answered 503 come later"
    assert fourth - third >= 1
    assert third - first < 1
    assert second < third


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"status": "ok"}', b"\xff"])
async def test_something_else_in_the_gateways_place_is_told(fake: Fake, body: bytes) -> None:
    """A first answer that says "fine" and is no gateway's ends it, as a 404 does, rather than being tried for ever."""
    fake.refusals.append((200, {}, body))
    with pytest.raises(ConnectionEnded, match="can't be understood") as ended:
        async with Client(fake.url, "tok", **SOON):
            pass
    assert ended.value.close_code == 4400


@pytest.mark.parametrize(
    "url", ["foo", "http://x/ws", "ws:///ws", "ws://x:99999/ws", "ws://[::/ws", f"ws://{'a' * 70}.ü/ws"]
)
async def test_a_shards_url_that_is_none_is_no_gateways_answer(fake: Fake, url: str) -> None:
    """It ends the first attempt, and passes later, whatever the libraries raise for it."""
    answer: tuple[int, dict[str, str], bytes] = (200, {}, msgspec.json.encode({"url": url}))
    fake.refusals.append(answer)
    with pytest.raises(ConnectionEnded, match="can't be understood"):
        async with Client(fake.url, "tok", **SOON):
            pass
    async with connected(fake) as (client, peer):
        fake.refusals.append(answer)
        await peer.socket.close(1012)
        await fake.accept()
        await until(lambda: client.connections == 2)


@pytest.mark.parametrize("location", [None, "/ws?ticket=t", "http://[::", "ws://127.0.0.1:1/x"])
async def test_a_redirect_of_a_handshake_is_not_followed(fake: Fake, location: str | None) -> None:
    """It is an answer like any other that is no gateway's: one request, final at first, and passing later."""
    async with connected(fake) as (client, peer):
        fake.redirects.append(location)
        await peer.socket.close(1012)
        await fake.accept()
        await until(lambda: client.connections == 2)
        assert "answered 302" in str(client.last_reason)
    fake.redirects.append(location)
    with pytest.raises(ConnectionEnded, match="answered 302"):
        async with Client(fake.url, "tok", **SOON):
            pass


async def test_gateway_that_is_not_there_is_waited_for() -> None:
    """Entering goes on trying while nobody listens, until somebody does."""
    port = await free_port()
    fake = Fake()
    client = Client(f"http://127.0.0.1:{port}", "tok", **SOON)
    assert client.last_reason is None
    entering = asyncio.create_task(client.__aenter__())
    await until(lambda: client.last_reason is not None)
    assert "can't be reached" in str(client.last_reason)
    async with fake.running(), await asyncio.start_server(fake.gateway, "127.0.0.1", port):
        await fake.accept()
        await entering
        await client.close()


async def test_a_welcome_that_is_no_answer_to_the_hello_is_left(fake: Fake) -> None:
    """A server that began without the late hello began without the cursor: the client comes again with it."""

    async def serve() -> Peer:
        await fake.accept(id=None, resumed=False, cursor=900)
        return await fake.accept()

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        async with Client(fake.url, "tok", resume=("e1", 5), **SOON) as client:
            peer = await serving
            assert peer.hello["resume"] == {"epoch": "e1", "cursor": 5}
            assert (client.gaps, client.connections) == (0, 1)


async def test_a_ping_says_where_a_quiet_feed_stands(fake: Fake) -> None:
    """A client whose feed is quiet comes back with a cursor of now, not of its last event."""
    async with connected(fake) as (client, peer):
        await peer.say({"type": "ping", "time": 1.0, "cursor": 500})
        await peer.say(events(501))
        assert (await anext(client)).offset == 501
        await peer.say({"type": "ping", "time": 1.0, "cursor": 700})
        assert (await peer.hear())["type"] == "pong"
        await peer.socket.close(1012)
        again = await fake.accept()
        assert again.hello["resume"]["cursor"] == 700


async def test_server_that_never_welcomes_is_left(fake: Fake) -> None:
    """An attempt that does not get as far as the welcome in time is given up, and another made."""
    async with asyncio.TaskGroup() as tasks:
        entering = tasks.create_task(Client(fake.url, "tok", connect_timeout=2.0, **SOON).__aenter__())
        silent = await fake.peer()
        await silent.socket.wait_closed()
        assert not entering.done()
        await fake.accept()
        client = await entering
        await client.close()


async def test_a_server_that_is_still_reading_what_was_missed_is_waited_for(fake: Fake) -> None:
    """A notice that the replay goes on begins the time for the welcome anew: who left would ask for all of it again."""
    async with asyncio.TaskGroup() as tasks:
        resuming = Client(fake.url, "tok", resume=("e1", 5), connect_timeout=2.0, **SOON)
        entering = tasks.create_task(resuming.__aenter__())
        peer = await fake.peer()
        peer.hello = await peer.hear()
        for _ in range(3):
            await asyncio.sleep(1.0)
            await peer.say({"type": "notice", "code": "replaying", "message": "it goes on"})
        await peer.welcome()
        client = await entering
        assert (client.connections, client.gaps) == (1, 0)
        await client.__aexit__(None, None, None)


async def test_goes_when_asked_and_comes_back_when_told(fake: Fake) -> None:
    """A `reconnect` is obeyed with a polite close, and the return is not sooner than it says."""
    async with connected(fake) as (client, peer):
        await peer.say(events(1))
        asked = asyncio.get_running_loop().time()
        await peer.say({"type": "reconnect", "after_ms": 200, "reason": "moved"})
        await peer.socket.wait_closed()
        assert peer.socket.close_code == 1000
        peer = await fake.accept()
        assert fake.times[-1] - asked >= 0.2
        assert peer.hello["resume"]["cursor"] == 1
        assert client._schedule.backoff.attempts == 0


async def test_reconnect_in_a_loop_is_obeyed_ever_later(fake: Fake) -> None:
    """A server that sends the client away as soon as it comes makes it wait longer each time, but the first."""
    async with connected(fake, reconnect_min=0.0, reconnect_max=20.0) as (client, peer):
        client._schedule.backoff._random = lambda: 1.0
        for attempts in (0, 1, 2, 3):
            await peer.say({"type": "reconnect", "after_ms": 0, "reason": "no_lease"})
            peer = await fake.accept()
            client._schedule.backoff._random = lambda: 1.0
            assert client._schedule.backoff.attempts == attempts


async def test_silent_server_is_dead(fake: Fake) -> None:
    """A server that says nothing for two and a half heartbeats is left for another connection."""
    async with connected(fake, welcome={"heartbeat_s": 0.05}) as (client, _):
        await fake.accept()
        await until(lambda: client.connections == 2)


def bomb() -> bytes:
    press = zlib.compressobj(9, wbits=-15)
    return b"".join((b"\xc1", *(press.compress(bytes(2**20)) for _ in range(17)), press.flush()))


COMPRESSED = b"\xc1" + zlib.compress(msgspec.json.encode(events(2)), wbits=-15)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (COMPRESSED[:-1], "cut off"),
        (COMPRESSED[:9] + b"\xff\xff" + COMPRESSED[11:], "not valid|cut off"),
        (COMPRESSED + b"x", "something follows"),
        (bomb(), "more than 16777216 bytes when inflated"),
    ],
    ids=["truncated", "damaged", "continued", "bomb"],
)
async def test_a_compressed_frame_that_is_none_is_asked_for_again(
    fake: Fake, frame: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says in its log what is wrong, counts it, and comes back with the cursor before it: nothing is missed."""
    async with connected(fake, compress=True) as (client, peer):
        await peer.say_compressed(events(1))
        await peer.socket.send(frame)
        peer = await fake.accept()
        assert peer.hello["resume"]["cursor"] == 1
        await peer.say_compressed(events(2))
        assert offsets(await take(client, 2)) == [1, 2]
        assert client.undecodable == 1
    assert re.search(words, caplog.text)


async def test_undecodable_frame_is_asked_for_again(fake: Fake) -> None:
    """A frame that can't be decoded may hold events: it is counted, and fetched again from the cursor before it."""
    async with connected(fake) as (client, peer):
        await peer.say(events(1))
        await peer.socket.send('{"type":"events","cursor":2,"events":[{"off')
        peer = await fake.accept()
        assert peer.hello["resume"]["cursor"] == 1
        await peer.say(events(2))
        assert offsets(await take(client, 2)) == [1, 2]
        assert client.undecodable == 1


async def test_can_be_told_not_to_come_back(fake: Fake) -> None:
    """Without `reconnect` any end is raised, with its code; 1006 where there was none."""
    async with connected(fake, reconnect=False) as (client, peer):
        await peer.socket.close(1012)
        with pytest.raises(ConnectionEnded) as ended:
            await anext(client)
        assert ended.value.close_code == 1012
    fake.refuse(503)
    with pytest.raises(ConnectionEnded) as ended:
        async with Client(fake.url, "tok", reconnect=False):
            pass
    assert ended.value.close_code == 1006


# ---------------------------------------------------------------------------------------------- asking


async def answer(peer: Peer, *types: str, **fields: Any) -> dict[str, Any]:
    """Hears one message and answers it as `subscribe` is answered."""
    message = await peer.hear()
    await peer.say({"type": "subscriptions", "id": message["id"], "subscriptions": types, "denied": [], **fields})
    return message


async def test_subscriptions_in_force_are_kept(fake: Fake) -> None:
    """What was subscribed and unsubscribed is what the next hello asks for; wildcards are taken apart."""
    async with connected(fake, subscriptions=["bulk.*", "audit_log"]) as (client, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer, "a"))
            granted = await client.subscribe(["health_alert"])
        assert granted.subscriptions == ["a"]
        assert client.subscriptions == ["a"]
        async with asyncio.TaskGroup() as tasks:
            said = tasks.create_task(answer(peer, "b"))
            await client.unsubscribe(["bulk_failed", "audit_log"])
        assert said.result()["event_types"] == ["bulk_failed", "audit_log"]
        await peer.socket.close(1012)
        peer = await fake.accept()
        kept = ["bulk_started", "bulk_progress", "bulk_completed", "health_alert"]
        assert sorted(peer.hello["subscriptions"]) == sorted(kept)
        assert "filter" not in peer.hello


async def test_defaults_become_explicit_when_changed(fake: Fake) -> None:
    """Who had the role's defaults and adds to them comes back with both."""
    async with connected(fake, welcome={"subscriptions": ["user_login"]}) as (client, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer, "user_login", "audit_log"))
            await client.subscribe(["audit_log"])
        await peer.socket.close(1012)
        peer = await fake.accept()
        assert peer.hello["subscriptions"] == ["user_login", "audit_log"]


async def test_several_filters_come_back_as_they_were(fake: Fake) -> None:
    """However many filters there are, one hello says them all, each for its own types, and nothing follows it."""
    wanted = {"zone": ["a.example"], "actor": ["ada"]}
    async with connected(fake, subscriptions=["zone_updated"], filter=wanted) as (client, peer):
        for number in range(80):
            async with asyncio.TaskGroup() as tasks:
                said = tasks.create_task(answer(peer))
                await client.subscribe([f"custom.{number}"], {"topic": [str(number)]})
            assert said.result()["filter"] == {"topic": [str(number)]}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer))
            await client.subscribe(["rpz_hit"])
        await peer.socket.close(1012)
        peer = await fake.accept()
        assert peer.hello["subscriptions"] == ["zone_updated", *(f"custom.{n}" for n in range(80)), "rpz_hit"]
        assert peer.hello["filter"] == {"zone": ["a.example"], "actor": ["ada"]}
        assert peer.hello["filters"] == {f"custom.{n}": {"topic": [str(n)]} for n in range(80)} | {"rpz_hit": {}}
        await peer.say({"type": "ping"})
        assert await peer.hear() == {"type": "pong"}


async def test_the_filter_of_many_types_is_said_once(fake: Fake) -> None:
    """A long filter that most types share is not repeated for each, so that the hello stays within its bound."""
    zones = {"zone": [f"zone-number-{n}.example" for n in range(200)]}
    types = [f"custom.{n}" for n in range(150)]
    async with connected(fake, subscriptions=types, filter=zones) as (client, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer))
            await client.subscribe(["zone_updated"], {"zone": ["b.example"]})
        await peer.socket.close(1012)
        peer = await fake.accept()
        assert len(peer.hello["filter"]["zone"]) == 200
        assert peer.hello["filters"] == {"zone_updated": {"zone": ["b.example"]}}


async def test_what_would_not_fit_one_hello_is_refused_when_it_is_asked_for(fake: Fake) -> None:
    """Filters with which a client could never come back are refused at once; the server has not heard of them."""
    zones = {"zone": [f"zone-number-{n}.example" for n in range(1000)]}
    async with connected(fake, subscriptions=["zone_updated"], filter=zones) as (client, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer))
            await client.subscribe(["custom.a"], {**zones, "topic": ["a"]})
        with pytest.raises(MessageRefused, match="bytes"):
            await client.subscribe(["custom.b"], {**zones, "topic": ["b"]})
        await peer.say({"type": "ping"})
        assert await peer.hear() == {"type": "pong"}
        await peer.socket.close(1012)
        assert (await fake.accept()).hello["subscriptions"] == ["zone_updated", "custom.a"]


@pytest.mark.parametrize("subscriptions", [None, ["dns.*"]])
async def test_a_hello_that_is_too_big_ends_it(fake: Fake, subscriptions: list[str] | None) -> None:
    """A filter that no server would take is raised on entering, rather than tried again and again."""
    client = Client(fake.url, "tok", filter={"zone": ["x" * 70_000]}, subscriptions=subscriptions, **SOON)
    with pytest.raises(MessageRefused, match="bytes"):
        await client.__aenter__()
    assert len(fake.tokens) == 1


async def test_a_message_that_is_too_big_is_refused_here(fake: Fake) -> None:
    """No server takes more than 64 KB: it is not sent, whatever it is, and the connection goes on."""
    async with connected(fake) as (client, peer):
        with pytest.raises(MessageRefused, match="65536 bytes"):
            await client.refresh("a." + "b" * 70_000 + ".c")
        with pytest.raises(MessageRefused, match="bytes"):
            await client.subscribe(["custom." + "x" * 70_000])
        with pytest.raises(MessageRefused, match="65536 bytes"):
            await client.unsubscribe(["custom." + "x" * 70_000])
        await peer.say({"type": "ping"})
        assert await peer.hear() == {"type": "pong"}
    assert len(fake.tokens) == 1


async def test_a_message_upon_which_the_connection_was_closed_as_too_big_is_not_repeated(fake: Fake) -> None:
    """A proxy may take less than the server: what was largest is refused, all else is said again, and that is all."""
    async with connected(fake) as (client, peer):
        small, large = asyncio.create_task(client.stats()), asyncio.create_task(client.refresh("b" * 5000))
        assert {(await peer.hear())["type"] for _ in range(2)} == {"stats", "refresh"}
        await peer.socket.close(1009)
        with pytest.raises(MessageRefused, match="1009"):
            await large
        peer = await fake.accept()
        asked = await peer.hear()
        assert asked["type"] == "stats"
        await peer.say({"type": "reply", "id": asked["id"], "data": {"shard": 0}})
        assert await small == {"shard": 0}


async def test_a_hello_upon_which_the_connection_is_closed_as_too_big_ends_it(fake: Fake) -> None:
    """The same one would be said again and again; before the first welcome, and after it."""
    async with connected(fake) as (client, peer):
        await peer.socket.close(1012)
        peer = await fake.peer()
        await peer.hear()
        await peer.socket.close(1009)
        with pytest.raises(MessageRefused, match="1009"):
            await anext(client)


async def test_a_question_that_came_too_fast_is_asked_again(fake: Fake) -> None:
    """`rate_limited` is no refusal: the same is said again, no sooner than the server said, until it is answered."""
    clock = asyncio.get_running_loop().time
    too_fast: dict[str, Any] = {"type": "error", "code": "rate_limited", "message": "slower", "retry_after": 0.1}
    async with connected(fake) as (client, peer), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.subscribe(["a"], {"zone": ["a.example"]}))
        said = [await answer(peer, **too_fast)]
        for _ in range(2):
            refused_at = clock()
            said.append(await answer(peer, **too_fast))
            assert clock() - refused_at >= 0.1
        said.append(await answer(peer, "a"))
        assert (await asking).subscriptions == ["a"]
        assert all(message | {"id": 0} == said[0] | {"id": 0} for message in said)


async def test_a_rate_limit_without_an_end_is_a_refusal(fake: Fake) -> None:
    """An error that names no time to come back is raised, whatever its code."""
    async with connected(fake) as (client, peer), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(peer, type="error", code="rate_limited", message="never"))
        with pytest.raises(MessageRefused, match="never"):
            await client.stats()


async def test_many_questions_at_once_keep_to_what_a_server_bears(fake: Fake) -> None:
    """A hundred calls at once, of which a server refuses seven for rate: few are under way, and all are answered."""
    async with connected(fake) as (client, peer), asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(client.stats()) for _ in range(100)]
        refused = 0
        for number in range(107):
            question = await peer.hear()
            if number % 4 == 1 and refused < 7:
                refused += 1
                error = {"type": "error", "code": "rate_limited", "message": "", "retry_after": 0}
                await peer.say(error | {"id": question["id"]})
            else:
                await peer.say({"type": "reply", "id": question["id"], "data": {}})
        assert await asyncio.gather(*asking) == [{}] * 100


@pytest.mark.parametrize("error", [{"code": "rate_limited", "retry_after": 0}, {"code": "invalid_message"}])
async def test_what_a_server_refuses_never_ends_the_connection(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, error: dict[str, Any]
) -> None:
    """Whatever is refused, and whatever for: nine of it never come within the minute in which a server counts."""
    monkeypatch.setattr("solowire.sdk.request_pacer.REFUSALS_S", 1.5)
    monkeypatch.setattr("solowire.sdk.request_pacer.MAX_PAUSE_S", 0.05)
    clock = asyncio.get_running_loop().time
    heard: list[float] = []

    async def ask(client: Client) -> None:
        for _ in range(20):
            with suppress(MessageRefused):
                await client.stats()

    async with connected(fake) as (client, peer), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(client))
        for _ in range(18):
            question = await peer.hear()
            heard.append(clock())
            await peer.say({"type": "error", "message": "", "id": question["id"]} | error)
        asking.cancel()
    assert min(ninth - first for first, ninth in zip(heard, heard[8:], strict=False)) >= 1.4


@pytest.mark.parametrize("after", [-5, 1e300])
async def test_a_senseless_wait_is_bounded(fake: Fake, monkeypatch: pytest.MonkeyPatch, after: float) -> None:
    """A server that asks for no time, or for all of it, gets a pause within reason."""
    monkeypatch.setattr("solowire.sdk.connection_attempt.MAX_RETRY_AFTER_S", 0.2)
    async with connected(fake) as (client, peer), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.subscribe(["a"]))
        await answer(peer, type="error", code="rate_limited", message="slower", retry_after=after)
        await answer(peer, "a")
        await asking
        await peer.say({"type": "reconnect", "after_ms": int(min(after, 1e15)), "reason": "x"})
        await fake.accept()


async def test_refusals_are_raised_where_they_were_asked_for(fake: Fake) -> None:
    """An error is raised by the method whose message it answers, and changes nothing."""
    async with connected(fake, subscriptions=["audit_log"]) as (client, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer, type="error", code="invalid_filter", message="no", hint="so"))
            with pytest.raises(MessageRefused, match=r"no \(so\)") as refused:
                await client.subscribe(["x"], {"nope": ["1"]})
        assert refused.value.code == "invalid_filter"
        await peer.say({"type": "error", "id": None, "code": "x", "message": "nobody's"})
        await peer.socket.close(1012)
        assert (await fake.accept()).hello["subscriptions"] == ["audit_log"]


async def test_refused_hello_ends_it(fake: Fake) -> None:
    """A hello that the server does not take is raised on entering, since saying it again would not help."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fake.accept(type="error", id=1, code="invalid_filter", message="no such attribute"))
        with pytest.raises(MessageRefused, match="no such attribute"):
            async with Client(fake.url, "tok", filter={"nope": ["1"]}):
                pass


async def test_question_survives_a_lost_connection(fake: Fake) -> None:
    """What was asked on a connection that ends before the answer is asked again on the next."""
    async with connected(fake) as (client, peer), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.stats())
        assert (await peer.hear())["type"] == "stats"
        peer.socket.transport.abort()
        peer = await fake.accept()
        again = await peer.hear()
        await peer.say({"type": "reply", "id": again["id"], "data": {"shard": 3}})
        assert await asking == {"shard": 3}


async def test_question_ends_with_the_client(fake: Fake) -> None:
    """What waits for an answer is told when none can come any more."""
    async with connected(fake) as (client, peer):
        asking = asyncio.create_task(client.stats())
        await peer.hear()
        await peer.socket.close(4409)
        with pytest.raises(ConnectionEnded):
            await asking


async def test_refreshed_token_is_the_one_to_come_back_with(fake: Fake) -> None:
    """`refresh` shows a new token, and later connections begin with it."""
    async with connected(fake) as (client, peer):
        async with asyncio.TaskGroup() as tasks:
            said = tasks.create_task(answer(peer, type="reply", data={"token_expires_at": "later"}))
            assert await client.refresh("new") == {"token_expires_at": "later"}
        assert said.result()["token"] == "new"
        await peer.socket.close(1012)
        await fake.accept()
    assert fake.tokens == ["tok", "new"]


async def test_expiring_token_is_renewed_by_itself(fake: Fake) -> None:
    """On `token_expiring` an async token function gives a new one, which is shown; a refusal of it ends nothing."""
    fresh = iter(["t1", "t2", "t3"])
    notices: list[Notice] = []

    async def token() -> str:
        return next(fresh)

    async with connected(fake, token=token, on_notice=notices.append) as (client, peer):
        await peer.say({"type": "notice", "code": "token_expiring", "message": "soon"})
        assert (await answer(peer, type="reply", data={}))["token"] == "t2"
        await peer.say({"type": "notice", "code": "token_expiring", "message": "soon"})
        assert (await answer(peer, type="error", code="wrong_user", message=""))["token"] == "t3"
        await peer.say(events(1))
        await take(client, 1)
        assert [notice.code for notice in notices] == ["token_expiring"] * 2


EXPIRING = {"type": "notice", "code": "token_expiring", "message": "soon"}


async def test_notice_upon_notice_is_answered_ever_later(fake: Fake) -> None:
    """A server that answers each refresh with another notice gets a few refreshes, and not hundreds a second."""
    number = 0

    def token() -> str:
        nonlocal number
        number += 1
        return f"t{number}"

    async with connected(fake, token=token) as (_, peer):
        refreshes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while True:
                    await peer.say(EXPIRING)
                    await answer(peer, type="reply", data={})
                    refreshes += 1
        assert 2 <= refreshes <= 4


async def test_many_notices_are_one_task(fake: Fake) -> None:
    """However many notices come while a token is fetched, there is one more refresh at most."""
    asked = 0
    go_on = asyncio.Event()

    async def token() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            await go_on.wait()
        return f"t{asked}"

    async with connected(fake, token=token) as (_, peer):
        for _ in range(100):
            await peer.say(EXPIRING)
        await until(lambda: asked == 2)
        go_on.set()
        assert (await answer(peer, type="reply", data={}))["token"] == "t2"
        await peer.say({"type": "ping"})
        assert (await peer.hear())["type"] == "pong"


async def test_cached_token_is_asked_for_again_and_not_shown(fake: Fake) -> None:
    """A function that gives the present token for a while is asked again in a moment; the server hears one refresh."""
    tokens = iter(["t1", "t1", "t1", "t2"])
    async with connected(fake, token=lambda: next(tokens)) as (_, peer):
        await peer.say(EXPIRING | {"after_ms": 12_000})
        assert (await answer(peer, type="reply", data={}))["token"] == "t2"


async def test_token_that_the_server_refuses_ends_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused refreshes are followed by others, four times a minute at most."""
    monkeypatch.setattr(
        "solowire.sdk.token_renewal.REFUSED_PACE_S", 0.0
    )  # then it is a second, which is none of the point
    tokens = iter(f"t{n}" for n in range(1, 100))
    async with connected(fake, token=lambda: next(tokens)) as (_, peer):
        await peer.say(EXPIRING)
        for number in (2, 3):
            heard = await answer(peer, type="error", code="token_expired", message="stale")
            assert heard["token"] == f"t{number}"
        assert (await answer(peer, type="reply", data={}))["token"] == "t4"


async def test_renewal_ends_with_its_connection(fake: Fake) -> None:
    """What is under way for one connection is not shown on the next, which has a token of its own."""
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            await asyncio.Event().wait()
        return f"t{asked}"

    async with connected(fake, token=token) as (_, peer):
        await peer.say(EXPIRING)
        await until(lambda: asked == 2)
        await peer.socket.close(1012)
        peer = await fake.accept()
        await peer.say({"type": "ping"})
        assert (await peer.hear())["type"] == "pong"
        assert fake.tokens == ["t1", "t3"]


async def test_two_clients_of_one_user_do_not_chase_each_other(fake: Fake) -> None:
    """The one whose place was taken (4409) ends and says why, rather than taking it back."""
    async with connected(fake) as (client, peer):
        await peer.socket.close(4409, "replaced")
        with pytest.raises(ConnectionEnded, match="use one client for each user"):
            await anext(client)
    assert len(fake.tokens) == 1


async def test_token_function_that_fails(fake: Fake) -> None:
    """A token that can't be fetched for want of a network is tried again; any other fault is the caller's to see."""
    attempts = iter([OSError("down"), httpx.ConnectError("down"), KeyError("bug")])

    def token() -> str:
        raise next(attempts)

    with pytest.raises(KeyError, match="bug"):
        async with Client(fake.url, token, **SOON):
            pass


async def test_a_token_function_whose_own_wait_is_cancelled_is_asked_again(fake: Fake) -> None:
    """A CancelledError of the token function's own is a fault that passes: it does not leave whoever enters waiting."""
    attempts = iter([True, False])

    async def token() -> str:
        if next(attempts):
            waiting = asyncio.create_task(asyncio.sleep(DEADLINE_S))
            waiting.cancel()
            await waiting
        return "t"

    async with connected(fake, token=token) as (client, _):
        assert "cancelled" in str(client.last_reason)


async def test_a_client_whose_task_is_cancelled_says_so(fake: Fake) -> None:
    """Whoever iterates gets ConnectionEnded, rather than waiting for ever."""
    async with connected(fake) as (client, _):
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "solowire client")
        task.cancel()
        with pytest.raises(ConnectionEnded, match="cancelled"):
            await anext(client)


async def test_faulty_callbacks_end_nothing(fake: Fake) -> None:
    """A callback that raises is logged, and events go on."""

    def fault(what: object) -> None:
        raise ValueError(what)

    async with connected(fake, on_notice=fault, on_gap=fault) as (client, peer):
        await peer.say({"type": "notice", "code": "draining", "message": ""})
        await peer.socket.close(1012)
        peer = await fake.accept(resumed=False)
        await peer.say(events(1))
        assert offsets(await take(client, 1)) == [1]


# ---------------------------------------------------------------------------------------------- the buffer


async def flood(peer: Peer, frames: int) -> None:
    for number in range(frames):
        batch = [event(number * 10 + i, filler="x" * 6_000) for i in range(10)]
        await peer.say({"type": "events", "cursor": number * 10 + 9, "events": batch})


async def test_reader_that_is_slow_holds_the_server_back(fake: Fake) -> None:
    """A full buffer stops the reading of the socket: the server can't send on, and nothing is dropped."""
    frames = 400  # 24 MB, more than the kernel holds for one socket
    async with connected(fake, max_buffered=50) as (client, peer), asyncio.TaskGroup() as tasks:
        flooding = tasks.create_task(flood(peer, frames))
        await until(lambda: client._buffer.event_count >= 50)
        for number in range(frames * 10):
            assert (await anext(client)).offset == number
            assert client._buffer.event_count < 50 + 10
            if number == 100:
                assert not flooding.done()


async def test_asking_within_a_slow_iteration_works(fake: Fake) -> None:
    """A question asked while the buffer is full is answered, as it is read on for it, and no event is lost."""
    async with connected(fake, max_buffered=5) as (client, peer), asyncio.TaskGroup() as tasks:
        tasks.create_task(flood(peer, 20))
        await until(lambda: client._buffer.event_count >= 5)
        assert (await anext(client)).offset == 0
        answering = tasks.create_task(answer(peer, "a"))
        await client.subscribe(["a"])
        await answering
        assert offsets(await take(client, 199)) == list(range(1, 200))


async def test_full_buffer_does_not_hinder_closing(fake: Fake) -> None:
    """A client whose buffer is full is closed all the same, and its cursor stands where the iteration did."""
    async with connected(fake, max_buffered=5) as (client, peer):
        await flood(peer, 3)
        await until(lambda: client._buffer.event_count >= 5)
        await take(client, 1)
        await client.close()
        assert client.cursor == 0
        with pytest.raises(StopAsyncIteration):
            await anext(client)


# ---------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"url": 7}, "url"),
        ({"token": b"t"}, "token"),
        ({"token": None}, "token"),
        ({"subscriptions": "custom.*"}, r"subscriptions.*write \['custom\.\*'\]"),
        ({"subscriptions": b"custom.*"}, "subscriptions"),
        ({"subscriptions": {"a": 1}}, "subscriptions"),
        ({"subscriptions": 7}, "subscriptions"),
        ({"subscriptions": ["a", None]}, r"subscriptions\[1\]"),
        ({"filter": {"zone": "example.com"}}, r"filter\['zone'\].*write \['example\.com'\]"),
        ({"filter": {"zone": [1]}}, r"filter\['zone'\]\[0\]"),
        ({"filter": {1: ["a"]}}, "filter"),
        ({"filter": ["zone"]}, "filter"),
        ({"filter": "zone"}, "filter"),
        ({"resume": "e1"}, "resume"),
        ({"resume": ("e1", "7")}, "resume"),
        ({"resume": ("e1", None)}, "resume"),
        ({"max_buffered": "9"}, "max_buffered"),
        ({"max_buffered": 1.5}, "max_buffered"),
        ({"connect_timeout": "9"}, "connect_timeout"),
        ({"reconnect_min": None}, "reconnect_min"),
        ({"on_gap": 7}, "on_gap"),
        ({"on_notice": asyncio.sleep}, "on_notice.*async"),
        ({"on_state": asyncio.sleep}, "on_state.*async"),
        ({"ssl": False}, "ssl"),
        ({"strict": "no"}, "strict"),
        ({"compress": "false"}, "compress"),
        ({"reconnect": None}, "reconnect"),
    ],
)
def test_arguments_of_another_type_are_refused(wrong: dict[str, Any], words: str) -> None:
    """Each is a TypeError that names the argument, rather than being taken for something else."""
    with pytest.raises(TypeError, match=words):
        Client(**{"url": "http://x", "token": "t", **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://"},
        {"url": "http://x?token=y"},
        {"url": "http://a b"},
        {"url": "http://[::1"},
        {"token": ""},
        {"token": "a b"},
        {"token": "ü"},
        {"codec": "xml"},
        {"resume": ("e1", -1)},
        {"connect_timeout": 0},
        {"connect_timeout": float("nan")},
        {"steady_after": -1.0},
        {"reconnect_min": 5.0, "reconnect_max": 1.0},
        {"url": "http://ann:secret@x"},
        {"subscriptions": ["custom.\udcff"]},
        {"filter": {"zone": ["\udcff"]}},
        {"filter": {"\udcff": ["a"]}},
        {"resume": ("\udcff", 1)},
    ],
)
def test_values_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """Each is a ValueError that names what it should be, and no password."""
    with pytest.raises(ValueError, match=r"http|token|codec|resume|seconds|subscriptions|filter") as refused:
        Client(**{"url": "http://x", "token": "t", **wrong})
    assert not isinstance(refused.value, UnicodeError)
    assert "secret" not in str(refused.value)


async def test_arguments_of_methods_are_refused_too(fake: Fake) -> None:
    """`subscribe`, `unsubscribe` and `refresh` say nothing to the server of what they can't mean."""
    async with connected(fake) as (client, peer):
        for wrong in (
            client.subscribe("custom.*"),
            client.subscribe(["a"], {"zone": "example.com"}),
            client.subscribe(["a"], ["zone"]),  # type: ignore[arg-type]
            client.unsubscribe("custom.*"),
            client.refresh(None),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError):
                await wrong
        await peer.say({"type": "ping"})
        assert (await peer.hear())["type"] == "pong"


DENIED = [
    {"type": "dns_query_lgo", "reason": "unknown_type", "hint": "GET /v1/catalog lists the event types"},
    {"type": "audit_log", "reason": "forbidden", "hint": "needs the permission users.read"},
]


async def test_subscription_that_is_not_granted_is_a_warning(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt type is warned of once, with what was meant, and so is one that the role may not have."""
    async with connected(fake, subscriptions=["dns_query_lgo"], welcome={"denied": DENIED}) as (client, peer):
        await peer.socket.close(1012)
        await fake.accept(denied=DENIED)
        await until(lambda: client.connections == 2)
    warnings = [record.message for record in caplog.records if "not granted" in record.message]
    assert len(warnings) == 2
    assert "did you mean dns_query_log?" in warnings[0]
    assert "users.read" in warnings[1]


async def test_what_a_refreshed_token_does_not_grant_is_a_warning(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """A token that shows less than the one before takes subscriptions away: not in silence."""
    async with connected(fake, subscriptions=["audit_log"], welcome={"subscriptions": ["audit_log"]}) as (client, peer):
        await peer.say({"type": "subscriptions", "subscriptions": [], "denied": DENIED[1:]})
        await until(lambda: client.subscriptions == [])
    (warning,) = [record.message for record in caplog.records if "not granted" in record.message]
    assert "users.read" in warning


async def test_a_filter_that_narrows_nothing_is_a_warning(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """One by what no event type of its has is warned of once, as all events of these come; others are not."""
    async with connected(
        fake,
        subscriptions=["record_updated"],
        filter={"zone": ["example.com"], "backup_id": ["7"]},
        welcome={"subscriptions": ["record_updated"]},
    ) as (client, peer):
        await peer.socket.close(1012)
        peer = await fake.accept()
        await until(lambda: client.connections == 2)
        subscribing = asyncio.create_task(client.subscribe(["rpz_hit"], {"host": ["ns1"], "zone": ["example.com"]}))
        await answer(peer, "record_updated", "rpz_hit")
        await subscribing
    idle = [record.message for record in caplog.records if "narrows nothing" in record.message]
    assert [re.findall("'(.+)'", message) for message in idle] == [["backup_id"], ["host"]]


async def test_what_cannot_be_unsubscribed_is_told(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """Who misspells what should end is told that it goes on; with `strict` by an error."""
    denied = [{"type": "dns_query_lgo", "reason": "unknown_type", "hint": "x"}]
    for strict in (False, True):
        async with connected(fake, strict=strict) as (client, peer), asyncio.TaskGroup() as tasks:
            tasks.create_task(answer(peer, "a", denied=denied))
            if strict:
                with pytest.raises(SubscriptionDenied, match="did you mean dns_query_log"):
                    await client.unsubscribe(["dns_query_lgo"])
            else:
                await client.unsubscribe(["dns_query_lgo"])
                assert "not unsubscribed: 'dns_query_lgo' is no event type" in caplog.text


async def test_subscription_that_is_not_granted_is_an_error_if_strict(fake: Fake) -> None:
    """With `strict` it is raised on entering and by `subscribe`, with the reasons; a later welcome ends nothing."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fake.accept(denied=DENIED))
        with pytest.raises(SubscriptionDenied, match="did you mean dns_query_log") as refused:
            await Client(fake.url, "tok", strict=True, **SOON).__aenter__()
    assert refused.value.denied == {"dns_query_lgo": "unknown_type", "audit_log": "forbidden"}
    async with connected(fake, strict=True) as (client, peer), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(peer, "a", denied=DENIED))
        with pytest.raises(SubscriptionDenied):
            await client.subscribe(["dns_query_lgo"])
        await peer.socket.close(1012)
        await fake.accept(denied=DENIED)
        await until(lambda: client.connections == 2)
