"""Log lines that could come at will, sampled: the first at once, then one a period with how many there were.

What it keeps true: of one event there is one line a period at most, each says how many it stands for (`count`), and
none is left out of the counts. A line's other fields are those of the newest. Events are ours, and few.

Refusals by their code, which are nobody's fault and expected in numbers, have `solowire.observability.rejection_log`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

PERIOD_SECONDS = 1.0


class _PendingLine:
    """What has not been written of one event. until: when its period is over."""

    __slots__ = ("count", "fields", "level", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.count = 0
        self.level = ""
        self.fields: dict[str, Any] = {}


class LogSampler:
    """Writes log lines, of each event one a period at most.

    logger: structlog's. clock: seconds, monotonic. later: calls a function after so many seconds. period: seconds.

    Without clock and later every line is written.
    """

    def __init__(
        self,
        logger: Any,
        clock: Callable[[], float] | None = None,
        later: Callable[[float, Callable[[], None]], object] | None = None,
        *,
        period: float = PERIOD_SECONDS,
    ) -> None:
        self._period = period
        self._logger = logger
        self._clock = clock
        self._later = later
        self._pending: dict[str, _PendingLine] = {}

    def write(self, level: str, event: str, **fields: Any) -> None:
        """One more of this event; level: such as `error`."""
        if self._clock is None or self._later is None:
            self._write_line(level, event, 1, fields)
            return
        now = self._clock()
        pending = self._pending.get(event)
        if pending is not None and now < pending.until + self._period:
            pending.count += 1
            pending.level, pending.fields = level, fields
            return
        # Its period is long over: whoever was to say so is gone, as with an event loop that has ended.
        missed = pending.count if pending is not None else 0
        self._pending[event] = _PendingLine(now + self._period)
        self._later(self._period, partial(self._end_period, event))
        self._write_line(level, event, missed + 1, fields)

    def _end_period(self, event: str) -> None:
        """A period is over: what came in it is written, and the next begins; if nothing came, a line goes at once."""
        pending = self._pending.pop(event, None)
        if pending is None or not pending.count or self._clock is None or self._later is None:
            return
        self._pending[event] = _PendingLine(self._clock() + self._period)
        self._later(self._period, partial(self._end_period, event))
        self._write_line(pending.level, event, pending.count, pending.fields)

    def _write_line(self, level: str, event: str, count: int, fields: dict[str, Any]) -> None:
        getattr(self._logger, level)(event, count=count, **fields)
