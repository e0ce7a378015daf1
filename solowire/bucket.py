"""A token bucket: how much may come at once, and how much in the long run.

What it keeps true: within any time t no more than burst + rate × t is taken, but for one thing that is larger than the
burst: it is taken when the bucket is full, and the bucket is in debt until it is paid for, so that it is never refused
for ever. Rate and burst are given with each call, so that a million buckets cost two numbers each. It is for who has a
place of its own to keep it; many in a table that has to forget, such as strangers, are `solowire.rates`.
"""

from __future__ import annotations


class Bucket:
    """One bucket, full at first. Times are seconds of any one clock."""

    __slots__ = ("_at", "_tokens")

    def __init__(self) -> None:
        self._at: float | None = None
        self._tokens = 0.0

    @property
    def used(self) -> bool:
        """Whether anything was ever asked of it; else it is as good as a new one."""
        return self._at is not None

    def take(self, now: float, rate: float, burst: float, amount: float = 1.0) -> float:
        """Takes `amount` and returns 0.0, or takes nothing and returns the seconds until it can be had.

        An `amount` of 0 asks whether the bucket is in debt.
        """
        if self._at is None:
            tokens = burst
        else:
            tokens = min(burst, self._tokens + max(0.0, now - self._at) * rate)
        self._at = now
        needed = min(amount, burst)
        if tokens >= needed:
            self._tokens = tokens - amount
            return 0.0
        self._tokens = tokens
        return (needed - tokens) / rate
