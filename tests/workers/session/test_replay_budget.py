"""How much of the log a user may have read for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.token_bucket import Rate
from solowire.workers.connections.users import UserRegistry
from solowire.workers.session.replay_budget import ReplayBudget

STEPS = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 300), st.floats(0, 1)), max_size=40)


def budget_of(rate: float = 10.0, burst: float = 100.0) -> ReplayBudget:
    users = UserRegistry(1)
    users.begin_handshake("ann")
    users.begin_handshake("bob")
    return ReplayBudget(users, Rate(rate, burst))


@given(STEPS)
def test_no_more_is_read_than_the_budget_allows(steps: list[tuple[float, int, float]]) -> None:
    """Over any time it is the burst and the rate; what is larger than the burst empties a full bucket, no more."""
    budget, now, read = budget_of(), 0.0, 0.0
    for pause, records, share_read in steps:
        now += pause
        if budget.delay_for("ann", records, now):
            continue
        budget.charge("ann", records, now)
        was_read = int(records * share_read)
        budget.refund("ann", records, was_read)
        read += min(100, was_read)
        assert read <= 100 + 10 * now + 1e-3


def test_a_large_replay_leaves_an_empty_bucket_and_no_debt() -> None:
    """Who has had the whole log read can have a little again soon, and all of it when the bucket is full."""
    budget = budget_of()
    assert budget.delay_for("ann", 100_000, 0.0) == 0
    budget.charge("ann", 100_000, 0.0)
    assert 0 < budget.delay_for("ann", 1, 0.0) <= 0.1 + 1e-6
    assert budget.delay_for("ann", 100_000, 0.0) > 9.9
    assert budget.delay_for("ann", 100_000, 10.0) == 0


def test_one_users_budget_is_not_anothers() -> None:
    """And who had more read has the higher rank: others come before it. A stranger is not counted."""
    budget = budget_of()
    first = budget.charge("ann", 50, 0.0)
    assert budget.charge("bob", 10, 0.0) == first < budget.charge("bob", 10, 0.0) < budget.charge("ann", 10, 0.0)
    assert budget.delay_for("bob", 80, 0.0) == 0
    assert budget.delay_for("ann", 80, 0.0) > 0
    budget.charge("eve", 1000, 0.0)
    budget.refund("eve", 1000, 10)
    assert budget.delay_for("eve", 1000, 0.0) == 0


def test_what_is_given_back_can_be_used_again() -> None:
    """As if it had not been charged; nothing is given back of what was read, however much more was charged."""
    budget = budget_of()
    budget.charge("ann", 100, 0.0)
    budget.refund("ann", 100, 105)
    budget.refund("ann", 100, 40)
    assert budget.delay_for("ann", 60, 0.0) == 0
    assert budget.delay_for("ann", 62, 0.0) > 0


def test_who_asks_for_more_than_the_burst_and_leaves_pays_for_what_was_read() -> None:
    """A cursor of long ago is no way around the budget: it is charged as a full bucket, and given back as one."""
    budget = budget_of()
    for _ in range(10):
        assert budget.delay_for("ann", 10, 0.0) == 0
        budget.charge("ann", 10, 0.0)
    budget = budget_of()
    budget.charge("ann", 10**6, 0.0)
    budget.refund("ann", 10**6, 10)
    assert budget.delay_for("ann", 90, 0.0) == 0
    assert budget.delay_for("ann", 10**6, 0.0) > 0.9
