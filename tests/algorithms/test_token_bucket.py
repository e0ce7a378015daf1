"""Token buckets: no more than burst + rate × t, whatever comes when, and a table that strangers can't fill."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.algorithms.token_bucket import BucketTable, Rate


def burst_of(rates: BucketTable, address: str, now: float) -> int:
    """How many may come from there at once, until one has to wait."""
    came = 0
    while not rates.wait_seconds(address, now):
        rates.charge_tokens(address, now)
        came += 1
    return came


def test_a_burst_at_once_and_then_the_rate() -> None:
    """Five at once, the sixth after the time of one, and all five again after the time of five."""
    rates = BucketTable(Rate(10.0, 5.0), 100)
    assert burst_of(rates, "a", 1000.0) == 5
    assert rates.wait_seconds("a", 1000.0) == pytest.approx(0.1)
    assert burst_of(rates, "a", 1000.1) == 1
    assert burst_of(rates, "a", 1000.1 + rates.bucket_rate.refill_seconds) == 5


def test_what_is_larger_than_the_burst_is_taken_from_a_full_bucket_and_paid_for() -> None:
    """It is not refused for ever, and nothing else may come until it is paid for."""
    rates = BucketTable(Rate(10.0, 100.0), 10)
    assert rates.wait_seconds("a", 0.0, 500) == 0
    rates.charge_tokens("a", 0.0, 500)
    assert rates.wait_seconds("a", 0.0, 0) == pytest.approx(40.0)
    assert rates.wait_seconds("a", 40.0, 0) == 0
    assert rates.wait_seconds("a", 40.0, 500) == pytest.approx(10.0)
    assert rates.wait_seconds("a", 50.0, 500) == 0


def test_addresses_have_buckets_of_their_own() -> None:
    """One that came too often holds no other up."""
    rates = BucketTable(Rate(1.0, 3.0), 100)
    assert burst_of(rates, "a", 0.0) == 3
    assert burst_of(rates, "b", 0.0) == 3


@settings(deadline=None)
@given(
    st.floats(0.1, 1e4),
    st.floats(1, 1e4),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=50),
    st.floats(0, 1e7),
)
def test_no_more_than_burst_and_rate_come(
    per_second: float, burst: float, steps: list[tuple[float, int]], begin: float
) -> None:
    """Whenever how many come: the line of burst + rate × t holds, and who waits as told may come."""
    rates = BucketTable(Rate(per_second, burst), 10)
    now, came = begin, 0
    for pause, attempts in steps:
        now += pause
        for _ in range(attempts):
            wait = rates.wait_seconds("a", now)
            if wait:
                assert rates.wait_seconds("a", now + wait) == 0
                break
            rates.charge_tokens("a", now)
            came += 1
        assert came <= burst + per_second * (now - begin + 1e-5 * (1 + came)) + 1


@settings(deadline=None)
@given(
    st.floats(0.1, 100),
    st.floats(1, 100),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 500)), max_size=60),
)
def test_things_of_all_sizes_keep_to_the_line(
    per_second: float, burst: float, steps: list[tuple[float, float]]
) -> None:
    """Whatever is asked for and when: what is taken stays under the line, but for the last thing taken on credit."""
    rates = BucketTable(Rate(per_second, burst), 10)
    now, taken, credit = 0.0, 0.0, 0.0
    for pause, amount in steps:
        now += pause
        wait = rates.wait_seconds("a", now, amount)
        if wait:
            assert rates.wait_seconds("a", now + wait, amount) == 0
            continue
        rates.charge_tokens("a", now, amount)
        taken += amount
        credit = max(credit, amount - burst)
        assert taken <= burst + per_second * (now + 1e-5 * len(steps)) + credit + 1e-6


def test_a_bucket_that_is_kept_as_a_number() -> None:
    """Who has a place of its own for it asks and takes at once, and one that has to wait changes nothing."""
    rate = Rate(2.0, 3.0)
    full_at, waits = -inf, []
    for _ in range(4):
        full_at, wait = rate.try_take(full_at, 10.0)
        waits.append(wait)
    assert waits == [0, 0, 0, pytest.approx(0.5)]
    assert rate.try_take(full_at, 10.49)[1] > 0
    assert rate.try_take(full_at, 10.5)[1] == 0


@settings(deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 60), st.floats(0, 2)), max_size=200))
def test_the_table_has_a_bound(most: int, steps: list[tuple[int, float]]) -> None:
    """However many addresses come in whatever order, no more than `most` are remembered, and the newest is."""
    rates, now = BucketTable(Rate(1.0, 1.0), most), 0.0
    for address, pause in steps:
        now += pause
        if not rates.wait_seconds(str(address), now):
            rates.charge_tokens(str(address), now)
            assert rates.wait_seconds(str(address), now) > 0
        assert len(rates) <= most


@settings(deadline=None)
@given(
    st.floats(1e-3, 1e15),
    st.floats(1, 1e15),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6)), min_size=1, max_size=30),
    st.floats(0, 1e9),
)
def test_no_rate_is_too_high(per_second: float, burst: float, steps: list[tuple[str, float]], now: float) -> None:
    """Where one more changes nothing that a float can hold, the bucket is simply full, and the table without it."""
    rates = BucketTable(Rate(per_second, burst), 2)
    for address, pause in steps:
        now += pause
        rates.charge_tokens(address, now)
        assert len(rates) <= 2
        assert rates.wait_seconds(address, now) <= 1 / per_second * 31


def test_what_is_forgotten_begins_with_a_full_bucket() -> None:
    """At the bound it is the address that came least recently which is forgotten: strangers have nobody refused."""
    rates = BucketTable(Rate(0.01, 2.0), 2)
    for address in ("old", "old", "a", "b"):
        rates.charge_tokens(address, 0.0)
    assert len(rates) == 2
    assert burst_of(rates, "b", 0.0) == 1
    assert burst_of(rates, "old", 0.0) == 2


def test_full_buckets_take_no_memory() -> None:
    """Addresses that have not come for long are gone by themselves, as others come."""
    rates = BucketTable(Rate(1.0, 1.0), 10_000)
    for number in range(1000):
        rates.charge_tokens(f"early-{number}", 0.0)
    for number in range(600):
        rates.charge_tokens(f"late-{number}", 10.0)
    assert len(rates) == 600
