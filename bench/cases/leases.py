"""What a slot costs a shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.measure import Round, make_row
from bench.registry import Length, benchmark
from bench.report import Case
from solowire.backplane.messages import Lease
from solowire.model.access import Identity
from solowire.workers.capacity.lease import ShardLease
from solowire.workers.capacity.slots import SlotManager

ROUNDS = 15
TARGET_NS = 2_000
SLOTS = 20_000
GROUPS = [f"tenant-{n}" for n in range(20)]
IDENTITY = Identity("ann", "viewer", ())


@benchmark(in_process=True)
def leases(case: Case, length: Length) -> None:
    """What a slot costs a shard: taking one of its lease for a connection and returning it.

    In this process; nanoseconds of CPU time for each, the median of {ROUNDS} rounds of {SLOTS:,}.
    """
    by_group = GROUPS * (SLOTS // len(GROUPS))
    free = _make_lease(Lease(1, 1, 1e9, {}, SLOTS))
    grouped = _make_lease(Lease(1, 1, 1e9, dict.fromkeys(GROUPS, SLOTS // len(GROUPS))))
    full = _make_lease(Lease(1, 1, 1e9, {}))
    slots = SlotManager("role", SLOTS)
    slots.usage_report(0.0)
    slots.apply_lease(Lease(1, 1, 1e9, {}, SLOTS))

    def take(lease: ShardLease) -> Callable[[str], object]:
        return lambda group: lease.acquire(group, 1.0)

    def enter(_: str) -> None:
        slots.acquire(IDENTITY, "192.0.2.7", 1.0)

    def leave(_: str) -> None:
        slots.release("ann", "viewer", "192.0.2.7")

    for name, verbs in (
        ("take and return, free slots for all", (take(free), free.release)),
        ("take and return, slots by group", (take(grouped), grouped.release)),
        ("refused, no slot", (take(full),)),
        ("admission and leave, with a limit per address", (enter, leave)),
    ):
        case.rows.append(make_row(name, [_round(verbs, by_group) for _ in range(ROUNDS)]))
    for row in case.rows[:2]:
        case.hold(row, "ns", at_most=TARGET_NS)


def _make_lease(granted: Lease) -> ShardLease:
    lease = ShardLease()
    lease.usage_report(0.0)
    lease.apply(granted)
    return lease


def _round(verbs: Sequence[Callable[[str], object]], groups: Sequence[str]) -> Round:
    begun = time.process_time_ns()
    for verb in verbs:
        for group in groups:
            verb(group)
    return Round({"ns": (time.process_time_ns() - begun) / len(groups)})
