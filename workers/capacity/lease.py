"""A shard's lease: which slots are taken, whether there is one for another connection, and what to tell the router.

What it keeps true: as long as the lease holds, a slot is given out only while fewer than `total` are taken, that is all
that the lease grants; within that a group has its own slots, and shared ones are for whoever comes first. A slot is
taken until the socket of its connection is gone. When the lease has run out nobody gets a slot any more, and users are
to be gone before the router counts the slots as free (`LEASE_DRAIN_FRACTION`). The time of a lease counts from when the
LeaseUsage that it answers was sent, so that this end is over before the router's.

Taking and returning are what every connection costs: a few look-ups, and no message. The router hears of it with the
next heartbeat, or at once (`wants_report`) when a group gets no slot for the first time under a lease, when few are
left, when the router waits for a lease to be in force, and when what it took away is free; once between two heartbeats
at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from solowire.backplane.messages import LEASE_DRAIN_FRACTION, Lease, LeaseUsage

LOW = 4
"""The router is asked for more when a part of so many of what the lease left free is left."""
WANTED_GROUPS = 1000
"""Of so many groups at a time it is noted that they want slots; of more, when a heartbeat has told these."""
ANSWERS_AWAITED = 64


class ShardLease:
    """The lease of one shard and how much of it is used.

    Times in seconds, monotonic. ends_at: until when slots may be taken. over_at: by when all must be returned.
    """

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity  # of the process, 0 for no limit
        self.used: dict[str, int] = {}
        self.used_count = 0
        self.total = 0
        self.fence = 0
        self.ends_at = -inf
        self.over_at = -inf
        self.is_report_due = True
        self._can_report = True
        self._slots: Mapping[str, int] = {}
        self._shared_slots = 0
        self._groups_without_shared: frozenset[str] = frozenset()
        self._shared_used = 0  # connections beyond their group's own slots
        self._low = 0  # with so few left the router is asked
        self._demand: dict[str, int] = {}
        self._reported_groups: set[str] = set()  # groups for which the router was asked under this lease
        self._seq = 0
        self._sent_at: dict[int, float] = {}  # when which LeaseUsage was sent, oldest first

    @property
    def is_at_capacity(self) -> bool:
        """Whether the process can have no more connections, whatever its lease is."""
        return 0 < self._capacity <= self.used_count

    def acquire(self, group: str, now: float) -> bool:
        """Takes a slot for a connection of `group`; False if there is none."""
        if self.used_count < self.total and now < self.ends_at:
            used = self.used.get(group, 0)
            if used >= self._slots.get(group, 0):
                if self._shared_used >= self._shared_slots or group in self._groups_without_shared:
                    self._note_demand(group)
                    return False
                self._shared_used += 1
            self.used[group] = used + 1
            self.used_count += 1
            if self.total - self.used_count == self._low:
                self._low, self.is_report_due = -1, True
            return True
        self._note_demand(group)
        return False

    def release(self, group: str) -> None:
        """The connection's socket is gone. Once for each that was taken: KeyError if the group has none."""
        used = self.used[group] - 1
        if used:
            self.used[group] = used
        else:
            del self.used[group]
        if used >= self._slots.get(group, 0):
            self._shared_used -= 1
            if self._shared_used == self._shared_slots:
                self.is_report_due = True  # what the lease took away is free now
        self.used_count -= 1

    def move_slot(self, old: str, new: str, now: float) -> bool:
        """Counts a connection to another group, if that has a slot; else it stays where it is, and False."""
        if self.used_count >= self.total or now >= self.ends_at:
            return False  # it would take one more for a moment
        if not self.acquire(new, now):
            return False
        self.release(old)
        return True

    def _note_demand(self, group: str) -> None:
        if group in self._demand or len(self._demand) < WANTED_GROUPS:
            self._demand[group] = self._demand.get(group, 0) + 1
        if group not in self._reported_groups and len(self._reported_groups) < WANTED_GROUPS:
            self._reported_groups.add(group)
            self.is_report_due = True

    # --------------------------------------------------------------------------------------------- the router

    @property
    def wants_report(self) -> bool:
        """Whether the router is to be told before the next heartbeat."""
        return self.is_report_due and self._can_report

    def usage_report(
        self, now: float, addresses: dict[str, int] | None = None, *, is_heartbeat: bool = False
    ) -> LeaseUsage:
        """What to tell the router now. is_heartbeat: with a heartbeat."""
        self.is_report_due, self._can_report = False, is_heartbeat
        self._seq += 1
        self._sent_at[self._seq] = now
        if len(self._sent_at) > ANSWERS_AWAITED:
            del self._sent_at[next(iter(self._sent_at))]
        wanted, self._demand = self._demand, {}
        room = self.total if now < self.over_at else 0
        return LeaseUsage(self._seq, self.fence, dict(self.used), wanted, addresses or {}, room, self._capacity)

    def apply(self, lease: Lease) -> bool:
        """Takes a lease of the router; whether it is another one than before. An older one changes nothing."""
        if lease.fence < self.fence:
            return False
        sent = self._sent_at.pop(lease.in_reply_to, None)
        if sent is not None:
            self.ends_at = max(self.ends_at, sent + lease.seconds)
            self.over_at = max(self.over_at, sent + lease.seconds * (1 + LEASE_DRAIN_FRACTION))
            for asked in [asked for asked in self._sent_at if asked < lease.in_reply_to]:
                del self._sent_at[asked]  # an answer to those would come too late to count
        if lease.fence == self.fence:
            return False
        room = sum(lease.slots.values()) + lease.shared_slots
        if not lease.in_reply_to:
            self.is_report_due = True  # the router waits to hear that it is in force
        self.fence, self.total = lease.fence, room
        self._slots, self._shared_slots, self._groups_without_shared = (
            lease.slots,
            lease.shared_slots,
            frozenset(lease.groups_without_shared),
        )
        self._shared_used = sum(max(0, used - self._slots.get(group, 0)) for group, used in self.used.items())
        self._low = (room - self.used_count) // LOW if room > self.used_count else -1
        self._reported_groups.clear()
        return True

    @property
    def is_overcommitted(self) -> bool:
        """Whether `overcommit` may name somebody: a look that costs nothing."""
        return self._shared_used > self._shared_slots or (self._shared_used > 0 and bool(self._groups_without_shared))

    def overcommit(self) -> dict[str, int]:
        """How many connections of which groups have to give way, by the lease in force."""
        beyond = {g: over for g, used in self.used.items() if (over := used - self._slots.get(g, 0)) > 0}
        giving = {g: over for g, over in beyond.items() if g in self._groups_without_shared}
        left = self._shared_used - self._shared_slots - sum(giving.values())
        for group, over in sorted(beyond.items(), key=lambda item: -item[1]):
            if left <= 0:
                break
            if group not in giving:
                giving[group] = min(over, left)
                left -= giving[group]
        return giving
