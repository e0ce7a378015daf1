"""The schedule of a shard's acknowledgements to the router.

What it keeps true: what has come is acknowledged at once after a pause, else when nothing more has come for
QUIET_SECONDS, within ACK_SECONDS, and when it is half of what may be under way; but no more often. The router takes one
message of each peer in turn, and those of gateways may be megabytes large: so an acknowledgement has to let through
more than one of these brings. Were each part of the log acknowledged by itself, the router would send no more than that
part for each request that it takes, and the log would grow away from shards that are idle.
"""

from __future__ import annotations

from math import inf

QUIET_SECONDS = 0.01
ACK_SECONDS = 0.2
"""Publishers are slowed by what is not acknowledged: this has to be far below a second."""
ACK_BYTES = 8 * 2**20
"""Half of what the router has under way to a shard."""


class AckSchedule:
    """Decides when the router gets an acknowledgement.

    credit: events that may be under way. Times in seconds, monotonic. due_at: when to tell; infinity if never.
    """

    def __init__(self, credit: int) -> None:
        self.due_at = inf
        self._most_events = credit // 2
        self._sent_at = -inf
        self._events = 0
        self._bytes = 0

    def record_batch(self, events: int, size: int, now: float) -> bool:
        """So much has come, and is to be acknowledged; whether at once, else at `due_at`."""
        self._events += events
        self._bytes += size
        self.due_at = min(self._sent_at + ACK_SECONDS, now + QUIET_SECONDS)
        return now >= self.due_at or self._events >= self._most_events or self._bytes >= ACK_BYTES

    def mark_sent(self, now: float) -> None:
        """It is acknowledged."""
        self.due_at = inf
        self._sent_at = now
        self._events = self._bytes = 0
