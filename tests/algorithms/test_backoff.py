"""The waits between attempts: never outside their bounds, never sooner than the server asked."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.backoff import MAX_RETRY_AFTER_S, Backoff, parse_retry_after

chances = st.floats(0, 1, exclude_max=True)


def test_ceiling_doubles_up_to_the_cap() -> None:
    """The longest wait doubles with each attempt until it is the cap, and never overflows."""
    backoff = Backoff(1.0, 10.0, random=lambda: 1.0)
    assert [backoff.next_delay() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.attempts = 100_000
    assert backoff.next_delay() == 10


def test_reset_begins_anew() -> None:
    """After a success the next series begins from the lowest ceiling."""
    backoff = Backoff(1.0, 10.0, random=lambda: 1.0)
    backoff.next_delay()
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 1


@given(st.lists(chances, min_size=1, max_size=20))
def test_stays_between_floor_and_cap(rolls: list[float]) -> None:
    """Whatever chance gives, a wait is neither below the floor nor above the cap."""
    chance = iter(rolls)
    backoff = Backoff(0.5, 20.0, floor=0.25, random=lambda: next(chance))
    assert all(0.25 <= backoff.next_delay() <= 20.0 for _ in rolls)


@given(chances, chances, st.floats(0.001, 1000))
def test_never_sooner_than_asked(first: float, second: float, asked: float) -> None:
    """A server that asks for a time gets at least that, and at most the lowest ceiling more."""
    chance = iter((first, second))
    wait = Backoff(0.5, 20.0, random=lambda: next(chance)).next_delay(at_least=asked)
    assert asked <= wait <= asked + 0.5


@pytest.mark.parametrize("bounds", [(2.0, 1.0, 0.0), (1.0, 2.0, 1.5), (1.0, 2.0, -1.0)])
def test_bounds_must_be_in_order(bounds: tuple[float, float, float]) -> None:
    """Bounds that contradict each other are refused where they are given."""
    base, cap, floor = bounds
    with pytest.raises(ValueError, match="floor <= base <= cap"):
        Backoff(base, cap, floor=floor)


def test_both_forms_of_retry_after() -> None:
    """Seconds and HTTP dates are understood; a date that is past asks for nothing."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    in_a_minute = format_datetime(datetime(2026, 1, 1, 0, 1, tzinfo=UTC), usegmt=True)
    assert parse_retry_after("7", now.timestamp()) == 7
    assert parse_retry_after(in_a_minute, now.timestamp()) == 60
    assert parse_retry_after(in_a_minute, now.timestamp() + 3600) == 0


@given(st.text() | st.floats().map(str))
def test_any_header_gives_a_bounded_wait(header: str) -> None:
    """Whatever a header holds, the wait is a number from zero to the bound."""
    seconds = parse_retry_after(header, 0.0)
    assert math.isfinite(seconds)
    assert 0 <= seconds <= MAX_RETRY_AFTER_S


def test_no_header_asks_for_nothing() -> None:
    """Without the header there is nothing to wait for."""
    assert parse_retry_after(None, 0.0) == 0
