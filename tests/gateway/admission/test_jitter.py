"""A user's place among many: the same each time, and spread evenly."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from solowire.gateway.admission.jitter import jitter_fraction


@given(st.text(max_size=300))
def test_a_turn_is_the_same_each_time(user: str) -> None:
    """It lies in [0, 1), whatever the name."""
    assert 0 <= jitter_fraction(user, b"these") < 1
    assert jitter_fraction(user, b"these") == jitter_fraction(user, b"these")


def test_turns_are_spread_evenly_and_differ_by_whom_they_are_among() -> None:
    """Each tenth of the time gets about a tenth of the users; who is first here is not first there."""
    users = [f"user-{n}" for n in range(10_000)]
    tenths = Counter(int(jitter_fraction(user, b"these") * 10) for user in users)
    assert sorted(tenths) == list(range(10))
    assert all(800 < count < 1200 for count in tenths.values())
    assert sum(abs(jitter_fraction(user, b"these") - jitter_fraction(user, b"those")) for user in users) > 2000
