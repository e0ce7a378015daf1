"""A limit on users who may try a shard although their group is full, since only the shard knows better.

What it keeps true: a user who was let in here before reaches its shard while its group is closed, so that its newer
connection can end its older one and take that one's slot. TRIES may follow at once, because the shard refuses the first
and keeps the slot for the next; in the long run it is one in RETRY_SECONDS. Of those who are not known a few in a
second may try, whoever they are: another gateway may know them. Such a one is known for as long as its shard may keep
a slot for it, and no longer: else an attack would fill the table with strangers. The table has a bound.

Times are seconds of any one clock.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from solowire.algorithms.token_bucket import Rate

KNOWN_USERS = 20_000
"""Some 5 MB when there are so many; the one that came least recently is forgotten."""
RETRY_SECONDS = 5.0
TRIES = 3
STRANGER_SECONDS = 10.0


class ProbeLimiter:
    """Limits how many may try to connect although their group is full.

    strangers: how many of those who are not known may try, per second.
    """

    def __init__(self, strangers: float = 10.0) -> None:
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()  # when its bucket is full; known until
        self._rate = Rate(1 / RETRY_SECONDS, TRIES)
        self._stranger_pause_s = 1 / strangers
        self._stranger_at = -inf  # from then on the next of them may

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, user: str, now: float) -> None:
        """The user was sent to its shard through an open door."""
        full_at, _ = self._known.get(user, (now, inf))
        self._store(user, full_at, inf)

    def allow(self, user: str, now: float) -> bool:
        """Whether the user may try, which then counts as one."""
        known = self._known.get(user)
        if known is not None and now < known[1]:
            full_at, until = known
            if self._rate.wait_seconds(full_at, now):
                return False
        elif now < self._stranger_at:
            return False
        else:
            self._stranger_at = now + self._stranger_pause_s
            full_at, until = now, now + STRANGER_SECONDS
        self._store(user, self._rate.full_after(full_at, now), until)
        return True

    def _store(self, user: str, full_at: float, until: float) -> None:
        self._known[user] = (full_at, until)
        self._known.move_to_end(user)
        if len(self._known) > KNOWN_USERS:
            self._known.popitem(last=False)
