"""The monitor of a process's event loop lag and memory.

What it keeps true: there is always a next look, whatever fails in this one, until it is closed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

logger = structlog.get_logger("solowire.vitals")

PERIOD_SECONDS = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def memory_bytes() -> int:
    """The resident set of this process (proc(5)); 0 where the system doesn't say."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


class LoopMonitor:
    """Looks at its own timer, twenty times a second. each_second: is called about once a second."""

    def __init__(self, each_second: Callable[[], None]) -> None:
        self.event_loop_lag_s = 0.0  # by how much the timer was late at most, in the last full second
        self._loop = asyncio.get_running_loop()
        self._each_second = each_second
        self._latest = 0.0
        self._second_began_at = self._loop.time()
        self._timer = self._loop.call_later(PERIOD_SECONDS, self._check_timer, self._loop.time() + PERIOD_SECONDS)

    def close(self) -> None:
        self._timer.cancel()

    def _check_timer(self, due: float) -> None:
        now = self._loop.time()
        # First of all: whatever happens below must not be the last that is heard of this process.
        self._timer = self._loop.call_at(now + PERIOD_SECONDS, self._check_timer, now + PERIOD_SECONDS)
        self._latest = max(self._latest, now - due)
        if now - self._second_began_at >= 1.0:
            self.event_loop_lag_s, self._latest, self._second_began_at = self._latest, 0.0, now
            try:
                self._each_second()
            except Exception:
                logger.exception("periodic_task_failed")
