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
    """An alert that begins or ends. value: of now. seconds, highest: what it was, when it ends."""

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
        return sum(watched.raised_at is not None for watched in self._tracked.values())

    def evaluate_measurements(self, readings: Iterable[Measurement], now: float) -> list[Alert]:
        """What begins and what ends now. Metrics without a threshold are left alone."""
        found: list[Alert] = []
        told = {(r.component, r.metric, r.about): r for r in readings if r.metric in self._thresholds}
        for key, watched in self._tracked.items():
            if key not in told:
                told[key] = watched.measurement._replace(value=0.0, note="")
        for key, reading in told.items():
            threshold = self._thresholds[reading.metric]
            known = self._tracked.get(key)
            if known is None:
                if reading.value < threshold:
                    continue
                known = self._tracked[key] = _TrackedMeasurement(reading)
            alert = self._judge(known, reading, threshold, now)
            if alert is not None:
                found.append(alert)
            if known.raised_at is None and known.turned_at is None:
                del self._tracked[key]
        return found

    def _judge(self, watched: _TrackedMeasurement, reading: Measurement, threshold: float, now: float) -> Alert | None:
        watched.measurement = reading
        watched.highest = max(watched.highest, reading.value)
        raised_at = watched.raised_at
        turned = reading.value >= threshold if raised_at is None else reading.value < CLEAR_SHARE * threshold
        if not turned:
            watched.turned_at = None
            return None
        if watched.turned_at is None:
            watched.turned_at = now
        if now - watched.turned_at < (self._after if raised_at is None else self._over):
            return None
        watched.turned_at = None
        if raised_at is None:
            watched.raised_at = now
            return Alert(reading, threshold, True)
        watched.raised_at = None
        return Alert(reading, threshold, False, now - raised_at, watched.highest)
