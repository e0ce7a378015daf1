"""The deadline of a request's body, if it is to be read at all.

What it keeps true: each byte puts the deadline off by what a byte may take at the least pace, but never to later than
the grace from now, nor beyond `most_s` from the begin. So a place costs whoever holds it bandwidth all the time: also
one that begins fast and then falls silent is over within the grace. (It is a token bucket whose burst is the grace.)

Times are seconds of any one clock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BodyPace:
    """The pace at which a request's body must arrive.

    bytes_per_s: the least, 0 for none. grace_s: how far behind that a body may be. most_s: for the whole body.
    """

    bytes_per_s: float
    grace_s: float
    most_s: float


class BodyDeadline:
    """Of one body, whose reading begins `now`. due: when it is too late, unless more has come."""

    __slots__ = ("_last", "_pace", "due")

    def __init__(self, pace: BodyPace, now: float) -> None:
        self._pace = pace
        self._last = now + pace.most_s
        self.due = min(self._last, now + pace.grace_s) if pace.bytes_per_s else self._last

    def extend(self, bytes: int, now: float) -> float:
        """So many bytes have come; when the rest is due."""
        pace = self._pace
        if pace.bytes_per_s:
            self.due = min(self._last, now + pace.grace_s, self.due + bytes / pace.bytes_per_s)
        return self.due
