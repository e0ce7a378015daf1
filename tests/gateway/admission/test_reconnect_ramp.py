"""The users of a lost shard come back one after the other, over a time that depends on how many they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.hash_ring import Ring
from solowire.gateway.admission.reconnect_ramp import SHORTEST_SECONDS, ReconnectRamp

RING = Ring([0, 1])
LOST = [u for u in (f"user-{n}" for n in range(4000)) if RING.owner(u) == 0]
OTHERS = [u for u in (f"user-{n}" for n in range(4000)) if RING.owner(u) == 1]


def test_a_few_come_back_at_once() -> None:
    """Where there is no crowd, nobody waits."""
    returning = ReconnectRamp(pace=500.0)
    returning.start([(0, 400)], RING, 100.0)
    assert all(returning.delay_for(user, 100.0) == 0 for user in LOST)


def test_many_come_back_evenly_and_others_do_not_wait() -> None:
    """2,000 users at 500 a second take four seconds: about as many in each of them, and nobody else is held up."""
    returning = ReconnectRamp(pace=500.0)
    returning.start([(0, 2000)], RING, 100.0)
    waits = [returning.delay_for(user, 100.0) for user in LOST]
    for second in range(4):
        share = sum(second <= wait < second + 1 for wait in waits) / len(waits)
        assert 0.2 < share < 0.3
    assert all(returning.delay_for(user, 100.0) == 0 for user in OTHERS)
    assert all(returning.delay_for(user, 104.1) == 0 for user in LOST)


@given(st.integers(1, 100_000), st.sampled_from(LOST), st.floats(0, 500))
def test_who_waits_as_told_may_come(users: int, user: str, later: float) -> None:
    """The wait that is told is enough, never longer than the window, and the same however often one asks."""
    returning = ReconnectRamp(pace=500.0)
    returning.start([(0, users)], RING, 0.0)
    wait = returning.delay_for(user, later)
    assert 0 <= wait <= max(users / 500.0, SHORTEST_SECONDS)
    assert returning.delay_for(user, later) == wait
    assert returning.delay_for(user, later + wait + 1e-6) == 0
