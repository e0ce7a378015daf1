"""The slots of a shard's lease, and the limit on connections of an address.

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

from solowire.backplane.messages import Lease, LeaseUsage
from solowire.errors import RequestRejected
from solowire.model.access import Identity, find_group
from solowire.workers.capacity.lease import ShardLease

RESERVED_SECONDS = 5.0
RETRY_SECONDS = 2
"""By then others have given way, if somebody had to."""
ADDRESSES = 500
"""So many addresses are reported at a time: the watched ones, and those with the most connections."""


class _ReservedSlot:
    __slots__ = ("ends_at", "group", "is_free")

    def __init__(self, group: str, until: float) -> None:
        self.group = group
        self.ends_at = until
        self.is_free = False  # the older socket is gone


class SlotManager:
    """Takes and returns the slots of a shard's lease.

    group_by: `role` or `tenant`. per_address: connections, None for no limit. Times in seconds, monotonic.

    capacity: how many connections the process can have, 0 for no limit.
    """

    def __init__(self, group_by: str = "role", per_address: int | None = None, capacity: int = 0) -> None:
        self.lease = ShardLease(capacity)
        self.due_at = inf  # when `run` has something to do
        self._group_by = group_by
        self._per_address = per_address
        self._addresses: Counter[str] = Counter()
        self._full_addresses: frozenset[str] = frozenset()
        self._report_threshold = 0
        self._tracked_addresses: list[str] = []
        self._crowded_addresses: set[str] = set()  # addresses with `_report_threshold` connections or more
        self._reserved: dict[str, _ReservedSlot] = {}

    def get_group(self, identity: Identity) -> str:
        return find_group(identity, self._group_by)

    @property
    def used_count(self) -> int:
        """Slots of connections and handshakes; those that are only kept for somebody are not counted."""
        return self.lease.used_count - sum(kept.is_free for kept in self._reserved.values())

    def acquire(self, identity: Identity, address: str, now: float, *, replaces: bool = False) -> bool:
        """Takes a slot; False if there is none. Raises RequestRejected if it is the address that has no room.

        replaces: a connection of the user at this address ends for this one: the address has no more than before.
        """
        if self._per_address is not None and address:
            full = self._addresses[address] - replaces >= self._per_address
            if full or (address in self._full_addresses and not replaces):
                raise RequestRejected(
                    429,
                    "too_many_from_address",
                    f"{self._per_address} connections are open from your address, as many as one may have",
                    "close one of them first; an operator raises SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_ADDRESS",
                    retry_after=RETRY_SECONDS,
                )
            self._addresses[address] += 1
            if self._addresses[address] == self._report_threshold:
                self._crowded_addresses.add(address)
        group = self.get_group(identity)
        kept = self._reserved.get(identity.user)
        if kept is not None and kept.is_free and kept.group == group and now < self.lease.ends_at:
            del self._reserved[identity.user]
            return True
        if self.lease.acquire(group, now):
            return True
        self._release_address(address)
        return False

    def explain_full(self, identity: Identity, now: float) -> tuple[str, str]:
        """Why `acquire` has found no slot, and the way out: which limit it is, and its setting."""
        later = "try again when Retry-After says; an operator"
        if now >= self.lease.ends_at:
            return "this shard has not heard of the router for SOLOWIRE_LIMITS__LEASE_S", f"{later} sees to the router"
        if self.lease.is_at_capacity:
            message = "this shard has as many connections as its limit of open files allows"
            return message, f"{later} raises that limit (ulimit -n) or adds shards"
        if not self.lease.total:
            message = "the router has granted this shard no connections, as happens while it joins or returns"
            return message, f"{later} raises SOLOWIRE_LIMITS__MAX_CONNECTIONS if that lasts"
        message = f"all connections that the group {self.get_group(identity)!r} may have here are taken"
        settings = (
            "SOLOWIRE_LIMITS__MAX_CONNECTIONS, SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_SHARD "
            "or the group's part by SOLOWIRE_LIMITS__GROUPS"
        )
        return message, f"{later} raises {settings}"

    def reserve_for(self, user: str, group: str, now: float) -> None:
        """Keeps the slot of the user's connection that is ending now for its next one."""
        before = self._reserved.get(user)
        if before is not None and before.is_free:
            self.lease.release(before.group)
        self._reserved[user] = _ReservedSlot(group, now + RESERVED_SECONDS)
        self.due_at = min(self.due_at, now + RESERVED_SECONDS)

    def release(self, user: str, group: str, address: str) -> None:
        """Gives the slot back: the socket is gone, or the handshake came to nothing."""
        self._release_address(address)
        kept = self._reserved.get(user)
        if kept is not None and not kept.is_free and kept.group == group:
            kept.is_free = True
        else:
            self.lease.release(group)

    def run(self, now: float) -> None:
        """Gives back what was kept for users who don't come."""
        if now >= self.due_at:
            for user, kept in list(self._reserved.items()):
                if now >= kept.ends_at:
                    del self._reserved[user]
                    if kept.is_free:
                        self.lease.release(kept.group)
            self.due_at = min((kept.ends_at for kept in self._reserved.values()), default=inf)

    def usage_report(self, now: float, *, is_heartbeat: bool = False) -> LeaseUsage:
        return self.lease.usage_report(now, self._addresses_to_report(), is_heartbeat=is_heartbeat)

    def apply_lease(self, lease: Lease) -> bool:
        """As `ShardLease.apply`."""
        self._full_addresses, self._tracked_addresses = frozenset(lease.full_addresses), lease.tracked_addresses
        if lease.report_threshold != self._report_threshold:
            self._report_threshold = lease.report_threshold
            many = lease.report_threshold or inf
            self._crowded_addresses = {address for address, number in self._addresses.items() if number >= many}
        return self.lease.apply(lease)

    def _addresses_to_report(self) -> dict[str, int]:
        """What addresses have that may have too many, together with what they have at other shards."""
        reported = {
            address: n for address in self._tracked_addresses[:ADDRESSES] if (n := self._addresses.get(address, 0))
        }
        many = [address for address in self._crowded_addresses if address not in reported]
        room = ADDRESSES - len(reported)
        if len(many) > room:
            many = nlargest(room, many, key=self._addresses.__getitem__)
        return reported | {address: self._addresses[address] for address in many}

    def _release_address(self, address: str) -> None:
        if self._per_address is not None and address:
            self._addresses[address] -= 1
            if self._addresses[address] == self._report_threshold - 1:
                self._crowded_addresses.discard(address)
            if not self._addresses[address]:
                del self._addresses[address]
