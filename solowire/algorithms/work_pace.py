"""The pace of work that must leave most of the time to others.

What it keeps true: who has not worked for a while may work for `burst_s` at once; whoever works on and on rests
`factor` times as long as it worked. It is never stopped for good: a rest is as long as what it is for, and ends.
"""

from __future__ import annotations


class WorkPace:
    """A balance of seconds of work, which rests fill and work empties. Times are seconds."""

    def __init__(self, burst_s: float) -> None:
        self._burst_s = burst_s
        self._balance_s = burst_s

    def record_work(self, worked_s: float) -> None:
        self._balance_s -= worked_s

    def record_rest(self, rested_s: float, factor: float) -> None:
        self._balance_s = min(self._burst_s, self._balance_s + rested_s / factor)

    def rest_s(self, factor: float) -> float:
        """How long a rest is due now; 0 if none is."""
        return max(0.0, -self._balance_s * factor)
