"""The coordinator and the shards' side of leases: the limit holds whatever becomes of messages and processes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench.verdicts import jain_index
from solowire.algorithms.fair_share import Claim, MaxMinFill, share_slots
from solowire.backplane.messages import HEARTBEAT_SECONDS, Lease, LeaseUsage, ShardAddress
from solowire.router.leases.coordinator import FENCED_KEPT, WANT_SECONDS, Coordinator, LeaseViolation
from solowire.router.leases.hold_time import compute_hold_seconds
from solowire.runtime.settings.limits_settings import GroupQuota, LimitsSettings
from solowire.workers.capacity.lease import ShardLease
from tests.support.examples import examples
from tests.support.factories import change

UNIX = 1_800_000_000.0
NAMES = ("admin", "viewer", "operator", "tenant")


class Process:
    """One shard's process: its leases, its connections by group, and a clock of its own."""

    def __init__(self, index: int, boot: str, rate: float = 1.0, offset: float = 0.0) -> None:
        self.address = ShardAddress(index, "localhost", 9000 + index, boot)
        self.name = f"shard-{index}-{boot}".encode()
        self.leases = ShardLease()
        self.connections: list[str] = []
        self.cut = False
        self.stopped = False  # by SIGSTOP, say
        self.to_router: list[LeaseUsage] = []
        self.from_router: list[Lease] = []
        self._rate = rate
        self._offset = offset

    def clock(self, now: float) -> float:
        return now * self._rate + self._offset

    def connect(self, group: str, now: float) -> bool:
        taken = self.leases.acquire(group, self.clock(now))
        if taken:
            self.connections.append(group)
        return taken

    def disconnect(self, group: str) -> None:
        self.connections.remove(group)
        self.leases.release(group)

    def give_way(self) -> None:
        """Everybody whom the lease has no slot for goes."""
        for group, number in self.leases.overcommit().items():
            for _ in range(number):
                self.disconnect(group)

    def say(self, now: float, *, beat: bool = True) -> None:
        slots = self.leases.usage_report(self.clock(now), is_heartbeat=beat)
        if not self.cut:
            self.to_router.append(slots)

    def look_at_clock(self, now: float) -> None:
        """What a shard does whose lease is over: nobody is left when the router counts its slots as free."""
        if self.clock(now) >= self.leases.over_at and not self.stopped:
            for group in list(self.connections):
                self.disconnect(group)


class World:
    """A coordinator and some shards, with the messages between them under the test's hands."""

    def __init__(self, shards: int, limits: LimitsSettings, rates: list[float] | None = None) -> None:
        self.now = 1000.0
        self.limits = limits
        self.boots = count(1)
        self.rates = rates or [1.0] * shards
        self.word: bytes | None = None
        self.extra = 0  # messages that were not part of a heartbeat or its answer
        self.coordinator = Coordinator(limits, self.now, UNIX)
        self.processes = [self.start(index) for index in range(shards)]
        for process in self.processes:
            self.join(process)

    def start(self, index: int) -> Process:
        return Process(index, f"boot-{next(self.boots)}", self.rates[index], 77.0 * index)

    def join(self, process: Process) -> None:
        self.coordinator.registry.add_shard(process.name, process.address, self.now)

    def note(self) -> None:
        self.word = self.coordinator.snapshot(self.now) or self.word

    def hear(self, process: Process, at: int = 0, *, beat: bool = True) -> None:
        """The router takes a message of the shard; its answers are on their way then."""
        slots = process.to_router.pop(at)
        leases = self.coordinator.on_usage_report(process.name, slots, self.now)
        self.note()
        self.extra += len(leases) - beat + (not beat)
        self.send(leases)

    def send(self, leases: list[tuple[bytes, Lease]]) -> None:
        for name, lease in leases:
            for process in self.processes:
                if process.name == name and not process.cut:
                    process.from_router.append(lease)

    def take(self, process: Process, at: int = 0) -> None:
        process.leases.apply(process.from_router.pop(at))

    def restart_router(self) -> None:
        self.coordinator = Coordinator(self.limits, self.now, UNIX + self.now, self.word)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for process in self.processes:
            process.look_at_clock(self.now)
        self.send(self.coordinator.tick(self.now))
        self.note()

    def turn(self) -> None:
        """All that is under way arrives, and what the shards have to ask at once they ask."""
        for _ in range(10):
            for process in self.processes:
                while process.to_router:
                    self.hear(process, beat=False)
            for process in self.processes:
                while process.from_router:
                    self.take(process)
                process.give_way()
                if process.leases.wants_report and not process.cut:
                    process.say(self.now, beat=False)
            if not any(p.to_router or p.from_router for p in self.processes):
                return

    def beat(self, times: int = 1) -> None:
        """So many heartbeats of all, and all that follows from them."""
        for _ in range(times):
            self.pass_time(HEARTBEAT_SECONDS)
            for process in self.processes:
                if not process.cut:
                    process.say(self.now)
                    self.hear(process)
            self.turn()

    def used(self) -> dict[str, int]:
        everybody = [group for process in self.processes for group in process.connections]
        return {group: everybody.count(group) for group in sorted(set(everybody))}

    def fill(self, group: str, at: int | None = None, beats: int = 24) -> None:
        """Users of the group come to one shard, or to all in turn, until nobody is let in any more."""
        for _ in range(beats):
            places = self.processes if at is None else [self.processes[at]]
            while sum(place.connect(group, self.now) for place in places):
                self.turn()
            self.beat()

    def check(self) -> None:
        """What leases grant is within the limit, whatever is said of slots by a shard that has lost its lease."""
        assert sum(len(p.connections) for p in self.processes) <= self.limits.max_connections
        holders = self.coordinator.registry
        assert sum(max((lease.total for lease in h.leases), default=0) for h in holders) <= self.limits.max_connections


# ------------------------------------------------------------------------------------------------ what is granted


def test_room_is_there_before_it_is_needed() -> None:
    """A shard that has just come accepts connections without a question, and leaves room for the others to do so."""
    world = World(2, LimitsSettings(max_connections=100))
    world.beat(2)
    assert all(25 <= p.leases.total <= 50 for p in world.processes)
    assert all(world.processes[0].connect("viewer", world.now) for _ in range(20))
    world.beat(4)
    assert world.processes[0].leases.total > 30
    world.check()


def test_one_shard_alone_may_use_all() -> None:
    """Where all users belong to one shard, it gets the slots that the others don't use, down to the last."""
    world = World(3, LimitsSettings(max_connections=50))
    world.fill("viewer", at=1)
    assert world.used() == {"viewer": 50}
    world.check()


def test_it_says_what_each_group_has() -> None:
    """In use over all shards, what the plan gives it, and its limit; also of a group of which only settings speak."""
    groups = {"staff": GroupQuota(limit=10), "admin": GroupQuota(reserved=5)}
    world = World(2, LimitsSettings(max_connections=40, groups=groups))
    world.beat(2)
    assert all(place.connect(group, world.now) for place in world.processes for group in ("viewer", "staff"))
    world.beat()
    found = world.coordinator.list_groups()
    assert {name: slots.used for name, slots in found.items()} == {"viewer": 2, "staff": 2, "admin": 0}
    assert {name: slots.limit for name, slots in found.items()} == {"viewer": None, "staff": 10, "admin": None}
    assert found["admin"].share == 5
    assert 2 <= found["staff"].share <= 10
    assert found["viewer"].share >= 2


def test_unused_slots_return() -> None:
    """When users have left one shard, others can come to another."""
    world = World(2, LimitsSettings(max_connections=40))
    world.fill("viewer", at=0)
    for _ in range(40):
        world.processes[0].disconnect("viewer")
    world.fill("viewer", at=1)
    assert [len(p.connections) for p in world.processes] == [0, 40]
    world.check()


def test_a_group_below_its_share_gets_in_and_the_one_above_gives_way() -> None:
    """Viewers have filled the system; operators come, and get half of it, not more and not less."""
    world = World(2, LimitsSettings(max_connections=40))
    world.fill("viewer")
    assert world.used() == {"viewer": 40}
    world.fill("operator", beats=30)
    assert world.used() == {"operator": 20, "viewer": 20}
    world.fill("viewer")
    assert world.used() == {"operator": 20, "viewer": 20}
    world.check()


def test_who_has_to_give_way_is_told_at_once() -> None:
    """A shard that has all slots hears that another needs one, and that one gets it, between two heartbeats."""
    world = World(2, LimitsSettings(max_connections=40))
    world.fill("viewer", at=1)
    assert not world.processes[0].connect("operator", world.now)
    world.turn()
    assert world.processes[0].connect("operator", world.now)
    assert world.used() == {"operator": 1, "viewer": 39}
    world.check()


def test_a_shard_that_is_not_heard_of_is_told_once() -> None:
    """However often others ask, one message goes to each shard that has to give way, and none to one that has not."""
    world = World(3, LimitsSettings(max_connections=40))
    asking, full, idle = world.processes
    world.fill("viewer", at=1)
    for refused in range(5):
        for _ in range(refused + 1):
            assert not asking.connect("operator", world.now)
        asking.say(world.now)
        world.hear(asking)
    assert (len(full.from_router), len(idle.from_router)) == (1, 0)


def test_no_more_give_way_than_is_needed() -> None:
    """One operator comes to a full system: one viewer goes, at the shard that has most of them."""
    world = World(2, LimitsSettings(max_connections=40))
    world.fill("viewer", at=0, beats=20)
    for _ in range(10):
        world.processes[0].disconnect("viewer")
    world.fill("viewer", at=1)
    assert [len(p.connections) for p in world.processes] == [30, 10]
    assert not world.processes[1].connect("operator", world.now)
    world.turn()
    world.beat(2)
    assert world.processes[1].connect("operator", world.now)
    world.beat(int(WANT_SECONDS / HEARTBEAT_SECONDS) + 2)
    assert [len(p.connections) for p in world.processes] == [29, 11]
    world.check()


def test_weights_count() -> None:
    """A group of twice the weight gets two thirds."""
    world = World(2, LimitsSettings(max_connections=60, groups={"tenant": GroupQuota(weight=2.0)}))
    world.fill("viewer")
    world.fill("tenant", beats=40)
    assert world.used() == {"tenant": 40, "viewer": 20}


def test_a_limit_of_its_own_holds_a_group_back() -> None:
    """A group with a limit gets no further, however much room there is, and has slots ahead of need below it."""
    world = World(2, LimitsSettings(max_connections=100, groups={"tenant": GroupQuota(limit=10)}))
    world.beat(2)
    assert all(p.connect("tenant", world.now) for p in world.processes for _ in range(3))
    world.fill("tenant")
    assert world.used() == {"tenant": 10}
    assert world.processes[0].connect("viewer", world.now)


def test_what_is_reserved_stays_free() -> None:
    """When everybody else has come, administrators still get in at once, at any shard."""
    world = World(2, LimitsSettings(max_connections=40, groups={"admin": GroupQuota(reserved=4)}))
    world.fill("viewer")
    assert world.used() == {"viewer": 36}
    assert all(p.connect("admin", world.now) for p in world.processes for _ in range(2))
    world.check()


def test_what_is_reserved_is_given_before_what_is_wanted() -> None:
    """While others have still to give way, the few slots that a shard can have are for its administrators first."""
    world = World(2, LimitsSettings(max_connections=20, groups={"admin": GroupQuota(reserved=4)}))
    world.fill("viewer", at=0)
    other = world.processes[1]
    assert not other.connect("operator", world.now)
    other.say(world.now)
    world.hear(other)
    world.take(other)
    assert not other.connect("operator", world.now)
    assert all(other.connect("admin", world.now) for _ in range(2))
    world.check()


def test_within_a_shard_weights_and_reserves_count() -> None:
    """Where a shard has as many as it may, it keeps its part of a reserve free and shares the rest by weight."""
    groups = {"admin": GroupQuota(reserved=4), "operator": GroupQuota(weight=2.0)}
    world = World(2, LimitsSettings(max_connections=100, max_connections_per_shard=8, groups=groups))
    world.fill("viewer", at=0)
    assert world.used() == {"viewer": 6}
    world.fill("operator", at=0)
    assert world.used() == {"operator": 4, "viewer": 2}
    assert all(world.processes[0].connect("admin", world.now) for _ in range(2))
    world.check()


def test_a_shard_has_a_limit_of_its_own() -> None:
    """No shard is granted more than the limit per shard, and within it groups share fairly, too."""
    world = World(2, LimitsSettings(max_connections=100, max_connections_per_shard=10))
    world.beat()
    for _ in range(12):  # one by one, since what is ahead of need grows with what is used
        world.processes[0].connect("viewer", world.now)
        world.beat()
        assert world.processes[0].leases.total <= 10
    world.fill("viewer", at=0)
    assert len(world.processes[0].connections) == 10
    world.fill("operator", at=0, beats=20)
    assert world.used() == {"operator": 5, "viewer": 5}
    world.check()


def test_equal_groups_are_equal_under_contention() -> None:
    """Five tenants that all want everything, in any order of coming, end with Jain's index of 0.99 or more."""
    random = Random(4)
    world = World(3, LimitsSettings(max_connections=200))
    for _ in range(60):
        for _ in range(100):
            random.choice(world.processes).connect(f"tenant-{random.randrange(5)}", world.now)
        world.turn()
        world.beat()
        world.check()
    used = world.used()
    assert sum(used.values()) >= 195
    assert jain_index(used.values()) >= 0.99


def test_a_shard_that_leaves_gets_nothing_ahead() -> None:
    """A shard that is being emptied has slots for those who are still there, and no others."""
    world = World(2, LimitsSettings(max_connections=100))
    world.beat(2)
    assert world.processes[0].connect("viewer", world.now)
    world.coordinator.registry.mark_draining(world.processes[0].name)
    world.beat(2)
    assert world.processes[0].leases.total == 1


def test_a_shard_that_stays_after_all_has_room_at_once() -> None:
    """Gateways send it users as soon as it is in the ring again: the first needn't be refused for it to ask."""
    world = World(2, LimitsSettings(max_connections=100))
    world.beat(2)
    back = world.processes[0]
    world.coordinator.registry.mark_draining(back.name)
    world.beat(2)
    assert back.leases.total == 0
    world.join(back)
    world.send(world.coordinator.readmit(back.name))
    world.take(back)
    assert back.connect("viewer", world.now)
    assert back.leases.total > 10
    world.check()
    world.beat(2)
    world.check()


def test_who_comes_as_a_stranger_is_granted_nothing_before_it_has_said_what_it_uses() -> None:
    """Nothing is known of it: its first report is answered."""
    world = World(1, LimitsSettings(max_connections=100))
    assert world.coordinator.readmit(world.processes[0].name) == []
    assert world.coordinator.readmit(b"nobody") == []


def test_a_lease_that_takes_away_counts_when_it_is_confirmed() -> None:
    """While a smaller lease is on its way its shard may still use the greater one: nobody else gets the difference."""
    world = World(2, LimitsSettings(max_connections=40))
    slow, other = world.processes
    world.fill("viewer", at=0)
    for _ in range(40):
        slow.disconnect("viewer")
    for _ in range(2):  # the second time it has not yet heard the answer to the first
        slow.say(world.now)
        world.hear(slow)
    assert slow.from_router[-1].shared_slots < 40
    for _ in range(3):
        other.connect("viewer", world.now)
        other.say(world.now)
        world.hear(other)
        while other.from_router:
            world.take(other)
    assert not other.connect("viewer", world.now)
    assert all(slow.connect("viewer", world.now) for _ in range(40))
    world.check()


def test_a_slot_is_nobody_elses_while_its_connection_is_there() -> None:
    """A shard that confirms a smaller lease holds what it uses until those who have to go are gone."""
    world = World(2, LimitsSettings(max_connections=40))
    other, full = world.processes
    world.fill("viewer", at=1)
    for process, group in ((other, "operator"), (full, "viewer")):
        assert not process.connect(group, world.now)
        process.say(world.now)
        world.hear(process)
        while process.from_router:
            world.take(process)
    assert full.leases.total == 39
    full.say(world.now)
    world.hear(full)
    while other.from_router:
        world.take(other)
    assert not other.connect("operator", world.now)
    world.check()


# ------------------------------------------------------------------------------------------- who dies, and restarts


def test_what_a_lost_shard_holds_stays_held_until_its_lease_is_over() -> None:
    """Nobody gets the slots of a shard that is cut off before it has let go of them itself."""
    world = World(2, LimitsSettings(max_connections=40, lease_s=10.0))
    world.fill("viewer", at=0)
    lost = world.processes[0]
    lost.cut = True
    world.coordinator.registry.mark_lost(lost.name)
    world.fill("viewer", at=1, beats=4)
    assert len(world.processes[1].connections) == 0
    while lost.connections:
        world.beat()
        world.check()
    world.beat(6)
    world.fill("viewer", at=1)
    assert len(world.processes[1].connections) == 40
    world.check()


@pytest.mark.parametrize("how", ["goodbye", "nobody listens", "another there"])
def test_slots_come_back_at_once_when_the_process_is_gone_for_certain(how: str) -> None:
    """A goodbye, a closed port, or another process in the same place is as good as the end of the lease."""
    world = World(2, LimitsSettings(max_connections=40, lease_s=3600.0))
    world.fill("viewer", at=0)
    if how != "another there":
        if how == "goodbye":
            world.coordinator.registry.drop_shard(world.processes[0].name)
        else:
            address = world.processes[0].address
            world.coordinator.registry.confirm_dead(address.incarnation)
            assert world.coordinator.registry.held_slots >= 40, "it is heard of: its closed port says nothing"
            world.coordinator.registry.mark_lost(world.processes[0].name)
            assert world.coordinator.registry.absent_shards == [address]
            world.coordinator.registry.confirm_dead(address.incarnation)
        world.processes[0].cut = True
        world.processes[0].connections.clear()
    else:
        world.processes[0] = world.start(0)
        world.join(world.processes[0])
    world.fill("viewer", at=1)
    assert len(world.processes[1].connections) == 40
    world.check()


@pytest.mark.parametrize("moved", [{"port": 9100}, {"machine": "another"}])
def test_a_process_in_another_place_frees_nothing(moved: dict[str, Any]) -> None:
    """The same index on another port, or by the same address elsewhere, may be there while the old process still is."""
    world = World(2, LimitsSettings(max_connections=40, lease_s=3600.0))
    world.fill("viewer", at=0)
    old = world.processes[0]
    old.cut = True
    world.coordinator.registry.mark_lost(old.name)
    another = world.start(0)
    another.address = msgspec.structs.replace(another.address, **moved)
    world.processes.append(another)
    world.join(another)
    world.fill("viewer", at=2, beats=4)
    assert another.connections == []
    world.check()


def away_for_a_lease(world: World, late: Process) -> None:
    """The shard is cut off for longer than anybody counts with its lease; the next has all slots when it is back."""
    late.cut = True
    world.coordinator.registry.mark_lost(late.name)
    assert not late.connect("viewer", world.now)  # as long as its lease holds
    world.beat(int(compute_hold_seconds(world.limits.lease_s) / HEARTBEAT_SECONDS) + 1)
    world.fill("operator", at=1)
    assert world.used()["operator"] == world.limits.max_connections
    late.cut = False


def test_a_shard_that_is_back_after_its_lease_gets_nothing_that_others_hold() -> None:
    """Its old lease gives it no claim on slots: it gets some when those who have them by now have given way."""
    world = World(2, LimitsSettings(max_connections=10))
    late = world.processes[0]
    world.fill("viewer", at=0)
    away_for_a_lease(world, late)
    world.join(late)
    late.say(world.now)
    world.hear(late)
    world.take(late)
    assert not late.connect("viewer", world.now)
    world.check()
    world.fill("viewer", at=0)
    assert world.used() == {"operator": 5, "viewer": 5}
    world.check()


def test_a_shard_that_stood_still_for_a_lease_has_its_users_no_more() -> None:
    """What it says before it has looked at its clock, or said before, it has no lease for, and gets none for it."""
    world = World(2, LimitsSettings(max_connections=10))
    late = world.processes[0]
    world.fill("viewer", at=0)
    late.stopped = True
    away_for_a_lease(world, late)
    world.join(late)
    late.say(world.now)
    late.stopped = False
    late.look_at_clock(world.now)
    world.hear(late)
    world.take(late)
    assert late.leases.total == 0
    assert not late.connect("viewer", world.now)
    world.turn()
    world.check()
    world.beat(10)
    world.check()


def test_a_restarted_router_goes_on_with_what_the_shards_have() -> None:
    """After a restart nobody is sent away, nothing is granted twice, and soon there is room again."""
    world = World(2, LimitsSettings(max_connections=40))
    world.fill("viewer", at=0, beats=3)
    before = len(world.processes[0].connections)
    world.restart_router()
    assert world.coordinator.free_slots == 0
    world.join(world.processes[0])
    world.processes[0].say(world.now)
    world.hear(world.processes[0])
    assert world.coordinator.free_slots == 0  # the other one has not been heard of
    world.turn()
    world.join(world.processes[1])
    world.beat(3)
    assert len(world.processes[0].connections) == before
    world.fill("viewer", at=1)
    assert world.used() == {"viewer": 40}
    world.check()


def test_a_restarted_router_waits_for_the_leases_of_a_shard_that_does_not_come() -> None:
    """What a shard that was cut off before the restart has is nobody else's until its lease is over."""
    world = World(2, LimitsSettings(max_connections=40, lease_s=10.0))
    world.fill("viewer", at=0)
    world.processes[0].cut = True
    world.coordinator.registry.mark_lost(world.processes[0].name)
    world.note()
    world.restart_router()
    world.join(world.processes[1])
    world.fill("viewer", at=1, beats=10)
    assert world.processes[1].connections == []
    world.beat(30)
    world.fill("viewer", at=1)
    assert len(world.processes[1].connections) == 40
    world.check()


def test_a_long_lease_is_remembered_over_two_restarts_with_a_shorter_one() -> None:
    """Also the second router after the setting was lowered waits for who has one of the long leases still."""
    world = World(2, LimitsSettings(max_connections=40, lease_s=3600.0))
    world.fill("viewer", at=0)
    away = world.processes[0]
    away.cut = True
    world.coordinator.registry.mark_lost(away.name)
    world.note()
    world.limits = LimitsSettings(max_connections=40, lease_s=10.0)
    for _ in range(2):
        world.restart_router()
        world.join(world.processes[1])
        world.beat(int(2 * compute_hold_seconds(world.limits.lease_s) / HEARTBEAT_SECONDS))
        world.fill("viewer", at=1, beats=3)
        assert world.processes[1].connections == []
    world.pass_time(compute_hold_seconds(3600.0))
    assert away.connections == []
    world.fill("viewer", at=1)
    assert len(world.processes[1].connections) == 40
    world.note()
    world.restart_router()
    world.join(world.processes[1])
    world.beat(int(2 * compute_hold_seconds(world.limits.lease_s) / HEARTBEAT_SECONDS))
    assert world.coordinator.free_slots == 0
    assert len(world.coordinator.registry) == 1, "nobody waits for the long lease any more"


def test_fences_grow_over_restarts_also_if_the_clock_goes_back() -> None:
    """A lease of the router before is never taken for a newer one, also if nobody knows of it but the router before."""
    world = World(1, LimitsSettings(max_connections=40))
    world.beat()
    process = world.processes[0]
    assert all(process.connect("viewer", world.now) for _ in range(15))
    process.say(world.now)
    world.hear(process)
    [late] = process.from_router
    process.from_router.clear()
    assert late.fence > process.leases.fence
    world.coordinator = Coordinator(world.limits, world.now, 0.0, world.word)
    world.join(process)
    world.beat(2)
    assert process.leases.fence > late.fence


# ------------------------------------------------------------------------------------------------------- who lies


@pytest.mark.parametrize(
    "lie",
    [
        LeaseUsage(10**6, 0, {"viewer": 41}),
        LeaseUsage(10**6, 0, {"viewer": 22}),
        LeaseUsage(10**6, 2**50, {}),
        LeaseUsage(10**6, 0, {"viewer": -1}),
        LeaseUsage(10**6, 0, {"viewer": 50, "operator": -40}),
    ],
)
def test_a_lie_is_found(lie: LeaseUsage) -> None:
    """More than there is, more than it holds, a lease it never got, and less than nothing can't be true."""
    world = World(2, LimitsSettings(max_connections=40))
    world.beat(2)
    with pytest.raises(LeaseViolation):
        world.coordinator.on_usage_report(world.processes[0].name, lie, world.now)


def test_a_first_report_is_believed_within_the_limit() -> None:
    """What can't be true of any router before is a lie from the start."""
    for lie in (LeaseUsage(1, 0, {"viewer": 41}), LeaseUsage(1, 5, {}, total=41), LeaseUsage(1, 2**63, {}, total=1)):
        coordinator = Coordinator(LimitsSettings(max_connections=40), 0.0, UNIX)
        coordinator.registry.add_shard(b"shard-0", ShardAddress(0, "h", 1, "b"), 0.0)
        with pytest.raises(LeaseViolation):
            coordinator.on_usage_report(b"shard-0", lie, 0.0)


def test_who_is_fenced_off_keeps_what_it_holds_and_gets_nothing() -> None:
    """A liar's connections are still there: its slots are nobody else's until its lease is over."""
    world = World(2, LimitsSettings(max_connections=40))
    world.fill("viewer", at=0)
    liar = world.processes[0]
    world.coordinator.fence_off(liar.name)
    assert liar.address.incarnation in world.coordinator.fenced
    assert world.coordinator.registry.held_slots == 40
    assert world.coordinator.on_usage_report(liar.name, LeaseUsage(10**6, 0, {}), world.now) == []
    assert world.coordinator.fenced.maxlen == FENCED_KEPT


# ---------------------------------------------------------------------------------------------- doors and addresses


def test_doors_close_for_who_would_get_nothing() -> None:
    """Groups at or above their share are refused at the gateway, those below are let through, new ones as well."""
    world = World(2, LimitsSettings(max_connections=20, groups={"admin": GroupQuota(reserved=2)}))
    assert world.coordinator.admission_state(0).gateway_count == 1
    world.fill("viewer")
    doors = world.coordinator.admission_state(2)
    assert (doors.full_groups, doors.unknown_groups_full, doors.gateway_count) == (["viewer"], False, 2)
    world.fill("operator", beats=30)
    doors = world.coordinator.admission_state(2)
    assert (doors.full_groups, doors.unknown_groups_full) == (["operator", "viewer"], False)


def test_doors_close_when_every_shard_has_as_many_as_it_may() -> None:
    """With room left in the system and none at any shard, who would get nothing is told so before it comes to one."""
    world = World(2, LimitsSettings(max_connections=100, max_connections_per_shard=5))
    world.fill("viewer")
    world.beat(int(WANT_SECONDS / HEARTBEAT_SECONDS) + 2)
    assert world.used() == {"viewer": 10}
    assert world.coordinator.admission_state(1).full_groups == ["viewer"]
    assert not world.coordinator.admission_state(1).unknown_groups_full


def test_no_group_is_full_before_a_shard_has_come() -> None:
    """A gateway keeps this word until the next heartbeat: users who come with the first shard must not be refused."""
    state = Coordinator(
        LimitsSettings(max_connections=100, groups={"operator": GroupQuota(reserved=4)})
    ).admission_state(1)
    assert (state.full_groups, state.unknown_groups_full) == ([], False)


def test_an_address_is_full_when_all_shards_together_say_so() -> None:
    """Each shard knows its own connections of an address; that they are too many together only the router knows."""
    world = World(2, LimitsSettings(max_connections=100, max_connections_per_address=4))
    for process, number in zip(world.processes, (3, 1), strict=True):
        slots = process.leases.usage_report(world.now, {"192.0.2.7": number, "192.0.2.8": 1})
        [(_, lease)] = world.coordinator.on_usage_report(process.name, slots, world.now)
    assert lease.full_addresses == ["192.0.2.7"]
    assert world.coordinator.admission_state(1).full_addresses == ["192.0.2.7"]


# ------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize("limit", [40, 300, 3000])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_keeping_the_limit_costs_few_messages(limit: int, shards: int) -> None:
    """To fill the system, to hold out against a flood, and to give a second group its half, takes fewer messages beyond
    heartbeats than limit × shards; and between two heartbeats of a shard never more than four.
    """
    random = Random(limit)
    world = World(shards, LimitsSettings(max_connections=limit))
    beats = 0
    for group in ("viewer", "operator"):
        for _ in range(20):
            for _ in range(limit // 5):
                random.choice(world.processes).connect(group, world.now)
                world.turn()
            world.beat()
            beats += 1
            assert world.extra <= 4 * shards * (beats + 1)
    assert sum(world.used().values()) >= limit * 0.95
    assert jain_index(world.used().values()) >= 0.99
    assert world.extra <= limit * shards


def test_heartbeats_that_say_nothing_new_cost_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is to have what is found anew when something has changed, not with each heartbeat of a shard or a gateway."""
    made = []

    class Counted(MaxMinFill):
        def __init__(self, capacity: int, claims: Mapping[str, Claim]) -> None:
            made.append(capacity)
            super().__init__(capacity, claims)

    world = World(4, LimitsSettings(max_connections=40))
    world.fill("viewer")
    world.beat(int(WANT_SECONDS / HEARTBEAT_SECONDS) + 2)
    doors = world.coordinator.admission_state(1)
    monkeypatch.setattr("solowire.router.leases.allocation.MaxMinFill", Counted)
    world.beat(3)
    assert world.coordinator.admission_state(2).full_groups == doors.full_groups == ["viewer"]
    assert made == []
    world.processes[0].disconnect("viewer")
    world.beat()
    assert world.coordinator.admission_state(1).full_groups == []
    assert len(made) <= 2


# ------------------------------------------------------------------------------------------------ every interleaving


class Interleavings(RuleBasedStateMachine):
    """Connections, messages in any order or none, processes that die and are cut off, a router that restarts."""

    @initialize(
        shards=st.integers(1, 3),
        limit=st.sampled_from([3, 6, 12]),
        lease=st.sampled_from([5.0, 20.0]),
        per_shard=st.sampled_from([None, None, 5]),
        rates=st.lists(st.sampled_from([0.995, 1.0, 1.005]), min_size=3, max_size=3),
        reserved=st.booleans(),
        limited=st.booleans(),
    )
    def begin(
        self,
        shards: int,
        limit: int,
        lease: float,
        per_shard: int | None,
        rates: list[float],
        reserved: bool,
        limited: bool,
    ) -> None:
        groups = {}
        if reserved:
            groups["admin"] = GroupQuota(reserved=max(1, limit // 10))
        if limited:
            groups["tenant"] = GroupQuota(weight=2.0, limit=max(1, limit // 3))
        limits = LimitsSettings(max_connections=limit, groups=groups)
        # A shard may be allowed more than there are, and a lease be shorter than anybody sets.
        limits = change(limits, max_connections_per_shard=per_shard, lease_s=lease)
        self.world = World(shards, limits, rates)
        self.known = set(self.world.processes)  # to the router
        self.world.beat(2)

    def process(self, at: int) -> Process:
        return self.world.processes[at % len(self.world.processes)]

    @rule(at=st.integers(0, 2), group=st.sampled_from(NAMES), number=st.sampled_from([1, 2, 12, 12]))
    def connect(self, at: int, group: str, number: int) -> None:
        for _ in range(number):
            self.process(at).connect(group, self.world.now)

    @rule(group=st.sampled_from(NAMES))
    def fill(self, group: str) -> None:
        """For some time all goes well, and so many come that there is no room left."""
        for place in range(len(self.world.processes)):
            self.hello(place)
        self.world.fill(group, beats=5)

    @rule(at=st.integers(0, 2), group=st.sampled_from(NAMES))
    def come_to_a_full_shard(self, at: int, group: str) -> None:
        """A group asks for slots and gets them, while those who have to go for it are still there."""
        self.fill("viewer")
        self.connect(at, group, 2)
        self.question_and_answer(at)
        self.connect(at, group, 12)

    @rule(at=st.integers(0, 2), which=st.integers(0, 99))
    def disconnect(self, at: int, which: int) -> None:
        connections = self.process(at).connections
        if connections:
            self.process(at).disconnect(connections[which % len(connections)])

    @rule(at=st.integers(0, 2))
    def give_way(self, at: int) -> None:
        self.process(at).give_way()

    @rule(at=st.integers(0, 2), beat=st.booleans())
    def say(self, at: int, beat: bool) -> None:
        process = self.process(at)
        if not process.cut and process not in self.known:
            self.hello(at)
        process.say(self.world.now, beat=beat)

    @rule(at=st.integers(0, 2), which=st.sampled_from([0, 0, 0, 1, 2]))
    def router_hears(self, at: int, which: int) -> None:
        process = self.process(at)
        if process.to_router:
            self.world.hear(process, which % len(process.to_router))

    @rule(at=st.integers(0, 2), which=st.sampled_from([0, 0, 0, 1, 2]))
    def shard_hears(self, at: int, which: int) -> None:
        process = self.process(at)
        if process.from_router:
            self.world.take(process, which % len(process.from_router))

    @rule(at=st.integers(0, 2))
    def question_and_answer(self, at: int) -> None:
        """What the shard says arrives at once, and what it is told; others hear of it later."""
        process = self.process(at)
        if not process.cut:
            process.from_router.clear()
            process.to_router.clear()
            self.say(at, True)
            self.world.hear(process)
            while process.from_router:
                self.world.take(process)

    @rule(at=st.integers(0, 2), part=st.sampled_from([0.5, 1.02, 1.3]))
    def vanish(self, at: int, part: float) -> None:
        """A shard is cut off, and noticed, and so much of a lease's time passes for the others."""
        world, process = self.world, self.process(at)
        process.cut = True
        process.to_router.clear()
        self.known.discard(process)
        world.coordinator.registry.mark_lost(process.name)
        end = world.now + part * world.limits.lease_s
        while world.now < end:
            world.beat()
        for other in world.processes:
            self.connect(world.processes.index(other), "viewer", 12)

    @rule(at=st.integers(0, 2), group=st.sampled_from(NAMES), said=st.booleans(), noticed=st.booleans())
    def come_back_too_late(self, at: int, group: str, said: bool, noticed: bool) -> None:
        """A shard is not heard of for so long that others have its slots. said: before, and it comes only now."""
        world, process = self.world, self.process(at)
        if process.cut:
            return
        self.fill("viewer")
        self.connect(at, group, 2)
        process.to_router.clear()
        if said:
            process.say(world.now)
        under_way = list(process.to_router)
        self.cut_off(at)
        if noticed:
            world.coordinator.registry.mark_lost(process.name)
        world.beat(int(compute_hold_seconds(world.limits.lease_s) / HEARTBEAT_SECONDS) + 1)
        world.fill("operator", beats=3)
        self.heal(at)
        process.to_router += under_way
        self.hello(at)
        process.say(world.now)
        while process.to_router:
            world.hear(process)
            while process.from_router:
                world.take(process)
            self.connect(at, group, 12)
            world.check()

    @rule(at=st.integers(0, 2), which=st.integers(0, 9), up=st.booleans())
    def lose(self, at: int, which: int, up: bool) -> None:
        under_way: list[LeaseUsage] | list[Lease] = self.process(at).to_router if up else self.process(at).from_router
        if under_way:
            del under_way[which % len(under_way)]

    @rule(seconds=st.sampled_from([0.1, 0.5, 0.5, 3.0, 5.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(at=st.integers(0, 2))
    def cut_off(self, at: int) -> None:
        self.process(at).cut = True
        self.process(at).to_router.clear()

    @rule(at=st.integers(0, 2))
    def heal(self, at: int) -> None:
        self.process(at).cut = False

    @rule(at=st.integers(0, 2))
    def seems_dead(self, at: int) -> None:
        self.known.discard(self.process(at))
        self.world.coordinator.registry.mark_lost(self.process(at).name)

    @rule(at=st.integers(0, 2))
    def hello(self, at: int) -> None:
        if not self.process(at).cut:
            self.known.add(self.process(at))
            self.world.join(self.process(at))

    @rule(at=st.integers(0, 2))
    def die_and_start_again(self, at: int) -> None:
        at %= len(self.world.processes)
        self.known.discard(self.world.processes[at])
        self.world.processes[at] = self.world.start(at)

    @rule(at=st.integers(0, 2))
    def leave(self, at: int) -> None:
        self.world.coordinator.registry.mark_draining(self.process(at).name)

    @rule(at=st.integers(0, 2))
    def stay(self, at: int) -> None:
        """It leaves no more: it says hello, and has room at once."""
        self.hello(at)
        self.world.send(self.world.coordinator.readmit(self.process(at).name))

    @rule()
    def restart_router(self) -> None:
        self.known.clear()
        self.world.restart_router()

    @precondition(lambda self: not any(p.cut for p in self.world.processes))
    @rule(at=st.integers(0, 2), group=st.sampled_from(NAMES))
    def nobody_below_its_share_is_refused(self, at: int, group: str) -> None:
        """When messages arrive again, whoever is below its share gets in, within a few heartbeats.

        Slots that are kept for others who were refused a moment ago are theirs first.
        """
        world = self.world
        for place in range(len(world.processes)):
            self.hello(place)
        world.beat(
            int(
                (WANT_SECONDS + (compute_hold_seconds(world.limits.lease_s) if world.limits.lease_s < 10 else 0))
                / HEARTBEAT_SECONDS
            )
        )
        if not all(holder.is_current_term and holder.is_live for holder in world.coordinator.registry):
            return
        process, used, claims = self.process(at), world.used(), {}
        for name in used.keys() | world.limits.groups.keys():
            own = world.limits.groups.get(name, GroupQuota())
            has = used.get(name, 0)
            claims[name] = Claim(has, own.weight, own.reserved, own.limit, has)
        capacity, per_shard = world.limits.max_connections, world.limits.max_connections_per_shard
        if per_shard is not None:
            capacity = min(capacity, per_shard * len(world.processes))
        due = MaxMinFill(capacity, claims).can_add_one(group)
        if per_shard is not None:
            here = {}
            for name in {*process.connections, *world.limits.groups, group}:
                own = world.limits.groups.get(name, GroupQuota())
                has = process.connections.count(name)
                reserved = -(-own.reserved // len(world.processes))
                here[name] = Claim(has + (name == group), own.weight, reserved, held=has)
            due = due and share_slots(per_shard, here)[group] > process.connections.count(group)
        if due:
            for _ in range(6):
                if process.connect(group, world.now):
                    return
                world.turn()
                world.beat()
            raise AssertionError(f"{group} is below its share and refused: {used}")

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            coordinator = self.world.coordinator
            remembered = coordinator.admission_state(1), coordinator._allocator.allocate().shares
            coordinator.registry.touch()
            assert remembered == (coordinator.admission_state(1), coordinator._allocator.allocate().shares)
            for process in self.world.processes:
                assert process.leases.used_count == len(process.connections)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=examples(300), stateful_step_count=40, deadline=None)
