"""The moments at which something that lasts is said in the log: at once, and once in REMIND_S until it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

REMIND_S = 60.0


class Reminder:
    """Keeps when one thing was said. clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reason: str | None = None
        self._due_at = 0.0

    def is_due(self, reason: str = "") -> bool:
        """Whether to say it now: it has just begun, has another reason than last time, or was said REMIND_S ago.

        Whoever asks says it.
        """
        now = self._clock()
        if reason == self._reason and now < self._due_at:
            return False
        self._reason, self._due_at = reason, now + REMIND_S
        return True

    def clear(self) -> None:
        """It is over."""
        self._reason = None
