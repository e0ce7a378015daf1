"""Whether there is room for one more: slots, addresses, and the slot that is kept for one who comes back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, repeat

import pytest

from solowire.backplane.messages import HEARTBEAT_SECONDS, Lease, ShardAddress
from solowire.errors import RequestRejected
from solowire.model.access import Identity
from solowire.router.leases.coordinator import Coordinator
from solowire.runtime.settings.limits_settings import LimitsSettings
from solowire.workers.capacity.slots import RESERVED_SECONDS, SlotManager

ANN, BOB = Identity("ann", "viewer", ()), Identity("bob", "viewer", (), tenant="acme")


def admission(spare: int, per_address: int | None = None, full: tuple[str, ...] = (), by: str = "role") -> SlotManager:
    made = SlotManager(by, per_address)
    made.apply_lease(Lease(1, made.usage_report(0.0).seq, 1e6, {}, spare, [], list(full), report_threshold=1))
    return made


def test_the_group_is_the_role_or_the_tenant() -> None:
    """What of an identity makes its group is a setting, except for administrators; who has no tenant is nobody's."""
    assert admission(1, by="tenant").get_group(Identity("chief", "root", ("*",), tenant="acme")) == "admin"
    assert admission(1).get_group(BOB) == "viewer"
    assert [admission(1, by="tenant").get_group(who) for who in (ANN, BOB)] == ["", "acme"]


def test_an_address_has_so_many_and_no_more() -> None:
    """The limit of an address is exact at one shard, and a connection that ends makes room."""
    made = admission(10, per_address=2)
    assert all(made.acquire(ANN, "192.0.2.7", 0.0) for _ in range(2))
    with pytest.raises(RequestRejected) as refused:
        made.acquire(BOB, "192.0.2.7", 0.0)
    assert (refused.value.status, refused.value.code) == (429, "too_many_from_address")
    assert made.acquire(BOB, "192.0.2.8", 0.0)
    made.release("ann", "viewer", "192.0.2.7")
    assert made.acquire(BOB, "192.0.2.7", 0.0)
    assert made.usage_report(0.0).addresses == {"192.0.2.7": 2, "192.0.2.8": 1}


def test_an_address_that_is_full_elsewhere_is_refused_here() -> None:
    """What the router says of all shards together counts, too."""
    with pytest.raises(RequestRejected):
        admission(10, per_address=9, full=("192.0.2.7",)).acquire(ANN, "192.0.2.7", 0.0)


def test_who_gets_no_slot_is_not_counted_for_its_address() -> None:
    """A refusal leaves nothing behind."""
    made = admission(0, per_address=9)
    assert not made.acquire(ANN, "192.0.2.7", 0.0)
    assert made.usage_report(0.0).addresses == {}


def test_a_slot_is_kept_for_who_comes_back() -> None:
    """The slot of a connection that ends for its user's next one is nobody else's, and taken once."""
    made = admission(1)
    assert made.acquire(ANN, "", 0.0)
    made.reserve_for("ann", "viewer", 0.0)
    assert not made.acquire(ANN, "", 0.0)  # the old socket is still there
    made.release("ann", "viewer", "")
    assert not made.acquire(BOB, "", 0.0)
    assert made.acquire(ANN, "", 0.0)
    assert made.lease.used == {"viewer": 1}
    made.release("ann", "viewer", "")
    assert made.acquire(BOB, "", 0.0)


def test_a_kept_slot_is_nobodys_when_the_lease_is_over() -> None:
    """By then the router may give the slot to another shard: who comes back for it is refused as everybody is."""
    made = admission(1)
    assert made.acquire(ANN, "", 0.0)
    made.reserve_for("ann", "viewer", 0.0)
    made.release("ann", "viewer", "")
    assert not made.acquire(ANN, "", made.lease.ends_at)


def test_a_kept_slot_returns_when_nobody_comes() -> None:
    """Who doesn't come back in time loses the slot to whoever comes."""
    made = admission(1)
    assert made.acquire(ANN, "", 0.0)
    made.reserve_for("ann", "viewer", 0.0)
    made.release("ann", "viewer", "")
    assert made.due_at == RESERVED_SECONDS
    made.run(RESERVED_SECONDS)
    assert made.acquire(BOB, "", RESERVED_SECONDS)
    assert made.lease.used == {"viewer": 1}


# ------------------------------------------------------------------------------------- an address at several shards


class Shards:
    """The admission of several shards, and their heartbeats' answers as a router with this limit gives them."""

    def __init__(self, number: int, per_address: int) -> None:
        self.admissions = [SlotManager(per_address=per_address) for _ in range(number)]
        self.coordinator = Coordinator(LimitsSettings(max_connections_per_address=per_address))
        self.now = 0.0
        for index in range(number):
            self.coordinator.registry.add_shard(
                b"%d" % index, ShardAddress(index, "h", 9000 + index, f"boot-{index}"), self.now
            )
        self.beat(3)

    def beat(self, times: int = 1) -> None:
        for _ in range(times):
            for index, admission in enumerate(self.admissions):
                slots = admission.usage_report(self.now, is_heartbeat=True)
                for name, lease in self.coordinator.on_usage_report(b"%d" % index, slots, self.now):
                    self.admissions[int(name)].apply_lease(lease)
            self.now += HEARTBEAT_SECONDS

    def flood(self, places: Sequence[int], address: str, between: int) -> int:
        """Comes to these shards in turn until nobody is let in; two heartbeats after each so many. How many are in."""
        inside = 0
        numbers = count()
        refused: set[int] = set()
        while len(refused) < len(set(places)):
            for _ in range(between):
                at = places[next(numbers) % len(places)]
                try:
                    assert self.admissions[at].acquire(ANN, address, self.now)
                    inside += 1
                except RequestRejected:
                    refused.add(at)
            self.beat(2)
        return inside


@pytest.mark.parametrize(
    "places",
    [range(8), [*range(8), *repeat(3, 8)], [*repeat(0, 12), *range(1, 8)], [*repeat(0, 500), *range(8)], [5, 6], [7]],
    ids=["evenly", "half at one", "most at one", "one first", "two", "one"],
)
@pytest.mark.parametrize("limit", [3, 40])
def test_an_address_has_no_more_at_all_shards_together(limit: int, places: Sequence[int]) -> None:
    """However they are spread, an address gets the limit, and beyond it only what comes within two heartbeats."""
    assert Shards(8, limit).flood(places, "192.0.2.7", between=1) == limit
    assert limit <= Shards(8, limit).flood(places, "192.0.2.7", between=5) < limit + 5


def test_what_is_said_of_addresses_is_what_may_be_too_much() -> None:
    """A shard says nothing of the many addresses that have few, until another shard has many of the same."""
    shards = Shards(2, 10)
    first, second = shards.admissions
    for n in range(50):
        assert first.acquire(ANN, f"198.51.100.{n}", shards.now)
    for _ in range(4):
        assert first.acquire(ANN, "192.0.2.7", shards.now)
        assert second.acquire(ANN, "192.0.2.7", shards.now)
    assert first.usage_report(shards.now).addresses == {}
    assert second.acquire(ANN, "192.0.2.7", shards.now)
    assert second.usage_report(shards.now).addresses == {"192.0.2.7": 5}
    shards.beat(2)
    assert first.usage_report(shards.now).addresses == {"192.0.2.7": 4}
    for _ in range(4):
        first.release("ann", "viewer", "192.0.2.7")
    second.release("ann", "viewer", "192.0.2.7")
    shards.beat(2)
    assert [made.usage_report(shards.now).addresses for made in shards.admissions] == [{}, {}]
    assert sum(made.lease.used_count for made in shards.admissions) == 54


@pytest.mark.parametrize(
    ("capacity", "slots", "spare", "now", "words"),
    [
        (0, {"admin": 2}, 0, 0.0, ["'viewer'", "SOLOWIRE_LIMITS__MAX_CONNECTIONS", "SOLOWIRE_LIMITS__GROUPS"]),
        (0, {}, 0, 0.0, ["granted", "SOLOWIRE_LIMITS__MAX_CONNECTIONS"]),
        (1, {}, 1, 0.0, ["open files", "ulimit -n"]),
        (0, {}, 5, 2e6, ["router", "SOLOWIRE_LIMITS__LEASE_S"]),
    ],
    ids=["group", "nothing", "files", "lease"],
)
def test_who_finds_no_slot_is_told_which_limit_it_is(
    capacity: int, slots: dict[str, int], spare: int, now: float, words: list[str]
) -> None:
    """Each of the limits is named with what raises it: "too many" alone would send an operator searching."""
    made = SlotManager(capacity=capacity)
    made.apply_lease(Lease(1, made.usage_report(0.0).seq, 1e6, slots, spare, []))
    for _ in range(capacity):
        assert made.acquire(ANN, "", now)
    assert not made.acquire(ANN, "", now)
    told = " ".join(made.explain_full(ANN, now))
    assert all(word in told for word in words), told
