"""Who may try a closed door: those who were let in before, and a few others, so that the shard decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.gateway.admission import probe_limiter as tries
from solowire.gateway.admission.probe_limiter import RETRY_SECONDS, STRANGER_SECONDS, TRIES, ProbeLimiter


def test_who_was_let_in_before_may_try() -> None:
    """A user may try as often as its shard needs to free its slot, and then once in five seconds."""
    it = ProbeLimiter(strangers=0.001)
    it.remember("ann", 0.0)
    assert [it.allow("ann", 10.0) for _ in range(TRIES + 1)] == [True] * TRIES + [False]
    assert it.allow("ann", 10.0 + RETRY_SECONDS)
    assert not it.allow("ann", 10.0 + RETRY_SECONDS)


def test_the_second_attempt_comes_before_the_kept_slot_is_given_away() -> None:
    """Whoever is told by its shard to come again in a second may, well within the five that its slot is kept."""
    it = ProbeLimiter()
    it.allow("somebody", 0.0)
    it.remember("ann", 0.0)
    assert it.allow("ann", 0.0)
    assert it.allow("ann", 1.0)


def test_of_the_others_a_few_may_try_in_a_second() -> None:
    """Ten a second, whoever they are; one of them may come again for a while, and is then a stranger as before."""
    it = ProbeLimiter()
    assert sum(it.allow(f"user-{n}", n / 1000) for n in range(2000)) == 20
    assert it.allow("user-0", 2.0)
    it = ProbeLimiter(strangers=0.001)
    assert it.allow("bob", 0.0)
    assert not it.allow("cid", 0.0)
    assert it.allow("bob", 1.0)
    assert not it.allow("bob", STRANGER_SECONDS)


def test_the_users_that_are_known_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound it is who came least recently that is forgotten."""
    monkeypatch.setattr(tries, "KNOWN_USERS", 2)
    it = ProbeLimiter(strangers=0.001)
    it.allow("somebody", 0.0)
    for user in ("ann", "bob", "ann", "cid"):
        it.remember(user, 0.0)
    assert len(it) == 2
    assert [it.allow(user, 1.0) for user in ("ann", "bob", "cid")] == [True, False, True]


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5), st.booleans()), max_size=100))
def test_nobody_tries_more_often_than_that(steps: list[tuple[float, int, bool]]) -> None:
    """Whoever comes when, let in meanwhile or not: no user's tries exceed the burst and one in five seconds."""
    it, now = ProbeLimiter(), 0.0
    tried = dict.fromkeys(map(str, range(6)), 0)
    for pause, number, let_in in steps:
        now += pause
        user = str(number)
        if let_in:
            it.remember(user, now)
        else:
            tried[user] += it.allow(user, now)
        # A stranger who is forgotten after ten seconds has as many again then.
        assert tried[user] <= TRIES * (1 + now / STRANGER_SECONDS) + now / RETRY_SECONDS + 1
