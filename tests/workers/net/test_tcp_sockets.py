"""A shard's sockets, from the handshake on: real connections, and clients of every kind."""

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
from select import EPOLLERR, EPOLLHUP, EPOLLIN

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.protocol.close_codes import CloseCode
from solowire.workers.connections.connection import Connection
from solowire.workers.net.tcp_sockets import Socket
from tests.workers.connections.test_sockets import LARGE, SECONDS, TcpPeers, close, until_busy

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
    while not peers.sockets.is_busy(connection):
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
            if found:
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
    monkeypatch.setattr("solowire.workers.net.tcp_sockets.CLOSE_SECONDS", 10 * SECONDS)
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
    assert peers.sockets.is_busy(connection)
    got = []
    for n in range(len(sent)):
        if n % 7 == 0:
            await client.ping()
        got.append(await peers.read(connection))
    assert got == sent
    await asyncio.wait_for(await client.ping(), SECONDS)
    assert peers.have_taken[-1] is connection
    assert watched(connection.socket.fd) == EPOLLIN, (
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
        assert peers.sockets.is_busy(connection)
        peers.have_taken.clear()


async def test_when_the_process_ends_all_are_over_and_nobody_comes(peers: TcpPeers) -> None:
    """One who comes in that moment is not kept, and has no slot: it may come again."""
    connection = await peers.join()
    peers.sockets.finish()
    assert connection in peers.ended
    assert connection.socket.fd == -1
    peers.sockets.finish()
    reader, writer = await asyncio.open_connection("127.0.0.1", peers.port)
    writer.write(HANDSHAKE)
    await asyncio.wait_for(reader.read(), SECONDS)
    writer.transport.abort()
    assert peers.abandoned == 1
    assert peers.seen == [connection]


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
    kept = sock.unsent
    pongs = [await client.ping(b"%d" % n) for n in range(100)]
    await client.send("all")
    await until(peers, "all", peers.received)
    assert sock.unsent is kept
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
        assert (await asyncio.wait_for(reader.read(), SECONDS))[:4] == b"\x88\x20\x11\x39"
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
        assert CloseCode.protocol_error.reason.encode() in await asyncio.wait_for(reader.read(), SECONDS)
        writer.write_eof()
        await until(peers, connection, peers.ended)
        assert peers.broke == [CloseCode.protocol_error]


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
        assert await asyncio.wait_for(reader.read(), SECONDS) == b"", "there was a good-bye, as if all were well"
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


def reset(client: socket.socket) -> None:
    """Ends it with a reset, which lets its port be used again at once."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def come_again(address: tuple[str, int], port: int) -> socket.socket | None:
    """A new connection from an address that had one; None if somebody else on this machine has the port now."""
    again = socket.socket()
    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        again.bind(address)
        again.connect(("127.0.0.1", port))
    except OSError:
        again.close()
        return None
    again.setblocking(False)
    return again


@pytest.mark.parametrize("before", ["reset unseen", "reset after its answer", "HTTP/1.0"])
@pytest.mark.parametrize("then", ["asks for its health", "says nothing"])
async def test_a_stranger_at_the_port_of_one_who_has_gone_never_gets_a_frame(
    peers: TcpPeers, before: str, then: str
) -> None:
    """A handshake is reset, or refused, and its port and its number are used again at once by who has no token.

    All that the shard may think to be connected is sent something, as soon as the stranger has been accepted.
    """
    came_again = 0
    for n in range(150):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.77", 0))  # an address whose ports no other test has used up
        client.connect(("127.0.0.1", peers.port))
        address = client.getsockname()
        client.sendall(HANDSHAKE if before != "HTTP/1.0" else HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"))
        if before == "reset after its answer":
            await peers.opened()
        elif before == "HTTP/1.0":
            client.setblocking(False)
            async with asyncio.timeout(SECONDS):
                assert (await asyncio.get_running_loop().sock_recv(client, 4096)).startswith(b"HTTP/1.1 505 ")
        reset(client)
        again = come_again(address, peers.port)
        if again is None:
            continue
        came_again += 1
        with contextlib.closing(again):
            got = b""
            async with asyncio.timeout(SECONDS):
                if then == "says nothing":
                    while not is_waited_for(peers, address):
                        await peers.turn()
                    peers.sockets.send(f"secret {n}", peers.seen)
                    with pytest.raises(BlockingIOError):
                        got += again.recv(4096)
                else:
                    again.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    while b"}" not in got:
                        await peers.turn()
                        peers.sockets.send(f"secret {n}", peers.seen)
                        with contextlib.suppress(BlockingIOError):
                            got += again.recv(4096)
            assert b"secret" not in got
            assert b"101" not in got
            reset(again)
    assert came_again > 50
    async with asyncio.timeout(SECONDS):
        while set(peers.seen) - peers.ended or peers.listener.pending_count:
            await peers.turn()
    assert len(peers.sockets) == 0
    assert peers.admitted == len(peers.seen) + peers.abandoned


async def test_a_client_that_comes_again_from_the_same_port_gets_its_own(peers: TcpPeers) -> None:
    """Its first connection was reset before the shard had looked at it: the second is another user's."""
    came_again = 0
    for n in range(50):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.78", 0))
        client.connect(("127.0.0.1", peers.port))
        address = client.getsockname()
        client.sendall(HANDSHAKE.replace(b"any", b"before"))
        reset(client)
        again = come_again(address, peers.port)
        if again is None:
            continue
        came_again += 1
        again.sendall(HANDSHAKE.replace(b"any", b"after"))
        with contextlib.closing(again):
            async with asyncio.timeout(SECONDS):
                answer = await asyncio.get_running_loop().sock_recv(again, 4096)
                assert answer.startswith(b"HTTP/1.1 101")
                [connection] = [c for c in peers.seen if c.identity.user == "after" and c not in peers.ended]
                peers.sockets.send(f"{n}", peers.seen)
                assert await asyncio.get_running_loop().sock_recv(again, 4096) == b"\x81%c%d" % (len(str(n)), n)
                reset(again)
                await until(peers, connection, peers.ended)
    assert came_again


def is_waited_for(peers: TcpPeers, address: tuple[str, int]) -> bool:
    """Whether the listener has accepted a connection from there, and waits for its head."""
    for pending in peers.listener._pending.values():
        with contextlib.suppress(OSError):  # one that was reset has no peer any more
            if pending.socket.getpeername() == address:
                return True
    return False


async def test_what_is_written_after_the_end_goes_nowhere(peers: TcpPeers) -> None:
    """Its number is another's by then, to whom nothing comes of it, whatever is done with the old one."""
    async with plain(peers) as (old, _, writer):
        number = old.socket.fd
        writer.transport.abort()
        await until(peers, old, peers.ended)
    sock: Socket = old.socket
    assert sock.fd == -1
    assert watched(number) is None
    clients = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            clients.append(await stack.enter_async_context(plain(peers)))
            if clients[-1][0].socket.fd == number:
                break
        else:
            pytest.fail("the number is not used again")
        new, reader, _ = clients[-1]
        assert peers.sockets.send("for the old one", [old]) == []
        peers.sockets.queue("for the old one", old)
        peers.sockets.ping(old)
        peers.sockets.close(old, 1012, "restarting")
        peers.sockets._drop(sock)
        assert not peers.sockets.is_busy(old)
        peers.sockets.send("mine", [new])
        assert await asyncio.wait_for(reader.readexactly(6), SECONDS) == b"\x81\x04mine"
        assert new not in peers.ended


async def test_a_handshake_of_http_1_0_is_refused_and_leaves_nothing(peers: TcpPeers) -> None:
    """As nginx speaks it by default: 505, which says how to help it; nothing is admitted."""
    before = len(descriptors())
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", peers.port)
        writer.write(HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await asyncio.wait_for(reader.read(), SECONDS)
        assert answer.startswith(b"HTTP/1.1 505 ")
        assert b"proxy_http_version 1.1" in answer
        writer.close()
    async with asyncio.timeout(SECONDS):
        while peers.listener.pending_count or len(descriptors()) > before:
            await peers.turn()
    assert peers.admitted == 0
    assert len(peers.sockets) == 0


async def test_frames_that_come_with_the_handshake_are_received(peers: TcpPeers) -> None:
    """Whole ones, half of one, and a good-bye: RFC 6455 forbids none of them, and some clients don't wait."""
    first, second = masked(Opcode.TEXT, b"one"), masked(Opcode.TEXT, b"two")
    for rest, more in ((first + second, b""), (first + second[:3], second[3:]), (first, second)):
        reader, writer = await asyncio.open_connection("127.0.0.1", peers.port)
        writer.write(HANDSHAKE + rest)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write(more)
        await until(peers, "two", peers.received)
        assert peers.received == ["one", "two"]
        peers.received.clear()
        writer.transport.abort()
    reader, writer = await asyncio.open_connection("127.0.0.1", peers.port)
    writer.write(HANDSHAKE + first + masked(Opcode.CLOSE, b"\x03\xe8") + second)
    answer = await asyncio.wait_for(reader.read(), SECONDS)
    assert answer.partition(b"\r\n\r\n")[2] == b"\x88\x02\x03\xe8"
    assert peers.received == ["one"]
    writer.close()


async def test_answers_arrive_although_more_was_sent_behind_the_close(peers: TcpPeers) -> None:
    """A socket that is closed with unread bytes is reset, and takes with it what its peer has not read yet."""
    for last in (masked(Opcode.CLOSE, b"\x03\xe8"), b"\x81\x00"):
        async with plain(peers) as (connection, reader, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(masked(Opcode.TEXT, b"question") + masked(Opcode.PING, b"?") + last + b"x" * 300_000)
            await until(peers, "question", peers.received)
            async with asyncio.timeout(SECONDS):
                while not connection.socket.is_closing:
                    await peers.turn()
                await writer.drain()
            writer.write_eof()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            answer = await asyncio.wait_for(reader.read(), SECONDS)
            assert answer.startswith(b"\x8a\x01?\x88")
            await until(peers, connection, peers.ended)


async def test_who_is_pinged_and_says_nothing_is_not_taken_for_alive(peers: TcpPeers) -> None:
    """Nor is half a frame a sign, or what is no frame; any whole one is, after it has been received."""
    async with plain(peers) as (connection, reader, writer):
        peers.sockets.ping(connection)
        assert await asyncio.wait_for(reader.readexactly(2), SECONDS) == b"\x89\x00"
        pong = masked(Opcode.PONG, b"")
        writer.write(pong[:4])
        for _ in range(20):
            await peers.turn()
        assert peers.alive == []
        writer.write(pong[4:] + pong)
        await until(peers, connection, peers.alive)
        assert peers.alive == [connection], "a pong that nobody asked for is none"
        peers.sockets.ping(connection)
        writer.write(masked(Opcode.TEXT, b"a message"))
        async with asyncio.timeout(SECONDS):
            while len(peers.alive) < 2:
                await peers.turn()
        assert peers.received == ["a message"]
    async with plain(peers) as (other, _, writer):
        peers.sockets.ping(other)
        writer.write(b"\xff" * 20)
        await until(peers, CloseCode.protocol_error, peers.broke)
        assert other not in peers.alive


async def test_a_good_bye_of_one_who_is_behind_cuts_nothing(peers: TcpPeers) -> None:
    """It has said so without having read all: the frame that is under way arrives whole, and then the answer."""
    connection = await peers.join()
    client = peers.client(connection)
    peers.stop_reading(connection)
    taken = fill(peers, connection)
    client.transport.write(masked(Opcode.CLOSE, b"\x03\xe8"))
    async with asyncio.timeout(SECONDS):
        while not connection.socket.is_closing:
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
            assert b"protocol violation" in await asyncio.wait_for(reader.read(), SECONDS)
            writer.write_eof()
            await until(peers, connection, peers.ended)
    assert peers.broke == [CloseCode.bad_protocol] * 2


async def test_frames_that_say_nothing_are_counted_for_the_user_and_not_for_each_connection(peers: TcpPeers) -> None:
    """Six viewers that came back ten times a second, each time with 2,000 pings, held all others up for 2 s."""
    peers.sockets._idle_frames = BucketTable(Rate(0.001, 100), 10)
    pings = masked(Opcode.PING, b"") * 90
    async with plain(peers) as (_, reader, writer):
        writer.write(pings)
        assert await asyncio.wait_for(reader.readexactly(180), SECONDS) == b"\x8a\x00" * 90
    async with plain(peers) as (connection, reader, writer):
        writer.write(pings)
        told = await asyncio.wait_for(reader.read(), SECONDS)
        assert b"protocol violation" in told
        assert b"\x8a\x00" not in told
        writer.write_eof()
        await until(peers, connection, peers.ended)
    assert peers.broke == [CloseCode.bad_protocol]


async def test_a_client_that_goes_during_the_handshake_leaves_nothing(peers: TcpPeers) -> None:
    """Its admission is given back, or its connection ends; nothing stays."""
    first = await peers.join()
    before = len(descriptors())
    for n in range(50):
        client = socket.socket()
        client.connect(("127.0.0.1", peers.port))
        client.sendall(HANDSHAKE)
        reset(client) if n % 2 else client.close()
    survivor = await peers.join()  # or one of those: which of them it is shows below
    client_of_it = peers.client(survivor)
    async with asyncio.timeout(SECONDS):
        while len(descriptors()) > before + 2:  # both ends of the one that stays
            await peers.turn()
    (stayed,) = {survivor, *peers.all_opened()} - peers.ended - {first}
    assert peers.admitted == len(peers.seen) + peers.abandoned
    peers.sockets.send(LARGE, [stayed])
    assert await asyncio.wait_for(client_of_it.recv(), SECONDS) == LARGE
