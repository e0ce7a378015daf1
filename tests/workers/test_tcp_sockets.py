"""A shard's sockets, taken from Granian after the handshake: real connections, and clients of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode

from solowire.codes import CloseCode
from tests.workers.test_sockets import LARGE, SECONDS, TcpPeers, close, until_busy
from workers.connection import Connection
from workers.tcp_sockets import Socket

HANDSHAKE = (
    b"GET /ws?ticket=any HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
async def peers() -> AsyncIterator[TcpPeers]:
    peers = TcpPeers()
    try:
        yield peers
    finally:
        await peers.close()


@contextlib.asynccontextmanager
async def plain(peers: TcpPeers) -> AsyncIterator[tuple[Connection, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that speaks TCP and does as the test says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", peers.port)
    try:
        writer.write(HANDSHAKE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        yield await peers.opened(), reader, writer
    finally:
        writer.transport.abort()


async def until(peers: TcpPeers, what: object, among: object) -> None:
    """Waits until `what` is in `among`, which the server changes."""
    async with asyncio.timeout(SECONDS):
        while what not in among:  # type: ignore[operator]
            await peers.turn()


def fill(peers: TcpPeers, connection: Connection) -> int:
    """Queues large frames until the kernel takes no more; how many."""
    taken = 0
    while not peers.sockets.busy(connection):
        peers.sockets.queue(LARGE, connection)
        taken += 1
    return taken


def masked(opcode: Opcode, payload: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


def watched(number: int) -> int | None:
    """For what a descriptor is watched, as the kernel has it; None if it isn't."""
    for listed in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError):
            text = Path("/proc/self/fdinfo", listed).read_text()
            found = re.search(rf"tfd: +{number} events: +([0-9a-f]+) .*pos", text)
            if found and int(found[1], 16) < EPOLLET:  # Granian's own is edge-triggered
                return int(found[1], 16) & ~(EPOLLERR | EPOLLHUP)
    return None


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_a_message_arrives_in_whatever_pieces(peers: TcpPeers) -> None:
    """Whole, byte by byte, two in one piece, or as fragments with a ping between them, and in their order."""
    async with plain(peers) as (_, reader, writer):
        writer.write(masked(Opcode.TEXT, b"whole"))
        await until(peers, "whole", peers.received)
        for byte in masked(Opcode.BINARY, b"bytes"):
            writer.write(bytes([byte]))
            await writer.drain()
            await peers.turn()
        writer.write(masked(Opcode.TEXT, b"one") + masked(Opcode.TEXT, b"two"))
        writer.write(masked(Opcode.TEXT, b"frag", fin=False) + masked(Opcode.PING, b"?"))
        writer.write(masked(Opcode.CONT, b"ments"))
        await until(peers, "fragments", peers.received)
        assert peers.received == ["whole", b"bytes", "one", "two", "fragments"]
        assert await asyncio.wait_for(reader.readexactly(3), SECONDS) == b"\x8a\x01?"


async def test_a_ping_of_the_protocol_is_answered(peers: TcpPeers) -> None:
    """As many client libraries send them by themselves."""
    client = peers.client(await peers.join())
    await asyncio.wait_for(await client.ping(), SECONDS)


async def test_a_client_that_says_good_bye_hears_it_back(peers: TcpPeers) -> None:
    """With its own code, and the connection is over for the shard and for both ends."""
    connection = await peers.join()
    client = peers.client(connection)
    await asyncio.wait_for(client.close(3000, "home"), SECONDS)
    assert client.close_code == 3000
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd_then_sent is False
    await until(peers, connection, peers.ended)


async def test_a_client_that_says_good_bye_and_stays_is_over(peers: TcpPeers) -> None:
    """It has its answer, and its end of the connection is its own affair."""
    async with plain(peers) as (connection, reader, writer):
        writer.write(masked(Opcode.CLOSE, b"\x03\xe8"))
        assert await asyncio.wait_for(reader.read(), SECONDS) == b"\x88\x02\x03\xe8"
        await until(peers, connection, peers.ended)


async def test_the_end_comes_right_behind_our_close(peers: TcpPeers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client needn't know that it has to answer: it sees the end, also one that first has to read what was kept."""
    monkeypatch.setattr("workers.tcp_sockets.CLOSE_SECONDS", 10 * SECONDS)
    async with plain(peers) as (connection, reader, _):
        close(peers, connection, CloseCode.replaced)
        assert (await asyncio.wait_for(reader.read(), SECONDS)).startswith(b"\x88")
    late = await peers.join()
    taken = fill(peers, late)
    close(peers, late, CloseCode.replaced)
    for _ in range(taken):
        assert await peers.read(late) == LARGE
    assert (await peers.end(late))[0] == CloseCode.replaced
    await until(peers, late, peers.ended)


async def test_a_client_that_vanishes_is_over(peers: TcpPeers) -> None:
    """With a reset, with an end, or half-way through a frame; nothing that is sent to it later does harm."""
    for vanish in ("reset", "end", "half"):
        async with plain(peers) as (connection, _, writer):
            match vanish:
                case "reset":
                    writer.transport.abort()
                case "end":
                    writer.close()
                case _:
                    writer.write(masked(Opcode.TEXT, b"half")[:7])
                    writer.write_eof()
            peers.sockets.send("to nobody", [connection])
            await until(peers, connection, peers.ended)
            assert peers.sockets.send("to nobody", [connection]) == []
            peers.sockets.queue("to nobody", connection)
            peers.sockets.close(connection, 1012, "restarting")


async def test_frames_stay_whole_for_a_client_that_reads_by_fits_and_starts(peers: TcpPeers) -> None:
    """What the kernel takes in parts, with pings of the client between them, arrives byte by byte as it was sent."""
    luck = random.Random(1)
    connection = await peers.join()
    client = peers.client(connection)
    sent = [luck.randbytes(luck.randrange(200_000)) for _ in range(60)]
    for frame in sent:
        peers.sockets.queue(frame, connection)
    assert peers.sockets.busy(connection)
    got = []
    for n in range(len(sent)):
        if n % 7 == 0:
            await client.ping()
        got.append(await peers.read(connection))
    assert got == sent
    await asyncio.wait_for(await client.ping(), SECONDS)
    assert peers.have_taken[-1] is connection
    assert watched(connection.socket.number) == EPOLLIN, (
        "it would be woken for each moment in which the socket takes something"
    )


async def test_one_who_takes_a_part_is_told_from_one_who_takes_nothing(peers: TcpPeers) -> None:
    """Of what is kept for a busy socket any part that it takes is told, and of one who takes nothing nothing."""
    connection = await peers.join()
    peers.stop_reading(connection)
    fill(peers, connection)
    for _ in range(300):
        peers.sockets.queue(LARGE, connection)
    for _ in range(20):
        await peers.turn()
    assert peers.have_taken == []
    peers.read_on(connection)
    for _ in range(3):
        while connection not in peers.have_taken:
            assert await peers.read(connection) == LARGE
        assert peers.sockets.busy(connection)
        peers.have_taken.clear()


async def test_when_the_process_ends_all_are_over_and_nobody_comes(peers: TcpPeers) -> None:
    """Also one whose descriptor Granian has closed already, and one who comes in that moment, who may come again."""
    connection = await peers.join()
    sock: Socket = connection.socket
    peers.sockets._epoll.unregister(sock.number)  # as closing does
    peers.sockets.finish()
    await asyncio.wait_for(sock.ended, SECONDS)
    with pytest.raises(InvalidStatus) as refused:
        await peers.join()
    assert refused.value.response.status_code == 503


async def test_nothing_comes_behind_a_close(peers: TcpPeers) -> None:
    """What is queued then is not sent, also while the close waits behind what the socket is busy with."""
    connection = await peers.join()
    peers.stop_reading(connection)
    taken = fill(peers, connection)
    close(peers, connection, CloseCode.replaced)
    peers.sockets.queue("too late", connection)
    peers.read_on(connection)
    for _ in range(taken):
        assert await peers.read(connection) == LARGE
    assert await peers.end(connection) == (4409, CloseCode.replaced.reason)


async def test_pings_of_one_who_does_not_read_are_not_saved_up(peers: TcpPeers) -> None:
    """Its answers would gather without end: it gets one, for the last of them, when it has read what was kept."""
    connection = await peers.join()
    client = peers.client(connection)
    peers.stop_reading(connection)
    taken = fill(peers, connection)
    sock: Socket = connection.socket
    kept = sock.left
    pongs = [await client.ping(b"%d" % n) for n in range(100)]
    await client.send("all")
    await until(peers, "all", peers.received)
    assert sock.left is kept
    assert kept is not None
    assert len(kept) == 1
    peers.read_on(connection)
    for _ in range(taken):
        assert await peers.read(connection) == LARGE
    await asyncio.wait_for(pongs[-1], SECONDS)


async def test_a_message_after_our_close_is_not_received(peers: TcpPeers) -> None:
    """The client may have sent it before it heard."""
    async with plain(peers) as (connection, reader, writer):
        close(peers, connection, CloseCode.replaced)
        writer.write(masked(Opcode.TEXT, b"too late"))
        assert (await asyncio.wait_for(reader.read(), SECONDS))[:4] == b"\x88\x0a\x11\x39"
        writer.write_eof()
        await until(peers, connection, peers.ended)
        assert peers.received == []


async def test_a_client_that_ignores_our_close_is_cut(peers: TcpPeers) -> None:
    """It reads the close frame and keeps its end open: the shard has its slot back a moment later all the same."""
    async with plain(peers) as (connection, reader, _):
        close(peers, connection, CloseCode.replaced)
        await asyncio.wait_for(reader.read(), SECONDS)
        await until(peers, connection, peers.ended)


async def test_what_is_no_websocket_is_reported_once(peers: TcpPeers) -> None:
    """What comes behind it is not looked at, however much it is."""
    async with plain(peers) as (connection, reader, writer):
        writer.write(b"\xff" * 500_000)
        assert b"bad protocol" in await asyncio.wait_for(reader.read(), SECONDS)
        writer.write_eof()
        await until(peers, connection, peers.ended)
        assert peers.broke == [4400]


async def test_a_fault_of_ours_ends_that_connection_alone(
    peers: TcpPeers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What nobody foresaw is logged with whose message it was; the others are served as before."""

    def fail(connection: Connection, message: str | bytes, now: float) -> None:
        raise ZeroDivisionError(message)

    other = await peers.join()
    monkeypatch.setattr(peers, "receive", fail)
    async with plain(peers) as (connection, reader, writer):
        writer.write(masked(Opcode.TEXT, b"what nobody foresaw"))
        await until(peers, connection, peers.ended)
        assert await asyncio.wait_for(reader.read(), SECONDS) == b"", "Granian said good-bye, as if all were well"
    assert peers.sockets.send("and on", [other]) == []
    assert await peers.read(other) == "and on"
    assert "what nobody foresaw" in capsys.readouterr().out


async def test_the_descriptor_goes_with_the_connection(peers: TcpPeers) -> None:
    """However it ended, also while a client that never reads keeps its own end open; and it is used again."""
    await peers.join()
    before = len(descriptors())
    async with plain(peers) as (stuck, _, writer), plain(peers) as (polite, _, _):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until_busy(peers, stuck)
        close(peers, stuck, CloseCode.too_slow)
        close(peers, polite, CloseCode.replaced)
        await until(peers, stuck, peers.ended)
        await until(peers, polite, peers.ended)
        async with asyncio.timeout(SECONDS):
            while len(descriptors()) > before + 2:  # the clients' own two
                await peers.turn()
        again = await peers.join()
        assert peers.sockets.send("hello", [again]) == []
        assert await peers.read(again) == "hello"


async def test_connections_that_come_and_go_are_not_mixed_up(peers: TcpPeers) -> None:
    """Many at a time, ending in every way, while numbers are used again: each hears what was meant for it."""

    async def visit(user: str, n: int) -> None:
        client = await connect(f"ws://127.0.0.1:{peers.port}/ws?ticket={user}", compression=None, proxy=None)
        async with asyncio.timeout(SECONDS):
            while not (mine := [c for c in peers.seen if c.identity.user == user and c not in peers.ended]):
                await peers.turn()
            [connection] = mine
            peers.sockets.send(f"for {user}", [connection])
            assert await client.recv() == f"for {user}"
            match n % 3:
                case 0:
                    client.transport.abort()
                case 1:
                    close(peers, connection, CloseCode.replaced)
                    await client.wait_closed()
                    assert client.close_code == CloseCode.replaced
                case _:
                    await client.close()
            await until(peers, connection, peers.ended)

    async def visits(user: str) -> None:
        for n in range(6):
            await visit(user, n + len(user))

    await asyncio.gather(*(visits(f"u{'x' * (n % 3)}{n}") for n in range(40)))


async def test_a_client_that_comes_again_from_the_same_port_gets_nobody_elses(peers: TcpPeers) -> None:
    """Its first connection was reset before the shard had looked at it: what was meant for that reaches nobody."""
    came_again = 0
    for n in range(20):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.77", 0))  # an address whose ports no other test has used up
        client.connect(("127.0.0.1", peers.port))
        address = client.getsockname()
        client.sendall(HANDSHAKE.replace(b"any", b"before"))
        until_read(address)  # by Granian's own threads, while the loop stands still
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        again = socket.socket()
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            again.bind(address)
        except OSError:  # somebody else on this machine has the port now
            again.close()
            continue
        came_again += 1
        again.connect(("127.0.0.1", peers.port))
        again.sendall(HANDSHAKE.replace(b"any", b"after"))
        until_read(address)
        with contextlib.closing(again):
            again.setblocking(False)
            async with asyncio.timeout(SECONDS):
                answer = await asyncio.get_running_loop().sock_recv(again, 4096)
                assert answer.startswith(b"HTTP/1.1 101")
                while not (opened := [c for c in peers.seen if c not in peers.ended]):
                    await peers.turn()
                [connection] = opened
                assert connection.identity.user == "after"
                peers.sockets.send(f"{n}", [connection])
                assert (await asyncio.get_running_loop().sock_recv(again, 4096)).endswith(b"%d" % n)
        async with asyncio.timeout(SECONDS):
            while set(peers.seen) - peers.ended:
                await peers.turn()
    assert came_again


def until_read(address: tuple[str, int]) -> None:
    """Blocks until what was sent from there has been taken from the kernel by the server."""
    local = f"{int.from_bytes(socket.inet_aton(address[0]), 'little'):08X}:{address[1]:04X}"
    for _ in range(20_000):
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        theirs = [line for line in lines if line[2] == local and line[3] == "01"]
        ours = [line for line in lines if line[1] == local and line[3] == "01"]
        if theirs and ours and all(line[4] == "00000000:00000000" for line in theirs + ours):
            return
    raise AssertionError("the server does not read")


async def test_a_good_bye_of_one_who_is_behind_cuts_nothing(peers: TcpPeers) -> None:
    """It has said so without having read all: the frame that is under way arrives whole, and then the answer."""
    connection = await peers.join()
    client = peers.client(connection)
    peers.stop_reading(connection)
    taken = fill(peers, connection)
    client.transport.write(masked(Opcode.CLOSE, b"\x03\xe8"))
    async with asyncio.timeout(SECONDS):
        while not connection.socket.closing:
            await peers.turn()
    peers.read_on(connection)
    assert [await peers.read(connection) for _ in range(taken)] == [LARGE] * taken
    assert (await peers.end(connection))[0] == 1000
    await until(peers, connection, peers.ended)


async def test_a_flood_of_frames_that_say_nothing_ends_its_connection(peers: TcpPeers) -> None:
    """Pings without end, or a message in parts of nothing, are no way to keep the shard busy."""
    for raw in (masked(Opcode.PING, b""), masked(Opcode.CONT, b"", fin=False)):
        async with plain(peers) as (connection, reader, writer):
            writer.write(masked(Opcode.TEXT, b"", fin=False) + raw * 20_000)
            assert b"bad protocol" in await asyncio.wait_for(reader.read(), SECONDS)
            writer.write_eof()
            await until(peers, connection, peers.ended)
    assert peers.broke == [CloseCode.bad_protocol] * 2


async def test_a_handler_that_is_cancelled_leaves_nothing(peers: TcpPeers) -> None:
    """As when the loop ends: the connection is over, for the shard and for the kernel."""
    connection = await peers.join()
    number = connection.socket.number
    assert watched(number) == EPOLLIN
    for handler in list(peers.handlers):
        handler.cancel()
    await until(peers, connection, peers.ended)
    assert watched(number) is None


async def test_a_client_that_goes_during_the_handshake_leaves_nothing(peers: TcpPeers) -> None:
    """Its admission is given back, or its connection ends; nothing stays."""
    first = await peers.join()
    before = len(descriptors())
    for _ in range(50):
        _, writer = await asyncio.open_connection("127.0.0.1", peers.port)
        writer.write(HANDSHAKE)
        writer.transport.abort()
    survivor = await peers.join()  # or one of those: which of them it is shows below
    client = peers.client(survivor)
    async with asyncio.timeout(SECONDS):
        while len(descriptors()) > before + 2:  # both ends of the one that stays
            await peers.turn()
    (stayed,) = {survivor, *peers.all_opened()} - peers.ended - {first}
    assert peers.abandoned
    peers.sockets.send(LARGE, [stayed])
    assert await asyncio.wait_for(client.recv(), SECONDS) == LARGE
