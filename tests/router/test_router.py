"""The router's decisions, with a bus that only writes down what it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from solowire.algorithms.hash_ring import Ring
from solowire.backplane.messages import (
    DEAD_AFTER_SECONDS,
    VERSION,
    Diagnose,
    DrainRequest,
    Fenced,
    Heartbeat,
    HeartbeatResponse,
    IndexTaken,
    Join,
    Lease,
    LeaseUsage,
    Leave,
    LogAck,
    LogBatch,
    PublishAck,
    PublishedEvent,
    PublishNack,
    PublishRequest,
    RejoinRequired,
    ReplayRequest,
    ReplayResponse,
    RingState,
    RouterMessage,
    ShardAddress,
    ShardStats,
    StartDraining,
    StateSnapshot,
    StatsRequest,
    StatsResponse,
    Superseded,
    UserConnectedElsewhere,
    UsersConnected,
)
from solowire.domains.dns.event_types import CATALOG
from solowire.model.events import decode_event
from solowire.router.log.backpressure import GRACE_SECONDS, longest_delay_s
from solowire.router.log.journal import JournalHole, JournalUnavailable, MemoryJournal, Record
from solowire.router.monitoring.monitor import Monitor
from solowire.router.router import GROUP_EVENTS, GROUP_SECONDS, MAX_DELAYED_ANSWERS, SLOW_GROUP_EVENTS, Router
from solowire.runtime.settings.limits_settings import LimitsSettings
from solowire.runtime.settings.publish_settings import PublishSettings
from solowire.runtime.settings.router_settings import AlertSettings

M = TypeVar("M", bound=RouterMessage)


class Bus:
    """Every message that was sent, by peer. deaf: peers that take nothing."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, RouterMessage]] = []
        self.deaf: set[bytes] = set()

    def send(self, peer: bytes, message: RouterMessage) -> bool:
        if peer in self.deaf:
            return False
        self.sent.append((peer, message))
        return True

    def take(self, peer: bytes, kind: type[M]) -> list[M]:
        """The messages of `kind` to `peer` since the last look, oldest first."""
        found: list[M] = [message for to, message in self.sent if to == peer and isinstance(message, kind)]
        self.sent = [(to, message) for to, message in self.sent if not (to == peer and isinstance(message, kind))]
        return found


class World:
    """A router, its bus and a clock that only this test turns."""

    def __init__(self, max_events: int = 1000, publish: PublishSettings | None = None) -> None:
        self.bus = Bus()
        journal = MemoryJournal("epoch-1", max_events=max_events, max_bytes=10**9, window=60.0)
        self.router = Router(journal, self.bus.send, publish=publish)
        self.now = 100.0
        self._ids = iter(range(10**6))

    def join(self, index: int, boot: str = "b", epoch: str = "", offset: int = 0, credit: int = 1000) -> bytes:
        name = f"shard-{index}".encode()
        address = ShardAddress(index, "127.0.0.1", 9000 + index, boot)
        self.router.receive(name, Join(VERSION, boot, address, epoch, offset, credit), self.now)
        return name

    def settle(self, *names: bytes) -> None:
        """The shards have sent away whomever the ring took away."""
        for name in names:
            outlet = self.router._cursors[name]
            self.router.receive(
                name, LogAck("epoch-1", outlet.acked, outlet.credit, self.router.members.version), self.now
            )

    def gateway(self, name: bytes = b"gateway-a") -> bytes:
        self.router.receive(name, Join(VERSION, "g"), self.now)
        return name

    def publish(
        self, *users: str | None, request: int = 1, peer: bytes = b"gateway-a", publisher: str = "ann", size: int = 4
    ) -> None:
        events = [PublishedEvent(f"id-{next(self._ids)}", user, b"body" * (size // 4)) for user in users]
        self.router.receive(peer, PublishRequest(request, events, publisher), self.now)
        self.turn()

    def turn(self) -> None:
        """Until nothing is left to be done later."""
        while (again := self.router.dispatch(self.now)) is not None:
            self.now = again

    def beat(self, name: bytes, boot: str = "b", stats: ShardStats | None = None) -> None:
        self.router.receive(name, Heartbeat(boot, stats), self.now)

    def delivered(self, name: bytes) -> list[int]:
        return [offset for message in self.bus.take(name, LogBatch) for offset, _ in message.events]


@pytest.fixture
def world() -> World:
    return World()


def test_a_publisher_has_one_rate_in_bytes_over_all_gateways() -> None:
    """Each gateway lets through the rate; together they may not, and others are not refused for it."""
    world = World(publish=PublishSettings(bytes_per_s=1000.0, burst_bytes=9000.0))
    world.gateway(b"gateway-a")
    world.gateway(b"gateway-b")
    world.publish(None, request=1, size=8000, publisher="eve")
    world.publish(None, request=2, size=8000, publisher="eve", peer=b"gateway-b")
    world.publish(None, request=3, size=8000, publisher="ann", peer=b"gateway-b")
    [refused] = world.bus.take(b"gateway-b", PublishNack)
    assert (refused.request, refused.code) == (2, "publish_rate_limited")
    assert refused.retry_after == pytest.approx(6.0)
    assert [ack.request for ack in world.bus.take(b"gateway-b", PublishAck)] == [3]
    assert world.router.publish_rejections["publish_rate_limited"] == 1
    world.now += 6.01
    world.publish(None, request=4, size=8000, publisher="eve", peer=b"gateway-b")
    assert [ack.request for ack in world.bus.take(b"gateway-b", PublishAck)] == [4]


def test_a_heartbeat_of_a_stranger_is_asked_who_it_is(world: World) -> None:
    """After the router's restart every peer is asked to introduce itself."""
    world.beat(b"shard-0")
    assert world.bus.take(b"shard-0", RejoinRequired) == [RejoinRequired()]
    assert not world.router.members.shards


def test_a_heartbeat_of_a_member_is_answered(world: World) -> None:
    """A peer hears every second that the router is alive and knows it."""
    name = world.join(0)
    world.beat(name)
    assert world.bus.take(name, HeartbeatResponse) == [HeartbeatResponse("epoch-1", 1)]


def test_a_hello_is_answered_with_the_ring(world: World) -> None:
    """Who says hello learns the epoch, the shards and how far the log has gone."""
    world.gateway()
    world.publish(None, None)
    world.join(3)
    [state] = world.bus.take(b"shard-3", RingState)
    assert (state.epoch, state.last_offset, [s.index for s in state.shards]) == ("epoch-1", 2, [3])


def test_the_ring_is_told_to_everyone_when_it_changes(world: World) -> None:
    """A shard that joins is in the ring of every gateway and shard at once, under a growing version."""
    world.gateway()
    world.join(0)
    world.bus.sent.clear()
    world.join(1)
    states = [world.bus.take(peer, RingState) for peer in (b"gateway-a", b"shard-0", b"shard-1")]
    assert [len(found) for found in states] == [1, 1, 1]
    assert len({state.version for [state] in states}) == 1
    assert [s.index for s in states[0][0].shards] == [0, 1]
    world.router.receive(b"shard-0", Leave(), world.now)
    [after] = world.bus.take(b"gateway-a", RingState)
    assert ([s.index for s in after.shards], after.version > states[0][0].version) == ([1], True)


def test_a_second_hello_is_answered_to_its_sender_alone(world: World) -> None:
    """A peer that says hello again disturbs nobody else."""
    world.join(0)
    world.join(1)
    world.bus.sent.clear()
    world.join(0)
    assert len(world.bus.take(b"shard-0", RingState)) == 1
    assert world.bus.take(b"shard-1", RingState) == []


def test_published_events_are_answered_with_their_offsets(world: World) -> None:
    """A gateway's request is answered by its number, with epoch, offsets and what was known already."""
    events = [PublishedEvent("a", None, b"1"), PublishedEvent("b", None, b"2"), PublishedEvent("a", None, b"1")]
    world.router.receive(b"gateway-a", PublishRequest(77, events), world.now)
    assert world.bus.take(b"gateway-a", PublishAck) == [], "answered before the journal has kept it"
    world.turn()
    assert world.bus.take(b"gateway-a", PublishAck) == [PublishAck(77, "epoch-1", [1, 2, 1], [2])]
    assert (world.router.events, world.router.duplicates) == (2, 1)


def test_events_reach_every_shard_and_personal_ones_their_own(world: World) -> None:
    """What is for all goes to all; what is for one user goes to that user's shard alone."""
    first, second = world.join(0), world.join(1)
    world.settle(first, second)
    ring = Ring([0, 1])
    users = [f"user{n}" for n in range(20)]
    world.publish(None, *users)
    assert world.delivered(first) == [1, *(n + 2 for n, u in enumerate(users) if ring.owner(u) == 0)]
    assert world.delivered(second) == [1, *(n + 2 for n, u in enumerate(users) if ring.owner(u) == 1)]


def test_a_new_shard_is_told_the_log_from_its_beginning(world: World) -> None:
    """A shard that starts late has everything that the log still holds."""
    world.publish(*[None] * 300)
    name = world.join(0)
    assert world.delivered(name) == list(range(1, 301))


def test_a_shard_that_comes_back_goes_on_where_it_was(world: World) -> None:
    """A shard that shows its position gets what is behind it, and nothing twice."""
    world.publish(*[None] * 10)
    name = world.join(0, epoch="epoch-1", offset=7)
    assert world.delivered(name) == [8, 9, 10]


def test_a_position_of_another_epoch_is_worth_nothing(world: World) -> None:
    """After the log was lost, old offsets mean nothing: the shard starts from the new log's beginning."""
    world.publish(*[None] * 10)
    name = world.join(0, epoch="epoch-0", offset=7)
    assert world.delivered(name) == list(range(1, 11))


def test_a_position_from_the_future_does_not_make_a_shard_deaf(world: World) -> None:
    """A shard that claims to be ahead of the log gets the next event all the same."""
    world.publish(None, None)
    name = world.join(0, epoch="epoch-1", offset=1_000_000)
    world.publish(None)
    assert world.delivered(name) == [3]


def test_a_shard_without_credit_waits_and_its_ack_goes_on(world: World) -> None:
    """At most the credit is under way; an ack brings the next events without waiting for a timer."""
    name = world.join(0, credit=5)
    world.publish(*[None] * 12)
    assert world.delivered(name) == [1, 2, 3, 4, 5]
    world.router.receive(name, LogAck("epoch-1", 5, 5), world.now)
    assert world.delivered(name) == [6, 7, 8, 9, 10]


def test_an_ack_of_another_epoch_is_ignored(world: World) -> None:
    """A late ack of the log before gives no credit in this one."""
    name = world.join(0, credit=5)
    world.publish(*[None] * 12)
    world.delivered(name)
    world.router.receive(name, LogAck("epoch-0", 1000, 1000), world.now)
    assert world.delivered(name) == []


def test_an_ack_from_the_future_is_no_more_than_all(world: World) -> None:
    """A shard that claims to be ahead of the log is behind by nothing, not by less; and gets the next event."""
    name = world.join(0)
    world.publish(None)
    world.delivered(name)
    world.router.receive(name, LogAck("epoch-1", 1_000_000, 1000), world.now)
    [report] = world.router.reports.list_present()
    assert report.lag_offsets == 0
    world.publish(None)
    assert world.delivered(name) == [2]


def test_an_ack_of_a_stranger_is_ignored(world: World) -> None:
    """A message of a peer that never said hello changes nothing."""
    world.router.receive(b"nobody", LogAck("epoch-1", 5, 5), world.now)
    world.router.receive(b"nobody", Leave(), world.now)
    assert world.bus.sent == []


def test_what_the_bus_refuses_is_sent_again(world: World) -> None:
    """A shard whose socket is full gets everything as soon as it can be written to again."""
    name = world.join(0)
    world.bus.deaf.add(name)
    world.publish(None, None, None)
    assert world.delivered(name) == []
    world.bus.deaf.clear()
    world.router.tick(world.now + 0.5)
    assert world.delivered(name) == [1, 2, 3]


def test_one_deaf_shard_holds_up_no_other(world: World) -> None:
    """Every shard has its own place in the log."""
    first, second = world.join(0), world.join(1)
    world.bus.deaf.add(first)
    world.publish(None)
    assert world.delivered(second) == [1]


def test_a_silent_shard_is_taken_out_and_its_users_events_go_elsewhere(world: World) -> None:
    """Three seconds without a word, and the ring is told without the shard; what comes then goes to the others."""
    world.join(0)
    name = world.join(1)
    user = next(f"user{n}" for n in range(100) if Ring([0, 1]).owner(f"user{n}") == 0)
    world.now += DEAD_AFTER_SECONDS
    world.beat(name)
    world.now += 0.5
    world.bus.sent.clear()
    world.router.tick(world.now)
    [state] = world.bus.take(name, RingState)
    assert [s.index for s in state.shards] == [1]
    world.publish(user)
    assert world.delivered(name) == [1]
    assert world.bus.take(b"shard-0", LogBatch) == []


def test_a_quiet_shard_is_told_how_far_the_log_has_gone(world: World) -> None:
    """A shard whose users get nothing still learns the log's position, so that its clients' cursors stay fresh."""
    name = world.join(0)
    world.join(1)
    world.settle(name)
    user = next(f"user{n}" for n in range(100) if Ring([0, 1]).owner(f"user{n}") == 1)
    world.publish(*[user] * 50)
    assert world.bus.take(name, LogBatch) == []
    world.router.tick(world.now + 0.5)
    assert world.bus.take(name, LogBatch) == [LogBatch("epoch-1", 0, 50, [])]
    world.router.tick(world.now + 1.0)
    assert world.bus.take(name, LogBatch) == []


def test_a_shard_of_another_version_is_not_let_in(world: World) -> None:
    """Processes of different backplane versions don't talk past each other."""
    address = ShardAddress(0, "127.0.0.1", 9000, "b")
    world.router.receive(b"shard-0", Join(VERSION + 1, "b", address), world.now)
    assert world.router.members.shards == []
    assert world.bus.sent == []


def test_a_shard_replaced_under_another_name_gets_nothing_more(world: World) -> None:
    """Of two processes that claim one index, only the last one is sent events."""
    old = world.join(0)
    address = ShardAddress(0, "127.0.0.1", 9100, "new")
    world.router.receive(b"other", Join(VERSION, "new", address, "", 0, 100), world.now)
    world.publish(None)
    assert world.delivered(old) == []
    assert world.delivered(b"other") == [1]


def test_the_numbers_of_the_system_are_answered(world: World) -> None:
    """An administrator's question gets each shard: its numbers, what is under way to it, how far behind it is."""
    gateway = world.gateway()
    second, first = world.join(1), world.join(0, credit=1)
    world.beat(first, stats=ShardStats(connections=4))
    world.publish(None, None, None)
    world.router.receive(second, LogAck("epoch-1", 3, 1000), world.now)
    world.router.receive(gateway, StatsRequest(5), world.now)
    [answer] = world.bus.take(gateway, StatsResponse)
    assert (answer.request, answer.epoch, answer.last_offset, answer.events, answer.gateways) == (5, "epoch-1", 3, 3, 1)
    reports = [(r.address.index, r.stats.connections, r.inflight_events, r.lag_offsets) for r in answer.shards]
    assert reports == [(0, 4, 1, 3), (1, 0, 0, 0)]


def test_a_shard_behind_the_log_gets_what_is_left_of_it() -> None:
    """A shard that was away for too long sees by `after` that something is missing."""
    world = World(max_events=10)
    name = world.join(0)
    world.publish(None)
    world.bus.take(name, LogBatch)
    world.bus.deaf.add(name)
    world.publish(*[None] * 50)
    world.bus.deaf.clear()
    world.router.tick(world.now)
    [message] = world.bus.take(name, LogBatch)
    assert (message.prev_offset, message.end_offset, len(message.events)) == (41, 51, 10)


# ----------------------------------------------------------------------------------- what outlives a router, and replay


def test_a_restarted_router_knows_the_ring_of_before() -> None:
    """A router that restarts on its journal moves nobody: the first shard back doesn't get everybody's users."""
    world = World()
    first = world.join(0)
    world.join(1)
    again = World()
    again.router = Router(world.router.journal, again.bus.send, now=again.now)
    assert [s.index for s in again.router.members.shards] == [0, 1]
    assert again.router.members.version == world.router.members.version
    again.join(0, epoch="epoch-1")
    [state] = again.bus.take(first, RingState)
    assert ([s.index for s in state.shards], state.version) == ([0, 1], world.router.members.version)


def test_a_shard_that_wants_to_leave_gets_its_users_events_until_they_are_gone(world: World) -> None:
    """Draining loses nothing: who waits for its turn is served by the old shard, its own events included."""
    name, other = world.join(0), world.join(1)
    world.settle(name, other)
    user = next(f"user{n}" for n in range(100) if Ring([0, 1]).owner(f"user{n}") == 0)
    settled = world.router.members.version
    world.bus.sent.clear()
    world.router.receive(name, StartDraining(), world.now)
    [state] = world.bus.take(name, RingState)
    assert ([s.index for s in state.shards], state.personal_since) == ([1], settled)
    world.publish(user)
    assert (world.delivered(name), world.delivered(other)) == ([1], [1])
    world.settle(name)
    world.publish(user)
    assert (world.delivered(name), world.delivered(other)) == ([], [2])


def test_a_shard_that_stays_has_its_lease_before_anybody_sends_it_users(world: World) -> None:
    """While it left it had no more than it used: the first who came back to it would be refused for want of a slot."""
    name, other, gateway = world.join(0), world.join(1), world.gateway()
    slots(world, name, 1)
    slots(world, other, 1)
    world.router.receive(name, StartDraining(), world.now)
    slots(world, name, 2)
    beat = world.bus.take(name, HeartbeatResponse)[-1]
    assert beat.lease is not None
    assert beat.lease.shared_slots == 0
    world.bus.sent.clear()
    assert world.join(0) == name
    told = [(peer, type(message)) for peer, message in world.bus.sent]
    assert told.index((name, Lease)) < told.index((gateway, RingState))
    [lease] = world.bus.take(name, Lease)
    assert lease.shared_slots > 10
    world.bus.sent.clear()
    world.join(0)  # again, as after a lost message: it has its lease
    assert world.bus.take(name, Lease) == []


def test_the_process_whose_place_is_taken_is_told(world: World) -> None:
    """Two processes can't both be one shard: the older one hears of it, and ends."""
    old = world.join(0)
    address = ShardAddress(0, "127.0.0.1", 9100, "new")
    world.router.receive(b"other", Join(VERSION, "new", address, "", 0, 100), world.now)
    assert world.bus.take(old, Superseded) == [Superseded()]


def test_a_shard_of_another_host_waits_for_the_one_that_is_there(world: World) -> None:
    """It is told so, changes nothing, and is the shard as soon as the first one is not heard of any more."""
    first, second = (ShardAddress(0, f"10.0.0.{n}", 8001, f"boot-{n}", machine=f"machine-{n}") for n in (1, 2))
    world.router.receive(b"first", Join(VERSION, "boot-1", first, "", 0, 100), world.now)
    world.bus.sent.clear()
    world.router.receive(b"second", Join(VERSION, "boot-2", second, "", 0, 100), world.now)
    assert [(peer, message) for peer, message in world.bus.sent] == [(b"second", IndexTaken("10.0.0.1:8001"))]
    world.router.receive(b"second", Heartbeat("boot-2"), world.now)
    assert world.bus.take(b"second", RejoinRequired) == [RejoinRequired()]
    assert world.router.members.shards == [first]
    world.now += DEAD_AFTER_SECONDS + 1
    world.router.tick(world.now)
    world.router.receive(b"second", Join(VERSION, "boot-2", second, "", 0, 100), world.now)
    assert world.router.members.shards == [second]


def test_the_loss_of_a_shard_says_how_many_users_return(world: World) -> None:
    """Gateways spread the returning users by how many there are."""
    gateway, name = world.gateway(), world.join(0)
    world.beat(name, stats=ShardStats(connections=1234))
    world.bus.sent.clear()
    world.now += DEAD_AFTER_SECONDS / 2
    world.router.receive(gateway, Heartbeat("g"), world.now)
    world.now += DEAD_AFTER_SECONDS
    world.router.receive(gateway, Heartbeat("g"), world.now)
    world.router.tick(world.now)
    [state] = world.bus.take(gateway, RingState)
    assert (state.shards, state.removed_shards) == ([], [(0, 1234)])


def test_a_new_shard_begins_near_the_end_with_the_states_of_before(world: World) -> None:
    """A shard that starts gets as much of the log as it asks for, and each state's present value from before it."""
    events = [PublishedEvent(f"s{n}", None, b"%d" % n, f"state{n % 2}") for n in range(4)]
    world.router.receive(b"gateway-a", PublishRequest(1, events), world.now)
    world.publish(*[None] * 10)
    address = ShardAddress(0, "127.0.0.1", 9000, "b")
    world.router.receive(b"shard-0", Join(VERSION, "b", address, "", 0, 1000, 5), world.now)
    assert world.bus.take(b"shard-0", StateSnapshot) == [StateSnapshot("epoch-1", 9, [(3, b"2"), (4, b"3")])]
    assert world.delivered(b"shard-0") == [10, 11, 12, 13, 14]


def ask(world: World, after: int, upto: int, *, epoch: str = "epoch-1", personal: bool = False) -> ReplayResponse:
    world.router.receive(b"shard-0", ReplayRequest(9, epoch, "ann", after, upto, personal), world.now)
    while world.router.replays:
        world.now = world.router.replays.serve_next(world.now) or world.now
    [answer] = world.bus.take(b"shard-0", ReplayResponse)
    return answer


def test_a_replay_holds_what_is_for_all_and_for_that_user(world: World) -> None:
    """Whoever comes back gets what was for everyone and its own, nobody else's."""
    world.publish(None, "ann", "bob", None)
    assert [offset for offset, _ in ask(world, 0, 4).events] == [1, 2, 4]
    assert [offset for offset, _ in ask(world, 1, 4, personal=True).events] == [2]
    assert ask(world, 1, 3) == ReplayResponse(9, 3, [(2, b"body")])


@pytest.mark.parametrize(("after", "epoch", "refusal"), [(5, "epoch-1", "future"), (1, "epoch-0", "epoch")])
def test_a_replay_that_cannot_be_had_is_refused(world: World, after: int, epoch: str, refusal: str) -> None:
    """A cursor of the future or of another epoch is refused, whatever else is known."""
    world.publish(None, None)
    assert ask(world, after, after, epoch=epoch).refusal == refusal


def test_a_replay_older_than_the_log_is_refused() -> None:
    """What retention has taken can't be had, and nothing is given in its place."""
    world = World(max_events=10)
    world.publish(*[None] * 50)
    assert ask(world, 39, 50).refusal == "retention"
    assert ask(world, 40, 50).refusal is None


def test_an_id_that_another_publisher_took_first_is_free(world: World) -> None:
    """Whoever guesses the id of an agent's next event keeps it from nobody."""
    name, gateway = world.join(0), world.gateway()
    for request, (publisher, body) in enumerate([("eve", b"no event"), ("agent", b"the change"), ("agent", b"again")]):
        event = PublishedEvent("zone-8", None, body)
        world.router.receive(gateway, PublishRequest(request, [event], publisher), world.now)
        world.turn()
    assert [(ack.offsets, ack.duplicates) for ack in world.bus.take(gateway, PublishAck)] == [
        ([1], []),
        ([2], []),
        ([2], [0]),
    ]
    assert [body for batch in world.bus.take(name, LogBatch) for _, body in batch.events] == [
        b"no event",
        b"the change",
    ]


class Failing(MemoryJournal):
    """A journal on a disk that is full for a while."""

    full = False

    def commit(self, now: float) -> None:
        if self.full:
            self._ids.forget_group(self.last_offset)
            self._group.clear()
            raise JournalUnavailable("the disk is full")
        super().commit(now)


def test_a_full_disk_refuses_publishers_and_nothing_else() -> None:
    """Nobody is told that an event is kept that isn't; shards are served, and publishing works again by itself."""
    world = World()
    journal = Failing("epoch-1", max_events=1000, max_bytes=10**9, window=60.0)
    world.router = Router(journal, world.bus.send)
    name = world.join(0)
    journal.full = True
    world.publish(None, request=1)
    [refused] = world.bus.take(b"gateway-a", PublishNack)
    assert (refused.request, refused.code, refused.message) == (1, "journal_unavailable", "the disk is full")
    assert world.delivered(name) == []
    world.beat(name)
    assert len(world.bus.take(name, HeartbeatResponse)) == 1
    journal.full = False
    world.publish(None, request=2)
    assert [p.offsets for p in world.bus.take(b"gateway-a", PublishAck)] == [[1]]
    assert world.delivered(name) == [1]


def test_events_are_kept_in_groups_under_load(world: World) -> None:
    """The first publisher after a pause is answered at once; those that follow share a commit."""
    world.publish(None, request=1)
    world.bus.sent.clear()
    begun = world.now
    for request in range(2, 6):
        world.router.receive(
            b"gateway-a", PublishRequest(request, [PublishedEvent(f"x{request}", None, b"")]), world.now
        )
        assert world.router.dispatch(world.now) is not None
    assert world.bus.take(b"gateway-a", PublishAck) == []
    world.turn()
    assert len(world.bus.take(b"gateway-a", PublishAck)) == 4
    assert world.now - begun <= GROUP_SECONDS


# ----------------------------------------------------------------------------------- pressure on publishers


class Stuck:
    """A world with two shards that beat twice a second, one of which acks nothing."""

    def __init__(self) -> None:
        self.world = World(max_events=1_000_000)
        self.names = [self.world.join(0), self.world.join(1)]
        self.requests = 0

    def half_a_second(self, *acking: bytes) -> None:
        world = self.world
        world.now += 0.5
        for name in self.names:
            world.beat(name)
        for name in acking:
            world.router.receive(name, LogAck("epoch-1", world.router.journal.last_offset, 1000), world.now)
        world.router.tick(world.now)

    def publish(self, publisher: str = "ann", size: int = 10_000) -> int:
        self.requests += 1
        self.world.publish(None, request=self.requests, publisher=publisher, size=size)
        return self.requests

    def answers(self) -> list[int]:
        return [answer.request for answer in self.world.bus.take(b"gateway-a", PublishAck)]

    def refusals(self) -> list[int]:
        return [answer.request for answer in self.world.bus.take(b"gateway-a", PublishNack)]


def test_a_shard_that_lags_delays_answers_and_then_refuses() -> None:
    """Answers come later the longer a live shard acks nothing, then publishers are refused; its acks end it at once."""
    stuck = Stuck()
    _, follows = stuck.names
    stuck.publish()
    assert stuck.answers() == [1]
    for _ in range(4):  # two seconds
        stuck.half_a_second(follows)
    assert stuck.world.router.backpressure.delay > 0.0
    assert stuck.publish() == 2
    assert stuck.answers() == [], "an answer left at once"
    assert stuck.world.router.release_answers(stuck.world.now)
    assert not stuck.world.router.release_answers(stuck.world.now + longest_delay_s(PublishSettings()))
    assert stuck.answers() == [2], "what is in the log must be answered"
    with capture_logs() as lines:
        for _ in range(8):
            stuck.half_a_second(follows)
    assert stuck.world.router.backpressure.retry_after is not None
    [line] = [line for line in lines if line["event"] == "publish_overloaded"]
    assert line["lag_s"] >= PublishSettings().lag_hard_s
    last = stuck.world.router.journal.last_offset
    refused = stuck.publish()
    [answer] = stuck.world.bus.take(b"gateway-a", PublishNack)
    assert (answer.request, answer.code, answer.retry_after >= 1.0) == (refused, "overloaded", True)
    assert (stuck.world.router.journal.last_offset, stuck.world.router.publish_rejections["overloaded"]) == (last, 1)
    with capture_logs() as lines:
        stuck.half_a_second(*stuck.names)
    assert [line["rejected"] for line in lines if line["event"] == "publish_resumed"] == [1]
    assert stuck.answers() + stuck.refusals() == []
    stuck.publish()
    assert stuck.answers() == [4]


def test_who_sends_little_is_neither_slowed_nor_refused_with_those_who_send_much() -> None:
    """A few who send all that they may are no reason to hold up everybody: until it lasts very long."""
    stuck = Stuck()
    stuck.publish()
    stuck.answers()
    for _ in range(8):
        stuck.half_a_second(stuck.names[1])
    assert stuck.world.router.backpressure.delay > 0
    held = stuck.publish()
    little = stuck.publish("ben", 100)
    assert stuck.answers() == [little], "the other's answer waits"
    for _ in range(6):
        stuck.half_a_second(stuck.names[1])
    assert stuck.world.router.backpressure.retry_after is not None
    stuck.publish()
    little = stuck.publish("ben", 100)
    assert stuck.answers() == [held, little]
    assert len(stuck.refusals()) == 1
    for _ in range(40):
        stuck.half_a_second(stuck.names[1])
    stuck.publish("ben", 100)
    assert len(stuck.refusals()) == 1


def test_a_shard_that_lags_is_noticed_under_a_steady_stream() -> None:
    """However many events come meanwhile, the lag is known for as long as it takes to refuse."""
    stuck = Stuck()
    for _ in range(14):
        for _ in range(10):
            stuck.publish()
            stuck.world.now += 0.05
        stuck.world.now -= 0.5
        stuck.half_a_second(stuck.names[1])
    assert stuck.world.router.backpressure.retry_after is not None


def test_what_was_appended_is_never_refused() -> None:
    """Events that are in the log are acknowledged, however great the pressure has become meanwhile."""
    stuck = Stuck()
    stuck.publish()
    stuck.answers()
    for _ in range(8):
        stuck.half_a_second(stuck.names[1])
    assert stuck.world.router.backpressure.delay > 0
    held = [stuck.publish() for _ in range(3)]
    for _ in range(8):
        stuck.half_a_second(stuck.names[1])
    assert stuck.world.router.backpressure.retry_after is not None
    assert stuck.answers() == held
    assert stuck.refusals() == []


def test_a_shard_that_has_died_slows_nobody() -> None:
    """A shard that says nothing any more is looked at as it was when it was heard last, until it is out of the ring."""
    stuck = Stuck()
    _, follows = stuck.names
    for _ in range(20):
        stuck.publish()
        assert stuck.answers() == [stuck.requests]
        world = stuck.world
        world.now += 0.25
        world.beat(follows)
        world.router.receive(follows, LogAck("epoch-1", world.router.journal.last_offset, 1000), world.now)
        world.router.tick(world.now)
        assert world.router.backpressure.delay == 0.0
    assert [s.index for s in world.router.members.shards] == [1]


def test_a_shard_that_leaves_slows_nobody() -> None:
    """A shard that is being drained takes the time that it takes."""
    stuck = Stuck()
    stuck.world.router.receive(stuck.names[0], StartDraining(), stuck.world.now)
    stuck.publish()
    for _ in range(30):
        stuck.half_a_second(stuck.names[1])
    assert stuck.world.router.backpressure.delay == 0.0


def test_a_shard_with_a_long_replay_before_it_stops_nobody() -> None:
    """One that joins far behind slows no publisher while it reads, and has nobody refused if it goes on for long."""
    world = World(max_events=1_000_000)
    for _ in range(100):
        world.publish(*[None] * 10)
        world.now += 0.1
    name = world.join(0, credit=1)
    world.bus.take(b"gateway-a", PublishAck)
    begun = world.now
    offset = 0
    while world.now < begun + GRACE_SECONDS + 10:
        world.now += 0.5
        offset += 1
        world.beat(name)
        world.router.receive(name, LogAck("epoch-1", offset, 1), world.now)
        world.router.tick(world.now)
        assert world.router.backpressure.retry_after is None
        assert (world.router.backpressure.delay > 0) == (world.now - begun > GRACE_SECONDS)
    world.router.receive(name, LogAck("epoch-1", 1000, 1), world.now)
    world.beat(name)
    world.router.tick(world.now)
    assert world.router.backpressure.delay == 0.0


def test_a_quiet_shard_is_no_slow_one() -> None:
    """A shard that has nothing to ack, since nothing was its business, holds up nobody."""
    stuck = Stuck()
    here, other = stuck.names
    stuck.world.settle(here, other)
    user = next(f"user{n}" for n in range(100) if Ring([0, 1]).owner(f"user{n}") == 1)
    stuck.world.bus.sent.clear()
    for _ in range(30):
        stuck.world.publish(user)
        told = stuck.world.bus.take(here, LogBatch)
        assert all(not message.events for message in told)
        if told:
            stuck.world.router.receive(here, LogAck("epoch-1", told[-1].end_offset, 1000), stuck.world.now)
        stuck.half_a_second(other)
        assert stuck.world.router.backpressure.delay == 0.0


def test_answers_that_are_held_back_have_a_bound() -> None:
    """However many wait, the oldest leaves when there are too many."""
    stuck = Stuck()
    stuck.publish()
    for _ in range(8):
        stuck.half_a_second(stuck.names[1])
    stuck.answers()
    router, now = stuck.world.router, stuck.world.now
    for request in range(MAX_DELAYED_ANSWERS + 5):
        router.receive(b"gateway-a", PublishRequest(request, [PublishedEvent(f"x{request}", None, b"")], "ann"), now)
    stuck.world.turn()
    assert stuck.answers() == [0, 1, 2, 3, 4]


class Slow(MemoryJournal):
    """A journal on a disk that takes its time for each commit: `took` is what a stopwatch reads."""

    def __init__(self) -> None:
        super().__init__("epoch-1", max_events=10**6, max_bytes=10**9, window=60.0)
        self.took = 0.0
        self.commit_seconds = 0.2
        self.commits: list[int] = []

    def commit(self, now: float) -> None:
        if self.pending_count:
            self.commits.append(self.pending_count)
            self.took += self.commit_seconds
        super().commit(now)


def test_a_slow_disk_is_asked_less_often_for_more() -> None:
    """Where commits take long, more events share one."""
    world = World()
    journal = Slow()
    world.router = Router(journal, world.bus.send, stopwatch=lambda: journal.took)
    batch = [PublishedEvent("", None, b"")]
    request = 0
    for _ in range(3):
        for _ in range(10 * GROUP_EVENTS):
            request += 1
            batch = [PublishedEvent(f"id{request}", None, b"")]
            world.router.receive(b"gateway-a", PublishRequest(request, batch), world.now)
        world.turn()
    assert journal.commits == [GROUP_EVENTS, GROUP_EVENTS, *(n * GROUP_EVENTS for n in (8, 10, 10))]
    assert max(journal.commits) <= SLOW_GROUP_EVENTS
    assert len(world.bus.take(b"gateway-a", PublishAck)) == request


def test_commits_are_timed_that_keep_something(world: World) -> None:
    """Those with events are in the histogram, with how long they took; the ticks of a quiet log are not."""
    journal = Slow()
    world.router = Router(journal, world.bus.send, stopwatch=lambda: journal.took)
    for request in range(3):
        world.publish(None, request=request)
        world.now += 10
        world.router.tick(world.now)
    assert sum(world.router.commit_times.counts) == len(journal.commits)
    assert world.router.commit_times.sum == pytest.approx(len(journal.commits) * journal.commit_seconds)


def test_a_publisher_does_not_wait_for_all_that_another_has_sent_before() -> None:
    """Requests of one publisher wait behind each other, and not before those of others, on whatever gateway."""
    world = World()
    journal = Slow()
    world.router = Router(journal, world.bus.send, stopwatch=lambda: journal.took)
    number = 0
    for number in range(1, 51):
        events = [PublishedEvent(f"eve-{number}-{n}", None, b"x" * 100) for n in range(200)]
        world.router.receive(b"gateway-a", PublishRequest(number, events, "eve"), world.now)
    assert world.router.dispatch(world.now) == world.now, "it did not read what had come meanwhile"
    own = PublishRequest(51, [PublishedEvent("ann", None, b"x")], "ann")
    world.router.receive(b"gateway-b", own, world.now)
    world.router.dispatch(world.now)
    world.router.dispatch(world.now)
    assert [ack.request for ack in world.bus.take(b"gateway-b", PublishAck)] == [51]
    world.turn()
    acks = world.bus.take(b"gateway-a", PublishAck)
    assert [ack.request for ack in acks] == list(range(1, 51))
    assert len(world.router.publishes) == 0


def test_a_disk_that_takes_seconds_slows_publishers_and_then_refuses_them() -> None:
    """A journal that can't follow is felt by publishers as a slow shard is, and is tried again all the same."""
    world = World()
    journal = Slow()
    journal.commit_seconds = 3.0
    world.router = Router(journal, world.bus.send, stopwatch=lambda: journal.took)
    world.publish(None, request=1)
    assert len(world.bus.take(b"gateway-a", PublishAck)) == 1
    assert world.router.backpressure.delay > 0
    journal.commit_seconds = 6.0
    world.publish(None, request=2)
    world.publish(None, request=3)
    assert [n.request for n in world.bus.take(b"gateway-a", PublishNack)] == [3]
    world.router.tick(world.now + 10)
    assert [p.request for p in world.bus.take(b"gateway-a", PublishAck)] == [2]
    world.publish(None, request=4)
    assert [p.request for p in world.bus.take(b"gateway-a", PublishAck)] == [4]


# ------------------------------------------------------------------------------------ events of the router's own


AT_ONCE = AlertSettings(raise_after_s=0.0, clear_after_s=0.0)


class Alarmed(World):
    """A router that watches its processes, and says so at once."""

    def __init__(self, journal: MemoryJournal | None = None, stats_every: float = 0.0) -> None:
        super().__init__()
        ids = iter(range(10**6))
        watch = Monitor(
            catalog=CATALOG, new_id=lambda: f"own-{next(ids)}", alerts=AT_ONCE, stats_interval_s=stats_every
        )
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.router = Router(
            journal or self.router.journal,
            self.bus.send,
            now=self.now,
            monitor=watch,
            audit=lambda event, **fields: self.audited.append((event, fields)),
        )

    def tick(self, *peers: bytes, stats: ShardStats | None = None) -> None:
        self.now += 0.5
        for peer in peers:
            self.beat(peer, stats=stats)
        self.router.tick(self.now)
        self.turn()

    def types(self, name: bytes) -> list[str]:
        """The types of the events that the shard has been given, in the order of the log."""
        bodies = [body for message in self.bus.take(name, LogBatch) for _, body in message.events]
        return [decode_event(body).type for body in bodies]


def test_what_it_says_of_itself_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in looking at the numbers is logged, and the rest of the tick is done: what is late goes out."""
    world = Alarmed()
    name = world.join(0)

    def look(*_: object) -> None:
        raise ValueError("these numbers are no good")

    monkeypatch.setattr(world.router.monitor, "check_processes", look)
    world.bus.deaf.add(name)
    world.publish(None)
    world.bus.deaf.clear()
    with capture_logs() as lines:
        world.router.tick(world.now + 0.5)
    assert world.delivered(name) == [1]
    assert [(line["event"], line["log_level"]) for line in lines] == [("monitor_failed", "error")]


def test_an_alert_goes_through_the_log_and_asks_for_a_diagnosis() -> None:
    """It is given an offset, kept, and dispatched to all shards like any event; the shard it is about hears why."""
    world = Alarmed()
    ill, well = world.join(0), world.join(1)
    world.tick(ill, well)
    world.beat(ill, stats=ShardStats(event_loop_lag_s=3.0))
    world.tick(ill, well)
    assert world.types(ill) == world.types(well) == ["system_alert"]
    assert world.router.journal.last_offset == 1
    assert world.bus.take(ill, Diagnose) == [Diagnose("event_loop_lag_seconds")]
    assert world.bus.take(well, Diagnose) == []
    world.beat(ill, stats=ShardStats())
    world.tick(ill, well)
    assert world.types(ill) == ["system_alert"]
    assert world.bus.take(ill, Diagnose) == []


def test_statistics_are_states_in_the_log() -> None:
    """A shard whose log begins anew is given the present numbers, as of any state."""
    world = Alarmed(stats_every=1.0)
    name = world.join(0)
    for _ in range(5):
        world.tick(name)
    assert world.types(name) == ["gateway_stats"] * 4
    assert (
        len(world.router.journal.latest_states(world.router.journal.last_offset, 10, 10**6)) == 2
    )  # the shard's newest and all's


def test_what_is_to_be_said_waits_for_a_journal_that_takes_nothing() -> None:
    """An alert that could not be kept is kept as soon as one can be, once."""
    journal = Failing("epoch-1", max_events=1000, max_bytes=10**9, window=60.0)
    world = Alarmed(journal)
    name = world.join(0)
    journal.full = True
    world.tick(name, stats=ShardStats(event_loop_lag_s=3.0))
    for _ in range(3):
        world.tick(name, stats=ShardStats(event_loop_lag_s=3.0))
    assert world.types(name) == []
    journal.full = False
    world.publish(None)  # a commit of somebody else's must not pass for theirs
    for _ in range(3):
        world.tick(name, stats=ShardStats(event_loop_lag_s=3.0))
    bodies = [body for message in world.bus.take(name, LogBatch) for _, body in message.events]
    assert [body for body in bodies if body != b"body"] == [journal.read(1, 1)[0].body]
    assert len(bodies) == 2


def test_what_waits_to_be_said_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the journal takes nothing, only so much of the router's own waits for it."""
    monkeypatch.setattr("solowire.router.router.MAX_INTERNAL_EVENTS", 20)
    journal = Failing("epoch-1", max_events=1000, max_bytes=10**9, window=3600.0)
    world = Alarmed(journal, stats_every=0.5)
    name = world.join(0)
    journal.full = True
    for _ in range(20):  # each time one for the shard, and one for all
        world.tick(name)
    journal.full = False
    world.tick(name)
    assert journal.last_offset == 20


def test_a_drain_is_audited_with_who_wanted_it() -> None:
    """The router, which does it, notes the administrator's name, and whether there was such a shard."""
    world = Alarmed()
    world.join(0)
    world.join(3)
    for shard in (3, 4):
        world.router.receive(b"gateway-a", DrainRequest(1, shard, "root"), world.now)
    drain = {"user": "root"}
    assert world.audited == [
        ("draining", {**drain, "shard": 3, "users": 0}),
        ("draining", {**drain, "shard": 4, "users": None}),
    ]


# ------------------------------------------------------------------------------------------------- connections


def slots(world: World, name: bytes, asked: int, fence: int = 0, boot: str = "b", **used: int) -> None:
    """What a shard says of its slots, with its heartbeat."""
    world.router.receive(name, Heartbeat(boot, None, LeaseUsage(asked, fence, used)), world.now)


def test_a_heartbeat_is_answered_with_a_lease(world: World) -> None:
    """A shard's lease is renewed by its heartbeats, and costs no message of its own."""
    name = world.join(0)
    world.bus.sent.clear()
    slots(world, name, 1)
    [beat] = world.bus.take(name, HeartbeatResponse)
    assert beat.lease is not None
    assert (beat.lease.in_reply_to, beat.lease.shared_slots > 0) == (1, True)
    assert world.bus.sent == []


def test_a_question_between_two_heartbeats_is_answered_at_once(world: World) -> None:
    """A shard that has no slot left doesn't wait for its next heartbeat."""
    name = world.join(0)
    world.router.receive(name, LeaseUsage(1, 0, {}, {"viewer": 1}), world.now)
    [lease] = world.bus.take(name, Lease)
    assert (lease.in_reply_to, lease.shared_slots > 0) == (1, True)


def test_a_gateway_is_told_who_gets_no_slot(world: World) -> None:
    """Gateways hear with each heartbeat which groups have no room."""
    world.router = Router(world.router.journal, world.bus.send, limits=LimitsSettings(max_connections=2))
    name, gateway = world.join(0), world.gateway()
    slots(world, name, 1)
    [beat] = world.bus.take(name, HeartbeatResponse)
    assert beat.lease is not None
    slots(world, name, 2, beat.lease.fence, viewer=beat.lease.shared_slots)
    [beat] = world.bus.take(name, HeartbeatResponse)
    assert beat.lease is not None
    slots(world, name, 3, beat.lease.fence, viewer=2)
    world.beat(gateway, "g")
    [beat] = world.bus.take(gateway, HeartbeatResponse)
    assert beat.admission_state is not None
    assert (
        beat.admission_state.full_groups,
        beat.admission_state.unknown_groups_full,
        beat.admission_state.gateway_count,
    ) == (["viewer"], False, 1)


def test_a_liar_is_fenced_off(world: World) -> None:
    """A shard that says what can't be true is told so, is no shard any more, and doesn't become one by saying hello."""
    name, other = world.join(0), world.join(1, "another")
    slots(world, name, 1)
    world.bus.sent.clear()
    with capture_logs() as lines:
        slots(world, name, 2, 12345)
    [fenced] = world.bus.take(name, Fenced)
    assert "12345" in fenced.reason
    [line] = [line for line in lines if line["event"] == "shard_fenced"]
    assert (line["peer"], line["reason"]) == (name.decode(), fenced.reason)
    assert [s.index for s in world.bus.take(other, RingState)[-1].shards] == [1]
    world.join(0)
    assert world.bus.take(name, Fenced)
    assert [s.index for s in world.router.members.shards] == [1]
    world.publish(None)
    assert world.delivered(name) == []


def test_the_older_shard_hears_of_a_user_who_has_come_to_another(world: World) -> None:
    """While users move, the shard that may still have a user is told how many connections there are elsewhere."""
    name = world.join(0)
    world.settle(name)
    other = world.join(1)
    user = next(f"user{n}" for n in range(100) if Ring([0, 1]).owner(f"user{n}") == 1)
    world.router.receive(other, UsersConnected([(user, 1)]), world.now)
    assert world.bus.take(name, UserConnectedElsewhere) == [UserConnectedElsewhere(user, 1)]
    assert world.bus.take(other, UserConnectedElsewhere) == []
    world.settle(name)
    world.router.receive(other, UsersConnected([(user, 1)]), world.now)
    assert world.bus.take(name, UserConnectedElsewhere) == []


def test_a_shard_that_does_not_own_a_user_ends_none_of_its_connections(world: World) -> None:
    """What it says may be older than the ring, or it may be out of it: its owner has the newer connections."""
    name = world.join(0)
    other = world.join(1)
    user = next(f"user{n}" for n in range(100) if Ring([0, 1]).owner(f"user{n}") == 1)
    world.router.receive(name, UsersConnected([(user, 1)]), world.now)
    assert world.bus.take(other, UserConnectedElsewhere) == []
    world.router.receive(b"nobody", UsersConnected([(user, 1)]), world.now)
    assert world.bus.take(other, UserConnectedElsewhere) == []


def test_a_restart_grants_nothing_that_was_granted_before(world: World) -> None:
    """The journal knows who held leases: until they are heard of again, nobody gets more."""
    name = world.join(0)
    slots(world, name, 1)
    assert world.router.coordinator.free_slots > 0
    world.router = Router(world.router.journal, world.bus.send, now=world.now)
    assert world.router.coordinator.free_slots == 0
    other = world.join(1, "another")
    slots(world, other, 1, boot="another")
    beat = world.bus.take(other, HeartbeatResponse)[-1]
    assert beat.lease is not None
    assert (beat.lease.slots, beat.lease.shared_slots) == ({}, 0)


def test_a_goodbye_frees_what_the_shard_held(world: World) -> None:
    """A shard that ends in order leaves its slots to the others at once; one that falls silent does not."""
    name, silent = world.join(0), world.join(1, "another")
    slots(world, name, 1)
    slots(world, silent, 1, boot="another")
    held = world.router.coordinator.registry.held_slots
    world.now += 10
    world.beat(name)
    world.router.tick(world.now)
    assert world.router.coordinator.registry.held_slots == held
    world.router.receive(name, Leave(), world.now)
    assert 0 < world.router.coordinator.registry.held_slots < held


# ------------------------------------------------------------------------------------------------------------ damage


class HoledJournal(MemoryJournal):
    """Its records 3 to 5 are gone."""

    def read(self, after: int, limit: int) -> Sequence[Record]:
        if after < 5 and after + limit > 2:
            raise JournalHole(2, 5)
        return super().read(after, limit)


def test_a_hole_in_the_log_is_a_gap_to_shards_and_keeps_nothing_else_from_them() -> None:
    """A shard is told where the log goes on, once, and a client that asks for what is gone is refused with a reason."""
    bus = Bus()
    router = Router(HoledJournal("epoch-1", max_events=1000, max_bytes=10**9, window=60.0), bus.send)
    events = [PublishedEvent(f"id-{n}", None, b"%d" % n) for n in range(1, 9)]
    router.receive(b"gateway-a", PublishRequest(1, events), 100.0)
    router.dispatch(100.0)
    with capture_logs() as logs:
        router.receive(b"shard-0", Join(VERSION, "b", ShardAddress(0, "h", 1, "b"), "epoch-1", 0, 1000), 100.0)
        for turn in range(5):
            router.dispatch(101.0 + turn)
            router.tick(101.0 + turn)
    assert [(d.prev_offset, d.end_offset, [o for o, _ in d.events]) for d in bus.take(b"shard-0", LogBatch)] == [
        (5, 8, [6, 7, 8])
    ]
    assert [line["goes_on_behind"] for line in logs if line["event"] == "journal_gap_detected"] == [5]
    router.receive(b"shard-0", ReplayRequest(7, "epoch-1", "ann", 1, 8, False), 106.0)
    router.replays.serve_next(106.0)
    [answer] = bus.take(b"shard-0", ReplayResponse)
    assert (answer.request, answer.refusal) == (7, "retention")


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x91" * 5_000, b"\x92\x01\x01", "text", 7])
@pytest.mark.parametrize("name", ["ring", "leases"])
def test_a_word_that_can_not_be_read_is_none(name: str, garbage: Any) -> None:
    """The router starts without it, says so, and lets shards and gateways in."""
    bus = Bus()
    journal = MemoryJournal("epoch-1", max_events=1000, max_bytes=10**9, window=60.0)
    journal.put_metadata_item(name, garbage)
    with capture_logs() as logs:
        router = Router(journal, bus.send)
    assert [(line["event"], line["key"]) for line in logs] == [("metadata_unreadable", name)]
    router.receive(b"shard-0", Join(VERSION, "b", ShardAddress(0, "h", 1, "b"), "", 0, 1000), 100.0)
    [ring] = bus.take(b"shard-0", RingState)
    assert [shard.index for shard in ring.shards] == [0]
