"""What a connection costs: to open it, many at once; and to hold it while nothing happens."""

from __future__ import annotations

import contextlib
import time

from bench.load import Http
from bench.machine import BenchError, LeftOut, merging, scans
from bench.measure import Length, Round, Spent, row
from bench.receiver import Opened, Receiver, histogram, percentiles
from bench.report import Case
from bench.solowire_system import Solowire

STORM, IDLE = 2000, 10_000
AT_ONCE = 128
IDLE_S = 27.0
SETTLE_S = 3.0
MERGE_TIMEOUT_S = 120.0


def storm(length: Length) -> Case:
    """Many users come at once: connects per second, and CPU for each."""
    count = STORM // 4 if length.quick else STORM
    case = Case(
        "storm",
        f"{count:,} users come at once: each asks `POST /v1/connect` for a ticket, opens its WebSocket and says hello; "
        f"{AT_ONCE} handshakes are under way at a time. Tickets are fetched first, so that the two can be told apart. "
        "Then all are cut off, and come again.",
    )
    with contextlib.ExitStack() as stack:
        system = stack.enter_context(Solowire())
        receiver = stack.enter_context(Receiver(system.style))
        wires = [stack.enter_context(contextlib.closing(Http(system.port))) for _ in range(8)]

        def once() -> Round:
            receiver.reset()
            asking, opening, fetched_s, faults = Spent(system, receiver), None, 0.0, []
            tickets = system.tickets([f"u{n}" for n in range(count)], wires)
            asking.stop()
            fetched_s = asking.seconds
            opening = Spent(system, receiver)
            opened = receiver.open([system.plan_of(ticket) for ticket in tickets], AT_ONCE)
            opening.stop()
            faults = opening.faults() + receiver.counts().faults
            receiver.close_all()
            time.sleep(SETTLE_S / 3)
            values = {
                "tickets/s": count / fetched_s,
                "connects/s": count / opened.seconds,
                "CPU per connect": (asking.total + opening.total) / count * 1e6,
                "of it for the ticket, µs": asking.total / count * 1e6,
                **percentiles(histogram(opened.latency_us)),
                **opening.shares(),
            }
            return Round(values, faults)

        once()
        rounds = [once() for _ in range(length.rounds)]
    columns = ["tickets/s", "connects/s", "CPU per connect", "of it for the ticket, µs", "p50", "p99", "max"]
    case.rows.append(row(f"{count:,} users", rounds, [*columns, "server CPU", "shard CPU", "load core"]))
    return case


def idle(length: Length) -> Case:
    """Ten thousand idle connections: memory and CPU, with and without same-page merging."""
    count, seconds = (2000, 5.0) if length.quick else (IDLE, IDLE_S)
    case = Case(
        "idle",
        f"{count:,} connections of one feed to one shard, to which nothing happens but heartbeats (25 s). Memory is "
        "what all processes of the server grew by, from smaps_rollup; what the kernel holds for the sockets is not in "
        "it. CPU is that of all processes over a heartbeat's time, in percent of a core. With same-page merging the "
        "server was started with `PR_SET_MEMORY_MERGE` (as systemd's `MemoryKSM=` does), the host's merging was on "
        "with `use_zero_pages`, and the memory was read when it had been through three times.",
    )
    columns = ["PSS per connection", "RSS per connection", "PSS before, MB", "PSS, MB", "CPU while idle, %"]
    for name, merge in (("as it is", False), ("with same-page merging", True)):
        try:
            with merging() if merge else contextlib.nullcontext():
                found = _idle(count, seconds, merge=merge)
        except LeftOut as left_out:
            case.remarks.append(f"{name}: left out: {left_out}.")
            continue
        case.rows.append(row(name, [found], columns))
    if not length.quick:
        case.hold(case.rows[0], "CPU while idle, %", at_most=0.5)
        if len(case.rows) > 1:
            case.hold(case.rows[1], "PSS per connection", at_most=30.0)
    return case


def _idle(count: int, seconds: float, *, merge: bool) -> Round:
    with Solowire(merge=merge) as system, Receiver(system.style) as receiver:
        system.connect(receiver, 10)  # what the first connection brings is not theirs
        time.sleep(SETTLE_S)
        before = system.memory()
        opened: list[Opened] = system.connect(receiver, count, first=10)
        if merge:
            _merged()
        time.sleep(SETTLE_S)
        after = system.memory()
        receiver.reset()
        spent = Spent(system, receiver)
        time.sleep(seconds)
        spent.stop()
        counts = receiver.counts()
        faults = spent.faults() + counts.faults
        if counts.connections != count + 10:
            faults.append(f"{counts.connections} of {count + 10} connections were there at the end")
        if not opened:
            raise BenchError("nothing was opened")
    values = {
        "PSS per connection": (after.pss - before.pss) / count / 1000,
        "RSS per connection": (after.rss - before.rss) / count / 1000,
        "PSS before, MB": before.pss / 1e6,
        "PSS, MB": after.pss / 1e6,
        "CPU while idle, %": spent.total / spent.seconds * 100,
    }
    return Round(values, faults)


def _merged() -> None:
    """Waits until same-page merging has been through everything three times, or for two minutes."""
    start, deadline = scans(), time.monotonic() + MERGE_TIMEOUT_S
    while scans() < start + 3 and time.monotonic() < deadline:
        time.sleep(0.5)
