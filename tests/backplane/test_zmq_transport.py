"""The backplane's sockets over real ipc: order, reconnection, a name that moves, and sends that can't be taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zmq
from structlog.testing import capture_logs

from solowire.backplane import socket_reader
from solowire.backplane.memory_transport import MemoryPeerSocket, MemoryRouterSocket, MemoryTransport
from solowire.backplane.zmq_transport import PeerSocket, RouterSocket
from solowire.errors import ConfigError

SECONDS = 30.0


async def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


class Bus:
    """A hub, its spokes, and what each has got. Everything is closed with the test."""

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory / 'router'}"
        self.at_hub: list[tuple[bytes, bytes]] = []
        self.open: list[RouterSocket | PeerSocket | MemoryRouterSocket | MemoryPeerSocket] = []

    def hub(self) -> RouterSocket:
        hub = RouterSocket(self.address, lambda peer, payload: self.at_hub.append((peer, payload)))
        self.open.append(hub)
        return hub

    def spoke(self, name: bytes) -> tuple[PeerSocket, list[bytes]]:
        got: list[bytes] = []
        spoke = PeerSocket(self.address, name, got.append)
        self.open.append(spoke)
        return spoke, got

    def close(self) -> None:
        for socket in self.open:
            socket.close()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What was logged meanwhile."""
    with capture_logs() as entries:
        yield entries


class Twin(Bus):
    """The same in memory."""

    def __init__(self) -> None:
        self.memory = MemoryTransport(asyncio.get_running_loop().call_soon)
        self.at_hub = []
        self.open = []

    def hub(self) -> MemoryRouterSocket:  # type: ignore[override]
        hub = MemoryRouterSocket(self.memory, lambda peer, payload: self.at_hub.append((peer, payload)))
        self.open.append(hub)
        return hub

    def spoke(self, name: bytes) -> tuple[MemoryPeerSocket, list[bytes]]:  # type: ignore[override]
        got: list[bytes] = []
        spoke = MemoryPeerSocket(self.memory, name, got.append)
        self.open.append(spoke)
        return spoke, got


@pytest.fixture
async def zmq_bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """For what only real sockets do."""
    bus = Bus(tmp_path)
    yield bus
    bus.close()


@pytest.fixture(params=["zmq", "memory"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    """Both: whatever is asked of the one holds for its twin."""
    bus = Bus(tmp_path) if request.param == "zmq" else Twin()
    yield bus
    bus.close()


async def test_messages_arrive_in_order_both_ways(bus: Bus) -> None:
    """Five thousand messages each way, more than one turn takes, arrive complete and in order."""
    hub = bus.hub()
    spoke, got = bus.spoke(b"shard-0")
    await until(lambda: spoke.send(b"0"), "the spoke is connected")
    for n in range(1, 5000):
        assert spoke.send(b"%d" % n)
    await until(lambda: len(bus.at_hub) == 5000, "the hub has all")
    assert bus.at_hub == [(b"shard-0", b"%d" % n) for n in range(5000)]
    for n in range(5000):
        assert hub.send(b"shard-0", b"%d" % n)
    await until(lambda: len(got) == 5000, "the spoke has all")
    assert got == [b"%d" % n for n in range(5000)]


async def test_a_flood_leaves_room_for_everything_else(zmq_bus: Bus) -> None:
    """While thousands of messages are taken in, the loop does its other work in between."""
    hub = zmq_bus.hub()
    spoke, got = zmq_bus.spoke(b"shard-0")
    await until(lambda: spoke.send(b""), "the spoke is connected")
    await until(lambda: zmq_bus.at_hub, "the hub knows it")
    for n in range(5000):
        assert hub.send(b"shard-0", b"%d" % n)
    seen = set()
    async with asyncio.timeout(SECONDS):
        while len(got) < 5000:
            seen.add(len(got))
            await asyncio.sleep(0)
    assert len(seen) > 5


async def test_messages_that_take_long_leave_room_too(zmq_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the log with a hundred heavy events held a shard's loop for 400 ms: now nothing follows the one that
    uses up the turn before all else that is due has run."""
    monkeypatch.setattr(socket_reader, "TURN_SECONDS", 0.0)
    hub = zmq_bus.hub()
    turns: list[int] = []

    def next_turn() -> None:
        turns.append(0)
        if len(got) < 20:
            asyncio.get_running_loop().call_soon(next_turn)

    def hear(payload: bytes) -> None:
        turns.append(1)
        got.append(payload)

    got: list[bytes] = []
    spoke = PeerSocket(zmq_bus.address, b"shard", hear)
    zmq_bus.open.append(spoke)
    await until(lambda: spoke.send(b"hello"), "the spoke is there")
    await until(lambda: zmq_bus.at_hub, "the hub knows it")
    for number in range(20):
        hub.send(b"shard", b"%d" % number)
    next_turn()
    await until(lambda: len(got) == 20, "all are there")
    assert all(pair != (1, 1) for pair in pairwise(turns))


async def test_an_answer_sent_while_receiving_arrives(zmq_bus: Bus) -> None:
    """A hub that answers from its callback, and a spoke that asks on in its own, never get stuck on an edge."""
    turns = 0

    def ask_on(payload: bytes) -> None:
        nonlocal turns
        turns += 1
        if turns < 2000:
            spoke.send(b"ping")

    hub = RouterSocket(zmq_bus.address, lambda peer, payload: hub.send(peer, b"pong"))
    spoke = PeerSocket(zmq_bus.address, b"shard-0", ask_on)
    zmq_bus.open += [hub, spoke]
    await until(lambda: spoke.send(b"ping"), "the spoke is connected")
    await until(lambda: turns >= 2000, "two thousand rounds")


async def test_a_spoke_without_a_hub_says_no_at_once(bus: Bus) -> None:
    """With nobody there a send is refused rather than kept: the log is the buffer."""
    spoke, _ = bus.spoke(b"shard-0")
    assert not spoke.send(b"lost")
    bus.hub()
    await until(lambda: spoke.send(b"first"), "the spoke is connected")
    await until(lambda: bus.at_hub, "a message is there")
    assert bus.at_hub == [(b"shard-0", b"first")]


async def test_a_send_to_a_peer_that_is_not_there_says_no(bus: Bus) -> None:
    """The router learns at once that a shard isn't connected."""
    hub = bus.hub()
    assert not hub.send(b"shard-7", b"lost")
    spoke, _ = bus.spoke(b"shard-7")
    await until(lambda: hub.send(b"shard-7", b"here"), "the hub knows the spoke")
    spoke.close()
    await until(lambda: not hub.send(b"shard-7", b"gone"), "the hub knows that it has gone")


async def test_a_spoke_finds_a_hub_that_was_started_again(bus: Bus) -> None:
    """A router that restarts is found again by every peer, without a restart of theirs."""
    hub = bus.hub()
    spoke, got = bus.spoke(b"shard-0")
    await until(lambda: spoke.send(b"before"), "the spoke is connected")
    await until(lambda: bus.at_hub, "the message is there")
    hub.close()
    await until(lambda: not spoke.send(b"into the void"), "the spoke knows that the hub has gone")
    bus.at_hub.clear()
    again = bus.hub()
    await until(lambda: spoke.send(b"after"), "the spoke is connected again")
    await until(lambda: (b"shard-0", b"after") in bus.at_hub, "the message is there")
    assert again.send(b"shard-0", b"hello")
    await until(lambda: b"hello" in got, "the spoke hears the new hub")


async def test_a_name_goes_to_whoever_took_it_last(bus: Bus) -> None:
    """A shard that was killed and started again gets its messages, even if the old socket still hangs."""
    hub = bus.hub()
    old, _ = bus.spoke(b"shard-0")
    await until(lambda: old.send(b"old"), "the old one is connected")
    await until(lambda: (b"shard-0", b"old") in bus.at_hub, "the hub knows the old one")
    new, at_new = bus.spoke(b"shard-0")
    await until(lambda: new.send(b"new"), "the new one is connected")
    await until(lambda: (b"shard-0", b"new") in bus.at_hub, "the hub knows the new one")
    # Again and again: the old one comes back with the name after a moment, where it does not hang.
    await until(lambda: hub.send(b"shard-0", b"for the new one") and at_new, "it went to the new one")
    assert set(at_new) == {b"for the new one"}


async def test_two_spokes_are_told_apart_by_name(bus: Bus) -> None:
    """What is for one peer reaches no other."""
    hub = bus.hub()
    _, at_first = bus.spoke(b"a")
    _, at_second = bus.spoke(b"b")
    await until(lambda: hub.send(b"a", b"for a"), "a is connected")
    await until(lambda: hub.send(b"b", b"for b"), "b is connected")
    await until(lambda: at_first and at_second, "both have theirs")
    assert (at_first, at_second) == ([b"for a"], [b"for b"])


async def test_a_full_socket_says_no_and_goes_on_later(zmq_bus: Bus) -> None:
    """A peer that takes nothing fills its socket up to a bound; then sends are refused, and nothing blocks."""
    hub = zmq_bus.hub()
    context = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    try:
        deaf.set(zmq.IDENTITY, b"deaf")
        deaf.set(zmq.RCVHWM, 10)
        deaf.set(zmq.RCVTIMEO, int(1000 * SECONDS))
        deaf.connect(zmq_bus.address)
        await until(lambda: hub.send(b"deaf", b"x"), "the peer is connected")
        sent = 0
        while hub.send(b"deaf", b"x" * 10_000):
            sent += 1
            assert sent < 50_000
        for _ in range(sent):
            deaf.recv()
        await until(lambda: hub.send(b"deaf", b"y"), "there is room again")
    finally:
        deaf.close(0)
        context.term()


async def test_a_message_in_parts_is_counted_and_dropped(zmq_bus: Bus, logged: list[Any]) -> None:
    """A stranger's message that can't be ours by its form is counted and logged with its sender; the next is taken."""
    hub = zmq_bus.hub()
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    try:
        stranger.set(zmq.IDENTITY, b"stranger")
        stranger.connect(zmq_bus.address)
        stranger.send_multipart([b"one", b"two", b"three"])
        stranger.send(b"last")
        await until(lambda: zmq_bus.at_hub, "the last message is there")
        assert zmq_bus.at_hub == [(b"stranger", b"last")]
        assert hub.dropped_count == 1
        assert [entry["sender"] for entry in logged] == ["stranger"]
    finally:
        stranger.close(0)
        context.term()


async def test_a_flood_of_messages_in_parts_is_a_line_a_second(zmq_bus: Bus, logged: list[Any]) -> None:
    """However many a stranger sends, each is counted, and the log has one line a second that says how many."""
    hub = zmq_bus.hub()
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        stranger.set(zmq.IDENTITY, b"stranger")
        stranger.connect(zmq_bus.address)
        for _ in range(3000):
            stranger.send_multipart([b"one", b"two", b"three"])
        await until(lambda: hub.dropped_count == 3000, "all have come")
        await until(lambda: sum(entry["count"] for entry in logged) == 3000, "all are in the log")
    finally:
        stranger.close(0)
        context.term()
    assert len(logged) <= 2 + loop.time() - began
    assert {(entry["event"], entry["sender"]) for entry in logged} == {("backplane_message_dropped", "stranger")}


async def test_a_message_that_cant_be_handled_holds_up_none_behind_it(zmq_bus: Bus, logged: list[Any]) -> None:
    """An exception in the callback is an error in the log, and what came along with that message is taken."""
    got: list[bytes] = []

    def take(peer: bytes, payload: bytes) -> None:
        if payload == b"bad":
            raise RuntimeError("a fault of ours")
        got.append(payload)

    zmq_bus.open.append(RouterSocket(zmq_bus.address, take))
    spoke, _ = zmq_bus.spoke(b"shard-0")
    await until(lambda: spoke.send(b"first"), "the spoke is connected")
    for _ in range(500):
        assert spoke.send(b"bad")
    assert spoke.send(b"last")
    await until(lambda: got == [b"first", b"last"], "the last one is taken")
    assert {(e["event"], e["log_level"]) for e in logged} == {("backplane_message_failed", "error")}
    await until(lambda: sum(e["count"] for e in logged) == 500, "all are counted in the log")
    assert all(str(e["exc_info"]) == "a fault of ours" for e in logged)


async def test_after_its_close_a_socket_takes_nothing(bus: Bus) -> None:
    """A send in the moment of stopping is refused like any other that can't be taken; closing twice is nothing."""
    hub = bus.hub()
    spoke, _ = bus.spoke(b"shard-0")
    for socket in (spoke, hub):
        socket.close()
        socket.close()
    assert not spoke.send(b"late")
    assert not hub.send(b"shard-0", b"late")


async def test_an_address_that_cant_be_listened_on_is_the_operators_fault(tmp_path: Path) -> None:
    """A directory that isn't there is one line that names the address."""
    with pytest.raises(ConfigError, match=r"can't listen on ipc://.*missing"):
        RouterSocket(f"ipc://{tmp_path}/missing/router", lambda peer, payload: None)


async def test_an_address_that_cant_be_connected_to_is_the_operators_fault(tmp_path: Path) -> None:
    """A path longer than a unix socket's may be is one line that names the address."""
    with pytest.raises(ConfigError, match="can't connect to ipc://"):
        PeerSocket(f"ipc://{tmp_path}/{'x' * 200}", b"shard-0", lambda payload: None)
