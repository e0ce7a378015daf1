"""Alerts with hysteresis: a number is too high for a while, until it is well below for a while.

    quiet ──≥ threshold for `after` s──► raised ──< 80 % of it for `over` s──► quiet
      one Alert, `began`                   one Alert, not `began`

What it keeps true: a number that goes up and down around its threshold makes one alert, not many. A number that is no
longer said counts as 0, so the alert of a process that has gone ends, too. What is remembered are the numbers that are
not quiet: as many as there are processes and metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

CLEAR_SHARE = 0.8


class Measurement(NamedTuple):
    """A number now. component: such as `shard 0`. about: what of it, such as an event type. note: for the message."""

    component: str
    metric: str
    value: float
    about: str = ""
    note: str = ""


class Alert(NamedTuple):
    """An alert that begins or ends.

    measurement: of now. seconds, highest: when it ends, for how long it was there, and how high.
    """

    measurement: Measurement
    threshold: float
    has_begun: bool
    seconds: float = 0.0
    highest: float = 0.0


@dataclass(slots=True)
class _TrackedMeasurement:
    """A number that is, or has been, above its threshold.

    turned_at: since when the number has been on the other side; raised_at: None while it is quiet.
    """

    measurement: Measurement
    turned_at: float | None = None
    raised_at: float | None = None
    highest: float = 0.0


class Alerts:
    """Decides which alerts fire and which are resolved.

    thresholds: by metric. after, over: seconds. Times: seconds, monotonic.
    """

    def __init__(self, thresholds: Mapping[str, float], *, after: float, over: float) -> None:
        self._thresholds = thresholds
        self._after = after
        self._over = over
        self._tracked: dict[tuple[str, str, str], _TrackedMeasurement] = {}

    @property
    def raised_count(self) -> int:
        """How many alerts have begun and not ended."""
        return sum(tracked.raised_at is not None for tracked in self._tracked.values())

    def evaluate_measurements(self, measurements: Iterable[Measurement], now: float) -> list[Alert]:
        """What begins and what ends now. Metrics without a threshold are left alone."""
        found: list[Alert] = []
        current = {(r.component, r.metric, r.about): r for r in measurements if r.metric in self._thresholds}
        for key, tracked in self._tracked.items():
            if key not in current:
                current[key] = tracked.measurement._replace(value=0.0, note="")
        for key, measurement in current.items():
            threshold = self._thresholds[measurement.metric]
            known = self._tracked.get(key)
            if known is None:
                if measurement.value < threshold:
                    continue
                known = self._tracked[key] = _TrackedMeasurement(measurement)
            alert = self._judge(known, measurement, threshold, now)
            if alert is not None:
                found.append(alert)
            if known.raised_at is None and known.turned_at is None:
                del self._tracked[key]
        return found

    def _judge(
        self, tracked: _TrackedMeasurement, measurement: Measurement, threshold: float, now: float
    ) -> Alert | None:
        tracked.measurement = measurement
        tracked.highest = max(tracked.highest, measurement.value)
        raised_at = tracked.raised_at
        has_turned = (
            measurement.value >= threshold if raised_at is None else measurement.value < CLEAR_SHARE * threshold
        )
        if not has_turned:
            tracked.turned_at = None
            return None
        if tracked.turned_at is None:
            tracked.turned_at = now
        if now - tracked.turned_at < (self._after if raised_at is None else self._over):
            return None
        tracked.turned_at = None
        if raised_at is None:
            tracked.raised_at = now
            return Alert(measurement, threshold, True)
        tracked.raised_at = None
        return Alert(measurement, threshold, False, now - raised_at, tracked.highest)
