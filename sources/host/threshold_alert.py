"""The alerts of what is measured: begun and ended by several measurements in a row, never by one.

        calm ──(`after` in a row at `warning` or above)──► warning ◄──► critical
          ▲                                                  │
          └──────────(`after` in a row below `warning` − `ease`)──────────┘

What it keeps true:

* One cause gives one alert: while it lasts, only its level changes, and that takes as many measurements.
* What lies between `warning − ease` and `warning` begins nothing and ends nothing.
* A measurement that is missing (None) changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad it is."""

    calm = 0
    warning = 1
    critical = 2


@dataclass(frozen=True)
class Thresholds:
    """Of one metric, in its unit. 0: that level is off. ease: how far below `warning` it has to be to be over."""

    warning: float
    critical: float = 0.0
    ease: float = 5.0
    after: int = 3


@dataclass(frozen=True)
class AlertChange:
    """An alert begins, changes its level, or is over (calm). threshold: that was reached, or is not any more."""

    old: Level
    new: Level
    value: float
    threshold: float


class ThresholdAlert:
    """The alert of one metric of one thing, such as the usage of one disk."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self.level = Level.calm
        self._wanted = Level.calm
        self._count = 0  # of measurements in a row that want another level

    def note_value(self, value: float | None) -> AlertChange | None:
        """A measurement, and what it causes."""
        if value is None:
            return None
        wanted = self._find_level(value)
        if wanted is self.level:
            self._wanted, self._count = wanted, 0
            return None
        if self._count and (wanted > self.level) == (self._wanted > self.level):
            # Two levels that are wanted in turn, both above this one or both below, agree on the nearer one.
            self._count += 1
            self._wanted = min(wanted, self._wanted) if wanted > self.level else max(wanted, self._wanted)
        else:
            self._count, self._wanted = 1, wanted
        if self._count < self._thresholds.after:
            return None
        old, self.level, self._count = self.level, self._wanted, 0
        limits = self._thresholds
        reached = limits.critical if self.level is Level.critical else limits.warning or limits.critical
        return AlertChange(old, self.level, value, reached)

    def _find_level(self, value: float) -> Level:
        """The level that a value stands for, beginning from the one in force."""
        limits = self._thresholds
        for level, limit in ((Level.critical, limits.critical), (Level.warning, limits.warning)):
            if limit and value >= limit - (limits.ease if self.level >= level else 0.0):
                return level
        return Level.calm
