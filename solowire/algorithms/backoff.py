"""Waits between attempts, random, so that a thousand clients that failed together don't come back together.

Full jitter: the wait is drawn evenly from zero (here: a floor) to a ceiling that doubles with every attempt. Source:
Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Chance is an argument, so that this is
pure: `random` gives floats in [0, 1).
"""

from __future__ import annotations

import math
import random as _random
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_S = 600.0
"""A server that asks for more is asked again after this long."""

_MAX_DOUBLINGS = 60  # 2.0**60 is more than any ceiling, and far from an overflow


class Backoff:
    """The waits of one series of attempts, in seconds: from `floor` to a ceiling: `base`, twice it, … `cap`."""

    def __init__(
        self, base: float, cap: float, *, floor: float = 0.0, random: Callable[[], float] = _random.random
    ) -> None:
        if not 0 <= floor <= base <= cap:
            raise ValueError(f"0 <= floor <= base <= cap does not hold for {floor}, {base}, {cap}")
        self._floor = floor
        self._base = base
        self._cap = cap
        self._random = random
        self.attempts = 0

    def next_delay(self, at_least: float = 0.0) -> float:
        """The next wait; the ceiling grows. at_least: what the server asked for; never sooner, and not all at once."""
        ceiling = min(self._cap, self._base * 2.0 ** min(self.attempts, _MAX_DOUBLINGS))
        self.attempts += 1
        wait = self._floor + (ceiling - self._floor) * self._random()
        return wait if wait > at_least else at_least + self._base * self._random()

    def reset(self) -> None:
        """It worked: the next series begins from the lowest ceiling."""
        self.attempts = 0


def parse_retry_after(header: str | None, now: float, date: str | None = None) -> float:
    """Seconds that a Retry-After header asks for, 0.0 if it asks for nothing that can be understood.

    Both forms of RFC 9110, section 10.2.3: seconds, and an HTTP date. That is compared with `date`, the answer's own
    Date header, as our clock may be wrong; with `now` (unix seconds) if there is none.
    """
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        until = _unix(header)
        if until is None:
            return 0.0
        said_at = None if date is None else _unix(date)
        seconds = until - (now if said_at is None else said_at)
    return max(0.0, min(seconds, MAX_RETRY_AFTER_S)) if math.isfinite(seconds) else 0.0


def _unix(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
