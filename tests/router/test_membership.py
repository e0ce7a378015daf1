"""Who is there: joining, coming back, leaving and falling silent, without a process or a sleep."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from solowire.backplane.messages import DEAD_AFTER_SECONDS, VERSION, Join, ShardAddress, ShardStats
from solowire.router.membership import Membership, Peer
from tests.support.examples import examples

SILENT = DEAD_AFTER_SECONDS + 0.1


def hello(index: int | None, boot: str = "boot-1", port: int = 9000) -> Join:
    """Of the shard `index`, or of a gateway."""
    return Join(VERSION, boot, None if index is None else ShardAddress(index, "127.0.0.1", port, boot))


def tick(members: Membership, now: float) -> tuple[list[Peer], bool]:
    """Who was silent, and whether that has changed the ring."""
    version = members.version
    silent = members.tick(now)
    return silent, members.version != version


def indexes(members: Membership) -> list[int]:
    return [address.index for address in members.shards]


def test_a_shard_joins_by_its_hello() -> None:
    """A shard that says hello is in the ring at once, under a new version of it."""
    members = Membership()
    assert members.add_peer(b"shard-1", hello(1), 0.0) == []
    assert members.add_peer(b"shard-0", hello(0), 0.0) == []
    assert (indexes(members), members.version, members.gateway_count) == ([0, 1], 2, 0)


def starting(index: int, boot: str = "boot-1") -> Join:
    return msgspec.structs.replace(hello(index, boot), is_starting=True)


def test_a_new_shard_that_starts_is_in_the_ring_when_it_can_take_users() -> None:
    """Until then its users would be sent to it for nothing."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.add_peer(b"shard-1", starting(1), 0.0)
    assert (indexes(members), members.version) == ([0], 1)
    members.add_peer(b"shard-1", starting(1), 1.0)
    assert (indexes(members), members.version) == ([0], 1)
    members.add_peer(b"shard-1", hello(1), 2.0)
    assert (indexes(members), members.version) == ([0, 1], 2)
    members.add_peer(b"shard-1", starting(1), 3.0)  # one message that was late takes nobody away
    assert (indexes(members), members.version) == ([0, 1], 2)


def test_a_shard_that_starts_again_in_its_place_stays_in_the_ring() -> None:
    """Its users wait for it for a moment, which moves fewer than to another one and back."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.add_peer(b"shard-1", hello(1), 0.0)
    [gone] = members.add_peer(b"shard-1b", starting(1, "boot-2"), 1.0)
    assert gone.incarnation == "boot-1"
    assert indexes(members) == [0, 1]


def test_a_gateway_joins_without_changing_the_ring() -> None:
    """Gateways come and go without anyone's users moving."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    assert not members.add_peer(b"gateway-a", hello(None), 0.0)
    assert (members.gateway_count, members.version) == (1, 1)
    members.remove_peer(b"gateway-a")
    assert (members.gateway_count, members.version) == (0, 1)


def test_a_pause_of_the_router_is_not_held_against_its_peers() -> None:
    """A router that was stopped for ten seconds doesn't drop everyone before it has read what they said meanwhile."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    assert tick(members, 0.5) == ([], False)
    assert tick(members, 10.5) == ([], False)
    assert tick(members, 11.0) == ([], False)
    assert tick(members, 12.0) == ([], False)
    silent, changed = tick(members, 13.0)
    assert ([p.name for p in silent], changed) == ([b"shard-0"], True)


def test_the_same_hello_again_changes_nothing() -> None:
    """A shard that is asked who it is and answers twice doesn't disturb the ring, and its numbers stay."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.record_heartbeat(b"shard-0", "boot-1", ShardStats(connections=7), 1.0)
    assert not members.add_peer(b"shard-0", hello(0), 2.0)
    peer = members.get_peer(b"shard-0")
    assert peer is not None
    assert (peer.stats.connections, peer.last_heard_at, members.version) == (7, 2.0, 1)


def test_a_restarted_shard_replaces_itself() -> None:
    """A shard that comes back with a new boot has a new address in the ring, told under a new version."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.add_peer(b"shard-0", hello(0, "boot-2", port=9001), 1.0)
    assert [(a.port, a.incarnation) for a in members.shards] == [(9001, "boot-2")]
    assert members.version == 2


def test_the_old_process_of_a_restarted_shard_is_not_known_any_more() -> None:
    """A heartbeat of the boot before is asked who it is, rather than keeping the new one alive."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.add_peer(b"shard-0", hello(0, "boot-2"), 1.0)
    assert members.record_heartbeat(b"shard-0", "boot-1", None, 5.0) is False
    assert tick(members, 1.0 + SILENT)[1]


def test_of_two_that_claim_one_index_the_last_is_the_shard() -> None:
    """Two processes with the same --index can't both be in the ring."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0, "a"), 0.0)
    superseded = members.add_peer(b"another", hello(0, "b", port=9005), 1.0)
    assert [peer.name for peer in superseded] == [b"shard-0"]
    assert [(a.index, a.incarnation) for a in members.shards] == [(0, "b")]
    assert members.get_peer(b"shard-0") is None


def on(machine: str, boot: str, index: int = 0) -> Join:
    made = hello(index, boot)
    assert made.shard is not None
    return msgspec.structs.replace(made, shard=msgspec.structs.replace(made.shard, machine=machine))


def test_of_two_hosts_that_run_one_shard_the_first_is_it_while_it_is_heard_of() -> None:
    """Else they would take turns. On the same machine it is a process that was started again."""
    members = Membership()
    members.add_peer(b"first", on("here", "a"), 0.0)
    rival = members.find_rival(b"second", on("there", "b"))
    assert rival is not None
    assert rival.name == b"first"
    assert members.find_rival(b"first", on("here", "a")) is None
    assert members.find_rival(b"again", on("here", "c")) is None
    assert members.find_rival(b"other", on("there", "b", index=1)) is None
    assert members.find_rival(b"older", hello(0, "b")) is None  # which doesn't say where it is
    assert members.find_rival(b"gateway", hello(None)) is None
    tick(members, SILENT)
    assert members.find_rival(b"second", on("there", "b")) is None


def test_a_router_that_has_restarted_keeps_the_place_of_the_shard_before() -> None:
    """Who waited for it goes on waiting, whichever of the two says hello first, as long as any peer is waited for."""
    members = Membership()
    first = on("here", "a").shard
    assert first is not None
    members.presume([first], 7, 0.0)
    assert members.find_rival(b"second", on("there", "b")) is not None
    assert members.find_rival(b"first", on("here", "a")) is None
    tick(members, SILENT)
    assert members.find_rival(b"second", on("there", "b")) is None


def test_a_peer_that_becomes_another_shard_leaves_its_old_place() -> None:
    """One name is one place in the ring."""
    members = Membership()
    members.add_peer(b"peer", hello(0), 0.0)
    members.add_peer(b"peer", hello(3), 1.0)
    assert indexes(members) == [3]


def test_an_unknown_heartbeat_must_be_asked_who_it_is() -> None:
    """After the router's restart nobody is known until they say hello."""
    assert Membership().record_heartbeat(b"shard-0", "boot-1", None, 0.0) is False


def test_a_beating_shard_stays() -> None:
    """A shard that beats every second is never taken for dead."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    for second in range(1, 60):
        assert members.record_heartbeat(b"shard-0", "boot-1", None, float(second))
        assert tick(members, second + 0.5) == ([], False)
    assert indexes(members) == [0]


def test_a_heartbeat_without_numbers_keeps_the_last_ones() -> None:
    """A gateway's or an early beat doesn't wipe what is known."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.record_heartbeat(b"shard-0", "boot-1", ShardStats(connections=5), 1.0)
    members.record_heartbeat(b"shard-0", "boot-1", None, 2.0)
    peer = members.get_peer(b"shard-0")
    assert peer is not None
    assert peer.stats.connections == 5


def test_a_silent_shard_leaves_the_ring() -> None:
    """After three seconds of silence a shard's users belong to others, and the ring has a new version."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.add_peer(b"shard-1", hello(1), 2.0)
    assert tick(members, DEAD_AFTER_SECONDS) == ([], False)
    silent, changed = tick(members, SILENT)
    assert ([peer.name for peer in silent], changed) == ([b"shard-0"], True)
    assert (indexes(members), members.version) == ([1], 3)
    assert tick(members, SILENT) == ([], False)


def test_a_silent_gateway_is_forgotten_without_a_new_ring() -> None:
    """A gateway that is gone is not counted any more, and nobody moves."""
    members = Membership()
    members.add_peer(b"gateway-a", hello(None), 0.0)
    silent, changed = tick(members, SILENT)
    assert (len(silent), changed, members.gateway_count) == (1, False, 0)


def test_a_silent_shard_that_comes_back_joins_anew() -> None:
    """A process that was stopped and goes on is asked who it is, and takes its place again."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    tick(members, SILENT)
    assert members.record_heartbeat(b"shard-0", "boot-1", None, 5.0) is False
    members.add_peer(b"shard-0", hello(0), 5.0)
    assert indexes(members) == [0]


def test_goodbye_takes_a_shard_out_at_once() -> None:
    """A shard that ends in order isn't waited for; a goodbye of nobody changes nothing."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.remove_peer(b"shard-0")
    assert (indexes(members), members.version) == ([], 2)
    members.remove_peer(b"shard-0")
    assert members.version == 2


def test_a_shard_that_wants_to_leave_is_out_of_the_ring_and_still_a_peer() -> None:
    """Its users move away from it, and meanwhile it is neither forgotten nor taken for dead."""
    members = Membership()
    members.add_peer(b"shard-0", hello(0), 0.0)
    members.add_peer(b"shard-1", hello(1), 0.0)
    members.mark_draining(b"shard-0")
    assert (indexes(members), members.version) == ([1], 3)
    assert members.record_heartbeat(b"shard-0", "boot-1", None, 1.0)
    assert members.find_shard(0) is members.get_peer(b"shard-0")


def test_a_restarted_router_presumes_the_shards_of_before() -> None:
    """The ring is whole before the first hello, so nobody is moved; and each has time to say it."""
    members = Membership()
    before = [ShardAddress(i, "127.0.0.1", 9000 + i, "boot-1") for i in range(2)]
    members.presume(before, 7, 100.0)
    assert (indexes(members), members.version) == ([0, 1], 7)
    members.add_peer(b"shard-0", Join(VERSION, "boot-1", before[0]), 101.0)
    assert (indexes(members), members.version) == ([0, 1], 7)
    silent, changed = tick(members, 100.0 + SILENT)
    assert ([p.name for p in silent], changed, indexes(members)) == ([b"presumed-1"], True, [0])


class Comings(RuleBasedStateMachine):
    """Peers come, beat, fall silent and leave in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership()
        self.now = 0.0
        self.seen = (0, list(self.members.shards))

    names = st.sampled_from([b"a", b"b", b"c", b"d"])
    boots = st.sampled_from(["1", "2"])

    @rule(name=names, index=st.one_of(st.none(), st.integers(0, 3)), boot=boots)
    def hello(self, name: bytes, index: int | None, boot: str) -> None:
        self.members.add_peer(name, hello(index, boot), self.now)
        assert self.members.record_heartbeat(name, boot, None, self.now)

    @rule(name=names, boot=boots)
    def beat(self, name: bytes, boot: str) -> None:
        peer = self.members.get_peer(name)
        known = peer is not None and peer.incarnation == boot
        assert self.members.record_heartbeat(name, boot, None, self.now) == known

    @rule(name=names)
    def leave(self, name: bytes) -> None:
        self.members.mark_draining(name)

    @rule(name=names)
    def goodbye(self, name: bytes) -> None:
        self.members.remove_peer(name)
        assert self.members.get_peer(name) is None

    @rule(seconds=st.floats(0.0, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.members.tick(self.now)
        assert all(self.now - peer.last_heard_at <= DEAD_AFTER_SECONDS for peer in self.members)

    @invariant()
    def what_holds(self) -> None:
        version, shards = self.seen
        assert (self.members.version > version) == (self.members.shards != shards)
        self.seen = (self.members.version, self.members.shards)
        found = indexes(self.members)
        assert found == sorted(set(found))
        leaving = sum(peer.is_draining and peer.address is not None for peer in self.members)
        assert self.members.gateway_count + len(found) + leaving == len(list(self.members))


TestComings = Comings.TestCase
TestComings.settings = settings(max_examples=examples(60), stateful_step_count=30, deadline=None)
