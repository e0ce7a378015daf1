"""The token bucket: no more than burst + rate × t, and never a refusal for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.bucket import Bucket


def test_a_burst_at_once_and_then_the_rate() -> None:
    """A full bucket gives its burst, and then says exactly when the next can be had."""
    bucket = Bucket()
    assert [bucket.take(10.0, 2.0, 3.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(10.49, 2.0, 3.0) > 0
    assert bucket.take(10.5, 2.0, 3.0) == 0.0


def test_what_is_larger_than_the_burst_is_taken_from_a_full_bucket_and_paid_for() -> None:
    """A request over the burst is not refused for ever, and nothing else is given until it is paid for."""
    bucket = Bucket()
    assert bucket.take(0.0, 10.0, 100.0, 500.0) == 0.0
    assert bucket.take(0.0, 10.0, 100.0, 0.0) == 40.0
    assert bucket.take(40.0, 10.0, 100.0, 0.0) == 0.0
    assert bucket.take(40.0, 10.0, 100.0, 500.0) == 10.0
    assert bucket.take(50.0, 10.0, 100.0, 500.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)), max_size=60),
    st.floats(0.1, 100),
    st.floats(1, 100),
)
def test_no_more_than_burst_and_rate_is_taken(steps: list[tuple[float, float]], rate: float, burst: float) -> None:
    """Whatever is asked for and when: what is taken stays under the line, but for the last thing taken on credit."""
    bucket, now, taken, largest = Bucket(), 0.0, 0.0, 0.0
    for pause, amount in steps:
        now += pause
        wait = bucket.take(now, rate, burst, amount)
        if wait == 0.0:
            taken += amount
            largest = max(largest, amount - burst)
        assert taken <= burst + rate * now + largest + 1e-6
        assert wait >= 0.0


@given(st.floats(0.1, 100), st.floats(1, 100), st.floats(0, 1000), st.floats(0, 1000))
def test_the_wait_that_is_told_is_enough(rate: float, burst: float, first: float, second: float) -> None:
    """Whoever comes back after the wait that it was told gets what it asked for."""
    bucket = Bucket()
    bucket.take(0.0, rate, burst, first)
    wait = bucket.take(0.0, rate, burst, second)
    if wait:
        assert bucket.take(wait * (1 + 1e-9) + 1e-6, rate, burst, second) == 0.0
