"""Rejected connections, counted by error code and sampled in the log: an attack must not write a line for each attempt.

What it keeps true: a code is logged once a second at most, with its count since then and the newest reason. Codes are
ours, and few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from solowire.errors import RequestError

SUMMARY_SECONDS = 1.0


class RejectionLog:
    """Counts rejections by error code, and logs a summary once a second.

    totals: since the start, by code. log: a logger. later: calls a function after so many seconds.
    """

    def __init__(self, log: Any, later: Callable[[float, Callable[[], None]], object]) -> None:
        self.totals: Counter[str] = Counter()
        self._unlogged: dict[str, tuple[int, str]] = {}  # how many, and the newest one's reason
        self._log = log
        self._later = later

    def record(self, error: RequestError) -> None:
        """Counts a rejection; the log has it within SUMMARY_SECONDS."""
        self.totals[error.code] += 1
        if not self._unlogged:
            self._later(SUMMARY_SECONDS, self._write_summary)
        self._unlogged[error.code] = (self._unlogged.get(error.code, (0, ""))[0] + 1, error.message)

    def _write_summary(self) -> None:
        for code, (count, reason) in self._unlogged.items():
            self._log.info("connection_rejected", code=code, count=count, reason=reason)
        self._unlogged.clear()
