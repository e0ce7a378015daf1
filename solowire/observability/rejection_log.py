"""Refusals, counted by their code and summed up in the log: an attack must not write a line for each attempt.

What it keeps true: a code is logged once a second at most, with how many there were since and the newest one's reason.
Codes are ours, and few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from solowire.errors import RequestError

TELL_SECONDS = 1.0


class Refusals:
    """totals: since the start, by code. log: a logger. later: calls a function after so many seconds."""

    def __init__(self, log: Any, later: Callable[[float, Callable[[], None]], object]) -> None:
        self.totals: Counter[str] = Counter()
        self._untold: dict[str, tuple[int, str]] = {}  # how many, and the newest one's reason
        self._log = log
        self._later = later

    def count(self, error: RequestError) -> None:
        """One more was refused; the log hears of it within TELL_SECONDS."""
        self.totals[error.code] += 1
        if not self._untold:
            self._later(TELL_SECONDS, self._tell)
        self._untold[error.code] = (self._untold.get(error.code, (0, ""))[0] + 1, error.message)

    def _tell(self) -> None:
        for code, (refusals, reason) in self._untold.items():
            self._log.info("refused", code=code, refusals=refusals, reason=reason)
        self._untold.clear()
