"""The alerts of a metric: by several measurements in a row, with hysteresis, and one for each cause."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.sources.host.threshold_alert import AlertChange, Level, ThresholdAlert, Thresholds

LIMITS = Thresholds(warning=80, critical=95, ease=5, after=3)


def levels(*values: float | None, limits: Thresholds = LIMITS) -> list[str]:
    alert = ThresholdAlert(limits)
    return [change.new.name for value in values if (change := alert.note_value(value)) is not None]


def test_it_takes_several_measurements_in_a_row() -> None:
    """A peak is no alert, nor is a short calm its end."""
    assert levels(90, 90, 10, 90, 90) == []
    assert levels(90, 90, 90) == ["warning"]
    assert levels(90, 90, 90, 10, 10, 90, 10, 10) == ["warning"]
    assert levels(90, 90, 90, 10, 10, 10) == ["warning", "calm"]


def test_what_is_just_below_ends_nothing() -> None:
    """Between `warning - ease` and `warning` all stays as it is."""
    assert levels(*[90] * 3, *[76] * 10, *[81] * 10, *[74] * 3) == ["warning", "calm"]
    assert levels(*[79] * 10) == []


def test_levels_rise_and_fall() -> None:
    """A level takes as many measurements as the first; what is above it for as long begins with the lower one."""
    assert levels(*[96] * 3) == ["critical"]
    assert levels(85, *[96] * 5) == ["warning", "critical"]
    assert levels(*[96] * 3, *[91] * 9, *[85] * 3, *[10] * 3) == ["critical", "warning", "calm"]
    assert levels(*[96] * 3, 10, 85, 10) == ["critical", "warning"]


def test_a_threshold_can_be_off() -> None:
    """0 switches a level off."""
    assert levels(*[100] * 5, limits=Thresholds(0, 0)) == []
    assert levels(*[100] * 5, limits=Thresholds(80)) == ["warning"]
    assert levels(*[100] * 5, *[0] * 5, limits=Thresholds(0, 95)) == ["critical", "calm"]


def test_what_is_missing_changes_nothing() -> None:
    """Neither does it count, nor does it break a row."""
    assert levels(90, None, 90, None, 90) == ["warning"]


@given(
    st.lists(st.none() | st.floats(0, 100), max_size=60),
    st.builds(Thresholds, st.just(80.0), st.sampled_from([0.0, 80.0, 95.0]), st.floats(0, 50), st.integers(1, 5)),
)
def test_each_change_is_backed_by_as_many_measurements(values: list[float | None], limits: Thresholds) -> None:
    """Whatever is measured: `after` in a row are on the new side of the old level, and changes follow on each other."""
    alert, level, seen = ThresholdAlert(limits), Level.calm, list[float]()
    for value in values:
        change: AlertChange | None = alert.note_value(value)
        seen += [] if value is None else [value]
        if change is None:
            assert alert.level is level
            continue
        assert (change.old, change.new) == (level, alert.level)
        backing = seen[-limits.after :]
        assert len(backing) == limits.after
        if change.new > change.old:
            reached = limits.critical if change.new is Level.critical else limits.warning
            assert min(backing) >= reached
        else:
            left = limits.critical if change.old is Level.critical else limits.warning
            assert max(backing) < left - limits.ease
        level = alert.level
        seen = []
