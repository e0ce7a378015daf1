"""The seam between a shard and its sockets: the real one and its twin keep the same promises, shown by one suite."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest
from websockets.asyncio.client import ClientConnection, connect

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.algorithms.token_bucket import Rate
from solowire.auth.failed_auth_limiter import FailedAuthLimiter
from solowire.auth.tokens import Ticket
from solowire.model.access import Identity
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Codec
from solowire.runtime.http_server import listen
from solowire.runtime.tls_port import TlsPort
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.sockets import Sockets
from solowire.workers.net.client_listener import ClientListener
from solowire.workers.net.client_port import ClientPort
from solowire.workers.net.tcp_sockets import TcpSockets
from solowire.workers.net.tls_sockets import TlsSockets
from tests.support.certificates import TRUSTING, make_tls_port
from tests.support.memory_sockets import MemorySockets
from tests.support.system import sockets_with

SECONDS = 30.0
LARGE = "x" * 60_000
ENOUGH = 1_000
"""So many large frames are more than any kernel holds for a peer that doesn't read."""

ANN = Identity("ann", "admin", ())


class Peers(Protocol):
    """The other ends of some sockets."""

    alive: list[Connection]
    """Who has answered `Sockets.ping`."""

    @property
    def sockets(self) -> Sockets: ...

    async def join(self) -> Connection: ...
    async def read(self, connection: Connection) -> str | bytes: ...
    async def end(self, connection: Connection) -> tuple[int, str]:
        """The code and reason with which it was closed, after all that was sent before."""

    def stop_reading(self, connection: Connection) -> None: ...
    def read_on(self, connection: Connection) -> None: ...
    async def turn(self) -> None:
        """Lets the server work."""


class MemoryPeers:
    def __init__(self) -> None:
        self.sockets = MemorySockets()
        self.alive: list[Connection] = []
        self.sockets.on_probe_answered = self.alive.append
        self._ids = count()

    async def join(self) -> Connection:
        return Connection(f"s{next(self._ids)}", ANN, Codec.json, None)

    async def read(self, connection: Connection) -> str | bytes:
        return self.sockets.sent[connection].pop(0)

    async def end(self, connection: Connection) -> tuple[int, str]:
        return self.sockets.closed[connection]

    def stop_reading(self, connection: Connection) -> None:
        self.sockets.stuck.add(connection)

    def read_on(self, connection: Connection) -> None:
        self.sockets.unstick(connection)

    async def turn(self) -> None:
        pass


class TcpPeers:
    """The shard's own listener and client port, a host in the shard's place, and a real client for each socket."""

    wants_lease_report = False
    is_ready = True

    def __init__(self, tls: TlsPort | None = None) -> None:
        self.tls = tls
        self.sockets: TcpSockets = TcpSockets() if tls is None else TlsSockets()
        self.index = 0
        self.totals: Counter[str] = Counter()
        self.seen: list[Connection] = []
        self.ended: set[Connection] = set()
        self.received: list[str | bytes] = []
        self.broke: list[CloseCode] = []
        self.alive: list[Connection] = []
        self.admitted = 0
        self.abandoned = 0
        self.have_taken: list[Connection] = []
        self._opened: asyncio.Queue[Connection] = asyncio.Queue()
        self._clients: dict[Connection, ClientConnection] = {}
        listening = listen("127.0.0.1", 0, send_buffer=64 * 1024)
        self.port: int = listening.getsockname()[1]
        clients = ClientPort(self, self.sockets, lambda: None, wrong_tokens=FailedAuthLimiter(Rate(1.0, 1.0)))  # type: ignore[arg-type]
        self.listener = ClientListener(
            listening,
            clients.handle,
            AcceptLimiter(1000, None),
            head_s=SECONDS,
            socket_count=lambda: len(self.sockets),
            max_sockets=10_000,
            tls=tls,
        )
        self.listener.start()

    # what the client port asks of its shard

    def admit(self, ticket: str, now: float, **_: bool) -> Ticket:
        self.admitted += 1
        return Ticket(ticket, 0.0, 0, Identity(ticket, "admin", ()))  # whose it is tells whose connection it becomes

    def open_connection(self, identity: Identity, codec: Codec, socket: Any, now: float, **_: Any) -> Connection:
        connection = Connection("s", identity, codec, socket)
        self._opened.put_nowait(connection)
        self.seen.append(connection)
        return connection

    def on_closed(self, connection: Connection) -> None:
        self.ended.add(connection)

    @property
    def dispatcher(self) -> TcpPeers:
        return self

    def on_writable(self, connection: Connection, now: float) -> None:
        self.have_taken.append(connection)

    def cancel_admission(self, identity: Identity, address: str) -> None:
        self.abandoned += 1

    def receive(self, connection: Connection, message: str | bytes, now: float) -> None:
        self.received.append(message)

    def show_alive(self, connection: Connection, now: float) -> None:
        self.alive.append(connection)

    def on_protocol_error(self, connection: Connection, code: CloseCode) -> None:
        self.broke.append(code)
        self.sockets.close(connection, code, code.reason)

    # what a test asks of the peers

    async def join(self) -> Connection:
        url = f"127.0.0.1:{self.port}/ws?ticket=any"
        if self.tls is None:
            client = await connect(f"ws://{url}", max_queue=1, compression=None, proxy=None)
        else:
            client = await connect(f"wss://{url}", max_queue=1, compression=None, proxy=None, ssl=TRUSTING)
        connection = await self.opened()
        self._clients[connection] = client
        return connection

    async def opened(self) -> Connection:
        """The next one that was accepted."""
        return await asyncio.wait_for(self._opened.get(), SECONDS)

    def all_opened(self) -> list[Connection]:
        """Those that nobody has asked for yet."""
        return [self._opened.get_nowait() for _ in range(self._opened.qsize())]

    def client(self, connection: Connection) -> ClientConnection:
        return self._clients[connection]

    async def read(self, connection: Connection) -> str | bytes:
        return await asyncio.wait_for(self._clients[connection].recv(), SECONDS)

    async def end(self, connection: Connection) -> tuple[int, str]:
        client = self._clients[connection]
        await asyncio.wait_for(client.wait_closed(), SECONDS)
        assert client.close_code != 1006, "the connection ended without a close frame"
        return client.close_code or 0, client.close_reason or ""

    def port_of(self, connection: Connection) -> int:
        """The client's."""
        port: int = self._clients[connection].local_address[1]
        return port

    def stop_reading(self, connection: Connection) -> None:
        self._clients[connection].transport.pause_reading()

    def read_on(self, connection: Connection) -> None:
        self._clients[connection].transport.resume_reading()

    async def turn(self) -> None:
        await asyncio.sleep(0.001)

    async def close(self) -> None:
        for client in self._clients.values():
            client.transport.abort()
        self.listener.finish()
        self.sockets.finish()


@pytest.fixture(params=["memory", "tcp", "tls"])
async def peers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Peers]:
    if request.param == "memory":
        yield MemoryPeers()
        return
    real = TcpPeers(None if request.param == "tcp" else make_tls_port(tmp_path))
    try:
        yield real
    finally:
        await real.close()


def close(peers: Peers, connection: Connection, code: CloseCode) -> None:
    """As a shard closes it."""
    connection.become(State.closing)
    peers.sockets.close(connection, code, code.reason)


async def until_busy(peers: Peers, connection: Connection) -> int:
    """Sends until the socket takes no more; how many frames it took."""
    taken = 0
    while not peers.sockets.send(LARGE, [connection]):
        taken += 1
        assert taken < ENOUGH, "a peer that doesn't read never gets busy"
        await peers.turn()
    return taken


async def until_free(peers: Peers, connection: Connection, taken: int) -> None:
    for _ in range(taken):
        assert await peers.read(connection) == LARGE
    async with asyncio.timeout(SECONDS):
        while peers.sockets.is_busy(connection):
            await peers.turn()


async def test_one_frame_reaches_all(peers: Peers) -> None:
    connections = [await peers.join() for _ in range(3)]
    assert peers.sockets.send("one for all", connections) == []
    assert [await peers.read(c) for c in connections] == ["one for all"] * 3


async def test_text_and_binary_frames_keep_their_kind(peers: Peers) -> None:
    connection = await peers.join()
    peers.sockets.queue("text", connection)
    peers.sockets.queue(b"\x81binary", connection)
    assert [await peers.read(connection) for _ in range(2)] == ["text", b"\x81binary"]


async def test_frames_that_are_queued_arrive_in_order(peers: Peers) -> None:
    connection = await peers.join()
    sent = [f"{n} {'x' * (n % 7) * 1000}" for n in range(100)]
    for frame in sent:
        peers.sockets.queue(frame, connection)
    assert [await peers.read(connection) for _ in sent] == sent


async def test_who_does_not_read_gets_busy_and_keeps_nobody_waiting(peers: Peers) -> None:
    stuck, free = await peers.join(), await peers.join()
    peers.stop_reading(stuck)
    taken = await until_busy(peers, stuck)
    assert peers.sockets.is_busy(stuck)
    assert peers.sockets.send("for both", [stuck, free]) == [stuck]
    assert await peers.read(free) == "for both"
    await until_free(peers, free, 0)

    peers.read_on(stuck)
    await until_free(peers, stuck, taken)
    assert peers.sockets.send("now", [stuck]) == []
    assert await peers.read(stuck) == "now", "a frame that was reported as not taken arrived none the less"


async def test_who_speaks_websocket_answers_a_ping(peers: Peers) -> None:
    """By itself, once for each, and whether or not there is something else to be read."""
    connection, other = await peers.join(), await peers.join()
    for answers in (1, 2):
        peers.sockets.send("between", [connection])
        peers.sockets.ping(connection)
        assert await peers.read(connection) == "between"
        async with asyncio.timeout(SECONDS):
            while len(peers.alive) < answers:
                await peers.turn()
    assert peers.alive == [connection] * 2
    assert other not in peers.alive


async def test_a_connection_is_kept_open_without_a_word_to_its_client(peers: Peers) -> None:
    """What passes is no message, and the answer to it is no sign that somebody waits for."""
    connection = await peers.join()
    peers.sockets.keep_open(connection)
    peers.sockets.send("the first message", [connection])
    assert await peers.read(connection) == "the first message"
    await peers.turn()
    assert peers.alive == []


async def test_a_close_says_its_code_and_reason_after_what_was_sent(peers: Peers) -> None:
    connection = await peers.join()
    peers.sockets.send("last words", [connection])
    close(peers, connection, CloseCode.replaced)
    assert await peers.read(connection) == "last words"
    assert await peers.end(connection) == (4409, CloseCode.replaced.reason)


async def test_the_first_close_counts(peers: Peers) -> None:
    connection = await peers.join()
    close(peers, connection, CloseCode.replaced)
    peers.sockets.close(connection, CloseCode.restarting, "restarting")
    assert await peers.end(connection) == (4409, CloseCode.replaced.reason)


async def test_closing_who_does_not_read_ends_it_none_the_less() -> None:
    peers = TcpPeers()
    try:
        stuck = await peers.join()
        peers.stop_reading(stuck)
        await until_busy(peers, stuck)
        assert sockets_with(os.getpid(), peers.port_of(stuck)) == 1
        close(peers, stuck, CloseCode.too_slow)
        async with asyncio.timeout(SECONDS):
            while stuck not in peers.ended:
                await peers.turn()
            while sockets_with(os.getpid(), peers.port_of(stuck)):  # long before the kernel gives it up
                await peers.turn()
    finally:
        await peers.close()
