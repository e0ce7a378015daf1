"""The coordinator of connection limits: leases for the shards, admission states for the gateways.

What it keeps true, however messages are delayed, lost or overtaken:

* The slots that are *held* (`solowire.router.leases.lease_holders` says by whom) are never more than the limit.
* A lease that grants less counts from when the shard confirms it; one that grants more is made only of what nobody
  holds.
* Each shard gets what `solowire.router.leases.allocation` plans for it, as far as nobody else holds it.

While there is room, a shard has free slots for any group, ahead of need: half of what is free, split among the shards,
so that each next piece is smaller, and those it doesn't need go back with its next heartbeat. When there is none, each
group has slots of its own. So leases travel on heartbeats, and cost messages of their own only when a shard has to
refuse somebody who may come in, and then one to each shard that has to give way.

After a restart it knows from `raw` who held leases. It grants nothing more until each of them has confirmed a lease of
its own, or none of the old ones can be in force. What a shard says until then is believed, within the limit; later its
reports must fit what it holds: one that doesn't is a lie, and `LeaseViolation` is raised.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

import msgspec
import structlog

from solowire.backplane.messages import AdmissionState, Lease, LeaseUsage, ShardAddress
from solowire.router.leases.allocation import Allocation, Allocator
from solowire.router.leases.hold_time import compute_hold_seconds
from solowire.router.leases.lease_holders import Grant, LeaseHolder, LeaseRegistry, PendingDemand
from solowire.runtime.settings.limits_settings import LimitsSettings

logger = structlog.get_logger("solowire.router")

WANT_SECONDS = 10.0
"""Who was refused a slot is waited for so long: it is kept for the group, if others give way for it."""
UNCONFIRMED = 16
"""So many leases may be under way to a shard; until it confirms one, the last is repeated."""
FENCES_NOTED = 1_000_000
"""The journal notes a fence so far ahead: it is written once for so many."""
MAX_FENCE = 2**62
FENCED_KEPT = 1000
FULL_ADDRESSES = 1000
WANTED_GROUPS = 1000
ADDRESSES = 500
"""Of what a shard says about more than so many, the rest is not looked at."""
RETRY_SECONDS = 5.0


class LeaseViolation(Exception):
    """A shard has said what can't be true of its lease. `str()` says what."""


class CoordinatorSnapshot(msgspec.Struct):
    """What must be known after a restart: a fence above all that were given, who held leases and for how long (s)."""

    fence: int
    held_for: float
    holders: list[ShardAddress]


def _decode_snapshot(raw: bytes | None) -> CoordinatorSnapshot | None:
    try:
        return msgspec.msgpack.decode(raw, type=CoordinatorSnapshot) if raw is not None else None
    except Exception as error:  # to be without it may cost the limit for one lease's time, and to stop would cost all
        logger.error(
            "metadata_unreadable", key="leases", reason=str(error), hint="the shards are asked which leases they hold"
        )
        return None


class AddressPressure(NamedTuple):
    """Addresses that are at, or near, their limit of connections.

    full_addresses: with as many connections as they may have. tracked_addresses, report_threshold: as in Lease.
    """

    full_addresses: list[str]
    tracked_addresses: list[str]
    report_threshold: int


class GroupSlots(NamedTuple):
    """The slots of one group. share: what it is to have by the present plan. limit: None if it has none of its own."""

    used: int
    share: int
    limit: int | None


class Coordinator:
    """Grants leases to shards.

    Times are seconds, monotonic, except `unix`. snapshot: of the coordinator before, if there is one.
    """

    def __init__(
        self, limits: LimitsSettings, now: float = 0.0, unix: float = 0.0, snapshot: bytes | None = None
    ) -> None:
        self.limits = limits
        self.fenced: deque[str] = deque(maxlen=FENCED_KEPT)  # boots that have lied
        self.registry = LeaseRegistry(compute_hold_seconds(limits.lease_s))
        self._allocator = Allocator(limits, self.registry)
        self._fence = int(unix * 1000)
        self._last_snapshot = CoordinatorSnapshot(0, 0.0, [])
        self._unsettled_noted = 0
        self._cached_pressure: tuple[int, AddressPressure] | None = (
            None  # as long as nothing has changed of what it is made of
        )
        until = now + compute_hold_seconds(limits.lease_s)
        before = _decode_snapshot(snapshot)
        if before is not None:
            self._fence = max(self._fence, before.fence)
            until = max(until, now + before.held_for)
            for address in before.holders:
                self.registry.presume(address, until)
        self._first_fence = self._fence + 1
        self._alone_at = until  # by then no lease of a coordinator before this one is in force

    # ------------------------------------------------------------------------------------- who holds leases

    def change_limits(self, limits: LimitsSettings) -> None:
        """From now on these are the limits: leases follow with the next reports of the shards."""
        self.limits = limits
        self._allocator = Allocator(limits, self.registry)
        self.registry.touch()

    @property
    def free_slots(self) -> int:
        """Slots that may be granted now; below 0, more are held than the limit allows."""
        free = self.limits.max_connections - self.registry.held_slots
        return free if self.registry.is_current_term else min(0, free)

    def list_groups(self) -> dict[str, GroupSlots]:
        """The slots of each group that has a connection, wants one, or of which the settings say something."""
        used: Counter[str] = Counter()
        for holder in self.registry.live.values():
            used.update(holder.used)
        shares = self._allocator.allocate().shares
        return {
            name: GroupSlots(used[name], shares.get(name, 0), self.limits.get_group(name).limit)
            for name in used.keys() | shares.keys()
        }

    def fence_off(self, name: bytes) -> None:
        """The shard has lied, and is none any more; what it holds stays held."""
        holder = self.registry.live.get(name)
        if holder is not None:
            self.fenced.append(holder.address.incarnation)
        self.registry.mark_lost(name)

    def readmit(self, name: bytes) -> list[tuple[bytes, Lease]]:
        """The lease of a shard that leaves no more: with slots ahead of need, since gateways send it users at once.

        None for one that has not said yet what it uses: its report is answered with a lease.
        """
        holder = self.registry.live.get(name)
        return (
            self._make_changed_leases([holder], self._allocator.allocate())
            if holder is not None and holder.has_reported
            else []
        )

    def tick(self, now: float) -> list[tuple[bytes, Lease]]:
        """Forgets leases that have run out; the leases to send, now that there is more."""
        self.registry.expire(now)
        return self._grant_waiting()

    def snapshot(self, now: float) -> bytes | None:
        """What is to be noted for a coordinator to come, if that has changed since it was asked last."""
        holders = [h.address for h in self.registry if h.has_reported or not h.is_live or not h.is_current_term]
        unsettled = [h.expires_at - now for h in self.registry if not h.is_current_term]
        same = holders == self._last_snapshot.holders and len(unsettled) == self._unsettled_noted
        if self._fence < self._last_snapshot.fence and same:
            return None
        self._unsettled_noted = len(unsettled)
        # What the coordinator before has granted may hold for longer than what this one grants.
        self._last_snapshot = CoordinatorSnapshot(
            self._fence + FENCES_NOTED, max(compute_hold_seconds(self.limits.lease_s), *unsettled, 0.0), holders
        )
        return msgspec.msgpack.encode(self._last_snapshot)

    # ------------------------------------------------------------------------------------------ what they say

    def on_usage_report(self, name: bytes, slots: LeaseUsage, now: float) -> list[tuple[bytes, Lease]]:
        """What a shard says it uses. Returns leases to send: first the answer, then what others are to be told.

        Nothing, if the shard is not known or has said something newer. Raises LeaseViolation.
        """
        holder = self.registry.live.get(name)
        if holder is None or slots.seq <= holder.last_seq:
            return []
        if any(count < 1 for count in slots.used.values()):
            raise LeaseViolation("it uses less than nothing")
        before = holder.has_reported, holder.used, holder.demand, holder.addresses
        if holder.has_reported and holder.is_current_term:
            self._verify_report(holder, slots)
        else:
            self._adopt_report(holder, slots, now)
        holder.last_seq, holder.revocation_sent = slots.seq, False
        holder.expires_at = max(holder.expires_at, now + compute_hold_seconds(self.limits.lease_s))
        while len(holder.leases) > 1 and holder.leases[0].fence < slots.fence:
            del holder.leases[0]
        self._update_demand(holder, slots, now)
        holder.used = slots.used
        holder.addresses = dict(islice(slots.addresses.items(), ADDRESSES))
        holder.recount_held()
        if (holder.has_reported, holder.used, holder.demand, holder.addresses) != before:
            self.registry.touch()
        plan = self._allocator.allocate()
        answer = self._make_lease(
            holder, plan, slots.seq, exact=any(other.is_short for other in self.registry.live.values())
        )
        others = self._revoke_excess(holder, plan) if holder.is_short else []
        return [(name, answer), *others, *self._grant_waiting(plan, but=holder)]

    def _verify_report(self, holder: LeaseHolder, slots: LeaseUsage) -> None:
        if slots.fence and slots.fence not in {lease.fence for lease in holder.leases}:
            raise LeaseViolation(f"it confirms the lease {slots.fence}, which it was not given")
        used = sum(slots.used.values())
        if used > holder.held_slots:
            raise LeaseViolation(f"it uses {used} slots and holds {holder.held_slots}")

    def _adopt_report(self, holder: LeaseHolder, slots: LeaseUsage, now: float) -> None:
        """What is said by a process that may have leases of a coordinator before this one, also such as come only now.

        Where it has one of this one that is not known any more, that has run out.
        """
        used, limit = sum(slots.used.values()), self.limits.max_connections
        if used > limit:
            raise LeaseViolation(f"it uses {used} slots, where there are {limit}")
        if not 0 <= slots.total <= limit or not 0 <= slots.fence <= MAX_FENCE:
            raise LeaseViolation(f"it has the lease {slots.fence} of {slots.total} slots, where there are {limit}")
        # Of a process that is not known from before, none at all is as good: it has just begun.
        foreign = (
            slots.fence < self._first_fence and now < self._alone_at and (slots.fence > 0 or not holder.is_current_term)
        )
        ours = [lease for lease in holder.leases if lease.fence >= self._first_fence]
        if foreign or all(lease.fence != slots.fence for lease in ours):
            ours.insert(0, Grant(slots.fence, slots.total if foreign else 0))
        holder.leases = ours
        holder.is_current_term = not foreign
        holder.has_reported = True
        self._fence = max(self._fence, slots.fence)

    def _update_demand(self, holder: LeaseHolder, slots: LeaseUsage, now: float) -> None:
        wants = {}
        for group, want in holder.pending.items():
            used = slots.used.get(group, 0)
            # Who has left since has made room for one of those who were refused.
            target = want.target - max(0, holder.used.get(group, 0) - used)
            if want.expires_at > now and target > used:
                wants[group] = PendingDemand(target, want.expires_at)
        for group, refused in islice(slots.wanted.items(), WANTED_GROUPS):
            before = wants[group].target if group in wants else 0
            target = slots.used.get(group, 0) + min(max(1, refused), self.limits.max_connections)
            wants[group] = PendingDemand(max(before, target), now + WANT_SECONDS)
        holder.pending = wants
        holder.demand = slots.used | {group: want.target for group, want in wants.items()}
        holder.capacity = slots.capacity
        if (limit := holder.connection_limit(self.limits.max_connections_per_shard)) is not None:
            self._allocator.cap_to_shard(holder, slots.used, limit)

    def _make_lease(self, holder: LeaseHolder, plan: Allocation, answers: int, *, exact: bool = False) -> Lease:
        """The lease that the shard gets by the plan, as far as nobody else holds it.

        exact: with no more to spare than the plan has for it; else what it has is left alone as long as it will do.
        """
        used, demand = holder.used, holder.demand
        slots: dict[str, int] = {}
        needed = wanted = taken = 0  # of these the latter two by groups that have no slots of their own
        for name in demand.keys() | self._allocator.own:
            if plan.unclaimed and not holder.is_shard_full and name not in self._allocator.own:
                # There is room: slots for whoever comes, so that the lease needn't change with each who does.
                wanted += demand[name]
                taken += used.get(name, 0)
                continue
            part = self._allocator.per_shard(name, plan).get(holder.address.incarnation, 0)
            needed += part if name in self._allocator.reserved else min(part, demand.get(name, 0))
            if part:
                slots[name] = part
        needed += wanted
        capped, crowded, last = list(self._allocator.capped), self._address_pressure(), holder.last_lease
        chunk = self._allocator.lookahead(holder, plan)
        spare = wanted + chunk
        if (
            last is not None
            and last.slots == slots
            and not exact
            and chunk <= 2 * (last.shared_slots - wanted) <= 4 * chunk
        ):
            spare = last.shared_slots
        allowed = max(0, holder.held_slots + self.free_slots)
        if (limit := holder.connection_limit(self.limits.max_connections_per_shard)) is not None:
            allowed = min(allowed, max(limit, sum(used.values())))
        # What is ahead of need goes first, then what is wanted, and what is reserved last; nothing that is in use.
        own = [name for name in slots if name not in self._allocator.reserved]
        floors = [
            (None, wanted),
            *((name, demand.get(name, 0)) for name in own),
            (None, taken),
            *((name, used.get(name, 0)) for name in own),
            *((name, used.get(name, 0)) for name in slots if name in self._allocator.reserved),
        ]
        if holder.is_expired:
            floors += [(None, 0), *((name, 0) for name in slots)]
        spare = _trim_to(slots, spare, allowed, floors)
        room = sum(slots.values()) + spare
        holder.is_short = room < needed
        if last is not None:
            same = (last.slots, last.shared_slots, last.groups_without_shared) == (slots, spare, capped)
            if same or len(holder.leases) > UNCONFIRMED:
                return msgspec.structs.replace(last, in_reply_to=answers, **crowded._asdict())
        self._fence += 1
        lease = holder.last_lease = Lease(
            self._fence, answers, self.limits.lease_s, slots, spare, capped, **crowded._asdict()
        )
        holder.leases.append(Grant(lease.fence, room))
        holder.held_slots = max(holder.held_slots, room)
        return lease

    def _revoke_excess(self, short: LeaseHolder, plan: Allocation) -> list[tuple[bytes, Lease]]:
        """Leases for those who hold more than the plan gives them, since `short` has less."""
        others = [holder for holder in self.registry.live.values() if holder is not short and holder.has_reported]
        return self._make_changed_leases(others, plan)

    def _grant_waiting(
        self, plan: Allocation | None = None, but: LeaseHolder | None = None
    ) -> list[tuple[bytes, Lease]]:
        """Leases for those who wait for others to give way, now that some have."""
        short = [holder for holder in self.registry.live.values() if holder.is_short and holder is not but]
        return (
            self._make_changed_leases(short, plan or self._allocator.allocate())
            if short and self.free_slots > 0
            else []
        )

    def _make_changed_leases(self, holders: Iterable[LeaseHolder], plan: Allocation) -> list[tuple[bytes, Lease]]:
        """The leases of these, where they are others than before; one to each until it is heard of again."""
        found = []
        for holder in holders:
            before = holder.last_lease
            if not holder.revocation_sent:
                lease = self._make_lease(holder, plan, 0, exact=True)
                if before is None or lease.fence != before.fence:
                    holder.revocation_sent = True
                    found.append((holder.name, lease))
        return found

    def _address_pressure(self) -> AddressPressure:
        """An address at its limit has at some shard its part of that, or more: then all say what they have."""
        if self.limits.max_connections_per_address is None:
            return _NO_PRESSURE
        if self._cached_pressure is not None and self._cached_pressure[0] == self.registry.revision:
            return self._cached_pressure[1]
        tell_from = -(-self.limits.max_connections_per_address // max(1, len(self.registry.live)))
        counts: Counter[str] = Counter()
        many: set[str] = set()
        for holder in self.registry:
            counts.update(holder.addresses)
            many.update(address for address, number in holder.addresses.items() if number >= tell_from)
        full = sorted(address for address in many if counts[address] >= self.limits.max_connections_per_address)
        watched = sorted(nlargest(ADDRESSES, many, key=counts.__getitem__))
        crowded = AddressPressure(full[:FULL_ADDRESSES], watched, tell_from)
        self._cached_pressure = self.registry.revision, crowded
        return crowded

    def admission_state(self, gateways: int) -> AdmissionState:
        """Which groups would get no slot now."""
        closed, others_closed = self._allocator.full_groups()
        return AdmissionState(
            closed, others_closed, RETRY_SECONDS, self._address_pressure().full_addresses, max(1, gateways)
        )


_NO_PRESSURE = AddressPressure([], [], 0)


def _trim_to(slots: dict[str, int], spare: int, allowed: int, floors: Iterable[tuple[str | None, int]]) -> int:
    """Cuts `slots` and `spare` (None), which it returns, down to these floors in turn, until all are `allowed`."""
    excess = sum(slots.values()) + spare - allowed
    for name, floor in floors:
        cut = max(0, min(excess, (spare if name is None else slots[name]) - floor))
        excess -= cut
        if name is None:
            spare -= cut
        else:
            slots[name] -= cut
    return spare
