"""What a slot costs a shard: taking one of its lease for a connection and returning it, in nanoseconds of CPU.

    python -m bench.leases [--out FILE]

Prints the median of several rounds for a lease with free slots, for one with slots by group, for a full one (the
refusal alone), and for `Admission` with a limit per address on top.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from solowire.backplane.messages import Lease
from solowire.model.access import Identity
from solowire.workers.capacity.lease import ShardLease
from solowire.workers.capacity.slots import SlotManager

ROUNDS = 15
TARGET_NS = 2_000
SLOTS = 20_000
GROUPS = [f"tenant-{n}" for n in range(20)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.leases", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table there, as Markdown")
    chosen = parser.parse_args()
    own = dict.fromkeys(GROUPS, SLOTS // len(GROUPS))
    slot = _leases(Lease(1, 1, 1e9, {}, SLOTS)), _leases(Lease(1, 1, 1e9, own))
    lines = [
        "## What a slot costs a shard",
        "",
        f"`python -m bench.leases`: nanoseconds of CPU time, the median of {ROUNDS} rounds.",
        "",
        "| what | ns |",
        "| --- | --- |",
        f"| take and return, free slots for all | {slot[0]:.0f} |",
        f"| take and return, slots by group | {slot[1]:.0f} |",
        f"| refused, no slot | {_refused():.0f} |",
        f"| admission and leave, with a limit per address | {_admission():.0f} |",
        "",
        f"Target: {TARGET_NS} ns for taking and returning: {'met' if max(slot) <= TARGET_NS else 'MISSED'}.",
        "",
    ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if chosen.out is not None:
        chosen.out.write_text(text)
    return 0 if max(slot) <= TARGET_NS else 1


def _median(once: Callable[[], float]) -> float:
    return statistics.median(once() for _ in range(ROUNDS))


def _leases(lease: Lease) -> float:
    leases = ShardLease()
    leases.usage_report(0.0)
    leases.apply(lease)
    groups = GROUPS * (SLOTS // len(GROUPS))

    def once() -> float:
        begun = time.process_time_ns()
        for group in groups:
            leases.acquire(group, 1.0)
        for group in groups:
            leases.release(group)
        return (time.process_time_ns() - begun) / len(groups)

    return _median(once)


def _refused() -> float:
    leases = ShardLease()
    leases.usage_report(0.0)
    leases.apply(Lease(1, 1, 1e9, {}))

    def once() -> float:
        begun = time.process_time_ns()
        for _ in range(SLOTS):
            leases.acquire("viewer", 1.0)
        return (time.process_time_ns() - begun) / SLOTS

    return _median(once)


def _admission() -> float:
    admission = SlotManager("role", SLOTS)
    admission.usage_report(0.0)
    admission.apply_lease(Lease(1, 1, 1e9, {}, SLOTS))
    identity = Identity("ann", "viewer", ())

    def once() -> float:
        begun = time.process_time_ns()
        for _ in range(SLOTS):
            admission.acquire(identity, "192.0.2.7", 1.0)
        for _ in range(SLOTS):
            admission.release("ann", "viewer", "192.0.2.7")
        return (time.process_time_ns() - begun) / SLOTS

    return _median(once)


if __name__ == "__main__":
    sys.exit(main())
