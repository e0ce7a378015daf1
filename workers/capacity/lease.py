"""A shard's lease: which slots are taken, whether there is one for another connection, and what to tell the router.

What it keeps true: as long as the lease holds, a slot is given out only while fewer than `room` are taken, that is all
that the lease grants; within that a group has its own slots, and `spare` ones are for whoever comes first. A slot is
taken until the socket of its connection is gone. When the lease has run out nobody gets a slot any more, and users are
to be gone before the router counts the slots as free (`backplane.EMPTYING`). The time of a lease counts from when the
Slots that it answers were sent, so that this end is over before the router's.

Taking and returning are what every connection costs: a few look-ups, and no message. The router hears of it with the
next heartbeat, or at once (`asks`) when a group gets no slot for the first time under a lease, when few are left, when
the router waits for a lease to be in force, and when what it took away is free; once between two heartbeats at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from solowire.backplane.messages import EMPTYING, Lease, Slots

LOW = 4
"""The router is asked for more when a part of so many of what the lease left free is left."""
WANTED_GROUPS = 1000
"""Of so many groups at a time it is noted that they want slots; of more, when a heartbeat has told these."""
ANSWERS_AWAITED = 64


class Leases:
    """Times in seconds, monotonic. ends: until when slots may be taken. over_at: by when all must be returned."""

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity  # of the process, 0 for no limit
        self.used: dict[str, int] = {}
        self.taken = 0
        self.room = 0
        self.fence = 0
        self.ends = -inf
        self.over_at = -inf
        self.ask = True
        self._may_ask = True
        self._slots: Mapping[str, int] = {}
        self._spare = 0
        self._capped: frozenset[str] = frozenset()
        self._over = 0  # connections beyond their group's own slots
        self._low = 0  # with so few left the router is asked
        self._wanted: dict[str, int] = {}
        self._told: set[str] = set()  # groups for which the router was asked under this lease
        self._asked = 0
        self._sent: dict[int, float] = {}  # when which Slots were sent, oldest first

    @property
    def is_at_capacity(self) -> bool:
        """Whether the process can have no more connections, whatever its lease is."""
        return 0 < self._capacity <= self.taken

    def take(self, group: str, now: float) -> bool:
        """Takes a slot for a connection of `group`; False if there is none."""
        if self.taken < self.room and now < self.ends:
            used = self.used.get(group, 0)
            if used >= self._slots.get(group, 0):
                if self._over >= self._spare or group in self._capped:
                    self._want(group)
                    return False
                self._over += 1
            self.used[group] = used + 1
            self.taken += 1
            if self.room - self.taken == self._low:
                self._low, self.ask = -1, True
            return True
        self._want(group)
        return False

    def give_back(self, group: str) -> None:
        """The connection's socket is gone. Once for each that was taken: KeyError if the group has none."""
        used = self.used[group] - 1
        if used:
            self.used[group] = used
        else:
            del self.used[group]
        if used >= self._slots.get(group, 0):
            self._over -= 1
            if self._over == self._spare:
                self.ask = True  # what the lease took away is free now
        self.taken -= 1

    def move(self, old: str, new: str, now: float) -> bool:
        """Counts a connection to another group, if that has a slot; else it stays where it is, and False."""
        if self.taken >= self.room or now >= self.ends:
            return False  # it would take one more for a moment
        if not self.take(new, now):
            return False
        self.give_back(old)
        return True

    def _want(self, group: str) -> None:
        if group in self._wanted or len(self._wanted) < WANTED_GROUPS:
            self._wanted[group] = self._wanted.get(group, 0) + 1
        if group not in self._told and len(self._told) < WANTED_GROUPS:
            self._told.add(group)
            self.ask = True

    # --------------------------------------------------------------------------------------------- the router

    @property
    def asks(self) -> bool:
        """Whether the router is to be told before the next heartbeat."""
        return self.ask and self._may_ask

    def slots(self, now: float, addresses: dict[str, int] | None = None, *, beat: bool = False) -> Slots:
        """What to tell the router now. beat: with a heartbeat."""
        self.ask, self._may_ask = False, beat
        self._asked += 1
        self._sent[self._asked] = now
        if len(self._sent) > ANSWERS_AWAITED:
            del self._sent[next(iter(self._sent))]
        wanted, self._wanted = self._wanted, {}
        room = self.room if now < self.over_at else 0
        return Slots(self._asked, self.fence, dict(self.used), wanted, addresses or {}, room, self._capacity)

    def leased(self, lease: Lease) -> bool:
        """Takes a lease of the router; whether it is another one than before. An older one changes nothing."""
        if lease.fence < self.fence:
            return False
        sent = self._sent.pop(lease.answers, None)
        if sent is not None:
            self.ends = max(self.ends, sent + lease.seconds)
            self.over_at = max(self.over_at, sent + lease.seconds * (1 + EMPTYING))
            for asked in [asked for asked in self._sent if asked < lease.answers]:
                del self._sent[asked]  # an answer to those would come too late to count
        if lease.fence == self.fence:
            return False
        room = sum(lease.slots.values()) + lease.spare
        if not lease.answers:
            self.ask = True  # the router waits to hear that it is in force
        self.fence, self.room = lease.fence, room
        self._slots, self._spare, self._capped = lease.slots, lease.spare, frozenset(lease.capped)
        self._over = sum(max(0, used - self._slots.get(group, 0)) for group, used in self.used.items())
        self._low = (room - self.taken) // LOW if room > self.taken else -1
        self._told.clear()
        return True

    @property
    def over(self) -> bool:
        """Whether `excess` may name somebody: a look that costs nothing."""
        return self._over > self._spare or (self._over > 0 and bool(self._capped))

    def excess(self) -> dict[str, int]:
        """How many connections of which groups have to give way, by the lease in force."""
        beyond = {g: over for g, used in self.used.items() if (over := used - self._slots.get(g, 0)) > 0}
        giving = {g: over for g, over in beyond.items() if g in self._capped}
        left = self._over - self._spare - sum(giving.values())
        for group, over in sorted(beyond.items(), key=lambda item: -item[1]):
            if left <= 0:
                break
            if group not in giving:
                giving[group] = min(over, left)
                left -= giving[group]
        return giving
