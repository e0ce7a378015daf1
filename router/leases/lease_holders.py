"""The holders of connection slots, and how many each holds.

What it keeps true: a shard holds the greatest of the lease that it has confirmed, of those sent since, and of what it
said it uses. One that is not heard of any more holds that until its leases have run out, or until it is certain that
its process is gone: it has said goodbye, another has its place (index, and machine, host and port, which a kernel gives
to one process only), or nobody listens there any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from solowire.backplane.messages import Lease, ShardAddress


class Grant(NamedTuple):
    """A lease, and all its slots."""

    fence: int
    total: int


class PendingDemand(NamedTuple):
    """A group that was refused at a shard: it would use `target` slots there. expires_at: monotonic."""

    target: int
    expires_at: float


@dataclass(slots=True, eq=False)
class LeaseHolder:
    """A process that may use slots.

    expires_at: nobody uses its leases then. leases: first the one that it confirmed.
    """

    name: bytes
    address: ShardAddress
    expires_at: float
    is_live: bool = True
    is_draining: bool = False
    has_reported: bool = False  # it has said what it uses
    is_current_term: bool = True  # no lease but ours can be in force at it, or come to be
    last_seq: int = 0
    used: dict[str, int] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    pending: dict[str, PendingDemand] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    leases: list[Grant] = field(default_factory=list)
    last_lease: Lease | None = None  # the newest that was sent
    is_short: bool = False  # it has less than its groups' shares are: others must give way first
    is_shard_full: bool = False  # more would be here than a shard may have
    revocation_sent: bool = False  # it was sent a lease without having asked, and has not been heard of since
    held_slots: int = 0
    capacity: int = 0  # connections that its process can have, 0 for no limit

    def connection_limit(self, per_shard: int | None) -> int | None:
        """How many connections it may have at most: as the setting says, and as its process can."""
        if not self.capacity:
            return per_shard
        return self.capacity if per_shard is None else min(self.capacity, per_shard)

    @property
    def is_expired(self) -> bool:
        """By the lease that it confirms it has nothing: what it uses it is closing, and others may have the slots."""
        return not self.leases or not self.leases[0].total

    def recount_held(self) -> None:
        """Counts anew what it holds."""
        self.held_slots = max([sum(self.used.values()), *(lease.total for lease in self.leases)])


class LeaseRegistry:
    """All of them. Times are seconds, monotonic. hold_s: how long after an answer a shard may still have connections.

    revision: counts the changes of who is there and of what they use or would use, for whoever keeps what is made of
    it.
    """

    def __init__(self, hold_s: float) -> None:
        self.revision = 0
        self.live: dict[bytes, LeaseHolder] = {}  # by the peer's name
        self._hold_s = hold_s
        self._all: dict[str, LeaseHolder] = {}  # by boot

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[LeaseHolder]:
        return iter(self._all.values())

    @property
    def held_slots(self) -> int:
        """Slots that may be in use, at shards that are there and at those that were."""
        return sum(holder.held_slots for holder in self._all.values())

    @property
    def is_current_term(self) -> bool:
        """Whether no lease of a coordinator before this one is in force anywhere, or can come to be."""
        return all(holder.is_current_term for holder in self._all.values())

    def touch(self) -> None:
        """Who is there, what they use or what they would use is not what it was."""
        self.revision += 1

    def presume(self, address: ShardAddress, until: float) -> None:
        """It held a lease of the coordinator before, and may do so until then."""
        self._all[address.incarnation] = LeaseHolder(b"", address, until, is_live=False, is_current_term=False)

    def add_shard(self, name: bytes, address: ShardAddress, now: float) -> None:
        """A shard has said hello. Whoever was in its place is gone, and so is what it held."""
        place = _find_place(address)
        for other in list(self._all.values()):
            if other.address.incarnation != address.incarnation:
                if _find_place(other.address) == place:
                    self._drop(other)
                elif other.name == name:
                    self.mark_lost(name)
        holder = self._all.get(address.incarnation)
        if holder is None:
            holder = self._all[address.incarnation] = LeaseHolder(name, address, now + self._hold_s)
        holder.name, holder.is_live, holder.is_draining = name, True, False
        self.live[name] = holder
        self.touch()

    def mark_draining(self, name: bytes) -> None:
        """The shard takes no more users."""
        holder = self.live.get(name)
        if holder is not None:
            holder.is_draining = True
            self.touch()

    def drop_shard(self, name: bytes) -> None:
        """The process has ended, for certain."""
        holder = self.live.get(name)
        if holder is not None:
            self._drop(holder)

    def mark_lost(self, name: bytes) -> None:
        """Nothing is heard of the shard: it may go on with what it has, as long as its leases hold."""
        holder = self.live.pop(name, None)
        if holder is not None:
            holder.is_live = False
            holder.demand, holder.pending, holder.is_short = dict(holder.used), {}, False
            self.touch()

    @property
    def absent_shards(self) -> list[ShardAddress]:
        """Who holds slots and is not heard of. Whoever finds that such a process has ended says `confirm_dead`."""
        return [holder.address for holder in self._all.values() if not holder.is_live]

    def confirm_dead(self, incarnation: str) -> None:
        """Nobody listens any more where this process did, which it would as long as it had connections."""
        holder = self._all.get(incarnation)
        if holder is not None and not holder.is_live:
            self._drop(holder)

    def expire(self, now: float) -> None:
        """Forgets leases that have run out. A shard that is there says what it uses anew, as at first."""
        for holder in list(self._all.values()):
            if now >= holder.expires_at:
                self._drop(holder)
                if holder.is_live:
                    self.add_shard(holder.name, holder.address, now)
                    self.live[holder.name].is_draining = holder.is_draining

    def _drop(self, holder: LeaseHolder) -> None:
        self._all.pop(holder.address.incarnation, None)
        if self.live.get(holder.name) is holder:
            del self.live[holder.name]
        self.touch()


def _find_place(address: ShardAddress) -> tuple[int, str, str, int]:
    return address.index, address.machine, address.host, address.port
