"""Pace of warnings about one thing: which of many are told, so that what goes on is seen and doesn't drown all else.

Pure: the time, in seconds, is an argument.
"""

from __future__ import annotations

import re

REPEAT_WARNING_S = 60.0

MAX_REASONS = 16
"""So many reasons are remembered as told."""

_NUMBER = re.compile(r"\d+")


class WarningPace:
    """Which of many warnings are told: one that says something new, and one a minute of what goes on.

    Reasons that take turns, as those of two servers behind one address do, are no news, nor are numbers that count.
    """

    def __init__(self) -> None:
        self._warned_at: dict[str, float] = {}  # by text, the oldest first; of MAX_REASONS at most

    def is_due(self, text: str, now: float) -> bool:
        """Whether to tell it. now: seconds, monotonic."""
        text = _NUMBER.sub("0", text)
        if now - self._warned_at.get(text, float("-inf")) < REPEAT_WARNING_S:
            return False
        self._warned_at.pop(text, None)
        self._warned_at[text] = now
        if len(self._warned_at) > MAX_REASONS:
            del self._warned_at[next(iter(self._warned_at))]
        return True

    def reset(self) -> None:
        """It works again."""
        self._warned_at.clear()
