"""Whom a ticket lets in, and what a refusal leaves behind."""

from __future__ import annotations

import pytest

from solowire.algorithms.hash_ring import Ring
from solowire.auth.tokens import Ticket, Tokens
from solowire.backplane.messages import Lease
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import InvalidToken, RequestRejected
from solowire.model.access import ROLES, Identity
from solowire.protocol.messages import Codec
from solowire.workers.capacity.slots import SlotManager
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.users import UserRegistry
from solowire.workers.delivery.known_rings import KnownRings
from solowire.workers.session.ticket_gate import SlotRefusal, TicketGate

TOKENS = Tokens("a secret that is long enough for anybody", ROLES, domain=DNS)
ALICE = Identity("alice", "viewer", ())
WALL = 1_800_000_000.0


class Place:
    """The entrance of shard 0 with so many slots. Of the two shards 0 and 19 it owns alice and bob, not zoe."""

    def __init__(self, slots: int, on_duplicate: str = "replace") -> None:
        self.users = UserRegistry(1)
        self.admission = SlotManager()
        self.admission.apply_lease(Lease(1, self.admission.usage_report(0.0).seq, 1e6, {}, slots, []))
        self.replaced: list[Connection] = []
        rings = KnownRings(0)
        rings.add_ring(Ring((0, 19)), 0, 0)
        self.entrance = TicketGate(
            0,
            TOKENS,
            self.users,
            self.admission,
            on_duplicate,
            rings,
            incarnation="this",
        )

    def admit(self, ticket: str, *, leaving: bool = False, ready: bool = True) -> Ticket:
        answer = self.entrance.redeem(ticket, 0.0, WALL, leaving=leaving, ready=ready)
        if isinstance(answer, SlotRefusal):
            self.replaced += [answer.replaced] if answer.replaced is not None else []
            raise answer.error
        return answer

    def here(self, identity: Identity = ALICE) -> Connection:
        """One that has come in."""
        admitted = self.admit(ticket(identity.user, "first"))
        connection = Connection("s", admitted.identity, Codec.json, None, group="viewer")
        self.users.add(connection)
        return connection


def ticket(user: str = "alice", jti: str = "a", shard: int = 0) -> str:
    return TOKENS.issue_ticket(Identity(user, "viewer", ()), shard, jti, WALL, "192.0.2.7")


def test_a_ticket_lets_in_once() -> None:
    """With a slot, and as a handshake of its user; a second time it is refused, and takes nothing."""
    place = Place(5)
    assert place.admit(ticket()).identity.user == "alice"
    assert place.users.is_at_limit("alice")
    with pytest.raises(InvalidToken) as caught:
        place.admit(ticket())
    assert caught.value.code == "ticket_used"
    assert place.admission.used_count == 1


@pytest.mark.parametrize(
    ("user", "state", "code"),
    [
        ("alice", {"leaving": True, "ready": False}, "draining"),
        ("alice", {"ready": False}, "not_ready"),
        ("zoe", {}, "wrong_shard"),
    ],
)
def test_a_refusal_says_who_it_was(user: str, state: dict[str, bool], code: str) -> None:
    """For the audit log, if the ticket is good; nothing is taken, and whoever may come later comes with it."""
    place = Place(5)
    with pytest.raises(RequestRejected) as caught:
        place.admit(ticket(user), **state)
    assert (caught.value.status, caught.value.code) == (503, code)
    assert caught.value.who == {"user": user, "role": "viewer", "address": "192.0.2.7"}
    assert place.admission.used_count == 0
    if user == "alice":
        place.admit(ticket(user))


@pytest.mark.parametrize(("boot", "comes_in"), [("this", True), ("", True), ("before", False)])
def test_a_ticket_is_for_the_process_that_it_was_made_for(boot: str, comes_in: bool) -> None:
    """One that was made for the shard's process before this one may have been used there; "": it says of none."""
    place = Place(5)
    shown = TOKENS.issue_ticket(ALICE, 0, "a", WALL, incarnation=boot)
    if comes_in:
        assert place.admit(shown).identity.user == "alice"
        return
    with pytest.raises(RequestRejected) as caught:
        place.admit(shown)
    assert (caught.value.status, caught.value.code) == (503, "wrong_shard")
    assert "/v1/connect" in caught.value.hint
    assert place.admission.used_count == 0


def test_a_ticket_stays_good_until_there_is_a_slot() -> None:
    """Who is refused for want of one tries again with the same ticket."""
    place = Place(1)
    place.here(Identity("bob", "viewer", ()))
    with pytest.raises(RequestRejected) as caught:
        place.admit(ticket())
    assert (caught.value.code, place.replaced) == ("over_limit", [])
    place.admission.release("bob", "viewer", "")
    assert place.admit(ticket()).identity.user == "alice"


def test_a_user_without_a_slot_gives_its_older_one_for_it() -> None:
    """When all are taken, its own older connection ends, and its slot is kept for its next try."""
    place = Place(1)
    older = place.here()
    with pytest.raises(RequestRejected) as caught:
        place.admit(ticket())
    assert (caught.value.retry_after, place.replaced) == (1, [older])
    place.admission.release("alice", "viewer", "")
    place.admit(ticket())


def test_a_duplicate_may_be_refused() -> None:
    """Where the setting says so it is the newer one that doesn't get in."""
    place = Place(5, "reject")
    place.here()
    with pytest.raises(RequestRejected) as caught:
        place.admit(ticket())
    assert (caught.value.status, caught.value.code) == (409, "duplicate_connection")
