"""The pace of work in the background: bursts, and rests in proportion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.work_pace import WorkPace


@given(st.lists(st.floats(1e-5, 0.05), min_size=1, max_size=100), st.floats(0.5, 100.0))
def test_who_works_on_and_on_rests_in_proportion(slices: list[float], factor: float) -> None:
    """Beyond the burst, rests are `factor` times as long as the work, however it is cut; and none is longer."""
    pace = WorkPace(0.02)
    rested_s = 0.0
    for worked_s in slices:
        pace.record_work(worked_s)
        rest_s = pace.rest_s(factor)
        pace.record_rest(rest_s, factor)
        rested_s += rest_s
        assert rest_s <= worked_s * factor * (1 + 1e-9)
    assert rested_s == pytest.approx(max(0.0, sum(slices) - 0.02) * factor, abs=1e-6)


def test_a_burst_comes_back_with_rest() -> None:
    """Whoever asks seldom never waits; a long rest saves up no more than one burst."""
    pace = WorkPace(0.02)
    pace.record_rest(1000.0, 3.0)
    pace.record_work(0.02)
    assert not pace.rest_s(3.0)
    pace.record_rest(0.03, 3.0)
    pace.record_work(0.01)
    assert pace.rest_s(3.0) == pytest.approx(0.0, abs=1e-9)
    pace.record_work(0.01)
    assert pace.rest_s(3.0) == pytest.approx(0.03)
