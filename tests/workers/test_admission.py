"""Whether there is room for one more: slots, addresses, and the slot that is kept for one who comes back."""

from __future__ import annotations

import pytest

from solowire.access import Identity
from solowire.backplane import Lease
from solowire.errors import Refused
from workers.admission import KEPT_SECONDS, Admission

ANN, BOB = Identity("ann", "viewer", ()), Identity("bob", "viewer", (), tenant="acme")


def admission(spare: int, per_address: int | None = None, full: tuple[str, ...] = (), by: str = "role") -> Admission:
    made = Admission(by, per_address)
    made.leased(Lease(1, made.slots(0.0).asked, 1e6, {}, spare, [], list(full)))
    return made


def test_the_group_is_the_role_or_the_tenant() -> None:
    """What of an identity makes its group is a setting; who has no tenant is of the group of those."""
    assert admission(1).group_of(BOB) == "viewer"
    assert [admission(1, by="tenant").group_of(who) for who in (ANN, BOB)] == ["", "acme"]


def test_an_address_has_so_many_and_no_more() -> None:
    """The limit of an address is exact at one shard, and a connection that ends makes room."""
    made = admission(10, per_address=2)
    assert all(made.enter(ANN, "192.0.2.7", 0.0) for _ in range(2))
    with pytest.raises(Refused) as refused:
        made.enter(BOB, "192.0.2.7", 0.0)
    assert (refused.value.status, refused.value.code) == (429, "too_many_from_address")
    assert made.enter(BOB, "192.0.2.8", 0.0)
    made.leave("ann", "viewer", "192.0.2.7")
    assert made.enter(BOB, "192.0.2.7", 0.0)
    assert made.slots(0.0).addresses == {"192.0.2.7": 2, "192.0.2.8": 1}


def test_an_address_that_is_full_elsewhere_is_refused_here() -> None:
    """What the router says of all shards together counts, too."""
    with pytest.raises(Refused):
        admission(10, per_address=9, full=("192.0.2.7",)).enter(ANN, "192.0.2.7", 0.0)


def test_who_gets_no_slot_is_not_counted_for_its_address() -> None:
    """A refusal leaves nothing behind."""
    made = admission(0, per_address=9)
    assert not made.enter(ANN, "192.0.2.7", 0.0)
    assert made.slots(0.0).addresses == {}


def test_a_slot_is_kept_for_who_comes_back() -> None:
    """The slot of a connection that ends for its user's next one is nobody else's, and taken once."""
    made = admission(1)
    assert made.enter(ANN, "", 0.0)
    made.keep_for("ann", "viewer", 0.0)
    assert not made.enter(ANN, "", 0.0)  # the old socket is still there
    made.leave("ann", "viewer", "")
    assert not made.enter(BOB, "", 0.0)
    assert made.enter(ANN, "", 0.0)
    assert made.leases.used == {"viewer": 1}
    made.leave("ann", "viewer", "")
    assert made.enter(BOB, "", 0.0)


def test_a_kept_slot_returns_when_nobody_comes() -> None:
    """Who doesn't come back in time loses the slot to whoever comes."""
    made = admission(1)
    assert made.enter(ANN, "", 0.0)
    made.keep_for("ann", "viewer", 0.0)
    made.leave("ann", "viewer", "")
    assert made.due == KEPT_SECONDS
    made.run(KEPT_SECONDS)
    assert made.enter(BOB, "", KEPT_SECONDS)
    assert made.leases.used == {"viewer": 1}
