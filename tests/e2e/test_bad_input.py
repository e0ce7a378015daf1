"""Bad input on the socket gets a clear answer, and nobody else notices: a neighbour is well at each test's end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.system import ANSWER_SECONDS, Session, System, open_session, running, sockets_with

MSGPACK = "solowire.v1.msgpack"
CUSTOM = {"subscriptions": ["custom.*"]}
KILO = 1024


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system of one shard with little patience for sockets that nobody reads, and for who says much."""
    settings = {
        "LISTEN__WRITE_TIMEOUT_S": 3,
        "LISTEN__SEND_BUFFER_BYTES": 32 * KILO,
        "SESSION__MESSAGE_RATE": 2,
        "SESSION__MESSAGE_BURST": 100,
    }
    with running(tmp_path_factory.mktemp("tight") / "data", shards=1, settings=settings) as started:
        yield started


@contextlib.asynccontextmanager
async def neighbour(system: System, shard: int = 0) -> AsyncIterator[Session]:
    """Another connection on the shard; at the end of the block it must answer and get an event."""
    user = system.user_on(shard, "neighbour")
    async with system.session(system.token(user), {"subscriptions": ["custom.neighbour"]}) as session:
        yield session
        assert (await session.ask("pong", type="ping", id="well"))["id"] == "well"
        await system.publish({"type": "custom.neighbour", "data": {"well": True}})
        assert [e["type"] for e in await session.events(1)] == ["custom.neighbour"]


def on_shard_0(system: System, name: str) -> str:
    return system.token(system.user_on(0, name))


JSON_FRAMES: dict[str, str | bytes] = {
    "empty": "",
    "no JSON": "hello?",
    "half a message": '{"type":"ping"',
    "not an object": "[]",
    "null": "null",
    "a number": "1e999",
    "no type": '{"id":1}',
    "unknown type": '{"type":"teleport"}',
    "a server's type": '{"type":"welcome"}',
    "type is a number": '{"type":1}',
    "missing field": '{"type":"subscribe"}',
    "wrong type of a field": '{"type":"subscribe","event_types":"dns.*"}',
    "wrong type within": '{"type":"subscribe","event_types":[1]}',
    "filter is a list": '{"type":"subscribe","event_types":["dns.*"],"filter":[]}',
    "token is a number": '{"type":"refresh","token":1}',
    "id is an object": '{"type":"ping","id":{}}',
    "id beyond all range": '{"type":"ping","id":' + "9" * 5000 + "}",
    "time beyond all range": '{"type":"ping","time":1e999}',
    "NaN": '{"type":"ping","time":NaN}',
    "deep lists": "[" * 60_000,
    "deep lists in a field": '{"type":"ping","id":' + "[" * 60_000,
    "deep objects in an unknown field": '{"type":"ping","x":' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}",
    "lone surrogate": '{"type":"refresh","token":"\\ud800"}',
    "binary garbage": b"\xff\xfe\x00",
    "too many types": json.dumps({"type": "subscribe", "event_types": [f"custom.t{i}" for i in range(201)]}),
    "too many values": json.dumps(
        {"type": "subscribe", "event_types": ["dns.*"], "filter": {"zone": [f"z{i}" for i in range(201)]}}
    ),
    "no values": '{"type":"subscribe","event_types":["dns.*"],"filter":{"zone":[]}}',
}


@pytest.mark.parametrize("name", JSON_FRAMES)
async def test_a_message_that_makes_no_sense_is_answered_and_the_connection_goes_on(system: System, name: str) -> None:
    """Whatever a client says, it is told what is wrong with it, may go on, and disturbs nobody."""
    async with neighbour(system), system.session(on_shard_0(system, "nonsense"), CUSTOM) as session:
        await session.socket.send(JSON_FRAMES[name])
        error = await session.hear("error")
        assert error["code"] in ("invalid_message", "too_many", "invalid_filter", "invalid_token")
        assert error["message"]
        assert len(json.dumps(error)) < 2000
        assert (await session.ask("pong", type="ping", id="on"))["id"] == "on"


async def test_messagepack_that_makes_no_sense_is_answered(system: System) -> None:
    """The same holds for MessagePack: cut, nested, alien, or text in place of binary."""
    frames: list[str | bytes] = [
        b"",
        b"\xc1",
        b"\x81\xa4type",
        b"\x91" * 60_000,
        msgspec.msgpack.encode({"type": "teleport"}),
        msgspec.msgpack.encode({"type": "subscribe", "event_types": [b"x"]}),
        b"\x82\xa4type\xa4ping\xa2id\xc7\x01\x05x",
        b"\xdf\xff\xff\xff\xff",
        '{"type":"ping"}',
    ]
    async with (
        neighbour(system),
        system.session(on_shard_0(system, "packed"), CUSTOM, subprotocols=[MSGPACK]) as session,
    ):
        for frame in frames:
            await session.socket.send(frame)
            assert (await session.hear("error"))["code"] == "invalid_message"
        assert await session.ask("pong", type="ping")


async def test_an_error_repeats_the_id_of_a_message_that_does_not_fit(system: System) -> None:
    """Who sends several messages at once can tell which of them was refused."""
    async with system.session(on_shard_0(system, "which"), CUSTOM) as session:
        for message in (
            {"type": "subscribe", "id": "a"},
            {"type": "teleport", "id": "b"},
            {"type": "refresh", "token": "x", "id": "c"},
        ):
            await session.say(**message)
            assert (await session.hear("error"))["id"] == message["id"]


async def test_json_in_a_binary_frame_is_understood(system: System) -> None:
    """A client that sends its JSON as bytes means the same, and is answered in text."""
    async with system.session(on_shard_0(system, "bytes"), CUSTOM) as session:
        await session.socket.send(b'{"type":"ping","id":1}')
        assert isinstance(raw := await session.socket.recv(), str)
        assert json.loads(raw)["type"] == "pong"


async def test_a_text_frame_that_is_not_utf_8_ends_that_connection_alone(system: System) -> None:
    """Invalid UTF-8 in a text frame breaks the protocol (RFC 6455, 8.1): that connection ends, no other does."""
    async with neighbour(system), system.session(on_shard_0(system, "latin"), CUSTOM) as session:
        await session.socket.send(b'{"type":"ping","id":"\xff\xfe"}', text=True)
        assert await session.closed() == (1007, "text is not valid UTF-8")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 14,  # reserved bits, reserved opcode
        b"\x81\x02hi",  # not masked
        b"\x8b\x80mask",  # reserved control opcode
        b"\x09\x80mask",  # a control frame in fragments
        b"\x80\x80mask",  # the continuation of nothing
    ],
)
async def test_frames_that_break_the_protocol_end_that_connection_alone(system: System, raw: bytes) -> None:
    """Bytes that are no WebSocket frames (RFC 6455, 5.2) end their connection with 1002, and no other."""
    async with neighbour(system), system.session(on_shard_0(system, "frames"), CUSTOM) as session:
        session.socket.transport.write(raw)
        assert await session.closed() == (1002, "WebSocket protocol error")


# ------------------------------------------------------------------------------------------------------------ size


def ping_of(size: int) -> str:
    """A valid ping of exactly `size` bytes."""
    empty = json.dumps({"type": "ping", "id": 1, "x": ""})
    return json.dumps({"type": "ping", "id": 1, "x": "x" * (size - len(empty))})


async def test_a_message_of_64_kb_is_taken_and_one_byte_more_is_not(system: System) -> None:
    """The largest message is answered; a larger one closes the connection with 1009."""
    async with neighbour(system), system.session(on_shard_0(system, "large"), CUSTOM) as session:
        await session.socket.send(ping_of(64 * KILO))
        assert (await session.hear("pong"))["id"] == 1
        await session.socket.send(ping_of(64 * KILO + 1))
        assert (await session.closed())[0] == 1009


async def test_size_is_counted_in_bytes(system: System) -> None:
    """A message whose characters take several bytes each is measured by its bytes."""
    async with neighbour(system), system.session(on_shard_0(system, "wide"), CUSTOM) as session:
        await session.socket.send('{"type":"ping","x":"' + "€" * (30 * KILO) + '"}')
        assert (await session.closed())[0] == 1009


async def test_a_message_in_many_fragments_is_measured_whole(system: System) -> None:
    """Splitting a large message into frames does not get it through."""
    async with neighbour(system), system.session(on_shard_0(system, "split"), CUSTOM) as session:
        with contextlib.suppress(ConnectionClosed):
            await session.socket.send(["x" * KILO] * 100)
        assert (await session.closed())[0] == 1009


async def test_a_huge_message_ends_its_connection_alone(system: System) -> None:
    """A megabyte closes the connection with 1009, and nobody else's."""
    async with neighbour(system), system.session(on_shard_0(system, "huge"), CUSTOM) as session:
        with contextlib.suppress(ConnectionClosed):
            await session.socket.send("x" * KILO * KILO)
        assert (await session.closed())[0] == 1009


async def test_a_frame_that_only_says_to_be_huge_is_not_waited_for(system: System) -> None:
    """Its head is enough to close the connection with 1009."""
    async with neighbour(system), system.session(on_shard_0(system, "boast"), CUSTOM) as session:
        session.socket.transport.write(b"\x81\xff" + struct.pack(">Q", 2**62) + b"mask")
        assert (await session.closed())[0] == 1009


# ------------------------------------------------------------------------------------------------- ill behaviour


async def test_ten_bad_messages_in_a_minute_end_the_connection(system: System) -> None:
    """Nine mistakes are answered; the tenth is answered, too, and closes the connection with 4400."""
    async with neighbour(system), system.session(on_shard_0(system, "clumsy"), CUSTOM) as session:
        for n in range(9):
            assert (await session.ask("error", type="teleport", id=n))["id"] == n
        assert await session.ask("pong", type="ping")
        assert (await session.ask("error", type="teleport", id=9))["id"] == 9
        assert await session.closed() == (4400, "10 bad messages within a minute")


async def test_a_flood_is_slowed_down_and_then_ended(tight: System) -> None:
    """Who sends faster than allowed is told how long to wait, and closed with 4400 if that changes nothing."""
    async with neighbour(tight), tight.session(on_shard_0(tight, "flood"), CUSTOM) as session:
        heard = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                await session.say(type="ping")
                heard.append(await session.hear())
        assert session.socket.close_code == 4400
        assert sum(m["type"] == "pong" for m in heard) >= 50
        limited = [m for m in heard if m["type"] == "error"]
        assert {m["code"] for m in limited} == {"rate_limited"}
        assert len(limited) == 10
        assert 0 < limited[0]["retry_after"] <= 1


async def test_handshakes_that_are_none_disturb_nobody(system: System) -> None:
    """Garbage, TLS and half a request on a shard's and the gateway's port end nothing but themselves."""
    async with neighbour(system):
        for port in (system.port, system.port + 1):
            for raw in (
                b"\x16\x03\x01\x02\x00\x01\x00",
                b"\x00" * 100,
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(raw)
                writer.write_eof()
                async with asyncio.timeout(ANSWER_SECONDS):
                    await reader.read()
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


# ------------------------------------------------------------------------------------------- clients that don't read


async def test_a_client_that_never_reads_is_ended_and_holds_up_nobody(tight: System) -> None:
    """While one client reads nothing others get everything; it is closed, and its connection and descriptor go."""
    shard = tight.pid_of("shard", "--index", "0")
    async with tight.session(tight.token("reader"), {"subscriptions": ["custom.bulk"]}) as reader:
        await until_there_are(tight, 1)
        async with (
            unread(tight, "deaf", {"subscriptions": ["custom.bulk"]}) as deaf,
            unread(tight, "mute", {"subscriptions": ["custom.bulk"]}) as mute,
        ):
            assert await connections_of(tight) == 3
            assert sockets_with(shard, deaf.port, mute.port) == 2
            expected = 0
            for _ in range(4):
                await tight.publish(
                    *({"type": "custom.bulk", "data": {"n": expected + i, "x": "x" * 30_000}} for i in range(60))
                )
                got = [e["data"]["n"] for e in await reader.events(60)]
                assert got == list(range(expected, expected + 60))
                expected += 60
            async with asyncio.timeout(ANSWER_SECONDS):
                while await connections_of(tight) > 1:
                    await reader.ask("pong", type="ping")
                    await asyncio.sleep(0.5)
                while sockets_with(shard, deaf.port, mute.port):  # while the clients still hold their ends open
                    await asyncio.sleep(0.05)
        await tight.publish({"type": "custom.bulk", "data": {"n": "last"}})
        assert [e["data"]["n"] for e in await reader.events(1)] == ["last"]


async def test_a_client_that_read_too_late_learns_why(tight: System) -> None:
    """A client that was ended as too slow and may read again comes back with its cursor, and misses nothing."""
    token = tight.token("late")
    hello = {"subscriptions": ["custom.late"]}
    async with unread(tight, "late", hello) as late:
        accepted = await tight.publish(
            *({"type": "custom.late", "data": {"n": n, "x": "x" * 30_000}} for n in range(120))
        )
        await until_there_are(tight, 0)
        cursor = late.welcome["cursor"]
        seen: list[Any] = []
        late.socket.transport.resume_reading()
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = await late.hear("events")
                cursor, seen = frame["cursor"], seen + [e["data"]["n"] for e in frame["events"]]
        assert len(seen) < 120
    resume = {"epoch": late.welcome["epoch"], "cursor": cursor}
    async with tight.session(token, {**hello, "resume": resume}) as session:
        assert session.welcome["resumed"]
        seen += [e["data"]["n"] for e in await session.events(120 - len(seen))]
    assert seen == list(range(120))
    assert accepted["accepted"] == 120


async def test_connections_that_come_and_go_leave_nothing_behind(tight: System) -> None:
    """A hundred connections later, however each of them ended, the shard has the descriptor of none."""
    shard = tight.pid_of("shard", "--index", "0")
    ports: list[int] = []

    async def come_and_go(n: int) -> None:
        token = tight.token(f"guest{n}")
        async with tight.session(token, CUSTOM) as session:
            assert sockets_with(shard, session.port) == 1
            ports.append(session.port)
            match n % 4:
                case 0:
                    session.socket.transport.abort()
                case 1:
                    await session.socket.send("x" * 100_000)
                    assert (await session.closed())[0] == 1009
                case 2:
                    async with tight.session(token, CUSTOM) as newer:
                        ports.append(newer.port)
                        assert (await session.closed())[0] == 4409
                case _:
                    pass  # says good-bye

    for start in range(0, 100, 10):
        await asyncio.gather(*map(come_and_go, range(start, start + 10)))
    await until_there_are(tight, 0)
    async with asyncio.timeout(ANSWER_SECONDS):
        while sockets_with(shard, *ports):
            await asyncio.sleep(0.05)


async def until_there_are(system: System, connections: int) -> None:
    """What has ended before is counted for a moment."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while await connections_of(system) != connections:
            await asyncio.sleep(0.05)


async def connections_of(system: System) -> int:
    """The shard's own count, which is not as old as the gateway's."""
    count: int = (await system.shard_stats(0))["connections"]
    return count


@contextlib.asynccontextmanager
async def unread(system: System, user: str, hello: dict[str, Any]) -> AsyncIterator[Session]:
    """A connection whose client has said hello, and from then on reads nothing."""
    url = (await system.negotiate(system.token(user)))["url"]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * KILO)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", system.port + 1))
    async with open_session(url, sock=sock, max_queue=1, close_timeout=0.1) as session:
        session.welcome = await session.ask("welcome", type="hello", **hello)
        session.socket.transport.pause_reading()
        yield session
