"""The pace at which a request's body has to come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.gateway.http.events_endpoint import make_body_pace
from solowire.gateway.publish.body_deadline import BodyDeadline, BodyPace
from solowire.runtime.settings.publish_settings import PublishSettings

PACE = BodyPace(1000.0, 5.0, 60.0)


def test_a_body_that_says_nothing_is_over_after_the_grace() -> None:
    """Nothing has come, or nothing more after a fast beginning: the grace from the last byte is all there is."""
    deadline = BodyDeadline(PACE, 100.0)
    assert deadline.due == 105.0
    assert deadline.extend(1_000_000, 101.0) == 106.0


def test_a_body_that_trickles_gains_what_its_bytes_are_worth() -> None:
    """A byte a second puts the end off by a thousandth of a second each."""
    deadline = BodyDeadline(PACE, 0.0)
    for second in range(1, 5):
        deadline.extend(1, float(second))
    assert deadline.due == pytest.approx(5.004)


def test_without_a_pace_only_the_whole_has_a_time() -> None:
    """Who has set the pace to 0 lets a body take its minute."""
    deadline = BodyDeadline(BodyPace(0.0, 5.0, 60.0), 0.0)
    assert deadline.extend(1, 30.0) == 60.0


@given(st.lists(st.floats(0.001, 5.0), max_size=40))
def test_a_body_at_the_pace_is_read_to_its_end(pauses: list[float]) -> None:
    """Whatever its pauses, if none is longer than the grace and the pace holds over each, only the minute ends it."""
    deadline, now = BodyDeadline(PACE, 0.0), 0.0
    for pause in pauses:
        now += pause
        if now > 60:
            break
        assert now <= deadline.due + 1e-6
        deadline.extend(int(pause * 1000) + 1, now)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 10_000)), max_size=40))
def test_time_costs_bytes(pieces: list[tuple[float, int]]) -> None:
    """A body is never waited for longer than the grace and what its bytes have bought, and never beyond a minute."""
    deadline, now, came = BodyDeadline(PACE, 0.0), 0.0, 0
    for pause, size in pieces:
        now += pause
        came += size
        due = deadline.extend(size, now)
        assert due <= min(5 + came / 1000 + 1e-6, now + 5, 60.0)


def test_the_pace_is_that_of_the_settings() -> None:
    """Both settings reach whoever reads."""
    assert make_body_pace(PublishSettings(min_body_bytes_per_s=7, body_grace_s=3)) == BodyPace(7.0, 3.0, 60.0)
