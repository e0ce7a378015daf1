"""The gateway's public port in front of a real Granian: every request arrives as it was sent, and in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import sys
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.gateway.asker import ASKER, yield_turn
from solowire.gateway.front import client_connection
from solowire.gateway.front.client_connection import REQUESTS_AT_A_TIME, FrontContext
from solowire.gateway.front.connection_registry import ConnectionRegistry
from solowire.gateway.front.http_front import ACCEPTS, HttpFront
from solowire.gateway.front.unread_bodies import with_ends
from solowire.runtime.http_server import WebServer, listen, listen_unix
from tests.support.examples import examples

SECONDS = 30.0
KILO = 1024
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A front over an application that tells what it was asked. bodies: how much of a body it takes; None: all."""

    def __init__(self) -> None:
        self.port = 0
        self.front: HttpFront
        self.seen: list[dict[str, Any]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_over = asyncio.Event()  # what requests wait for that have yielded their turn

    async def answer_direct(self, scope: Any, receive: Any, send: Any) -> None:
        """The same, in the front's own loop."""

        async def send_on(message: Any) -> None:
            send(message)

        if scope["query_string"] == b"fault":
            raise ValueError(scope["path"])
        await self.app({**scope, "direct": True}, receive, send_on)

    async def app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        body = b""
        if path == "/yields":
            yield_turn()
            await self.is_over.wait()
        await self.may_answer.wait()
        if "early" not in path and "unread" not in path:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.seen.append({"path": path, "left": True})
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
        names = [name for name, _ in scope["headers"]]
        self.seen.append(
            {
                "path": path,
                "method": scope["method"],
                "body": body,
                "peer": scope["client"],
                "names": names,
                "direct": "direct" in scope,
            }
        )
        answer = body or path.encode()
        if path.startswith("/large"):
            answer = b"x" * 20 * KILO * KILO
        headers = [(b"content-type", b"text/plain")]
        if path in ("/close", "/direct-early"):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 401 if "early" in path else 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        if path.endswith("-taken"):
            asker = ASKER.get()
            assert asker is not None
            if scope["query_string"] == b"cut":
                asker.abort()
            await asker.wait_until_taken()
            self.seen.append({"taken": path})


@contextlib.asynccontextmanager
async def site(folder: Path, **limits: Any) -> AsyncIterator[Site]:
    made = Site()
    times = {"head_s": SECONDS, "keepalive_s": SECONDS, "stalled_s": SECONDS}
    room: ConnectionRegistry[Any] = ConnectionRegistry(
        limits.pop("limiter", AcceptLimiter(100, 100)), limits.pop("max_files", sys.maxsize)
    )
    context = FrontContext(
        str(folder / "g"),
        registry=room,
        can_tunnel=lambda head: False,
        open_tunnel=lambda client, head, rest: None,
        is_trusted=lambda address: False,
        direct={
            (b"POST", b"/direct"): made.answer_direct,
            (b"POST", b"/direct-early"): made.answer_direct,
            (b"POST", b"/direct-unread"): made.answer_direct,
            (b"GET", b"/direct"): made.answer_direct,
        },
        **{**times, **limits},
    )
    front = made.front = HttpFront(context)
    server = WebServer(front.wrap(with_ends(made.app)), listen_unix(folder / "g"), handshake_s=SECONDS)
    server.start()
    listening = listen("127.0.0.1", 0)
    made.port = listening.getsockname()[1]
    await front.start(listening)
    try:
        async with asyncio.timeout(SECONDS):
            yield made
    finally:
        front.finish()
        await front.wait_for_ends(0.2)
        await server.finish()


@contextlib.asynccontextmanager
async def connected(
    site: Site, data: bytes = b"", address: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """address: whence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, local_addr=(address, 0))
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()  # else the loop may end before it, and another test is told of an open socket


async def answer_from(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer, all of which have a length here."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(head.partition("content-length: ")[2].split("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(size)


def post(body: bytes, path: str = "/") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


def chunked(*parts: bytes, path: str = "/") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    return head + b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: t\r\n\r\n"


@pytest.mark.parametrize("path", ["/", "/direct"])
async def test_requests_arrive_in_their_order_however_they_are_sent(tmp_path: Path, path: str) -> None:
    """With lengths, in chunks, without bodies, all in one piece or byte by byte, on one connection."""
    large, end = b"x" * 100 * KILO, path.encode()
    requests = [
        *(post(b"one", path), chunked(b"t", b"wo", path=path), GET, post(b"", path), post(large, path)),
        *(chunked(path=path), GET),
    ]
    expected = [b"one", b"two", b"/", end, large, end, b"/"]
    async with site(tmp_path) as made:
        async with connected(made, b"".join(requests)) as (reader, _):
            assert [await answer_from(reader) for _ in expected] == [(200, body) for body in expected]
        async with connected(made) as (reader, writer):
            for byte in b"".join(requests[:4]):
                writer.write(bytes([byte]))
                await writer.drain()
            assert [await answer_from(reader) for _ in range(4)] == [(200, body) for body in expected[:4]]
            port = writer.get_extra_info("sockname")[1]
        assert made.seen[-1]["peer"] == ("127.0.0.1", str(port))
        is_direct = path == "/direct"  # but for what comes in chunks
        assert [seen["direct"] for seen in made.seen[:4]] == [is_direct, False, False, is_direct]


async def test_what_is_answered_at_once_is_read_as_strictly(tmp_path: Path) -> None:
    """Two Hosts are refused; its query is no part of its path; old clients and those that ask first go to Granian."""
    twice = post(b"x", "/direct").replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n")
    old = b"POST /direct HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"
    asking = b"POST /direct HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
    async with site(tmp_path) as made:
        async with connected(made, twice) as (reader, _):
            status, body = await answer_from(reader)
            assert (status, b"bad_host" in body) == (400, True)
            assert await reader.read() == b""
        for request in (old, asking):
            async with connected(made, request) as (reader, writer):
                writer.write_eof()
                assert b" 200 OK" in await reader.read()
        async with connected(made, GET.replace(b"/ ", b"/direct?a=%20b ", 1)) as (reader, _):
            assert await answer_from(reader) == (200, b"/direct")
        async with connected(made, GET.replace(b"/ ", b"/directly ", 1)) as (reader, _):
            assert await answer_from(reader) == (200, b"/directly")
        assert [seen["direct"] for seen in made.seen] == [False, False, True, False]


async def test_a_client_that_asks_for_the_end_gets_it_behind_a_direct_answer(tmp_path: Path) -> None:
    """It is told so, and the connection is closed (RFC 9112, section 9.6)."""
    closing = GET.replace(b"/ ", b"/direct ", 1).replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
    async with site(tmp_path) as made, connected(made, closing) as (reader, _):
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"/direct")


async def test_a_fault_of_what_answers_at_once_is_told_and_ends_one_connection(tmp_path: Path) -> None:
    """The client has a problem body, and the next one an answer."""
    async with site(tmp_path) as made:
        async with connected(made, GET.replace(b"/ ", b"/direct?fault ", 1) + GET) as (reader, _):
            status, body = await answer_from(reader)
            assert (status, b"internal_error" in body) == (500, True)
            assert await reader.read() == b""
        async with connected(made, GET.replace(b"/ ", b"/direct ", 1)) as (reader, _):
            assert await answer_from(reader) == (200, b"/direct")


async def test_an_answer_at_once_before_the_body_is_read(tmp_path: Path) -> None:
    """It reaches its client, which has sent megabytes that nobody wanted, and the connection ends."""
    async with site(tmp_path) as made, connected(made) as (reader, writer):
        writer.write(post(b"x" * 8 * KILO * KILO, "/direct-early"))
        assert (await answer_from(reader))[0] == 401
        assert await reader.read() == b""


async def test_who_leaves_in_the_midst_of_a_body_is_missed(tmp_path: Path) -> None:
    """What answers at once hears of it; and what it doesn't ask for yet waits at the client's."""
    async with site(tmp_path) as made:
        made.may_answer.clear()
        async with connected(made, post(b"x" * 8 * KILO * KILO, "/direct")[:-1]) as (_, writer):
            while not made.front.context.registry.clients:
                await asyncio.sleep(0.01)
            [client] = made.front.context.registry.clients
            while client.transport.is_reading():
                await asyncio.sleep(0.01)
            assert writer.transport.get_write_buffer_size() > KILO * KILO
            made.may_answer.set()
            await writer.drain()
        while not made.seen:
            await asyncio.sleep(0.01)
        assert made.seen == [{"path": "/direct", "left": True}]


async def test_requests_that_are_held_back_keep_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the answers to wrong tokens are: of their address, or of the proxy that all come by."""
    monkeypatch.setattr(client_connection, "TURN_SECONDS", 10 * SECONDS)
    async with site(tmp_path) as made, contextlib.AsyncExitStack() as stack:
        held = GET.replace(b"/ ", b"/yields ", 1)
        many = [await stack.enter_async_context(connected(made, held)) for _ in range(3 * REQUESTS_AT_A_TIME)]
        async with connected(made, GET) as (reader, _):
            assert await answer_from(reader) == (200, b"/")
        made.is_over.set()
        for reader, _ in many:
            assert await answer_from(reader) == (200, b"/yields")


async def test_the_requests_of_a_flood_wait_for_each_other(tmp_path: Path) -> None:
    """One address has so many under way in Granian; another's go on at once, and all are answered in the end."""
    async with site(tmp_path) as made, contextlib.AsyncExitStack() as stack:
        made.may_answer.clear()
        many = 3 * REQUESTS_AT_A_TIME
        flood = [await stack.enter_async_context(connected(made, GET + post(b"two"), "127.0.0.2")) for _ in range(many)]
        under_way = made.front.context.turns
        while len(made.front.context.registry.clients) < many or not len(under_way):
            await asyncio.sleep(0.01)
        async with connected(made, GET) as (reader, writer):
            while len(under_way) < 2:
                await asyncio.sleep(0.01)
            for _, leaving in flood[-2:] + flood[:2]:  # of those that wait, and of those under way
                leaving.transport.abort()
            writer.write_eof()
            made.may_answer.set()
            assert await answer_from(reader) == (200, b"/")
            assert await reader.read() == b""
        for reader, _ in flood[2:-2]:
            assert [await answer_from(reader) for _ in range(2)] == [(200, b"/"), (200, b"two")]
        while len(under_way):
            await asyncio.sleep(0.01)


async def test_a_flood_of_what_is_answered_at_once_takes_turns_too(tmp_path: Path) -> None:
    """In one turn of the loop so many of one address are begun, however many have come; all are answered in the end."""
    async with site(tmp_path) as made, contextlib.AsyncExitStack() as stack:
        many = 5 * REQUESTS_AT_A_TIME
        flood = [await stack.enter_async_context(connected(made, b"", "127.0.0.2")) for _ in range(many)]
        while len(made.front.context.registry.clients) < many:
            await asyncio.sleep(0.01)
        for _, writer in flood:
            writer.write(post(b"one", "/direct") + post(b"two", "/direct"))
        most = before = 0
        while len(made.seen) < 2 * many:
            await asyncio.sleep(0)
            most, before = max(most, len(made.seen) - before), len(made.seen)
        assert 0 < most <= REQUESTS_AT_A_TIME
        for reader, _ in flood:
            assert [await answer_from(reader) for _ in range(2)] == [(200, b"one"), (200, b"two")]
        assert not len(made.front.context.direct_turns)


async def test_what_is_answered_at_once_waits_for_nobody_in_granian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of one address wait there for their turn, and how long."""
    monkeypatch.setattr("solowire.gateway.front.client_connection.TURN_SECONDS", 2 * SECONDS)
    async with site(tmp_path) as made, contextlib.AsyncExitStack() as stack:
        many = 2 * REQUESTS_AT_A_TIME
        for _ in range(many):
            await stack.enter_async_context(connected(made, post(b"x" * KILO)[:-1]))
        while len(made.front.context.registry.clients) < many:
            await asyncio.sleep(0.01)
        async with connected(made, GET.replace(b"/", b"/direct", 1)) as (reader, _):
            assert await answer_from(reader) == (200, b"/direct")


@pytest.mark.parametrize(
    "request_", [GET.replace(b"/ ", b"/large ", 1), post(b"x" * KILO)[:-1]], ids=["reads", "sends"]
)
async def test_a_request_that_waits_for_its_client_keeps_no_other_waiting(tmp_path: Path, request_: bytes) -> None:
    """However many of one address don't read their answers, or don't send their bodies, the next one is answered."""
    async with site(tmp_path) as made, contextlib.AsyncExitStack() as stack:
        for _ in range(2 * REQUESTS_AT_A_TIME):
            _, writer = await stack.enter_async_context(connected(made, request_))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with connected(made, GET) as (reader, _):
            assert await answer_from(reader) == (200, b"/")


def test_who_comes_in_a_crowd_is_let_in_within_a_few_turns(tmp_path: Path) -> None:
    """However long a turn of the loop is: a queue of newcomers has no turn for each."""

    async def let_in() -> None:
        async with site(tmp_path) as made:
            crowd = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(5 * ACCEPTS)]
            turns = 0
            while len(made.front.context.registry.clients) < len(crowd):
                await asyncio.sleep(0)
                turns += 1
            for one in crowd:
                one.close()
            assert turns < len(crowd) / 4

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(let_in())


async def test_an_address_that_opens_connections_too_fast_is_cut_and_nobody_else(tmp_path: Path) -> None:
    """What is beyond its rate gets no answer, which would make others wait; it is counted."""
    async with site(tmp_path, arrivals=BucketTable(Rate(0.001, 3), 100)) as made:
        for _ in range(3):
            async with connected(made, GET, "127.0.0.2") as (reader, _writer):
                assert await answer_from(reader) == (200, b"/")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with connected(made, GET, "127.0.0.2") as (reader, _writer):
                await reader.readexactly(1)
        async with connected(made, GET, "127.0.0.3") as (reader, _writer):
            assert await answer_from(reader) == (200, b"/")
        assert made.front.context.registry.limiter.rejected_count == 1


def test_who_has_gone_before_it_was_accepted_has_no_request(tmp_path: Path) -> None:
    """uvloop can't say whose it was: no limit would count it."""

    async def ask() -> None:
        async with site(tmp_path) as made:
            for _ in range(3):  # in one turn of the loop: the server accepts behind it
                with socket.create_connection(("127.0.0.1", made.port)) as gone:
                    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    gone.sendall(post(b"gone", "/direct"))
            async with connected(made, post(b"here", "/direct")) as (reader, _):
                assert await answer_from(reader) == (200, b"here")
            assert [seen["body"] for seen in made.seen] == [b"here"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())


async def test_addresses_that_fill_all_the_room_make_some_for_another(tmp_path: Path) -> None:
    """Whoever has less than its share is let in, in the place of the newest that has sent nothing of who has most."""
    async with site(tmp_path, limiter=AcceptLimiter(6, 4)) as made, contextlib.AsyncExitStack() as stack:
        for address, count in (("127.0.0.2", 4), ("127.0.0.3", 2)):
            silent = [await stack.enter_async_context(connected(made, b"", address)) for _ in range(count)]
            if count == 4:
                most = silent
        while len(made.front.context.registry.clients) < 6:
            await asyncio.sleep(0.01)
        async with connected(made, GET) as (reader, _):
            assert await answer_from(reader) == (200, b"/")
            assert await most[-1][0].read() == b"", "the newest of the most"
            assert made.front.context.registry.limiter.rejected_count == 0
        async with connected(made, GET, "127.0.0.2") as (reader, _), connected(made, GET, "127.0.0.2") as (other, _):
            assert (await answer_from(reader))[0] == 200, "there is room"
            assert (await answer_from(other))[0] == 503, "it has its share"


@pytest.mark.parametrize(
    "request_",
    [
        post(b"x" * KILO, "/direct-unread")[:-1],
        b"no request\r\n\r\n",
        GET.replace(b"/ ", b"/large ", 1),
        post(b"x" * 99)[:-1],
        post(b"x" * 99, "/direct")[:-1],
    ],
    ids=["drain", "linger", "read", "send", "send-direct"],
)
async def test_addresses_that_keep_all_the_room_waiting_for_them_make_some_too(tmp_path: Path, request_: bytes) -> None:
    """Whoever has had its answer, or doesn't read it, or doesn't send its body, is in nobody's place for that."""
    async with site(tmp_path, limiter=AcceptLimiter(6, 4)) as made, contextlib.AsyncExitStack() as stack:
        for address, count in (("127.0.0.2", 4), ("127.0.0.3", 2)):
            for _ in range(count):
                reader, writer = await stack.enter_async_context(connected(made, request_, address))
                if b"large" not in request_ and b"Length: 99" not in request_:
                    await reader.readuntil(b"\r\n\r\n")
                writer.transport.pause_reading()  # type: ignore[attr-defined]
        while len(made.front.context.registry.clients) < 6 or not all(
            client.waits_for_client for client in made.front.context.registry.clients
        ):
            await asyncio.sleep(0.01)
        async with connected(made, GET) as (reader, _):
            assert await answer_from(reader) == (200, b"/")
        assert made.front.context.registry.limiter.rejected_count == 0


async def test_who_reads_no_answers_has_no_further_requests_taken(tmp_path: Path) -> None:
    """Of a flood of small answers no more is held here than fits the buffers; who reads them after all gets them all.

    They are more than the sockets hold on the way.
    """
    body, count = b"x" * KILO, 15_000
    async with site(tmp_path) as made, connected(made) as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post(body, "/direct") * count)
        while not made.front.context.registry.clients:
            await asyncio.sleep(0.01)
        [client] = made.front.context.registry.clients
        while client.transport.get_write_buffer_size() < 64 * KILO:
            await asyncio.sleep(0)
        async with connected(made) as (other, asking):  # in each of whose turns the flood might have one, too
            for _ in range(200):
                asking.write(post(body, "/direct"))
                assert await answer_from(other) == (200, body)
        assert client.transport.get_write_buffer_size() <= 2 * 64 * KILO
        assert not client.transport.is_reading()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(count):
            assert await answer_from(reader) == (200, body)


async def test_a_head_request_has_no_body_and_the_next_one_has(tmp_path: Path) -> None:
    """The answer to HEAD says a length and has none; whoever counts on it would wait for ever."""
    async with site(tmp_path) as made, connected(made, GET.replace(b"GET", b"HEAD") + GET) as (reader, _):
        assert b"content-length: 1\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert await answer_from(reader) == (200, b"/")


async def test_old_clients_and_those_that_ask_before_they_send(tmp_path: Path) -> None:
    """HTTP/1.0 is answered and closed; `Expect: 100-continue` is answered twice."""
    async with site(tmp_path) as made:
        async with connected(made, b"GET / HTTP/1.0\r\n\r\n") as (reader, _):
            assert await answer_from(reader) == (200, b"/")
            assert await reader.read() == b""
        head = post(b"body").replace(b"Host", b"Expect: 100-continue\r\nHost").removesuffix(b"body")
        async with connected(made, head) as (reader, writer):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(b"body" + GET)
            assert [await answer_from(reader) for _ in range(2)] == [(200, b"body"), (200, b"/")]


async def test_open_files_have_a_limit(tmp_path: Path) -> None:
    """Beyond it a connection is refused at once, and the process never runs out."""
    async with site(tmp_path, max_files=3) as made, connected(made, GET) as (first, _):
        assert (await answer_from(first))[0] == 200
        async with connected(made, GET) as (reader, _):
            status, body = await answer_from(reader)
            assert (status, b"ulimit -n" in body) == (503, True)


async def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    """Both framings, two lengths, foreign codings, folded headers, line feeds alone, chunks of no size."""
    wrong = {
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 400,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd": 400,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc": 400,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n": 501,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n": 400,
        b"GET / HTTP/1.1\nHost: x\r\n\r\n": 400,
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n": 400,
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 17 * KILO + b"\r\n\r\n": 431,
        chunked().replace(b"0\r\n", b"g\r\n"): 400,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n": 400,
    }
    async with site(tmp_path) as made:
        for raw, status in wrong.items():
            async with connected(made, raw) as (reader, _):
                assert (await answer_from(reader))[0] == status, raw
                assert await reader.read() == b"", raw
        assert all(seen.get("left") for seen in made.seen)


async def test_nobody_says_whose_peer_it_is_but_the_front(tmp_path: Path) -> None:
    """The header that says so is the front's secret; what has not come through it is refused."""
    async with site(tmp_path) as made:
        forged = GET.replace(b"Host: x", b"X-Peer: 1.2.3.4 5\r\nHost: x")
        async with connected(made, forged) as (reader, _):
            assert (await answer_from(reader))[0] == 200
        assert made.seen[-1]["peer"][0] == "127.0.0.1"
        assert made.seen[-1]["names"] == [b"x-peer", b"host"]
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "g"))
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_an_answer_that_comes_before_the_body_is_read(tmp_path: Path) -> None:
    """A client that goes on writing gets it whole, and the connection ends, unless little was to come."""
    async with site(tmp_path) as made:
        long = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"
        async with connected(made, long) as (reader, writer):
            assert await answer_from(reader) == (401, b"/early")
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    writer.write(b"x" * KILO)
                    await writer.drain()
            assert await reader.read() == b""
        short = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
        async with connected(made, short) as (reader, writer):
            assert await answer_from(reader) == (401, b"/early")
            writer.write(b"abcde" + GET)
            rest = await asyncio.wait_for(reader.read(9), SECONDS)
            assert rest in (b"", b"HTTP/1.1 ")  # whether Granian keeps it is a matter of which came first


async def test_a_body_that_nobody_reads_costs_the_next_request_nothing(tmp_path: Path) -> None:
    """Granian closes its side behind the answer. The next request may be another user's, by a proxy that keeps us."""
    unread = [post(b"x" * 200 * KILO, path="/early"), post(b"x" * 200 * KILO, path="/unread")]
    unreadable = [chunked(b"x", path=path).replace(b"Trailer: t", b"no trailer") for path in ("/early", "/unread")]
    async with site(tmp_path) as made:
        for first in (*unread, *unreadable) * 20:
            async with connected(made, first + GET) as (reader, _):
                assert (await answer_from(reader))[0] in (200, 401)
                assert await reader.read() == b""


async def test_an_answer_that_was_given_before_the_body_could_be_sent_on_is_found(tmp_path: Path) -> None:
    """Granian answers early and closes: sending it more fails before anybody has read what it said."""
    answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 5\r\n\r\nearly"
    sent: list[asyncio.StreamWriter] = []

    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sent[0].write(b"more")  # is there for the front before the answer is
        writer.write(answer)
        writer.transport.abort()

    async with site(tmp_path) as made, await asyncio.start_unix_server(answer_and_close, tmp_path / "other"):
        made.front.context.upstream = str(tmp_path / "other")
        for _ in range(20):
            async with connected(made) as (reader, writer):
                sent[:] = [writer]
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
                assert await answer_from(reader) == (401, b"early")
                assert await reader.read() == b""


async def test_whoever_is_taken_over_keeps_nothing_of_granian(tmp_path: Path) -> None:
    """A tunnel counts as two open files: the connection that its client's requests went by before is closed."""
    ended: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        ended.put_nowait(await reader.read())
        writer.close()

    async with site(tmp_path) as made, await asyncio.start_unix_server(answer_once, tmp_path / "other"):
        made.front.context.upstream = str(tmp_path / "other")
        made.front.context.can_tunnel = lambda head: head.path == "/tunnel"
        async with connected(made, GET) as (reader, writer):
            assert await answer_from(reader) == (200, b"ok")
            writer.write(b"GET /tunnel HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
            assert await asyncio.wait_for(ended.get(), SECONDS) == b""


async def test_a_client_that_closes_its_half_has_its_answer(tmp_path: Path) -> None:
    """As `nc` does; one that closes in the midst of its body is told to the application as gone."""
    async with site(tmp_path) as made:
        async with connected(made, post(b"all")) as (reader, writer):
            writer.write_eof()
            assert await answer_from(reader) == (200, b"all")
            assert await reader.read() == b""
        async with connected(made, post(b"all")[:-1]) as (reader, writer):
            writer.write_eof()
            assert await reader.read() == b""
        while not any(seen.get("left") for seen in made.seen):
            await asyncio.sleep(0.01)


async def test_the_time_for_a_head_and_for_a_next_request(tmp_path: Path) -> None:
    """Who says nothing, half a head, or nothing more after an answer is closed when its time is over."""
    async with site(tmp_path, head_s=0.3, keepalive_s=0.3) as made:
        for data in (b"", GET[:10], GET + GET[:10]):
            async with connected(made, data) as (reader, _):
                if data.startswith(GET):
                    await answer_from(reader)
                assert await reader.read() == b""
        async with connected(made, GET) as (reader, _):
            await answer_from(reader)
            assert await reader.read() == b""


async def test_the_newest_is_refused_but_one_that_is_only_kept_makes_room(tmp_path: Path) -> None:
    """Connections that wait for nothing are closed for newer ones; those that have not said all yet are not."""
    async with site(tmp_path, limiter=AcceptLimiter(3, 2)) as made, contextlib.AsyncExitStack() as stack:
        first, _ = await stack.enter_async_context(connected(made, GET))
        await answer_from(first)
        silent, half = [await stack.enter_async_context(connected(made, data)) for data in (b"", GET[:9])]
        assert await first.read() == b"", "the idle one made room"
        async with connected(made, GET) as (reader, _):
            status, body = await answer_from(reader)
            assert (status, b"SOLOWIRE_GATEWAY__MAX_HTTP_CONNECTIONS_PER_ADDRESS" in body) == (503, True)
        assert made.front.context.registry.limiter.rejected_count == 1
        for reader, writer in (silent, half):
            writer.write(GET if reader is silent[0] else GET[9:])
            assert await answer_from(reader) == (200, b"/")


async def test_a_client_that_reads_nothing_is_cut_and_costs_little(tmp_path: Path) -> None:
    """Of twenty megabytes no more is held here than fits the buffers, until it has taken nothing for too long."""
    async with site(tmp_path, stalled_s=0.5) as made, connected(made, GET.replace(b"/ ", b"/large ")) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        while not made.front.context.registry.clients:
            await asyncio.sleep(0.01)
        [client] = made.front.context.registry.clients
        held = 0
        while made.front.context.registry.clients:
            held = max(held, client.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
        assert 0 < held <= 3 * 64 * KILO


async def test_where_granian_is_not_there_it_is_said(tmp_path: Path) -> None:
    """A request that can't be passed on is refused, and nothing is left waiting."""
    async with site(tmp_path) as made:
        made.front.context.upstream += "-gone"
        async with connected(made, GET) as (reader, _):
            assert (await answer_from(reader))[0] == 503


REQUESTS = st.lists(
    st.one_of(
        st.just(GET),
        st.binary(max_size=300).map(post),
        st.binary(max_size=300).map(lambda body: post(body, "/direct")),
        st.just(GET.replace(b"/ ", b"/direct ", 1)),
        st.lists(st.binary(min_size=1, max_size=50), max_size=4).map(lambda parts: chunked(*parts)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS, st.data())
async def test_any_requests_in_any_pieces_are_read_as_h11_reads_them(
    tmp_path: Path, requests: list[bytes], data: st.DataObject
) -> None:
    """The application sees the same methods and bodies that h11 makes of the same bytes."""
    raw = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    async with site(tmp_path) as made, connected(made) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        for _ in requests:
            assert (await answer_from(reader))[0] == 200
        assert [(seen["method"], seen["body"]) for seen in made.seen] == read_by_h11(raw)
    gc.collect()


def read_by_h11(raw: bytes) -> list[tuple[str, bytes]]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    found: list[tuple[str, bytes]] = []
    while True:
        match connection.next_event():
            case h11.Request(method=method):
                found.append((method.decode(), b""))
            case h11.Data(data=piece):
                found[-1] = (found[-1][0], found[-1][1] + bytes(piece))
            case h11.EndOfMessage():
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            case _:
                return found


async def test_who_gets_no_answer_from_behind_the_front_is_told_so(tmp_path: Path) -> None:
    """It was an end without a word, which a client takes for a network's fault; what has begun is only cut."""
    begun = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/begun " in head:
            writer.write(begun)
        writer.close()

    async with site(tmp_path) as made, await asyncio.start_unix_server(hang_up, tmp_path / "other"):
        made.front.context.upstream = str(tmp_path / "other")
        for request in (GET, post(b"x" * KILO * KILO), post(b"x" * KILO * KILO)[:-1]):
            async with connected(made, request) as (reader, _):
                status, problem = await answer_from(reader)
                assert status == 503
                assert b"overloaded" in problem
                assert await reader.read() == b""
        async with connected(made, GET.replace(b"/ ", b"/begun ", 1)) as (reader, _):
            assert await reader.read() == begun


@pytest.mark.parametrize("how", ["read", "left", "cut"])
async def test_an_application_waits_until_its_answer_is_taken(tmp_path: Path, how: str) -> None:
    """However large an answer is: it is taken when its client has read it, or is gone."""
    async with site(tmp_path) as made:
        query = b"?cut" if how == "cut" else b""
        async with connected(made, b"GET /large-taken%s HTTP/1.1\r\nHost: x\r\n\r\n" % query) as (reader, writer):
            if how != "cut":
                while not made.seen:
                    await asyncio.sleep(0.01)
                [client] = made.front.context.registry.clients
                while not client.waits_for_client:
                    await asyncio.sleep(0.01)
                assert {"taken": "/large-taken"} not in made.seen
            if how == "read":
                assert len((await answer_from(reader))[1]) == 20 * KILO * KILO
            elif how == "left":
                writer.transport.abort()
            while {"taken": "/large-taken"} not in made.seen:
                await asyncio.sleep(0.01)
            if how == "read":
                writer.write(GET)
                assert (await answer_from(reader))[0] == 200
        while made.front.context.registry.clients:
            await asyncio.sleep(0.01)
        assert not made.front.context.askers
