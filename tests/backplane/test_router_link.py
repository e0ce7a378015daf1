"""A peer's link to the router: it says hello, beats, and knows whether the router is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.algorithms.warning_pace import WarningPace
from solowire.backplane import messages as backplane
from solowire.backplane import router_link
from solowire.backplane.messages import (
    VERSION,
    AdmissionState,
    Heartbeat,
    HeartbeatResponse,
    Join,
    Lease,
    Leave,
    PeerMessage,
    RejoinRequired,
    RingState,
    RouterMessage,
    ShardStats,
)
from solowire.backplane.router_link import RouterLink
from solowire.backplane.zmq_transport import RouterSocket

NAME = b"shard-0"


async def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


class Talk:
    """A hub in the router's place, and a link; the link's heartbeat is fast here."""

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory / 'router'}"
        self.heard: list[PeerMessage] = []
        self.received: list[RouterMessage] = []
        self.boot = "boot-1"
        self.hellos = 0
        self.answering = False
        self.stats: ShardStats | None = None
        self.hub: RouterSocket | None = None
        self._links: list[RouterLink] = []

    def start_hub(self) -> None:
        self.hub = RouterSocket(self.address, self._take)

    def _take(self, peer: bytes, raw: bytes) -> None:
        message = backplane.decode_from_peer(raw)
        self.heard.append(message)
        if self.answering and self.hub is not None:
            answer = RingState("e", 1, 0, []) if isinstance(message, Join) else HeartbeatResponse("e", 1)
            self.hub.send(peer, backplane.encode(answer))

    def stop_hub(self) -> None:
        assert self.hub is not None
        self.hub.close()
        self.hub = None

    def start_link(self) -> RouterLink:
        link = RouterLink(self.address, NAME.decode(), self._hello, self.received.append, lambda: self.stats)
        self._links.append(link)
        return link

    def say(self, message: RouterMessage) -> bool:
        assert self.hub is not None
        return self.hub.send(NAME, backplane.encode(message))

    def count(self, kind: type[PeerMessage]) -> int:
        return sum(isinstance(message, kind) for message in self.heard)

    def close(self) -> None:
        for link in self._links:
            link.close()
        if self.hub is not None:
            self.hub.close()

    def _hello(self) -> Join:
        self.hellos += 1
        return Join(VERSION, self.boot)


@pytest.fixture
async def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Talk]:
    monkeypatch.setattr(backplane, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(backplane, "DEAD_AFTER_SECONDS", 1.0)
    talk = Talk(tmp_path)
    yield talk
    talk.close()


async def test_it_says_hello_first(talk: Talk) -> None:
    """The router hears who it is before anything else."""
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.heard, "the router heard something")
    assert talk.heard[0] == Join(VERSION, "boot-1")


async def test_it_finds_a_router_that_comes_later(talk: Talk) -> None:
    """A process that was started before the router introduces itself as soon as the router is there."""
    link = talk.start_link()
    await until(lambda: talk.hellos >= 3, "it has tried a few times")
    assert not link.is_router_alive
    talk.start_hub()
    await until(lambda: talk.heard, "the router heard something")
    assert isinstance(talk.heard[0], Join)


async def test_a_router_that_is_away_is_said(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, the log says so, with the address: soon, again and again, and once when that is over."""
    monkeypatch.setattr(router_link, "SAY_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(router_link, "WarningPace", partial(WarningPace, 0.3))
    talk.answering = True
    with capture_logs() as lines:
        link = talk.start_link()
        await until(lambda: len(lines) >= 2, "it was said twice")
        assert {(line["event"], line["address"], line["log_level"]) for line in lines} == {
            ("router_unreachable", talk.address, "warning")
        }
        assert all(line["hint"] and line["waited_s"] >= 0 for line in lines)
        talk.start_hub()
        await until(lambda: link.is_router_alive, "the router was heard")
        await until(lambda: lines[-1]["event"] == "router_connected", "that is over")
        said = len(lines)
        talk.stop_hub()
        await until(lambda: len(lines) > said, "it is away again")
        assert lines[-1]["event"] == "router_unreachable"


async def test_a_router_that_comes_soon_is_no_line(talk: Talk) -> None:
    """A start in any order, and a router that is started again, are nothing to be warned of."""
    talk.answering = True
    with capture_logs() as lines:
        talk.start_link()
        await until(lambda: talk.hellos >= 3, "it has tried a few times")
        talk.start_hub()
        await until(lambda: talk.count(Heartbeat) >= 2, "two heartbeats")
    assert lines == []


async def test_it_beats_with_its_numbers(talk: Talk) -> None:
    """After the hello it says again and again that it lives, with the numbers of that moment."""
    talk.answering = True
    talk.start_hub()
    talk.stats = ShardStats(connections=1)
    talk.start_link()
    await until(lambda: talk.count(Heartbeat) >= 2, "two heartbeats")
    talk.stats = ShardStats(connections=2)
    await until(lambda: Heartbeat("boot-1", ShardStats(connections=2)) in talk.heard, "the new numbers")
    assert talk.count(Join) == 1


async def test_a_beat_that_fails_is_not_the_last(talk: Talk) -> None:
    """Numbers that can't be told are not, and it beats on: the next ones arrive."""
    failed = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.set())
    talk.answering = True
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.count(Heartbeat), "a heartbeat")
    talk.stats = ShardStats(groups={"\ud800": 1})
    await asyncio.wait_for(failed.wait(), 30.0)
    talk.stats = ShardStats(connections=2)
    await until(lambda: Heartbeat("boot-1", ShardStats(connections=2)) in talk.heard, "the new numbers")


async def test_it_introduces_itself_when_asked(talk: Talk) -> None:
    """A router that has restarted asks who it is, and gets a hello as of now."""
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    talk.boot = "as of now"
    assert talk.say(RejoinRequired())
    await until(lambda: Join(VERSION, "as of now") in talk.heard, "the second hello")
    assert talk.received == []


async def test_it_knows_whether_the_router_is_there(talk: Talk) -> None:
    """Alive with the first word, away after three beats of silence though the socket is open, and alive again."""
    talk.start_hub()
    link = talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    assert not link.is_router_alive
    talk.say(HeartbeatResponse("e", 1))
    await until(lambda: link.is_router_alive, "the router is there")
    await until(lambda: not link.is_router_alive, "the router is away")
    talk.say(HeartbeatResponse("e", 1))
    await until(lambda: link.is_router_alive, "the router is there again")


async def test_a_pause_of_the_process_is_not_held_against_the_router(talk: Talk) -> None:
    """After it stood still for longer than a router may be silent, it beats on, and does not take it for away."""
    talk.answering = True
    talk.start_hub()
    link = talk.start_link()
    await until(lambda: talk.count(Heartbeat) >= 2 and link.is_router_alive, "it beats")
    time.sleep(1.5 * backplane.DEAD_AFTER_SECONDS)  # noqa: ASYNC251
    talk.heard.clear()
    await until(lambda: talk.heard, "it says something")
    assert isinstance(talk.heard[0], Heartbeat)
    assert link.is_router_alive


async def test_what_is_not_its_own_goes_to_its_owner(talk: Talk) -> None:
    """Everything but the link's own small talk reaches the process, in order."""
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    first, second = RingState("e", 1, 0, []), RingState("e", 2, 5, [])
    for message in (first, HeartbeatResponse("e", 1), second):
        talk.say(message)
    await until(lambda: len(talk.received) == 2, "both are there")
    assert talk.received == [first, second]


async def test_what_a_beat_carries_is_received(talk: Talk) -> None:
    """The lease of a shard and the doors of a gateway reach the process as if they had come alone."""
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    ring, lease, doors = (
        RingState("e", 1, 0, []),
        Lease(1, 1, 10.0, {"viewer": 5}),
        AdmissionState(["viewer"], False, 1.0),
    )
    for message in (
        ring,
        HeartbeatResponse("e", 1),
        HeartbeatResponse("e", 1, lease),
        HeartbeatResponse("e", 1, admission_state=doors),
    ):
        talk.say(message)
    await until(lambda: len(talk.received) == 3, "all three are there")
    assert talk.received == [ring, lease, doors]


async def test_a_flood_of_garbage_is_a_line_a_second(talk: Talk) -> None:
    """What the router says and can't be read is counted, and is one line a second with how many there were."""
    with capture_logs() as logged:
        talk.start_hub()
        link = talk.start_link()
        await until(lambda: talk.hub is not None and talk.hub.send(NAME, b"\xc1"), "the link is there")
        began = asyncio.get_running_loop().time()
        for _ in range(999):
            assert talk.hub is not None
            assert talk.hub.send(NAME, b"\xc1")
        await until(lambda: link.dropped_count == 1000, "all have come")
        await until(lambda: sum(e.get("count", 0) for e in logged) == 1000, "all are in the log")
        assert len(logged) <= 2 + asyncio.get_running_loop().time() - began


async def test_garbage_is_counted_and_dropped(talk: Talk) -> None:
    """What can't be understood is no sign of life, is counted, and stops nothing."""
    talk.start_hub()
    link = talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    assert talk.hub is not None
    for garbage in (b"", b"\xc1", b"\x93\xa4ring\x01\x02", b"not ours", backplane.encode(Leave())):
        talk.hub.send(NAME, garbage)
    await until(lambda: link.dropped_count >= 5, "they are counted")
    assert not link.is_router_alive
    talk.say(RingState("e", 1, 0, []))
    await until(lambda: talk.received, "the next good one is taken")


async def test_it_goes_on_with_a_router_that_was_started_again(talk: Talk) -> None:
    """When the router restarts, the link beats to the new one, which can ask who it is."""
    talk.answering = True
    talk.start_hub()
    link = talk.start_link()
    await until(lambda: talk.count(Heartbeat), "a heartbeat")
    talk.stop_hub()
    await until(lambda: not link.send(Heartbeat("x")), "sends are refused while it is away")
    talk.heard.clear()
    talk.start_hub()
    await until(lambda: talk.heard, "the new router hears it")
    assert talk.say(RejoinRequired())
    await until(lambda: talk.count(Join), "it introduces itself")


async def test_it_says_hello_again_when_the_router_knows_another_ring(talk: Talk) -> None:
    """A ring that was lost on its way is asked for with the next beat."""
    talk.answering = True
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.count(Heartbeat), "it beats")
    talk.answering = False
    talk.heard.clear()
    talk.say(HeartbeatResponse("e", 2))
    await until(lambda: talk.count(Join), "it asks for the ring")


async def test_it_says_hello_again_when_the_router_knows_other_revocations(talk: Talk) -> None:
    """A change that was lost on its way is asked for with the next beat, and not again when it has come."""
    known = [-1]
    talk.start_hub()
    link = RouterLink(talk.address, NAME.decode(), talk._hello, talk.received.append, revocations=lambda: known[0])
    talk._links.append(link)
    await until(lambda: talk.count(Join), "a hello")
    talk.say(RingState("e", 1, 0, []))
    await until(lambda: talk.received, "the ring has come")
    hellos = talk.count(Join)
    talk.say(HeartbeatResponse("e", 1, revocations_version=7))
    await until(lambda: talk.count(Join) > hellos, "another hello")
    known[0] = 7
    hellos = talk.count(Join)
    talk.say(HeartbeatResponse("e", 1, revocations_version=7))
    talk.say(RejoinRequired())
    await until(lambda: talk.count(Join) > hellos, "what comes behind the beat is answered")
    assert talk.count(Join) == hellos + 1


async def test_it_says_hello_again_to_a_router_that_is_silent(talk: Talk) -> None:
    """Whatever was lost on the way, hello or answer: it is not waited for for ever."""
    talk.start_hub()
    talk.start_link()
    await until(lambda: talk.count(Join) >= 3, "it says hello again")


async def test_it_says_goodbye(talk: Talk) -> None:
    """A process that ends in order isn't waited for, and beats no more."""
    talk.start_hub()
    link = talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    link.close()
    await until(lambda: talk.count(Leave), "the goodbye")
    assert talk.heard[-1] == Leave()
    assert not link.send(Heartbeat("late"))
    link.close()  # once more does nothing


async def test_a_process_that_still_has_users_says_no_goodbye(talk: Talk) -> None:
    """The router would give its users' slots to others: a shard that is fenced off is only not heard of any more."""
    talk.start_hub()
    link = talk.start_link()
    await until(lambda: talk.heard, "the first hello")
    link.send(Heartbeat("last"))
    link.close(goodbye=False)
    await until(lambda: Heartbeat("last") in talk.heard, "the last word")
    another = talk.start_link()
    await until(lambda: talk.heard[-1] != Heartbeat("last"), "what another process says, later")
    another.close()
    await until(lambda: talk.count(Leave), "its goodbye")
    assert talk.count(Leave) == 1
