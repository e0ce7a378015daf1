"""Moments as events have them: RFC 3339, UTC, with milliseconds and `Z`."""

from __future__ import annotations

import time

from solowire.algorithms.rfc3339 import format_unix_time

_LAST = 253_402_300_799.0  # of the year 9999


def format_moment(at: float) -> str:
    """Unix seconds; what is no time of the calendar becomes its first or last."""
    return format_unix_time(max(0.0, min(at, _LAST)))


def format_now() -> str:
    """This moment."""
    return format_moment(time.time())
