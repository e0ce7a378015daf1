"""The allocation of slots: a plan for all shards together, by group, and each shard's part of it.

What it keeps true: a group below its share gets in, and those above theirs give way, no further than needed
(`solowire.algorithms.fair_share`). The plan gives no more than there is for shards that are there, and nobody gives way
at one shard to let another of the group in. It is made anew when something has changed of what it is made of, not
before.

It says what would be fair; what may be granted of that, while others still hold it, is the coordinator's to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from solowire.algorithms.fair_share import Claim, MaxMinFill, share_slots
from solowire.router.leases.lease_holders import LeaseHolder, LeaseRegistry
from solowire.runtime.settings.limits_settings import LimitsSettings

SPLITS_KEPT = 100
"""Of so many groups, beyond twice those that there are, it is remembered how their slots were split."""

_NOBODYS = "\0"  # a group that nobody is in

_Split = tuple[int, dict[str, int], dict[str, int]]


@dataclass(slots=True)
class Allocation:
    """The slots that each group is to have. shares: of each group. unclaimed: what nobody claims."""

    live: list[LeaseHolder]  # that take users
    shares: dict[str, int]
    unclaimed: int
    parts: dict[str, dict[str, int]] = field(default_factory=dict)  # of a group, at each shard, by boot


class Allocator:
    """Divides the slots among groups and shards.

    reserved, capped: groups that have slots reserved, or a limit of their own. own: both.
    """

    def __init__(self, limits: LimitsSettings, holders: LeaseRegistry) -> None:
        self.reserved = {name for name, group in limits.groups.items() if group.reserved}
        self.capped = {name: group.limit for name, group in sorted(limits.groups.items()) if group.limit is not None}
        self.own = self.reserved | self.capped.keys()  # they have slots of their own also while there is room
        self._limits = limits
        self._holders = holders
        # As long as nothing that they are made of has changed (`LeaseRegistry.revision`).
        self._allocation: tuple[int, Allocation] | None = None
        self._full_groups: tuple[int, list[str], bool] | None = None
        self._splits: dict[str, tuple[_Split, dict[str, int]]] = {}  # and what they were made of

    def allocate(self) -> Allocation:
        """The one that holds now."""
        if self._allocation is not None and self._allocation[0] == self._holders.revision:
            return self._allocation[1]
        used, demand = self._totals()
        filling = MaxMinFill(self._capacity(), self._claims(demand, used))
        live = [holder for holder in self._holders.live.values() if holder.has_reported and not holder.is_draining]
        live.sort(key=lambda holder: holder.address.index)
        plan = Allocation(live, filling.compute_shares(), filling.unclaimed)
        for name, limit in self.capped.items():
            # It may use no spare slot, so it has some of its own ahead of need.
            ahead = min(max(0, limit - plan.shares[name]), plan.unclaimed // (len(self.capped) + 1))
            plan.shares[name] += ahead
            plan.unclaimed -= ahead
        self._allocation = self._holders.revision, plan
        if len(self._splits) > 2 * len(plan.shares) + SPLITS_KEPT:
            self._splits.clear()
        return plan

    def per_shard(self, name: str, plan: Allocation) -> dict[str, int]:
        """The group's slots at each shard, by boot. Nobody gives way at one shard to let another of the group in."""
        if name in plan.parts:
            return plan.parts[name]
        share = plan.shares.get(name, 0)
        demand = {h.address.incarnation: n for h in self._holders.live.values() if (n := h.demand.get(name, 0))}
        used = {
            h.address.incarnation: min(n, h.demand.get(name, 0))
            for h in self._holders.live.values()
            if (n := h.used.get(name, 0))
        }
        spread = share - sum(demand.values())
        if spread <= 0:
            before = self._splits.get(name)
            if before is not None and before[0] == (share, demand, used):
                parts = before[1]
            else:
                parts = _split_slots(share, demand, used)
                self._splits[name] = (share, demand, used), parts
        else:
            parts = dict(demand)
            for place, holder in enumerate(plan.live):  # what is reserved, and not in use
                incarnation = holder.address.incarnation
                parts[incarnation] = parts.get(incarnation, 0) + (spread + len(plan.live) - 1 - place) // len(plan.live)
        plan.parts[name] = parts
        return parts

    def lookahead(self, holder: LeaseHolder, plan: Allocation) -> int:
        """Slots for any group, ahead of need: of what nobody claims half, split; of the last few, one each."""
        if holder.is_draining or holder.is_shard_full:
            return 0
        return plan.unclaimed // (2 * len(plan.live)) or int(plan.live.index(holder) < plan.unclaimed)

    def cap_to_shard(self, holder: LeaseHolder, used: Mapping[str, int], most: int) -> None:
        """Where more would be at a shard than it may have, no group wants more of the shard than its fair share."""
        claims = {}
        for name in holder.demand.keys() | self.reserved:
            group = self._limits.get_group(name)
            reserved = -(-group.reserved // max(1, len(self._holders.live)))
            claims[name] = Claim(holder.demand.get(name, 0), group.weight, reserved, held=used.get(name, 0))
        filling = MaxMinFill(most, claims)
        holder.is_shard_full = filling.total_demand > most
        if holder.is_shard_full:
            holder.demand = filling.compute_shares()

    def full_groups(self) -> tuple[list[str], bool]:
        """Groups that would get no slot now, and whether any other would get none either."""
        if self._full_groups is None or self._full_groups[0] != self._holders.revision:
            used, demand = self._totals()
            filling = MaxMinFill(self._capacity(), self._claims(dict.fromkeys(demand, 0) | used, used))
            closed = sorted(n for n in demand.keys() | self._limits.groups.keys() if not filling.can_add_one(n))
            self._full_groups = self._holders.revision, closed, not filling.can_add_one(_NOBODYS)
        return self._full_groups[1:]

    def _claims(self, demand: Mapping[str, int], used: Mapping[str, int]) -> dict[str, Claim]:
        claims = {}
        for name in demand.keys() | self._limits.groups.keys():
            group = self._limits.get_group(name)
            claims[name] = Claim(demand.get(name, 0), group.weight, group.reserved, group.limit, used.get(name, 0))
        return claims

    def _capacity(self) -> int:
        """Slots for shards that are there; where none is, for those that are to come."""
        most = self._limits.max_connections - sum(h.held_slots for h in self._holders if not h.is_live)
        limits = [
            holder.connection_limit(self._limits.max_connections_per_shard) for holder in self._holders.live.values()
        ]
        if not limits or None in limits:
            return most
        return min(most, sum(limit for limit in limits if limit is not None))

    def _totals(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of each group, all shards together: what it uses, and what it would use."""
        used: Counter[str] = Counter()
        demand: Counter[str] = Counter()
        for holder in self._holders.live.values():
            used.update(holder.used)
            demand.update(holder.demand)
        return used, demand


def _split_slots(share: int, demand: dict[str, int], used: dict[str, int]) -> dict[str, int]:
    """`share` slots, which are not more than `demand`, by shard: none gives up one for another."""
    held = sum(used.values())
    if share == held:
        return used
    if share == sum(demand.values()):
        return demand
    if share < held:
        return share_slots(share, {name: Claim(n, held=n) for name, n in used.items()})  # where most are, they go
    more = share_slots(share - held, {name: Claim(n - used.get(name, 0)) for name, n in demand.items()})
    return {name: used.get(name, 0) + n for name, n in more.items()}
