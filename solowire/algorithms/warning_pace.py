"""Pace of log lines about one thing: which of many are told, so that what goes on is seen and doesn't drown all else.

Whoever paces lines in the log does it by this: the first of a kind at once, then one a period. `LogSampler` adds the
counts of those between, for what comes in numbers.

Pure: the time, in seconds, is an argument.
"""

from __future__ import annotations

import re
from collections import OrderedDict

REPEAT_WARNING_S = 60.0

MAX_REASONS = 16
"""So many reasons are remembered as told."""

_NUMBER = re.compile(r"\d+")


class WarningPace:
    """Which of many lines are told: one that says something new, and one in `repeat_s` seconds of what goes on.

    Reasons that take turns, as those of two servers behind one address do, are no news, nor are numbers that count,
    unless `parts_numbers`. Of `most` reasons it is known when they were told, those of the newest.
    """

    def __init__(
        self, repeat_s: float = REPEAT_WARNING_S, most: int = MAX_REASONS, *, parts_numbers: bool = False
    ) -> None:
        self._repeat_s = repeat_s
        self._most = most
        self._parts_numbers = parts_numbers
        self._due_at: OrderedDict[str, float] = OrderedDict()  # by reason, the one that was told longest ago first

    def is_due(self, reason: str, now: float) -> bool:
        """Whether to tell it now: whoever asks does. now: seconds, monotonic."""
        if not self._parts_numbers:
            reason = _NUMBER.sub("0", reason)
        if now < self._due_at.get(reason, float("-inf")):
            return False
        self._due_at[reason] = now + self._repeat_s
        self._due_at.move_to_end(reason)
        if len(self._due_at) > self._most:
            self._due_at.popitem(last=False)
        return True

    def reset(self) -> None:
        """It works again."""
        self._due_at.clear()
