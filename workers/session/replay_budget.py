"""The replay budget of each user: a replay costs what it reads, whatever of it the user then gets.

What it keeps true: within any time t a user has no more than burst + rate × t records read, but for one replay that is
larger than the burst: it needs a full bucket, and leaves an empty one. It is counted for the user and not for each
connection, and what was asked for and never read is given back: one who loses its connection in the middle and comes
again pays once.
"""

from __future__ import annotations

from solowire.algorithms.token_bucket import Rate
from solowire.workers.connections.users import UserRegistry


class ReplayBudget:
    """Charges users for the records read for them.

    rate: records per second. Times in seconds, monotonic. A user whom nobody knows here is not counted.
    """

    def __init__(self, users: UserRegistry, rate: Rate) -> None:
        self._users = users
        self._rate = rate

    @property
    def record_seconds(self) -> float:
        """How long it takes until a user may have one more record read."""
        return self._rate.refill_seconds / self._rate.burst

    def delay_for(self, name: str, records: int, now: float) -> float:
        """Seconds until the user may have so many records read; 0 if it may now."""
        user = self._users.get(name)
        return self._rate.wait_seconds(user.replays_full_at, now, records) if user is not None else 0.0

    def charge(self, name: str, records: int, now: float) -> float:
        """They will be read; returns a time that is the later the more was read for the user before."""
        user = self._users.get(name)
        if user is None:
            return now
        before = max(user.replays_full_at, now)
        full_at = self._rate.full_after(before, now, min(records, self._rate.burst))
        user.replays_full_at = min(full_at, now + self._rate.refill_seconds)
        return before

    def refund(self, name: str, charged: int, read: int) -> None:
        """Of so many that were charged at once only so many were read after all."""
        user = self._users.get(name)
        left = min(charged, self._rate.burst) - read
        if user is not None and left > 0:
            user.replays_full_at = self._rate.full_after_refund(user.replays_full_at, left)
