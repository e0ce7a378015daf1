"""When publishers are slowed and refused, and for whose sake."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from solowire.router.log.backpressure import (
    GRACE_SECONDS,
    MARK_SECONDS,
    REFUSE_ALL,
    BackpressureState,
    OffsetTimeIndex,
    ShardLag,
    evaluate_backpressure,
    longest_delay_s,
)
from solowire.runtime.settings.publish_settings import PublishSettings

LIMITS = PublishSettings(lag_soft_s=1.0, lag_hard_s=5.0, timeout_s=3.2)
DELAY_S = longest_delay_s(LIMITS)


def level(lag: float) -> ShardLag:
    return ShardLag(lag, True, 1000.0)


def test_a_small_lag_is_nobodys_concern() -> None:
    """Below the soft limit answers leave at once."""
    assert evaluate_backpressure([level(0.0), level(1.0)], 0.0, LIMITS) == BackpressureState(0.0, None)
    assert evaluate_backpressure([], 0.0, LIMITS) == BackpressureState(0.0, None)


def test_the_slowest_shard_delays_answers_the_more_the_farther_it_is_behind() -> None:
    """Between the limits the delay grows with the lag of the slowest."""
    assert evaluate_backpressure([level(0.0), level(3.0)], 0.0, LIMITS) == BackpressureState(0.4, None)
    assert evaluate_backpressure([level(2.0), level(4.0)], 0.0, LIMITS).delay > 0.4


def test_above_the_hard_limit_new_requests_are_refused() -> None:
    """At the hard limit publishers are told to come back, the later the farther it is."""
    assert evaluate_backpressure([level(5.0)], 0.0, LIMITS) == BackpressureState(0.8, 1.0)
    assert evaluate_backpressure([level(8.0)], 0.0, LIMITS) == BackpressureState(0.8, 4.0)
    assert evaluate_backpressure([level(500.0)], 0.0, LIMITS) == BackpressureState(0.8, 10.0, is_refusing_all=True)


def test_who_sends_little_is_refused_much_later() -> None:
    """Only what slowing the others does not help against is felt by everybody."""
    assert not evaluate_backpressure([level(REFUSE_ALL * LIMITS.lag_hard_s - 0.1)], 0.0, LIMITS).is_refusing_all
    assert evaluate_backpressure([level(REFUSE_ALL * LIMITS.lag_hard_s)], 0.0, LIMITS).is_refusing_all


def test_a_slow_journal_is_felt_as_a_slow_shard_is() -> None:
    """A commit that takes seconds slows publishers, and one that takes too long refuses them."""
    assert evaluate_backpressure([level(0.0)], 3.0, LIMITS) == BackpressureState(0.4, None)
    assert evaluate_backpressure([], 6.0, LIMITS).retry_after == 2.0


def test_a_shard_that_joins_far_behind_slows_nobody_for_a_while_and_never_refuses() -> None:
    """A long replay after a hello is left in peace, and has publishers slowed, no more, if it does not end."""
    joined = ShardLag(3600.0, False, 1.0)
    assert evaluate_backpressure([joined], 0.0, LIMITS) == BackpressureState(0.0, None)
    stays = ShardLag(3600.0, False, GRACE_SECONDS + 1)
    assert evaluate_backpressure([stays], 0.0, LIMITS) == BackpressureState(0.8, None)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 100), st.floats(0, 10))
def test_more_lag_never_means_less_pressure(lags: list[float], commit: float, more: float) -> None:
    """Pressure grows with every lag, stays within its bounds, and only comes with a reason."""
    before = evaluate_backpressure([level(lag) for lag in lags], commit, LIMITS)
    after = evaluate_backpressure([level(lag + more) for lag in lags], commit, LIMITS)
    assert 0.0 <= before.delay <= after.delay <= DELAY_S
    assert (before.retry_after or 0.0) <= (after.retry_after or 0.0) <= 10.0
    assert before.retry_after is None or before.delay == DELAY_S


def test_marks_tell_how_long_ago_an_offset_was_kept() -> None:
    """An offset's age is known, at a certain time, as exactly as the marks are apart."""
    marks = OffsetTimeIndex(5.0)
    marks.record_offset(1, 10.0)
    marks.record_offset(101, 12.0)
    assert [marks.find_age(offset, 13.0) for offset in (1, 100, 101, 500)] == [3.0, 3.0, 1.0, 1.0]
    assert marks.find_age(1, 9.0) == 0.0
    assert OffsetTimeIndex(5.0).find_age(7, 9.0) == 0.0


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.02, 0.05, 0.06, 0.5]), st.integers(1, 50)), min_size=1, max_size=400))
@example([(0.051, 1)] * 200)
def test_marks_are_few_and_right(commits: list[tuple[float, int]]) -> None:
    """However often the log grows, an age is right but for one mark's distance, up to the hard limit, at least."""
    hard, silent = 2.0, 3.0
    marks, now, first, kept = OffsetTimeIndex(hard), 0.0, 1, []
    for pause, count in commits:
        now += pause
        marks.record_offset(first, now)
        kept.append((first, now))
        first += count
    assert len(marks._entries) <= (hard + silent) / MARK_SECONDS + 3
    for heard in (now, max(0.0, now - silent)):
        for offset, at in kept:
            age = marks.find_age(offset, heard)
            if at > heard:
                assert age == 0.0 or age <= MARK_SECONDS + 1e-9
            elif heard - at <= hard:
                assert heard - at <= age + 1e-9 <= heard - at + MARK_SECONDS + 2e-9
            else:
                assert age >= hard
