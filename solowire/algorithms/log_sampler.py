"""Log lines that could come at will, sampled: the first at once, then one a period with how many there were.

What it keeps true: of one event there is one line a period at most (`WarningPace`), each says how many it stands for
(`count`), and none is left out of the counts. A line's other fields are those of the newest. Events are ours, and few.

Refusals by their code, which are nobody's fault and expected in numbers, have `solowire.observability.rejection_log`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from solowire.algorithms.warning_pace import WarningPace

PERIOD_SECONDS = 1.0
MAX_EVENTS = 1000


class _PendingLine:
    """What has not been written of one event. due_at: when its period is over. turn: of how many periods."""

    __slots__ = ("count", "due_at", "fields", "level", "turn")

    def __init__(self) -> None:
        self.count = 0
        self.level = ""
        self.fields: dict[str, Any] = {}
        self.due_at = 0.0
        self.turn = 0


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
        self._clock = clock or (lambda: 0.0)
        self._later = later or (lambda seconds, call: None)
        self._pace = WarningPace(period, MAX_EVENTS, parts_numbers=True) if clock and later else None
        self._lines: dict[str, _PendingLine] = {}

    def write(self, level: str, event: str, **fields: Any) -> None:
        """One more of this event; level: such as `error`."""
        line = self._lines.get(event)
        if line is None:
            line = self._lines[event] = _PendingLine()
        line.count += 1
        line.level, line.fields = level, fields
        self._write_if_due(event, line, self._clock())

    def _write_if_due(self, event: str, line: _PendingLine, now: float) -> None:
        if self._pace is not None:
            if not self._pace.is_due(event, now):
                return
            # A turn of its own: who was to say so of the last one may be late, or gone with an event loop.
            line.turn += 1
            line.due_at = now + self._period
            self._later(self._period, partial(self._end_period, event, line.turn))
        count, fields, line.count, line.fields = line.count, line.fields, 0, {}
        getattr(self._logger, line.level)(event, count=count, **fields)

    def _end_period(self, event: str, turn: int) -> None:
        """A period is over: what came in it is written, and the next begins; if nothing came, a line goes at once."""
        line = self._lines[event]
        if line.turn == turn and line.count:
            self._write_if_due(event, line, max(self._clock(), line.due_at))
