"""Who may have how many connections: leases for the shards, doors for the gateways.

What it keeps true, however messages are delayed, lost or overtaken:

* The slots that are *held* are never more than the limit. A shard holds the greatest of the lease that it has
  confirmed, of those sent since, and of what it said it uses; one that is not heard of any more holds that until its
  leases have run out, or until it is certain that its process is gone: it has said goodbye, another has its place
  (index, host and port, which the kernel gives to one process only), or nobody listens there any more.
* A lease that grants less counts from when the shard confirms it; one that grants more is made only of what nobody
  holds.
* A group below its share gets in, and those above theirs give way, no further than needed (`solowire.fairshare`).

While there is room, a shard has free slots for any group, ahead of need: half of what is free, split among the shards,
so that each next piece is smaller, and those it doesn't need go back with its next heartbeat. When there is none, each
group has slots of its own. So leases travel on heartbeats, and cost messages of their own only when a shard has to
refuse somebody who may come in, and then one to each shard that has to give way.

After a restart it knows from `word` who held leases. It grants nothing more until each of them has confirmed a lease of
its own, or none of the old ones can be in force. What a shard says until then is believed, within the limit; later its
reports must fit what it holds: one that doesn't is a lie, and `Lie` is raised.

Longer than 500 lines: who holds what, what it says and what it gets is one account, and no part of it is true without
the others; the arithmetic of shares stands apart, in `solowire.fairshare`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

import msgspec

from solowire.backplane import EMPTYING, Doors, Lease, ShardAddress, Slots
from solowire.fairshare import Claim, Filling, shares

WANT_SECONDS = 10.0
"""Who was refused a slot is waited for so long: it is kept for the group, if others give way for it."""
UNCONFIRMED = 16
"""So many leases may be under way to a shard; until it confirms one, the last is repeated."""
DRIFT = 0.01
MARGIN_SECONDS = 1.0
"""Leases are held for longer than the shard counts, by this: clocks don't run alike."""
FENCES_NOTED = 1_000_000
"""The journal notes a fence so far ahead: it is written once for so many."""
MAX_FENCE = 2**62
FENCED_KEPT = 1000
FULL_ADDRESSES = 1000
WANTED_GROUPS = 1000
ADDRESSES = 500
"""Of what a shard says about more than so many, the rest is not looked at."""
RETRY_SECONDS = 5.0
SPLITS_KEPT = 100
"""Of so many groups, beyond twice those that there are, it is remembered how their slots were split."""


_Split = tuple[int, dict[str, int], dict[str, int]]


class Group(msgspec.Struct, frozen=True):
    """As `settings.Group`."""

    weight: float = 1.0
    reserved: int = 0
    limit: int | None = None


class Limits(msgspec.Struct, frozen=True):
    """connections: of the whole system. per_shard, per_address: None for no limit. lease: seconds."""

    connections: int = 1_000_000
    per_shard: int | None = None
    per_address: int | None = None
    groups: dict[str, Group] = {}
    lease: float = 120.0

    def held_for(self) -> float:
        """How long after an answer a shard may still have connections by it, seconds."""
        return self.lease * (1 + EMPTYING) * (1 + DRIFT) + MARGIN_SECONDS


class Lie(Exception):
    """A shard has said what can't be true of its lease. `str()` says what."""


class Word(msgspec.Struct):
    """What must be known after a restart: a fence above all that were given, who held leases and for how long (s)."""

    fence: int
    held_for: float
    holders: list[ShardAddress]


class _Granted(NamedTuple):
    fence: int
    room: int


class _Want(NamedTuple):
    """A group that was refused at a shard: it would use so many there. until: monotonic."""

    target: int
    until: float


@dataclass(slots=True, eq=False)
class Holder:
    """A process that may use slots. until: nobody uses its leases then. leases: first the one that it confirmed."""

    name: bytes
    address: ShardAddress
    until: float
    live: bool = True
    leaving: bool = False
    known: bool = False  # it has said what it uses
    settled: bool = True  # no lease but ours can be in force at it, or come to be
    asked: int = 0
    used: dict[str, int] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    wants: dict[str, _Want] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    leases: list[_Granted] = field(default_factory=list)
    last: Lease | None = None  # the newest that was sent
    short: bool = False  # it has less than its groups' shares are: others must give way first
    tight: bool = False  # more would be here than a shard may have
    told: bool = False  # it was sent a lease without having asked, and has not been heard of since
    held: int = 0

    @property
    def late(self) -> bool:
        """By the lease that it confirms it has nothing: what it uses it is closing, and others may have the slots."""
        return not self.leases or not self.leases[0].room

    def count(self) -> None:
        """Counts anew what it holds."""
        self.held = max([sum(self.used.values()), *(lease.room for lease in self.leases)])


class _Crowded(NamedTuple):
    """full: addresses with as many connections as they may have. watched, tell_from: as in Lease."""

    full: list[str]
    watched: list[str]
    tell_from: int


@dataclass(slots=True)
class _Plan:
    """Who is to have what, all shards together. shares: of each group. left: what nobody claims."""

    live: list[Holder]  # that take users
    shares: dict[str, int]
    left: int
    parts: dict[str, dict[str, int]] = field(default_factory=dict)  # of a group, at each shard, by boot


class Coordinator:
    """Times are seconds, monotonic, except `unix`. word: of the coordinator before, if there is one."""

    def __init__(self, limits: Limits, now: float = 0.0, unix: float = 0.0, word: bytes | None = None) -> None:
        self.limits = limits
        self.fenced: deque[str] = deque(maxlen=FENCED_KEPT)  # boots that have lied
        self._holders: dict[str, Holder] = {}  # by boot
        self._of: dict[bytes, Holder] = {}  # those that are live, by the peer's name
        self._fence = int(unix * 1000)
        self._noted = Word(0, 0.0, [])
        self._unsettled_noted = 0
        # As long as nothing that they are made of has changed; `_stir` says so.
        self._planned: _Plan | None = None
        self._splits: dict[str, tuple[_Split, dict[str, int]]] = {}  # and what they were made of
        self._crowd: _Crowded | None = None
        self._shut: tuple[list[str], bool] | None = None
        until = now + limits.held_for()
        if word is not None:
            before = msgspec.msgpack.decode(word, type=Word)
            self._fence = max(self._fence, before.fence)
            until = max(until, now + before.held_for)
            for address in before.holders:
                self._holders[address.boot] = Holder(b"", address, until, live=False, settled=False)
        self._first_fence = self._fence + 1
        self._alone_at = until  # by then no lease of a coordinator before this one is in force
        self._reserved = {name for name, group in limits.groups.items() if group.reserved}
        self._limits = {name: group.limit for name, group in sorted(limits.groups.items()) if group.limit is not None}
        self._own = self._reserved | self._limits.keys()  # groups that have slots of their own also while there is room

    # ------------------------------------------------------------------------------------- who holds leases

    @property
    def held(self) -> int:
        """Slots that may be in use, at shards that are there and at those that were."""
        return sum(holder.held for holder in self._holders.values())

    @property
    def free(self) -> int:
        """Slots that may be granted now; below 0, more are held than the limit allows."""
        free = self.limits.connections - self.held
        return free if all(holder.settled for holder in self._holders.values()) else min(0, free)

    def _stir(self) -> None:
        """Who is there, what they use or what they would use is not what it was."""
        self._planned = self._crowd = self._shut = None

    def joined(self, name: bytes, address: ShardAddress, now: float) -> None:
        """A shard has said hello. Whoever was in its place is gone, and so is what it held."""
        place = address.index, address.host, address.port
        for other in list(self._holders.values()):
            if other.address.boot != address.boot:
                if (other.address.index, other.address.host, other.address.port) == place:
                    self._drop(other)
                elif other.name == name:
                    self.lost(name)
        holder = self._holders.get(address.boot)
        if holder is None:
            holder = self._holders[address.boot] = Holder(name, address, now + self.limits.held_for())
        holder.name, holder.live, holder.leaving = name, True, False
        self._of[name] = holder
        self._stir()

    def leaves(self, name: bytes) -> None:
        """The shard takes no more users."""
        holder = self._of.get(name)
        if holder is not None:
            holder.leaving = True
            self._stir()

    def gone(self, name: bytes) -> None:
        """The process has ended, for certain."""
        holder = self._of.get(name)
        if holder is not None:
            self._drop(holder)

    def lost(self, name: bytes) -> None:
        """Nothing is heard of the shard: it may go on with what it has, as long as its leases hold."""
        holder = self._of.pop(name, None)
        if holder is not None:
            holder.live = False
            holder.demand, holder.wants, holder.short = dict(holder.used), {}, False
            self._stir()

    @property
    def absent(self) -> list[ShardAddress]:
        """Who holds slots and is not heard of. Whoever finds that such a process has ended says `ended`."""
        return [holder.address for holder in self._holders.values() if not holder.live]

    def ended(self, boot: str) -> None:
        """Nobody listens any more where this process did, which it would as long as it had connections."""
        holder = self._holders.get(boot)
        if holder is not None and not holder.live:
            self._drop(holder)

    def fence_off(self, name: bytes) -> None:
        """The shard has lied, and is none any more; what it holds stays held."""
        holder = self._of.get(name)
        if holder is not None:
            self.fenced.append(holder.address.boot)
        self.lost(name)

    def _drop(self, holder: Holder) -> None:
        self._holders.pop(holder.address.boot, None)
        if self._of.get(holder.name) is holder:
            del self._of[holder.name]
        self._stir()

    def tick(self, now: float) -> list[tuple[bytes, Lease]]:
        """Forgets leases that have run out; the leases to send, now that there is more."""
        for holder in list(self._holders.values()):
            if now >= holder.until:
                self._drop(holder)
                if holder.live:
                    self.joined(holder.name, holder.address, now)  # what it says next, it says first
                    self._of[holder.name].leaving = holder.leaving
                    self._stir()
        return self._give_the_short()

    def word(self, now: float) -> bytes | None:
        """What is to be noted for a coordinator to come, if that has changed since it was asked last."""
        holders = [h.address for h in self._holders.values() if h.known or not h.live or not h.settled]
        unsettled = [h.until - now for h in self._holders.values() if not h.settled]
        same = holders == self._noted.holders and len(unsettled) == self._unsettled_noted
        if self._fence < self._noted.fence and same:
            return None
        self._unsettled_noted = len(unsettled)
        # What the coordinator before has granted may hold for longer than what this one grants.
        self._noted = Word(self._fence + FENCES_NOTED, max(self.limits.held_for(), *unsettled, 0.0), holders)
        return msgspec.msgpack.encode(self._noted)

    # ------------------------------------------------------------------------------------------ what they say

    def reported(self, name: bytes, slots: Slots, now: float) -> list[tuple[bytes, Lease]]:
        """What a shard says it uses. Returns leases to send: first the answer, then what others are to be told.

        Nothing, if the shard is not known or has said something newer. Raises Lie.
        """
        holder = self._of.get(name)
        if holder is None or slots.asked <= holder.asked:
            return []
        if any(count < 1 for count in slots.used.values()):
            raise Lie("it uses less than nothing")
        before = holder.known, holder.used, holder.demand, holder.addresses
        if holder.known and holder.settled:
            self._check(holder, slots)
        else:
            self._believe(holder, slots, now)
        holder.asked, holder.told = slots.asked, False
        holder.until = max(holder.until, now + self.limits.held_for())
        while len(holder.leases) > 1 and holder.leases[0].fence < slots.fence:
            del holder.leases[0]
        self._note_wants(holder, slots, now)
        holder.used = slots.used
        holder.addresses = dict(islice(slots.addresses.items(), ADDRESSES))
        holder.count()
        if (holder.known, holder.used, holder.demand, holder.addresses) != before:
            self._stir()
        plan = self._plan()
        answer = self._lease(holder, plan, slots.asked, exact=any(other.short for other in self._of.values()))
        others = self._recall(holder, plan) if holder.short else []
        return [(name, answer), *others, *self._give_the_short(plan, but=holder)]

    def _check(self, holder: Holder, slots: Slots) -> None:
        if slots.fence and slots.fence not in {lease.fence for lease in holder.leases}:
            raise Lie(f"it confirms the lease {slots.fence}, which it was not given")
        used = sum(slots.used.values())
        if used > holder.held:
            raise Lie(f"it uses {used} slots and holds {holder.held}")

    def _believe(self, holder: Holder, slots: Slots, now: float) -> None:
        """What is said by a process that may have leases of a coordinator before this one, also such as come only now.

        Where it has one of this one that is not known any more, that has run out.
        """
        used, limit = sum(slots.used.values()), self.limits.connections
        if used > limit:
            raise Lie(f"it uses {used} slots, where there are {limit}")
        if not 0 <= slots.room <= limit or not 0 <= slots.fence <= MAX_FENCE:
            raise Lie(f"it has the lease {slots.fence} of {slots.room} slots, where there are {limit}")
        # Of a process that is not known from before, none at all is as good: it has just begun.
        foreign = slots.fence < self._first_fence and now < self._alone_at and (slots.fence > 0 or not holder.settled)
        ours = [lease for lease in holder.leases if lease.fence >= self._first_fence]
        if foreign or all(lease.fence != slots.fence for lease in ours):
            ours.insert(0, _Granted(slots.fence, slots.room if foreign else 0))
        holder.leases = ours
        holder.settled = not foreign
        holder.known = True
        self._fence = max(self._fence, slots.fence)

    def _note_wants(self, holder: Holder, slots: Slots, now: float) -> None:
        wants = {}
        for group, want in holder.wants.items():
            used = slots.used.get(group, 0)
            # Who has left since has made room for one of those who were refused.
            target = want.target - max(0, holder.used.get(group, 0) - used)
            if want.until > now and target > used:
                wants[group] = _Want(target, want.until)
        for group, refused in islice(slots.wanted.items(), WANTED_GROUPS):
            before = wants[group].target if group in wants else 0
            target = slots.used.get(group, 0) + min(max(1, refused), self.limits.connections)
            wants[group] = _Want(max(before, target), now + WANT_SECONDS)
        holder.wants = wants
        holder.demand = slots.used | {group: want.target for group, want in wants.items()}
        if self.limits.per_shard is not None:
            self._share_the_shard(holder, slots.used, self.limits.per_shard)

    def _share_the_shard(self, holder: Holder, used: Mapping[str, int], most: int) -> None:
        """Where more would be at a shard than it may have, no group wants more of the shard than its fair share."""
        claims = {}
        for name in holder.demand.keys() | self._reserved:
            group = self.limits.groups.get(name, _ANY)
            reserved = -(-group.reserved // max(1, len(self._of)))
            claims[name] = Claim(holder.demand.get(name, 0), group.weight, reserved, held=used.get(name, 0))
        filling = Filling(most, claims)
        holder.tight = filling.wanted > most
        if holder.tight:
            holder.demand = filling.shares()

    # ------------------------------------------------------------------------------------------- who gets what

    def _claims(self, demand: Mapping[str, int], used: Mapping[str, int]) -> dict[str, Claim]:
        claims = {}
        for name in demand.keys() | self.limits.groups.keys():
            group = self.limits.groups.get(name, _ANY)
            claims[name] = Claim(demand.get(name, 0), group.weight, group.reserved, group.limit, used.get(name, 0))
        return claims

    def _capacity(self) -> int:
        """Slots for shards that are there."""
        most = self.limits.connections - sum(h.held for h in self._holders.values() if not h.live)
        return most if self.limits.per_shard is None else min(most, len(self._of) * self.limits.per_shard)

    def _totals(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of each group, all shards together: what it uses, and what it would use."""
        used: Counter[str] = Counter()
        demand: Counter[str] = Counter()
        for holder in self._of.values():
            used.update(holder.used)
            demand.update(holder.demand)
        return used, demand

    def _plan(self) -> _Plan:
        if self._planned is not None:
            return self._planned
        used, demand = self._totals()
        filling = Filling(self._capacity(), self._claims(demand, used))
        live = [holder for holder in self._of.values() if holder.known and not holder.leaving]
        live.sort(key=lambda holder: holder.address.index)
        plan = _Plan(live, filling.shares(), filling.left)
        for name, limit in self._limits.items():
            # It may use no spare slot, so it has some of its own ahead of need.
            ahead = min(max(0, limit - plan.shares[name]), plan.left // (len(self._limits) + 1))
            plan.shares[name] += ahead
            plan.left -= ahead
        self._planned = plan
        if len(self._splits) > 2 * len(plan.shares) + SPLITS_KEPT:
            self._splits.clear()
        return plan

    def _split(self, name: str, plan: _Plan) -> dict[str, int]:
        """The group's slots at each shard, by boot. Nobody gives way at one shard to let another of the group in."""
        if name in plan.parts:
            return plan.parts[name]
        share = plan.shares.get(name, 0)
        demand = {h.address.boot: n for h in self._of.values() if (n := h.demand.get(name, 0))}
        used = {h.address.boot: min(n, h.demand.get(name, 0)) for h in self._of.values() if (n := h.used.get(name, 0))}
        spread = share - sum(demand.values())
        if spread <= 0:
            before = self._splits.get(name)
            if before is not None and before[0] == (share, demand, used):
                parts = before[1]
            else:
                parts = _split(share, demand, used)
                self._splits[name] = (share, demand, used), parts
        else:
            parts = dict(demand)
            for place, holder in enumerate(plan.live):  # what is reserved, and not in use
                boot = holder.address.boot
                parts[boot] = parts.get(boot, 0) + (spread + len(plan.live) - 1 - place) // len(plan.live)
        plan.parts[name] = parts
        return parts

    def _lease(self, holder: Holder, plan: _Plan, answers: int, *, exact: bool = False) -> Lease:
        """The lease that the shard gets by the plan, as far as nobody else holds it.

        exact: with no more to spare than the plan has for it; else what it has is left alone as long as it will do.
        """
        used, demand = holder.used, holder.demand
        slots: dict[str, int] = {}
        needed = wanted = taken = 0  # of these the latter two by groups that have no slots of their own
        for name in demand.keys() | self._own:
            if plan.left and not holder.tight and name not in self._own:
                # There is room: slots for whoever comes, so that the lease needn't change with each who does.
                wanted += demand[name]
                taken += used.get(name, 0)
                continue
            part = self._split(name, plan).get(holder.address.boot, 0)
            needed += part if name in self._reserved else min(part, demand.get(name, 0))
            if part:
                slots[name] = part
        needed += wanted
        capped, crowded, last = list(self._limits), self._crowded(), holder.last
        chunk = self._chunk(holder, plan)
        spare = wanted + chunk
        if last is not None and last.slots == slots and not exact and chunk <= 2 * (last.spare - wanted) <= 4 * chunk:
            spare = last.spare
        allowed = max(0, holder.held + self.free)
        if self.limits.per_shard is not None:
            allowed = min(allowed, max(self.limits.per_shard, sum(used.values())))
        # What is ahead of need goes first, then what is wanted, and what is reserved last; nothing that is in use.
        own = [name for name in slots if name not in self._reserved]
        floors = [
            (None, wanted),
            *((name, demand.get(name, 0)) for name in own),
            (None, taken),
            *((name, used.get(name, 0)) for name in own),
            *((name, used.get(name, 0)) for name in slots if name in self._reserved),
        ]
        if holder.late:
            floors += [(None, 0), *((name, 0) for name in slots)]
        spare = _fit(slots, spare, allowed, floors)
        room = sum(slots.values()) + spare
        holder.short = room < needed
        if last is not None:
            same = (last.slots, last.spare, last.capped) == (slots, spare, capped)
            if same or len(holder.leases) > UNCONFIRMED:
                return msgspec.structs.replace(last, answers=answers, **crowded._asdict())
        self._fence += 1
        lease = holder.last = Lease(self._fence, answers, self.limits.lease, slots, spare, capped, **crowded._asdict())
        holder.leases.append(_Granted(lease.fence, room))
        holder.held = max(holder.held, room)
        return lease

    def _chunk(self, holder: Holder, plan: _Plan) -> int:
        """Slots for any group, ahead of need: of what nobody claims half, split; of the last few, one each."""
        if holder.leaving or holder.tight:
            return 0
        return plan.left // (2 * len(plan.live)) or int(plan.live.index(holder) < plan.left)

    def _recall(self, short: Holder, plan: _Plan) -> list[tuple[bytes, Lease]]:
        """Leases for those who hold more than the plan gives them, since `short` has less."""
        others = [holder for holder in self._of.values() if holder is not short and holder.known]
        return self._changed(others, plan)

    def _give_the_short(self, plan: _Plan | None = None, but: Holder | None = None) -> list[tuple[bytes, Lease]]:
        """Leases for those who wait for others to give way, now that some have."""
        waiting = [holder for holder in self._of.values() if holder.short and holder is not but]
        return self._changed(waiting, plan or self._plan()) if waiting and self.free > 0 else []

    def _changed(self, holders: Iterable[Holder], plan: _Plan) -> list[tuple[bytes, Lease]]:
        """The leases of these, where they are others than before; one to each until it is heard of again."""
        found = []
        for holder in holders:
            before = holder.last
            if not holder.told:
                lease = self._lease(holder, plan, 0, exact=True)
                if before is None or lease.fence != before.fence:
                    holder.told = True
                    found.append((holder.name, lease))
        return found

    def _crowded(self) -> _Crowded:
        """An address at its limit has at some shard its part of that, or more: then all say what they have."""
        if self.limits.per_address is None:
            return _NONE_CROWDED
        if self._crowd is not None:
            return self._crowd
        tell_from = -(-self.limits.per_address // max(1, len(self._of)))
        counts: Counter[str] = Counter()
        many: set[str] = set()
        for holder in self._holders.values():
            counts.update(holder.addresses)
            many.update(address for address, number in holder.addresses.items() if number >= tell_from)
        full = sorted(address for address in many if counts[address] >= self.limits.per_address)
        watched = sorted(nlargest(ADDRESSES, many, key=counts.__getitem__))
        self._crowd = _Crowded(full[:FULL_ADDRESSES], watched, tell_from)
        return self._crowd

    def doors(self, gateways: int) -> Doors:
        """Which groups would get no slot now."""
        if self._shut is None:
            used, demand = self._totals()
            filling = Filling(self._capacity(), self._claims(dict.fromkeys(demand, 0) | used, used))
            closed = sorted(n for n in demand.keys() | self.limits.groups.keys() if not filling.one_more(n))
            self._shut = closed, not filling.one_more(_NOBODYS)
        closed, others_closed = self._shut
        return Doors(closed, others_closed, RETRY_SECONDS, self._crowded().full, max(1, gateways))


_ANY = Group()
_NONE_CROWDED = _Crowded([], [], 0)
_NOBODYS = "\0"  # a group that nobody is in


def _split(share: int, demand: dict[str, int], used: dict[str, int]) -> dict[str, int]:
    """`share` slots, which are not more than `demand`, by shard: none gives up one for another."""
    held = sum(used.values())
    if share == held:
        return used
    if share == sum(demand.values()):
        return demand
    if share < held:
        return shares(share, {boot: Claim(n, held=n) for boot, n in used.items()})  # where most are, they go
    more = shares(share - held, {boot: Claim(n - used.get(boot, 0)) for boot, n in demand.items()})
    return {boot: used.get(boot, 0) + n for boot, n in more.items()}


def _fit(slots: dict[str, int], spare: int, allowed: int, floors: Iterable[tuple[str | None, int]]) -> int:
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
