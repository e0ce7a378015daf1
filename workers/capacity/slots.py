"""Whether a shard has room for one more connection: a slot of its lease, and its address's limit.

What it keeps true: a connection has one slot from before it is accepted until its socket is gone, and is counted for
its address as long; one that takes the place of another of its user at the same address gets in while that one ends.
When there is no slot for a user who has as many connections here as it may, its oldest is ended and that one's slot is
kept for it: whoever comes back while the system is full, before its old connection is found to be dead, gets in with
its next attempt.
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from math import inf

from solowire.backplane.messages import Lease, Slots
from solowire.errors import Refused
from solowire.model.access import Identity, group_of
from solowire.workers.capacity.lease import Leases

KEPT_SECONDS = 5.0
RETRY_SECONDS = 2
"""By then others have given way, if somebody had to."""
ADDRESSES = 500
"""So many addresses are reported at a time: the watched ones, and those with the most connections."""


class _Kept:
    __slots__ = ("free", "group", "until")

    def __init__(self, group: str, until: float) -> None:
        self.group = group
        self.until = until
        self.free = False  # the older socket is gone


class Admission:
    """group_by: `role` or `tenant`. per_address: connections, None for no limit. Times in seconds, monotonic.

    capacity: how many connections the process can have, 0 for no limit.
    """

    def __init__(self, group_by: str = "role", per_address: int | None = None, capacity: int = 0) -> None:
        self.leases = Leases(capacity)
        self.due = inf  # when `run` has something to do
        self._group_by = group_by
        self._per_address = per_address
        self._addresses: Counter[str] = Counter()
        self._full: frozenset[str] = frozenset()
        self._tell_from = 0
        self._watched: list[str] = []
        self._many: set[str] = set()  # addresses with `_tell_from` connections or more
        self._kept: dict[str, _Kept] = {}

    def group_of(self, identity: Identity) -> str:
        return group_of(identity, self._group_by)

    @property
    def taken(self) -> int:
        """Slots of connections and handshakes; those that are only kept for somebody are not counted."""
        return self.leases.taken - sum(kept.free for kept in self._kept.values())

    def enter(self, identity: Identity, address: str, now: float, *, replaces: bool = False) -> bool:
        """Takes a slot; False if there is none. Raises Refused if it is the address that has no room.

        replaces: a connection of the user at this address ends for this one: the address has no more than before.
        """
        if self._per_address is not None and address:
            full = self._addresses[address] - replaces >= self._per_address
            if full or (address in self._full and not replaces):
                raise Refused(
                    429,
                    "too_many_from_address",
                    f"{self._per_address} connections are open from your address, as many as one may have",
                    "close one of them first; an operator raises SOLOWIRE_MAX_CONNECTIONS_PER_ADDRESS",
                    retry_after=RETRY_SECONDS,
                )
            self._addresses[address] += 1
            if self._addresses[address] == self._tell_from:
                self._many.add(address)
        group = self.group_of(identity)
        kept = self._kept.get(identity.user)
        if kept is not None and kept.free and kept.group == group and now < self.leases.ends:
            del self._kept[identity.user]
            return True
        if self.leases.take(group, now):
            return True
        self._count_out(address)
        return False

    def explain_full(self, identity: Identity, now: float) -> tuple[str, str]:
        """Why `enter` has found no slot, and the way out: which limit it is, and its setting."""
        later = "try again when Retry-After says; an operator"
        if now >= self.leases.ends:
            return "this shard has not heard of the router for SOLOWIRE_LEASE_S", f"{later} sees to the router"
        if self.leases.is_at_capacity:
            message = "this shard has as many connections as its limit of open files allows"
            return message, f"{later} raises that limit (ulimit -n) or adds shards"
        if not self.leases.room:
            message = "the router has granted this shard no connections, as happens while it joins or returns"
            return message, f"{later} raises SOLOWIRE_MAX_CONNECTIONS if that lasts"
        message = f"all connections that the group {self.group_of(identity)!r} may have here are taken"
        settings = "SOLOWIRE_MAX_CONNECTIONS, SOLOWIRE_MAX_CONNECTIONS_PER_SHARD or the group's part by SOLOWIRE_GROUPS"
        return message, f"{later} raises {settings}"

    def keep_for(self, user: str, group: str, now: float) -> None:
        """Keeps the slot of the user's connection that is ending now for its next one."""
        before = self._kept.get(user)
        if before is not None and before.free:
            self.leases.give_back(before.group)
        self._kept[user] = _Kept(group, now + KEPT_SECONDS)
        self.due = min(self.due, now + KEPT_SECONDS)

    def leave(self, user: str, group: str, address: str) -> None:
        """Gives the slot back: the socket is gone, or the handshake came to nothing."""
        self._count_out(address)
        kept = self._kept.get(user)
        if kept is not None and not kept.free and kept.group == group:
            kept.free = True
        else:
            self.leases.give_back(group)

    def run(self, now: float) -> None:
        """Gives back what was kept for users who don't come."""
        if now >= self.due:
            for user, kept in list(self._kept.items()):
                if now >= kept.until:
                    del self._kept[user]
                    if kept.free:
                        self.leases.give_back(kept.group)
            self.due = min((kept.until for kept in self._kept.values()), default=inf)

    def slots(self, now: float, *, beat: bool = False) -> Slots:
        return self.leases.slots(now, self._told(), beat=beat)

    def leased(self, lease: Lease) -> bool:
        """As `Leases.leased`."""
        self._full, self._watched = frozenset(lease.full), lease.watched
        if lease.tell_from != self._tell_from:
            self._tell_from = lease.tell_from
            many = lease.tell_from or inf
            self._many = {address for address, number in self._addresses.items() if number >= many}
        return self.leases.leased(lease)

    def _told(self) -> dict[str, int]:
        """What addresses have that may have too many, together with what they have at other shards."""
        told = {address: n for address in self._watched[:ADDRESSES] if (n := self._addresses.get(address, 0))}
        many = [address for address in self._many if address not in told]
        room = ADDRESSES - len(told)
        if len(many) > room:
            many = nlargest(room, many, key=self._addresses.__getitem__)
        return told | {address: self._addresses[address] for address in many}

    def _count_out(self, address: str) -> None:
        if self._per_address is not None and address:
            self._addresses[address] -= 1
            if self._addresses[address] == self._tell_from - 1:
                self._many.discard(address)
            if not self._addresses[address]:
                del self._addresses[address]
