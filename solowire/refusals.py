"""Refusals, counted by their code and summed up in the log: an attack must not write a line for each attempt.

What it keeps true: a code is logged once a second at most, with how many there were since and the newest one's reason.
Codes are ours, and few.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from solowire.errors import RequestError

TELL_SECONDS = 1.0
"""How long after `count` has asked for it `take` is to be called."""


class Untold(NamedTuple):
    code: str
    refusals: int
    reason: str  # of the newest


class Refusals:
    """totals: since the start, by code."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._untold: dict[str, tuple[int, str]] = {}

    def count(self, error: RequestError) -> bool:
        """Whether it is the first since the last `take`: somebody has to call `take` in TELL_SECONDS."""
        self.totals[error.code] += 1
        first = not self._untold
        self._untold[error.code] = (self._untold.get(error.code, (0, ""))[0] + 1, error.message)
        return first

    def take(self) -> list[Untold]:
        """What is to be logged: all since the last time."""
        untold = [Untold(code, *rest) for code, rest in self._untold.items()]
        self._untold.clear()
        return untold
