"""A shard's side of its leases: what may be taken, until when, and when the router is asked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.backplane.messages import LEASE_DRAIN_FRACTION, Lease
from solowire.workers.capacity.lease import ANSWERS_AWAITED, WANTED_GROUPS, ShardLease


def leases(spare: int = 0, capped: tuple[str, ...] = (), seconds: float = 100.0, **slots: int) -> ShardLease:
    """With a lease in force, as of second 0."""
    made = ShardLease()
    asked = made.usage_report(0.0, is_heartbeat=True).seq
    made.apply(Lease(10, asked, seconds, slots, spare, list(capped)))
    return made


def test_without_a_lease_there_is_no_slot() -> None:
    """A shard that has heard nothing of the router lets nobody in, and asks."""
    made = ShardLease()
    assert made.wants_report
    assert not made.acquire("viewer", 0.0)


def test_a_group_uses_its_own_slots_first_and_then_spare_ones() -> None:
    """Slots of a group are its own, spare ones are for whoever comes first."""
    made = leases(spare=1, viewer=1, admin=1)
    assert [made.acquire(group, 1.0) for group in ("viewer", "viewer", "viewer", "operator", "admin")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    made.release("viewer")
    assert made.acquire("operator", 1.0)
    assert made.usage_report(1.0).wanted == {"viewer": 1, "operator": 1}


def test_a_capped_group_uses_no_spare_slot() -> None:
    """A group that is at its own limit is refused although there is room."""
    made = leases(spare=5, capped=("tenant",), tenant=1)
    assert [made.acquire("tenant", 1.0) for _ in range(2)] == [True, False]
    assert made.acquire("viewer", 1.0)


def test_a_slot_is_returned_once() -> None:
    """What was never taken can't be given back: that is a mistake of ours, and not to be overlooked."""
    made = leases(spare=1)
    assert made.acquire("viewer", 1.0)
    made.release("viewer")
    with pytest.raises(KeyError):
        made.release("viewer")


def test_the_slot_of_one_who_has_to_go_is_nobody_elses_before_it_is_free() -> None:
    """A group that is let in waits until the socket of the one that gives way is gone."""
    made = leases(viewer=3)
    assert all(made.acquire("viewer", 1.0) for _ in range(3))
    made.apply(Lease(11, 0, 0.0, {"viewer": 2, "operator": 1}))
    assert made.overcommit() == {"viewer": 1}
    assert not made.acquire("operator", 1.0)
    made.release("viewer")
    assert made.overcommit() == {}
    assert made.acquire("operator", 1.0)


def test_capped_groups_give_way_first_and_then_whoever_has_most() -> None:
    """Where spare slots are taken away it is the group with most of them that goes."""
    made = leases(spare=10)
    for group, number in (("viewer", 6), ("operator", 2), ("tenant", 2)):
        assert all(made.acquire(group, 1.0) for _ in range(number))
    made.apply(Lease(11, 0, 0.0, {"tenant": 1}, 5, ["tenant"]))
    assert made.overcommit() == {"tenant": 1, "viewer": 3}


def test_a_lease_runs_out_by_the_time_of_its_question() -> None:
    """The lease's time begins when it was asked for, so that a late answer doesn't make it longer."""
    made = ShardLease()
    made.usage_report(5.0)
    asked = made.usage_report(7.0).seq
    made.apply(Lease(1, asked, 10.0, {}, 5))
    assert (made.ends_at, made.over_at) == (17.0, 7.0 + 10.0 * (1 + LEASE_DRAIN_FRACTION))
    assert made.acquire("viewer", 16.9)
    assert not made.acquire("viewer", 17.0)


def test_an_older_lease_changes_nothing() -> None:
    """A lease that was overtaken by another is not in force again."""
    made = leases(spare=2)
    made.apply(Lease(12, 0, 0.0, {}, 1))
    assert not made.apply(Lease(11, 0, 0.0, {}, 9))
    assert (made.fence, made.total) == (12, 1)


def test_the_same_lease_only_lasts_longer() -> None:
    """A lease is renewed with each heartbeat, and stays what it is."""
    made = leases(spare=2)
    asked = made.usage_report(50.0, is_heartbeat=True).seq
    assert not made.apply(Lease(10, asked, 100.0, {}, 2))
    assert made.ends_at == 150.0
    assert not made.wants_report


def test_an_answer_to_what_was_never_asked_prolongs_nothing() -> None:
    """Only an answer to this process's own word tells when the lease began."""
    made = leases(spare=2)
    made.apply(Lease(11, 999, 100.0, {}, 3))
    assert (made.total, made.ends_at) == (3, 100.0)


def test_what_was_asked_is_not_remembered_for_ever() -> None:
    """A router that never answers costs a shard no memory."""
    made = ShardLease()
    for n in range(1000):
        made.usage_report(float(n), is_heartbeat=True)
    assert len(made._sent_at) == ANSWERS_AWAITED


def test_the_groups_that_want_slots_have_a_bound() -> None:
    """Whatever groups tokens name, so many are told at a time; the others' turn comes when these have been told."""
    leases = ShardLease()
    for _ in range(2):
        for number in range(WANTED_GROUPS + 10):
            assert not leases.acquire(f"tenant-{number}", 0.0)
        assert len(leases.usage_report(0.0).wanted) == WANTED_GROUPS


def test_the_router_is_asked_once_between_two_heartbeats() -> None:
    """A flood of attempts asks the router once for each group and lease, and not before the next heartbeat again."""
    made = leases()
    assert not made.wants_report
    made.acquire("viewer", 1.0)
    assert made.wants_report
    made.usage_report(1.0)
    made.acquire("operator", 1.0)
    assert not made.wants_report
    made.usage_report(1.5, is_heartbeat=True)
    made.acquire("viewer", 2.0)
    assert not made.wants_report  # it knows of those, and its lease is still the same
    made.acquire("admin", 2.0)
    assert made.wants_report


def test_few_that_are_left_are_reason_to_ask() -> None:
    """More slots are asked for before the last one is taken."""
    made = leases(spare=20)
    taken = 0
    while not made.wants_report:
        assert made.acquire("viewer", 1.0)
        taken += 1
    assert 10 <= taken < 20


def test_a_connection_changes_its_group_if_there_is_a_slot() -> None:
    """A user whose role changes takes a slot of the new group, or stays in the one that it has."""
    made = leases(spare=1, viewer=1)
    assert made.acquire("viewer", 1.0)
    assert made.move_slot("viewer", "operator", 1.0)
    assert made.used == {"operator": 1}
    assert made.acquire("viewer", 1.0)
    assert not made.move_slot("viewer", "operator", 1.0)
    assert made.used == {"operator": 1, "viewer": 1}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.sampled_from("abc")),
            st.tuples(st.just("back"), st.integers(0, 20)),
            st.tuples(
                st.just("lease"),
                st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)), st.integers(0, 4)),
            ),
        ),
        max_size=80,
    )
)
@settings(deadline=None)
def test_no_more_are_taken_than_the_lease_grants(steps: list[tuple[str, object]]) -> None:
    """Whatever the leases say and whoever comes, nobody gets a slot beyond the lease in force."""
    made, taken, fence = leases(spare=3), [], 10
    for kind, what in steps:
        if kind == "take" and made.acquire(str(what), 1.0):
            taken.append(str(what))
            assert made.used_count <= made.total
        elif kind == "back" and taken and isinstance(what, int):
            made.release(taken.pop(what % len(taken)))
        elif kind == "lease" and isinstance(what, tuple):
            fence += 1
            made.apply(Lease(fence, 0, 0.0, what[0], what[1], ["c"]))
        assert made.used_count == len(taken) == sum(made.used.values())
        excess = made.overcommit()
        assert made.is_overcommitted or not excess
        for group, number in excess.items():
            assert 0 < number <= taken.count(group)
        assert made.used_count - sum(excess.values()) <= made.total
