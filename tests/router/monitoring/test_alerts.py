"""Alerts: they begin late, end later, and never flap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.router.monitoring.alerts import CLEAR_SHARE, Alert, Alerts, Measurement

AFTER, OVER = 3.0, 10.0


class Clock:
    """Alerts on one metric of one shard, looked at twice a second."""

    def __init__(self, threshold: float = 10.0) -> None:
        self.alerts = Alerts({"lag": threshold}, after=AFTER, over=OVER)
        self.now = 0.0

    def run(self, value: float | None, seconds: float) -> list[Alert]:
        """What began and ended while the number was this for so long."""
        found: list[Alert] = []
        for _ in range(int(seconds * 2)):
            readings = [] if value is None else [Measurement("shard 0", "lag", value)]
            found += self.alerts.evaluate_measurements(readings, self.now)
            self.now += 0.5
        return found


def test_it_begins_when_the_number_was_too_high_for_a_while() -> None:
    """A peak is no alert; three seconds above the threshold are one, and no second one while it lasts."""
    clock = Clock()
    assert clock.run(99.0, 2.5) == []
    assert clock.run(1.0, 5) == []
    [alert] = clock.run(12.0, 60)
    assert (alert.has_begun, alert.measurement, alert.threshold) == (True, Measurement("shard 0", "lag", 12.0), 10.0)
    assert clock.alerts.raised_count == 1


def test_it_ends_when_the_number_was_well_below_for_a_while() -> None:
    """Just below the threshold is not over; 80 % of it, for ten seconds, is, with how long and how bad it was."""
    clock = Clock()
    clock.run(30.0, 5)
    clock.run(12.0, 5)
    assert clock.run(9.0, 60) == []
    assert clock.run(7.9, 9.5) == []
    [alert] = clock.run(7.9, 5)
    assert (alert.has_begun, alert.measurement.value, alert.highest) == (False, 7.9, 30.0)
    assert 70 < alert.seconds < 90
    assert clock.alerts.raised_count == 0
    [again] = clock.run(30.0, 5)
    assert again.has_begun


def test_a_process_that_has_gone_ends_its_alert() -> None:
    """A number that nobody says any more counts as none."""
    clock = Clock()
    clock.run(30.0, 5)
    [alert] = clock.run(None, 20)
    assert (alert.has_begun, alert.measurement.value) == (False, 0.0)


def test_each_component_metric_and_thing_has_its_own() -> None:
    """Two shards, two types: four alerts; a metric without a threshold is none."""
    alerts = Alerts({"lag": 1.0, "summed": 1.0}, after=0.0, over=0.0)
    readings = [
        Measurement("shard 0", "lag", 2.0),
        Measurement("shard 1", "lag", 2.0),
        Measurement("shard 0", "summed", 2.0, "dns_query_log"),
        Measurement("shard 0", "summed", 2.0, "rpz_hit"),
        Measurement("shard 0", "unknown", 2.0),
    ]
    assert [a.measurement for a in alerts.evaluate_measurements(readings, 0.0)] == readings[:4]


def test_what_is_quiet_is_not_remembered() -> None:
    """Shards that come and go leave nothing behind."""
    alerts = Alerts({"lag": 1.0}, after=1.0, over=1.0)
    for n in range(1000):
        alerts.evaluate_measurements([Measurement(f"shard {n}", "lag", 2.0)], float(n))
        alerts.evaluate_measurements([], n + 0.5)
    assert len(alerts._tracked) <= 2


@given(st.lists(st.floats(0, 20), max_size=300))
def test_alerts_take_turns_and_keep_their_distance(values: list[float]) -> None:
    """Whatever the number does: a beginning, an end, a beginning; each only after its time on the other side."""
    alerts = Alerts({"lag": 10.0}, after=AFTER, over=OVER)
    found: list[tuple[float, bool]] = []
    for step, value in enumerate(values):
        now = step * 0.5
        for alert in alerts.evaluate_measurements([Measurement("shard 0", "lag", value)], now):
            found.append((now, alert.has_begun))
            window = [
                v for s, v in enumerate(values[: step + 1]) if s * 0.5 >= now - (AFTER if alert.has_begun else OVER)
            ]
            if alert.has_begun:
                assert all(v >= 10.0 for v in window)
            else:
                assert all(v < CLEAR_SHARE * 10.0 for v in window)
    assert [began for _, began in found] == [n % 2 == 0 for n in range(len(found))]
